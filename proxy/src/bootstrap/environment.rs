//! The files and variables of this process, as the reader of configuration sees them.

use std::io;
use std::path::Path;

use outrigger_config::Environment;

/// The real system.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Environment for System {
    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}
