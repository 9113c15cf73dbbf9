//! Starting processes and services, stopping them, and what follows from their ends.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::instance::Instance;
use super::state::{At, Ending, Goal, Life, Phase, Serial, Stage, Step};
use super::{Due, Event, MEMORY_INTERVAL, SECOND_LOOK, Supervisor, memory, orphans, systemd};
use crate::control::{ToGuard, ToProcess, ToSupervisor};
use crate::log::Level;
use crate::plan::MemoryLimit;

impl Supervisor {
    pub(super) fn launch_all(&mut self) {
        for slot in 0..self.state.slots.len() {
            match self.launch(slot, false) {
                Ok(serial) => self.state.slots[slot].current = Some(serial),
                Err(why) => return self.start_failed(&why),
            }
        }
        if self.state.plan.processes.iter().any(|process| process.memory_limit.is_some()) {
            self.every(MEMORY_INTERVAL, || Event::Measure);
        }
        if let Some(interval) = systemd::watchdog_interval() {
            self.every(interval, || Event::Watchdog);
        }
    }

    /// Starts a process for a slot; whether it takes the slot is for the caller to say.
    pub(super) fn launch(&mut self, slot: usize, replaces: bool) -> Result<Serial, String> {
        self.launched += 1;
        let serial = self.launched;
        let (process, index) = (self.state.process(slot), self.state.slots[slot].index);
        let instance = Instance::launch(&self.binary, process, index, serial, &self.sinks)
            .map_err(|error| format!("{} cannot be started: {error}", self.state.title(slot)))?;
        let life = Life {
            slot,
            pid: instance.pid(),
            born: Instant::now(),
            born_ms: now_ms(),
            replaces,
            goal: Goal::Up,
            stage: Stage::Launched,
            services: self.state.hosted(slot),
            is_stop_timed: false,
        };
        self.state.lives.insert(serial, life);
        self.instances.insert(serial, instance);
        self.at(self.state.plan.start_timeout, Event::Due(Due::Hello(serial)));
        Ok(serial)
    }

    /// Does whatever can be done now.
    pub(super) fn advance(&mut self) {
        loop {
            while let Some(step) = self.state.next_step() {
                self.take(step);
            }
            if !self.operate() {
                return;
            }
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Start(serial, place) => self.start_service(serial, place),
            Step::TakeOver(serial) => self.take_over(serial),
            Step::Up(serial) => self.up(serial),
            Step::Stop(serial, place) => {
                let service = self.service_at(serial, place);
                let is_replaced = self.life(serial).goal == Goal::Down(Ending::Replaced);
                self.set(serial, place, At::Stopping);
                self.tell(serial, ToProcess::Stop { service, is_replaced });
                self.time_stop(serial);
            }
            Step::End(serial) => {
                self.life(serial).stage = Stage::Ending;
                self.tell(serial, ToProcess::End);
                self.time_stop(serial);
            }
        }
    }

    fn start_service(&mut self, serial: Serial, place: usize) {
        let service = self.service_at(serial, place);
        let replace = self.life(serial).replaces;
        self.set(serial, place, At::Starting);
        self.tell(serial, ToProcess::Start { service, replace });
        self.time_start(serial, place, At::Starting);
    }

    fn take_over(&mut self, serial: Serial) {
        for place in 0..self.life(serial).services.len() {
            let service = self.service_at(serial, place);
            self.set(serial, place, At::TakingOver);
            self.tell(serial, ToProcess::TakeOver { service });
            self.time_start(serial, place, At::TakingOver);
        }
    }

    fn time_start(&self, serial: Serial, place: usize, at: At) {
        self.at(self.state.plan.start_timeout, Event::Due(Due::Start(serial, place, at)));
    }

    /// All services of a process run.
    fn up(&mut self, serial: Serial) {
        self.life(serial).stage = Stage::Running;
        let slot = self.life(serial).slot;
        let place = &mut self.state.slots[slot];
        let old = if place.successor == Some(serial) {
            place.successor = None;
            place.current.replace(serial)
        } else {
            None
        };
        if let Some(old) = old {
            self.bring_down(old, Ending::Replaced);
        }
        self.operation_is_up(serial, old);
        match self.state.phase {
            Phase::Starting => self.look_whether_started(),
            _ => {
                let text = format!("{} runs, as process {}", self.state.title(slot), self.life(serial).pid);
                self.journal.say(Level::Info, text);
            }
        }
    }

    fn look_whether_started(&mut self) {
        let runs =
            |serial: Serial| self.state.lives.get(&serial).is_some_and(|life| life.stage == Stage::Running);
        if self.state.slots.iter().all(|slot| slot.current.is_some_and(runs)) {
            self.state.phase = Phase::Running;
            let took = self.began.elapsed().as_millis();
            self.journal.say(Level::Info, format!("Application start successful, in {took} ms"));
            self.tell_guard(ToGuard::Ready);
        }
    }

    pub(super) fn said(&mut self, serial: Serial, message: ToSupervisor) {
        // Somebody who is dead already may have had a last word.
        let Some(life) = self.state.lives.get_mut(&serial) else { return };
        let replaces = life.replaces;
        match message {
            ToSupervisor::Hello if life.stage == Stage::Launched => life.stage = Stage::Greeted,
            ToSupervisor::Hello => {}
            ToSupervisor::Started { service } => match self.find(serial, &service) {
                Some((place, At::Starting)) if replaces => self.set(serial, place, At::Prepared),
                Some((place, At::Starting | At::TakingOver)) => self.set(serial, place, At::Running),
                _ => {}
            },
            ToSupervisor::Failed { service, why } => {
                if let Some((place, At::Starting | At::TakingOver)) = self.find(serial, &service) {
                    let has_taken_names = self.life(serial).is_taking_over();
                    self.set(serial, place, At::Ended);
                    self.fail(serial, format!("service `{service}` failed to start: {why}"), has_taken_names);
                }
            }
            ToSupervisor::Stopped { service, error } => {
                if let Some((place, _)) = self.find(serial, &service) {
                    self.set(serial, place, At::Ended);
                }
                if let Some(error) = error {
                    self.journal.say(Level::Warn, format!("service `{service}` failed to stop: {error}"));
                }
            }
            ToSupervisor::Listen { id, service, addr } => self.listen(serial, id, &service, addr),
        }
    }

    fn listen(&mut self, serial: Serial, id: u32, service: &str, addr: SocketAddr) {
        let (result, socket) = match self.listeners.get(service, addr) {
            Ok(socket) => (Ok(()), Some(socket.into())),
            Err(why) => (Err(why), None),
        };
        if let Some(instance) = self.instances.get(&serial) {
            instance.tell(ToProcess::Listening { id, result }, socket);
        }
    }

    /// A process that should be up is of no use. `has_taken_names`: what it was to replace may have lost some to it.
    fn fail(&mut self, serial: Serial, why: String, has_taken_names: bool) {
        if !self.life(serial).is_up() {
            return;
        }
        let slot = self.life(serial).slot;
        let why = format!("{}: {why}", self.state.title(slot));
        self.bring_down(serial, Ending::Failed(why.clone()));
        if self.state.slots[slot].successor == Some(serial) {
            self.give_up_successor(slot, &why, has_taken_names);
        }
        self.operation_failed(serial, &why);
        if self.state.phase == Phase::Starting {
            self.start_failed(&why);
        }
    }

    fn give_up_successor(&mut self, slot: usize, why: &str, has_taken_names: bool) {
        self.journal.say(Level::Error, format!("{why}; the old process stays"));
        self.state.slots[slot].successor = None;
        if let Some(current) = self.state.slots[slot].current
            && has_taken_names
        {
            // It cannot get back what it has handed over.
            self.bring_down(current, Ending::Restart);
        }
    }

    fn start_failed(&mut self, why: &str) {
        self.journal.say(Level::Error, format!("Application start failed: {why}"));
        self.stop(true);
    }

    /// Has a process stop its services and end.
    pub(super) fn bring_down(&mut self, serial: Serial, ending: Ending) {
        let life = self.life(serial);
        if life.is_up() {
            life.goal = Goal::Down(ending);
        }
    }

    /// Ends the application.
    pub(super) fn stop(&mut self, has_failed: bool) {
        if matches!(self.state.phase, Phase::Stopping { .. }) {
            return;
        }
        self.state.phase = Phase::Stopping { has_failed };
        self.journal.say(Level::Info, "Application is stopping");
        self.tell_guard(ToGuard::Stopping);
        self.end_operations();
        for serial in self.state.lives.keys().copied().collect::<Vec<_>>() {
            self.bring_down(serial, Ending::Stop);
        }
    }

    fn time_stop(&mut self, serial: Serial) {
        if !std::mem::replace(&mut self.life(serial).is_stop_timed, true) {
            self.at(self.state.plan.stop_timeout, Event::Due(Due::Stop(serial)));
        }
    }

    pub(super) fn died(&mut self, serial: Serial) {
        let (Some(life), Some(instance)) = (self.state.lives.remove(&serial), self.instances.remove(&serial))
        else {
            return;
        };
        let how = instance.bury().map_or_else(|error| error.to_string(), describe);
        // What it has started dies with it.
        self.sweep(&[]);
        self.operation_is_drained(serial);
        let slot = life.slot;
        let title = self.state.title(slot);
        let is_successor = self.state.slots[slot].successor == Some(serial);
        let is_current = self.state.slots[slot].current == Some(serial);
        if is_current {
            self.state.slots[slot].current = None;
        }
        let has_taken_names = life.is_taking_over();
        let why = match life.goal {
            Goal::Up => format!("{title} ended by itself: {how}"),
            Goal::Down(Ending::Failed(ref why)) => why.clone(),
            Goal::Down(Ending::Replaced | Ending::Stop) => return,
            Goal::Down(Ending::Restart) => return self.launch_again(serial, &life),
        };
        if is_successor {
            self.give_up_successor(slot, &why, has_taken_names);
        }
        self.operation_failed(serial, &why);
        match self.state.phase {
            Phase::Stopping { .. } => {}
            Phase::Starting => self.start_failed(&why),
            Phase::Running if is_current => self.crashed(slot, &why, &life),
            Phase::Running => {}
        }
    }

    fn launch_again(&mut self, serial: Serial, life: &Life) {
        if self.state.phase != Phase::Running {
            return;
        }
        match self.launch(life.slot, false) {
            Ok(next) => {
                self.state.slots[life.slot].current = Some(next);
                self.operation_goes_on(serial, next);
            }
            Err(why) => {
                self.operation_failed(serial, &why);
                self.crashed(life.slot, &why, life);
            }
        }
    }

    /// The process of a slot is gone, and nobody wanted that.
    fn crashed(&mut self, slot: usize, why: &str, life: &Life) {
        if let Some(successor) = self.state.slots[slot].successor.take() {
            self.journal.say(Level::Warn, format!("{why}; its successor is starting already"));
            self.state.slots[slot].current = Some(successor);
            return;
        }
        let restart = self.state.plan.restart;
        self.state.slots[slot].crashes += 1;
        let crashes = self.state.slots[slot].crashes;
        let ended = self.state.slots[slot].backoff.ended(&restart, life.born.elapsed(), Instant::now());
        match ended {
            Ok(delay) => {
                self.journal.say(Level::Warn, format!("{why}; starting it again in {delay:?}"));
                self.at(delay, Event::Due(Due::Restart(slot, crashes)));
            }
            Err(times) => {
                let (title, window) = (self.state.title(slot), restart.window);
                let text = format!(
                    "{title} ended {times} times within {window:?}, the last time so: {why}; giving up"
                );
                self.journal.say(Level::Error, text);
                self.stop(true);
            }
        }
    }

    pub(super) fn due(&mut self, due: Due) {
        match due {
            Due::Hello(serial) if self.is_at_stage(serial, Stage::Launched) => {
                self.fail(serial, format!("not there after {:?}", self.state.plan.start_timeout), false);
            }
            Due::Start(serial, place, at) if self.is_at(serial, place, at) => {
                let (service, timeout) = (self.service_at(serial, place), self.state.plan.start_timeout);
                let has_taken_names = self.life(serial).is_taking_over();
                let why = format!("service `{service}` has not started within {timeout:?}");
                self.fail(serial, why, has_taken_names);
            }
            Due::Stop(serial) if self.state.lives.contains_key(&serial) => self.stop_is_due(serial),
            // One that was started by request and has ended again meanwhile has a delay of its own.
            Due::Restart(slot, crashes) if self.state.slots[slot].crashes == crashes => {
                self.restart_crashed(slot);
            }
            Due::Hello(_) | Due::Start(..) | Due::Stop(_) | Due::Restart(..) => {}
        }
    }

    fn stop_is_due(&mut self, serial: Serial) {
        let life = self.life(serial);
        if life.is_idle() {
            // Others are slow, and it is not told to go on before they have stopped: its time begins anew then.
            life.is_stop_timed = false;
            return;
        }
        let slot = life.slot;
        let (title, timeout) = (self.state.title(slot), self.state.plan.stop_timeout);
        self.journal.say(Level::Warn, format!("{title} has not stopped within {timeout:?}: killing it"));
        if let Some(instance) = self.instances.get_mut(&serial) {
            instance.kill();
        }
    }

    fn restart_crashed(&mut self, slot: usize) {
        // Meanwhile somebody may have asked for a restart.
        if self.state.phase != Phase::Running || self.state.slots[slot].current.is_some() {
            return;
        }
        self.state.slots[slot].restarts += 1;
        match self.launch(slot, false) {
            Ok(serial) => self.state.slots[slot].current = Some(serial),
            Err(why) => {
                self.journal.say(Level::Error, why);
                self.stop(true);
            }
        }
    }

    /// Ends processes that have more memory than they may.
    pub(super) fn measure(&mut self) {
        let over = |(serial, life): (&Serial, &Life)| {
            let limit = self.state.process(life.slot).memory_limit.filter(|_| life.is_up())?;
            let bytes = memory::counted(life.pid, &limit);
            (bytes > limit.bytes).then_some((*serial, bytes, limit))
        };
        let over: Vec<(Serial, u64, MemoryLimit)> = self.state.lives.iter().filter_map(over).collect();
        for (serial, bytes, limit) in over {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            let why = format!("has {} MiB of memory, and may have {}", mib(bytes), mib(limit.bytes));
            let slot = self.life(serial).slot;
            let title = self.state.title(slot);
            self.journal.say(Level::Warn, format!("{title} {why}: stopping it"));
            let has_taken_names = self.life(serial).is_taking_over();
            self.fail(serial, why, has_taken_names);
        }
    }

    /// Kills what processes that are dead have left behind.
    pub(super) fn sweep(&mut self, suspects: &[u32]) {
        let is_known = |pid| self.state.lives.values().any(|life| life.pid == pid);
        let lives = |mark: &str| self.state.lives.keys().any(|serial| orphans::mark(*serial) == mark);
        let swept = orphans::sweep(is_known, lives, suspects);
        if swept.killed > 0 {
            self.journal
                .say(Level::Warn, format!("{} programs were left behind, and are killed", swept.killed));
        }
        if !swept.suspects.is_empty() {
            self.at(SECOND_LOOK, Event::Orphans(swept.suspects));
        }
    }

    fn tell(&self, serial: Serial, message: ToProcess) {
        if let Some(instance) = self.instances.get(&serial) {
            instance.tell(message, None);
        }
    }

    /// One that is known to be in the books.
    fn life(&mut self, serial: Serial) -> &mut Life {
        self.state.lives.get_mut(&serial).expect("the caller has found it among the living")
    }

    fn service_at(&self, serial: Serial, place: usize) -> String {
        let service = self.state.lives[&serial].services[place].service;
        self.state.plan.services[service].name.clone()
    }

    fn find(&self, serial: Serial, service: &str) -> Option<(usize, At)> {
        let services = &self.state.lives.get(&serial)?.services;
        let is_it = |service_at: usize| self.state.plan.services[service_at].name == service;
        let place = services.iter().position(|hosted| is_it(hosted.service))?;
        Some((place, services[place].at))
    }

    fn set(&mut self, serial: Serial, place: usize, at: At) {
        self.life(serial).services[place].at = at;
    }

    fn is_at_stage(&self, serial: Serial, stage: Stage) -> bool {
        self.state.lives.get(&serial).is_some_and(|life| life.stage == stage)
    }

    fn is_at(&self, serial: Serial, place: usize, at: At) -> bool {
        self.state.lives.get(&serial).is_some_and(|life| life.services[place].at == at)
    }
}

/// How a process has ended, in words.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}
