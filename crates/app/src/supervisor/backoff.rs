//! When a process that ended by itself is started again, and when no more.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::plan::Restart;

/// What one process has done so far.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    /// When it ended, within the window.
    ends: VecDeque<Instant>,
    /// Before the next restart, if there was one already.
    delay: Option<Duration>,
}

impl Backoff {
    /// It has ended, having run for `ran`: how long to wait before the next start, or `Err` with how often it has ended within
    /// the window if that is too often.
    pub fn ended(&mut self, restart: &Restart, ran: Duration, now: Instant) -> Result<Duration, usize> {
        if ran >= restart.window {
            *self = Backoff::default();
        }
        self.ends.retain(|end| now.duration_since(*end) < restart.window);
        self.ends.push_back(now);
        if self.ends.len() > restart.limit as usize {
            return Err(self.ends.len());
        }
        let delay =
            self.delay.map_or(restart.first_delay, |last| last.saturating_mul(2)).min(restart.max_delay);
        self.delay = Some(delay);
        Ok(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const RESTART: Restart =
        Restart { first_delay: ms(100), max_delay: ms(300), limit: 4, window: ms(60_000) };

    #[test]
    fn delays_double_up_to_the_longest_until_the_limit_is_reached() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        let delays: Vec<_> = (0..5).map(|i| backoff.ended(&RESTART, ms(5), now + ms(i))).collect();
        assert_eq!(delays, [Ok(ms(100)), Ok(ms(200)), Ok(ms(300)), Ok(ms(300)), Err(5)]);
    }

    #[test]
    fn who_has_run_for_the_window_starts_afresh() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        for _ in 0..4 {
            backoff.ended(&RESTART, ms(5), now).unwrap();
        }
        assert_eq!(backoff.ended(&RESTART, ms(60_000), now + ms(60_005)), Ok(ms(100)));
        assert_eq!(backoff.ended(&RESTART, ms(5), now + ms(60_010)), Ok(ms(200)));
    }

    #[test]
    fn ends_that_lie_back_further_than_the_window_do_not_count() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        for i in 0..20 {
            assert!(backoff.ended(&RESTART, ms(10_000), now + ms(20_000 * i)).is_ok(), "{i}");
        }
    }

    #[test]
    fn no_restart_at_all_is_a_limit_of_none() {
        let none = Restart { limit: 0, ..RESTART };
        assert_eq!(Backoff::default().ended(&none, ms(5), Instant::now()), Err(1));
    }
}
