//! A trait as an interface: the same code takes a local object or a proxy.

use std::sync::Arc;

use objbus::{BusError, Object, RemoteError, Type};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, Type)]
pub enum PrintError {
    NoPaper,
    Bus,
}

impl From<BusError> for PrintError {
    fn from(_: BusError) -> Self {
        PrintError::Bus
    }
}

/// A printer.
#[objbus::interface]
pub trait Printer: Send + Sync {
    /// Prints and tells the number of pages.
    fn print(&self, text: &str, copies: u32) -> Result<u32, PrintError>;

    /// The paper's name.
    #[objbus(property)]
    fn paper(&self) -> Result<String, PrintError> {
        Ok("A4".to_owned())
    }

    async fn scan(&self, area: (u32, u32)) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>>;

    /// Whose only errors are the bus's.
    fn ink(&self) -> Result<u32, BusError> {
        Ok(100)
    }
}

/// A name that generated code might have used itself.
#[objbus::interface]
trait T {
    fn get(&self) -> Result<u32, PrintError>;
}

struct Desk;

impl Printer for Desk {
    fn print(&self, text: &str, copies: u32) -> Result<u32, PrintError> {
        if text.is_empty() { Err(PrintError::NoPaper) } else { Ok(copies) }
    }

    async fn scan(&self, area: (u32, u32)) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(vec![0; (area.0 * area.1) as usize])
    }
}

impl T for Desk {
    fn get(&self) -> Result<u32, PrintError> {
        Ok(1)
    }
}

fn work(printer: &impl Printer) -> Result<u32, PrintError> {
    printer.print("text", 2)
}

#[allow(dead_code)]
fn with_a_proxy(printer: PrinterProxy) {
    fn is_send<T: Send>(_: T) {}
    is_send(printer.scan((1, 2)));
    let _ = work(&printer);
    let _: Option<RemoteError> = None;
}

fn main() {
    work(&Desk).unwrap();
    let _ = Object::table(Arc::new(PrinterObject(Desk)));
    let _ = Object::table(Arc::new(TObject(Desk)));
}
