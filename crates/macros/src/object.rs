//! `#[objbus::object]`: an `impl` block becomes an object, with a proxy beside it.

use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote};
use syn::spanned::Spanned;
use syn::{Error, ImplItem, ImplItemFn, ItemImpl, Result, Type, Visibility};

use crate::method::{Marks, Method, Takes, all, docs};
use crate::travel;

/// The block as it was, and the object and its proxy, or what is wrong with it: the block stays in any case, so that one mistake
/// is one error.
pub(crate) fn expand(mut block: ItemImpl) -> TokenStream {
    let generated = generate(&mut block).unwrap_or_else(Error::into_compile_error);
    quote!(#block #generated)
}

fn generate(block: &mut ItemImpl) -> Result<TokenStream> {
    let this = (*block.self_ty).clone();
    let methods = methods(block, &this);
    let name = name_of(block)?;
    let methods = methods?;
    if methods.is_empty() {
        return Err(Error::new(
            this.span(),
            "there is nothing to call: make a method `pub` and let it take `&self`",
        ));
    }
    let object = object(block, &name, &methods);
    let proxy = proxy(&name, &methods);
    Ok(quote!(#object #proxy))
}

/// The name of the type, if its `impl` block can be an object.
fn name_of(block: &ItemImpl) -> Result<Ident> {
    if let Some((_, of, _)) = &block.trait_ {
        return Err(Error::new(
            of.span(),
            "an object is a plain `impl` block: put `#[objbus::interface]` on the trait instead, and publish `<Trait>Object(value)`",
        ));
    }
    if let Some(lifetime) = travel::lifetime_in(&block.self_ty) {
        return Err(Error::new(
            lifetime.span(),
            "an object lives as long as it is published, so it cannot borrow: let it own what it has, or share it in an `Arc`",
        ));
    }
    if let Some(parameter) = block.generics.params.first() {
        return Err(Error::new(
            parameter.span(),
            "a generic type cannot be an object: write `impl` for one concrete type, such as `impl Store<u32>`",
        ));
    }
    match &*block.self_ty {
        Type::Path(path) => Ok(path
            .path
            .segments
            .last()
            .map(|last| last.ident.clone())
            .unwrap_or_else(|| format_ident!("Object"))),
        other => Err(Error::new(other.span(), "an object is a struct or enum of your own")),
    }
}

struct Callable {
    method: Method,
    takes: Takes,
}

/// The callable methods, or all that is wrong with them; the marks are taken off either way.
fn methods(block: &mut ItemImpl, this: &Type) -> Result<Vec<Callable>> {
    let functions = block.items.iter_mut().filter_map(|item| match item {
        ImplItem::Fn(function) => Some(function),
        _ => None,
    });
    let found = functions.filter_map(|function| callable(function, this).transpose());
    all(found)
}

/// The function as a method that others can call, unless it is left alone.
fn callable(function: &mut ImplItemFn, this: &Type) -> Result<Option<Callable>> {
    let marks = Marks::take(&mut function.attrs)?;
    let takes = function.sig.receiver().map_or(Takes::Other, Takes::of);
    let exported = matches!(function.vis, Visibility::Public(_)) && takes != Takes::Other;
    if marks.property && !exported {
        return Err(Error::new(function.sig.ident.span(), "a property is a `pub fn` that takes `&self`"));
    }
    if marks.skip || !exported {
        return Ok(None);
    }
    let method = Method::of(&function.sig, &function.attrs, &marks, Some(this))?;
    Ok(Some(Callable { method, takes }))
}

fn object(block: &ItemImpl, name: &Ident, methods: &[Callable]) -> TokenStream {
    let this = &block.self_ty;
    let (type_name, docs) = (name.to_string(), docs(&block.attrs));
    let proxy = format_ident!("{name}Proxy");
    let handlers = methods.iter().map(|Callable { method, takes }| {
        let function = &method.name;
        let receiver = match takes {
            Takes::Arc => quote!(::objbus::__private::Arc::clone(&this)),
            Takes::Ref | Takes::Other => quote!(&this),
        };
        method.handler(&quote!(#proxy::OBJBUS_METHODS), &quote!(<#this>::#function), &receiver)
    });
    quote! {
        #[automatically_derived]
        #[allow(deprecated, clippy::all, clippy::pedantic)]
        impl ::objbus::Object for #this {
            fn table(self: ::objbus::__private::Arc<Self>) -> ::objbus::MethodTable {
                let mut table = ::objbus::MethodTable::named(#type_name);
                table.describe(#docs);
                #(#handlers)*
                table
            }
        }
    }
}

fn proxy(name: &Ident, methods: &[Callable]) -> TokenStream {
    let proxy = format_ident!("{name}Proxy");
    let summary = format!("Calls the methods of a [`{name}`] that some process publishes.");
    let functions = methods.iter().map(|Callable { method, .. }| function(name, method));
    let declaration = declare(
        &quote!(pub),
        &proxy,
        &summary,
        &name.to_string(),
        methods.iter().map(|callable| &callable.method),
    );
    quote! {
        #declaration

        #[allow(dead_code, private_interfaces, clippy::all, clippy::pedantic)]
        impl #proxy {
            #(#functions)*
        }
    }
}

/// A method of the proxy: the same name, arguments and docs, returning a call value. One without docs gets a line of its
/// own, since the crate that it lands in may demand docs of everything public, and the user cannot write them there.
fn function(object: &Ident, method: &Method) -> TokenStream {
    let (name, attrs) = (&method.name, &method.shared_attrs);
    let line = format!("Calls `{object}::{name}`.");
    let fallback = (!method.is_documented()).then(|| quote!(#[doc = #line]));
    let names = method.arguments.iter().map(|argument| &argument.name);
    let types = method.arguments.iter().map(|argument| argument.proxy_type());
    let returns = method.call_type();
    let call = method.call(&quote!(Self::OBJBUS_METHODS));
    quote! {
        #fallback
        #(#attrs)*
        #[inline]
        pub fn #name(&self #(, #names: #types)*) -> #returns {
            #call
        }
    }
}

/// A proxy's type, its table of methods and what the bus needs of it.
pub(crate) fn declare<'a>(
    visibility: &TokenStream,
    proxy: &Ident,
    summary: &str,
    type_name: &str,
    methods: impl Iterator<Item = &'a Method>,
) -> TokenStream {
    let specs = methods.map(Method::spec);
    quote! {
        #[doc = #summary]
        #[derive(Clone, Debug)]
        #[allow(dead_code, rustdoc::private_intra_doc_links)]
        #visibility struct #proxy {
            handle: ::objbus::Handle,
        }

        #[allow(clippy::all, clippy::pedantic)]
        impl #proxy {
            const OBJBUS_METHODS: &'static [::objbus::__private::MethodSpec] = &[#(#specs),*];
        }

        #[automatically_derived]
        impl ::objbus::Proxy for #proxy {
            fn interface() -> ::objbus::Interface {
                ::objbus::Interface::of(#type_name, Self::OBJBUS_METHODS)
            }

            fn methods() -> (&'static str, &'static [::objbus::__private::MethodSpec]) {
                (#type_name, Self::OBJBUS_METHODS)
            }

            fn from_handle(handle: ::objbus::Handle) -> Self {
                Self { handle }
            }

            fn handle(&self) -> &::objbus::Handle {
                &self.handle
            }
        }
    }
}
