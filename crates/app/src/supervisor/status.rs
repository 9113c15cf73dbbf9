//! What the supervisor says about what runs.

use super::object::{AppState, AppStatus, ProcessState, ProcessStatus, ServiceStatus};
use super::state::{Hosted, Phase, Slot};
use super::{Supervisor, memory};

impl Supervisor {
    pub(super) fn status(&self) -> AppStatus {
        AppStatus {
            name: self.state.plan.name.clone(),
            pid: std::process::id(),
            state: match self.state.phase {
                Phase::Starting => AppState::Starting,
                Phase::Running => AppState::Running,
                Phase::Stopping { .. } => AppState::Stopping,
            },
            processes: (0..self.state.slots.len()).map(|slot| self.process_status(slot)).collect(),
        }
    }

    /// A successor that is about to take the place is not told of.
    fn process_status(&self, slot: usize) -> ProcessStatus {
        let Slot { index, current, restarts, .. } = self.state.slots[slot];
        let life = current.and_then(|serial| self.state.lives.get(&serial));
        let hosted = self.state.hosted(slot);
        let services = life.map_or(&hosted, |life| &life.services);
        ProcessStatus {
            name: self.state.process(slot).name.clone(),
            index,
            pid: life.map(|life| life.pid),
            state: life.map_or(ProcessState::Waiting, |life| life.state()),
            restarts,
            since_ms: life.map_or(0, |life| life.born_ms),
            memory: life.map_or(0, |life| memory::private(life.pid)),
            services: services.iter().map(|hosted| self.service_status(hosted)).collect(),
        }
    }

    fn service_status(&self, hosted: &Hosted) -> ServiceStatus {
        ServiceStatus {
            name: self.state.plan.services[hosted.service].name.clone(),
            state: hosted.at.state(),
        }
    }
}
