//! A web site on loopback, for the application to look at.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use super::wait_for;

/// What a path has.
#[derive(Clone)]
pub enum Content {
    Html(String),
    Status(u16),
    Redirect(String),
    /// No answer, ever: who asks waits until he gives up.
    Silence,
}

/// A site that is there as long as the test.
pub struct Site {
    pub addr: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

/// What has happened.
#[derive(Default)]
struct Seen {
    asked: Vec<String>,
    /// Requests for silence that were given up.
    given_up: usize,
}

impl Site {
    pub fn serve(pages: impl IntoIterator<Item = (&'static str, Content)>) -> Site {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let addr = listener.local_addr().expect("it is bound");
        let pages: Arc<HashMap<_, _>> = Arc::new(pages.into_iter().collect());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let site = Site { addr, seen: Arc::clone(&seen) };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (pages, seen) = (Arc::clone(&pages), Arc::clone(&seen));
                // A browser that is killed ends its connections in the middle.
                thread::spawn(move || drop(answer(stream, &pages, &seen)));
            }
        });
        site
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Waits until `path` is asked for.
    pub fn expect(&self, path: &str) {
        wait_for(path, || self.has_seen(path).then_some(()));
    }

    pub fn has_seen(&self, path: &str) -> bool {
        self.seen().asked.iter().any(|asked| asked == path)
    }

    /// Waits until nobody waits for silence any more, of `count` who did.
    pub fn expect_given_up(&self, count: usize) {
        wait_for("a page to be closed", || (self.seen().given_up >= count).then_some(()));
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no thread panics with it")
    }
}

fn answer(
    stream: TcpStream,
    pages: &HashMap<&'static str, Content>,
    seen: &Mutex<Seen>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut first = String::new();
        if stream.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut line = String::new();
        while stream.read_line(&mut line)? > 2 {
            line.clear();
        }
        let target = first.split(' ').nth(1).unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default();
        seen.lock().expect("no thread panics with it").asked.push(path.to_owned());
        let (status, more, body) = match pages.get(path) {
            Some(Content::Html(body)) => {
                (200, "Content-Type: text/html; charset=utf-8\r\n".into(), body.as_str())
            }
            Some(Content::Status(status)) => (*status, String::new(), "no"),
            Some(Content::Redirect(to)) => (302, format!("Location: {to}\r\n"), ""),
            Some(Content::Silence) => {
                let _ended = stream.read(&mut [0]);
                seen.lock().expect("no thread panics with it").given_up += 1;
                return Ok(());
            }
            None => (404, String::new(), "there is no such page"),
        };
        let head = format!("HTTP/1.1 {status} -\r\n{more}Content-Length: {}\r\n\r\n", body.len());
        stream.get_mut().write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
    }
}
