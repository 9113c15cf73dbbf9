//! A camera lends its frames, a viewer reads them where they lie: no byte is copied, and there are never more than four.
//! `cargo run --example frames -- serve` in one terminal, `cargo run --example frames` in another.

use std::time::{Duration, Instant};

use objbus::{AllocError, Blob, Bus};

const FRAME: usize = 1280 * 720 * 4;
/// Each of these is lent, being filled, or free: the camera may have no other memory.
const POOL: usize = 4;

struct Camera(Bus);

#[objbus::object]
impl Camera {
    /// The next frame. With all of them lent it waits until a viewer drops one, or dies.
    pub fn shoot(&self, number: u8) -> Result<Blob, AllocError> {
        let mut frame = self.0.alloc_wait(FRAME, Duration::from_secs(1))?;
        frame.fill(number); // here the light falls in
        Ok(frame.freeze())
    }
}

fn serve() -> Result<(), Box<dyn std::error::Error>> {
    // Sizes are rounded up, by an eighth at most.
    let bus = Bus::builder().memory((POOL * FRAME * 9 / 8) as u64).open()?;
    let published = bus.publish("camera", Camera(bus.clone()))?;
    println!("published {}; Ctrl-C ends it", published.name());
    std::iter::repeat_with(std::thread::park).for_each(drop);
    Ok(())
}

fn view() -> Result<(), Box<dyn std::error::Error>> {
    let camera: CameraProxy = Bus::open()?.proxy("camera").wait_for(Duration::from_secs(5))?;
    let began = Instant::now();
    for number in 1..=100 {
        let frame = camera.shoot(number).wait()?;
        assert!(frame.iter().step_by(4096).all(|&byte| byte == number));
    } // dropped, and filled again
    println!("100 frames of 1280x720, {:.1?} each", began.elapsed() / 100);
    let held: Vec<Blob> = (0..POOL).map(|_| camera.shoot(0).wait()).collect::<Result<_, _>>()?;
    println!("with {} frames held: {}", held.len(), camera.shoot(0).wait().unwrap_err());
    drop(held);
    println!("with none held: a frame of {} bytes", camera.shoot(0).wait()?.len());
    Ok(())
}

fn main() {
    let done = match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(),
        None => view(),
        Some(other) => {
            Err(format!("`{other}` is no role here: say `serve` to lend, or nothing to look").into())
        }
    };
    if let Err(error) = done {
        eprintln!("{error}");
        std::process::exit(1)
    }
}
