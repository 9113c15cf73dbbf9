//! The application, as a process of ours.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use objbus::Bus;
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::place::Place;
use crate::show::Scene;
use crate::site::Site;
use crate::{Ending, ROLE_VARIABLE};

/// The role of the process that becomes the application.
pub const ROLE: &str = "application";
/// The demo's process, for that one.
const DEMO_VARIABLE: &str = "PAGE_SNAPSHOT_DEMO_PID";
/// Where the bus of a process is.
pub const BUS_VARIABLE: &str = "OBJBUS_DIR";
/// Where it can be found while `--serve` keeps it running.
const PORT: u16 = 5511;
/// Enough to see that they share the work, on machines with hundreds of processors, too.
const WORKERS: u32 = 2;
/// Longer than the application gives its own services.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// For killing what is left.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// The application, running, and the site that it looks at.
pub struct App {
    guard: Child,
    /// Ends when no process of it is left that could write.
    log: JoinHandle<()>,
    web: SocketAddr,
    site: Site,
    bus: PathBuf,
}

impl App {
    pub async fn start(place: &Place, serve: bool, site: Site) -> Result<App, String> {
        let web = if serve { (Ipv4Addr::LOCALHOST, PORT).into() } else { free_port()? };
        let config = place.path().join("page-snapshot.toml");
        fs::write(&config, configuration(place.path(), web, serve))
            .map_err(|error| format!("cannot write {}: {error}", config.display()))?;
        let bus = place.path().join("bus");
        let mut command = Command::new(this_program()?);
        command
            .arg("--config")
            .arg(&config)
            .env(ROLE_VARIABLE, ROLE)
            .env(DEMO_VARIABLE, std::process::id().to_string())
            .env(BUS_VARIABLE, &bus)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // A terminal tells Ctrl-C to everybody in its foreground group; the application hears of it from us.
            .process_group(0);
        println!("starting the application; what it logs is indented");
        let mut guard = command.spawn().map_err(|error| format!("cannot start the application: {error}"))?;
        let log = tokio::spawn(indent(guard.stdout.take()));
        Ok(App { guard, log, web, site, bus })
    }

    /// What is needed to show it.
    pub fn scene(&self, to: &Path) -> Result<Scene, String> {
        let bus = Bus::builder().directory(&self.bus).open();
        Ok(Scene {
            bus: bus.map_err(|error| format!("cannot open the application's bus: {error}"))?,
            directory: self.bus.clone(),
            guard: self.guard.id().ok_or("the application has ended at once")?,
            web: self.web,
            site: self.site.addr,
            to: to.to_owned(),
        })
    }

    /// What a user can type in.
    pub fn example(&self) -> String {
        format!("http://{}/?url=http://{}/tall&full_page=true", self.web, self.site.addr)
    }

    /// Waits until it has ended by itself; says how.
    pub async fn ended(&mut self) -> String {
        match self.guard.wait().await {
            Ok(status) => format!("the application has ended ({status}); above is what it said"),
            Err(error) => format!("the application cannot be waited for: {error}"),
        }
    }

    /// Stops it and waits until all of it is gone; at once if it is `ending` all the same.
    pub async fn stop(mut self, ending: &mut Ending) -> Result<(), String> {
        let stopped = tokio::time::Instant::now() + STOP_TIMEOUT;
        self.tell(Signal::TERM);
        let status = loop {
            tokio::select! {
                status = self.guard.wait() => break status.map_err(|error| error.to_string())?,
                // The second time it kills its processes.
                () = ending.asked_for() => self.tell(Signal::TERM),
                () = tokio::time::sleep_until(stopped) => {
                    self.tell(Signal::KILL);
                    let _status = timeout(KILL_TIMEOUT, self.guard.wait()).await;
                    return Err(format!("the application did not stop within {STOP_TIMEOUT:?}, and was killed"));
                }
            }
        };
        let _end = timeout(KILL_TIMEOUT, &mut self.log).await;
        match status.success() {
            true => Ok(()),
            false => Err(format!("the application has ended with {status}")),
        }
    }

    fn tell(&self, signal: Signal) {
        // It is not waited for yet while it has a number, so the number is its own.
        if let Some(pid) = self.guard.id().and_then(|id| Pid::from_raw(id as i32)) {
            let _gone_already = kill_process(pid, signal);
        }
    }
}

/// Becomes the application, which is told to end when the demo is dead, however that came about.
pub fn become_application() -> ExitCode {
    let failed = |error: &dyn std::fmt::Display| {
        eprintln!("demo: cannot become the application: {error}");
        ExitCode::FAILURE
    };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        return failed(&error);
    }
    // It may have died before this process asked to be told.
    let demo = std::env::var(DEMO_VARIABLE).ok().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
    if getppid() != demo {
        return ExitCode::FAILURE;
    }
    let program = match this_program() {
        Ok(path) => path.with_file_name("page-snapshot"),
        Err(sentence) => return failed(&sentence),
    };
    let mut command = std::process::Command::new(&program);
    command.args(std::env::args_os().skip(1)).env_remove(ROLE_VARIABLE).env_remove(DEMO_VARIABLE);
    let error = command.exec();
    failed(&format_args!("{}: {error}; is it built?", program.display()))
}

/// This binary.
pub fn this_program() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| format!("cannot find the demo's own program: {error}"))
}

/// Whom it serves decides what it may look at: for the demo that is the demo's own site.
fn configuration(place: &Path, web: SocketAddr, serve: bool) -> String {
    let host = if serve { "*" } else { "127.0.0.1" };
    format!(
        "[processes.worker]\nscale = {WORKERS}\n\n[services.web]\nport = {}\n\n\
         [services.pageSnapshot]\ndirectory = {place:?}\n\n\
         [services.pageSnapshot.allowed]\nhosts = [{host:?}]\n",
        web.port()
    )
}

fn free_port() -> Result<SocketAddr, String> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    bound.map_err(|error: io::Error| format!("loopback has no free port: {error}"))
}

/// Prints what the application says.
async fn indent(output: Option<ChildStdout>) {
    let Some(output) = output else { return };
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        println!("  | {line}");
    }
}
