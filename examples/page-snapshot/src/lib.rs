//! Pictures of web pages: one process keeps a Chromium and takes them, others serve them over HTTP, and the bytes go from the one to the
//! others in shared memory.

#![forbid(unsafe_code)]

use std::time::Duration;

use objbus_app::{App, Scale, mib};

mod browser;
mod cdp;
mod page;
mod policy;
mod snapshot;
mod web;

pub use policy::Allowed;
pub use snapshot::{PageSnapshot, PageSnapshotProxy, Shot, Snapshot, SnapshotConfig, SnapshotError, Times};
pub use web::{Web, WebConfig};

/// Longer than a picture may take: requests that have been taken are answered.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// The application.
pub fn app() -> App {
    App::new("page-snapshot")
        .process("worker", |p| p.scale(Scale::Auto))
        .process("background", |p| p.scale(1).memory_limit(mib(512)))
        .service::<PageSnapshot>("pageSnapshot", |s| s.process("background").publish())
        .service::<Web>("web", |s| s.process("worker").depends_on("pageSnapshot"))
        .stop_timeout(STOP_TIMEOUT)
}
