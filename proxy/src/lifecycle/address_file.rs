//! The file that tells others the address of the admin port (`--admin-address-path`).
//!
//! Owns that readers see the whole address or no file. Never knows the address.

use std::fs;
use std::io;
use std::path::Path;

/// Replaces the content of `path` in one step.
///
/// # Errors
/// When the directory cannot be written to.
pub(super) fn write(path: &Path, address: &str) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    fs::write(&beside, address)?;
    fs::rename(&beside, path).inspect_err(|_| drop(fs::remove_file(&beside)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_the_last_address_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin");
        write(&path, "127.0.0.1:65535").unwrap();
        write(&path, "[::1]:1").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[::1]:1");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(write(&directory.path().join("no/admin"), "x").is_err());
    }
}
