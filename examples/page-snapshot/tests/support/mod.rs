//! What the tests share: the application as a process, a site for it to look at, a client to ask it, and what is in a JPEG.
//!
//! Every wait is for a state and has a deadline.
#![allow(dead_code)] // each test binary uses its part

pub mod app;
pub mod site;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;

/// How long anything may take on a loaded machine before a test calls it hung.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Whether there is a Chromium to test with. Continuous integration must have one; elsewhere the test says that it did not run.
pub fn has_chromium() -> bool {
    let found = Path::new("/usr/bin/chromium").exists();
    let must = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(found || !must, "/usr/bin/chromium is missing: apt-get install chromium");
    if !found {
        println!("SKIPPED: /usr/bin/chromium is missing; apt-get install chromium to run this too");
    }
    found
}

/// Waits until `state` gives something.
pub fn wait_for<T>(what: &str, mut state: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = state() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// A connection with the web server, over which requests go one after the other.
pub struct Client(BufReader<TcpStream>);

/// What the web server answered.
pub struct Answer {
    pub status: u16,
    /// With names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Client {
    pub fn connect(addr: SocketAddr) -> Client {
        let stream = TcpStream::connect(addr).expect("the web server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes a time-out");
        Client(BufReader::new(stream))
    }

    /// Asks and does not wait.
    pub fn ask(&mut self, target: &str) {
        let request = format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes()).expect("the web server takes a request");
    }

    pub fn answer(&mut self) -> Answer {
        let mut line = || {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("the web server answers");
            line.trim_end().to_owned()
        };
        let first = line();
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status in `{first}`"));
        let headers: Vec<(String, String)> =
            std::iter::from_fn(|| Some(line()).filter(|line| !line.is_empty()))
                .filter_map(|line| {
                    let (name, value) = line.split_once(": ")?;
                    Some((name.to_ascii_lowercase(), value.to_owned()))
                })
                .collect();
        let mut answer = Answer { status, headers, body: Vec::new() };
        let length = answer.header("content-length").parse().expect("a length is a number");
        answer.body.resize(length, 0);
        self.0.read_exact(&mut answer.body).expect("the body is as long as it says");
        answer
    }

    pub fn get(&mut self, target: &str) -> Answer {
        self.ask(target);
        self.answer()
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|header| header.0 == name);
        found.map(|header| header.1.as_str()).unwrap_or_else(|| panic!("no header {name}"))
    }

    /// The picture that it must be.
    pub fn picture(&self) -> Picture {
        let text = || String::from_utf8_lossy(&self.body).into_owned();
        assert_eq!(self.status, 200, "{}", text());
        assert_eq!(self.header("content-type"), "image/jpeg");
        Picture::decode(&self.body)
    }

    /// The sentence that it must be, with this status.
    pub fn refusal(&self, status: u16) -> String {
        let text = String::from_utf8_lossy(&self.body).into_owned();
        assert_eq!(self.status, status, "{}", if text.is_ascii() { &text } else { "a picture" });
        text
    }
}

/// A decoded JPEG.
pub struct Picture {
    pub width: usize,
    pub height: usize,
    rgb: Vec<u8>,
}

impl Picture {
    pub fn decode(jpeg: &[u8]) -> Picture {
        let mut decoder = JpegDecoder::new(ZCursor::new(jpeg));
        let rgb = decoder.decode().expect("it is a JPEG");
        let (width, height) = decoder.dimensions().expect("a decoded picture has a size");
        assert_eq!(rgb.len(), width * height * 3);
        Picture { width, height, rgb }
    }

    /// Whether the colour at a place is this one, as near as JPEG keeps colours.
    pub fn shows(&self, (x, y): (usize, usize), colour: [u8; 3]) -> bool {
        let at = (y * self.width + x) * 3;
        self.rgb[at..at + 3].iter().zip(colour).all(|(&seen, meant)| seen.abs_diff(meant) < 16)
    }

    pub fn assert_shows(&self, place: (usize, usize), colour: [u8; 3]) {
        let at = (place.1 * self.width + place.0) * 3;
        assert!(self.shows(place, colour), "at {place:?} is {:?}, not {colour:?}", &self.rgb[at..at + 3]);
    }
}

/// The target that asks for a picture of `url`, with further parameters.
pub fn shot(url: &str, more: &str) -> String {
    let encoded: String = url.bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("/?url={encoded}{more}")
}
