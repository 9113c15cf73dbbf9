//! Crates that demand docs of all that is public: what the macros make has some, whatever the user's own items have.
#![deny(missing_docs)]

use objbus::{BusError, Type};
use serde::{Deserialize, Serialize};

mod private {
    /// Documented but for its methods, which no one outside can see.
    pub(crate) struct Clock;
}
use private::Clock;

#[objbus::object]
impl Clock {
    pub fn ticks(&self) -> u64 {
        0
    }

    pub async fn r#type(&self, of: &str) -> String {
        of.to_owned()
    }

    /// Documented.
    pub fn documented(&self) {}

    #[doc(hidden)]
    pub fn hidden(&self) {}
}

/// Documented.
#[derive(Serialize, Deserialize, Type)]
pub struct Lost;

impl From<BusError> for Lost {
    fn from(_: BusError) -> Lost {
        Lost
    }
}

/// Documented.
#[objbus::interface]
pub trait Api {
    /// Documented.
    fn work(&self) -> Result<u32, Lost>;
}

fn main() {
    let _ = (ClockProxy::ticks, ClockProxy::r#type, ClockProxy::documented, ClockProxy::hidden);
}
