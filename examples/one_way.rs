//! A call whose sender does not wait: it runs even though the sender exits at once.
//!
//! `cargo run --example one_way -- serve` in one terminal, `cargo run --example one_way` in another.

use std::time::Duration;

use objbus::{Bus, CallContext};

struct Journal;

#[objbus::object]
impl Journal {
    /// Writes a line down, with who sent it.
    pub fn note(&self, line: &str) {
        let sender = CallContext::current().map_or(0, |call| call.pid());
        println!("process {sender} noted: {line}");
    }
}

fn main() {
    let done = match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(),
        None => send(),
        Some(other) => {
            Err(format!("`{other}` is no role here: say `serve` to publish, or nothing to send").into())
        }
    };
    if let Err(error) = done {
        eprintln!("{error}");
        std::process::exit(1)
    }
}

fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let bus = Bus::open()?;
    let published = bus.publish("journal", Journal)?;
    println!("published {}; Ctrl-C ends it", published.name());
    loop {
        std::thread::park();
    }
}

fn send() -> Result<(), Box<dyn std::error::Error>> {
    let bus = Bus::open()?;
    let journal: JournalProxy = bus.proxy("journal").wait_for(Duration::from_secs(5))?;
    println!("process {} sends and exits", std::process::id());
    journal.note("out of ink").send()?;
    // No destructor runs after this, and nothing waits for the method.
    std::process::exit(0)
}
