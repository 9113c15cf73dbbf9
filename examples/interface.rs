//! A trait as an interface: the same code takes a local object or a proxy to another process's.
//! `cargo run --example interface -- serve` in one terminal, `cargo run --example interface` in another.

use objbus::{Bus, BusError};
use serde::{Deserialize, Serialize};

/// Errors of the methods' own, and a place for the bus's.
#[derive(Debug, Serialize, Deserialize, objbus::Type)]
enum ScaleError {
    Overload { limit: u32 },
    Unreachable(String),
}

impl From<BusError> for ScaleError {
    fn from(error: BusError) -> ScaleError {
        ScaleError::Unreachable(error.to_string())
    }
}

#[objbus::interface]
trait Scale {
    /// Weighs so many coins, in grams.
    fn weigh(&self, coins: u32) -> Result<f64, ScaleError>;
}

struct Bench;

impl Scale for Bench {
    fn weigh(&self, coins: u32) -> Result<f64, ScaleError> {
        if coins <= 100 { Ok(7.5 * f64::from(coins)) } else { Err(ScaleError::Overload { limit: 100 }) }
    }
}

/// Knows neither processes nor proxies.
fn report(what: &str, scale: &impl Scale) {
    println!("{what}: {:?}, {:?}", scale.weigh(4), scale.weigh(101));
}

fn run(role: Option<&str>) -> Result<(), Box<dyn std::error::Error>> {
    match role {
        Some("serve") => {
            let published = Bus::open()?.publish("scale", ScaleObject(Bench))?;
            println!("published {}; Ctrl-C ends it", published.name());
            std::iter::repeat_with(std::thread::park).for_each(drop);
        }
        None => {
            report("here", &Bench);
            report("there", &Bus::open()?.proxy::<ScaleProxy>("scale").wait()?);
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
