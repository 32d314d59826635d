//! Serving a directory: all its YAML and JSON files together are one snapshot, read again when they change.
//!
//! Owns finding, reading and watching the files. Parsing is `text`'s; versions are `state`'s.
//!
//! The directory is polled: that works the same on every file system, on mounted ConfigMaps (whose
//! files change by a renamed symlink) and for editors that replace files. A change is taken up when two looks in
//! a row see the same files, so that a file which is being written is not read half-way.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::shared::Shared;
use crate::state::NamedResource;
use crate::text::{TextError, TextFormat, parse};

/// Time between two looks at the directory.
const PERIOD: Duration = Duration::from_millis(100);

/// Why a directory could not be served.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A file or the directory could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file does not hold resources.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TextError,
    },
    /// Two files, or one, say the same thing twice.
    #[error("{}: {kind} {name} is also in {}", second.display(), first.display())]
    Twice {
        /// Short name of the type.
        kind: String,
        /// Name of the resource.
        name: String,
        /// Where it was first.
        first: PathBuf,
        /// Where it was again.
        second: PathBuf,
    },
}

/// Reads all files with the endings `.yaml`, `.yml` and `.json` below `directory`, hidden ones left out.
///
/// # Errors
/// The first file that cannot be read or parsed, and resources that are there twice: a snapshot is whole or not at all.
pub fn read(directory: &Path) -> Result<Vec<NamedResource>, DirectoryError> {
    let mut resources: Vec<NamedResource> = Vec::new();
    let mut origins = std::collections::BTreeMap::new();
    for path in files(directory)? {
        let text =
            std::fs::read_to_string(&path).map_err(|source| DirectoryError::Read { path: path.clone(), source })?;
        let format = if has_ending(&path, &["json"]) { TextFormat::Json } else { TextFormat::Yaml };
        let parsed = parse(&text, format).map_err(|source| DirectoryError::Parse { path: path.clone(), source })?;
        for resource in parsed {
            let key = (resource.body.type_url.clone(), resource.name.clone());
            if let Some(first) = origins.insert(key, path.clone()) {
                let kind = crate::types::short_name(&resource.body.type_url).to_owned();
                return Err(DirectoryError::Twice { kind, name: resource.name, first, second: path });
            }
            resources.push(resource);
        }
    }
    Ok(resources)
}

/// Serves the directory from now on. A broken state is reported on stderr and the last good one stays.
pub(crate) async fn follow(directory: PathBuf, shared: Arc<Shared>, mut served: Fingerprint) {
    let mut seen = served.clone();
    loop {
        tokio::time::sleep(PERIOD).await;
        let now = fingerprint(&directory);
        let settled = now == seen;
        seen = now;
        if !settled || seen == served {
            continue;
        }
        served = seen.clone();
        match read(&directory) {
            Ok(resources) => shared.change(|world| {
                world.directory_error = None;
                world.store.replace_directory(resources);
            }),
            Err(error) => {
                eprintln!("control-plane-mock: not served, the last good state stays: {error}");
                shared.change(|world| world.directory_error = Some(error.to_string()));
            }
        }
    }
}

/// What can be seen of the files without reading them.
pub(crate) type Fingerprint = Vec<(PathBuf, Option<SystemTime>, u64)>;

pub(crate) fn fingerprint(directory: &Path) -> Fingerprint {
    // A directory that is gone for a moment looks empty, and reading it will say why.
    let mut seen: Fingerprint = Vec::new();
    for path in files(directory).unwrap_or_default() {
        let metadata = std::fs::metadata(&path).ok();
        let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        seen.push((path, modified, metadata.map_or(0, |metadata| metadata.len())));
    }
    seen
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, DirectoryError> {
    let failed = |source| DirectoryError::Read { path: directory.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if has_ending(&path, &["yaml", "yml", "json"]) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    path.extension().is_some_and(|ending| endings.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTERS: &str = "resources:\n- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: a\n";

    #[test]
    fn all_files_are_one_snapshot() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("more")).unwrap();
        std::fs::write(directory.path().join("a.yaml"), CLUSTERS).unwrap();
        std::fs::write(directory.path().join("more/b.yml"), CLUSTERS.replace("name: a", "name: b")).unwrap();
        std::fs::write(directory.path().join("notes.txt"), "not a resource").unwrap();
        std::fs::write(directory.path().join(".hidden.yaml"), "[").unwrap();
        let names: Vec<_> = read(directory.path()).unwrap().into_iter().map(|resource| resource.name).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn errors_name_the_file() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a.yaml"), CLUSTERS).unwrap();
        std::fs::write(directory.path().join("b.yaml"), CLUSTERS).unwrap();
        let message = read(directory.path()).unwrap_err().to_string();
        assert!(message.contains("b.yaml: cds a is also in") && message.contains("a.yaml"), "{message}");
        std::fs::write(directory.path().join("b.yaml"), "resources: [").unwrap();
        assert!(read(directory.path()).unwrap_err().to_string().contains("b.yaml"));
    }
}
