//! Addresses of Unix sockets as configuration writes them, and connecting to them without waiting.
//!
//! Owns the rule that a leading `@` means the abstract namespace. Never creates or removes a socket file.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

use socket2::{Domain, SockAddr, Socket, Type};

/// The address of the Unix socket `path`; `@name` is the abstract name `name`. Source: `envoy.config.core.v3.Pipe.path`.
///
/// Fails if the path is too long for the kernel (107 bytes) or holds a NUL byte.
pub fn unix_address(path: &str) -> io::Result<SocketAddr> {
    match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(path),
    }
}

/// A non-blocking connection to the Unix socket `path` (as for [`unix_address`]), made at once or not at all.
///
/// Fails with [`io::ErrorKind::WouldBlock`] if the listener's backlog is full, where a blocking socket would wait for as
/// long as it takes.
pub fn connect_now(path: &str) -> io::Result<UnixStream> {
    let address = match path.strip_prefix('@') {
        Some(name) => SockAddr::unix(format!("\0{name}"))?,
        None => SockAddr::unix(path)?,
    };
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.connect(&address)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use super::*;

    #[test]
    fn an_abstract_name_can_be_bound_and_connected_to() {
        let address = unix_address(&format!("@outrigger-sys-test-{}", std::process::id())).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let mut client = UnixStream::connect_addr(&address).unwrap();
        client.write_all(b"x").unwrap();
        listener.accept().unwrap().0.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn a_full_backlog_is_an_error_and_not_a_wait() {
        let name = format!("@outrigger-sys-full-{}", std::process::id());
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(format!("\0{}", &name[1..])).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match connect_now(&name) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!((waiting.len(), error.kind()), (1, io::ErrorKind::WouldBlock));
        listener.accept().unwrap();
        assert!(connect_now(&name).is_ok());
        assert_eq!(connect_now("@outrigger-sys-nobody").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_path_stays_a_path_and_a_long_one_is_refused() {
        assert_eq!(unix_address("/run/app.sock").unwrap().as_pathname(), Some(Path::new("/run/app.sock")));
        assert_eq!(unix_address(&"x".repeat(108)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
