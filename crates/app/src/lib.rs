//! Processes and services of an application, declared in Rust: one binary for all of them, supervised, and each service within
//! reach of every other through [objbus].
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use objbus_app::{App, Scale, Service, ServiceContext, ServiceError, mib};
//! use serde::{Deserialize, Serialize};
//!
//! /// Knows a greeting.
//! struct Greeter(ServiceContext<()>);
//!
//! #[objbus::object]
//! impl Greeter {
//!     pub fn greet(&self, name: &str) -> String {
//!         self.0.logger().info(format!("greeting {name}"));
//!         format!("Hello, {name}!")
//!     }
//! }
//!
//! impl Service for Greeter {
//!     type Config = ();
//!
//!     async fn new(ctx: ServiceContext<()>) -> Result<Self, ServiceError> {
//!         Ok(Greeter(ctx))
//!     }
//! }
//!
//! /// Says it to everybody who connects.
//! struct Door(ServiceContext<DoorConfig>);
//!
//! #[derive(Clone, Serialize, Deserialize)]
//! struct DoorConfig {
//!     port: u16,
//! }
//!
//! impl Default for DoorConfig {
//!     fn default() -> Self {
//!         DoorConfig { port: 5511 }
//!     }
//! }
//!
//! impl Service for Door {
//!     type Config = DoorConfig;
//!
//!     async fn new(ctx: ServiceContext<DoorConfig>) -> Result<Self, ServiceError> {
//!         Ok(Door(ctx))
//!     }
//!
//!     async fn start(&self) -> Result<(), ServiceError> {
//!         let ctx = self.0.clone();
//!         let greeter: GreeterProxy = ctx.proxy("greeter").await?;
//!         let listener = ctx.listen(([127, 0, 0, 1], ctx.config().port)).await?;
//!         let listener = tokio::net::TcpListener::from_std(listener)?;
//!         let stopping = ctx.stopping();
//!         ctx.spawn(async move {
//!             tokio::pin!(stopping);
//!             loop {
//!                 let (stream, peer) = tokio::select! {
//!                     Ok(connection) = listener.accept() => connection,
//!                     () = &mut stopping => break,
//!                 };
//!                 if let Ok(greeting) = greeter.greet(&peer.to_string()).await {
//!                     let _ = stream.try_write(greeting.as_bytes());
//!                 }
//!             }
//!         });
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> ExitCode {
//!     App::new("greetings")
//!         .process("worker", |p| p.scale(Scale::Auto))
//!         .process("background", |p| p.scale(1).memory_limit(mib(512)))
//!         .service::<Greeter>("greeter", |s| s.process("background").publish())
//!         .service::<Door>("door", |s| s.process("worker").config(DoorConfig { port: 80 }).depends_on("greeter"))
//!         .run()
//! }
//! ```
//!
//! # The pieces
//!
//! - [`App`] declares processes and services, and runs them: as the guard, the supervisor or one of the processes, whichever this
//!   run of the binary is.
//! - [`Service`]: what is made, started and stopped. Dependencies start before, and stop after, in whichever process they are.
//! - [`ServiceContext`]: a service's configuration, log, bus, sockets and tasks.
//! - [`AppControl`]: the running application on the bus, for command lines and other programs.
//!
//! The page `docs/app.md` of the repository says how an application is configured, what happens when a process ends, how it is
//! reloaded without losing a call, and how it runs under systemd.
//!
//! # What it does not do
//!
//! It is for Linux and for one machine. It restarts processes, not single services.

#![warn(missing_docs)]
#![forbid(unsafe_code)]

mod app;
mod config;
mod context;
mod control;
mod guard;
mod log;
mod options;
mod plan;
mod process;
mod run;
mod service;
mod supervisor;

pub use app::{App, ProcessBuilder, ServiceBuilder};
pub use context::{Logger, ServiceContext};
pub use options::Options;
pub use plan::{MemoryLimit, Restart, Scale, mib};
pub use service::{Service, ServiceError};
pub use supervisor::object::{
    AppControl, AppControlProxy, AppState, AppStatus, ControlError, LogLine, LogPage, ProcessState,
    ProcessStatus, ServiceState, ServiceStatus,
};

/// Runs what `docs/app.md` shows.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/app.md")]
struct Guide;
