//! Methods that return an event or a watched property: others subscribe to what the object keeps there.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Error, Result, Signature, Type};

use crate::method::{Argument, Marks};
use crate::travel;

/// What a method returns that tells others something by itself.
pub(crate) struct Told {
    /// `Event<T>` or `Watched<T>`, as it is written.
    ty: Type,
    item: Type,
    is_watched: bool,
}

impl Told {
    /// Recognises an event or a watched property as they are usually spelt, by reference or not, in an `Arc` or not.
    pub(crate) fn of(written: &Type) -> Result<Option<Told>> {
        if let Some(told) = Told::recognise(written) {
            return Ok(Some(told));
        }
        let within = ["Option", "Result"].into_iter().find_map(|name| travel::arguments_of(written, name));
        match within.and_then(|arguments| Told::recognise(arguments.first()?)) {
            Some(told) => Err(Error::new(
                told.span(),
                "it is to be there whenever somebody subscribes: return the reference alone",
            )),
            None => Ok(None),
        }
    }

    fn recognise(written: &Type) -> Option<Told> {
        let inner = behind_reference(written);
        let ty = match travel::arguments_of(inner, "Arc").as_deref() {
            Some([inner]) => inner,
            _ => inner,
        };
        let of = |name| match travel::arguments_of(ty, name)?.as_slice() {
            [item] => Some((*item).clone()),
            _ => None,
        };
        let (item, is_watched) =
            of("Event").map(|item| (item, false)).or_else(|| of("Watched").map(|item| (item, true)))?;
        Some(Told { ty: ty.clone(), item, is_watched })
    }

    /// Refuses what makes no sense for one.
    pub(crate) fn check(&self, signature: &Signature, marks: &Marks, arguments: &[Argument]) -> Result<()> {
        let (what, mark) = match self.is_watched {
            true => ("a watched property", "a watched property can be read as it is: leave the mark out"),
            false => ("an event", "an event is subscribed to, and cannot be read as a property"),
        };
        if let Some(keyword) = signature.asyncness {
            return Err(Error::new(keyword.span(), format!("{what} is returned at once: leave `async` out")));
        }
        if !arguments.is_empty() {
            return Err(Error::new(
                signature.inputs.span(),
                format!("{what} takes no arguments: write one method for each"),
            ));
        }
        if marks.property {
            return Err(Error::new(signature.ident.span(), mark));
        }
        Ok(())
    }

    /// Where the type is written.
    pub(crate) fn span(&self) -> proc_macro2::Span {
        self.ty.span()
    }

    /// What the proxy's method returns, which is made by its `new`.
    pub(crate) fn at_caller(&self) -> TokenStream {
        let item = &self.item;
        if self.is_watched { quote!(::objbus::Watch<#item>) } else { quote!(::objbus::Subscribe<#item>) }
    }

    /// Its schema, as a function pointer for a constant.
    pub(crate) fn schema(&self) -> TokenStream {
        let ty = travel::in_constant(&self.ty);
        quote_spanned!(ty.span()=> <#ty as ::objbus::__private::Told>::schema)
    }

    /// Serves `call`, a subscription, from what `method` returns.
    pub(crate) fn serve(&self, method: &TokenStream) -> TokenStream {
        let ty = travel::elided(&self.ty);
        quote! {{
            let told: &#ty = &#method;
            ::objbus::__private::Told::serve(told, call)
        }}
    }
}

fn behind_reference(ty: &Type) -> &Type {
    match ty {
        Type::Reference(reference) => behind_reference(&reference.elem),
        Type::Paren(inner) => behind_reference(&inner.elem),
        Type::Group(inner) => behind_reference(&inner.elem),
        other => other,
    }
}
