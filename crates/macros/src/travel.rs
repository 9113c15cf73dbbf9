//! How arguments and results travel: which owned or borrowing type stands for the one that the user wrote.
//!
//! Macros see tokens, not types, so `&[u8]` and `&str` are recognised as they are usually spelt.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{
    Error, GenericArgument, Lifetime, Path, PathArguments, Result, Token, TraitBound, TraitBoundModifier,
    Type, TypeParamBound, TypeReference, TypeTraitObject, parse_quote_spanned,
};

/// An argument on the owner's side: what to decode, and how to pass it on.
pub(crate) enum Received {
    /// Decoded as it is written.
    Same(Type),
    /// `&[T]`, decoded as `Vec<T>`.
    Slice(Type),
    /// `&T` of a type that has another type as its owned form.
    Unsized(Type),
    /// `&T`, decoded as `T`.
    Ref(Type),
    /// An object of the caller's, to be called back.
    Callback(Callback),
    Option(Box<Received>),
    Tuple(Vec<Received>),
}

impl Received {
    /// Classifies the type of an argument.
    pub(crate) fn of(ty: &Type) -> Result<Received> {
        match ty {
            Type::Reference(reference) => Received::of_reference(reference),
            Type::Tuple(tuple) => {
                let elements = tuple.elems.iter().map(Received::of).collect::<Result<Vec<_>>>()?;
                if let Some(callback) = elements.iter().find_map(Received::callback) {
                    let why = "an object to be called back is an argument of its own";
                    return Err(Error::new(callback.interface.span(), why));
                }
                let same = elements.iter().all(|element| matches!(element, Received::Same(_)));
                Ok(if same { Received::same(ty) } else { Received::Tuple(elements) })
            }
            Type::Paren(inner) => Received::of(&inner.elem),
            Type::Group(inner) => Received::of(&inner.elem),
            Type::ImplTrait(of) => Received::callback_of(&of.bounds, Given::Owned)
                .map_or_else(|| Received::same_unless_refused(ty), Ok),
            _ => match argument_of(ty, "Option") {
                Some(inner) => Ok(match Received::of(inner)? {
                    Received::Same(_) => Received::same(ty),
                    inner => Received::Option(Box::new(inner)),
                }),
                None => Received::same_unless_refused(ty),
            },
        }
    }

    fn of_reference(reference: &TypeReference) -> Result<Received> {
        let inner = &*reference.elem;
        if reference.mutability.is_some() {
            return Err(Error::new(
                reference.span(),
                "the other process has a copy of the arguments: take `&T` or `T`, and return what has changed",
            ));
        }
        if reference.lifetime.as_ref().is_some_and(|lifetime| lifetime.ident == "static") {
            return Err(Error::new(
                reference.span(),
                "an argument lives as long as its call only: take it by value or by a shorter reference",
            ));
        }
        let callback = match unwrapped(inner) {
            Type::ImplTrait(of) => Received::callback_of(&of.bounds, Given::Ref),
            Type::TraitObject(of) => Received::callback_of(&of.bounds, Given::Dyn(without_lifetimes(of))),
            _ => None,
        };
        if let Some(callback) = callback {
            return Ok(callback);
        }
        if let Some(error) = refuse(inner) {
            return Err(error);
        }
        Ok(match inner {
            // Borrowed from the request.
            _ if is_bytes(inner) || is_named(inner, "str") => {
                Received::same(&Type::Reference(reference.clone()))
            }
            Type::Slice(slice) => Received::Slice(elided(&slice.elem)),
            _ if is_named(inner, "Path") => Received::Unsized(inner.clone()),
            _ => Received::Ref(elided(inner)),
        })
    }

    fn callback_of(bounds: &Punctuated<TypeParamBound, Token![+]>, given: Given) -> Option<Received> {
        let interface = interface_in(bounds)?.clone();
        Some(Received::Callback(Callback { interface, given }))
    }

    /// The type as it is, unless it can never travel.
    fn same_unless_refused(ty: &Type) -> Result<Received> {
        refuse(ty).map_or_else(|| Ok(Received::same(ty)), Err)
    }

    /// The object of the caller's that it is, or that it is if there is one.
    pub(crate) fn callback(&self) -> Option<&Callback> {
        match self {
            Received::Callback(callback) => Some(callback),
            Received::Option(inner) => inner.callback(),
            _ => None,
        }
    }

    pub(crate) fn is_optional(&self) -> bool {
        matches!(self, Received::Option(_))
    }

    fn same(ty: &Type) -> Received {
        Received::Same(elided(ty))
    }

    /// The type to decode.
    pub(crate) fn wire(&self) -> TokenStream {
        match self {
            Received::Same(ty) | Received::Ref(ty) => ty.to_token_stream(),
            Received::Slice(element) => quote!(::std::vec::Vec<#element>),
            Received::Unsized(ty) => quote!(<#ty as ::std::borrow::ToOwned>::Owned),
            Received::Callback(callback) => {
                let proxy = callback.proxy();
                quote!(::objbus::__private::CalledBack<#proxy>)
            }
            Received::Option(inner) => {
                let inner = inner.wire();
                quote!(::core::option::Option<#inner>)
            }
            Received::Tuple(elements) => {
                let elements = elements.iter().map(Received::wire);
                quote!((#(#elements,)*))
            }
        }
    }

    /// The expression to pass on, from the place that holds what was decoded.
    pub(crate) fn pass(&self, place: &TokenStream) -> TokenStream {
        match self {
            Received::Same(_) => place.clone(),
            Received::Slice(_) => quote!(&#place[..]),
            Received::Unsized(ty) => quote!(::core::borrow::Borrow::<#ty>::borrow(&#place)),
            Received::Ref(_) => quote!(&#place),
            Received::Callback(callback) => callback.pass(place),
            Received::Option(inner) => match &**inner {
                Received::Callback(callback) => {
                    let value = callback.pass(&quote!(value));
                    quote!(#place.as_ref().map(|value| #value))
                }
                Received::Ref(_) => quote!(#place.as_ref()),
                Received::Slice(_) | Received::Unsized(_) => quote!(#place.as_deref()),
                inner => {
                    let inner = inner.pass(&quote!(value));
                    quote!(#place.map(|value| #inner))
                }
            },
            Received::Tuple(elements) => {
                let elements = elements.iter().enumerate().map(|(index, element)| {
                    let index = syn::Index::from(index);
                    element.pass(&quote!(#place.#index))
                });
                quote!((#(#elements,)*))
            }
        }
    }
}

/// An object of the caller's: something that implements a trait with `#[objbus::interface]`.
pub(crate) struct Callback {
    /// The trait.
    pub(crate) interface: Path,
    given: Given,
}

/// As what a method takes an object of the caller's.
enum Given {
    /// `&dyn Trait`.
    Dyn(TypeTraitObject),
    /// `&impl Trait`.
    Ref,
    /// `impl Trait`.
    Owned,
}

impl Callback {
    pub(crate) fn is_borrowed(&self) -> bool {
        !matches!(self.given, Given::Owned)
    }

    /// The proxy that the trait's attribute has generated beside it.
    pub(crate) fn proxy(&self) -> Path {
        let mut path = self.interface.clone();
        if let Some(last) = path.segments.last_mut() {
            last.ident = format_ident!("{}Proxy", last.ident);
        }
        path
    }

    fn pass(&self, place: &TokenStream) -> TokenStream {
        match &self.given {
            Given::Dyn(of) => quote!((#place.proxy() as &(#of))),
            Given::Ref => quote!(#place.proxy()),
            Given::Owned => quote!(#place.to_owned()),
        }
    }
}

/// Traits of the standard library that may stand beside an interface, or be taken for one.
const NO_INTERFACES: [&str; 14] = [
    "Send",
    "Sync",
    "Unpin",
    "UnwindSafe",
    "RefUnwindSafe",
    "Clone",
    "Debug",
    "Display",
    "Any",
    "Error",
    "Read",
    "Write",
    "BufRead",
    "Seek",
];

/// The one trait among these bounds that an object can be called by.
fn interface_in(bounds: &Punctuated<TypeParamBound, Token![+]>) -> Option<&Path> {
    let traits = bounds.iter().filter_map(|bound| match bound {
        TypeParamBound::Trait(of) => Some(of),
        _ => None,
    });
    let is_other = |of: &TraitBound| {
        of.path.segments.last().is_some_and(|last| NO_INTERFACES.iter().any(|name| last.ident == name))
    };
    let mut interfaces = traits.filter(|of| !is_other(of));
    let (only, more) = (interfaces.next()?, interfaces.next());
    let is_plain = only.lifetimes.is_none()
        && matches!(only.modifier, TraitBoundModifier::None)
        && only.path.segments.iter().all(|segment| segment.arguments.is_none());
    (more.is_none() && is_plain).then_some(&only.path)
}

/// The trait object as a cast to it says it, where the lifetime is inferred.
fn without_lifetimes(of: &TypeTraitObject) -> TypeTraitObject {
    let is_trait = |bound: &TypeParamBound| matches!(bound, TypeParamBound::Trait(_));
    let bounds = of.bounds.iter().filter(|bound| is_trait(bound)).cloned().collect();
    TypeTraitObject { dyn_token: of.dyn_token, bounds }
}

/// The type without parentheses around it.
fn unwrapped(ty: &Type) -> &Type {
    match ty {
        Type::Paren(inner) => unwrapped(&inner.elem),
        Type::Group(inner) => unwrapped(&inner.elem),
        ty => ty,
    }
}

/// The type that the caller gets for a result of type `ty`: references owned, lifetimes `'static`.
pub(crate) fn owned(ty: &Type) -> Result<Type> {
    let mut owned = ty.clone();
    let mut visitor = Owned { error: None };
    visitor.visit_type_mut(&mut owned);
    visitor.error.map_or(Ok(owned), Err)
}

struct Owned {
    error: Option<Error>,
}

impl VisitMut for Owned {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        if let Some(error) = refuse(ty) {
            self.error.get_or_insert(error);
            return;
        }
        if let Type::Reference(reference) = ty {
            let span = reference.span();
            let inner = &*reference.elem;
            *ty = match inner {
                Type::Slice(slice) => {
                    let element = &slice.elem;
                    parse_quote_spanned!(span=> ::std::vec::Vec<#element>)
                }
                _ if is_named(inner, "str") => parse_quote_spanned!(span=> ::std::string::String),
                _ if is_named(inner, "Path") => {
                    parse_quote_spanned!(span=> <#inner as ::std::borrow::ToOwned>::Owned)
                }
                _ => inner.clone(),
            };
            return self.visit_type_mut(ty);
        }
        visit_mut::visit_type_mut(self, ty);
    }

    fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
        *lifetime = Lifetime::new("'static", lifetime.span());
    }
}

/// Whether a type is or holds a reference.
pub(crate) fn borrows(ty: &Type) -> bool {
    struct Borrows(bool);

    impl VisitMut for Borrows {
        fn visit_type_reference_mut(&mut self, _: &mut TypeReference) {
            self.0 = true;
        }
    }

    let mut visitor = Borrows(false);
    visitor.visit_type_mut(&mut ty.clone());
    visitor.0
}

/// A lifetime in the type that is not `'static`.
pub(crate) fn lifetime_in(ty: &Type) -> Option<Lifetime> {
    struct Lifetimes(Option<Lifetime>);

    impl VisitMut for Lifetimes {
        fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
            if lifetime.ident != "static" {
                self.0 = Some(lifetime.clone());
            }
        }
    }

    let mut visitor = Lifetimes(None);
    visitor.visit_type_mut(&mut ty.clone());
    visitor.0
}

/// The type with every lifetime left to inference.
pub(crate) fn elided(ty: &Type) -> Type {
    with_lifetimes(ty, "'_")
}

/// The type with every lifetime `'static`, for its schema.
pub(crate) fn in_constant(ty: &Type) -> Type {
    with_lifetimes(ty, "'static")
}

fn with_lifetimes(ty: &Type, lifetime: &'static str) -> Type {
    struct Lifetimes(&'static str);

    impl VisitMut for Lifetimes {
        fn visit_type_reference_mut(&mut self, reference: &mut TypeReference) {
            reference.lifetime = Some(Lifetime::new(self.0, Span::call_site()));
            self.visit_type_mut(&mut reference.elem);
        }

        fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
            *lifetime = Lifetime::new(self.0, lifetime.span());
        }
    }

    let mut ty = ty.clone();
    Lifetimes(lifetime).visit_type_mut(&mut ty);
    ty
}

/// The schema of a type, as a function pointer for a constant.
pub(crate) fn schema_of(ty: &Type) -> TokenStream {
    let ty = in_constant(ty);
    quote_spanned!(ty.span()=> <#ty as ::objbus::Type>::schema)
}

/// The schema of a method's own error, as a function pointer for a constant.
pub(crate) fn schema_of_error(ty: &Type) -> TokenStream {
    quote_spanned!(ty.span()=> <#ty as ::objbus::OwnError>::error_schema)
}

/// Why a type can never travel, if so.
fn refuse(ty: &Type) -> Option<Error> {
    let why = match ty {
        Type::ImplTrait(of) if of.bounds.iter().any(|bound| stream_item(bound).is_some()) => {
            "a method takes a stream as `objbus::Stream<T>`, for which callers hand in any stream, and returns one as `impl Stream<Item = T>`, by itself or in a `Result`: write it so"
        }
        Type::ImplTrait(_) => "the other process must know the type: name it instead of `impl Trait`",
        Type::TraitObject(_) => "the other process must know the type: name it instead of `dyn Trait`",
        Type::Ptr(_) => "a pointer means nothing in another process: send the value itself",
        Type::BareFn(_) => {
            "a function pointer means nothing in another process: publish an object and send its name"
        }
        Type::Never(_) => "a method that never returns cannot be answered",
        Type::Infer(_) => "the other process must know the type: write it out",
        _ => return None,
    };
    Some(Error::new(ty.span(), format!("{why}, or mark the method `#[objbus(skip)]`")))
}

/// What a method returns that returns an `impl Stream<Item = T>`, by itself or in a `Result`: the same with `()` in the stream's
/// place, and the `T`.
pub(crate) fn streams(ty: &Type) -> Result<Option<(Type, Type)>> {
    struct Streams(Option<Result<Type>>);

    impl VisitMut for Streams {
        fn visit_type_mut(&mut self, ty: &mut Type) {
            if let Type::ImplTrait(of) = ty
                && let Some(item) = of.bounds.iter().find_map(stream_item)
            {
                self.0 = Some(item);
                *ty = syn::parse_quote_spanned!(of.span()=> ());
            }
        }
    }

    let (mut plain, mut found) = (ty.clone(), Streams(None));
    match &mut plain {
        Type::Path(path) => {
            let last = path.path.segments.last_mut().filter(|last| last.ident == "Result");
            if let Some(PathArguments::AngleBracketed(arguments)) = last.map(|last| &mut last.arguments)
                && let Some(GenericArgument::Type(first)) = arguments.args.first_mut()
            {
                found.visit_type_mut(first);
            }
        }
        other => found.visit_type_mut(other),
    }
    found.0.map(|item| item.map(|item| (plain, item))).transpose()
}

/// The `T` of a bound `Stream<Item = T>`.
fn stream_item(bound: &TypeParamBound) -> Option<Result<Type>> {
    let TypeParamBound::Trait(bound) = bound else { return None };
    let last = bound.path.segments.last().filter(|last| last.ident == "Stream")?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
        return Some(Err(Error::new(bound.span(), "say what the stream gives: `impl Stream<Item = T>`")));
    };
    let item = arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::AssocType(item) if item.ident == "Item" => Some(item.ty.clone()),
        _ => None,
    });
    Some(item.ok_or_else(|| Error::new(bound.span(), "say what the stream gives: `impl Stream<Item = T>`")))
}

/// Whether a type is `[u8]`.
fn is_bytes(ty: &Type) -> bool {
    matches!(ty, Type::Slice(slice) if is_named(&slice.elem, "u8"))
}

fn is_named(ty: &Type, name: &str) -> bool {
    let Type::Path(path) = ty else { return false };
    let last = path.path.segments.last();
    path.qself.is_none() && last.is_some_and(|last| last.ident == name && last.arguments.is_none())
}

/// The `T` of `name<T>`.
pub(crate) fn argument_of<'a>(ty: &'a Type, name: &str) -> Option<&'a Type> {
    match arguments_of(ty, name)?.as_slice() {
        [only] => Some(only),
        _ => None,
    }
}

/// The type arguments of a type whose path ends with `name`.
pub(crate) fn arguments_of<'a>(ty: &'a Type, name: &str) -> Option<Vec<&'a Type>> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last().filter(|last| last.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return Some(Vec::new()) };
    let types = arguments.args.iter().filter_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    });
    Some(types.collect())
}
