//! When a direction of a TCP connection is worth a larger buffer, and when a pipe.
//!
//! Owns what is remembered of the sizes of past reads. Never moves bytes.

/// How bytes are moved.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Method {
    /// By copies through a small buffer.
    Small,
    /// By copies through a large buffer.
    Large,
    /// Inside the kernel, through a pipe.
    Splice,
}

/// The history of one direction.
#[derive(Debug)]
pub struct Pace {
    /// Bytes of dense reads since the last lull.
    dense_bytes: usize,
    /// Sparse reads in a row.
    sparse_reads: u8,
    largest: Method,
}

impl Pace {
    /// No history; at most `limit` bytes may be under way.
    pub fn new(limit: usize) -> Self {
        let largest = match limit {
            0..LARGE_LIMIT_BYTES => Method::Small,
            LARGE_LIMIT_BYTES..SPLICE_LIMIT_BYTES => Method::Large,
            _ => Method::Splice,
        };
        Self { dense_bytes: 0, sparse_reads: 0, largest }
    }

    /// How to read next.
    pub fn method(&self) -> Method {
        match (self.dense_bytes, self.largest) {
            (SPLICE_FROM_BYTES.., Method::Splice) => Method::Splice,
            (LARGE_FROM_BYTES.., Method::Large | Method::Splice) => Method::Large,
            _ => Method::Small,
        }
    }

    /// A read, or a fill of the pipe, gave `count` bytes.
    pub fn record(&mut self, count: usize) {
        if count >= DENSE_BYTES {
            self.dense_bytes = self.dense_bytes.saturating_add(count);
            self.sparse_reads = 0;
            return;
        }
        // One short read is how each burst ends; only a row of them says that there are no bursts.
        self.sparse_reads += 1;
        if self.sparse_reads >= LULL_READS {
            (self.dense_bytes, self.sparse_reads) = (0, 0);
        }
    }

    /// Pipes cannot be had, or do not work between these two.
    pub fn never_splice(&mut self) {
        self.largest = self.largest_copy();
    }

    fn largest_copy(&self) -> Method {
        match self.largest {
            Method::Small => Method::Small,
            Method::Large | Method::Splice => Method::Large,
        }
    }
}

/// A read of this size shows bulk data.
const DENSE_BYTES: usize = 16 * 1024;
/// So many reads that are not dense end a bulk phase.
const LULL_READS: u8 = 4;
/// Dense bytes that make a large buffer worth it: one filled small buffer.
const LARGE_FROM_BYTES: usize = DENSE_BYTES;
/// Dense bytes that make a pipe worth it.
const SPLICE_FROM_BYTES: usize = 256 * 1024;
/// Connections that may buffer less than this get no large buffer.
const LARGE_LIMIT_BYTES: usize = 64 * 1024;
/// Connections that may buffer less than this get no pipe, as it would be filled and drained in small pieces.
const SPLICE_LIMIT_BYTES: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_direction_grows_while_its_reads_are_dense() {
        let mut pace = Pace::new(MIB);
        assert_eq!(pace.method(), Method::Small);
        pace.record(DENSE_BYTES);
        assert_eq!(pace.method(), Method::Large);
        for _ in 0..4 {
            pace.record(64 * 1024);
        }
        assert_eq!(pace.method(), Method::Splice);
    }

    #[test]
    fn small_messages_stay_small_whatever_they_add_up_to() {
        let mut pace = Pace::new(MIB);
        for _ in 0..10_000 {
            pace.record(4096);
        }
        assert_eq!(pace.method(), Method::Small);
    }

    #[test]
    fn only_a_row_of_sparse_reads_ends_a_bulk_phase() {
        let mut pace = Pace::new(MIB);
        pace.record(MIB);
        for _ in 0..100 {
            pace.record(100);
            pace.record(100);
            pace.record(MIB);
        }
        assert_eq!(pace.method(), Method::Splice);
        for _ in 0..LULL_READS {
            pace.record(100);
        }
        assert_eq!(pace.method(), Method::Small);
    }

    #[test]
    fn limits_and_missing_pipes_are_respected() {
        for (limit, most) in [(16 * 1024, Method::Small), (64 * 1024, Method::Large), (MIB, Method::Splice)] {
            let mut pace = Pace::new(limit);
            pace.record(MIB);
            assert_eq!(pace.method(), most);
            pace.never_splice();
            assert_eq!(pace.method(), if most == Method::Splice { Method::Large } else { most });
        }
    }
}
