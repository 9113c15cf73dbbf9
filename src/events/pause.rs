//! Time that passes between two attempts to subscribe.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::engine::{Engine, Token};
use crate::sys::clock;

/// The first pause after an attempt that came to nothing; each is twice the one before.
const FIRST: Duration = Duration::from_millis(1);
/// How often it is doubled: up to a second.
const DOUBLINGS_MAX: u32 = 10;

/// Wakes a task when it is over.
pub(super) struct Pause {
    engine: &'static Engine,
    until_ns: u64,
    alarm: Option<((u64, Token), Waker)>,
}

impl Pause {
    /// The pause after so many losses in a row; the first is no reason to wait.
    pub fn after(engine: &'static Engine, losses: u32) -> Pause {
        let pause_ns = match losses {
            0 | 1 => 0,
            more => clock::span_ns(FIRST) << (more - 2).min(DOUBLINGS_MAX),
        };
        Pause { engine, until_ns: clock::now_ns() + pause_ns, alarm: None }
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if clock::now_ns() >= self.until_ns {
            return Poll::Ready(());
        }
        if !self.alarm.as_ref().is_some_and(|(_, waker)| waker.will_wake(cx.waker())) {
            self.cancel();
            let waker = cx.waker().clone();
            let id = self.engine.alarm(self.until_ns, move |_| waker.wake());
            self.alarm = Some((id, cx.waker().clone()));
        }
        Poll::Pending
    }

    fn cancel(&mut self) {
        if let Some((id, _)) = self.alarm.take() {
            self.engine.cancel_alarm(id);
        }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        // Nothing of the engine is touched in a forked child.
        if !self.engine.is_foreign() {
            self.cancel();
        }
    }
}
