//! Counts heap allocations: a hot call with small arguments makes none, plain or async.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::Arc;
use std::task::{Context, Waker};

use super::{AsyncInvocation, Handler, Invocation, MethodTable, Object, RequestBody};
use crate::blob::arena::{Arena, MemoryLimit};
use crate::wire::blob::{Blobs, Lent};
use crate::wire::budget::Budget;
use crate::wire::output::{Encoded, INLINE_BODY, Output, encode_request};

/// The system's allocator, counting per thread so that tests do not disturb each other.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every request goes to the system's allocator unchanged, whose promises are then ours. Counting uses a `Cell`
// without a destructor, which neither allocates nor can be gone.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on, and `memory` came from the system's allocator.
        unsafe { System.dealloc(memory, layout) }
    }
}

pub(crate) fn allocations(run: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    run();
    ALLOCATIONS.with(Cell::get) - before
}

struct Echo;

#[crate::object]
impl Echo {
    pub fn pow(&self, x: f64, y: f64) -> f64 {
        x.powf(y)
    }

    pub fn length(&self, name: &str, data: &[u8]) -> u32 {
        (name.len() + data.len()) as u32
    }

    pub async fn twice(&self, name: &str) -> usize {
        2 * name.len()
    }
}

/// One call, from encoding the arguments to the encoded answer.
fn call<A: serde::Serialize>(table: &MethodTable, arena: &Arena, index: usize, arguments: &A) {
    let mut request = [const { MaybeUninit::uninit() }; INLINE_BODY];
    let mut blobs = Blobs::new();
    let encoded = encode_request(arguments, &mut request, 1 << 20, arena, &mut blobs);
    let Ok(Encoded::Inline(len)) = encoded else { panic!() };
    // SAFETY: `encode_request` wrote the first `len` bytes.
    let body = unsafe { std::slice::from_raw_parts(request.as_ptr().cast::<u8>(), len) };
    let mut slot = [const { MaybeUninit::<u8>::uninit() }; 64];
    // SAFETY: `slot` outlives the output and is used by nothing else.
    let mut output = unsafe { Output::new(NonNull::from(&mut slot).cast(), 64, 1 << 20, Some(arena)) };
    let budget = Budget::default();
    let concluded = match &table.methods()[index].handler {
        Handler::Plain(run) => {
            run(Invocation::new(body, Lent { blobs: &blobs, backing: None }, &mut output, &budget))
        }
        Handler::Async(start) => {
            let mut future = start(AsyncInvocation::new(RequestBody::copy_of(body), blobs, output, budget));
            match Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop())) {
                std::task::Poll::Ready(completed) => completed.concluded,
                std::task::Poll::Pending => panic!("`twice` does not wait"),
            }
        }
    };
    assert_eq!(concluded, Ok(()));
}

#[test]
fn a_hot_call_does_not_allocate() {
    let table = Object::table(Arc::new(Echo));
    let arena = Arena::new(MemoryLimit::new(1 << 20));
    let all = || {
        call(&table, &arena, 0, &(2.0f64, 0.5f64));
        call(&table, &arena, 1, &("name", "bytes"));
        call(&table, &arena, 2, &("name",));
    };
    all();
    assert_eq!(allocations(all), 0);
    assert!(allocations(|| drop(Box::new(1))) > 0, "the counter counts");
}
