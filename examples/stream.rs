//! A log that is followed as it grows, and readings that are sent as they are made: streams, in either direction.
//! `cargo run --example stream -- serve` in one terminal, `cargo run --example stream` in another.

use std::time::Duration;

use objbus::futures_core::Stream;
use objbus::{Bus, BusError, stream_of};

struct Station {
    log: Vec<String>,
}

#[objbus::object]
impl Station {
    /// The lines with this word in them, as fast as the caller reads. Dropping the stream stops the search.
    pub fn follow(&self, word: &str) -> impl Stream<Item = String> {
        stream_of(self.log.iter().cycle().filter(move |line| line.contains(word)).cloned())
    }

    /// The mean of what the caller measures, as it comes.
    pub async fn mean(&self, mut readings: objbus::Stream<f64>) -> Result<f64, BusError> {
        let (mut sum, mut count) = (0.0, 0);
        while let Some(reading) = readings.next().await {
            (sum, count) = (sum + reading?, count + 1);
        }
        Ok(sum / f64::from(count))
    }
}

fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let log = (1..=1_000).map(|i| format!("{i}: {}", if i % 3 == 0 { "rain" } else { "sun" })).collect();
    let published = Bus::open()?.publish("station", Station { log })?;
    println!("published {}; Ctrl-C ends it", published.name());
    std::iter::repeat_with(std::thread::park).for_each(drop);
    Ok(())
}

fn watch() -> Result<(), Box<dyn std::error::Error>> {
    let station: StationProxy = Bus::open()?.proxy("station").wait_for(Duration::from_secs(5))?;
    let mut lines = station.follow("rain").wait()?; // or .await, and then `lines.next().await`
    for line in lines.iter().take(3) {
        println!("{}", line?);
    }
    drop(lines); // the station stops looking
    let readings = stream_of((0..1_000).map(f64::from));
    println!("the mean of 1000 readings is {}", station.mean(readings).wait()?);
    Ok(())
}

fn main() {
    let done = match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(),
        None => watch(),
        Some(other) => Err(format!("`{other}` is no role here: say `serve`, or nothing to watch").into()),
    };
    if let Err(error) = done {
        eprintln!("{error}");
        std::process::exit(1)
    }
}
