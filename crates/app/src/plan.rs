//! What an application consists of, checked: what [`App`](crate::App) is told becomes this, or an error that says what is wrong.
//!
//! Every process of the application makes the same plan, since it is the same binary.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::time::Duration;

pub(crate) mod check;

/// The whole application.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub name: String,
    /// Those with at least one service, in the order in which they are started.
    pub processes: Vec<ProcessPlan>,
    /// In an order in which each stands behind all that it depends on.
    pub services: Vec<ServicePlan>,
    pub restart: Restart,
    /// How long a service may take to start.
    pub start_timeout: Duration,
    /// How long a process may take to stop, all of its services together, before it is killed.
    pub stop_timeout: Duration,
}

impl Plan {
    /// Whether several of the process with this name run at a time.
    pub fn is_scaled(&self, process: &str) -> bool {
        self.processes.iter().any(|planned| planned.name == process && planned.scale > 1)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcessPlan {
    pub name: String,
    /// How many of it run at a time; at least 1.
    pub scale: u32,
    pub env: BTreeMap<String, String>,
    pub args: Vec<String>,
    pub memory_limit: Option<MemoryLimit>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServicePlan {
    pub name: String,
    /// The processes that it runs in, each in [`Plan::processes`].
    pub processes: Vec<String>,
    /// Services that are started before it and stopped after it.
    pub depends_on: Vec<String>,
    pub is_published: bool,
}

/// How often a process that ends by itself is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Before the first restart; doubled for each further one.
    pub first_delay: Duration,
    /// The longest it grows to.
    pub max_delay: Duration,
    /// So many restarts of one process within `window` are the last: then the application ends, with an error.
    pub limit: u32,
    /// A process that has run for so long starts again with `first_delay`, and nothing counted.
    pub window: Duration,
}

impl Default for Restart {
    /// A tenth of a second, growing to ten; ten restarts within a minute.
    fn default() -> Restart {
        Restart {
            first_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(10),
            limit: 10,
            window: Duration::from_secs(60),
        }
    }
}

/// How much memory a process may have, and what counts.
///
/// Made of a number of bytes, it counts only what the process has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// In bytes.
    pub bytes: u64,
    /// Counts shared memory and mapped files as well.
    pub counts_shared: bool,
    /// Counts the programs that the process has started, a browser for example, as well.
    pub counts_children: bool,
}

impl From<u64> for MemoryLimit {
    fn from(bytes: u64) -> MemoryLimit {
        MemoryLimit { bytes, counts_shared: false, counts_children: false }
    }
}

/// `count` MiB in bytes.
///
/// ```
/// assert_eq!(objbus_app::mib(2), 2 * 1024 * 1024);
/// ```
pub const fn mib(count: u64) -> u64 {
    count * 1024 * 1024
}

/// How many instances of a process run at a time.
///
/// ```
/// use objbus_app::Scale;
///
/// assert_eq!(Scale::from(3), Scale::Fixed(3));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// One in dev mode, else as many as there are processors for this program.
    Auto,
    /// So many.
    Fixed(u32),
}

impl From<u32> for Scale {
    fn from(count: u32) -> Scale {
        Scale::Fixed(count)
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scale::Auto => f.write_str("auto"),
            Scale::Fixed(count) => count.fmt(f),
        }
    }
}

/// All that is wrong with what an application was told, in its code, its file and its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlanErrors {
    pub app: String,
    /// A sentence each.
    pub reasons: Vec<String>,
}

impl fmt::Display for PlanErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot start:", self.app)?;
        self.reasons
            .iter()
            .try_for_each(|reason| write!(f, "\n- {}", reason.trim_end().replace('\n', "\n  ")))
    }
}

impl Error for PlanErrors {}
