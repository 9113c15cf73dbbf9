//! The application on the bus: `app.<name>` says how it is and takes orders. Who holds its proxy, a command line for example, is
//! no part of the application.

use objbus::{Access, Bus, PublishError, Published};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::Event;

/// The name under which an application is published.
pub(crate) fn bus_name(app: &str) -> String {
    format!("app.{app}")
}

/// Steers a running application. It is published by the application itself as `app.<name>`, for its own user and root; connect with
/// an [`AppControlProxy`].
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use objbus_app::AppControlProxy;
///
/// let app: AppControlProxy = objbus::Bus::open()?.proxy("app.page-snapshot").wait()?;
/// for process in app.status().wait()?.processes {
///     println!("{} {}: {:?}", process.name, process.index, process.state);
/// }
/// // As long as its services take to start and to stop.
/// app.reload("worker").timeout(Duration::from_secs(60)).wait()?;
/// # Ok(()) }
/// ```
pub struct AppControl {
    supervisor: mpsc::Sender<Event>,
}

#[objbus::object]
impl AppControl {
    /// What runs, and how it does.
    pub async fn status(&self) -> Result<AppStatus, ControlError> {
        self.ask(Request::Status).await
    }

    /// Replaces every process of this name by a new one of the program that lies on the disk, one after the other and without
    /// losing a call: the new one starts and takes names over, then the old one ends what it has. If the new one does not
    /// start, the old one stays, and that is an error. Ends when all is done, and is done even if the caller does not wait.
    pub async fn reload(&self, process: &str) -> Result<(), ControlError> {
        self.ask(|answer| Request::Reload { process: process.to_owned(), answer }).await?
    }

    /// Stops every process of this name and starts it again, one after the other; meanwhile its services are not there.
    pub async fn restart(&self, process: &str) -> Result<(), ControlError> {
        self.ask(|answer| Request::Restart { process: process.to_owned(), answer }).await?
    }

    /// Stops the application. Ends at once: the application is gone when its name is.
    pub async fn stop(&self) -> Result<(), ControlError> {
        self.ask(Request::Stop).await
    }

    /// At most `max` of the last 1,000 lines of the log, from behind the one with the number `after`; 0 is before the first.
    pub async fn log(&self, after: u64, max: u32) -> Result<LogPage, ControlError> {
        self.ask(|answer| Request::Log { after, max, answer }).await
    }
}

impl AppControl {
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, ControlError> {
        let (answer, answered) = oneshot::channel();
        self.supervisor.send(Event::Asked(request(answer))).await.map_err(|_| ControlError::Stopping)?;
        answered.await.map_err(|_| ControlError::Stopping)
    }
}

/// Publishes the application.
///
/// # Errors
///
/// A sentence; another application of this name is one.
pub(crate) fn publish(bus: &Bus, app: &str, supervisor: mpsc::Sender<Event>) -> Result<Published, String> {
    // Whoever else the bus admits may call services, but not end them.
    let access = Access::only().uid(geteuid().as_raw()).uid(0);
    let published = bus.publication(&bus_name(app), AppControl { supervisor }).access(access).publish();
    published.map_err(|error| match error {
        PublishError::AlreadyPublished { pid } => {
            format!("an application of the name `{app}` runs already, as process {pid}")
        }
        other => format!("cannot publish `{}`: {other}", bus_name(app)),
    })
}

/// What the object passes on to the supervisor's task.
pub(crate) enum Request {
    Status(oneshot::Sender<AppStatus>),
    Reload { process: String, answer: oneshot::Sender<Result<(), ControlError>> },
    Restart { process: String, answer: oneshot::Sender<Result<(), ControlError>> },
    Stop(oneshot::Sender<()>),
    Log { after: u64, max: u32, answer: oneshot::Sender<LogPage> },
}

/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, objbus::Type)]
pub enum ControlError {
    /// No process of this name runs.
    UnknownProcess {
        /// The name.
        process: String,
        /// Those that do run.
        known: Vec<String>,
    },
    /// A process could not be started; in a reload, the old one stays.
    Failed {
        /// What went wrong.
        why: String,
    },
    /// The application is stopping.
    Stopping,
}

impl std::fmt::Display for ControlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ControlError::UnknownProcess { process, known } => {
                write!(f, "no process `{process}` runs; there are: {}", known.join(", "))
            }
            ControlError::Failed { why } => f.write_str(why),
            ControlError::Stopping => f.write_str("the application is stopping"),
        }
    }
}

impl std::error::Error for ControlError {}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, objbus::Type)]
pub struct AppStatus {
    /// The application's name.
    pub name: String,
    /// The supervisor's process id.
    pub pid: u32,
    /// How far the application is.
    pub state: AppState,
    /// One entry for each process that should run, in the order in which they are started.
    pub processes: Vec<ProcessStatus>,
}

/// How far the application is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, objbus::Type)]
pub enum AppState {
    /// Not all of its services have started yet.
    Starting,
    /// It has started; processes may be restarting nevertheless.
    Running,
    /// It is about to end.
    Stopping,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, objbus::Type)]
pub struct ProcessStatus {
    /// As declared.
    pub name: String,
    /// From 0 to the scale.
    pub index: u32,
    /// `None` while it waits to be started again.
    pub pid: Option<u32>,
    /// How far it is.
    pub state: ProcessState,
    /// How often it was started again after it had ended by itself.
    pub restarts: u32,
    /// When it was started, in milliseconds since the Unix epoch; 0 while it waits.
    pub since_ms: u64,
    /// What it has of memory that is its own alone, in bytes.
    pub memory: u64,
    /// Its services, in the order in which they are started.
    pub services: Vec<ServiceStatus>,
}

/// How far a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, objbus::Type)]
pub enum ProcessState {
    /// It has ended, and is about to be started again.
    Waiting,
    /// Not all of its services have started yet.
    Starting,
    /// All of its services run.
    Running,
    /// It is about to end.
    Stopping,
}

/// One service in one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, objbus::Type)]
pub struct ServiceStatus {
    /// As declared.
    pub name: String,
    /// How far it is.
    pub state: ServiceState,
}

/// How far a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, objbus::Type)]
pub enum ServiceState {
    /// For what it depends on, or for its process.
    Waiting,
    /// It was told to start.
    Starting,
    /// It has started.
    Running,
    /// It was told to stop.
    Stopping,
    /// It has stopped, or could not be started.
    Ended,
}

/// A part of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, objbus::Type)]
pub struct LogPage {
    /// How many lines that were asked for are not there any more.
    pub lost: u64,
    /// In their order.
    pub lines: Vec<LogLine>,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, objbus::Type)]
pub struct LogLine {
    /// From 1 on, without gaps.
    pub number: u64,
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// `TRACE` to `ERROR`.
    pub level: String,
    /// Of the process that says it.
    pub pid: u32,
    /// `None`: the supervisor's own.
    pub process: Option<String>,
    /// The service that says it.
    pub service: Option<String>,
    /// The module that says it; `stdout` and `stderr` for what a process has written there.
    pub target: String,
    /// What is said.
    pub text: String,
    /// And with which values.
    pub fields: Vec<(String, String)>,
}
