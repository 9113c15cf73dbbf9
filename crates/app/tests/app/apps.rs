//! The applications that are tested, and the services they are made of.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use objbus_app::{App, ProcessBuilder, Restart, Service, ServiceContext, ServiceError, mib};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use crate::harness::DIRECTORY_VARIABLE;

/// Builds the application of that name, and runs it.
pub fn run(name: &str) -> ExitCode {
    let worker = |p: ProcessBuilder| match name {
        "hungry" | "served, with a limit" => p.scale(1).memory_limit(mib(200)),
        "port" | "scaled" => p.scale(2),
        _ => p.scale(1),
    };
    let app = App::new("test")
        .stop_timeout(Duration::from_secs(10))
        .start_timeout(Duration::from_secs(10))
        .process("worker", worker);
    let acts = |act: Act| move |s: objbus_app::ServiceBuilder<Actor>| s.config(act);
    let app = match name {
        "diamond" => app
            .service::<Actor>("top", |s| s.process("worker").depends_on("left").depends_on("right"))
            .service::<Actor>("left", |s| s.process("worker").depends_on("base"))
            .service::<Actor>("right", |s| s.process("background").depends_on("base"))
            .service::<Actor>("base", |s| s.process("background")),
        "cycle" => app
            .service::<Actor>("a", |s| s.depends_on("b"))
            .service::<Actor>("b", |s| s.depends_on("c"))
            .service::<Actor>("c", |s| s.depends_on("a")),
        "cannot start" => app
            .service::<Actor>("fine", |s| s.process("background"))
            .service::<Actor>("broken", |s| s.config(Act::FailToStart).depends_on("fine")),
        "starts slowly" => app
            .start_timeout(Duration::from_millis(200))
            .stop_timeout(Duration::from_millis(200))
            .service::<Actor>("slow", acts(Act::HangInStart)),
        "stops slowly" => {
            app.stop_timeout(Duration::from_millis(300)).service::<Actor>("slow", acts(Act::HangInStop))
        }
        "stops slowly between" => app
            .stop_timeout(Duration::from_millis(300))
            .service::<Actor>("top", |s| s.depends_on("slow"))
            .service::<Actor>("slow", |s| s.process("background").config(Act::HangInStop).depends_on("base"))
            .service::<Actor>("base", |s| s),
        "never stops" => {
            app.stop_timeout(Duration::from_secs(3600)).service::<Actor>("slow", acts(Act::HangInStop))
        }
        "family" => app
            .service::<Actor>("parent", acts(Act::StartPrograms))
            .service::<Actor>("other", |s| s.process("background").config(Act::StartPrograms)),
        "crashes" => app
            .restart(Restart {
                first_delay: Duration::from_millis(10),
                max_delay: Duration::from_millis(40),
                limit: 4,
                window: Duration::from_secs(3600),
            })
            .service::<Actor>("steady", |s| s.process("background"))
            .service::<Actor>("fragile", |s| s.config(Act::ExitIfTold).publish()),
        "waits" => app
            .restart(delayed(Duration::from_secs(3600)))
            .service::<Actor>("any", |s| s)
            .service::<Actor>("other", |s| s.process("background")),
        "hesitates" => app.restart(delayed(Duration::from_secs(1))).service::<Actor>("any", |s| s),
        "hungry" => app
            .process("patient", |p| p.memory_limit(mib(200)))
            .service::<Actor>("eater", |s| s.publish())
            .service::<Actor>("sharer", |s| s.process("patient").publish()),
        "served" | "served, with a limit" => app
            .service::<Actor>("first", |s| s.publish())
            .service::<Actor>("second", |s| s.config(Act::FailIfTold).publish().depends_on("first"))
            .service::<Actor>("aside", |s| s.process("background")),
        "scaled" => app.service::<Actor>("first", |s| s.publish()),
        "port" => app.service::<Echo>("echo", |s| s),
        other => panic!("no application `{other}`"),
    };
    app.run()
}

fn delayed(first_delay: Duration) -> Restart {
    Restart { first_delay, ..Restart::default() }
}

fn in_directory(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os(DIRECTORY_VARIABLE).expect("the test has set it")).join(name)
}

/// Writes a line down, whole.
fn record(line: impl std::fmt::Display) {
    let file = OpenOptions::new().append(true).create(true).open(in_directory("record"));
    file.unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// What a service does that it should not.
#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub enum Act {
    #[default]
    Nothing,
    FailToStart,
    /// If there is a file `fail`; and waits as long as there is a file `wait`.
    FailIfTold,
    /// If there is a file `exit`.
    ExitIfTold,
    HangInStart,
    HangInStop,
    /// One that stays its child, one whose parent ends, and one in a session of its own.
    StartPrograms,
}

pub struct Actor {
    ctx: ServiceContext<Act>,
}

#[objbus::object]
impl Actor {
    pub async fn pid(&self) -> u32 {
        std::process::id()
    }

    /// The same, in a while.
    pub async fn pid_later(&self, ms: u64) -> u32 {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        std::process::id()
    }

    pub async fn exit(&self) {
        std::process::exit(3);
    }

    /// Takes so much memory, and keeps it.
    pub async fn eat(&self, mib: usize) {
        std::mem::forget(vec![1_u8; mib << 20]);
    }

    /// The same of memory that is shared.
    pub async fn share(&self, mib: usize) {
        let mut blob = self.ctx.bus().alloc(mib << 20).expect("there is memory");
        blob.fill(1);
        std::mem::forget(blob);
    }
}

impl Service for Actor {
    type Config = Act;

    async fn new(ctx: ServiceContext<Act>) -> Result<Self, ServiceError> {
        Ok(Actor { ctx })
    }

    async fn start(&self) -> Result<(), ServiceError> {
        let told = |what| in_directory(what).exists();
        match *self.ctx.config() {
            Act::FailToStart => return Err("out of order".into()),
            Act::FailIfTold if told("fail") => return Err("told to fail".into()),
            Act::FailIfTold => {
                while told("wait") {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            Act::ExitIfTold if told("exit") => std::process::exit(3),
            Act::HangInStart => std::future::pending().await,
            Act::StartPrograms => {
                Command::new("sleep").arg("1000").spawn()?;
                Command::new("sh").args(["-c", "sleep 1000 & exit 0"]).spawn()?.wait()?;
                Command::new("sh").args(["-c", "setsid sleep 1000 & exit 0"]).spawn()?.wait()?;
            }
            _ => {}
        }
        record(format_args!("start {}", self.ctx.name()));
        self.ctx.logger().info(format_args!("{} is there", self.ctx.name()));
        Ok(())
    }

    async fn stop(&self) -> Result<(), ServiceError> {
        if *self.ctx.config() == Act::HangInStop {
            self.ctx.logger().info("hanging");
            std::future::pending::<()>().await;
        }
        record(format_args!("stop {}", self.ctx.name()));
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
pub struct EchoConfig {
    addr: SocketAddr,
}

impl Default for EchoConfig {
    fn default() -> Self {
        EchoConfig { addr: ([127, 0, 0, 1], 0).into() }
    }
}

/// Tells who connects by TCP the pid.
pub struct Echo {
    ctx: ServiceContext<EchoConfig>,
}

impl Service for Echo {
    type Config = EchoConfig;

    async fn new(ctx: ServiceContext<EchoConfig>) -> Result<Self, ServiceError> {
        Ok(Echo { ctx })
    }

    async fn start(&self) -> Result<(), ServiceError> {
        let socket = tokio::net::TcpListener::from_std(self.ctx.listen(self.ctx.config().addr).await?)?;
        record(format_args!("listen {}", socket.local_addr()?));
        let (ctx, stopping) = (self.ctx.clone(), self.ctx.stopping());
        self.ctx.spawn(async move {
            tokio::pin!(stopping);
            loop {
                let mut connection = tokio::select! {
                    () = &mut stopping => return,
                    accepted = socket.accept() => accepted.expect("a connection").0,
                };
                ctx.spawn(async move {
                    let pid = format!("{}\n", std::process::id());
                    connection.write_all(pid.as_bytes()).await.expect("the caller waits for it");
                });
            }
        });
        Ok(())
    }
}
