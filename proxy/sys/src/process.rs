//! Facts about, and limits of, this process.
//!
//! Owns the questions to the kernel: memory, CPU time, age, whether others may look into us, how many files we may
//! open. Never keeps history or publishes anything.

use std::mem::MaybeUninit;
use std::time::Duration;
use std::{fs, io};

/// CPU time that was used, by us and by the kernel on our behalf.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CpuTime {
    pub user: Duration,
    pub system: Duration,
}

impl CpuTime {
    pub fn total(&self) -> Duration {
        self.user + self.system
    }
}

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

/// Whether the process may be traced by its user and leaves core dumps (`PR_GET_DUMPABLE`).
pub fn is_dumpable() -> io::Result<bool> {
    // SAFETY: PR_GET_DUMPABLE takes no argument and touches no memory of ours.
    Ok(crate::check(unsafe { libc::prctl(libc::PR_GET_DUMPABLE) })? == 1)
}

/// Allows or forbids tracing by the user and core dumps. The kernel forbids both to a program whose file gives it
/// capabilities (as for ports below 1024), and then root owns `/proc/self`; turning it on undoes that.
pub fn set_dumpable(on: bool) -> io::Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes a number by value and touches no memory of ours.
    crate::check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(on)) }).map(drop)
}

/// Gives the calling thread's unused heap back to the system. For after a large update, off the data path.
pub fn trim_heap() {
    // SAFETY: `mi_collect` frees pages that hold no allocation; it takes a flag and touches no memory of ours.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// Keeps the kernel from backing this process with huge pages: a sidecar that is idle should not hold two megabytes
/// where it uses ten kilobytes.
pub fn disable_huge_pages() -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: PR_SET_THP_DISABLE takes numbers by value and touches no memory of ours.
    crate::check(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, libc::c_ulong::from(true), zero, zero, zero) }).map(drop)
}

/// Memory in use, from `/proc/self/statm`.
pub fn memory() -> io::Result<Memory> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let page = system_constant(libc::_SC_PAGESIZE)?;
    parse_statm(&statm, page).ok_or_else(|| unreadable("/proc/self/statm"))
}

/// CPU time of the whole process so far.
pub fn cpu_time() -> io::Result<CpuTime> {
    resource_usage(libc::RUSAGE_SELF)
}

/// CPU time of the calling thread so far.
pub fn thread_cpu_time() -> io::Result<CpuTime> {
    resource_usage(libc::RUSAGE_THREAD)
}

/// Time since the process started, counted by a clock that nobody sets; to the hundredth of a second.
pub fn age() -> io::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let uptime = fs::read_to_string("/proc/uptime")?;
    let ticks_per_second = system_constant(libc::_SC_CLK_TCK)?;
    let started = parse_start(&stat, ticks_per_second).ok_or_else(|| unreadable("/proc/self/stat"))?;
    let booted = parse_uptime(&uptime).ok_or_else(|| unreadable("/proc/uptime"))?;
    Ok(booted.saturating_sub(started))
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

fn resource_usage(who: libc::c_int) -> io::Result<CpuTime> {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: `usage` has room for the one `rusage` that the call writes.
    crate::check(unsafe { libc::getrusage(who, usage.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it wrote the whole struct.
    let usage = unsafe { usage.assume_init() };
    Ok(CpuTime { user: duration(usage.ru_utime), system: duration(usage.ru_stime) })
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let microseconds = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(microseconds)
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

/// Column 22 of `/proc/self/stat`, in ticks since boot. Column 2 is the program's name, which may hold blanks and
/// parentheses, so counting starts behind its last parenthesis.
fn parse_start(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let ticks: u64 = behind_name.split_ascii_whitespace().nth(22 - 3)?.parse().ok()?;
    let milliseconds = ticks.checked_mul(1000)?.checked_div(ticks_per_second)?;
    Some(Duration::from_millis(milliseconds))
}

fn parse_uptime(uptime: &str) -> Option<Duration> {
    let seconds: f64 = uptime.split_ascii_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

fn unreadable(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{path} is not in the form the kernel documents"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn the_start_is_found_behind_a_name_with_parentheses() {
        let stat = "7 (a) b (c) R 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1";
        assert_eq!(parse_start(stat, 100), Some(Duration::from_millis(123_450)));
        assert_eq!(parse_start("7 (cut", 100), None);
        assert_eq!(parse_start(stat, 0), None);
    }

    #[test]
    fn the_process_is_younger_than_the_machine() {
        let booted = parse_uptime(&fs::read_to_string("/proc/uptime").unwrap()).unwrap();
        assert!(age().unwrap() <= booted + Duration::from_secs(1));
    }

    #[test]
    fn work_shows_in_the_cpu_time_of_thread_and_process() {
        let before = (cpu_time().unwrap(), thread_cpu_time().unwrap());
        let mut sum = 0u64;
        while thread_cpu_time().unwrap().total() < before.1.total() + Duration::from_millis(5) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(cpu_time().unwrap().total() > before.0.total());
    }

    #[test]
    fn dumpable_can_be_turned_off_and_on() {
        let before = is_dumpable().unwrap();
        set_dumpable(false).unwrap();
        assert!(!is_dumpable().unwrap());
        set_dumpable(true).unwrap();
        assert!(is_dumpable().unwrap());
        set_dumpable(before).unwrap();
    }

    #[test]
    fn the_open_file_limit_rises_to_the_hard_limit_once() {
        let first = raise_open_file_limit().unwrap();
        assert!(first.now >= first.before);
        let second = raise_open_file_limit().unwrap();
        assert_eq!(second, OpenFileLimit { before: first.now, now: first.now });
    }

    #[test]
    fn freed_heap_can_be_trimmed() {
        drop((0..1000).map(|_| vec![1u8; 10_000]).collect::<Vec<_>>());
        trim_heap();
    }
}
