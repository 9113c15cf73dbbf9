//! Events and watched properties, as they may be spelt.
#![allow(dead_code)]

use std::sync::Arc;

use objbus::{Event, MethodKind, Object, Subscribe, TypeRef, Watch, Watched};

#[derive(serde::Serialize, serde::Deserialize, objbus::Type)]
pub struct Loaded {
    url: String,
}

#[derive(Default)]
struct Downloads {
    loaded: Event<Loaded>,
    shared: Arc<Event<Loaded>>,
    title: Watched<String>,
}

#[objbus::object]
impl Downloads {
    /// A page is there.
    pub fn loaded(&self) -> &Event<Loaded> {
        &self.loaded
    }

    pub fn lifetime<'a>(&'a self) -> &'a objbus::Event<Loaded> {
        &self.loaded
    }

    pub fn by_value(&self) -> Event<Loaded> {
        self.loaded.clone()
    }

    pub fn shared(&self) -> Arc<Event<Loaded>> {
        Arc::clone(&self.shared)
    }

    pub fn within(&self) -> &Arc<Event<Loaded>> {
        &self.shared
    }

    pub fn owned(self: Arc<Self>) -> Event<Loaded> {
        self.loaded.clone()
    }

    pub fn title(&self) -> &Watched<String> {
        &self.title
    }

    #[objbus(skip)]
    pub fn hidden(&self) -> &Event<Loaded> {
        &self.loaded
    }
}

fn proxies(proxy: &DownloadsProxy) -> (Subscribe<Loaded>, Watch<String>) {
    (proxy.loaded(), proxy.title())
}

fn main() {
    let description = Object::table(Arc::new(Downloads::default())).description();
    let kinds: Vec<_> = description.methods.iter().map(|method| method.kind()).collect();
    assert_eq!(kinds, [&[MethodKind::Event; 6][..], &[MethodKind::Watched]].concat());
    let TypeRef::Event(inner) = &description.methods[0].result else { panic!() };
    assert!(matches!(**inner, TypeRef::Named(_)));
    let text = description.to_string();
    assert!(text.contains("    /// A page is there.\n    event loaded() -> Loaded;\n"), "{text}");
    assert!(text.contains("    watched title() -> String;\n"), "{text}");
}
