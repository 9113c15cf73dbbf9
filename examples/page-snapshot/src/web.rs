//! Pictures of pages over HTTP: `GET /?url=…` gives `image/jpeg`.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use objbus::CallError;
use objbus_app::{Logger, Service, ServiceContext, ServiceError};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::snapshot::{PageSnapshotProxy, Shot, Snapshot, SnapshotError};

/// How much longer than the picture may take its call waits, so that what went wrong is told by who knows.
const MARGIN: Duration = Duration::from_millis(500);

/// How the web server is set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebConfig {
    /// Where it listens.
    pub address: IpAddr,
    /// Where it listens.
    pub port: u16,
    /// How long a picture may take, in milliseconds.
    pub timeout_ms: u32,
}

impl Default for WebConfig {
    /// Port 5511 for this machine only, ten seconds.
    fn default() -> WebConfig {
        WebConfig { address: Ipv4Addr::LOCALHOST.into(), port: 5511, timeout_ms: 10_000 }
    }
}

/// Serves pictures of pages over HTTP, from the object `pageSnapshot`.
pub struct Web {
    ctx: ServiceContext<WebConfig>,
}

impl Service for Web {
    type Config = WebConfig;

    async fn new(ctx: ServiceContext<WebConfig>) -> Result<Web, ServiceError> {
        Ok(Web { ctx })
    }

    async fn start(&self) -> Result<(), ServiceError> {
        let config = self.ctx.config();
        let pictures = Pictures {
            snapshots: self.ctx.proxy("pageSnapshot").await?,
            timeout: Duration::from_millis(config.timeout_ms.into()),
            log: self.ctx.logger().clone(),
        };
        let listener = TcpListener::from_std(self.ctx.listen((config.address, config.port)).await?)?;
        let addr = listener.local_addr()?;
        let router = Router::new().route("/", get(picture)).with_state(pictures);
        // Requests that have been taken are answered before the service has stopped.
        let server = axum::serve(listener, router).with_graceful_shutdown(self.ctx.stopping());
        let log = self.ctx.logger().clone();
        self.ctx.spawn(async move {
            if let Err(error) = server.await {
                log.error(format_args!("the web server has ended: {error}"));
            }
        });
        self.ctx.logger().info(format_args!("listening at http://{addr}/?url="));
        Ok(())
    }
}

#[derive(Clone)]
struct Pictures {
    snapshots: PageSnapshotProxy,
    timeout: Duration,
    log: Logger,
}

/// A request's query: what is not said is [`Shot`]'s default.
#[derive(Deserialize)]
struct Wanted {
    url: Option<String>,
    width: Option<u32>,
    height: Option<u32>,
    full_page: Option<bool>,
    quality: Option<u8>,
}

async fn picture(State(pictures): State<Pictures>, Query(wanted): Query<Wanted>) -> Response {
    let Some(url) = wanted.url else {
        return refusal(StatusCode::BAD_REQUEST, "say which page: /?url=https://example.org");
    };
    let standard = Shot::default();
    let shot = Shot {
        width: wanted.width.unwrap_or(standard.width),
        height: wanted.height.unwrap_or(standard.height),
        full_page: wanted.full_page.unwrap_or(standard.full_page),
        quality: wanted.quality.unwrap_or(standard.quality),
        timeout: pictures.timeout,
    };
    let asked = Instant::now();
    let taken = pictures.snapshots.take(&url, shot).timeout(pictures.timeout + MARGIN).await;
    match taken {
        Ok(snapshot) => shown(snapshot, asked.elapsed()),
        Err(error) => {
            let status = status(&error);
            if status.is_server_error() {
                pictures.log.warn(format_args!("{} for {url}: {error}", status.as_u16()));
            }
            refusal(status, &error.to_string())
        }
    }
}

/// The picture, from the memory that it was lent in, and what took how long.
fn shown(snapshot: Snapshot, total: Duration) -> Response {
    let times = snapshot.times;
    let entries = [
        ("wait", times.waiting),
        ("load", times.loading),
        ("paint", times.painting),
        ("decode", times.decoding),
        ("total", total),
    ];
    let timing = entries.map(|(name, time)| format!("{name};dur={:.3}", time.as_secs_f64() * 1e3)).join(", ");
    let headers = [
        (header::CONTENT_TYPE, "image/jpeg".to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (HeaderName::from_static("server-timing"), timing),
    ];
    (headers, snapshot.jpeg.into_bytes()).into_response()
}

fn status(error: &CallError<SnapshotError>) -> StatusCode {
    match error {
        CallError::App(SnapshotError::BadRequest { .. }) => StatusCode::BAD_REQUEST,
        CallError::App(SnapshotError::NotAllowed { .. }) => StatusCode::FORBIDDEN,
        CallError::App(SnapshotError::PageFailed { .. }) => StatusCode::BAD_GATEWAY,
        CallError::App(SnapshotError::TimedOut { .. }) | CallError::DeadlineExceeded { .. } => {
            StatusCode::GATEWAY_TIMEOUT
        }
        // The browser, the bus or another user's pages are in the way: it may be over the next time.
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// A sentence instead of a picture.
fn refusal(status: StatusCode, sentence: &str) -> Response {
    (status, format!("{sentence}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use objbus::Executed;

    use super::*;

    #[test]
    fn each_error_has_its_status() {
        let text = String::new;
        let time = Duration::ZERO;
        for (error, expected) in [
            (CallError::App(SnapshotError::BadRequest { reason: text() }), 400),
            (CallError::App(SnapshotError::NotAllowed { what: text() }), 403),
            (CallError::App(SnapshotError::PageFailed { reason: text() }), 502),
            (CallError::App(SnapshotError::TimedOut { after: time }), 504),
            (CallError::App(SnapshotError::Overloaded { waited: time }), 503),
            (CallError::App(SnapshotError::BrowserDied), 503),
            (CallError::App(SnapshotError::NoBrowser { reason: text() }), 503),
            (CallError::App(SnapshotError::NoMemory { reason: text() }), 503),
            (CallError::DeadlineExceeded { executed: Executed::Unknown }, 504),
            (CallError::OwnerDied { executed: Executed::Unknown }, 503),
            (CallError::Overloaded { executed: Executed::No }, 503),
        ] {
            assert_eq!(status(&error), expected, "{error}");
        }
    }
}
