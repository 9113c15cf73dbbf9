//! The least that it takes to ask an HTTP server something and to count what crosses.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than the application gives a picture.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What was asked for.
pub struct Answer {
    pub body: Vec<u8>,
    /// All bytes, of the request and the answer with their headers.
    pub crossed: usize,
}

/// Asks over a connection of its own.
///
/// # Errors
///
/// A sentence; any status but 200 is one.
pub fn get(addr: SocketAddr, target: &str) -> Result<Answer, String> {
    let request = format!("GET {target} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let asked = TcpStream::connect_timeout(&addr, TIMEOUT).and_then(|mut stream| {
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(request.as_bytes())?;
        stream.read_to_end(&mut answer)
    });
    asked.map_err(|error| format!("http://{addr}{target}: {error}"))?;
    let crossed = request.len() + answer.len();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let end = end.ok_or_else(|| format!("http://{addr}{target}: no answer"))?;
    let body = answer.split_off(end + 4);
    let head = String::from_utf8_lossy(&answer);
    match head.split(' ').nth(1) {
        Some("200") => Ok(Answer { body, crossed }),
        status => Err(format!(
            "http://{addr}{target}: {}: {}",
            status.unwrap_or("no status"),
            String::from_utf8_lossy(&body).trim()
        )),
    }
}
