//! Noticing that a file was replaced.
//!
//! Owns the inotify watches on the directories that matter. Never reads the file.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio_stream::StreamExt;

/// Waits for a file to be replaced: by a rename over it, by a rewrite in place, or by the swap of any link on the way to
/// it, as Kubernetes swaps `..data` in mounted volumes. Source: `PathConfigSource`, `WatchedDirectory`.
#[derive(Debug)]
pub struct FileWatcher {
    path: PathBuf,
    /// Every entry of it counts, and nothing else.
    watched_directory: Option<PathBuf>,
    watch: Option<Watch>,
}

#[derive(Debug)]
struct Watch {
    events: EventStream<Vec<u8>>,
    places: Vec<(WatchDescriptor, Place)>,
}

/// What is looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Place {
    directory: PathBuf,
    /// All of them if `None`.
    entry: Option<OsString>,
}

/// Room for events, in bytes; one event takes at most 272.
const BUFFER_BYTES: usize = 1024;

/// How long to wait for a directory that does not exist (yet).
const RETRY: Duration = Duration::from_secs(2);

/// As many links are followed as Linux does.
const MOST_LINKS: usize = 40;

impl FileWatcher {
    /// A watcher of `path`; with `watched_directory`, of every entry moved into that directory instead.
    #[must_use]
    pub fn new(path: &Path, watched_directory: Option<&Path>) -> Self {
        let watched_directory = watched_directory.map(Path::to_path_buf);
        let mut watcher = Self { path: path.to_owned(), watched_directory, watch: None };
        if let Err(error) = watcher.start() {
            tracing::warn!(path = %watcher.path.display(), %error, "cannot watch, trying again");
        }
        watcher
    }

    /// Returns when the file may have changed. Never fails: a directory that cannot be watched is tried again, and
    /// reported as changed once it can.
    pub async fn changed(&mut self) {
        loop {
            // Links may lead elsewhere now. What happens from here on is seen by the new watch.
            match self.wait().await.and_then(|()| self.start()) {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(path = %self.path.display(), %error, "watch ended, trying again");
                    self.watch = None;
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    fn start(&mut self) -> io::Result<()> {
        let places = match &self.watched_directory {
            Some(directory) => vec![Place { directory: directory.clone(), entry: None }],
            None => places(&self.path),
        };
        let inotify = Inotify::init()?;
        let mask = WatchMask::MOVED_TO
            | WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let watched = places.into_iter().map(|place| Ok((inotify.watches().add(&place.directory, mask)?, place)));
        let places = watched.collect::<io::Result<_>>()?;
        self.watch = Some(Watch { events: inotify.into_event_stream(vec![0; BUFFER_BYTES])?, places });
        Ok(())
    }

    async fn wait(&mut self) -> io::Result<()> {
        // What happened while nothing was watched is not known.
        let Some(Watch { events, places }) = &mut self.watch else { return Ok(()) };
        while let Some(event) = events.next().await {
            let event = event?;
            if event.mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED) {
                return Err(io::Error::new(io::ErrorKind::NotFound, "a directory was moved or removed"));
            }
            let concerned = |(descriptor, place): &(WatchDescriptor, Place)| {
                *descriptor == event.wd && place.is_changed_by(event.mask, event.name.as_deref())
            };
            if event.mask.contains(EventMask::Q_OVERFLOW) || places.iter().any(concerned) {
                return Ok(());
            }
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the watch ended"))
    }
}

impl Place {
    fn is_changed_by(&self, mask: EventMask, name: Option<&OsStr>) -> bool {
        let Some(name) = name else { return false };
        // A new regular file is empty until it is closed; a new link is complete at once.
        if mask.contains(EventMask::CREATE) && !self.directory.join(name).is_symlink() {
            return false;
        }
        self.entry.as_deref().is_none_or(|entry| entry == name)
    }
}

/// The file, and each link on the way to it.
fn places(path: &Path) -> Vec<Place> {
    let mut places = Vec::new();
    let mut reached = PathBuf::new();
    let mut rest: VecDeque<OsString> = pieces(path);
    let mut links = 0;
    while let Some(piece) = rest.pop_front() {
        match Path::new(&piece).components().next() {
            Some(Component::Normal(_)) => {}
            Some(Component::ParentDir) if reached.file_name().is_some() => {
                reached.pop();
                continue;
            }
            _ => {
                reached.push(&piece);
                continue;
            }
        }
        let target = std::fs::read_link(reached.join(&piece)).ok().filter(|_| links < MOST_LINKS);
        if target.is_some() || rest.is_empty() {
            let directory = if reached.as_os_str().is_empty() { PathBuf::from(".") } else { reached.clone() };
            places.push(Place { directory, entry: Some(piece.clone()) });
        }
        match target {
            Some(target) => {
                links += 1;
                for piece in pieces(&target).into_iter().rev() {
                    rest.push_front(piece);
                }
            }
            None => reached.push(piece),
        }
    }
    places
}

fn pieces(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter(|component| *component != Component::CurDir)
        .map(|component| component.as_os_str().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    async fn changed_soon(watcher: &mut FileWatcher) -> bool {
        tokio::time::timeout(Duration::from_secs(60), watcher.changed()).await.is_ok()
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
    async fn any_link_on_the_way_may_be_swapped_and_the_next_one_is_watched_then() {
        let root = tempfile::tempdir().unwrap();
        for version in ["v1", "v2", "v3"] {
            fs::create_dir(root.path().join(version)).unwrap();
            fs::write(root.path().join(version).join("tls.crt"), version).unwrap();
        }
        let live = root.path().join("live");
        symlink(root.path().join("v1"), &live).unwrap();
        let path = live.join("tls.crt");
        let place = |directory: &str, entry: &str| Place {
            directory: root.path().canonicalize().unwrap().join(directory),
            entry: Some(entry.into()),
        };
        assert_eq!(places(&path.canonicalize().unwrap()), [place("v1", "tls.crt")]);
        let mut watcher = FileWatcher::new(&path, None);
        for version in ["v2", "v3"] {
            symlink(version, root.path().join("new")).unwrap();
            fs::rename(root.path().join("new"), &live).unwrap();
            assert!(changed_soon(&mut watcher).await, "{version}");
            fs::write(root.path().join(version).join("tls.crt"), "again").unwrap();
            assert!(changed_soon(&mut watcher).await, "{version} rewritten");
        }
        assert!(stays_quiet(&mut watcher).await);
    }

    #[test]
    fn a_circle_of_links_ends() {
        let root = tempfile::tempdir().unwrap();
        symlink("b", root.path().join("a")).unwrap();
        symlink("a", root.path().join("b")).unwrap();
        assert!(places(&root.path().join("a")).len() <= MOST_LINKS + 1);
        assert_eq!(places(Path::new("x")), [Place { directory: ".".into(), entry: Some("x".into()) }]);
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
