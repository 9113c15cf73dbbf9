//! One process publishes an object that knows about it; any other asks it.
//!
//! `cargo run --example process_info -- serve` in one terminal, `cargo run --example process_info` in another.

use std::time::{Duration, Instant};

use objbus::Bus;

struct ProcessInfo {
    started: Instant,
}

#[objbus::object]
impl ProcessInfo {
    /// Process id of the publisher.
    pub async fn get_pid(&self) -> u32 {
        std::process::id()
    }

    /// How long it has been running.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

fn main() {
    let done = match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(),
        None => call(),
        Some(other) => {
            Err(format!("`{other}` is no role here: say `serve` to publish, or nothing to call").into())
        }
    };
    if let Err(error) = done {
        eprintln!("{error}");
        std::process::exit(1)
    }
}

fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let bus = Bus::open()?; // this user's bus
    let published = bus.publish("processInfo", ProcessInfo { started: Instant::now() })?;
    println!("published {}; Ctrl-C ends it", published.name());
    loop {
        std::thread::park();
    }
}

fn call() -> Result<(), Box<dyn std::error::Error>> {
    let bus = Bus::open()?;
    // Whoever publishes it may still be starting.
    let info: ProcessInfoProxy = bus.proxy("processInfo").wait_for(Duration::from_secs(5))?;
    let pid = info.get_pid().wait()?; // or .await, on any runtime
    let uptime = info.uptime().timeout(Duration::from_secs(1)).wait()?;
    println!("process {pid} has been running for {uptime:.1?}; this is process {}", std::process::id());
    Ok(())
}
