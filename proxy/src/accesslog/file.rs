//! One log file, shared by all threads.
//!
//! Owns its buffer and its descriptor. Workers only append to the buffer; whoever flushes swaps the buffer for an empty one
//! and writes it outside the lock. Never decides when to flush (see `manager`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tracing::warn;

use super::stats::{FileStats, increment};

/// What a log file writes to.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Target {
    /// A file by its path.
    Path(PathBuf),
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Target {
    /// The target of a configured path.
    pub fn of(path: &Path) -> Self {
        // Opening these by path fails when they are sockets, as under systemd.
        match path.to_str() {
            Some("/dev/stdout") => Target::Stdout,
            Some("/dev/stderr") => Target::Stderr,
            _ => Target::Path(path.to_owned()),
        }
    }

    /// The path, for messages.
    pub fn path(&self) -> &Path {
        match self {
            Target::Path(path) => path,
            Target::Stdout => Path::new("/dev/stdout"),
            Target::Stderr => Path::new("/dev/stderr"),
        }
    }

    /// Opens it for appending.
    pub fn open(&self) -> io::Result<File> {
        match self {
            Target::Path(path) => OpenOptions::new().append(true).create(true).open(path),
            Target::Stdout => Ok(io::stdout().as_fd().try_clone_to_owned()?.into()),
            Target::Stderr => Ok(io::stderr().as_fd().try_clone_to_owned()?.into()),
        }
    }
}

/// What all files of the process share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Wakes whoever flushes.
    pub wake: Notify,
    /// `filesystem.` stats.
    pub stats: Arc<FileStats>,
    /// A buffer of this size is written at once.
    pub min_flush_bytes: usize,
}

/// A log file.
#[derive(Debug)]
pub(super) struct LogFile {
    target: Target,
    shared: Arc<Shared>,
    /// Lines not yet written. The lock is held for a copy of one line, or for a swap of the whole; never for I/O.
    pending: Mutex<Vec<u8>>,
    /// The lock is held while writing, so that buffers reach the file in order. Workers never take it.
    output: Mutex<Output>,
    reopen: AtomicBool,
    /// A flush is under way or about to be.
    flushing: AtomicBool,
}

#[derive(Debug)]
struct Output {
    file: File,
    /// The buffer that is swapped in next.
    spare: Vec<u8>,
    /// The last write failed: said once, not for each buffer.
    failing: bool,
}

impl LogFile {
    /// Opens the file.
    pub fn open(target: Target, shared: Arc<Shared>) -> io::Result<Self> {
        let file = target.open()?;
        Ok(Self {
            target,
            shared,
            pending: Mutex::default(),
            output: Mutex::new(Output { file, spare: Vec::new(), failing: false }),
            reopen: AtomicBool::new(false),
            flushing: AtomicBool::new(false),
        })
    }

    /// Adds a line to the buffer, or drops it when [`MAX_PENDING_BYTES`] are waiting.
    pub fn append(&self, line: &[u8]) {
        let (before, after) = {
            let mut pending = lock(&self.pending);
            let before = pending.len();
            if before + line.len() > MAX_PENDING_BYTES {
                increment(&self.shared.stats.write_dropped);
                return;
            }
            // Counted before the line can be taken out again, so that the gauge never goes below zero.
            self.shared.stats.write_total_buffered.fetch_add(line.len() as i64, Ordering::Relaxed);
            pending.extend_from_slice(line);
            (before, pending.len())
        };
        increment(&self.shared.stats.write_buffered);
        let min = self.shared.min_flush_bytes;
        if before == 0 || (before < min && after >= min) {
            self.shared.wake.notify_one();
        }
    }

    /// Bytes waiting.
    pub fn pending_bytes(&self) -> usize {
        lock(&self.pending).len()
    }

    /// It is time to write: there is enough of it, or the file is to be opened again.
    pub fn wants_flush(&self) -> bool {
        self.reopen.load(Ordering::Relaxed) || self.pending_bytes() >= self.shared.min_flush_bytes
    }

    /// The next flush opens the file again. Standard streams stay as they are.
    pub fn reopen(&self) {
        if matches!(self.target, Target::Path(_)) {
            self.reopen.store(true, Ordering::Relaxed);
            self.shared.wake.notify_one();
        }
    }

    /// Claims the right to flush in the background; false if somebody has it. [`LogFile::flush_claimed`] gives it back.
    pub fn claim(&self) -> bool {
        !self.flushing.swap(true, Ordering::AcqRel)
    }

    /// Flushes, gives the claim back, and asks for another flush if there is more to do by then.
    pub fn flush_claimed(&self) {
        self.flush();
        self.flushing.store(false, Ordering::Release);
        // After a failed reopening the next try comes with the next flush, not at once.
        if self.pending_bytes() >= self.shared.min_flush_bytes {
            self.shared.wake.notify_one();
        }
    }

    /// Whether a background flush is under way.
    pub fn is_flushing(&self) -> bool {
        self.flushing.load(Ordering::Acquire)
    }

    /// Writes what is waiting. Blocks on the file.
    pub fn flush(&self) {
        let mut output = lock(&self.output);
        let Output { file, spare, failing } = &mut *output;
        if self.reopen.swap(false, Ordering::Relaxed) {
            match self.target.open() {
                Ok(new) => *file = new,
                // The old file still takes lines, wherever it was moved to: better there than lost.
                Err(error) => {
                    increment(&self.shared.stats.reopen_failed);
                    warn!(path = %self.target.path().display(), %error, "cannot open access log again");
                    self.reopen.store(true, Ordering::Relaxed);
                }
            }
        }
        std::mem::swap(&mut *lock(&self.pending), spare);
        if spare.is_empty() {
            return;
        }
        let result = file.write_all(spare);
        self.shared.stats.write_total_buffered.fetch_sub(spare.len() as i64, Ordering::Relaxed);
        match &result {
            Ok(()) => increment(&self.shared.stats.write_completed),
            Err(error) => {
                increment(&self.shared.stats.write_failed);
                if !*failing {
                    warn!(path = %self.target.path().display(), %error, "cannot write access log");
                }
            }
        }
        *failing = result.is_err();
        spare.clear();
        // A burst must not hold its memory for ever.
        spare.shrink_to(2 * self.shared.min_flush_bytes);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one file may have waiting; about a second of lines at full speed.
pub(super) const MAX_PENDING_BYTES: usize = 8 * 1024 * 1024;
