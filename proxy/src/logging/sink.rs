//! Where log lines go.
//!
//! Owns the open file and the pattern, and that lines of several threads do not mix. Never decides what is logged.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::pattern::{Pattern, Record};

/// A line buffer larger than this is not kept.
const KEPT_BUFFER: usize = 16 * 1024;

/// Writes lines. Shared by all threads: the lock is held while a line is put together and written, so that it comes out
/// whole. Nothing is logged and no foreign code runs under it.
#[derive(Debug)]
pub(super) struct Sink {
    path: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    pattern: Pattern,
    /// Standard error if `None`.
    file: Option<File>,
    buffer: String,
    previous: Option<SystemTime>,
}

impl Sink {
    pub fn open(path: Option<&Path>, pattern: Pattern) -> io::Result<Self> {
        let file = path.map(open).transpose()?;
        let state = State { pattern, file, buffer: String::new(), previous: None };
        Ok(Self { path: path.map(Path::to_owned), state: Mutex::new(state) })
    }

    pub fn reopen(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = open(path)?;
        self.lock().file = Some(file);
        Ok(())
    }

    pub fn set_pattern(&self, pattern: Pattern) {
        self.lock().pattern = pattern;
    }

    /// Writes a line. A log that cannot be written is no reason to fail, and there is nobody to tell.
    pub fn write(&self, mut record: Record<'_>) {
        let state = &mut *self.lock();
        let previous = state.previous.replace(record.time);
        record.since_previous =
            previous.and_then(|previous| record.time.duration_since(previous).ok()).unwrap_or(Duration::ZERO);
        state.buffer.clear();
        state.pattern.write(&record, &mut state.buffer);
        state.buffer.push('\n');
        let line = state.buffer.as_bytes();
        let _ = match &mut state.file {
            Some(file) => file.write_all(line),
            None => io::stderr().lock().write_all(line),
        };
        state.buffer.shrink_to(KEPT_BUFFER);
    }

    /// A panic while the lock was held can at worst have left half a line in the buffer, which is cleared anyway.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}
