//! Which of a name's instances a call goes to.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::names::{Address, Name};

/// How a proxy spreads its calls over the instances of a name. A full or dead one is passed over, whichever it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// To the one that has the fewest calls of this process in flight; in turn to those that have equally few. So an instance that
    /// is slow, or stopped, gets few.
    #[default]
    LeastInFlight,
    /// To each in turn.
    RoundRobin,
    /// All to one, for as long as it lives: the proxy and its clones keep to the instance that their first call went to. If
    /// that one has no room, they wait for it.
    Sticky,
}

/// What the proxies of a link want of an instance, and what they remember.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    pub balance: Balance,
    pub tag: Option<Box<str>>,
    pub pid: Option<u32>,
    /// Counts the calls.
    turn: AtomicUsize,
    /// The number of the instance that is kept to, plus one; 0: none. One whose number has no successor is not kept to.
    held: AtomicU64,
}

impl Choice {
    pub fn new(balance: Balance, tag: Option<&str>, pid: Option<u32>) -> Choice {
        Choice { balance, tag: tag.map(Box::from), pid, ..Choice::default() }
    }

    /// Whether it is what proxies choose that say nothing about it.
    pub fn is_default(&self) -> bool {
        self.balance == Balance::default() && self.takes_any()
    }

    /// Whether any instance will do, and any owner that has the name for itself.
    pub fn takes_any(&self) -> bool {
        self.tag.is_none() && self.pid.is_none()
    }

    /// Whether an instance at `address` will do, whose process is `pid` where that is known.
    pub fn admits(&self, address: &Address, pid: Option<u32>) -> bool {
        let has_tag = self.tag.as_deref().is_none_or(|tag| address.tag() == Some(tag));
        has_tag && self.pid.is_none_or(|wanted| pid.is_none_or(|pid| pid == wanted))
    }

    pub fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether it is this instance that is kept to.
    pub fn holds(&self, address: &Address) -> bool {
        self.balance == Balance::Sticky && self.held.load(Ordering::Relaxed) == key(address)
    }

    /// Keeps to an instance from here on.
    pub fn hold(&self, address: &Address) {
        if self.balance == Balance::Sticky {
            self.held.store(key(address), Ordering::Relaxed);
        }
    }

    /// What it is called in an error.
    pub fn label(&self, name: &Name) -> String {
        Label(self, name).to_string()
    }
}

fn key(address: &Address) -> u64 {
    address.number().map_or(0, |number| number.wrapping_add(1))
}

struct Label<'a>(&'a Choice, &'a Name);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Label(choice, name) = self;
        write!(f, "{name}")?;
        if let Some(tag) = &choice.tag {
            write!(f, "@{tag}")?;
        }
        choice.pid.map_or(Ok(()), |pid| write!(f, " of process {pid}"))
    }
}

/// The instance that the next call goes to: an index of `loads`, where `None` stands for one that takes no calls and a number for
/// how many calls it has. `None`: none takes any.
pub(super) fn choose(
    balance: Balance,
    loads: &[Option<usize>],
    turn: usize,
    held: Option<usize>,
) -> Option<usize> {
    if let Some(held) = held.filter(|held| loads.get(*held).is_some_and(Option::is_some)) {
        return Some(held);
    }
    let best = match balance {
        Balance::RoundRobin => None,
        Balance::LeastInFlight | Balance::Sticky => loads.iter().flatten().min(),
    };
    // Of equals each in turn: the others do not count, or those behind them would get their calls as well.
    let is_equal = |load: &usize| best.is_none_or(|best| best == load);
    let equals = || loads.iter().enumerate().filter(|(_, load)| load.as_ref().is_some_and(is_equal));
    let nth = turn.checked_rem(equals().count())?;
    equals().nth(nth).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What happens to a group of instances.
    #[derive(Clone, Debug)]
    enum Step {
        Call,
        /// The oldest call of one of them ends.
        End(usize),
        Join,
        Leave(usize),
        Fill(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => Just(Step::Call),
            4 => (0..8_usize).prop_map(Step::End),
            1 => Just(Step::Join),
            1 => (0..8_usize).prop_map(Step::Leave),
            1 => (0..8_usize).prop_map(Step::Fill),
        ];
        proptest::collection::vec(step, 1..200)
    }

    /// How many calls one instance takes here.
    const ROOM: usize = 4;

    proptest! {
        /// Every call goes to an instance that takes it, if any does, and to the one that the balance asks for.
        #[test]
        fn a_call_goes_where_the_model_says(
            balance in prop_oneof![Just(Balance::LeastInFlight), Just(Balance::RoundRobin), Just(Balance::Sticky)],
            steps in steps(),
        ) {
            // Each instance's number and calls.
            let mut instances: Vec<(u32, usize)> = vec![(0, 0), (1, 0)];
            let (mut next, mut turn, mut kept) = (2, 0, None);
            for step in steps {
                let count = instances.len().max(1);
                match step {
                    Step::Join => {
                        instances.push((next, 0));
                        next += 1;
                    }
                    Step::Leave(which) if !instances.is_empty() => drop(instances.remove(which % count)),
                    Step::End(which) if !instances.is_empty() => {
                        let (_, calls) = &mut instances[which % count];
                        *calls = calls.saturating_sub(1);
                    }
                    Step::Fill(which) if !instances.is_empty() => instances[which % count].1 = ROOM,
                    Step::Leave(_) | Step::End(_) | Step::Fill(_) => {}
                    Step::Call => {
                        let loads: Vec<_> =
                            instances.iter().map(|(_, calls)| (*calls < ROOM).then_some(*calls)).collect();
                        let held = instances.iter().position(|(number, _)| kept == Some(*number));
                        let chosen = choose(balance, &loads, turn, held);
                        prop_assert_eq!(chosen.is_some(), loads.iter().any(Option::is_some));
                        if let Some(index) = chosen {
                            let load = loads[index];
                            prop_assert!(load.is_some());
                            let is_kept = balance == Balance::Sticky && held.is_some_and(|held| loads[held].is_some());
                            match balance {
                                Balance::Sticky if is_kept => prop_assert_eq!(Some(index), held),
                                Balance::LeastInFlight | Balance::Sticky => {
                                    prop_assert_eq!(load, loads.iter().flatten().min().copied());
                                }
                                // Each that takes calls in turn.
                                Balance::RoundRobin => {
                                    let takers: Vec<_> = (0..loads.len()).filter(|at| loads[*at].is_some()).collect();
                                    prop_assert_eq!(index, takers[turn % takers.len()]);
                                }
                            }
                            if balance == Balance::Sticky {
                                kept = Some(instances[index].0);
                            }
                            instances[index].1 += 1;
                        }
                        turn += 1;
                    }
                }
            }
        }

        /// Calls that end at once are spread evenly, by either way of spreading them.
        #[test]
        fn calls_one_after_the_other_are_spread_evenly(
            balance in prop_oneof![Just(Balance::LeastInFlight), Just(Balance::RoundRobin)],
            takes in proptest::collection::vec(any::<bool>(), 1..9),
            rounds in 1..20_usize,
            start: usize,
        ) {
            let loads: Vec<_> = takes.iter().map(|takes| takes.then_some(0)).collect();
            let (mut got, count) = (vec![0; loads.len()], loads.iter().flatten().count());
            for call in 0..count * rounds {
                // Also where the counter wraps, though a round is then cut short.
                let turn = start.wrapping_add(call);
                got[choose(balance, &loads, turn, None).unwrap()] += 1;
            }
            got.retain(|calls| *calls > 0);
            prop_assert_eq!(got.len(), count);
            let most = got.iter().max().unwrap_or(&0) - got.iter().min().unwrap_or(&0);
            prop_assert!(most <= usize::from(start.checked_add(count * rounds).is_none()), "{:?}", got);
        }
    }

    #[test]
    fn nobody_is_chosen_of_none() {
        for balance in [Balance::LeastInFlight, Balance::RoundRobin, Balance::Sticky] {
            assert_eq!(choose(balance, &[], 7, None), None);
            assert_eq!(choose(balance, &[None, None], 7, Some(1)), None);
        }
    }

    #[test]
    fn a_choice_admits_by_tag_and_pid() {
        let name = Name::new("math").unwrap();
        let tagged = Address::of_new_instance(name.clone(), Some(crate::names::Tag::new("eu").unwrap()));
        let alone = Address::from(name.clone());
        let by_tag = Choice::new(Balance::Sticky, Some("eu"), None);
        assert!(by_tag.admits(&tagged, Some(7)) && !by_tag.admits(&alone, Some(7)));
        let by_pid = Choice::new(Balance::Sticky, None, Some(7));
        assert!(
            by_pid.admits(&alone, Some(7)) && by_pid.admits(&alone, None) && !by_pid.admits(&tagged, Some(8))
        );
        assert_eq!(by_tag.label(&name), "math@eu");
        assert_eq!(by_pid.label(&name), "math of process 7");
        by_tag.hold(&tagged);
        assert!(by_tag.holds(&tagged) && !by_tag.holds(&alone));
    }
}
