//! Facts about, and limits of, this process.
//!
//! Owns the questions to the kernel: memory, how many files we may open. Never keeps history or publishes anything.

use std::{fs, io};

/// Memory of this process, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Memory {
    /// Address space that is mapped, used or not.
    pub mapped: u64,
    /// What is in RAM, including shared pages such as the program itself.
    pub resident: u64,
    /// The part of `resident` that is backed by files or shared memory.
    pub shared: u64,
}

/// How many files (sockets, too) the process may have open.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OpenFileLimit {
    /// The soft limit that was found.
    pub before: u64,
    /// The soft limit now in force.
    pub now: u64,
}

/// Gives the calling thread's unused heap back to the system. For after a large update, off the data path.
pub fn trim_heap() {
    // SAFETY: `mi_collect` frees pages that hold no allocation; it takes a flag and touches no memory of ours.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// Does work that frees much more than it keeps, so that what it keeps costs little: memory goes back to the system as
/// soon as it is free. Later it would be taken again for something that fills only a part of it, and all of it would stay
/// resident. That needs a system call for each freed page, so it is for the start, while there is one thread.
pub fn trimming<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: reads a number of the allocator's.
    let usual = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
    // SAFETY: writes that number, which the allocator reads when it frees pages; no other thread does so at this time,
    // and any value would be good.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 0) };
    let done = work();
    // SAFETY: as above.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, usual) };
    done
}

/// `mi_option_purge_delay`, in milliseconds: after this time, free memory goes back to the system.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Memory in use, from `/proc/self/statm`.
pub fn memory() -> io::Result<Memory> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let page = system_constant(libc::_SC_PAGESIZE)?;
    parse_statm(&statm, page).ok_or_else(|| unreadable("/proc/self/statm"))
}

/// Raises the number of files that may be open to the hard limit, because sidecars are started with small soft limits
/// made for `select`.
pub fn raise_open_file_limit() -> io::Result<OpenFileLimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call, which writes one `rlimit` to it.
    crate::check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    let before = limit.rlim_cur;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is an initialised `rlimit`, which the call only reads.
        crate::check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    }
    Ok(OpenFileLimit { before, now: limit.rlim_cur })
}

/// Whether the system may write a core dump when the process dies. It holds everything that the process knew, private
/// keys too. Helpers that a kernel pipes dumps to (`kernel.core_pattern`) respect the limit as well.
pub fn allow_core_dumps(allowed: bool) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call, which writes one `rlimit` to it.
    crate::check(unsafe { libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) })?;
    limit.rlim_cur = if allowed { limit.rlim_max } else { 0 };
    // SAFETY: `limit` is an initialised `rlimit`, which the call only reads.
    crate::check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) }).map(drop)
}

/// From now on processes of the same user can neither read our memory nor trace us, and there are no core dumps. Those
/// with CAP_SYS_PTRACE still can.
pub fn protect_memory() -> io::Result<()> {
    // SAFETY: takes numbers by value and touches no memory of ours.
    crate::check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// Whether [`protect_memory`] is in force.
pub fn memory_is_protected() -> io::Result<bool> {
    // SAFETY: takes numbers by value and touches no memory of ours.
    crate::check(unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) }).map(|dumpable| dumpable != 1)
}

fn system_constant(name: libc::c_int) -> io::Result<u64> {
    // SAFETY: takes a number by value and touches no memory of ours.
    let value = unsafe { libc::sysconf(name) };
    u64::try_from(value).map_err(|_| io::Error::other(format!("sysconf({name}) has no answer")))
}

/// The first three columns count pages: mapped, resident, shared.
fn parse_statm(statm: &str, page: u64) -> Option<Memory> {
    let mut columns = statm.split_ascii_whitespace().map(|pages| pages.parse::<u64>().ok()?.checked_mul(page));
    Some(Memory { mapped: columns.next()??, resident: columns.next()??, shared: columns.next()?? })
}

fn unreadable(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{path} is not in the form the kernel documents"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trimming_is_for_the_time_of_some_work_only() {
        // SAFETY: as in `trimming`; the tests of this crate do not set options elsewhere.
        let delay = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        let usual = delay();
        assert!(usual > 1, "{usual} ms is not the delay of a purge");
        assert_eq!((trimming(delay), delay()), (0, usual));
    }

    #[test]
    fn memory_is_counted_in_bytes() {
        let statm = "3000 500 200 100 0 400 0\n";
        let counted = parse_statm(statm, 4096).unwrap();
        assert_eq!(counted, Memory { mapped: 3000 * 4096, resident: 500 * 4096, shared: 200 * 4096 });
        assert_eq!(parse_statm("3000 x", 4096), None);
        let own = memory().unwrap();
        assert!(own.resident > 100_000 && own.mapped >= own.resident && own.resident >= own.shared);
    }

    #[test]
    fn the_open_file_limit_rises_to_the_hard_limit_once() {
        let first = raise_open_file_limit().unwrap();
        assert!(first.now >= first.before);
        let second = raise_open_file_limit().unwrap();
        assert_eq!(second, OpenFileLimit { before: first.now, now: first.now });
    }

    #[test]
    fn core_dumps_can_be_switched_off_and_on() {
        let limits = || {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: as in `allow_core_dumps`.
            crate::check(unsafe { libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) }).unwrap();
            (limit.rlim_cur, limit.rlim_max)
        };
        let (_, most) = limits();
        allow_core_dumps(false).unwrap();
        assert_eq!(limits(), (0, most));
        allow_core_dumps(true).unwrap();
        assert_eq!(limits(), (most, most));
    }

    #[test]
    fn memory_can_be_protected() {
        protect_memory().unwrap();
        assert!(memory_is_protected().unwrap());
    }

    #[test]
    fn freed_heap_can_be_trimmed() {
        drop((0..1000).map(|_| vec![1u8; 10_000]).collect::<Vec<_>>());
        trim_heap();
    }
}
