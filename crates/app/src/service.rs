//! What a service is to its author, and what it is to the process that runs it.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;

use objbus::{Bus, Object, Publication};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::Settings;
use crate::context::{Scope, ServiceContext};

/// Why a service could not be made, started or stopped: anything that `?` takes. What is told of it has its whole chain of sources.
pub type ServiceError = Box<dyn Error + Send + Sync>;

/// A part of an application: made, started and stopped when it is its turn.
///
/// Methods are written as plain `async fn`s.
///
/// ```
/// use objbus_app::{Service, ServiceContext, ServiceError};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct GreeterConfig {
///     greeting: String,
/// }
///
/// impl Default for GreeterConfig {
///     fn default() -> Self {
///         GreeterConfig { greeting: "Hello".into() }
///     }
/// }
///
/// struct Greeter {
///     ctx: ServiceContext<GreeterConfig>,
/// }
///
/// impl Service for Greeter {
///     type Config = GreeterConfig;
///
///     async fn new(ctx: ServiceContext<GreeterConfig>) -> Result<Self, ServiceError> {
///         Ok(Greeter { ctx })
///     }
/// }
///
/// impl Greeter {
///     fn greet(&self, name: &str) -> String {
///         format!("{}, {name}", self.ctx.config().greeting)
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), ServiceError> {
/// // In a unit test no application is needed:
/// let greeter = Greeter::new(ServiceContext::detached(GreeterConfig::default())).await?;
/// assert_eq!(greeter.greet("Ada"), "Hello, Ada");
/// # Ok(()) }
/// ```
pub trait Service: Send + Sync + Sized + 'static {
    /// What can be configured: in the code, in the file, in the environment. `()` if nothing can.
    type Config: Serialize + DeserializeOwned + Default + Send + Sync + 'static;

    /// Makes the service. All that it depends on has started by then.
    fn new(ctx: ServiceContext<Self::Config>) -> impl Future<Output = Result<Self, ServiceError>> + Send;

    /// Brings it to work; it counts as started, and is published if it is to be, when this has ended.
    fn start(&self) -> impl Future<Output = Result<(), ServiceError>> + Send {
        async { Ok(()) }
    }

    /// Ends its work. Its name is withdrawn by then and its calls have ended, and everything that depends on it has stopped.
    fn stop(&self) -> impl Future<Output = Result<(), ServiceError>> + Send {
        async { Ok(()) }
    }
}

/// What an error says, and what its sources do that it does not say itself.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.ends_with(&more) {
            text += &format!(": {more}");
        }
        source = cause.source();
    }
    text
}

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A declared service of any type.
pub(crate) trait AnyService: Send + Sync {
    /// What is wrong with its configuration.
    fn check(&self, name: &str, settings: &Settings) -> Vec<String>;

    /// Makes and starts it.
    fn start<'a>(
        &'a self,
        scope: Arc<Scope>,
        settings: &'a Settings,
    ) -> BoxFuture<'a, Result<Box<dyn AnyStarted>, ServiceError>>;
}

/// A started service of any type.
pub(crate) trait AnyStarted: Send + Sync {
    /// What is published of it under its name, if it is to be.
    fn publication(&self, bus: &Bus, name: &str) -> Option<Publication>;

    fn stop(&self) -> BoxFuture<'_, Result<(), ServiceError>>;
}

/// How a service is published.
pub(crate) type Publisher<S> = Arc<dyn Fn(&Bus, &str, Arc<S>) -> Publication + Send + Sync>;

/// As [`AnyService`]: a type with what was declared of it.
pub(crate) struct Declared<S: Service> {
    pub config: Arc<S::Config>,
    pub publisher: Option<Publisher<S>>,
}

/// As [`AnyStarted`].
struct Started<S> {
    service: Arc<S>,
    publisher: Option<Publisher<S>>,
}

impl<S: Service> Declared<S> {
    fn config(&self, name: &str, settings: &Settings) -> Result<Arc<S::Config>, Vec<String>> {
        let overridden = settings.of_service(name, &*self.config)?;
        Ok(overridden.map_or_else(|| Arc::clone(&self.config), Arc::new))
    }
}

impl<S: Service> AnyService for Declared<S> {
    fn check(&self, name: &str, settings: &Settings) -> Vec<String> {
        self.config(name, settings).err().unwrap_or_default()
    }

    fn start<'a>(
        &'a self,
        scope: Arc<Scope>,
        settings: &'a Settings,
    ) -> BoxFuture<'a, Result<Box<dyn AnyStarted>, ServiceError>> {
        Box::pin(async move {
            let config = self.config(scope.name(), settings).map_err(|errors| errors.join("; "))?;
            let service = S::new(ServiceContext::new(scope, config)).await?;
            service.start().await?;
            let started = Started { service: Arc::new(service), publisher: self.publisher.clone() };
            Ok(Box::new(started) as Box<dyn AnyStarted>)
        })
    }
}

impl<S: Service> AnyStarted for Started<S> {
    fn publication(&self, bus: &Bus, name: &str) -> Option<Publication> {
        let publisher = self.publisher.as_ref()?;
        Some(publisher(bus, name, Arc::clone(&self.service)))
    }

    fn stop(&self) -> BoxFuture<'_, Result<(), ServiceError>> {
        Box::pin(self.service.stop())
    }
}

/// Publishes the service itself: an object's table holds on to an `Arc` of it.
pub(crate) fn publisher<S: Service + Object>(
    rules: impl Fn(Publication) -> Publication + Send + Sync + 'static,
) -> Publisher<S> {
    Arc::new(move |bus, name, service| rules(bus.publication(name, service.table())))
}

#[cfg(test)]
mod tests {
    use std::{fmt, io};

    use super::*;

    #[derive(Debug)]
    struct Opening(io::Error);

    impl fmt::Display for Opening {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("opening the store")
        }
    }

    impl Error for Opening {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn an_error_is_told_with_its_sources_each_once() {
        assert_eq!(chain(&Opening(io::Error::other("disk on fire"))), "opening the store: disk on fire");
        let told = io::Error::other("told already");
        #[derive(Debug)]
        struct Wordy(io::Error);
        impl fmt::Display for Wordy {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "opening: {}", self.0)
            }
        }
        impl Error for Wordy {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        assert_eq!(chain(&Wordy(told)), "opening: told already");
    }
}
