//! One headless Chromium: started when it is first wanted, and again when it has died.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStderr, Command};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{Instrument, Span};

use self::profile::Profile;
use crate::cdp::Session;
use crate::snapshot::SnapshotError;

mod profile;

/// How long Chromium may take to say that it is there.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take for what is done at once. It is killed when it takes longer: it hangs.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How many of its last lines are told when it does not start.
const LINES_KEPT: usize = 12;

/// Where Chromium reads commands and writes answers, with `--remote-debugging-pipe`. A pipe needs no port that others could connect to,
/// and it tells Chromium to end when this process has ended, however that came about.
const COMMANDS_FD: i32 = 3;
const ANSWERS_FD: i32 = 4;

/// Always given.
const FLAGS: [&str; 13] = [
    "--headless",
    "--remote-debugging-pipe",
    "--hide-scrollbars",
    "--mute-audio",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-breakpad",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    // Every page has a window of its own, and none is in front.
    "--disable-backgrounding-occluded-windows",
];

/// How Chromium is started.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub program: PathBuf,
    /// In addition.
    pub flags: Vec<String>,
    pub resolver_rules: Option<String>,
    /// Where each run has its directory.
    pub place: PathBuf,
}

/// The one Chromium, be it running or not.
pub(crate) struct Chromium {
    launch: Launch,
    running: Arc<tokio::sync::Mutex<Option<Arc<Browser>>>>,
    ground: Ground,
}

/// Where tasks go on, whatever thread starts them: a service's runtime, and its span, which its log lines carry.
#[derive(Clone)]
pub(crate) struct Ground {
    runtime: Handle,
    span: Span,
}

/// A running Chromium; it is killed when this is dropped.
pub(crate) struct Browser {
    pub session: Session,
    pub ground: Ground,
    kill: Arc<Notify>,
    /// Closed once the connection has ended, the process is gone and its directory removed.
    gone: watch::Receiver<()>,
}

impl Chromium {
    /// Must be called in the runtime, and the span, that are to carry it.
    pub fn new(launch: Launch) -> Chromium {
        let ground = Ground { runtime: Handle::current(), span: Span::current() };
        Chromium { launch, running: Arc::default(), ground }
    }

    /// The one that runs, or a new one.
    pub async fn get(&self) -> Result<Arc<Browser>, SnapshotError> {
        let mut running = Arc::clone(&self.running).lock_owned().await;
        if let Some(browser) = running.as_ref().filter(|browser| !browser.session.is_closed()) {
            return Ok(Arc::clone(browser));
        }
        let (launch, ground) = (self.launch.clone(), self.ground.clone());
        // In a task of its own: who asks may give up, and who asks next finds it started.
        let started = self.ground.spawn(async move {
            let browser = Arc::new(Browser::start(&launch, ground).await?);
            *running = Some(Arc::clone(&browser));
            Ok(browser)
        });
        started.await.map_err(|_| SnapshotError::BrowserDied)?
    }

    /// Ends it, and waits until nothing is left of it.
    pub async fn stop(&self) {
        let browser = self.running.lock().await.take();
        if let Some(browser) = browser {
            browser.end().await;
        }
    }
}

impl Ground {
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.runtime.spawn(future.instrument(self.span.clone()))
    }
}

impl Browser {
    async fn start(launch: &Launch, ground: Ground) -> Result<Browser, SnapshotError> {
        let failed = |what: &str, error: io::Error| SnapshotError::NoBrowser {
            reason: format!("{}: {what}: {error}", launch.program.display()),
        };
        let profile = Profile::create(&launch.place)
            .map_err(|error| failed("no directory can be made for its profile", error))?;
        let (mut child, from, to) = spawn(launch, profile.path())
            .map_err(|error| failed("it cannot be started (Debian: apt-get install chromium)", error))?;
        let lines = Arc::new(Lines::default());
        if let Some(output) = child.stderr.take() {
            ground.spawn(Arc::clone(&lines).listen(output));
        }
        let (kill, (removed, gone)) = (Arc::new(Notify::new()), watch::channel(()));
        let (session, mut connection) = Session::browser(from, to);
        let browser = Browser { session, ground, kill, gone };
        let kill = Arc::clone(&browser.kill);
        browser.ground.spawn(async move {
            tokio::select! {
                _ = &mut connection => {
                    tracing::warn!("Chromium has died");
                    bury(child, profile).await;
                }
                () = kill.notified() => {
                    bury(child, profile).await;
                    let _ended = connection.await;
                }
            }
            drop(removed);
        });
        match timeout(START_TIMEOUT, browser.version()).await {
            Ok(Some(version)) => tracing::info!("{version} is running"),
            _ => return Err(SnapshotError::NoBrowser { reason: lines.complaint(&launch.program) }),
        }
        Ok(browser)
    }

    /// Kills it: it hangs. Who asks next gets a new one.
    pub async fn kill(&self) {
        tracing::warn!("Chromium does not answer and is killed");
        self.end().await;
    }

    /// Ends it, and waits until nothing is left of it.
    async fn end(&self) {
        self.kill.notify_one();
        let mut gone = self.gone.clone();
        while gone.changed().await.is_ok() {}
    }

    async fn version(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Version {
            product: String,
        }
        let answer = self.session.ask("Browser.getVersion", json!({})).await.ok()?;
        answer.result().ok().map(|version: Version| version.product)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.kill.notify_one();
    }
}

/// Chromium, and the pipes from it and to it.
fn spawn(launch: &Launch, home: &Path) -> io::Result<(Child, pipe::Receiver, pipe::Sender)> {
    let (commands, to) = io::pipe()?;
    let (from, answers) = io::pipe()?;
    let mut command = Command::new(&launch.program);
    command.args(FLAGS).arg(format!("--user-data-dir={}", home.display()));
    if let Some(rules) = &launch.resolver_rules {
        // A proxy would look up names by itself.
        command.arg(format!("--host-resolver-rules={rules}")).arg("--no-proxy-server");
    }
    if rustix::process::geteuid().is_root() {
        // It refuses to start as root with one.
        command.arg("--no-sandbox");
    }
    command.args(&launch.flags);
    // Caches, settings and sockets go where they are removed.
    command.env("HOME", home).env("TMPDIR", home);
    for variable in ["XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let mapping = |parent_fd: OwnedFd, child_fd| FdMapping { parent_fd, child_fd };
    let mappings = vec![mapping(commands.into(), COMMANDS_FD), mapping(answers.into(), ANSWERS_FD)];
    command.as_std_mut().fd_mappings(mappings).map_err(io::Error::other)?;
    let child = command.spawn()?;
    Ok((child, pipe::Receiver::from_owned_fd(from.into())?, pipe::Sender::from_owned_fd(to.into())?))
}

/// Kills what is left of it, all its processes, and removes its directory.
async fn bury(mut child: Child, profile: Profile) {
    // Not waited for yet, so the number is still this child's.
    if let Some(group) = child.id().and_then(|id| Pid::from_raw(id as i32)) {
        let _gone_already = kill_process_group(group, Signal::KILL);
    }
    let _status = child.wait().await;
    profile.remove().await;
}

/// The last lines that Chromium wrote.
#[derive(Default)]
struct Lines(Mutex<VecDeque<String>>);

impl Lines {
    async fn listen(self: Arc<Self>, output: ChildStderr) {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            tracing::debug!("Chromium: {line}");
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == LINES_KEPT {
                kept.pop_front();
            }
            kept.push_back(line);
        }
    }

    /// Why it does not start, as far as it said.
    fn complaint(&self, program: &Path) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let said = kept.iter().map(|line| format!("\n  {line}")).collect::<String>();
        format!("{} did not start; it said:{said}", program.display())
    }
}
