//! `#[derive(objbus::Type)]`: the schema of a struct or enum, as serde writes it.

use proc_macro2::TokenStream;
use quote::quote;
use syn::ext::IdentExt;
use syn::punctuated::Punctuated;
use syn::{Data, DataEnum, DeriveInput, Error, Field, Fields, Result, Token, Variant, parse_quote};

use crate::case::Case;
use crate::serde_attrs::Attrs;

pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let attrs = Attrs::of(&input.attrs)?;
    let body = schema(input, &attrs)?;
    let mut generics = input.generics.clone();
    if attrs.opaque.is_none() {
        for parameter in generics.type_params_mut() {
            parameter.bounds.push(parse_quote!(::objbus::Type));
        }
    }
    let name = &input.ident;
    let (parameters, arguments, bounds) = generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #parameters ::objbus::Type for #name #arguments #bounds {
            fn schema(types: &mut ::objbus::Schemas) -> ::objbus::TypeRef {
                #body
            }
        }
    })
}

fn schema(input: &DeriveInput, attrs: &Attrs) -> Result<TokenStream> {
    if let Some(name) = &attrs.opaque {
        return Ok(quote!({ let _ = types; ::objbus::TypeRef::Opaque(::std::string::String::from(#name)) }));
    }
    let shape = match &input.data {
        Data::Struct(data) if attrs.transparent => return transparent(&data.fields, input),
        Data::Struct(data) => shape(&data.fields, attrs.rename_all)?,
        Data::Enum(data) => enumeration(data, attrs)?,
        Data::Union(data) => {
            return Err(Error::new(data.union_token.span, "a union cannot travel: use an enum"));
        }
    };
    let name = attrs.rename.clone().unwrap_or_else(|| input.ident.unraw().to_string());
    Ok(quote!(types.named::<Self>(#name, |types| #shape)))
}

fn transparent(fields: &Fields, input: &DeriveInput) -> Result<TokenStream> {
    let fields = traveling(fields)?;
    match fields.as_slice() {
        [(field, attrs)] => Ok(type_of(field, attrs)),
        _ => Err(Error::new_spanned(&input.ident, "a transparent type has exactly one field that travels")),
    }
}

/// The fields that are not skipped, with their attributes.
fn traveling(fields: &Fields) -> Result<Vec<(&Field, Attrs)>> {
    let with_attrs = fields.iter().map(|field| Ok((field, Attrs::of(&field.attrs)?)));
    with_attrs.filter(|field| !matches!(field, Ok((_, Attrs { skip: true, .. })))).collect()
}

fn type_of(field: &Field, attrs: &Attrs) -> TokenStream {
    let of = &field.ty;
    match &attrs.opaque {
        Some(name) => quote!(::objbus::TypeRef::Opaque(::std::string::String::from(#name))),
        None => quote!(<#of as ::objbus::Type>::schema(types)),
    }
}

/// The shape of a struct or of a variant.
fn shape(fields: &Fields, rename_all: Option<Case>) -> Result<TokenStream> {
    let of = traveling(fields)?;
    let types = of.iter().map(|(field, attrs)| type_of(field, attrs));
    Ok(match fields {
        Fields::Unit => quote!({
            let _ = types;
            ::objbus::Shape::Unit
        }),
        // serde writes a struct of one field as a newtype, unless a second one is merely skipped.
        Fields::Unnamed(all) if all.unnamed.len() == 1 && of.len() == 1 => {
            quote!(::objbus::Shape::Newtype(#(#types)*))
        }
        Fields::Unnamed(_) => quote!({
            let _ = &types;
            ::objbus::Shape::Tuple(::std::vec![#(#types),*])
        }),
        Fields::Named(_) => {
            let names = of.iter().map(|(field, attrs)| field_name(field, attrs, rename_all));
            quote!({
                let _ = &types;
                ::objbus::Shape::Struct(::std::vec![#((::std::string::String::from(#names), #types)),*])
            })
        }
    })
}

fn field_name(field: &Field, attrs: &Attrs, rename_all: Option<Case>) -> String {
    let plain = field.ident.as_ref().map(|name| name.unraw().to_string()).unwrap_or_default();
    let renamed = || rename_all.map(|case| case.of_field(&plain));
    attrs.rename.clone().or_else(renamed).unwrap_or_else(|| plain.clone())
}

fn enumeration(data: &DataEnum, attrs: &Attrs) -> Result<TokenStream> {
    let variants =
        data.variants.iter().map(|of| variant(of, attrs)).collect::<Result<Punctuated<_, Token![,]>>>()?;
    Ok(quote!({
        let _ = &types;
        ::objbus::Shape::Enum(::std::vec![#variants])
    }))
}

fn variant(variant: &Variant, container: &Attrs) -> Result<TokenStream> {
    let attrs = Attrs::of(&variant.attrs)?;
    if attrs.skip {
        return Err(Error::new_spanned(
            variant,
            "serde numbers the variants after a skipped one differently when it writes and when it reads: remove `skip`, or name the form with `#[objbus(opaque = \"name/1\")]` on the enum",
        ));
    }
    let plain = variant.ident.unraw().to_string();
    let renamed = || container.rename_all.map(|case| case.of_variant(&plain));
    let name = attrs.rename.clone().or_else(renamed).unwrap_or_else(|| plain.clone());
    let shape = match &attrs.opaque {
        Some(opaque) => {
            quote!(::objbus::Shape::Newtype(::objbus::TypeRef::Opaque(::std::string::String::from(#opaque))))
        }
        None => shape(&variant.fields, attrs.rename_all.or(container.rename_all_fields))?,
    };
    Ok(quote!((::std::string::String::from(#name), #shape)))
}
