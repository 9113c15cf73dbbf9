//! What a method that has streams may look like.

use objbus::futures_core::Stream;
use objbus::{Bus, stream_of};

struct Thing(Vec<String>);

#[objbus::object]
impl Thing {
    pub fn borrows_itself(&self) -> impl Stream<Item = String> {
        stream_of(self.0.iter().cloned())
    }

    pub fn borrows_arguments<'a>(&'a self, text: &'a str, at: &'a [u16]) -> impl Stream<Item = char> + 'a {
        stream_of(at.iter().filter_map(|at| text.chars().nth(usize::from(*at))))
    }

    pub async fn waits(&self) -> impl Stream<Item = u8> + Send {
        stream_of([1, 2])
    }

    pub fn fails(&self) -> Result<impl Stream<Item = u8>, std::io::Error> {
        Ok(stream_of([1, 2]))
    }

    pub fn fails_otherwise(&self) -> std::io::Result<impl Stream<Item = u8>> {
        Ok(stream_of([1, 2]))
    }

    pub fn both(&self, a: objbus::Stream<u8>, factor: u8, b: objbus::Stream<String>) -> impl Stream<Item = u8> {
        drop((a, b));
        stream_of([factor])
    }

    pub fn shared(self: std::sync::Arc<Self>) -> impl Stream<Item = u64> + use<> {
        stream_of([self.0.len() as u64])
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bus = Bus::in_memory();
    let _published = bus.publish("thing", Thing(vec!["a".to_owned()]))?;
    let thing: ThingProxy = bus.proxy("thing").wait()?;
    let first: objbus::StreamCall<String> = thing.borrows_itself();
    assert_eq!(first.wait()?.iter().next(), Some(Ok("a".to_owned())));
    assert_eq!(thing.borrows_arguments("abc", &[2, 0]).wait()?.iter().flatten().collect::<String>(), "ca");
    let failing: objbus::StreamCall<u8, objbus::RemoteError> = thing.fails_otherwise();
    assert_eq!(failing.wait()?.iter().count(), 2);
    assert_eq!(thing.fails().wait()?.iter().count(), 2);
    assert_eq!(thing.waits().wait()?.iter().count(), 2);
    assert_eq!(thing.both(stream_of(0..3), 7, stream_of([String::new()])).wait()?.iter().next(), Some(Ok(7)));
    assert_eq!(thing.shared().wait()?.iter().next(), Some(Ok(1)));
    Ok(())
}
