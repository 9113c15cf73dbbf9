//! The object whose streams tests take and feed, and what is counted of it.
#![allow(dead_code)] // each test binary uses its part

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use objbus::{Blob, Bus, Published, Stream, stream_of};
use serde::{Deserialize, Serialize};

use super::probe::{Gate, Random};
use super::shelf::pattern;
use super::{PATIENCE, say};

/// What is counted of the streams of one side.
#[derive(Default)]
pub struct Counts {
    /// Items asked for.
    pub made: AtomicU64,
    /// Streams that are there.
    pub alive: AtomicU64,
    /// How often one had no more to give, and stayed.
    pub still: AtomicU64,
}

impl Counts {
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }

    pub fn alive(&self) -> u64 {
        self.alive.load(Ordering::SeqCst)
    }
}

/// A stream that is counted, and may stay without an end.
pub struct Counted<I> {
    pub items: I,
    pub counts: Arc<Counts>,
    pub ends: bool,
}

impl<I: Iterator> Counted<I> {
    pub fn new(counts: &Arc<Counts>, items: I) -> Counted<I> {
        counts.alive.fetch_add(1, Ordering::SeqCst);
        Counted { items, counts: Arc::clone(counts), ends: true }
    }

    /// Without an end.
    pub fn staying(mut self) -> Counted<I> {
        self.ends = false;
        self
    }
}

impl<I: Iterator + Unpin> objbus::futures_core::Stream for Counted<I> {
    type Item = I::Item;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<I::Item>> {
        let next = self.items.next();
        if next.is_some() {
            self.counts.made.fetch_add(1, Ordering::SeqCst);
        } else if !self.ends {
            self.counts.still.fetch_add(1, Ordering::SeqCst);
            return Poll::Pending;
        }
        Poll::Ready(next)
    }
}

impl<I> Drop for Counted<I> {
    fn drop(&mut self) {
        self.counts.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An item of every kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, objbus::Type)]
pub struct Mixed {
    pub number: u64,
    pub bytes: Vec<u8>,
    pub blobs: Vec<(u8, Blob)>,
}

pub struct Numbers {
    pub bus: Bus,
    pub counts: Arc<Counts>,
    pub gate: Arc<Gate>,
}

#[objbus::object]
impl Numbers {
    pub fn up_to(&self, n: u64) -> impl objbus::futures_core::Stream<Item = u64> {
        Counted::new(&self.counts, 0..n)
    }

    pub fn endless(&self) -> impl objbus::futures_core::Stream<Item = u64> {
        Counted::new(&self.counts, 0..)
    }

    pub fn silent(&self) -> impl objbus::futures_core::Stream<Item = u64> {
        Counted::new(&self.counts, 0..0).staying()
    }

    /// So many, and then nothing more, without an end.
    pub fn some(&self, n: u64) -> impl objbus::futures_core::Stream<Item = u64> {
        Counted::new(&self.counts, 0..n).staying()
    }

    pub fn failing(&self, n: u64) -> impl objbus::futures_core::Stream<Item = u64> {
        Counted::new(&self.counts, (0..=n).inspect(move |i| assert!(*i < n, "no more than {n}")))
    }

    pub fn frames(&self, n: u64, len: u64) -> impl objbus::futures_core::Stream<Item = Blob> {
        Counted::new(&self.counts, (0..n).map(move |i| pattern(&self.bus, len as usize, i as u8)))
    }

    pub fn bytes(&self, lens: Vec<u32>) -> impl objbus::futures_core::Stream<Item = Vec<u8>> {
        Counted::new(&self.counts, lens.into_iter().map(|len| vec![len as u8; len as usize]))
    }

    /// Borrows what it was asked.
    pub async fn words(
        &self,
        text: &str,
        fails: bool,
    ) -> Result<impl objbus::futures_core::Stream<Item = String>, String> {
        if fails {
            return Err(format!("no words in {text:?}"));
        }
        Ok(stream_of(text.split(' ').map(str::to_owned)))
    }

    pub async fn when_open(&self) -> impl objbus::futures_core::Stream<Item = u64> {
        self.gate.passed().await;
        Counted::new(&self.counts, 0..3)
    }

    pub fn sum(&self, mut numbers: Stream<u64>, start: u64) -> Result<u64, String> {
        let sum = numbers.iter().try_fold(start, |sum, number| Ok(sum + number?));
        sum.map_err(|error: objbus::BusError| error.to_string())
    }

    pub async fn sum_until_end(&self, mut numbers: Stream<u64>) -> u64 {
        let mut sum = 0;
        while let Some(number) = numbers.next().await {
            match number {
                Ok(number) => sum += number,
                Err(error) => {
                    say(format!("{sum} and then {error:?}"));
                    break;
                }
            }
        }
        sum
    }

    /// Takes no more than that.
    pub fn first(&self, n: u64, mut numbers: Stream<u64>) -> Vec<u64> {
        numbers.iter().take(n as usize).map(|number| number.unwrap_or(u64::MAX)).collect()
    }

    /// Gives back what comes, changed a little.
    pub fn echo(&self, mixed: Stream<Mixed>, seed: u64) -> impl objbus::futures_core::Stream<Item = Mixed> {
        Echo { mixed, random: Random::of(seed) }
    }

    pub fn made(&self) -> u64 {
        self.counts.made()
    }

    pub fn alive(&self) -> u64 {
        self.counts.alive()
    }

    pub fn lent(&self) -> u64 {
        lent_by(&self.bus)
    }

    pub fn memory(&self) -> u64 {
        self.bus.memory().users.iter().map(|user| user.allocated).sum()
    }
}

pub struct Echo {
    pub mixed: Stream<Mixed>,
    pub random: Random,
}

impl objbus::futures_core::Stream for Echo {
    type Item = Mixed;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Mixed>> {
        if self.random.below(8) == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match objbus::futures_core::Stream::poll_next(Pin::new(&mut self.mixed), cx) {
            Poll::Ready(Some(Ok(mixed))) => Poll::Ready(Some(Mixed { number: mixed.number + 1, ..mixed })),
            Poll::Ready(Some(Err(error))) => panic!("the upload fails: {error}"),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

pub fn publish(bus: &Bus) -> Published {
    let numbers = Numbers { bus: bus.clone(), counts: Arc::default(), gate: Arc::default() };
    bus.publish("numbers", numbers).expect("the name is free")
}

/// Bytes that a bus has lent at present.
pub fn lent_by(bus: &Bus) -> u64 {
    bus.memory().users.iter().map(|user| user.lent).sum()
}

pub fn numbers_of(bus: &Bus) -> NumbersProxy {
    bus.proxy("numbers").call_timeout(PATIENCE).wait().expect("the numbers are there")
}
