//! The demo's second process. It has the same picture to give in two ways, each after the same pause, so that these can be compared: lent
//! over the bus, and as base64 in JSON over a Unix socket. For the second it does no worse than such programs do: it writes whole messages,
//! allocates once, and parses without copying the text.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use objbus::{Blob, Bus, Published};
use serde::{Deserialize, Serialize};

use crate::ROLE_VARIABLE;
use crate::app::{BUS_VARIABLE, this_program};

/// The role of this process.
pub const ROLE: &str = "other";
/// The name of its object.
const NAME: &str = "demo.album";
const TIMEOUT: Duration = Duration::from_secs(30);

/// The process, as the demo has it; killed when this is dropped.
pub struct Other {
    process: Child,
    socket: UnixStream,
    message: Vec<u8>,
    album: AlbumProxy,
    /// What came over the socket last.
    pub jpeg: Vec<u8>,
}

/// What came of a request over the socket, beside the picture.
pub struct Sent {
    /// How long the pause became.
    pub pause: Duration,
    /// Bytes over the socket, both ways.
    pub crossed: usize,
}

/// The picture that there is to give.
struct Album(Arc<Mutex<Blob>>);

#[objbus::object]
impl Album {
    /// Lends the picture after a pause; also says how long that became.
    pub fn take(&self, url: &str, pause: Duration) -> Lent {
        let pause = take_a_break(pause);
        Lent { jpeg: picture(&self.0), title: url.to_owned(), pause }
    }
}

/// What comes of a call.
#[derive(Serialize, Deserialize, objbus::Type)]
pub struct Lent {
    pub jpeg: Blob,
    pub title: String,
    pub pause: Duration,
}

#[derive(Serialize, Deserialize)]
enum Request {
    /// Keeps a picture.
    Keep { jpeg: String },
    /// Gives it.
    Take { url: String, pause: Duration },
}

#[derive(Serialize, Deserialize)]
struct Text<'a> {
    jpeg: &'a str,
    title: &'a str,
    pause: Duration,
}

impl Other {
    /// Starts it on this bus, which lies where `directory` says.
    pub fn start(bus: &Bus, directory: &std::path::Path) -> Result<Other, String> {
        let failed = |error: io::Error| format!("cannot start the demo's second process: {error}");
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        ours.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
        ours.set_write_timeout(Some(TIMEOUT)).map_err(failed)?;
        let mut command = Command::new(this_program()?);
        command.env(ROLE_VARIABLE, ROLE).env(BUS_VARIABLE, directory);
        let mut process =
            command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).spawn().map_err(failed)?;
        match bus.proxy(NAME).wait_for(TIMEOUT) {
            Ok(album) => Ok(Other { process, socket: ours, message: Vec::new(), album, jpeg: Vec::new() }),
            Err(error) => {
                let _ended_already = process.kill();
                let _status = process.wait();
                Err(format!("the demo's second process is not on the bus: {error}"))
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Gives it the picture that it is to give.
    pub fn keep(&mut self, jpeg: &[u8]) -> io::Result<()> {
        send(&mut self.socket, &Request::Keep { jpeg: STANDARD.encode(jpeg) })?;
        Ok(())
    }

    pub fn take_by_bus(&self, url: &str, pause: Duration) -> Result<Lent, String> {
        self.album.take(url, pause).timeout(TIMEOUT).wait().map_err(|error| error.to_string())
    }

    /// Has the picture in `jpeg` afterwards.
    pub fn take_by_socket(&mut self, url: &str, pause: Duration) -> io::Result<Sent> {
        let sent = send(&mut self.socket, &Request::Take { url: url.to_owned(), pause })?;
        let received = receive(&mut self.socket, &mut self.message)?;
        let text: Text<'_> = serde_json::from_slice(&self.message)?;
        self.jpeg.clear();
        STANDARD.decode_vec(text.jpeg, &mut self.jpeg).map_err(io::Error::other)?;
        Ok(Sent { pause: text.pause, crossed: sent + received })
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ended_already = self.process.kill();
        let _status = self.process.wait();
    }
}

/// Is that process, until the demo closes the socket or is dead.
pub fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        // That is how it ends.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: the second process: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let bus = Bus::open().map_err(io::Error::other)?;
    let kept = Arc::new(Mutex::new(Blob::default()));
    let _published: Published = bus.publish(NAME, Album(Arc::clone(&kept))).map_err(io::Error::other)?;
    let (mut message, mut text) = (Vec::new(), String::new());
    loop {
        receive(&mut socket, &mut message)?;
        match serde_json::from_slice(&message)? {
            Request::Keep { jpeg } => {
                let jpeg = STANDARD.decode(jpeg).map_err(io::Error::other)?;
                let mut blob = bus.alloc(jpeg.len()).map_err(io::Error::other)?;
                blob.copy_from_slice(&jpeg);
                *kept.lock().unwrap_or_else(PoisonError::into_inner) = blob.freeze();
            }
            Request::Take { url, pause } => {
                let pause = take_a_break(pause);
                text.clear();
                STANDARD.encode_string(picture(&kept), &mut text);
                send(&mut socket, &Text { jpeg: &text, title: &url, pause })?;
            }
        }
    }
}

fn picture(kept: &Mutex<Blob>) -> Blob {
    kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Stands for the browser: who waits for it falls asleep, and its processor does, too.
fn take_a_break(pause: Duration) -> Duration {
    let began = Instant::now();
    std::thread::sleep(pause);
    began.elapsed()
}

/// A length and as many bytes of JSON; gives how many bytes that are in all.
fn send(socket: &mut UnixStream, message: &impl Serialize) -> io::Result<usize> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    socket.write_all(&bytes)?;
    Ok(bytes.len())
}

fn receive(socket: &mut UnixStream, message: &mut Vec<u8>) -> io::Result<usize> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    message.resize(u32::from_le_bytes(length) as usize, 0);
    socket.read_exact(message)?;
    Ok(4 + message.len())
}
