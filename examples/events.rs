//! A player tells what it plays, and lets others watch its volume; a listener hears of both without asking again and again.
//! `cargo run --example events -- serve` in one terminal, `cargo run --example events` in another.

use objbus::{Bus, EmitError, Event, Gap, Lag, Watched};

#[derive(Default)]
struct Player {
    played: Event<String>,
    volume: Watched<u8>,
}

#[objbus::object]
impl Player {
    pub fn played(&self) -> &Event<String> {
        &self.played
    }

    pub fn volume(&self) -> &Watched<u8> {
        &self.volume
    }

    pub fn play(&self, title: String, volume: u8) -> Result<(), EmitError> {
        self.volume.set(volume)?;
        self.played.emit(&title) // encoded once, whatever the number of listeners
    }
}

fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let published = Bus::open()?.publish("player", Player::default())?;
    println!("published {}; Ctrl-C ends it", published.name());
    std::iter::repeat_with(std::thread::park).for_each(drop);
    Ok(())
}

fn listen() -> Result<(), Box<dyn std::error::Error>> {
    let player: PlayerProxy = Bus::open()?.proxy("player").wait_for(std::time::Duration::from_secs(5))?;
    let mut played = player.played().lag(Lag::DropOldest { keep: 10 }).wait()?;
    player.play("Blackbird".to_owned(), 40).wait()?;
    match played.iter().next() {
        Some(Ok(title)) => println!("played {title}"),
        Some(Err(Gap::Missed(songs))) => println!("missed {songs}"),
        other => println!("{other:?}"), // the player was restarted, say
    }
    let mut volumes = player.volume().subscribe().wait()?;
    println!("the volume is {:?}", volumes.iter().next());
    Ok(())
}

fn main() {
    let done = match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(),
        None => listen(),
        Some(other) => Err(format!("`{other}` is no role here: `serve` plays, nothing listens").into()),
    };
    done.unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(1)
    })
}
