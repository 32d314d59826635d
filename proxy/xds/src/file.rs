//! Noticing that a file was replaced.
//!
//! Owns the inotify watch on a directory. Never reads the file.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{EventMask, EventStream, Inotify, WatchMask};
use tokio_stream::StreamExt;

/// Waits for a file to be replaced: by a rename over it, by a rewrite in place, or by the swap of the `..data` link
/// that Kubernetes does in mounted volumes. Source: `PathConfigSource`, `WatchedDirectory`.
#[derive(Debug)]
pub struct FileWatcher {
    path: PathBuf,
    directory: PathBuf,
    /// Whether any moved entry counts, not only the file itself.
    any_entry: bool,
    watch: Option<EventStream<Vec<u8>>>,
}

/// The link that Kubernetes swaps.
const KUBERNETES_LINK: &str = "..data";

/// Room for events, in bytes; one event takes at most 272.
const BUFFER_BYTES: usize = 1024;

/// How long to wait for a directory that does not exist (yet).
const RETRY: Duration = Duration::from_secs(2);

impl FileWatcher {
    /// A watcher of `path`; with `watched_directory`, of every entry moved into that directory instead.
    #[must_use]
    pub fn new(path: &Path, watched_directory: Option<&Path>) -> Self {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut watcher = Self {
            path: path.to_owned(),
            directory: watched_directory.unwrap_or(parent).to_owned(),
            any_entry: watched_directory.is_some(),
            watch: None,
        };
        if let Err(error) = watcher.start() {
            tracing::warn!(directory = %watcher.directory.display(), %error, "cannot watch directory, trying again");
        }
        watcher
    }

    /// Returns when the file may have changed. Never fails: a directory that cannot be watched is tried again, and
    /// reported as changed once it can.
    pub async fn changed(&mut self) {
        loop {
            match self.wait().await {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(directory = %self.directory.display(), %error, "watch ended, trying again");
                    self.watch = None;
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    fn start(&mut self) -> io::Result<()> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::MOVED_TO
            | WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        inotify.watches().add(&self.directory, mask)?;
        self.watch = Some(inotify.into_event_stream(vec![0; BUFFER_BYTES])?);
        Ok(())
    }

    async fn wait(&mut self) -> io::Result<()> {
        if self.watch.is_none() {
            // What happened while nothing was watched is not known.
            return self.start();
        }
        let Self { path, directory, any_entry, watch } = self;
        let Some(watch) = watch else { return Ok(()) };
        while let Some(event) = watch.next().await {
            let event = event?;
            if event.mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED) {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the directory was moved or removed"));
            }
            if event.mask.contains(EventMask::Q_OVERFLOW)
                || matters(event.mask, event.name.as_deref(), path, directory, *any_entry)
            {
                return Ok(());
            }
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the watch ended"))
    }
}

fn matters(mask: EventMask, name: Option<&OsStr>, path: &Path, directory: &Path, any_entry: bool) -> bool {
    let Some(name) = name else { return false };
    // A new regular file is empty until it is closed; a new link is complete at once.
    if mask.contains(EventMask::CREATE) && !directory.join(name).is_symlink() {
        return false;
    }
    any_entry || Some(name) == path.file_name() || name == KUBERNETES_LINK
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    async fn changed_soon(watcher: &mut FileWatcher) -> bool {
        tokio::time::timeout(Duration::from_secs(5), watcher.changed()).await.is_ok()
    }

    async fn stays_quiet(watcher: &mut FileWatcher) -> bool {
        tokio::time::timeout(Duration::from_millis(50), watcher.changed()).await.is_err()
    }

    #[tokio::test]
    async fn r88_notices_renames_and_rewrites_of_the_file_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sds.yaml");
        let mut watcher = FileWatcher::new(&path, None);
        fs::write(directory.path().join("other"), "x").unwrap();
        assert!(stays_quiet(&mut watcher).await);
        fs::rename(directory.path().join("other"), &path).unwrap();
        assert!(changed_soon(&mut watcher).await);
        fs::write(&path, "y").unwrap();
        assert!(changed_soon(&mut watcher).await);
    }

    #[tokio::test]
    async fn r89_notices_the_swap_of_a_kubernetes_volume() {
        let volume = tempfile::tempdir().unwrap();
        for version in ["v1", "v2"] {
            fs::create_dir(volume.path().join(version)).unwrap();
            fs::write(volume.path().join(version).join("sds.yaml"), version).unwrap();
        }
        symlink("v1", volume.path().join("..data")).unwrap();
        let path = volume.path().join("sds.yaml");
        symlink("..data/sds.yaml", &path).unwrap();
        let mut watcher = FileWatcher::new(&path, None);
        symlink("v2", volume.path().join("..data_tmp")).unwrap();
        fs::rename(volume.path().join("..data_tmp"), volume.path().join("..data")).unwrap();
        assert!(changed_soon(&mut watcher).await);
        assert_eq!(fs::read_to_string(&path).unwrap(), "v2");
    }

    #[tokio::test]
    async fn r88_a_watched_directory_counts_every_entry_moved_into_it() {
        let watched = tempfile::tempdir().unwrap();
        let mut watcher = FileWatcher::new(Path::new("/nowhere/sds.yaml"), Some(watched.path()));
        fs::write(watched.path().join("tmp"), "x").unwrap();
        assert!(changed_soon(&mut watcher).await);
        fs::rename(watched.path().join("tmp"), watched.path().join("any")).unwrap();
        assert!(changed_soon(&mut watcher).await);
    }

    #[tokio::test]
    async fn a_directory_that_appears_later_is_reported() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("later");
        let mut watcher = FileWatcher::new(&directory.join("sds.yaml"), None);
        fs::create_dir(&directory).unwrap();
        assert!(changed_soon(&mut watcher).await);
    }
}
