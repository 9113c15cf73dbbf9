//! An object made of closures, and the sum of all its parts.
//!
//! `cargo run --example math -- serve` in one terminal, `cargo run --example math` in another.

use std::time::Duration;

use objbus::{Bus, MethodTable, Untyped};

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
    let bus = Bus::open()?;
    let math = MethodTable::named("Math")
        .method("pow", |x: f64, y: f64| x.powf(y))
        .docs("x to the power of y.")
        .argument_names(&["x", "y"])
        .method("hypot", |x: f64, y: f64| x.hypot(y))
        .property("pi", || std::f64::consts::PI);
    let published = bus.publish("math", math)?;
    println!("published {}; Ctrl-C ends it", published.name());
    loop {
        std::thread::park();
    }
}

fn call() -> Result<(), Box<dyn std::error::Error>> {
    let bus = Bus::open()?;
    let math: Untyped = bus.proxy("math").wait_for(Duration::from_secs(5))?;
    println!("2 to the power of 10 is {}", math.call::<_, f64>("pow", &(2.0, 10.0)).wait()?);
    println!("the hypotenuse of 3 and 4 is {}", math.call::<_, f64>("hypot", &(3.0, 4.0)).wait()?);
    println!("pi is {}", math.property::<f64>("pi").wait()?);
    Ok(())
}
