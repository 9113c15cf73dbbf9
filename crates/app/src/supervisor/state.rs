//! What runs and what should, and from that what is to be done next. No process is touched here.

use std::collections::BTreeMap;
use std::time::Instant;

use super::backoff::Backoff;
use super::object::{ProcessState, ServiceState};
use crate::plan::{Plan, ProcessPlan};

/// The number of one process that was started; no other has it, unlike a pid.
pub(crate) type Serial = u64;

pub(crate) struct State {
    pub plan: Plan,
    pub phase: Phase,
    pub slots: Vec<Slot>,
    pub lives: BTreeMap<Serial, Life>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Running,
    Stopping { has_failed: bool },
}

/// The place of one process: it is taken again and again.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Its place in [`Plan::processes`].
    pub process: usize,
    pub index: u32,
    /// Who takes it; `None` while a restart is waited for.
    pub current: Option<Serial>,
    /// Who is about to replace that one.
    pub successor: Option<Serial>,
    pub backoff: Backoff,
    /// How often its process has ended when nobody wanted that.
    pub crashes: u32,
    pub restarts: u32,
}

/// One process, from its start to its end.
#[derive(Debug)]
pub(crate) struct Life {
    pub slot: usize,
    pub pid: u32,
    pub born: Instant,
    pub born_ms: u64,
    /// Takes names over instead of binding free ones.
    pub replaces: bool,
    pub goal: Goal,
    pub stage: Stage,
    /// In the order of the plan.
    pub services: Vec<Hosted>,
    /// The time runs that it has to stop.
    pub is_stop_timed: bool,
}

#[derive(Debug)]
pub(crate) struct Hosted {
    /// Its place in [`Plan::services`].
    pub service: usize,
    pub at: At,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    Up,
    Down(Ending),
}

/// Why a process is to end, which decides what comes after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The application ends.
    Stop,
    /// Another has taken its place.
    Replaced,
    /// It is to be started again at once.
    Restart,
    /// It is of no use: counts as if it had ended by itself.
    Failed(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Launched,
    /// It has said hello.
    Greeted,
    /// All of its services have started.
    Running,
    /// It was told to end.
    Ending,
}

/// How far one service of one process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Waiting,
    Starting,
    /// Started, but not published before all services of the process have started.
    Prepared,
    TakingOver,
    Running,
    Stopping,
    Ended,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Have a process start a service; by its place among those of the process.
    Start(Serial, usize),
    /// Have a process take its predecessor's names over.
    TakeOver(Serial),
    /// All services of a process run.
    Up(Serial),
    Stop(Serial, usize),
    /// Have a process end.
    End(Serial),
}

impl State {
    pub fn new(plan: Plan) -> State {
        let places = plan.processes.iter().enumerate();
        let slots = places.flat_map(|(process, declared)| {
            (0..declared.scale).map(move |index| Slot {
                process,
                index,
                current: None,
                successor: None,
                backoff: Backoff::default(),
                crashes: 0,
                restarts: 0,
            })
        });
        State { slots: slots.collect(), plan, phase: Phase::Starting, lives: BTreeMap::new() }
    }

    pub fn process(&self, slot: usize) -> &ProcessPlan {
        &self.plan.processes[self.slots[slot].process]
    }

    /// How the process in a slot is called.
    pub fn title(&self, slot: usize) -> String {
        let process = self.process(slot);
        match process.scale {
            1 => format!("process `{}`", process.name),
            _ => format!("process `{}` {}", process.name, self.slots[slot].index),
        }
    }

    /// The services of the process in a slot, none of them started.
    pub fn hosted(&self, slot: usize) -> Vec<Hosted> {
        let name = &self.process(slot).name;
        let services = self.plan.services.iter().enumerate();
        let here = services.filter(|(_, service)| service.processes.contains(name));
        here.map(|(service, _)| Hosted { service, at: At::Waiting }).collect()
    }

    /// The next thing to do; `None`: wait for something to happen.
    pub fn next_step(&self) -> Option<Step> {
        self.lives.iter().find_map(|(serial, life)| match life.goal {
            Goal::Up => self.next_up(*serial, life),
            Goal::Down(_) => self.next_down(*serial, life),
        })
    }

    fn next_up(&self, serial: Serial, life: &Life) -> Option<Step> {
        if life.stage != Stage::Greeted {
            return None;
        }
        if life.services.iter().all(|hosted| hosted.at == At::Running) {
            return Some(Step::Up(serial));
        }
        if life.services.iter().all(|hosted| hosted.at == At::Prepared) {
            return Some(Step::TakeOver(serial));
        }
        let can_start = |hosted: &Hosted| hosted.at == At::Waiting && self.is_ready(life, hosted.service);
        Some(Step::Start(serial, life.services.iter().position(can_start)?))
    }

    fn next_down(&self, serial: Serial, life: &Life) -> Option<Step> {
        if life.stage == Stage::Ending {
            return None;
        }
        if life.services.iter().all(|hosted| !hosted.at.is_active()) {
            return Some(Step::End(serial));
        }
        // What is only starting is not waited for: it is cancelled.
        let can_stop = |hosted: &Hosted| {
            hosted.at.is_active() && hosted.at != At::Stopping && !self.is_needed(life, hosted.service)
        };
        Some(Step::Stop(serial, life.services.iter().position(can_stop)?))
    }

    /// Whether all that a service of this process depends on has started, in every process that has it.
    fn is_ready(&self, life: &Life, service: usize) -> bool {
        self.plan.services[service].depends_on.iter().all(|needed| {
            let runs_in = |life: &Life| {
                let mut services = life.services.iter();
                services.any(|at| self.plan.services[at.service].name == *needed && at.at.has_started())
            };
            let hosts = |slot: &Slot| {
                let name = &self.plan.processes[slot.process].name;
                self.plan.services.iter().any(|s| s.name == *needed && s.processes.contains(name))
            };
            let has_it = |(place, slot): (usize, &Slot)| match place == life.slot {
                true => runs_in(life),
                false => slot.current.and_then(|current| self.lives.get(&current)).is_some_and(runs_in),
            };
            self.slots.iter().enumerate().filter(|(_, slot)| hosts(slot)).all(has_it)
        })
    }

    /// Whether a service that depends on this one has not ended yet: anywhere, if the application ends, or in this process.
    fn is_needed(&self, life: &Life, service: usize) -> bool {
        let name = &self.plan.services[service].name;
        let needs_it = |hosted: &Hosted| {
            hosted.at.is_active() && self.plan.services[hosted.service].depends_on.contains(name)
        };
        match self.phase {
            Phase::Stopping { .. } => self.lives.values().any(|other| other.services.iter().any(needs_it)),
            _ => life.services.iter().any(needs_it),
        }
    }
}

impl Life {
    pub fn is_up(&self) -> bool {
        self.goal == Goal::Up
    }

    /// Whether it was told nothing about its end that it has not done.
    pub fn is_idle(&self) -> bool {
        self.stage != Stage::Ending && self.services.iter().all(|hosted| hosted.at != At::Stopping)
    }

    /// Whether a name of its predecessor's may be with it already.
    pub fn is_taking_over(&self) -> bool {
        self.replaces && self.services.iter().any(|hosted| matches!(hosted.at, At::TakingOver | At::Running))
    }

    /// What others are told.
    pub fn state(&self) -> ProcessState {
        match (&self.goal, self.stage) {
            (Goal::Up, Stage::Running) => ProcessState::Running,
            (Goal::Up, _) => ProcessState::Starting,
            (Goal::Down(_), _) => ProcessState::Stopping,
        }
    }
}

impl At {
    /// It has begun to start, and not ended.
    pub fn is_active(self) -> bool {
        !matches!(self, At::Waiting | At::Ended)
    }

    fn has_started(self) -> bool {
        matches!(self, At::Prepared | At::Running)
    }

    /// What others are told.
    pub fn state(self) -> ServiceState {
        match self {
            At::Waiting => ServiceState::Waiting,
            At::Starting | At::Prepared | At::TakingOver => ServiceState::Starting,
            At::Running => ServiceState::Running,
            At::Stopping => ServiceState::Stopping,
            At::Ended => ServiceState::Ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::plan::{Restart, ServicePlan};

    const NONE: Duration = Duration::ZERO;

    /// Processes with their scales; services with their processes and what they depend on.
    fn state(processes: &[(&str, u32)], services: &[(&str, &[&str], &[&str])]) -> State {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let process = |(name, scale): &(&str, u32)| ProcessPlan {
            name: (*name).to_owned(),
            scale: *scale,
            env: BTreeMap::new(),
            args: Vec::new(),
            memory_limit: None,
        };
        let service = |(name, runs_in, depends_on): &(&str, &[&str], &[&str])| ServicePlan {
            name: (*name).to_owned(),
            processes: owned(runs_in),
            depends_on: owned(depends_on),
            is_published: false,
        };
        let mut state = State::new(Plan {
            name: "test".to_owned(),
            processes: processes.iter().map(process).collect(),
            services: services.iter().map(service).collect(),
            restart: Restart { first_delay: NONE, max_delay: NONE, limit: 0, window: NONE },
            start_timeout: Duration::MAX,
            stop_timeout: Duration::MAX,
        });
        for slot in 0..state.slots.len() {
            let serial = live(&mut state, slot, false);
            state.slots[slot].current = Some(serial);
        }
        state
    }

    /// A process for a slot, which has said hello.
    fn live(state: &mut State, slot: usize, replaces: bool) -> Serial {
        let serial = state.lives.len() as Serial;
        let life = Life {
            slot,
            pid: 0,
            born: Instant::now(),
            born_ms: 0,
            replaces,
            goal: Goal::Up,
            stage: Stage::Greeted,
            services: state.hosted(slot),
            is_stop_timed: false,
        };
        state.lives.insert(serial, life);
        serial
    }

    /// Does all that can be done at once, and says what that was; each thing is done by the time the next is looked for.
    fn run(state: &mut State) -> Vec<String> {
        let mut done = Vec::new();
        while let Some(step) = state.next_step() {
            done.push(words(state, step));
            let (Step::Start(serial, _)
            | Step::TakeOver(serial)
            | Step::Up(serial)
            | Step::Stop(serial, _)
            | Step::End(serial)) = step;
            let life = state.lives.get_mut(&serial).unwrap();
            match step {
                Step::Start(_, place) if life.replaces => life.services[place].at = At::Prepared,
                Step::Start(_, place) => life.services[place].at = At::Running,
                Step::TakeOver(_) => life.services.iter_mut().for_each(|hosted| hosted.at = At::Running),
                Step::Up(_) => life.stage = Stage::Running,
                Step::Stop(_, place) => life.services[place].at = At::Ended,
                Step::End(_) => life.stage = Stage::Ending,
            }
        }
        done
    }

    fn words(state: &State, step: Step) -> String {
        let name = |serial, place: usize| {
            let life: &Life = &state.lives[&serial];
            &state.plan.services[life.services[place].service].name
        };
        match step {
            Step::Start(serial, place) => format!("start {} in {serial}", name(serial, place)),
            Step::TakeOver(serial) => format!("take over {serial}"),
            Step::Up(serial) => format!("up {serial}"),
            Step::Stop(serial, place) => format!("stop {} in {serial}", name(serial, place)),
            Step::End(serial) => format!("end {serial}"),
        }
    }

    fn bring_all_down(state: &mut State) {
        state.phase = Phase::Stopping { has_failed: false };
        state.lives.values_mut().for_each(|life| life.goal = Goal::Down(Ending::Stop));
    }

    const DIAMOND: [(&str, &[&str], &[&str]); 4] = [
        ("base", &["b"], &[]),
        ("left", &["a"], &["base"]),
        ("right", &["b"], &["base"]),
        ("top", &["a"], &["left", "right"]),
    ];

    #[test]
    fn services_start_behind_what_they_depend_on_and_stop_before_it_across_processes() {
        let mut state = state(&[("a", 1), ("b", 1)], &DIAMOND);
        let started = run(&mut state);
        let order =
            ["start base in 1", "start left in 0", "start right in 1", "start top in 0", "up 0", "up 1"];
        assert_eq!(started, order);
        bring_all_down(&mut state);
        let order =
            ["stop top in 0", "stop left in 0", "end 0", "stop right in 1", "stop base in 1", "end 1"];
        assert_eq!(run(&mut state), order);
    }

    #[test]
    fn a_service_waits_for_every_process_that_has_what_it_needs() {
        let mut state = state(&[("a", 2), ("b", 1)], &[("cache", &["a"], &[]), ("web", &["b"], &["cache"])]);
        state.lives.get_mut(&1).unwrap().stage = Stage::Launched;
        assert_eq!(run(&mut state), ["start cache in 0", "up 0"]);
        state.lives.get_mut(&1).unwrap().stage = Stage::Greeted;
        assert_eq!(run(&mut state), ["start cache in 1", "up 1", "start web in 2", "up 2"]);
    }

    #[test]
    fn what_has_not_begun_to_start_is_not_stopped_and_what_is_starting_is() {
        let mut state = state(&[("a", 1), ("b", 1)], &DIAMOND);
        state.lives.get_mut(&1).unwrap().services[0].at = At::Starting;
        bring_all_down(&mut state);
        assert_eq!(run(&mut state), ["end 0", "stop base in 1", "end 1"]);
    }

    #[test]
    fn one_process_alone_stops_though_others_need_it_and_starts_again_with_its_own_services_alone() {
        let mut state = state(&[("a", 1), ("b", 1)], &DIAMOND);
        run(&mut state);
        state.lives.get_mut(&1).unwrap().goal = Goal::Down(Ending::Restart);
        assert_eq!(run(&mut state), ["stop right in 1", "stop base in 1", "end 1"]);
        state.slots[1].current = None;
        let next = live(&mut state, 1, false);
        state.slots[1].current = Some(next);
        assert_eq!(run(&mut state), ["start base in 2", "start right in 2", "up 2"]);
    }

    #[test]
    fn a_successor_takes_names_over_when_all_of_its_services_have_started() {
        let mut state = state(&[("a", 1), ("b", 1)], &DIAMOND);
        run(&mut state);
        let successor = live(&mut state, 0, true);
        state.slots[0].successor = Some(successor);
        assert_eq!(run(&mut state), ["start left in 2", "start top in 2", "take over 2", "up 2"]);
    }
}
