//! A connection with Chromium in its DevTools protocol: JSON messages over two pipes, each ended by a zero byte.
//!
//! A [`Session`] is whom one talks to: the browser, or one page of it. Messages are handed on as the bytes they came in, and parsed by
//! who wants them, so that a picture of some megabytes is never copied out of its message before it is decoded.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::value::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// The longest message that is read, in bytes: more than the largest picture makes, see `page::MOST_PIXELS`.
const MESSAGE_MAX: u64 = 512 << 20;

/// One party at the other end of the connection: the browser itself, or what it was attached to.
pub(crate) struct Session {
    shared: Arc<Shared>,
    /// `None`: the browser.
    id: Option<String>,
}

/// What a session tells by itself, in order; it ends with the connection.
pub(crate) type Events = mpsc::UnboundedReceiver<Event>;

/// Something that happened in a session.
pub(crate) struct Event {
    pub method: String,
    message: Vec<u8>,
}

/// The answer to a command, as it came.
pub(crate) struct Answer {
    method: &'static str,
    message: Vec<u8>,
}

/// Why a command has no result.
#[derive(Debug)]
pub(crate) enum CdpError {
    /// The connection has ended: the browser is gone.
    Closed,
    /// The browser says no, or something that is not what this command gives.
    Failed { method: &'static str, reason: String },
}

struct Shared {
    /// Closed with the connection.
    outbox: mpsc::UnboundedSender<Vec<u8>>,
    last_id: AtomicU64,
    routes: Mutex<Routes>,
}

/// Who waits for what comes in.
#[derive(Default)]
struct Routes {
    closed: bool,
    answers: HashMap<u64, oneshot::Sender<Vec<u8>>>,
    events: HashMap<String, mpsc::UnboundedSender<Event>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Command<'a> {
    id: u64,
    method: &'a str,
    params: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<&'a str>,
}

/// What decides where a message goes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    id: Option<u64>,
    method: Option<String>,
    session_id: Option<String>,
}

impl Session {
    /// The browser's own session, over the pipes from it and to it, and a task that ends with the connection. Must be called in a tokio
    /// runtime, which carries it.
    pub fn browser(from: pipe::Receiver, to: pipe::Sender) -> (Session, JoinHandle<()>) {
        let (outbox, letters) = mpsc::unbounded_channel();
        let shared =
            Arc::new(Shared { outbox, last_id: AtomicU64::new(0), routes: Mutex::new(Routes::default()) });
        let routes = Arc::clone(&shared);
        let connection = tokio::spawn(async move {
            // Reading and writing never wait for each other; the end of either is the end of both.
            let ended = tokio::select! {
                ended = receive(from, &routes) => ended,
                ended = transmit(to, letters) => ended,
            };
            tracing::debug!(?ended, "the connection with Chromium has ended");
            routes.close();
        });
        (Session { shared, id: None }, connection)
    }

    /// The session of a target that this one, the browser's, has attached to.
    pub fn attached(&self, id: String) -> (Session, Events) {
        let (sender, events) = mpsc::unbounded_channel();
        let mut routes = self.shared.routes();
        if !routes.closed {
            routes.events.insert(id.clone(), sender);
        }
        drop(routes);
        (Session { shared: Arc::clone(&self.shared), id: Some(id) }, events)
    }

    /// Gives a command, and waits for its answer.
    pub async fn ask(&self, method: &'static str, params: Value) -> Result<Answer, CdpError> {
        let (sender, answer) = oneshot::channel();
        let id = self.shared.next_id();
        let _waiting = self.shared.expect(id, sender)?;
        self.send(id, method, params)?;
        let message = answer.await.map_err(|_| CdpError::Closed)?;
        Ok(Answer { method, message })
    }

    /// Gives a command whose result is nothing of interest, and waits until it is done.
    pub async fn run(&self, method: &'static str, params: Value) -> Result<(), CdpError> {
        self.ask(method, params).await?.result::<serde::de::IgnoredAny>().map(drop)
    }

    /// Gives a command and does not wait: what comes of it shows in events.
    pub fn tell(&self, method: &'static str, params: Value) {
        // A connection that has ended is noticed by who waits for something.
        let _ended = self.send(self.shared.next_id(), method, params);
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.shared.outbox.is_closed()
    }

    fn send(&self, id: u64, method: &'static str, params: Value) -> Result<(), CdpError> {
        let command = Command { id, method, params, session_id: self.id.as_deref() };
        let mut message = serde_json::to_vec(&command).expect("a command has string keys only");
        message.push(0);
        self.shared.outbox.send(message).map_err(|_| CdpError::Closed)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(id) = &self.id {
            self.shared.routes().events.remove(id);
        }
    }
}

impl Event {
    /// What it says, as far as `T` asks.
    pub fn params<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        #[derive(Deserialize)]
        struct Body<T> {
            params: T,
        }
        serde_json::from_slice(&self.message).ok().map(|body: Body<T>| body.params)
    }
}

impl Answer {
    /// The result, which may borrow from the answer.
    pub fn result<'a, T: Deserialize<'a>>(&'a self) -> Result<T, CdpError> {
        #[derive(Deserialize)]
        struct Body<T> {
            result: Option<T>,
            error: Option<Refusal>,
        }
        #[derive(Deserialize)]
        struct Refusal {
            message: String,
        }
        let failed = |reason| CdpError::Failed { method: self.method, reason };
        let body: Body<T> =
            serde_json::from_slice(&self.message).map_err(|error| failed(error.to_string()))?;
        match (body.result, body.error) {
            (Some(result), _) => Ok(result),
            (None, Some(refusal)) => Err(failed(refusal.message)),
            (None, None) => Err(failed("an answer without a result".to_owned())),
        }
    }
}

impl Shared {
    fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Has the answer to command `id` handed on, until what is returned is dropped.
    fn expect(&self, id: u64, sender: oneshot::Sender<Vec<u8>>) -> Result<Waiting<'_>, CdpError> {
        let mut routes = self.routes();
        if routes.closed {
            return Err(CdpError::Closed);
        }
        routes.answers.insert(id, sender);
        Ok(Waiting { shared: self, id })
    }

    fn dispatch(&self, message: Vec<u8>) {
        let header: Header = match serde_json::from_slice(&message) {
            Ok(header) => header,
            // Protocols grow. What nobody here can read, nobody here waits for.
            Err(error) => return tracing::warn!(%error, "Chromium sent something that is no message"),
        };
        let mut routes = self.routes();
        // Who no longer listens misses nothing.
        match header {
            Header { id: Some(id), .. } => {
                let _unheard = routes.answers.remove(&id).map(|answer| answer.send(message));
            }
            Header { method: Some(method), session_id: Some(session), .. } => {
                let _unheard = routes.events.get(&session).map(|to| to.send(Event { method, message }));
            }
            _ => {}
        }
    }

    /// Nobody waits any more: the senders that are dropped here tell.
    fn close(&self) {
        *self.routes() = Routes { closed: true, ..Routes::default() };
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets the answer that is waited for.
struct Waiting<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.routes().answers.remove(&self.id);
    }
}

async fn receive(from: pipe::Receiver, shared: &Shared) -> io::Result<()> {
    let mut from = BufReader::with_capacity(64 * 1024, from);
    loop {
        let mut message = Vec::new();
        (&mut from).take(MESSAGE_MAX).read_until(0, &mut message).await?;
        match message.pop() {
            Some(0) => shared.dispatch(message),
            Some(_) => return Err(io::ErrorKind::InvalidData.into()),
            None => return Ok(()),
        }
    }
}

async fn transmit(mut to: pipe::Sender, mut letters: mpsc::UnboundedReceiver<Vec<u8>>) -> io::Result<()> {
    while let Some(letter) = letters.recv().await {
        to.write_all(&letter).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A session, and the browser's ends of the pipes: what it reads commands from, and writes answers to.
    fn pair() -> (Session, BufReader<pipe::Receiver>, pipe::Sender) {
        let (to, commands) = pipe::pipe().unwrap();
        let (answers, from) = pipe::pipe().unwrap();
        (Session::browser(from, to).0, BufReader::new(commands), answers)
    }

    /// The next command that came in.
    async fn command(commands: &mut BufReader<pipe::Receiver>) -> Value {
        let mut message = Vec::new();
        commands.read_until(0, &mut message).await.unwrap();
        assert_eq!(message.pop(), Some(0));
        serde_json::from_slice(&message).unwrap()
    }

    async fn say(answers: &mut pipe::Sender, message: Value) {
        answers.write_all(format!("{message}\0").as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn answers_find_their_commands_whatever_their_order() {
        let (session, mut commands, mut answers) = pair();
        let browser = async {
            let (first, second) = (command(&mut commands).await, command(&mut commands).await);
            assert_eq!(first, json!({ "id": 1, "method": "A", "params": { "x": 1 } }));
            say(&mut answers, json!({ "id": second["id"], "error": { "code": 1, "message": "no" } })).await;
            say(&mut answers, json!({ "id": 99, "result": {} })).await;
            say(&mut answers, json!({ "id": first["id"], "result": "yes", "new": "field" })).await;
        };
        let (a, b, ()) =
            tokio::join!(session.ask("A", json!({ "x": 1 })), session.run("B", json!({})), browser);
        assert_eq!(a.unwrap().result::<&str>().unwrap(), "yes");
        let Err(CdpError::Failed { method: "B", reason }) = b else { panic!("{b:?}") };
        assert_eq!(reason, "no");
    }

    #[tokio::test]
    async fn events_go_to_their_session_and_end_with_the_connection() {
        let (session, commands, mut answers) = pair();
        let (page, mut events) = session.attached("one".to_owned());
        answers.write_all(b"no message at all\0").await.unwrap();
        say(&mut answers, json!({ "method": "Page.x", "params": { "n": 1 }, "sessionId": "other" })).await;
        say(&mut answers, json!({ "method": "Page.y", "params": { "n": 2 }, "sessionId": "one" })).await;
        let event = events.recv().await.unwrap();
        assert_eq!((event.method.as_str(), event.params::<Value>()), ("Page.y", Some(json!({ "n": 2 }))));

        let waits = tokio::join!(page.ask("A", json!({})), async {
            // In the middle of a message.
            answers.write_all(b"{").await.unwrap();
            drop((answers, commands));
        });
        assert!(matches!(waits.0, Err(CdpError::Closed)));
        assert!(events.recv().await.is_none());
        assert!(session.is_closed() && matches!(session.run("B", json!({})).await, Err(CdpError::Closed)));
    }
}
