//! Two processes: `background` publishes a service, `worker` calls it. `cargo run -p objbus-app --example hello`; Ctrl-C ends it.

use std::process::ExitCode;

use objbus_app::{App, Service, ServiceContext, ServiceError};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct GreeterConfig {
    greeting: String,
}

impl Default for GreeterConfig {
    fn default() -> Self {
        GreeterConfig { greeting: "Hello".into() }
    }
}

struct Greeter(ServiceContext<GreeterConfig>);

#[objbus::object]
impl Greeter {
    /// Greets somebody; `HELLO_GREETER__GREETING=Moin` in the environment says how.
    pub async fn greet(&self, name: String) -> String {
        format!("{}, {name}! This is process {}.", self.0.config().greeting, std::process::id())
    }
}

impl Service for Greeter {
    type Config = GreeterConfig;

    async fn new(ctx: ServiceContext<GreeterConfig>) -> Result<Self, ServiceError> {
        Ok(Greeter(ctx))
    }
}

struct Visitor(ServiceContext<()>);

impl Service for Visitor {
    type Config = ();

    async fn new(ctx: ServiceContext<()>) -> Result<Self, ServiceError> {
        Ok(Visitor(ctx))
    }

    async fn start(&self) -> Result<(), ServiceError> {
        let greeter: GreeterProxy = self.0.proxy("greeter").await?;
        let greeting = greeter.greet(format!("process {}", std::process::id())).await?;
        self.0.logger().info(greeting);
        Ok(())
    }
}

fn main() -> ExitCode {
    App::new("hello")
        .process("worker", |p| p.scale(1))
        .service::<Greeter>("greeter", |s| s.process("background").publish())
        .service::<Visitor>("visitor", |s| s.process("worker").depends_on("greeter"))
        .run()
}
