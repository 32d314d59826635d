//! Socket options.
//!
//! Owns the options that outrigger sets by name, and the passage for those that configuration gives as numbers.
//! Never decides which socket gets which option, nor when between `socket`, `bind` and `listen`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use socket2::{Domain, SockRef};

/// The value of an option that is given by number. Source: `envoy.config.core.v3.SocketOption.value`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OptionValue<'a> {
    Int(i32),
    Bytes(&'a [u8]),
}

/// Sets any option by its numbers, as `setsockopt(2)` takes them.
/// Source: `envoy.config.core.v3.SocketOption.level`, `.name`.
///
/// Options whose value is a memory address to the kernel (socket filters, tables of netfilter) are refused with
/// `InvalidInput`: the value comes from a control plane, and an address in it would mean memory of ours.
pub fn set_by_number(socket: impl AsFd, level: i32, name: i32, value: OptionValue<'_>) -> io::Result<()> {
    if holds_address(level, name) {
        let reason = format!("socket option {level}/{name} takes a memory address and cannot be set by number");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    match value {
        OptionValue::Int(value) => set(socket.as_fd(), level, name, &value.to_ne_bytes()),
        OptionValue::Bytes(bytes) => set(socket.as_fd(), level, name, bytes),
    }
}

/// Accepts connections to, and connects from, addresses that are not of this machine (`IP_TRANSPARENT`, for TPROXY).
/// Needs CAP_NET_ADMIN. Source: `Listener.transparent`.
pub fn set_transparent(socket: impl AsFd, on: bool) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    // One kernel flag under two names: an IPv6 socket takes it for its IPv4 connections too.
    if is_ipv6(&socket)? { socket.set_ip_transparent_v6(on) } else { socket.set_ip_transparent_v4(on) }
}

/// Binds to addresses that do not exist (yet) on this machine (`IP_FREEBIND`). Source: `Listener.freebind`.
pub fn set_freebind(socket: impl AsFd, on: bool) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    if is_ipv6(&socket)? { socket.set_freebind_v6(on) } else { socket.set_freebind_v4(on) }
}

/// Lets each worker bind its own socket to the same address (`SO_REUSEPORT`). Source: `Listener.enable_reuse_port`.
pub fn set_reuse_port(socket: impl AsFd, on: bool) -> io::Result<()> {
    SockRef::from(&socket).set_reuse_port(on)
}

/// Takes data in the SYN, with at most `queue` such connections pending (`TCP_FASTOPEN`); 0 turns it off.
/// Source: `Listener.tcp_fast_open_queue_length`.
pub fn set_fast_open(socket: impl AsFd, queue: u32) -> io::Result<()> {
    set_int(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN, queue)
}

fn is_ipv6(socket: &SockRef<'_>) -> io::Result<bool> {
    Ok(socket.domain()? == Domain::IPV6)
}

/// Values that the kernel reads as a `struct` with an address in it.
fn holds_address(level: i32, name: i32) -> bool {
    match level {
        libc::SOL_SOCKET => matches!(name, libc::SO_ATTACH_FILTER | SO_ATTACH_REUSEPORT_CBPF),
        // The set commands of iptables, arptables and ebtables: replace a table (writes counters back), add counters.
        libc::SOL_IP => matches!(name, 64 | 65 | 96 | 97 | 128 | 129),
        libc::SOL_IPV6 => matches!(name, 64 | 65),
        // Packet sockets take filters too; outrigger opens none.
        libc::SOL_PACKET => true,
        _ => false,
    }
}

/// The kernel's number (`asm-generic/socket.h`), which libc does not have for all targets.
const SO_ATTACH_REUSEPORT_CBPF: libc::c_int = 51;

/// Values above `i32::MAX` mean no more than the largest to the kernel.
fn set_int(socket: BorrowedFd<'_>, level: i32, name: i32, value: u32) -> io::Result<()> {
    set(socket, level, name, &i32::try_from(value).unwrap_or(i32::MAX).to_ne_bytes())
}

/// The caller makes sure that the option is none that [`holds_address`] names.
fn set(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let Ok(len) = libc::socklen_t::try_from(value.len()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the value of a socket option is too long"));
    };
    // SAFETY: the pointer and the length describe initialised memory that the kernel copies, and the value holds no
    // address that it would follow: named options take ints, numbered ones went through `holds_address`.
    let answer = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    crate::check(answer).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use socket2::{Socket, Type};

    use super::*;

    fn sockets() -> Vec<Socket> {
        // A machine without IPv6 refuses the second one; the first must work everywhere.
        let ipv4 = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        std::iter::once(ipv4).chain(Socket::new(Domain::IPV6, Type::STREAM, None)).collect()
    }

    /// Options that need CAP_NET_ADMIN either work or say so, depending on who runs the tests.
    fn assert_set_or_not_permitted(result: io::Result<()>) -> bool {
        match result {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
                false
            }
        }
    }

    #[test]
    fn options_by_number_take_ints_and_bytes() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        set_by_number(&socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, OptionValue::Int(1)).unwrap();
        assert!(socket.keepalive().unwrap());
        set_by_number(&socket, libc::IPPROTO_TCP, libc::TCP_CONGESTION, OptionValue::Bytes(b"reno")).unwrap();
        assert!(socket.tcp_congestion().unwrap().starts_with(b"reno"));
        set_by_number(&socket, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, OptionValue::Bytes(&30i32.to_ne_bytes()))
            .unwrap();
        assert_eq!(socket.tcp_keepalive_time().unwrap(), std::time::Duration::from_secs(30));
    }

    #[test]
    fn an_option_that_the_kernel_does_not_know_is_its_error() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let error = set_by_number(&socket, libc::SOL_SOCKET, 9999, OptionValue::Int(1)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT));
    }

    #[test]
    fn an_option_with_a_memory_address_is_refused() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        for (level, name) in [(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER), (libc::SOL_IP, 64), (libc::SOL_IPV6, 64)] {
            let error = set_by_number(&socket, level, name, OptionValue::Bytes(&[1; 16])).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{level}/{name}");
        }
    }

    #[test]
    fn freebind_binds_to_an_address_of_elsewhere() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let elsewhere: std::net::SocketAddr = "192.0.2.7:0".parse().unwrap();
        assert!(socket.bind(&elsewhere.into()).is_err());
        set_freebind(&socket, true).unwrap();
        socket.bind(&elsewhere.into()).unwrap();
    }

    #[test]
    fn named_options_reach_sockets_of_both_families() {
        for socket in sockets() {
            set_freebind(&socket, true).unwrap();
            set_reuse_port(&socket, true).unwrap();
            assert!(socket.reuse_port().unwrap());
            set_fast_open(&socket, u32::MAX).unwrap();
            assert_set_or_not_permitted(set_transparent(&socket, true));
        }
    }
}
