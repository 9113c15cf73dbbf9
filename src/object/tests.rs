//! The macros' code at work, without any bus: handlers called directly, proxies compared with objects.

use std::borrow::Cow;
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{AsyncInvocation, Handler, Invocation, MethodTable, Object, Proxy, Refusal, RequestBody};
use crate::blob::shared::Blob;
use crate::object::invocation::Concluded;
use crate::wire::blob::{Blobs, Lent};
use crate::wire::budget::{Budget, decode};
use crate::wire::output::Output;
use crate::{BusError, RemoteError};

/// Calls the method `name` of `table` and gives how it ended and the output.
fn call<A: Serialize>(table: &MethodTable, name: &str, arguments: &A) -> (Concluded, Output) {
    let body = postcard::to_stdvec(arguments).unwrap();
    let budget = Budget::default();
    let mut output = Output::heap(1 << 20);
    let concluded = match &table.methods()[table.find_name(name).expect("the method is there")].handler {
        Handler::Plain(run) => run(Invocation::new(&body, Lent::default(), &mut output, &budget)),
        Handler::Async(start) => {
            let mut future =
                start(AsyncInvocation::new(RequestBody::copy_of(&body), Blobs::new(), output, budget));
            let Poll::Ready(completed) = Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop()))
            else {
                panic!("the tests' methods do not wait")
            };
            output = completed.output;
            completed.concluded
        }
    };
    (concluded, output)
}

fn returned<A: Serialize, R: DeserializeOwned>(table: &MethodTable, name: &str, arguments: &A) -> R {
    let (concluded, output) = call(table, name, arguments);
    assert_eq!((concluded, output.is_error()), (Ok(()), false), "{name}");
    decode(output.spill().unwrap_or_default(), &Budget::default()).unwrap()
}

fn failed<A: Serialize, E: DeserializeOwned>(table: &MethodTable, name: &str, arguments: &A) -> E {
    let (concluded, output) = call(table, name, arguments);
    assert_eq!((concluded, output.is_error()), (Ok(()), true), "{name}");
    decode(output.spill().unwrap_or_default(), &Budget::default()).unwrap()
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, crate::Type)]
struct Item {
    name: String,
    count: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, crate::Type)]
enum ShopError {
    SoldOut,
}

struct Shop {
    title: String,
}

/// A shop.
#[crate::object]
impl Shop {
    /// Not callable: it takes no object.
    pub fn new() -> Self {
        Shop { title: "corner".into() }
    }

    /// The length of a name.
    pub fn length(&self, name: &str) -> usize {
        name.len()
    }

    /// Its own name.
    #[objbus(property)]
    pub fn title(&self) -> &str {
        &self.title
    }

    pub async fn reverse(&self, data: &[u8]) -> Vec<u8> {
        data.iter().rev().copied().collect()
    }

    pub fn take(&self, data: Vec<u8>, more: Option<&[u8]>) -> (u32, Vec<u8>) {
        (data.len() as u32, more.map(<[u8]>::to_vec).unwrap_or_default())
    }

    pub fn total(&self, items: &[Item], extra: Option<&Item>, path: &Path) -> u32 {
        let extra = extra.map_or(0, |item| item.count);
        items.iter().map(|item| item.count).sum::<u32>() + extra + path.components().count() as u32
    }

    pub fn buy(&self, item: &Item) -> Result<u32, ShopError> {
        if item.count > 9 { Err(ShopError::SoldOut) } else { Ok(item.count) }
    }

    pub async fn read(&self, missing: bool) -> io::Result<Vec<u8>> {
        if missing { Err(io::Error::new(io::ErrorKind::NotFound, "no stock list")) } else { Ok(vec![1, 2]) }
    }

    pub fn boxed(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        Err("the till is broken".into())
    }

    pub fn shared(self: Arc<Self>, _unit: ()) -> usize {
        Arc::strong_count(&self)
    }

    pub fn longest<'a>(&'a self, one: &'a str, other: &'a str) -> &'a str {
        if one.len() > other.len() { one } else { other }
    }

    #[objbus(skip)]
    pub fn with<T>(&self, value: T) -> T {
        value
    }

    #[cfg(any())]
    pub fn never_built(&self) -> DoesNotExist {}

    pub fn last(&self) {}

    #[allow(dead_code)]
    pub fn rename(&mut self, title: String) {
        self.title = title;
    }
}

fn shop() -> MethodTable {
    Object::table(Arc::new(Shop::new()))
}

#[test]
fn exactly_the_public_methods_are_callable() {
    let table = shop();
    let names: Vec<_> = table.methods().iter().map(|method| method.signature.name.as_str()).collect();
    let all =
        ["length", "title", "reverse", "take", "total", "buy", "read", "boxed", "shared", "longest", "last"];
    assert_eq!(names, all);
    assert_eq!(table.check(), Ok(()));
    assert_eq!(Shop::new().with(3), 3);
}

#[test]
fn the_proxy_knows_the_objects_keys() {
    let table = shop();
    let interface = ShopProxy::interface();
    assert_eq!(interface.type_name, "Shop");
    for (index, (name, key)) in interface.methods.iter().enumerate() {
        assert_eq!(table.find(*key), Some(index), "{name}");
    }
    assert_eq!(table.find(12345), None);
    assert_eq!(MethodTable::named("empty").find(0), None);
}

#[test]
fn arguments_may_borrow_and_results_travel_owned() {
    let table = shop();
    assert_eq!(returned::<_, usize>(&table, "length", &("four",)), 4);
    assert_eq!(returned::<_, String>(&table, "title", &()), "corner");
    assert_eq!(returned::<_, Vec<u8>>(&table, "reverse", &(vec![1u8, 2, 3],)), [3, 2, 1]);
    let taken: (u32, Vec<u8>) = returned(&table, "take", &(vec![1u8, 2, 3], Some(vec![9u8])));
    assert_eq!(taken, (3, vec![9]));
    let item = Item { name: "nail".into(), count: 5 };
    let total: u32 = returned(&table, "total", &(vec![item.clone(), item.clone()], Some(item), "a/b"));
    assert_eq!(total, 17);
    assert_eq!(returned::<_, String>(&table, "longest", &("abc", "de")), "abc");
    assert!(returned::<_, usize>(&table, "shared", &((),)) >= 2);
}

#[test]
fn errors_travel_as_themselves_or_as_their_sentences() {
    let table = shop();
    let item = Item { name: "nail".into(), count: 50 };
    assert_eq!(failed::<_, ShopError>(&table, "buy", &(item,)), ShopError::SoldOut);
    assert_eq!(returned::<_, Vec<u8>>(&table, "read", &(false,)), [1, 2]);
    let missing: RemoteError = failed(&table, "read", &(true,));
    assert_eq!(
        (missing.kind.as_str(), missing.message.as_str()),
        ("std::io::ErrorKind::NotFound", "no stock list")
    );
    assert_eq!(failed::<_, RemoteError>(&table, "boxed", &()).message, "the till is broken");
}

#[test]
fn bad_arguments_do_not_run_the_method() {
    for name in ["length", "reverse"] {
        let refusal = call(&shop(), name, &(200u8, 1u8)).0.unwrap_err();
        assert!(matches!(*refusal, Refusal::BadRequest(_)), "{name}: {refusal:?}");
    }
}

#[test]
fn an_object_describes_itself_as_rust_would() {
    let text = shop().description().to_string();
    for line in [
        "/// A shop.",
        "object Shop {",
        "    /// The length of a name.",
        "    fn length(name: String) -> usize;",
        "    property title() -> String;",
        "    async fn reverse(data: Vec<u8>) -> Vec<u8>;",
        "    fn buy(item: Item) -> Result<u32, ShopError>;",
        "    fn last();",
        "struct Item { name: String, count: u32 }",
        "    SoldOut,",
    ] {
        assert!(text.lines().any(|printed| printed == line), "{line} is missing in\n{text}");
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, crate::Type)]
enum ApiError {
    Negative,
    Bus(String),
}

impl From<BusError> for ApiError {
    fn from(error: BusError) -> Self {
        ApiError::Bus(error.to_string())
    }
}

#[crate::interface]
trait Api {
    /// The square root.
    fn root(&self, x: f64) -> Result<f64, ApiError>;

    async fn name(&self, prefix: &str) -> Result<String, ApiError>;
}

struct Local;

impl Api for Local {
    fn root(&self, x: f64) -> Result<f64, ApiError> {
        if x < 0.0 { Err(ApiError::Negative) } else { Ok(x.sqrt()) }
    }

    async fn name(&self, prefix: &str) -> Result<String, ApiError> {
        Ok(format!("{prefix}local"))
    }
}

fn work(api: &impl Api) -> Result<f64, ApiError> {
    api.root(4.0)
}

#[test]
fn an_interface_is_served_by_any_implementor() {
    let table = Object::table(Arc::new(ApiObject(Local)));
    assert_eq!(returned::<_, f64>(&table, "root", &(9.0,)), 3.0);
    assert_eq!(failed::<_, ApiError>(&table, "root", &(-1.0,)), ApiError::Negative);
    assert_eq!(returned::<_, String>(&table, "name", &("very ",)), "very local");
    let keys: Vec<_> = table.methods().iter().map(|method| method.signature.key).collect();
    assert_eq!(ApiProxy::interface().methods.iter().map(|(_, key)| *key).collect::<Vec<_>>(), keys);
    assert_eq!(work(&Local), Ok(2.0));
}

fn math() -> MethodTable {
    MethodTable::named("math")
        .docs("Arithmetic.")
        .method("pow", |x: f64, y: f64| x.powf(y))
        .argument_names(&["x", "y"])
        .docs("x to the power of y.")
        .try_method("divide", |a: i64, b: i64| a.checked_div(b).ok_or("division by zero".to_owned()))
        .property("version", || 1u32)
}

#[test]
fn closures_make_an_object() {
    let table = Object::table(Arc::new(math()));
    assert_eq!(returned::<_, f64>(&table, "pow", &(2.0, 10.0)), 1024.0);
    assert_eq!(returned::<_, i64>(&table, "divide", &(7i64, 2i64)), 3);
    assert_eq!(failed::<_, String>(&table, "divide", &(7i64, 0i64)), "division by zero");
    assert_eq!(returned::<_, u32>(&table, "version", &()), 1);
    let description = table.description();
    assert_eq!(description.signature(&description.methods[0]), "fn pow(x: f64, y: f64) -> f64");
    assert_eq!(
        description.signature(&description.methods[1]),
        "fn divide(a0: i64, a1: i64) -> Result<i64, String>"
    );
    assert_eq!(
        (description.docs.as_str(), description.methods[0].docs.as_str()),
        ("Arithmetic.", "x to the power of y.")
    );
}

#[test]
fn closures_and_macros_agree_on_keys() {
    struct Math;

    #[crate::object]
    impl Math {
        pub fn pow(&self, base: f64, exponent: f64) -> f64 {
            base.powf(exponent)
        }

        pub fn divide(&self, a: i64, b: i64) -> Result<i64, String> {
            a.checked_div(b).ok_or_else(String::new)
        }
    }

    let closures = math();
    let _ = Math;
    assert!(MathProxy::interface().methods.iter().all(|(_, key)| closures.find(*key).is_some()));
}

#[test]
fn an_object_without_methods_is_refused() {
    let empty = MethodTable::named("Empty");
    let refused = crate::Bus::in_memory().publish("empty", empty).unwrap_err();
    assert!(refused.to_string().contains("nothing to call"), "{refused}");
}

#[test]
fn two_methods_of_one_name_are_refused() {
    let twice = math().method("pow", |x: u8| x);
    assert_eq!(twice.check(), Err("it has two methods `pow`".to_owned()));
}

#[test]
fn a_method_without_an_error_of_its_own_is_infallible() {
    let _: fn(&ShopProxy) -> crate::Call<(), Infallible> = ShopProxy::last;
}

#[test]
fn a_description_travels_and_a_forged_one_still_prints() {
    let mut description = shop().description();
    let body = postcard::to_stdvec(&description).unwrap();
    assert_eq!(decode::<crate::Description>(&body, &Budget::default()).as_ref(), Ok(&description));
    description.types.clear();
    assert!(description.to_string().contains("fn buy(item: ?) -> Result<u32, ?>;"));
}

struct Store;

#[crate::object]
impl Store {
    pub fn buffers(&self, boxed: Box<[u8]>, cow: Cow<'_, [u8]>, more: (&[u8], Option<&[u8]>)) -> Box<[u8]> {
        [&boxed, &*cow, more.0, more.1.unwrap_or_default()].concat().into()
    }

    pub fn swap(&self, blobs: (Blob, Option<Blob>)) -> Result<Vec<Blob>, ShopError> {
        let (first, second) = blobs;
        Ok(second.into_iter().chain([first]).collect())
    }

    pub async fn part(&self, whole: &Blob, data: &[u8]) -> Blob {
        whole.slice(..data.len())
    }
}

#[test]
fn byte_buffers_travel_however_they_are_spelt() {
    let table = Object::table(Arc::new(Store));
    let arguments = (&[1u8][..], &[2u8][..], (&[3u8][..], Some(&[4u8][..])));
    assert_eq!(returned::<_, Vec<u8>>(&table, "buffers", &arguments), [1, 2, 3, 4]);
}

#[test]
fn blobs_pass_through_methods_uncopied() {
    let table = Object::table(Arc::new(Store));
    let handler = |name| &table.methods()[table.find_name(name).unwrap()].handler;
    let lent = [Blob::copy_of(b"first"), Blob::copy_of(b"second")];
    let budget = Budget::default();

    let mut output = Output::heap(1 << 20);
    let Handler::Plain(swap) = handler("swap") else { panic!() };
    let call = Lent { blobs: &lent, backing: None };
    swap(Invocation::new(&[1, 1, 2], call, &mut output, &budget)).unwrap();
    let (swapped, body) = (output.take_blobs().collect::<Vec<_>>(), output.spill().unwrap());
    assert_eq!(body, [2, 1, 2]);
    assert!(swapped[0].as_ptr() == lent[1].as_ptr() && swapped[1].as_ptr() == lent[0].as_ptr());

    let Handler::Async(part) = handler("part") else { panic!() };
    // The whole body lies in a lent buffer.
    let body = RequestBody::Large(Blob::copy_of(&[1, 2, 0, 0]));
    let call = AsyncInvocation::new(body, lent.into_iter().collect(), Output::heap(100), budget);
    let Poll::Ready(mut completed) = Pin::new(&mut part(call)).poll(&mut Context::from_waker(Waker::noop()))
    else {
        panic!("`part` does not wait")
    };
    assert_eq!(completed.output.take_blobs().next().unwrap()[..], *b"fi");
}
