//! The only unsafe code of outrigger: what the kernel offers and neither std nor `socket2` wraps.
//!
//! Owns a small safe interface to Linux: CPU affinity, `splice(2)`, socket options, the original destination of
//! intercepted connections, and facts about the process. Never decides anything: which CPUs, which options and when to
//! splice is the business of its callers. Every unsafe block says why it is sound.

pub mod affinity;
pub mod original_dst;
pub mod process;
pub mod sockopt;
pub mod splice;
pub mod tcp_info;
pub mod time_zone;
pub mod unix;

use std::io;

/// Turns the "-1 and errno" answer of a C function into a `Result`.
fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
