//! Several processes that serve one name, and a caller that spreads its calls over them.
//!
//! `cargo run --example instances -- serve eu` in one terminal, `-- serve us` in another, then `cargo run --example instances`.

use std::collections::BTreeMap;
use std::time::Duration;

use objbus::{Bus, Instance, Proxy};

struct Shop(String);

#[objbus::object]
impl Shop {
    /// Who sells it.
    pub fn buy(&self, item: &str) -> String {
        format!("{item} from {}", self.0)
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let done = match (arguments.next().as_deref(), arguments.next()) {
        (Some("serve"), Some(tag)) => serve(&tag),
        (None, _) => buy(),
        (Some(other), _) => {
            let help = "say `serve` and a tag to publish an instance, or nothing to buy";
            Err(format!("`{other}` is no role here: {help}").into())
        }
    };
    if let Err(error) = done {
        eprintln!("{error}");
        std::process::exit(1)
    }
}

fn serve(tag: &str) -> Result<(), Box<dyn std::error::Error>> {
    let bus = Bus::open()?;
    let published = bus.publish_as("shop", Shop(tag.to_owned()), Instance::new().tag(tag))?;
    println!("published {} in {tag}; Ctrl-C ends it", published.name());
    loop {
        std::thread::park();
    }
}

fn buy() -> Result<(), Box<dyn std::error::Error>> {
    let bus = Bus::open()?;
    let shop: ShopProxy = bus.proxy("shop").wait_for(Duration::from_secs(5))?;
    for (instance, sold) in shop.call_all(|one| one.buy("tea")).wait() {
        println!("process {} sells {}", instance.pid(), sold?);
    }
    let mut sales = BTreeMap::new();
    for _ in 0..100 {
        *sales.entry(shop.buy("tea").wait()?).or_insert(0) += 1;
    }
    println!("of 100: {sales:?}");
    let in_us: ShopProxy = bus.proxy("shop").tag("us").wait()?;
    println!("by tag: {}", in_us.buy("coffee").wait()?);
    Ok(())
}
