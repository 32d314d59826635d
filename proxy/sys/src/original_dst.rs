//! Where an intercepted connection was going (`SO_ORIGINAL_DST`).
//!
//! Owns the question to netfilter about a connection that an iptables or nftables REDIRECT or DNAT rule sent to us.
//! Never guesses: with TPROXY there was no rewrite, and the local address of the socket is the original destination.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use socket2::{SockAddr, SockRef};

/// The destination that the client connected to, before it was rewritten.
///
/// For a tracked connection that no rule rewrote this is the local address, so callers compare the two.
/// Errors: `ENOENT` if netfilter does not know the connection, `ENOPROTOOPT` if its modules are not loaded,
/// `Unsupported` for a socket that is not TCP over IP.
pub fn original_dst(socket: impl AsFd) -> io::Result<SocketAddr> {
    let socket = SockRef::from(&socket);
    let local = socket.local_addr()?.as_socket().ok_or_else(not_ip)?;
    let answer = match local.ip() {
        IpAddr::V4(_) => socket.original_dst_v4()?,
        // An IPv4 client on a dual-stack socket is tracked as IPv4, and not every kernel answers that on IPv6 sockets.
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            socket.original_dst_v4().or_else(|_| socket.original_dst_v6())?
        }
        IpAddr::V6(_) => socket.original_dst_v6()?,
    };
    SockAddr::as_socket(&answer).ok_or_else(not_ip)
}

fn not_ip() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "only IP sockets have an original destination")
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Without interception the kernel either says that it knows nothing, or (where connections are tracked) names
    /// the address that the client really used.
    fn assert_not_redirected(listen: &str) {
        let Ok(listener) = TcpListener::bind(listen) else {
            return; // no such address family on this machine
        };
        let address = listener.local_addr().unwrap();
        let _client = TcpStream::connect(address).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        match original_dst(&accepted) {
            Ok(destination) => assert_eq!(destination, address),
            Err(error) => assert!(
                matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOPROTOOPT)),
                "unexpected error {error}"
            ),
        }
    }

    #[test]
    fn a_direct_ipv4_connection_has_no_other_destination() {
        assert_not_redirected("127.0.0.1:0");
    }

    #[test]
    fn a_direct_ipv6_connection_has_no_other_destination() {
        assert_not_redirected("[::1]:0");
    }

    #[test]
    fn a_unix_socket_has_no_original_destination() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        assert_eq!(original_dst(&socket).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
