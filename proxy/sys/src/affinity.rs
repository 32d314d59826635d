//! CPU affinity of the calling thread (`sched_setaffinity(2)`).
//!
//! Owns reading and setting the set of CPUs a thread may run on. Never chooses CPUs.

use std::collections::BTreeSet;
use std::{fmt, io, mem};

/// A logical CPU by the number the kernel gives it (`/sys/devices/system/cpu/cpuN`).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CpuId(pub u32);

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of logical CPUs, in ascending order.
pub type CpuSet = BTreeSet<CpuId>;

/// The CPUs that the calling thread may run on: what `taskset` or a cpuset cgroup left of the machine.
///
/// A new thread inherits the set of its creator, so ask before any thread is bound.
pub fn allowed_cpus() -> io::Result<CpuSet> {
    let mut mask = vec![0 as Word; INITIAL_CPUS / WORD_BITS];
    loop {
        let bytes = mask.len() * size_of::<Word>();
        // SAFETY: the pointer and the length describe memory of `mask`; the kernel writes at most `bytes` bytes there
        // and every bit pattern is a valid `Word`.
        let answer = unsafe { libc::sched_getaffinity(CALLING_THREAD, bytes, mask.as_mut_ptr().cast()) };
        match crate::check(answer) {
            Ok(_) => return Ok(cpus_in(&mask)),
            // The kernel was built for more CPUs than the mask can hold.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && mask.len() * WORD_BITS < MOST_CPUS => {
                mask.resize(mask.len() * 2, 0);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Lets the calling thread run on `cpus` only.
///
/// CPUs that are offline or outside the cpuset are skipped by the kernel; it is an error if none remains, or if a
/// number is beyond any kernel's reach.
pub fn bind_current_thread(cpus: &CpuSet) -> io::Result<()> {
    let Some(CpuId(last)) = cpus.last() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a thread cannot be bound to no CPU"));
    };
    let last = *last as usize;
    if last >= MOST_CPUS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no CPU {last}")));
    }
    let mut mask = vec![0 as Word; last / WORD_BITS + 1];
    for CpuId(cpu) in cpus {
        mask[*cpu as usize / WORD_BITS] |= 1 << (*cpu as usize % WORD_BITS);
    }
    // SAFETY: the pointer and the length describe initialised memory of `mask`, which the kernel only reads.
    let answer =
        unsafe { libc::sched_setaffinity(CALLING_THREAD, mem::size_of_val(mask.as_slice()), mask.as_ptr().cast()) };
    crate::check(answer).map(drop)
}

fn cpus_in(mask: &[Word]) -> CpuSet {
    let bits = mask.iter().enumerate().flat_map(|(index, word)| {
        (0..WORD_BITS).filter(move |bit| word & (1 << bit) != 0).map(move |bit| index * WORD_BITS + bit)
    });
    bits.filter_map(|cpu| u32::try_from(cpu).ok()).map(CpuId).collect()
}

/// The kernel counts CPU masks in these, which also gives them the alignment it wants.
type Word = libc::c_ulong;

const WORD_BITS: usize = Word::BITS as usize;
const CALLING_THREAD: libc::pid_t = 0;
const INITIAL_CPUS: usize = 1024;
/// Far above the largest `CONFIG_NR_CPUS` (8192), so that growing the mask ends.
const MOST_CPUS: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_thread_runs_where_it_was_bound() {
        let allowed = allowed_cpus().unwrap();
        let last = *allowed.last().unwrap();
        std::thread::spawn(move || {
            bind_current_thread(&CpuSet::from([last])).unwrap();
            assert_eq!(allowed_cpus().unwrap(), CpuSet::from([last]));
        })
        .join()
        .unwrap();
        assert_eq!(allowed_cpus().unwrap(), allowed, "other threads keep their set");
    }

    #[test]
    fn no_cpu_and_impossible_cpus_are_errors() {
        assert_eq!(bind_current_thread(&CpuSet::new()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(
            bind_current_thread(&CpuSet::from([CpuId(u32::MAX)])).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        let absent = std::thread::spawn(|| bind_current_thread(&CpuSet::from([CpuId(8000)]))).join().unwrap();
        assert_eq!(absent.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn a_mask_becomes_cpu_numbers_across_words() {
        assert_eq!(cpus_in(&[0b101, 0b10]), CpuSet::from([CpuId(0), CpuId(2), CpuId(WORD_BITS as u32 + 1)]));
    }
}
