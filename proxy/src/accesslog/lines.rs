//! Files for lines that are not entries of access logs, such as events of endpoint health.
//!
//! Owns the way to the files that access logs use, so that one path is one file. Never formats.

use std::path::Path;
use std::sync::Arc;

use super::file::{LogFile, Target};
use super::{AccessLogError, AccessLogManager};

/// A file that takes lines.
#[derive(Debug)]
pub struct LineFile(Arc<LogFile>);

impl AccessLogManager {
    /// The file at `path`, opened for appending unless somebody has it open.
    pub fn lines(&self, path: &Path) -> Result<LineFile, AccessLogError> {
        self.file(Target::of(path)).map(LineFile)
    }
}

impl LineFile {
    /// Adds a line with its end. It is written with the next flush.
    pub fn append(&self, line: &[u8]) {
        self.0.append(line);
    }
}
