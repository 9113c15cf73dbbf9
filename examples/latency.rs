//! What a hot call costs here, beside an echo over a Unix socket between the same two processes.
//!
//! `cargo run --release --example latency`. It starts its other side itself, with the socket as that one's standard input.

use std::io::{Read, Write, stdin};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use objbus::{Bus, MethodTable, Untyped};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
const ROUNDS: usize = 101;
const CALLS: u32 = 500;

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(UnixStream::from(stdin().as_fd().try_clone_to_owned()?)),
        None => measure(),
        Some(other) => Err(format!("`{other}` is no role here: the other side is started by itself").into()),
    }
}

fn serve(mut socket: UnixStream) -> Result<()> {
    let echo = MethodTable::named("Echo").method("echo", |number: u64| number);
    let _published = Bus::open()?.publish("latency", echo)?;
    let mut number = [0; 8];
    while socket.read_exact(&mut number).is_ok() {
        socket.write_all(&number)?;
    }
    Ok(())
}

/// Both in each round, since the machine may be another a second later. Told is the round with the median ratio.
fn measure() -> Result<()> {
    let (mut socket, theirs) = UnixStream::pair()?;
    let mut other = Command::new("/proc/self/exe").arg("serve").stdin(OwnedFd::from(theirs)).spawn()?;
    let echo: Untyped = Bus::open()?.proxy("latency").wait_for(Duration::from_secs(5))?;
    let mut rounds = [(0.0, 0.0, 0.0); ROUNDS];
    for round in &mut rounds {
        let call = time(|| Ok(echo.call::<_, u64>("echo", &(7_u64,)).wait().map(drop)?))?;
        let mut exchange =
            |number: &mut [u8; 8]| socket.write_all(number).and_then(|()| socket.read_exact(number));
        let message = time(|| Ok(exchange(&mut [7; 8])?))?;
        *round = (message / call, call, message);
    }
    rounds.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (ratio, call, message) = rounds[ROUNDS / 2];
    println!("a call {call:.0} ns, a socket echo {message:.0} ns: {ratio:.1} calls to one echo");
    drop(socket); // ends the other side
    Ok(other.wait().map(drop)?)
}

/// Nanoseconds of one run of `work`, of many.
fn time(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    (0..CALLS).try_for_each(|_| work())?;
    Ok(began.elapsed().as_nanos() as f64 / f64::from(CALLS))
}
