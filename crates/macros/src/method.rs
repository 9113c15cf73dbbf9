//! One method as callers see it: its signature, taken from the tokens or refused at the spot.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{
    Attribute, Error, Expr, FnArg, GenericParam, Lit, Meta, Pat, Receiver, Result, ReturnType, Signature,
    Type, parse_quote_spanned,
};

use crate::told::Told;
use crate::travel::{self, Received};

/// serde writes tuples of up to so many elements.
const MOST_ARGUMENTS: usize = 16;

/// What `#[objbus(..)]` says of a method.
#[derive(Default)]
pub(crate) struct Marks {
    pub(crate) skip: bool,
    pub(crate) property: bool,
}

impl Marks {
    /// Reads the marks and takes them off.
    pub(crate) fn take(attributes: &mut Vec<Attribute>) -> Result<Marks> {
        let mut marks = Marks::default();
        let (taken, kept): (Vec<_>, Vec<_>) =
            attributes.drain(..).partition(|attribute| attribute.path().is_ident("objbus"));
        *attributes = kept;
        for attribute in taken {
            attribute.parse_nested_meta(|meta| {
                match () {
                    () if meta.path.is_ident("skip") => marks.skip = true,
                    () if meta.path.is_ident("property") => marks.property = true,
                    () => return Err(meta.error("on a method objbus knows `skip` and `property`")),
                }
                Ok(())
            })?;
        }
        Ok(marks)
    }
}

/// A method that other processes can call.
pub(crate) struct Method {
    pub(crate) name: Ident,
    /// Doc comments, `cfg` and `deprecated`: what its counterparts carry too.
    pub(crate) shared_attrs: Vec<Attribute>,
    docs: String,
    property: bool,
    pub(crate) is_async: bool,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) returns: Returns,
}

/// One argument: its name and the type that the user wrote.
pub(crate) struct Argument {
    pub(crate) name: Ident,
    pub(crate) ty: Type,
    pub(crate) received: Received,
    /// Of an `objbus::Stream<T>`, the `T`: the caller hands in any stream of it.
    pub(crate) stream_of: Option<Type>,
}

/// What a method returns.
pub(crate) struct Returns {
    /// What others subscribe to instead of calling the method.
    pub(crate) told: Option<Told>,
    /// Of an `impl Stream<Item = T>`, the `T` as the caller gets it.
    stream_of: Option<Type>,
    /// The value as written (`()` if nothing is), unless an alias of `Result` hides it.
    pub(crate) written: Option<Type>,
    /// The value as the caller gets it.
    owned: Type,
    /// The error as it travels, of a method that returns a `Result`; it carries the span of the error as written.
    wire_error: Option<Type>,
}

impl Method {
    /// The method with this signature; `this` stands for `Self`.
    pub(crate) fn of(
        signature: &Signature,
        attrs: &[Attribute],
        marks: &Marks,
        this: Option<&Type>,
    ) -> Result<Method> {
        refuse_modifiers(signature)?;
        let arguments = arguments(signature, this)?;
        let returns = Returns::of(&signature.output, this)?;
        if returns.stream_of.is_some() && arguments.len() == MOST_ARGUMENTS {
            return Err(Error::new(
                signature.inputs.span(),
                format!("a method that returns a stream has at most {} arguments", MOST_ARGUMENTS - 1),
            ));
        }
        if marks.property && returns.stream_of.is_some() {
            return Err(Error::new(
                signature.output.span(),
                "a property has one value: a stream is a method's",
            ));
        }
        if let Some(told) = &returns.told {
            told.check(signature, marks, &arguments)?;
        }
        if marks.property && !arguments.is_empty() {
            return Err(Error::new(signature.inputs.span(), "a property is read without arguments"));
        }
        Ok(Method {
            name: signature.ident.clone(),
            shared_attrs: attrs.iter().filter(|attribute| is_shared(attribute)).cloned().collect(),
            docs: docs(attrs),
            property: marks.property,
            is_async: signature.asyncness.is_some(),
            arguments,
            returns,
        })
    }

    pub(crate) fn cfgs(&self) -> impl Iterator<Item = &Attribute> {
        self.shared_attrs.iter().filter(|attribute| attribute.path().is_ident("cfg"))
    }

    pub(crate) fn is_documented(&self) -> bool {
        self.shared_attrs.iter().any(|attribute| attribute.path().is_ident("doc"))
    }

    pub(crate) fn name_on_the_bus(&self) -> String {
        self.name.unraw().to_string()
    }

    /// The `MethodSpec` of the method.
    pub(crate) fn spec(&self) -> TokenStream {
        let (name, docs) = (self.name_on_the_bus(), &self.docs);
        let (property, is_async) = (self.property, self.is_async);
        let names = self.arguments.iter().map(|argument| argument.name.unraw().to_string());
        let schemas = self.arguments.iter().map(Argument::schema);
        let (result, error) = self.returns.schemas();
        let cfgs = self.cfgs();
        quote! {
            #(#cfgs)*
            ::objbus::__private::MethodSpec {
                name: #name,
                docs: #docs,
                property: #property,
                is_async: #is_async,
                arguments: &[#((#names, #schemas)),*],
                result: #result,
                error: #error,
            }
        }
    }

    /// Adds the method to `table`: a handler that calls `target` with the receiver and the decoded arguments.
    pub(crate) fn handler(
        &self,
        methods: &TokenStream,
        target: &TokenStream,
        receiver: &TokenStream,
    ) -> TokenStream {
        let (name, cfgs) = (self.name_on_the_bus(), self.cfgs());
        let holders: Vec<Ident> =
            (0..self.arguments.len()).map(|index| format_ident!("argument_{index}")).collect();
        let wires = self.arguments.iter().map(|argument| argument.received.wire());
        let passed = self
            .arguments
            .iter()
            .zip(&holders)
            .map(|(argument, holder)| argument.received.pass(&quote!(#holder)));
        let spec = quote!(&#methods[const { ::objbus::__private::index_of(#methods, #name) }]);
        let wires = quote!((#(#wires,)*));
        let holders = quote!((#(#holders,)*));
        let call = quote!(#target(#receiver #(, #passed)*));
        let add = if let Some(told) = &self.returns.told {
            let serve = told.serve(&call);
            quote!(table.plain(#spec, move |call: ::objbus::__private::Invocation<'_>| #serve);)
        } else if self.returns.stream_of.is_some() {
            self.streaming(&spec, &call)
        } else if self.is_async {
            let answer = self.returns.answer(&quote!(answer), &quote!(#call.await));
            quote! {
                table.asynchronous(#spec, move |call: ::objbus::__private::AsyncInvocation| {
                    let this = ::objbus::__private::Arc::clone(&this);
                    async move {
                        let (request, answer) = call.split();
                        let #holders: #wires = match request.arguments() {
                            ::objbus::__private::Result::Ok(arguments) => arguments,
                            ::objbus::__private::Result::Err(refusal) => return answer.refuse(refusal),
                        };
                        #answer
                    }
                });
            }
        } else {
            let answer = self.returns.answer(&quote!(call), &call);
            quote! {
                table.plain(#spec, move |call: ::objbus::__private::Invocation<'_>| {
                    let #holders: #wires = call.arguments()?;
                    #answer
                });
            }
        };
        quote! {
            #(#cfgs)*
            {
                let this = ::objbus::__private::Arc::clone(&self);
                #add
            }
        }
    }

    /// As [`handler`](Self::handler), of a method that returns a stream.
    fn streaming(&self, spec: &TokenStream, call: &TokenStream) -> TokenStream {
        let holders: Vec<Ident> =
            (0..self.arguments.len()).map(|index| format_ident!("argument_{index}")).collect();
        let wires = self.arguments.iter().map(|argument| argument.received.wire());
        let keeps = self.arguments.iter().zip(&holders).filter_map(|(argument, holder)| {
            argument.received.callback()?;
            let is_optional = argument.received.is_optional();
            Some(if is_optional {
                quote!(#holder.iter().for_each(::objbus::__private::CalledBack::keep);)
            } else {
                quote!(#holder.keep();)
            })
        });
        let call = if self.is_async { quote!(#call.await) } else { call.clone() };
        let stream = if self.returns.is_result() {
            let into_result =
                quote_spanned!(self.returns.error_span()=> ::objbus::MethodResult::into_result(#call));
            quote! {
                match #into_result {
                    ::objbus::__private::Result::Ok(stream) => stream,
                    ::objbus::__private::Result::Err(error) => return opening.fail(error),
                }
            }
        } else {
            call
        };
        quote! {
            table.streaming(#spec, move |request: ::objbus::__private::AsyncRequest, opening: ::objbus::__private::Opening| {
                let this = ::objbus::__private::Arc::clone(&this);
                async move {
                    let (#(#holders,)* channel,): (#(#wires,)* u32,) = match request.arguments() {
                        ::objbus::__private::Result::Ok(arguments) => arguments,
                        ::objbus::__private::Result::Err(refusal) => return opening.refuse(refusal),
                    };
                    let ::core::option::Option::Some(opening) = opening.claim(channel) else { return };
                    let stream = #stream;
                    #(#keeps)*
                    opening.pump(stream).await
                }
            });
        }
    }

    /// The expression that makes the call through a proxy's handle.
    pub(crate) fn call(&self, methods: &TokenStream) -> TokenStream {
        let name = self.name_on_the_bus();
        let names = self.arguments.iter().map(|argument| &argument.name);
        let (value, error) = self.returns.at_caller();
        let index = quote!(const { ::objbus::__private::index_of(#methods, #name) });
        if let Some(told) = &self.returns.told {
            let subscription = told.at_caller();
            return quote!(<#subscription>::new(&self.handle, #index, #name));
        }
        let along: Vec<_> = self.arguments.iter().filter_map(Argument::put_along).collect();
        if let Some(item) = &self.returns.stream_of {
            return quote! {{
                let mut extras = ::objbus::__private::Extras::default();
                #(#along)*
                let receiving = extras.receive();
                let arguments = (#(&#names,)* receiving.id(),);
                self.handle.stream::<_, #item, #error>(#index, #name, &arguments, extras, receiving)
            }};
        }
        if along.is_empty() {
            return quote!(self.handle.call::<_, #value, #error>(#index, #name, &(#(&#names,)*)));
        }
        quote! {{
            let mut extras = ::objbus::__private::Extras::default();
            #(#along)*
            self.handle.call_with::<_, #value, #error>(#index, #name, &(#(&#names,)*), extras)
        }}
    }

    /// The type of what a proxy's method gives.
    pub(crate) fn call_type(&self) -> TokenStream {
        let (value, error) = self.returns.at_caller();
        match (&self.returns.told, &self.returns.stream_of) {
            (Some(told), _) => told.at_caller(),
            (None, Some(item)) => quote!(::objbus::StreamCall<#item, #error>),
            (None, None) => quote!(::objbus::Call<#value, #error>),
        }
    }

    /// Where the signature has a stream, if it has one.
    pub(crate) fn stream_span(&self) -> Option<Span> {
        let of_argument = self.arguments.iter().find_map(|argument| argument.stream_of.as_ref());
        of_argument.or(self.returns.stream_of.as_ref()).map(Spanned::span)
    }
}

impl Argument {
    /// The type by which a proxy takes the argument: as written, with lifetimes elided.
    pub(crate) fn proxy_type(&self) -> Type {
        if let Some(item) = &self.stream_of {
            return parse_quote_spanned! {self.ty.span()=>
                impl ::objbus::futures_core::Stream<Item = #item> + ::core::marker::Send + 'static
            };
        }
        let Some(callback) = self.received.callback() else { return travel::elided(&self.ty) };
        let interface = &callback.interface;
        let object: Type = parse_quote_spanned! {self.ty.span()=>
            impl #interface + ::core::marker::Send + ::core::marker::Sync + 'static
        };
        if self.received.is_optional() { syn::parse_quote!(::core::option::Option<#object>) } else { object }
    }

    /// Its schema, as a function pointer for a constant.
    fn schema(&self) -> TokenStream {
        let Some(callback) = self.received.callback() else { return travel::schema_of(&self.ty) };
        let proxy = callback.proxy();
        let optional = self.received.is_optional();
        quote_spanned!(self.ty.span()=> ::objbus::__private::callback_schema::<#proxy, #optional>)
    }

    /// What goes along with the call has a number stand for it among the arguments.
    fn put_along(&self) -> Option<TokenStream> {
        let (name, span) = (&self.name, self.ty.span());
        if self.stream_of.is_some() {
            return Some(quote_spanned!(span=> let #name = extras.send(#name);));
        }
        let proxy = self.received.callback()?.proxy();
        Some(if self.received.is_optional() {
            quote_spanned!(span=> let #name = #name.map(|given| extras.export(#proxy::objbus_object(given)));)
        } else {
            quote_spanned!(span=> let #name = extras.export(#proxy::objbus_object(#name));)
        })
    }
}

impl Returns {
    fn of(output: &ReturnType, this: Option<&Type>) -> Result<Returns> {
        let written = match output {
            ReturnType::Default => syn::parse_quote!(()),
            ReturnType::Type(_, ty) => without_self(ty, this),
        };
        if let Some(told) = Told::of(&written)? {
            let owned = syn::parse_quote!(());
            return Ok(Returns {
                told: Some(told),
                stream_of: None,
                written: Some(written),
                owned,
                wire_error: None,
            });
        }
        if let Some((plain, item)) = travel::streams(&written)? {
            return Returns::of_stream(&plain, item);
        }
        let Some(arguments) = travel::arguments_of(&written, "Result") else {
            let owned = travel::owned(&written)?;
            return Ok(Returns {
                told: None,
                stream_of: None,
                written: Some(written),
                owned,
                wire_error: None,
            });
        };
        let projected = |name: TokenStream| -> Result<Type> {
            let whole = travel::owned(&written)?;
            Ok(syn::parse_quote_spanned!(written.span()=> <#whole as ::objbus::MethodResult>::#name))
        };
        let wire_error = match arguments.as_slice() {
            [_, error] => {
                let error = travel::in_constant(error);
                syn::parse_quote_spanned!(error.span()=> <#error as ::objbus::WireError>::Wire)
            }
            _ => projected(quote!(Err))?,
        };
        let value = arguments.first().map(|value| (*value).clone());
        let owned = value.as_ref().map_or_else(|| projected(quote!(Ok)), travel::owned)?;
        Ok(Returns { told: None, stream_of: None, written: value, owned, wire_error: Some(wire_error) })
    }

    /// Of a method that returns a stream of `item`, where `plain` stands for what it returns, with `()` in place of the stream.
    fn of_stream(plain: &Type, item: Type) -> Result<Returns> {
        let output = ReturnType::Type(Default::default(), Box::new(plain.clone()));
        let mut returns = Returns::of(&output, None)?;
        let item = travel::owned(&item)?;
        returns.owned = syn::parse_quote_spanned!(item.span()=> ::objbus::Stream<#item>);
        returns.stream_of = Some(item);
        Ok(returns)
    }

    pub(crate) fn is_result(&self) -> bool {
        self.wire_error.is_some()
    }

    /// Where the error's type is written.
    pub(crate) fn error_span(&self) -> Span {
        self.wire_error.as_ref().unwrap_or(&self.owned).span()
    }

    /// The types that the caller gets: value and error.
    pub(crate) fn at_caller(&self) -> (&Type, Type) {
        let infallible = || syn::parse_quote!(::objbus::__private::Infallible);
        (&self.owned, self.wire_error.clone().unwrap_or_else(infallible))
    }

    fn schemas(&self) -> (TokenStream, TokenStream) {
        let (value, error) = self.at_caller();
        let value = self.told.as_ref().map_or_else(|| travel::schema_of(value), Told::schema);
        (value, travel::schema_of_error(&error))
    }

    /// Runs `call` and answers through `sink` with what it returns.
    fn answer(&self, sink: &TokenStream, call: &TokenStream) -> TokenStream {
        if !self.is_result() {
            return quote! {
                let result = #call;
                #sink.answer(&result)
            };
        }
        let into_result = quote_spanned!(self.error_span()=> ::objbus::MethodResult::into_result(#call));
        quote! {
            let result = #into_result;
            #sink.answer_result(&result)
        }
    }
}

fn refuse_modifiers(signature: &Signature) -> Result<()> {
    if let Some(keyword) = signature.unsafety {
        return Err(Error::new(
            keyword.span(),
            "an unsafe method cannot be callable, since no caller in another process can keep its promises: mark it `#[objbus(skip)]`",
        ));
    }
    if let Some(abi) = &signature.abi {
        return Err(Error::new(abi.span(), "a callable method has Rust's own calling convention"));
    }
    for parameter in &signature.generics.params {
        if !matches!(parameter, GenericParam::Lifetime(_)) {
            return Err(Error::new(
                parameter.span(),
                "a generic method cannot be called from another process, which cannot make new instances of it: write one method per type, or mark it `#[objbus(skip)]`",
            ));
        }
    }
    match &signature.generics.where_clause {
        Some(clause) => Err(Error::new(clause.span(), "a callable method has no `where` clause")),
        None => Ok(()),
    }
}

fn arguments(signature: &Signature, this: Option<&Type>) -> Result<Vec<Argument>> {
    let typed = signature.inputs.iter().filter_map(|input| match input {
        FnArg::Typed(typed) => Some(typed),
        FnArg::Receiver(_) => None,
    });
    let arguments = typed.map(|typed| {
        let name = match &*typed.pat {
            Pat::Ident(pattern) if pattern.by_ref.is_none() && pattern.subpat.is_none() => {
                pattern.ident.clone()
            }
            pattern => {
                return Err(Error::new(pattern.span(), "give the argument a plain name: callers see it"));
            }
        };
        let ty = without_self(&typed.ty, this);
        let received = Received::of(&ty)?;
        let stream_of = travel::argument_of(&ty, "Stream").cloned();
        Ok(Argument { name, ty, received, stream_of })
    });
    let arguments = arguments.collect::<Result<Vec<_>>>()?;
    if arguments.len() > MOST_ARGUMENTS {
        return Err(Error::new(
            signature.inputs.span(),
            format!("a call has at most {MOST_ARGUMENTS} arguments: put some of them into a struct"),
        ));
    }
    Ok(arguments)
}

/// How a method takes its object.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    Ref,
    Arc,
    /// `&mut self`, `self` and whatever else other processes cannot be given.
    Other,
}

impl Takes {
    pub(crate) fn of(receiver: &Receiver) -> Takes {
        match &*receiver.ty {
            Type::Reference(reference) if reference.mutability.is_none() && is_self(&reference.elem) => {
                Takes::Ref
            }
            ty if travel::arguments_of(ty, "Arc")
                .is_some_and(|of| matches!(of.as_slice(), [of] if is_self(of))) =>
            {
                Takes::Arc
            }
            _ => Takes::Other,
        }
    }
}

fn is_self(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.path.is_ident("Self"))
}

/// The type with `Self` written out: in the proxy, `Self` would be the proxy.
fn without_self(ty: &Type, this: Option<&Type>) -> Type {
    struct WriteOut<'a>(&'a Type);

    impl VisitMut for WriteOut<'_> {
        fn visit_type_mut(&mut self, ty: &mut Type) {
            if is_self(ty) {
                *ty = self.0.clone();
            }
            visit_mut::visit_type_mut(self, ty);
        }
    }

    let mut ty = ty.clone();
    if let Some(this) = this {
        WriteOut(this).visit_type_mut(&mut ty);
    }
    ty
}

fn is_shared(attribute: &Attribute) -> bool {
    ["doc", "cfg", "deprecated"].iter().any(|name| attribute.path().is_ident(name))
}

/// All values, or all errors in one.
pub(crate) fn all<T>(results: impl Iterator<Item = Result<T>>) -> Result<Vec<T>> {
    let (mut values, mut errors) = (Vec::new(), None::<Error>);
    for result in results {
        match (result, &mut errors) {
            (Ok(value), _) => values.push(value),
            (Err(error), Some(first)) => first.combine(error),
            (Err(error), none) => *none = Some(error),
        }
    }
    errors.map_or(Ok(values), Err)
}

/// The doc comment as text.
pub(crate) fn docs(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(line) => {
                    Some(line.value().strip_prefix(' ').map_or_else(|| line.value(), str::to_owned))
                }
                _ => None,
            },
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}
