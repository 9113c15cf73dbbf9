//! The attribute and derive macros of objbus; use them through the `objbus` crate, which documents them.

use proc_macro::TokenStream;
use syn::{DeriveInput, Item, parse_macro_input};

mod case;
mod derive;
mod interface;
mod method;
mod object;
mod serde_attrs;
mod told;
mod travel;

/// Makes a type an object that can be published: put it on a plain `impl` block.
///
/// Every `pub fn` and `pub async fn` that takes `&self` (or `self: Arc<Self>`) becomes callable from other processes, and
/// `<Type>Proxy` is generated with the same methods, arguments and doc comments, each returning an `objbus::Call`. (A method
/// without a doc comment has one in the proxy all the same, for crates that demand them.)
/// It is one block per type: what stands in others is left alone, as are other functions. On a method, `#[objbus(skip)]` keeps it from being callable and
/// `#[objbus(property)]` marks a getter as a property.
///
/// Arguments may be references (`&str`, `&[u8]`, `&T`, in `Option` and tuples too); a result that is a reference
/// travels as the owned type. A method that returns `Result` has its error in `Call<T, E>`.
///
/// An argument `&dyn Trait`, `&impl Trait` or `impl Trait` of a trait with `#[objbus::interface]`, or an `Option` of one, is an
/// object of the caller's that the method calls back: the proxy takes `impl Trait + Send + Sync + 'static`. `<Trait>Proxy` must be
/// in scope beside the trait.
///
/// A method that returns an `&Event<T>` or an `&Watched<T>`, recognised by that name, is subscribed to: in the proxy it returns
/// an `objbus::Subscribe<T>` or an `objbus::Watch<T>`.
///
/// ```
/// struct ProcessInfo;
///
/// #[objbus::object]
/// impl ProcessInfo {
///     /// Process id of the publisher.
///     pub async fn get_pid(&self) -> u32 {
///         std::process::id()
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = objbus::Bus::in_memory();
/// let _published = bus.publish("processInfo", ProcessInfo)?;
/// let info: ProcessInfoProxy = bus.proxy("processInfo").wait()?;
/// assert_eq!(info.get_pid().wait()?, std::process::id());
/// # Ok(()) }
/// ```
#[proc_macro_attribute]
pub fn object(arguments: TokenStream, item: TokenStream) -> TokenStream {
    if let Err(error) = no_arguments("object", arguments) {
        return error.into_compile_error().into();
    }
    match syn::parse(item.clone()) {
        Ok(block) => object::expand(block).into(),
        Err(error) => misplaced(item, error, "put `#[objbus::object]` on the `impl` block of the type"),
    }
}

/// Makes a trait the interface of objects: its proxy implements the trait, so code takes a local object or a remote one.
///
/// Every method takes `&self` and returns `Result<T, E>` where `E: From<objbus::BusError>`, because a call may fail on its
/// way. An `async fn` becomes a `fn` returning `impl Future + Send`. Generated are `<Trait>Proxy`, which implements
/// the trait (plain methods block, async ones wait), and `<Trait>Object`, which publishes an implementor:
/// `bus.publish("name", ApiObject(value))`. An implementor can also go along with a call, to be called back: as an argument of an
/// `#[objbus::object]`'s method, or, if it is taken as `impl Trait + Send + Sync + 'static`, of an interface's.
///
/// ```
/// #[derive(Debug, serde::Serialize, serde::Deserialize, objbus::Type)]
/// pub struct ApiError(String);
///
/// impl From<objbus::BusError> for ApiError {
///     fn from(error: objbus::BusError) -> ApiError {
///         ApiError(error.to_string())
///     }
/// }
///
/// #[objbus::interface]
/// pub trait Api {
///     fn pow(&self, x: f64, y: f64) -> Result<f64, ApiError>;
/// }
///
/// struct Math;
/// impl Api for Math {
///     fn pow(&self, x: f64, y: f64) -> Result<f64, ApiError> {
///         Ok(x.powf(y))
///     }
/// }
///
/// fn square(api: &impl Api) -> Result<f64, ApiError> {
///     api.pow(3.0, 2.0)
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = objbus::Bus::in_memory();
/// let _published = bus.publish("math", ApiObject(Math))?;
/// let remote: ApiProxy = bus.proxy("math").wait()?;
/// assert_eq!(square(&Math).unwrap(), square(&remote).unwrap());
/// # Ok(()) }
/// ```
#[proc_macro_attribute]
pub fn interface(arguments: TokenStream, item: TokenStream) -> TokenStream {
    if let Err(error) = no_arguments("interface", arguments) {
        return error.into_compile_error().into();
    }
    match syn::parse(item.clone()) {
        Ok(definition) => interface::expand(definition).into(),
        Err(error) => misplaced(
            item,
            error,
            "put `#[objbus::interface]` on a trait; on an `impl` block, it is `#[objbus::object]`",
        ),
    }
}

/// Derives `objbus::Type`, the schema behind the keys of methods: put it beside serde's derives.
///
/// It follows serde's attributes that only rename (`rename`, `rename_all`, `rename_all_fields`), leave out (`skip` on a field) or see through
/// (`transparent`), and refuses those that change what travels. `#[objbus(opaque = "uuid/1")]` on a field or on
/// the type names its form instead of looking into it: change the name whenever the form changes.
#[proc_macro_derive(Type, attributes(objbus, serde))]
pub fn derive_type(item: TokenStream) -> TokenStream {
    let input = parse_macro_input!(item as DeriveInput);
    derive::expand(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// The item as it was, and where the attribute belongs, unless the item is none at all.
fn misplaced(item: TokenStream, error: syn::Error, belongs: &str) -> TokenStream {
    let Ok(found) = syn::parse::<Item>(item) else { return error.into_compile_error().into() };
    let error = syn::Error::new(proc_macro2::Span::call_site(), belongs).into_compile_error();
    quote::quote!(#found #error).into()
}

fn no_arguments(name: &str, arguments: TokenStream) -> syn::Result<()> {
    let arguments = proc_macro2::TokenStream::from(arguments);
    if arguments.is_empty() {
        return Ok(());
    }
    Err(syn::Error::new_spanned(arguments, format!("`#[objbus::{name}]` takes no arguments")))
}
