//! Addresses of Unix sockets as configuration writes them.
//!
//! Owns the rule that a leading `@` means the abstract namespace. Never opens or removes a socket file.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;

/// The address of the Unix socket `path`; `@name` is the abstract name `name`. Source: `envoy.config.core.v3.Pipe.path`.
///
/// Fails if the path is too long for the kernel (107 bytes) or holds a NUL byte.
pub fn unix_address(path: &str) -> io::Result<SocketAddr> {
    match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(path),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
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
    fn a_path_stays_a_path_and_a_long_one_is_refused() {
        assert_eq!(unix_address("/run/app.sock").unwrap().as_pathname(), Some(Path::new("/run/app.sock")));
        assert_eq!(unix_address(&"x".repeat(108)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
