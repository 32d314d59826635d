//! What the kernel knows of a TCP connection (`TCP_INFO`).
//!
//! Owns the question. Never decides when a peer counts as gone.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// How long the peer has acknowledged nothing although it should: bytes, or a question whether it takes bytes again, are
/// on their way. `None` while nothing is. A peer that is there but reads nothing acknowledges all the same.
pub fn unacknowledged_for(socket: impl AsFd) -> io::Result<Option<Duration>> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of the struct behind the pointer.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    crate::check(answer)?;
    // SAFETY: it was zeroed, the kernel wrote over a part of it, and integers have no invalid values.
    let info = unsafe { info.assume_init() };
    let waits = info.tcpi_unacked > 0 || info.tcpi_probes > 0;
    Ok(waits.then(|| Duration::from_millis(u64::from(info.tcpi_last_ack_recv))))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_peer_that_is_there_acknowledges() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _accepted = listener.accept().unwrap();
        assert_eq!(unacknowledged_for(&stream).unwrap(), None);
        stream.write_all(b"hello").unwrap();
        // Even if it were still on its way, it has not been for long.
        assert!(unacknowledged_for(&stream).unwrap().is_none_or(|time| time < Duration::from_secs(60)));
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(unacknowledged_for(&ours).is_err());
    }
}
