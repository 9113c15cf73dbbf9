//! `#[objbus::interface]`: a trait whose implementors are objects, and whose proxy is an implementor.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{
    Error, Ident, ItemTrait, Result, ReturnType, Signature, TraitItem, TraitItemFn, parse_quote_spanned,
};

use crate::method::{Marks, Method, Takes, all, docs};
use crate::object::declare;
use crate::travel;

/// Begins every complaint about what a method returns.
const MUST_RETURN: &str = "a method of an interface returns `Result<T, E>` with `E: From<objbus::BusError>`, because a call may fail on its way";

/// The trait with its async methods rewritten, and the object and the proxy, or what is wrong with it.
pub(crate) fn expand(mut definition: ItemTrait) -> TokenStream {
    let generated = generate(&mut definition).unwrap_or_else(Error::into_compile_error);
    quote!(#definition #generated)
}

fn generate(definition: &mut ItemTrait) -> Result<TokenStream> {
    let methods = all(definition.items.iter_mut().map(|item| match item {
        TraitItem::Fn(function) => Declared::take(function),
        other => Err(Error::new(other.span(), "an interface has methods only")),
    }));
    if let Some(parameter) = definition.generics.params.first() {
        return Err(Error::new(parameter.span(), "an interface cannot be generic: write one trait per type"));
    }
    let methods = methods?;
    if methods.is_empty() {
        return Err(Error::new(
            definition.ident.span(),
            "there is nothing to call: an interface needs a method",
        ));
    }
    let object = object(definition, &methods);
    let proxy = proxy(definition, &methods);
    Ok(quote!(#object #proxy))
}

/// A method as the bus and as the trait see it.
struct Declared {
    method: Method,
    /// The signature in the trait, after `async fn` was rewritten.
    signature: Signature,
}

impl Declared {
    /// Reads a method and rewrites it in place.
    fn take(function: &mut TraitItemFn) -> Result<Declared> {
        let marks = Marks::take(&mut function.attrs)?;
        let signature = &mut function.sig;
        if marks.skip {
            return Err(Error::new(
                signature.ident.span(),
                "every method of an interface is callable: move this one to another trait",
            ));
        }
        if signature.receiver().map(Takes::of) != Some(Takes::Ref) {
            return Err(Error::new(
                signature.ident.span(),
                "a method of an interface takes `&self`: the object is shared by its callers",
            ));
        }
        if let (Some(_), Some(body)) = (signature.asyncness, &function.default) {
            return Err(Error::new(
                body.span(),
                "an async method of an interface has no default body: write it in the implementors",
            ));
        }
        let method = Method::of(signature, &function.attrs, &marks, None);
        let written = signature.clone();
        make_future(signature);
        let method = method?;
        if let Some(spot) = method.stream_span() {
            return Err(Error::new(
                spot,
                "a method of an interface has no streams: put this one into an `#[objbus::object]` block",
            ));
        }
        check_result(&method, &written)?;
        check_callbacks(&method)?;
        Ok(Declared { method, signature: signature.clone() })
    }
}

fn check_result(method: &Method, signature: &Signature) -> Result<()> {
    if let Some(told) = &method.returns.told {
        return Err(Error::new(
            told.span(),
            "an interface has no events, since its proxy would have to hold this one: put it into an `#[objbus::object]` block",
        ));
    }
    if !method.returns.is_result() {
        let spot = match &signature.output {
            ReturnType::Default => signature.ident.span(),
            ReturnType::Type(_, output) => output.span(),
        };
        return Err(Error::new(spot, MUST_RETURN));
    }
    let borrowed = method.returns.written.as_ref().filter(|written| travel::borrows(written));
    borrowed.map_or(Ok(()), |written| {
        Err(Error::new(
            written.span(),
            "the proxy has nothing that this could borrow from: return an owned type",
        ))
    })
}

/// The proxy has what it is given served by other threads, for as long as the owner may call it: it must be its own.
fn check_callbacks(method: &Method) -> Result<()> {
    let borrowed = method.arguments.iter().find_map(|argument| {
        let callback = argument.received.callback().filter(|callback| callback.is_borrowed())?;
        Some((argument.ty.span(), callback.interface.segments.last()?.ident.to_string()))
    });
    borrowed.map_or(Ok(()), |(spot, name)| {
        Err(Error::new(
            spot,
            format!(
                "the proxy of an interface must own what it lets others call back: take `impl {name} + Send + Sync + 'static`"
            ),
        ))
    })
}

/// Turns `async fn f() -> R` into `fn f() -> impl Future<Output = R> + Send`.
fn make_future(signature: &mut Signature) {
    let Some(keyword) = signature.asyncness.take() else { return };
    if let ReturnType::Type(_, output) = &mut signature.output {
        **output = parse_quote_spanned! {keyword.span=>
            impl ::core::future::Future<Output = #output> + ::core::marker::Send
        };
    }
}

fn object(definition: &ItemTrait, methods: &[Declared]) -> TokenStream {
    let (visibility, name) = (&definition.vis, &definition.ident);
    let (object, proxy) = (format_ident!("{name}Object"), format_ident!("{name}Proxy"));
    let (type_name, docs) = (name.to_string(), docs(&definition.attrs));
    let summary =
        format!("Publishes an implementor of [`{name}`]: `bus.publish(\"name\", {object}(value))`.");
    let handlers = methods.iter().map(|Declared { method, .. }| {
        let function = &method.name;
        method.handler(
            &quote!(#proxy::OBJBUS_METHODS),
            &quote!(<Implementor as #name>::#function),
            &quote!(&this.0),
        )
    });
    quote! {
        #[doc = #summary]
        #[derive(Clone, Copy, Debug, Default)]
        #[allow(dead_code)]
        #visibility struct #object<Implementor>(pub Implementor);

        #[automatically_derived]
        #[allow(deprecated, clippy::all, clippy::pedantic)]
        impl<Implementor> ::objbus::Object for #object<Implementor>
        where
            Implementor: #name + ::core::marker::Send + ::core::marker::Sync + 'static,
        {
            fn table(self: ::objbus::__private::Arc<Self>) -> ::objbus::MethodTable {
                let mut table = ::objbus::MethodTable::named(#type_name);
                table.describe(#docs);
                #(#handlers)*
                table
            }
        }
    }
}

fn proxy(definition: &ItemTrait, methods: &[Declared]) -> TokenStream {
    let (visibility, name) = (&definition.vis, &definition.ident);
    let (object, proxy): (Ident, Ident) = (format_ident!("{name}Object"), format_ident!("{name}Proxy"));
    let summary = format!("The [`{name}`] that some process publishes.");
    let declaration = declare(
        &quote!(#visibility),
        &proxy,
        &summary,
        &name.to_string(),
        methods.iter().map(|declared| &declared.method),
    );
    let functions = methods.iter().map(function);
    quote! {
        #declaration

        #[automatically_derived]
        #[allow(dead_code)]
        impl #proxy {
            /// What is exported of an implementor that goes along with a call.
            #[doc(hidden)]
            #visibility fn objbus_object<Implementor>(implementor: Implementor) -> #object<Implementor> {
                #object(implementor)
            }
        }

        #[automatically_derived]
        #[allow(deprecated, clippy::all, clippy::pedantic)]
        impl #name for #proxy {
            #(#functions)*
        }
    }
}

/// A method of the proxy: makes the call and waits for it, or gives a future that does.
fn function(Declared { method, signature }: &Declared) -> TokenStream {
    let cfgs = method.cfgs();
    let call = method.call(&quote!(Self::OBJBUS_METHODS));
    // At the error's type, where the compiler then says that it has no place for a bus error.
    let spot = method.returns.error_span();
    let body = if method.is_async {
        let settle = quote_spanned!(spot=> ::objbus::__private::settle(call.await));
        quote! {
            let call = #call;
            async move { #settle }
        }
    } else {
        quote_spanned!(spot=> ::objbus::__private::settle(#call.wait()))
    };
    quote! {
        #(#cfgs)*
        #signature {
            #body
        }
    }
}
