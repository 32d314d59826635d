//! Buffers that are borrowed while bytes are in flight.
//!
//! Owns the per-worker pool, so that an idle connection holds no buffer. Never does I/O.

use std::cell::RefCell;

/// Bytes of a buffer for heads and small bodies.
pub const SMALL_BYTES: usize = 16 * 1024;
/// Bytes of a buffer for bulk data.
pub const LARGE_BYTES: usize = 64 * 1024;
/// Buffers kept of each size; more are freed.
const KEPT: usize = 64;

/// A fixed piece of memory, filled at its end and consumed at its start.
#[derive(Debug)]
pub struct Buffer {
    data: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    fn new(size: usize) -> Self {
        Self { data: vec![0; size].into_boxed_slice(), start: 0, end: 0 }
    }

    /// What was filled and not consumed.
    pub fn filled(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    /// Room at the end, after moving what is there to the front if that is needed to have any.
    pub fn spare(&mut self) -> &mut [u8] {
        if self.end == self.data.len() && self.start > 0 {
            self.data.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.data[self.end..]
    }

    /// `count` bytes of the room were filled.
    pub fn fill(&mut self, count: usize) {
        self.end = (self.end + count).min(self.data.len());
    }

    /// `count` bytes from the start are done with.
    pub fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Nothing filled.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// No room, even after moving.
    pub fn is_full(&self) -> bool {
        self.end - self.start == self.data.len()
    }

    /// All of its memory.
    pub fn capacity(&self) -> usize {
        self.data.len()
    }

    /// Moves what is filled into a larger buffer.
    pub fn grow(&mut self, size: usize) {
        if size > self.data.len() {
            let mut larger = vec![0; size].into_boxed_slice();
            let filled = self.end - self.start;
            larger[..filled].copy_from_slice(&self.data[self.start..self.end]);
            (self.data, self.start, self.end) = (larger, 0, filled);
        }
    }
}

/// A worker's free buffers.
#[derive(Debug, Default)]
pub struct BufferPool {
    small: RefCell<Vec<Buffer>>,
    large: RefCell<Vec<Buffer>>,
    text: RefCell<Vec<Vec<u8>>>,
}

impl BufferPool {
    /// A buffer for heads.
    pub fn small(&self) -> Buffer {
        self.small.borrow_mut().pop().unwrap_or_else(|| Buffer::new(SMALL_BYTES))
    }

    /// A buffer for bulk data.
    pub fn large(&self) -> Buffer {
        self.large.borrow_mut().pop().unwrap_or_else(|| Buffer::new(LARGE_BYTES))
    }

    /// Takes a buffer back.
    pub fn give(&self, mut buffer: Buffer) {
        let list = match buffer.capacity() {
            SMALL_BYTES => &self.small,
            LARGE_BYTES => &self.large,
            _ => return,
        };
        let mut list = list.borrow_mut();
        if list.len() < KEPT {
            (buffer.start, buffer.end) = (0, 0);
            list.push(buffer);
        }
    }

    /// An empty vector for output.
    pub fn text(&self) -> Vec<u8> {
        self.text.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes a vector back.
    pub fn give_text(&self, mut text: Vec<u8>) {
        let mut list = self.text.borrow_mut();
        if list.len() < KEPT && text.capacity() > 0 && text.capacity() <= SMALL_BYTES * 2 {
            text.clear();
            list.push(text);
        }
    }

    /// Frees what has not been needed lately: half of each list.
    pub fn shrink(&self) {
        for list in [&self.small, &self.large] {
            let mut list = list.borrow_mut();
            let keep = list.len() / 2;
            list.truncate(keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_moves_its_rest_to_the_front_when_it_has_to() {
        let mut buffer = Buffer::new(8);
        buffer.spare()[..8].copy_from_slice(b"abcdefgh");
        buffer.fill(8);
        assert!(buffer.is_full());
        buffer.consume(5);
        assert_eq!(buffer.spare().len(), 5);
        assert_eq!(buffer.filled(), b"fgh");
        buffer.grow(16);
        assert_eq!(buffer.filled(), b"fgh");
        buffer.consume(3);
        assert!(buffer.is_empty());
    }
}
