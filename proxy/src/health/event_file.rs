//! A file that takes events, one on a line.
//!
//! Owns the way to the files that access logs use too. Never formats an event.

use std::path::Path;
use std::sync::Arc;

use crate::accesslog::{AccessLogError, AccessLogManager, LineFile};

/// A file for events. Lines are buffered and written with those of access logs.
#[derive(Clone, Debug)]
pub struct EventFile(Arc<LineFile>);

impl EventFile {
    /// Opens `path` for appending; the same file again if somebody has it open.
    pub fn open(path: &Path, files: &AccessLogManager) -> Result<Self, AccessLogError> {
        Ok(Self(Arc::new(files.lines(path)?)))
    }

    /// Adds a line, which has its end already.
    pub fn append(&self, line: &str) {
        self.0.append(line.as_bytes());
    }
}
