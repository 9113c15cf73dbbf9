//! Sockets that the supervisor keeps listening for services, so that connections wait while a process is restarted or
//! reloaded, and several processes share one port.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};

/// Every socket, by the address that a service has asked for.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    /// From the service manager, as long as nobody has asked for them.
    passed: Vec<TcpListener>,
    open: HashMap<SocketAddr, Open>,
}

#[derive(Debug)]
struct Open {
    service: String,
    socket: TcpListener,
}

impl Listeners {
    /// A socket that was open before the application started.
    pub fn add_passed(&mut self, socket: TcpListener) {
        self.passed.push(socket);
    }

    /// The socket that listens at `addr` for `service`, another handle to it.
    ///
    /// # Errors
    ///
    /// A sentence that says what to do.
    pub fn get(&mut self, service: &str, addr: SocketAddr) -> Result<TcpListener, String> {
        if let Some(open) = self.open.get(&addr) {
            if open.service != service {
                let other = &open.service;
                return Err(format!(
                    "the service `{other}` listens at {addr} already: give one of the two another port"
                ));
            }
            return open.socket.try_clone().map_err(|error| failure(addr, &error));
        }
        let socket = match self.take_passed(addr) {
            Some(socket) => socket,
            None => TcpListener::bind(addr).map_err(|error| failure(addr, &error))?,
        };
        let handle = socket.try_clone().map_err(|error| failure(addr, &error))?;
        self.open.insert(addr, Open { service: service.to_owned(), socket });
        Ok(handle)
    }

    /// One at that very address, or else at the port of every address.
    fn take_passed(&mut self, addr: SocketAddr) -> Option<TcpListener> {
        let find = |matches: &dyn Fn(SocketAddr) -> bool| {
            self.passed.iter().position(|socket| socket.local_addr().is_ok_and(matches))
        };
        let at_any = |passed: SocketAddr| passed.port() == addr.port() && passed.ip().is_unspecified();
        let found = find(&|passed| passed == addr).or_else(|| find(&at_any))?;
        Some(self.passed.remove(found))
    }
}

fn failure(addr: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => {
            format!("{addr} is in use: end the program that listens there, or configure another port")
        }
        ErrorKind::PermissionDenied => {
            format!(
                "no permission to listen at {addr}: ports below 1024 are for root, or for sockets of systemd's"
            )
        }
        ErrorKind::AddrNotAvailable => format!("{addr} is no address of this machine"),
        _ => format!("cannot listen at {addr}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY_PORT: &str = "127.0.0.1:0";

    #[test]
    fn who_asks_again_gets_the_same_socket() {
        let mut listeners = Listeners::default();
        let first = listeners.get("web", ANY_PORT.parse().unwrap()).unwrap();
        let second = listeners.get("web", ANY_PORT.parse().unwrap()).unwrap();
        assert_eq!(first.local_addr().unwrap(), second.local_addr().unwrap());
    }

    #[test]
    fn two_services_at_one_address_are_an_error_that_names_the_first() {
        let mut listeners = Listeners::default();
        let addr = ANY_PORT.parse().unwrap();
        listeners.get("web", addr).unwrap();
        let error = listeners.get("admin", addr).unwrap_err();
        assert!(error.contains("`web`"), "{error}");
    }

    #[test]
    fn a_port_in_use_is_said_with_its_address_and_what_to_do() {
        let taken = TcpListener::bind(ANY_PORT).unwrap();
        let addr = taken.local_addr().unwrap();
        let error = Listeners::default().get("web", addr).unwrap_err();
        assert!(error.contains(&addr.to_string()) && error.contains("another port"), "{error}");
    }

    #[test]
    fn a_socket_that_was_passed_is_used_instead_of_binding() {
        let mut listeners = Listeners::default();
        for any in [ANY_PORT, "0.0.0.0:0"] {
            let passed = TcpListener::bind(any).unwrap();
            let port = passed.local_addr().unwrap().port();
            listeners.add_passed(passed);
            let got = listeners.get("web", ([127, 0, 0, 1], port).into()).unwrap();
            assert_eq!(got.local_addr().unwrap().port(), port);
        }
    }
}
