//! The kernel's notation for sets of CPUs: `0-3,8,10-11`.
//!
//! Owns reading and writing that notation. Never touches files.

use outrigger_sys::affinity::{CpuId, CpuSet};

/// Reads a list such as `0-3,8`; an empty text is the empty set, `None` is anything else than a list.
pub(super) fn parse_cpu_list(text: &str) -> Option<CpuSet> {
    let text = text.trim();
    if text.is_empty() {
        return Some(CpuSet::new());
    }
    let mut cpus = CpuSet::new();
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        if first > last || last > MOST_CPUS {
            return None;
        }
        cpus.extend((first..=last).map(CpuId));
    }
    Some(cpus)
}

/// Writes numbers in ascending order as a list, `-` for none.
pub(super) fn format_list(numbers: impl IntoIterator<Item = u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    if ranges.is_empty() {
        return "-".to_owned();
    }
    let ranges: Vec<_> = ranges
        .into_iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    ranges.join(",")
}

/// A damaged file shall not make us fill the memory with CPU numbers.
const MOST_CPUS: u32 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(text: &str) -> Option<Vec<u32>> {
        parse_cpu_list(text).map(|cpus| cpus.into_iter().map(|CpuId(cpu)| cpu).collect())
    }

    #[test]
    fn ranges_and_single_cpus_are_read() {
        assert_eq!(numbers("0-2,8,10-11\n"), Some(vec![0, 1, 2, 8, 10, 11]));
        assert_eq!(numbers("\n"), Some(vec![]));
    }

    #[test]
    fn what_is_not_a_list_is_told_apart_from_an_empty_one() {
        for text in ["x", "3-1", "1,", "-1", "0-4000000000", "0-3:1/2"] {
            assert_eq!(numbers(text), None, "{text}");
        }
    }

    #[test]
    fn lists_are_written_as_the_kernel_writes_them() {
        assert_eq!(format_list([0, 1, 2, 8, 10, 11]), "0-2,8,10-11");
        assert_eq!(format_list([]), "-");
    }
}
