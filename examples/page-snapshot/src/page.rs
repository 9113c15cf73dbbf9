//! One page: a tab of its own in a browser context of its own, which is closed whatever happens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::timeout;
use url::Url;

use crate::browser::{ANSWER_TIMEOUT, Browser};
use crate::cdp::{Answer, CdpError, Event, Events, Session};
use crate::policy::Policy;
use crate::snapshot::{Shot, SnapshotError};

/// The longest side of a picture: the most that Chromium paints in one piece.
pub(crate) const LONGEST_SIDE: u32 = 16_384;
/// Chromium paints four bytes for each.
pub(crate) const MOST_PIXELS: u32 = 64 << 20;

/// An open page.
pub(crate) struct Page {
    /// Closes it.
    _context: Context,
    session: Session,
    events: Events,
    /// The page's own frame, beside which there may be frames in it.
    main_frame: String,
}

/// What was taken of a page: the picture is still in the message that it came in.
pub(crate) struct Taken {
    pub url: String,
    pub title: String,
    pub width: u32,
    pub height: u32,
    /// How long it took until the page was there, and how long to take its picture.
    pub loading: Duration,
    pub painting: Duration,
    picture: Answer,
}

/// A browser context; its pages are closed, and what they stored is forgotten, when this is dropped.
struct Context {
    browser: Arc<Browser>,
    id: String,
    /// The right to have a page open: given back once it is closed.
    room: Option<Arc<OwnedSemaphorePermit>>,
}

/// Which requests stop until [`Watch::paused`] has looked at them: files, and documents when they are asked for and when they come.
fn stops() -> Value {
    json!([
        { "urlPattern": "file:*" },
        { "urlPattern": "*", "resourceType": "Document" },
        { "urlPattern": "*", "resourceType": "Document", "requestStage": "Response" },
    ])
}

impl Page {
    /// Opens a page. A browser that does not answer is killed.
    pub async fn open(browser: Arc<Browser>, room: Arc<OwnedSemaphorePermit>) -> Result<Page, CdpError> {
        let ground = browser.ground.clone();
        // In a task of its own: a call that is dropped meanwhile must not leave a page that nobody knows.
        let opening = ground.spawn(async move {
            match timeout(ANSWER_TIMEOUT, Page::make(&browser, room)).await {
                Ok(page) => page,
                Err(_) => {
                    browser.kill().await;
                    Err(CdpError::Closed)
                }
            }
        });
        opening.await.unwrap_or(Err(CdpError::Closed))
    }

    async fn make(browser: &Arc<Browser>, room: Arc<OwnedSemaphorePermit>) -> Result<Page, CdpError> {
        let context: Created =
            browser.session.ask("Target.createBrowserContext", json!({})).await?.result()?;
        let id = context.browser_context_id;
        let context = Context { browser: Arc::clone(browser), id: id.clone(), room: Some(room) };
        browser
            .session
            .run("Browser.setDownloadBehavior", json!({ "behavior": "deny", "browserContextId": id }))
            .await?;
        let blank = json!({ "url": "about:blank", "browserContextId": id });
        let target: Target = browser.session.ask("Target.createTarget", blank).await?.result()?;
        let attach = json!({ "targetId": target.target_id, "flatten": true });
        let attached: Attached = browser.session.ask("Target.attachToTarget", attach).await?.result()?;
        let (session, events) = browser.session.attached(attached.session_id);
        // A page's own frame has its target's name.
        Ok(Page { _context: context, session, events, main_frame: target.target_id })
    }

    /// Goes to `url` and takes its picture.
    pub async fn take(mut self, url: &Url, shot: &Shot, policy: &Policy) -> Result<Taken, SnapshotError> {
        let loaded = Notify::new();
        let watch = Watch { session: &self.session, main_frame: &self.main_frame, policy, loaded: &loaded };
        tokio::select! {
            biased; // What goes wrong says more than the command that fails by it.
            error = watch.run(&mut self.events) => Err(error),
            taken = shoot(&self.session, url, shot, &loaded) => taken,
        }
    }
}

/// Goes to `url`, waits until it is `loaded`, and takes its picture.
async fn shoot(session: &Session, url: &Url, shot: &Shot, loaded: &Notify) -> Result<Taken, SnapshotError> {
    let began = Instant::now();
    let screen =
        json!({ "width": shot.width, "height": shot.height, "deviceScaleFactor": 1, "mobile": false });
    session.run("Emulation.setDeviceMetricsOverride", screen).await?;
    session.run("Page.enable", json!({})).await?;
    session.run("Fetch.enable", json!({ "patterns": stops() })).await?;
    let navigated: Navigated =
        session.ask("Page.navigate", json!({ "url": url.as_str() })).await?.result()?;
    if let Some(reason) = navigated.error_text {
        return Err(SnapshotError::PageFailed { reason });
    }
    loaded.notified().await;
    let loading = began.elapsed();

    let (width, height) = match shot.full_page {
        true => whole(session, shot).await?,
        false => (shot.width, shot.height),
    };
    let capture = json!({
        "format": "jpeg",
        "quality": shot.quality,
        "captureBeyondViewport": true,
        "clip": { "x": 0, "y": 0, "width": width, "height": height, "scale": 1 },
    });
    let picture = session.ask("Page.captureScreenshot", capture).await?;
    let history: History = session.ask("Page.getNavigationHistory", json!({})).await?.result()?;
    // All that the browser was asked for: what is not in these two and the decoding is the bus's.
    let painting = began.elapsed() - loading;
    let Entry { url, title } = history.entries.into_iter().nth(history.current_index).unwrap_or_default();
    Ok(Taken { url, title, width, height, loading, painting, picture })
}

/// The size of the whole page, at least the window's and at most what can be painted.
async fn whole(session: &Session, shot: &Shot) -> Result<(u32, u32), SnapshotError> {
    let metrics: Metrics = session.ask("Page.getLayoutMetrics", json!({})).await?.result()?;
    let content = metrics.css_content_size;
    // A float becomes the nearest integer that there is.
    let width = (content.width.ceil() as u32).clamp(shot.width, LONGEST_SIDE);
    let height = (content.height.ceil() as u32).clamp(shot.height, LONGEST_SIDE);
    Ok((width, height.min(MOST_PIXELS / width)))
}

impl Taken {
    /// The picture, a JPEG file in base64.
    pub fn picture(&self) -> Result<&str, SnapshotError> {
        #[derive(Deserialize)]
        struct Picture<'a> {
            data: &'a str,
        }
        let picture: Picture<'_> = self.picture.result()?;
        Ok(picture.data)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let (browser, room) = (Arc::clone(&self.browser), self.room.take());
        let context = json!({ "browserContextId": self.id });
        self.browser.ground.spawn(async move {
            let closed = browser.session.run("Target.disposeBrowserContext", context);
            match timeout(ANSWER_TIMEOUT, closed).await {
                Ok(Ok(()) | Err(CdpError::Closed)) => {}
                Ok(Err(error)) => tracing::warn!(?error, "a page could not be closed"),
                Err(_) => browser.kill().await,
            }
            drop(room);
        });
    }
}

/// Looks at what a page does while its picture is taken.
struct Watch<'a> {
    session: &'a Session,
    main_frame: &'a str,
    policy: &'a Policy,
    /// Told when the page is there.
    loaded: &'a Notify,
}

impl Watch<'_> {
    /// Ends with what goes wrong, if anything does.
    async fn run(&self, events: &mut Events) -> SnapshotError {
        while let Some(event) = events.recv().await {
            match event.method.as_str() {
                "Fetch.requestPaused" => {
                    if let Err(error) = self.paused(&event) {
                        return error;
                    }
                }
                "Page.loadEventFired" => self.loaded.notify_one(),
                // A question to a user who is not there would hold the page up.
                "Page.javascriptDialogOpening" => {
                    self.session.tell("Page.handleJavaScriptDialog", json!({ "accept": true }));
                }
                "Inspector.targetCrashed" => {
                    return SnapshotError::PageFailed { reason: "the page crashed".to_owned() };
                }
                _ => {}
            }
        }
        SnapshotError::BrowserDied
    }

    /// Lets a request go on, or not. An error is the end of the page: its own document may not be loaded, or is an error's.
    fn paused(&self, event: &Event) -> Result<(), SnapshotError> {
        let Some(paused) = event.params::<Paused>() else { return Ok(()) };
        let is_document = paused.resource_type == "Document";
        let is_page = is_document && paused.frame_id == self.main_frame;
        if let (true, Some(status @ 400..)) = (is_page, paused.response_status_code) {
            return Err(SnapshotError::PageFailed { reason: format!("its server answered {status}") });
        }
        match self.allows(&paused.request.url, is_page) {
            Ok(()) => {
                self.session.tell("Fetch.continueRequest", json!({ "requestId": paused.request_id }));
            }
            Err(error) if is_page => return Err(error),
            Err(_) => {
                let failed = json!({ "requestId": paused.request_id, "errorReason": "AccessDenied" });
                self.session.tell("Fetch.failRequest", failed);
            }
        }
        Ok(())
    }

    fn allows(&self, url: &str, is_page: bool) -> Result<(), SnapshotError> {
        let url = Url::parse(url)
            .map_err(|error| SnapshotError::PageFailed { reason: format!("it leads to `{url}`: {error}") })?;
        match url.scheme() {
            // A frame may have what the page itself has made.
            "about" | "blob" | "data" if !is_page => Ok(()),
            _ => self.policy.check(&url),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    browser_context_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    target_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attached {
    session_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Navigated {
    error_text: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metrics {
    css_content_size: Size,
}

#[derive(Deserialize)]
struct Size {
    width: f64,
    height: f64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct History {
    current_index: usize,
    entries: Vec<Entry>,
}

#[derive(Default, Deserialize)]
struct Entry {
    url: String,
    title: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Paused {
    request_id: String,
    frame_id: String,
    resource_type: String,
    request: Request,
    response_status_code: Option<u16>,
}

#[derive(Deserialize)]
struct Request {
    url: String,
}
