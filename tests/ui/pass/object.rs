//! All shapes of methods that an object may have.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use objbus::{Call, Proxy, RemoteError, Type};
use serde::{Deserialize, Serialize};

#[derive(Clone, Serialize, Deserialize, Type)]
pub struct Page<T> {
    items: Vec<T>,
    next: Option<Box<Page<T>>>,
}

#[derive(Debug, Serialize, Deserialize, Type)]
pub enum Refused {
    Full,
    Broken { why: String },
}

mod names {
    pub type Reply<T> = Result<T, super::Refused>;
}

pub struct Store;

/// A store.
#[objbus::object]
impl Store {
    pub const SIZE: usize = 3;

    pub fn new() -> Store {
        Store
    }

    /// Nothing in, nothing out.
    pub fn nothing(&self) {}

    pub fn borrow<'a>(&'a self, text: &'a str, bytes: &[u8], pages: &[Page<u8>], path: &Path) -> &'a str {
        let _ = (bytes, pages, path);
        text
    }

    pub fn optional(&self, text: Option<&str>, bytes: Option<&[u8]>, page: Option<&Page<u8>>) -> Option<Vec<u8>> {
        let _ = (text, page);
        bytes.map(<[u8]>::to_vec)
    }

    pub fn pairs(&self, pair: (Vec<u8>, &str), mut map: HashMap<String, u8>) -> (u8, Vec<u8>) {
        map.clear();
        (pair.1.len() as u8, pair.0)
    }

    pub async fn wait(&self, pages: Vec<Page<String>>) -> Result<Page<String>, Refused> {
        pages.into_iter().next().ok_or(Refused::Full)
    }

    pub async fn aliased(&self, other: &Self) -> io::Result<()> {
        let _ = other;
        Ok(())
    }

    pub fn own_alias(&self) -> names::Reply<u8> {
        Err(Refused::Broken { why: "rust".into() })
    }

    pub fn boxed(&self) -> Result<(), Box<dyn std::error::Error>> {
        Ok(())
    }

    pub fn shared(self: Arc<Self>) -> u32 {
        Arc::strong_count(&self) as u32
    }

    pub fn r#match(&self, r#type: u8) -> u8 {
        r#type
    }

    #[objbus(property)]
    pub fn size(&self) -> &u64 {
        &3
    }

    #[objbus(skip)]
    pub fn generic<T: Default>(&self) -> T {
        T::default()
    }

    #[cfg(any())]
    pub fn absent(&self, it: DoesNotExist) {}

    pub fn change(&mut self) {}

    pub fn consume(self) {}

    #[allow(dead_code)]
    fn private(&self, _: *const u8) {}
}

impl Serialize for Store {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl<'de> Deserialize<'de> for Store {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Store, D::Error> {
        <()>::deserialize(deserializer).map(|()| Store)
    }
}

impl Type for Store {
    fn schema(types: &mut objbus::Schemas) -> objbus::TypeRef {
        <()>::schema(types)
    }
}

#[allow(dead_code)]
fn the_proxy_has_the_same_methods(store: StoreProxy) {
    let _: Call<()> = store.nothing();
    let _: Call<String> = store.borrow("text", b"bytes", &[], Path::new("path"));
    let _: Call<Option<Vec<u8>>> = store.optional(Some("text"), None, None);
    let _: Call<(u8, Vec<u8>)> = store.pairs((vec![1], "two"), HashMap::new());
    let _: Call<Page<String>, Refused> = store.wait(vec![]);
    let _: Call<(), RemoteError> = store.aliased(&Store::new());
    let _: Call<u64> = store.size();
    let _: Call<u8> = store.r#match(1);
    fn is_send<T: Send + 'static>(_: T) {}
    is_send(store.shared());
}

fn main() {
    assert!(StoreProxy::interface().methods.iter().any(|(name, _)| *name == "match"));
}
