//! Reloads and restarts that were asked for: one at a time, one process after the other.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::Supervisor;
use super::object::{ControlError, Request};
use super::state::{Ending, Phase, Serial, Stage};
use crate::control::ToGuard;
use crate::log::Level;

/// What was asked for, as far as it is not done yet.
pub(crate) struct Operation {
    kind: Kind,
    /// Processes that are still to come.
    slots: VecDeque<usize>,
    stage: Progress,
    asker: Asker,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Reload,
    Restart,
}

/// How far the process whose turn it is has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// It is the next one's turn.
    Next,
    /// The old one is to end, and a new one to follow it.
    Ending(Serial),
    /// The new one is to come up.
    Starting(Serial),
    /// The new one is up, and the old one ends what it has.
    Draining(Serial),
}

enum Asker {
    Caller(oneshot::Sender<Result<(), ControlError>>),
    /// Who wants everything reloaded by a signal; the service manager hears of it.
    Signal,
}

impl Supervisor {
    pub(super) fn reload_all(&mut self) {
        if !matches!(self.state.phase, Phase::Stopping { .. }) {
            let slots = (0..self.state.slots.len()).collect();
            let operation =
                Operation { kind: Kind::Reload, slots, stage: Progress::Next, asker: Asker::Signal };
            self.operations.push_back(operation);
            self.tell_guard(ToGuard::Reloading);
        }
    }

    pub(super) fn asked(&mut self, request: Request) {
        // An error means that the caller does not wait for the answer any more.
        match request {
            Request::Status(answer) => drop(answer.send(self.status())),
            Request::Log { after, max, answer } => drop(answer.send(self.journal.page(after, max))),
            Request::Stop(answer) => {
                self.stop(false);
                let _ = answer.send(());
            }
            Request::Reload { process, answer } => self.order(Kind::Reload, process, answer),
            Request::Restart { process, answer } => self.order(Kind::Restart, process, answer),
        }
    }

    fn order(&mut self, kind: Kind, process: String, answer: oneshot::Sender<Result<(), ControlError>>) {
        if matches!(self.state.phase, Phase::Stopping { .. }) {
            let _ = answer.send(Err(ControlError::Stopping));
            return;
        }
        let places = 0..self.state.slots.len();
        let slots: VecDeque<usize> =
            places.filter(|slot| self.state.process(*slot).name == process).collect();
        if slots.is_empty() {
            let known = self.state.plan.processes.iter().map(|process| process.name.clone()).collect();
            let _ = answer.send(Err(ControlError::UnknownProcess { process, known }));
            return;
        }
        self.operations.push_back(Operation {
            kind,
            slots,
            stage: Progress::Next,
            asker: Asker::Caller(answer),
        });
    }

    /// Lets the first operation go on; whether it has.
    pub(super) fn operate(&mut self) -> bool {
        if self.state.phase != Phase::Running {
            return false;
        }
        let Some(operation) = self.operations.front_mut() else { return false };
        if operation.stage != Progress::Next {
            return false;
        }
        let (kind, is_for_all) = (operation.kind, matches!(operation.asker, Asker::Signal));
        let Some(slot) = operation.slots.pop_front() else {
            self.end_operation(Ok(()));
            return true;
        };
        let begun = match kind {
            Kind::Reload => self.begin_reload(slot),
            Kind::Restart => self.begin_restart(slot),
        };
        match begun {
            Ok(stage) => self.set_stage(stage),
            // A process that is down comes up anew by itself; the others are to be reloaded all the same.
            Err(why) if is_for_all => self.journal.say(Level::Warn, why),
            Err(why) => self.end_operation(Err(ControlError::Failed { why })),
        }
        true
    }

    fn begin_reload(&mut self, slot: usize) -> Result<Progress, String> {
        let current = self.state.slots[slot].current.and_then(|serial| self.state.lives.get(&serial));
        if !current.is_some_and(|life| life.is_up() && life.stage == Stage::Running) {
            return Err(format!(
                "{} does not run at present, so it cannot be reloaded",
                self.state.title(slot)
            ));
        }
        self.journal.say(Level::Info, format!("Reloading {}", self.state.title(slot)));
        let successor = self.launch(slot, true)?;
        self.state.slots[slot].successor = Some(successor);
        Ok(Progress::Starting(successor))
    }

    fn begin_restart(&mut self, slot: usize) -> Result<Progress, String> {
        self.journal.say(Level::Info, format!("Restarting {}", self.state.title(slot)));
        let Some(current) = self.state.slots[slot].current else {
            // It waits for being started again: the wait is over.
            let serial = self.launch(slot, false)?;
            self.state.slots[slot].current = Some(serial);
            return Ok(Progress::Starting(serial));
        };
        if !self.state.lives[&current].is_up() {
            return Err(format!("{} is stopping already", self.state.title(slot)));
        }
        self.bring_down(current, Ending::Restart);
        Ok(Progress::Ending(current))
    }

    /// A process runs, in the place of `old` perhaps.
    pub(super) fn operation_is_up(&mut self, serial: Serial, old: Option<Serial>) {
        if self.is_under_way(Progress::Starting(serial)) {
            self.set_stage(old.map_or(Progress::Next, Progress::Draining));
        }
    }

    /// A process has ended: if it was replaced, however it came to its end.
    pub(super) fn operation_is_drained(&mut self, old: Serial) {
        if self.is_under_way(Progress::Draining(old)) {
            self.set_stage(Progress::Next);
        }
    }

    /// A process has ended as it should, and its successor is launched.
    pub(super) fn operation_goes_on(&mut self, old: Serial, next: Serial) {
        if self.is_under_way(Progress::Ending(old)) {
            self.set_stage(Progress::Starting(next));
        }
    }

    /// A process that was to come up will not, or the one before it has not ended as it should.
    pub(super) fn operation_failed(&mut self, serial: Serial, why: &str) {
        if self.is_under_way(Progress::Starting(serial)) || self.is_under_way(Progress::Ending(serial)) {
            self.end_operation(Err(ControlError::Failed { why: why.to_owned() }));
        }
    }

    /// The application stops: nobody's wish is granted any more.
    pub(super) fn end_operations(&mut self) {
        while !self.operations.is_empty() {
            self.end_operation(Err(ControlError::Stopping));
        }
    }

    fn is_under_way(&self, stage: Progress) -> bool {
        self.operations.front().is_some_and(|operation| operation.stage == stage)
    }

    fn set_stage(&mut self, stage: Progress) {
        if let Some(operation) = self.operations.front_mut() {
            operation.stage = stage;
        }
    }

    fn end_operation(&mut self, result: Result<(), ControlError>) {
        let Some(operation) = self.operations.pop_front() else { return };
        match operation.asker {
            // It may have stopped waiting.
            Asker::Caller(answer) => drop(answer.send(result)),
            Asker::Signal => {
                if let Err(error) = result {
                    self.journal.say(Level::Error, format!("Reloading has failed: {error}"));
                }
                // The end is what the service manager heard last, and is to hear last.
                if !matches!(self.state.phase, Phase::Stopping { .. }) {
                    self.tell_guard(ToGuard::Ready);
                }
            }
        }
    }
}
