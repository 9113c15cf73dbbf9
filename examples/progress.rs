//! An object of the caller's as an argument: the method tells it how far it is, and it says when to stop.
//! `cargo run --example progress -- serve` in one terminal, `cargo run --example progress` in another.

use objbus::{Bus, BusError};

#[objbus::interface]
trait Progress {
    /// So many percent are done; whether to go on.
    fn at(&self, percent: u32) -> Result<bool, BusError>;
}

struct Kitchen;

#[objbus::object]
impl Kitchen {
    /// Bakes until it is done, or its caller has had enough; how many percent it is then.
    pub fn bake(&self, progress: &dyn Progress) -> Result<u32, BusError> {
        for percent in (10..100).step_by(10) {
            if !progress.at(percent)? {
                return Ok(percent);
            }
        }
        Ok(100)
    }
}

/// Prints what it is told, and has enough at so many percent.
struct Printed(u32);

impl Progress for Printed {
    fn at(&self, percent: u32) -> Result<bool, BusError> {
        println!("process {} hears of {percent} %", std::process::id());
        Ok(percent < self.0)
    }
}

fn run(role: Option<&str>) -> Result<(), Box<dyn std::error::Error>> {
    match role {
        Some("serve") => {
            let published = Bus::open()?.publish("kitchen", Kitchen)?;
            println!("published {}; Ctrl-C ends it", published.name());
            std::iter::repeat_with(std::thread::park).for_each(drop);
        }
        None => {
            let kitchen: KitchenProxy = Bus::open()?.proxy("kitchen").wait()?;
            println!("stopped at {} %", kitchen.bake(Printed(30)).wait()?);
            println!("done to {} %", kitchen.bake(Printed(100)).wait()?);
        }
        Some(other) => Err(format!("`{other}` is no role here: say `serve` to publish, or nothing to call"))?,
    }
    Ok(())
}

fn main() {
    if let Err(error) = run(std::env::args().nth(1).as_deref()) {
        eprintln!("{error}");
        std::process::exit(1)
    }
}
