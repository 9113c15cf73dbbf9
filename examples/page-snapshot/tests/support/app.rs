//! The application as a process, with a configuration and a directory of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use objbus::Bus;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

use super::{Answer, Client, wait_for};

/// The bus's directory, in the application's.
const BUS: &str = "bus";

/// How the application is set up.
pub struct Setup {
    /// The program; by default the application's.
    pub program: PathBuf,
    pub chromium: PathBuf,
    /// What may be looked at: hosts, and files below a directory.
    pub hosts: Vec<String>,
    pub files: Option<PathBuf>,
    pub pages: u32,
    pub timeout: Duration,
    pub workers: u32,
    pub env: Vec<(&'static str, &'static str)>,
}

/// The application, running; nothing of it is left when this is dropped.
pub struct App {
    process: Child,
    pub addr: SocketAddr,
    /// Where the bus, the configuration and the browser's profile are.
    pub place: PathBuf,
    lines: Arc<Mutex<Vec<String>>>,
    /// Ends when no process of it is left that could write.
    listener: JoinHandle<()>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            program: env!("CARGO_BIN_EXE_page-snapshot").into(),
            chromium: "/usr/bin/chromium".into(),
            hosts: vec!["127.0.0.1".to_owned()],
            files: None,
            pages: 4,
            timeout: Duration::from_secs(60),
            workers: 1,
            env: Vec::new(),
        }
    }
}

impl Setup {
    /// Starts it in a new directory and waits until it has started.
    pub fn start(&self) -> App {
        self.start_in(&new_place())
    }

    /// Starts it where another may have been before, and waits until it has started.
    pub fn start_in(&self, place: &Path) -> App {
        let mut app = self.begin(place);
        wait_for("the application to start", || {
            app.has_said("Application start successful").then_some(()).or_else(|| app.assert_alive())
        });
        app
    }

    /// Starts it and does not wait.
    pub fn begin(&self, place: &Path) -> App {
        let addr = free_port();
        let config = place.join("page-snapshot.toml");
        fs::write(&config, self.config(addr, place)).expect("a configuration can be written");
        let mut command = Command::new(&self.program);
        command
            .envs(self.env.iter().copied())
            .arg("--config")
            .arg(&config)
            .current_dir(place)
            .env("OBJBUS_DIR", place.join(BUS));
        command
            .env_remove("XDG_RUNTIME_DIR")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut process = command.spawn().expect("the application can be started");
        let output = process.stdout.take().expect("its output is piped");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&lines);
        let listener = thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                println!("{line}");
                heard.lock().expect("no thread panics with it").push(line);
            }
        });
        App { process, addr, place: place.to_owned(), lines, listener }
    }

    fn config(&self, addr: SocketAddr, place: &Path) -> String {
        let hosts: Vec<String> = self.hosts.iter().map(|host| format!("{host:?}")).collect();
        let files = self.files.as_ref().map(|files| format!("files = {files:?}\n")).unwrap_or_default();
        format!(
            "[processes.worker]\nscale = {}\n\n[services.web]\nport = {}\ntimeout_ms = {}\n\n\
             [services.pageSnapshot]\nchromium = {:?}\npages = {}\ndirectory = {place:?}\n\n\
             [services.pageSnapshot.allowed]\nhosts = [{}]\n{files}",
            self.workers,
            addr.port(),
            self.timeout.as_millis(),
            self.chromium,
            self.pages,
            hosts.join(", "),
        )
    }
}

impl App {
    pub fn client(&self) -> Client {
        Client::connect(self.addr)
    }

    /// The bus that it is on.
    pub fn bus(&self) -> Bus {
        Bus::builder().directory(self.place.join(BUS)).open().expect("the application has opened it")
    }

    /// Asks over a connection of its own.
    pub fn get(&self, target: &str) -> Answer {
        self.client().get(target)
    }

    pub fn has_said(&self, text: &str) -> bool {
        self.lines.lock().expect("no thread panics with it").iter().any(|line| line.contains(text))
    }

    /// The processes of its Chromium.
    pub fn chromium(&self) -> Vec<Pid> {
        self.chromium_that(|_| true)
    }

    /// Those of them that show pages.
    pub fn renderers(&self) -> Vec<Pid> {
        self.chromium_that(|command| command.contains("--type=renderer"))
    }

    /// The processes of its Chromium with such a command line. They are known by the home that they were given, or, where
    /// Chromium has written its own title over that, by their group.
    fn chromium_that(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<Pid> {
        let home = format!("HOME={}/", self.place.display());
        let all: Vec<Process> = processes().collect();
        let is_at_home =
            |process: &&Process| process.environment.split('\0').any(|text| text.starts_with(&home));
        let groups: Vec<Pid> = all.iter().filter(is_at_home).map(|process| process.group).collect();
        all.into_iter()
            .filter(|process| groups.contains(&process.group) && is_wanted(&process.command))
            .map(|process| process.pid)
            .collect()
    }

    /// The browser, once there is one.
    pub fn browser(&self) -> Pid {
        // Its own children have that flag as well, and lower numbers where those have begun anew.
        let is_browser =
            |command: &str| command.contains("--remote-debugging-pipe") && !command.contains("--type=");
        wait_for("a browser", || self.chromium_that(is_browser).first().copied())
    }

    /// The directories of Chromium's runs.
    pub fn profiles(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.place).expect("the place can be read").flatten();
        let profile = |path: &PathBuf| path.to_string_lossy().contains("/page-snapshot-");
        entries.map(|entry| entry.path()).filter(profile).collect()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("it runs");
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the application to end", || self.process.try_wait().expect("it is our child"))
    }

    /// Waits until no process of Chromium's is left.
    pub fn expect_no_chromium(&self) {
        wait_for("Chromium to end", || self.chromium().is_empty().then_some(()));
    }

    /// Waits until nobody has a profile of its Chromium's any more: killed processes do for a moment.
    pub fn expect_no_locks(&self) {
        let is_free = |profile: &PathBuf| {
            let directory = fs::File::open(profile).expect("it is there");
            flock(directory, FlockOperation::NonBlockingLockExclusive).is_ok()
        };
        wait_for("the locks of profiles", || self.profiles().iter().all(is_free).then_some(()));
    }

    fn assert_alive(&mut self) -> Option<()> {
        let ended = self.process.try_wait().expect("it is our child");
        assert!(ended.is_none(), "the application has ended: {}", ended.unwrap_or_default());
        None
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _ended = self.process.wait();
        if !thread::panicking() {
            wait_for("its processes to end", || self.listener.is_finished().then_some(()));
            self.expect_no_chromium();
            let _gone = fs::remove_dir_all(&self.place);
        }
    }
}

/// A directory that nobody else uses. Its path is short, as sockets in it need.
pub fn new_place() -> PathBuf {
    let place =
        (0..).map(|number| std::env::temp_dir().join(format!("objbus-snap-{}-{number}", std::process::id())));
    let new = |place: &PathBuf| fs::create_dir(place).is_ok();
    place.into_iter().find(new).expect("there is a name for a directory")
}

fn free_port() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    listener.local_addr().expect("it is bound")
}

/// A process that runs.
struct Process {
    pid: Pid,
    group: Pid,
    command: String,
    environment: String,
}

/// All that we may look at.
fn processes() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").expect("there is a /proc").flatten();
    entries.filter_map(|entry| {
        let text =
            |name: &str| Some(String::from_utf8_lossy(&fs::read(entry.path().join(name)).ok()?).into_owned());
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        // Behind the name, which may have spaces in it: state, parent, group. The kernel's own threads have none.
        let group = text("stat")?.rsplit_once(") ")?.1.split(' ').nth(2)?.parse().ok()?;
        let group = Pid::from_raw(group)?;
        Some(Process { pid, group, command: text("cmdline")?, environment: text("environ")? })
    })
}
