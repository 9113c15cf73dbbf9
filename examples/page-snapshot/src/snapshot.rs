//! The object that takes pictures of pages, and what it takes and gives.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use objbus::{AllocError, Blob, BlobMut, Bus, CallContext};
use objbus_app::{Service, ServiceContext, ServiceError};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{timeout, timeout_at};
use url::Url;

use crate::browser::{Chromium, Launch};
use crate::cdp::CdpError;
use crate::page::{LONGEST_SIDE, MOST_PIXELS, Page, Taken};
use crate::policy::{Allowed, Policy};

/// Takes pictures of pages, with one Chromium.
pub struct PageSnapshot {
    chromium: Chromium,
    policy: Policy,
    /// A permit for each page that may be open.
    room: Arc<Semaphore>,
    bus: Bus,
}

/// How [`PageSnapshot`] is set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SnapshotConfig {
    /// The browser's program.
    pub chromium: PathBuf,
    /// Further flags for it, `--proxy-server=...` for example.
    pub flags: Vec<String>,
    /// Which pages may be looked at.
    pub allowed: Allowed,
    /// How many pages may be open at a time; further calls wait.
    pub pages: NonZeroU32,
    /// Where Chromium's profile is made, for each run a new one; by default in the directory for temporary files.
    pub directory: Option<PathBuf>,
}

/// What picture is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, objbus::Type)]
pub struct Shot {
    /// Of the window, in pixels.
    pub width: u32,
    /// Of the window, in pixels.
    pub height: u32,
    /// All of the page, be it larger than the window; up to 16,384 pixels a side and 64 Mi in all.
    pub full_page: bool,
    /// Of the JPEG, 1 to 100.
    pub quality: u8,
    /// How long it may take, waiting for other pages included. The call itself should be given a little more.
    pub timeout: Duration,
}

/// A picture of a page.
#[derive(Clone, Debug, Serialize, Deserialize, objbus::Type)]
pub struct Snapshot {
    /// The picture, a JPEG file.
    pub jpeg: Blob,
    /// Of the picture, in pixels.
    pub width: u32,
    /// Of the picture, in pixels.
    pub height: u32,
    /// The page's title.
    pub title: String,
    /// Where the page was found, after all redirects.
    pub url: String,
    /// What took how long.
    pub times: Times,
}

/// What took how long, of taking a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, objbus::Type)]
pub struct Times {
    /// Waiting for the browser to have room, and for a page to be open.
    pub waiting: Duration,
    /// Until the browser had loaded the page.
    pub loading: Duration,
    /// Until the browser had painted it and made a JPEG of it.
    pub painting: Duration,
    /// Decoding that into the blob.
    pub decoding: Duration,
}

/// Why there is no picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, objbus::Type)]
pub enum SnapshotError {
    /// The request makes no sense.
    BadRequest {
        /// What is wrong with it.
        reason: String,
    },
    /// The page, or one that it redirects to, may not be looked at.
    NotAllowed {
        /// What of it may not.
        what: String,
    },
    /// The page cannot be loaded or painted.
    PageFailed {
        /// What its server, or the browser, says.
        reason: String,
    },
    /// The page took longer than it might.
    TimedOut {
        /// As long as this.
        after: Duration,
    },
    /// As many pages as may be were open all the time.
    Overloaded {
        /// As long as this.
        waited: Duration,
    },
    /// The browser died meanwhile; the next call starts a new one.
    BrowserDied,
    /// The browser cannot be started.
    NoBrowser {
        /// Why not.
        reason: String,
    },
    /// There is no memory for the picture.
    NoMemory {
        /// Why not.
        reason: String,
    },
}

impl Default for SnapshotConfig {
    /// Debian's Chromium, four pages at a time.
    fn default() -> SnapshotConfig {
        SnapshotConfig {
            chromium: "/usr/bin/chromium".into(),
            flags: Vec::new(),
            allowed: Allowed::default(),
            pages: NonZeroU32::new(4).expect("four is not zero"),
            directory: None,
        }
    }
}

impl Default for Shot {
    /// A window of 1280x800, within ten seconds.
    fn default() -> Shot {
        Shot { width: 1280, height: 800, full_page: false, quality: 80, timeout: Duration::from_secs(10) }
    }
}

#[objbus::object]
impl PageSnapshot {
    /// Loads the page at `url` in a window of its own and takes its picture.
    pub async fn take(&self, url: &str, shot: Shot) -> Result<Snapshot, SnapshotError> {
        shot.check()?;
        let url = self.policy.admit(url)?;
        let caller = CallContext::current();
        let began = Instant::now();
        let deadline = began + shot.timeout;
        let waiting = timeout(shot.timeout, Arc::clone(&self.room).acquire_owned()).await;
        let overloaded = |_| SnapshotError::Overloaded { waited: shot.timeout };
        let room = waiting.map_err(overloaded)?.expect("nobody closes the semaphore");
        let (waited, taken) = timeout_at(deadline.into(), self.load(&url, &shot, room, began))
            .await
            .unwrap_or(Err(SnapshotError::TimedOut { after: shot.timeout }))?;
        let decoding = Instant::now();
        let jpeg = decoded(taken.picture()?, |len| match &caller {
            Some(caller) => caller.alloc(len),
            None => self.bus.alloc(len),
        })?;
        let Taken { url, title, width, height, loading, painting, .. } = taken;
        let times = Times { waiting: waited, loading, painting, decoding: decoding.elapsed() };
        Ok(Snapshot { jpeg, width, height, title, url, times })
    }
}

impl Service for PageSnapshot {
    type Config = SnapshotConfig;

    async fn new(ctx: ServiceContext<SnapshotConfig>) -> Result<PageSnapshot, ServiceError> {
        let config = ctx.config();
        let policy = Policy::new(&config.allowed)?;
        let launch = Launch {
            program: config.chromium.clone(),
            flags: config.flags.clone(),
            resolver_rules: policy.resolver_rules(),
            place: config.directory.clone().unwrap_or_else(std::env::temp_dir),
        };
        let pages = config.pages.get() as usize;
        Ok(PageSnapshot {
            chromium: Chromium::new(launch),
            policy,
            room: Arc::new(Semaphore::new(pages)),
            bus: ctx.bus().clone(),
        })
    }

    /// The browser would start with the first call, too; but that it cannot start is better said now.
    async fn start(&self) -> Result<(), ServiceError> {
        self.chromium.get().await?;
        Ok(())
    }

    async fn stop(&self) -> Result<(), ServiceError> {
        self.chromium.stop().await;
        Ok(())
    }
}

impl PageSnapshot {
    /// Opens a page and takes what is wanted of it; also how long it took since `began` until the page was open.
    async fn load(
        &self,
        url: &Url,
        shot: &Shot,
        room: OwnedSemaphorePermit,
        began: Instant,
    ) -> Result<(Duration, Taken), SnapshotError> {
        let room = Arc::new(room);
        let page = match self.open(Arc::clone(&room)).await {
            // It has died before the call, and this is how one learns of it.
            Err(SnapshotError::BrowserDied) => self.open(room).await?,
            page => page?,
        };
        let waited = began.elapsed();
        Ok((waited, page.take(url, shot, &self.policy).await?))
    }

    async fn open(&self, room: Arc<OwnedSemaphorePermit>) -> Result<Page, SnapshotError> {
        Ok(Page::open(self.chromium.get().await?, room).await?)
    }
}

impl Shot {
    fn check(&self) -> Result<(), SnapshotError> {
        let sides = 1..=LONGEST_SIDE;
        let is_paintable = sides.contains(&self.width)
            && sides.contains(&self.height)
            && self.width.saturating_mul(self.height) <= MOST_PIXELS;
        let reason = match () {
            () if !is_paintable => {
                format!("a picture of {}x{} pixels cannot be painted", self.width, self.height)
            }
            () if !(1..=100).contains(&self.quality) => {
                format!("the quality is 1 to 100, not {}", self.quality)
            }
            () => return Ok(()),
        };
        Err(SnapshotError::BadRequest { reason })
    }
}

/// Decodes base64 once, straight into shared memory.
fn decoded(
    text: &str,
    alloc: impl FnOnce(usize) -> Result<BlobMut, AllocError>,
) -> Result<Blob, SnapshotError> {
    let mut jpeg = alloc(base64::decoded_len_estimate(text.len()))
        .map_err(|error| SnapshotError::NoMemory { reason: error.to_string() })?;
    let len = STANDARD.decode_slice(text, &mut jpeg).map_err(|error| SnapshotError::PageFailed {
        reason: format!("its picture is no base64: {error}"),
    })?;
    jpeg.truncate(len);
    Ok(jpeg.freeze())
}

impl From<CdpError> for SnapshotError {
    fn from(error: CdpError) -> SnapshotError {
        match error {
            CdpError::Closed => SnapshotError::BrowserDied,
            CdpError::Failed { method, reason } => {
                SnapshotError::PageFailed { reason: format!("{method}: {reason}") }
            }
        }
    }
}

impl std::fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SnapshotError::BadRequest { reason } => f.write_str(reason),
            SnapshotError::NotAllowed { what } => write!(f, "not allowed: {what}"),
            SnapshotError::PageFailed { reason } => write!(f, "the page failed: {reason}"),
            SnapshotError::TimedOut { after } => write!(f, "the page took longer than {after:?}"),
            SnapshotError::Overloaded { waited } => {
                write!(f, "other pages were in the way for {waited:?}: try again")
            }
            SnapshotError::BrowserDied => f.write_str("the browser died: try again"),
            SnapshotError::NoBrowser { reason } => write!(f, "there is no browser: {reason}"),
            SnapshotError::NoMemory { reason } => write!(f, "no memory for the picture: {reason}"),
        }
    }
}

impl std::error::Error for SnapshotError {}
