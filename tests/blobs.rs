//! Blobs between processes: lent, read in place, given back.

mod support;
use support::*;

use std::collections::HashMap;

use objbus::{Blob, Bus, CallContext, ConnectError, Limits};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "owner" => own(&arguments),
        other => panic!("no role `{other}`"),
    }
}

/// What blobs travel in.
#[derive(Serialize, Deserialize, objbus::Type, Clone, Debug, PartialEq)]
struct Album {
    title: String,
    cover: Option<Blob>,
    pages: Vec<Blob>,
    by_name: HashMap<String, Blob>,
    last: Page,
}

#[derive(Serialize, Deserialize, objbus::Type, Clone, Debug, PartialEq)]
enum Page {
    Blank,
    Picture(Blob),
    Two { left: Blob, right: (u8, Blob) },
}

/// Keeps and gives blobs.
struct Store {
    bus: Bus,
    kept: Mutex<HashMap<u64, Blob>>,
}

#[objbus::object]
impl Store {
    /// A blob of `len` bytes of a pattern, of this process' memory.
    pub fn make(&self, len: u64, seed: u8) -> Blob {
        pattern(&self.bus, len as usize, seed)
    }

    /// The same, made for the caller by what is known of it.
    pub fn make_for_caller(&self, len: u64, seed: u8) -> Result<Blob, objbus::AllocError> {
        let mut blob = CallContext::current().expect("a call is served").alloc(len as usize)?;
        fill(&mut blob, seed);
        Ok(blob.freeze())
    }

    pub async fn make_async(&self, len: u64, seed: u8) -> Blob {
        tokio_free_yield().await;
        pattern(&self.bus, len as usize, seed)
    }

    pub fn keep(&self, id: u64, blob: Blob) {
        self.kept.lock().insert(id, blob);
    }

    pub fn kept(&self, id: u64) -> Option<Blob> {
        self.kept.lock().get(&id).cloned()
    }

    pub fn forget(&self, id: u64) -> bool {
        self.kept.lock().remove(&id).is_some()
    }

    pub fn mirror(&self, album: Album) -> Album {
        album
    }

    pub async fn mirror_async(&self, album: Album) -> Result<Album, String> {
        tokio_free_yield().await;
        Ok(album)
    }

    pub fn fail(&self, blob: Blob) -> Result<(), Page> {
        Err(Page::Picture(blob))
    }

    pub fn sum(&self, blobs: Vec<Blob>) -> u64 {
        blobs.iter().flat_map(|blob| blob.iter()).map(|byte| u64::from(*byte)).sum()
    }

    pub fn bytes(&self, data: &[u8], text: &str) -> (u64, Vec<u8>, String) {
        (data.len() as u64, data.to_vec(), text.to_owned())
    }
}

/// Lets others run once.
async fn tokio_free_yield() {
    let mut is_second = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut is_second, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

fn byte(seed: u8, at: usize) -> u8 {
    (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed
}

fn fill(blob: &mut [u8], seed: u8) {
    for (at, to) in blob.iter_mut().enumerate() {
        *to = byte(seed, at);
    }
}

fn pattern(bus: &Bus, len: usize, seed: u8) -> Blob {
    let mut blob = bus.alloc(len).expect("there is memory");
    fill(&mut blob, seed);
    blob.freeze()
}

#[track_caller]
fn assert_pattern(blob: &Blob, len: usize, seed: u8) {
    assert_eq!(blob.len(), len);
    if let Some(at) = (0..len).find(|&at| blob[at] != byte(seed, at)) {
        panic!("byte {at} of {len} is {}, not {}", blob[at], byte(seed, at));
    }
}

fn own(arguments: &[String]) -> ! {
    let bus = bus_at(&arguments[0]);
    let store = Store { bus: bus.clone(), kept: Mutex::default() };
    let _published = bus.publish("store", store).expect("the name is free");
    say("ready");
    stay()
}

fn owner(place: &Place) -> Child {
    let owner = start("owner", &[place.text()]);
    owner.expect("ready");
    owner
}

#[test]
fn blobs_of_any_size_are_read_in_place_both_ways() {
    let place = place();
    let _owner = owner(&place);
    let bus = place.bus();
    let store: StoreProxy = bus.proxy("store").wait().unwrap();
    for (seed, len) in [0, 1, 63, 64, 4096, 70_000, 1 << 20, 3 << 20].into_iter().enumerate() {
        let seed = seed as u8;
        let made = store.make(len as u64, seed).wait().unwrap();
        assert_pattern(&made, len, seed);
        assert_pattern(&store.make_for_caller(len as u64, seed).wait().unwrap(), len, seed);
        assert_pattern(&block_on(store.make_async(len as u64, seed)).unwrap(), len, seed);
        let ours = pattern(&bus, len, seed);
        store.keep(u64::from(seed), ours.clone()).wait().unwrap();
        drop(ours);
        assert_pattern(&store.kept(seed.into()).wait().unwrap().unwrap(), len, seed);
        assert!(store.forget(seed.into()).wait().unwrap());
    }
}

#[test]
fn a_blob_travels_anywhere_in_a_type() {
    let place = place();
    let _owner = owner(&place);
    let bus = place.bus();
    let store: StoreProxy = bus.proxy("store").wait().unwrap();
    let blob = |seed: u8| pattern(&bus, 1000 + usize::from(seed), seed);
    let album = Album {
        title: "of everything".repeat(40),
        cover: Some(blob(1)),
        pages: (2..20).map(blob).collect(),
        by_name: (20..30).map(|seed| (seed.to_string(), blob(seed))).collect(),
        last: Page::Two { left: blob(30), right: (7, blob(31)) },
    };
    assert_eq!(store.mirror(album.clone()).wait().unwrap(), album);
    assert_eq!(block_on(store.mirror_async(album.clone())).unwrap(), album);
    let small = Album {
        title: String::new(),
        cover: None,
        pages: vec![],
        by_name: HashMap::new(),
        last: Page::Blank,
    };
    assert_eq!(store.mirror(small.clone()).wait().unwrap(), small);
    let error = store.fail(blob(1)).wait().unwrap_err().into_app().unwrap();
    assert_eq!(error, Page::Picture(blob(1)));
    let parts: Vec<Blob> = (0..10).map(|i| blob(3).slice(i * 100..i * 100 + 7)).collect();
    let expected: u64 = parts.iter().flat_map(|part| part.iter()).map(|byte| u64::from(*byte)).sum();
    assert_eq!(store.sum(parts).wait().unwrap(), expected);
    assert_eq!(store.sum(vec![Blob::from("heap"), Blob::empty()]).wait().unwrap(), 414);
}

#[test]
fn four_thousand_and_ninety_six_blobs_travel_in_one_call() {
    let place = place();
    let _owner = owner(&place);
    let bus = place.bus();
    let store: StoreProxy = bus.proxy("store").wait().unwrap();
    for round in 0..3_u8 {
        let pages: Vec<Blob> = (0..4096).map(|page| pattern(&bus, 65, page as u8 ^ round)).collect();
        let album =
            Album { title: String::new(), cover: None, pages, by_name: HashMap::new(), last: Page::Blank };
        assert_eq!(store.mirror(album.clone()).wait().unwrap(), album);
    }
}

#[test]
fn big_arguments_and_results_move_as_bytes() {
    let place = place();
    let _owner = owner(&place);
    let bus = place.bus();
    let store: StoreProxy = bus.proxy("store").wait().unwrap();
    for len in [0, 100, 300, 5_000, 100_000, 3 << 20] {
        let data: Vec<u8> = (0..len).map(|at| byte(1, at)).collect();
        let text = "äöü".repeat(len / 100);
        let answer = store.bytes(&data, &text).wait().unwrap();
        assert_eq!(answer, (len as u64, data, text));
    }
}

#[test]
fn a_process_that_comes_again_and_again_and_gives_nothing_back_is_refused_at_last() {
    let bus = Bus::in_memory();
    let store = Store { bus: bus.clone(), kept: Mutex::default() };
    let limits = Limits { lanes_per_process: 3, ..Limits::default() };
    let published = bus.publication("store", store).limits(limits).publish().unwrap();
    let connect = || bus.proxy::<StoreProxy>("store").wait();
    let held: Vec<Blob> = (0..3).map(|seed| connect().unwrap().make(10, seed).wait().unwrap()).collect();
    wait_until("all its calls have ended", || published.callers() == 0);
    assert!(matches!(connect(), Err(ConnectError::TooManyCallers)));
    (0..).zip(&held).for_each(|(seed, blob)| assert_pattern(blob, 10, seed));
    drop(held);
    wait_until("there is room again", || connect().is_ok());
}

/// Has one frame in memory at a time.
struct Camera(Bus);

#[objbus::object]
impl Camera {
    /// The next, taken by another thread than serves the call.
    pub fn next(&self) -> Blob {
        let frame = std::thread::scope(|scope| scope.spawn(|| self.0.alloc_wait(3 << 20, PATIENCE)).join());
        frame.expect("it does not panic").expect("the viewer has given the last one back").freeze()
    }
}

#[test]
fn what_a_call_gives_back_is_there_for_all_while_its_method_runs() {
    let place = place();
    let bus = Bus::builder().directory(place.path()).memory(4 << 20).open().unwrap();
    let _published = bus.publish("camera", Camera(bus.clone())).unwrap();
    let camera: CameraProxy = bus.proxy("camera").wait().unwrap();
    for _ in 0..100 {
        // Dropped just before the next call, which takes it back along.
        drop(camera.next().wait().unwrap());
    }
}
