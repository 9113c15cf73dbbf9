//! The attributes of serde and objbus that a schema depends on.
//!
//! What is not known here to leave the wire alone is an error: a key that misses a change lets one type be decoded as another.

use syn::meta::ParseNestedMeta;
use syn::{Attribute, LitStr, Token};

use crate::case::Case;

/// What the attributes of a type, variant or field say.
#[derive(Default)]
pub(crate) struct Attrs {
    pub(crate) rename: Option<String>,
    pub(crate) rename_all: Option<Case>,
    pub(crate) rename_all_fields: Option<Case>,
    pub(crate) transparent: bool,
    pub(crate) skip: bool,
    /// The name given by `#[objbus(opaque = "..")]`.
    pub(crate) opaque: Option<LitStr>,
}

impl Attrs {
    pub(crate) fn of(attributes: &[Attribute]) -> syn::Result<Attrs> {
        let mut attrs = Attrs::default();
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("objbus")) {
            attribute.parse_nested_meta(|meta| attrs.objbus(&meta))?;
        }
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
            attribute.parse_nested_meta(|meta| attrs.serde(&meta))?;
        }
        Ok(attrs)
    }

    fn objbus(&mut self, meta: &ParseNestedMeta<'_>) -> syn::Result<()> {
        if !meta.path.is_ident("opaque") {
            return Err(meta.error("here objbus knows `opaque = \"name/1\"` only"));
        }
        let name: LitStr = meta.value()?.parse()?;
        if name.value().is_empty() {
            return Err(syn::Error::new(name.span(), "the name of an opaque form must not be empty"));
        }
        self.opaque = Some(name);
        Ok(())
    }

    fn serde(&mut self, meta: &ParseNestedMeta<'_>) -> syn::Result<()> {
        let name = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
        match name.as_str() {
            "rename" => self.rename = Some(renamed(meta)?.value()),
            "rename_all" => self.rename_all = Some(case(meta)?),
            "rename_all_fields" => self.rename_all_fields = Some(case(meta)?),
            "transparent" => self.transparent = true,
            "skip" => self.skip = true,
            "default" | "bound" | "crate" | "alias" | "borrow" | "deny_unknown_fields" | "expecting" | "other" => {
                ignore_value(meta)?;
            }
            // What an opaque form is made of is its own affair.
            _ if self.opaque.is_some() => ignore_value(meta)?,
            _ => return Err(meta.error(format!("`serde({name})` changes what travels, and the schema cannot follow it: remove it, or name the form with `#[objbus(opaque = \"name/1\")]`"))),
        }
        Ok(())
    }
}

/// The value of `rename = ".."`, or of `rename(serialize = "..", deserialize = "..")` if the two are equal.
fn renamed(meta: &ParseNestedMeta<'_>) -> syn::Result<LitStr> {
    if meta.input.peek(Token![=]) {
        return meta.value()?.parse();
    }
    let mut names: Vec<LitStr> = Vec::new();
    meta.parse_nested_meta(|side| {
        names.push(side.value()?.parse()?);
        Ok(())
    })?;
    match names.as_slice() {
        [one, other] if one.value() == other.value() => Ok(one.clone()),
        _ => Err(meta.error("both sides of the bus must know the same name: use `rename = \"..\"`")),
    }
}

fn case(meta: &ParseNestedMeta<'_>) -> syn::Result<Case> {
    let rule = renamed(meta)?;
    Case::parse(&rule.value(), rule.span())
}

fn ignore_value(meta: &ParseNestedMeta<'_>) -> syn::Result<()> {
    if meta.input.peek(Token![=]) {
        let _: syn::Expr = meta.value()?.parse()?;
    } else if meta.input.peek(syn::token::Paren) {
        let inner;
        syn::parenthesized!(inner in meta.input);
        let _: proc_macro2::TokenStream = inner.parse()?;
    }
    Ok(())
}
