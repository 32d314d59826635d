//! The runtime layers (`LayeredRuntime`): static, disk, admin and discovered values, the last layer winning.
//!
//! Owns the values of each layer and their merge. Never reads a directory or a control plane itself.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_config::bootstrap::{RuntimeLayer, RuntimeLayerKind, RuntimeValue, RuntimeValues};

use super::RuntimeSnapshot;

/// All layers in order.
pub struct RuntimeLayers {
    layers: Vec<Layer>,
    /// What an operator wants for a while; above all layers.
    by_hand: RuntimeValues,
}

/// What [`RuntimeLayers::set_by_hand`] has set, where layers are shown.
const BY_HAND: &str = "overrides";

struct Layer {
    name: Arc<str>,
    kind: LayerKind,
    values: RuntimeValues,
}

enum LayerKind {
    Fixed,
    Disk(Vec<PathBuf>),
    Admin,
    Rtds(Arc<str>),
}

/// The admin port cannot change runtime.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no admin layer specified")]
pub struct NoAdminLayer;

/// Files below a directory: their paths relative to it, and their content.
pub type ReadTree<'a> = dyn Fn(&Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> + 'a;

impl RuntimeLayers {
    /// The layers of a bootstrap. `cluster` is `node.cluster`.
    pub fn new(layers: &[RuntimeLayer], cluster: &str) -> Self {
        let layers = layers.iter().map(|RuntimeLayer { name, kind }| {
            let (kind, values) = match kind {
                RuntimeLayerKind::Static(values) => (LayerKind::Fixed, values.clone()),
                RuntimeLayerKind::Disk { symlink_root, subdirectory, append_service_cluster } => {
                    let mut directory = symlink_root.join(subdirectory);
                    if *append_service_cluster {
                        directory = directory.join(cluster);
                    }
                    (LayerKind::Disk(vec![directory]), RuntimeValues::new())
                }
                RuntimeLayerKind::Admin => (LayerKind::Admin, RuntimeValues::new()),
                RuntimeLayerKind::Rtds { name, source: _ } => (LayerKind::Rtds(Arc::clone(name)), RuntimeValues::new()),
            };
            Layer { name: Arc::clone(name), kind, values }
        });
        Self { layers: layers.collect(), by_hand: RuntimeValues::new() }
    }

    /// Reads the disk layers again. Returns what could not be read; such a layer keeps its values.
    pub fn read_disk(&mut self, read: &ReadTree<'_>) -> Vec<(PathBuf, io::Error)> {
        let mut failures = Vec::new();
        for layer in &mut self.layers {
            let LayerKind::Disk(directories) = &layer.kind else { continue };
            for directory in directories {
                match read(directory) {
                    Ok(files) => layer.values = files.iter().filter_map(|(path, bytes)| entry(path, bytes)).collect(),
                    Err(error) => failures.push((directory.clone(), error)),
                }
            }
        }
        failures
    }

    /// Directories of the disk layers.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.layers.iter().flat_map(|layer| {
            match &layer.kind {
                LayerKind::Disk(directories) => directories.as_slice(),
                _ => &[],
            }
            .iter()
            .map(PathBuf::as_path)
        })
    }

    /// Sets a value in the admin layer; an empty one is taken out again.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), NoAdminLayer> {
        let admin = self.layers.iter_mut().find(|layer| matches!(layer.kind, LayerKind::Admin)).ok_or(NoAdminLayer)?;
        if value.is_empty() {
            admin.values.remove(key);
        } else {
            admin.values.insert(key.to_owned(), read_value(value));
        }
        Ok(())
    }

    /// Sets a value above all layers, or takes it away.
    pub fn set_by_hand(&mut self, key: &str, value: Option<&str>) {
        match value {
            Some(value) => drop(self.by_hand.insert(key.to_owned(), read_value(value))),
            None => drop(self.by_hand.remove(key)),
        }
    }

    /// Replaces the values of a discovered layer; false if there is none of that name.
    pub fn set_discovered(&mut self, name: &str, values: RuntimeValues) -> bool {
        let wanted = |layer: &&mut Layer| matches!(&layer.kind, LayerKind::Rtds(resource) if **resource == *name);
        let Some(layer) = self.layers.iter_mut().find(wanted) else { return false };
        layer.values = values;
        true
    }

    /// Overridden by the admin layer.
    pub fn admin_overrides(&self) -> usize {
        let admin = self.layers.iter().find(|layer| matches!(layer.kind, LayerKind::Admin));
        admin.map_or(0, |layer| layer.values.len())
    }

    /// All layers merged.
    pub fn snapshot(&self) -> RuntimeSnapshot {
        let mut values = RuntimeValues::new();
        for layer in self.layers.iter().map(|layer| &layer.values).chain([&self.by_hand]) {
            values.extend(layer.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        let layers = self.layers.iter().map(|layer| (Arc::clone(&layer.name), layer.values.clone()));
        let by_hand = (!self.by_hand.is_empty()).then(|| (BY_HAND.into(), self.by_hand.clone()));
        RuntimeSnapshot { values, layers: layers.chain(by_hand).collect() }
    }
}

/// A file's key: its path with dots. Its value may end in line breaks, and lines that begin with `#` do not count.
fn entry(path: &Path, bytes: &[u8]) -> Option<(String, RuntimeValue)> {
    let parts: Option<Vec<&str>> = path.iter().map(|part| part.to_str()).collect();
    let text = std::str::from_utf8(bytes).ok()?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    Some((parts?.join("."), read_value(lines.join("\n").trim_end())))
}

/// A value written as text.
fn read_value(text: &str) -> RuntimeValue {
    RuntimeValue {
        text: text.to_owned(),
        number: text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
        flag: match text.trim() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        },
        fraction: None,
    }
}

/// Reads a directory as the disk layers need it; hidden entries do not count.
pub fn read_tree(root: &Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        for item in std::fs::read_dir(root.join(&directory))? {
            let item = item?;
            if item.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let path = directory.join(item.file_name());
            // Links are followed: mounted volumes are made of them.
            if std::fs::metadata(item.path())?.is_dir() {
                if path.components().count() < DEEPEST {
                    open.push(path);
                }
            } else {
                files.push((path, std::fs::read(item.path())?));
            }
        }
    }
    Ok(files)
}

/// A loop of links must end.
const DEEPEST: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str, kind: RuntimeLayerKind) -> RuntimeLayer {
        RuntimeLayer { name: name.into(), kind }
    }

    fn values(pairs: &[(&str, &str)]) -> RuntimeValues {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), read_value(value))).collect()
    }

    fn text<'a>(snapshot: &'a RuntimeSnapshot, key: &str) -> &'a str {
        &snapshot.values[key].text
    }

    #[test]
    fn later_layers_win_and_each_source_changes_only_its_own() {
        let source = outrigger_config::source::ConfigSource {
            kind: outrigger_config::source::SourceKind::Ads,
            initial_fetch_timeout: None,
        };
        let disk = RuntimeLayerKind::Disk {
            symlink_root: "/srv".into(),
            subdirectory: "sub".into(),
            append_service_cluster: true,
        };
        let mut layers = RuntimeLayers::new(
            &[
                layer("base", RuntimeLayerKind::Static(values(&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")]))),
                layer("disk", disk),
                layer("rtds", RuntimeLayerKind::Rtds { name: "r".into(), source }),
                layer("admin", RuntimeLayerKind::Admin),
            ],
            "web",
        );
        assert_eq!(layers.directories().collect::<Vec<_>>(), [Path::new("/srv/sub/web")]);
        let failures =
            layers.read_disk(&|_| Ok(vec![("x/b".into(), b"# a comment\n2\n".to_vec()), ("b".into(), b"2".to_vec())]));
        assert!(failures.is_empty());
        assert!(layers.set_discovered("r", values(&[("c", "3")])));
        assert!(!layers.set_discovered("other", RuntimeValues::new()));
        layers.set("d", "true").unwrap();
        let snapshot = layers.snapshot();
        assert_eq!(["a", "b", "c", "d", "x.b"].map(|key| text(&snapshot, key)), ["1", "2", "3", "true", "2"]);
        assert_eq!((snapshot.values["d"].flag, snapshot.values["x.b"].number), (Some(true), Some(2.0)));
        layers.set("d", "").unwrap();
        assert_eq!((text(&layers.snapshot(), "d"), layers.admin_overrides()), ("1", 0));
        assert_eq!(snapshot.layers.len(), 4);
    }

    #[test]
    fn without_an_admin_layer_nothing_can_be_set() {
        assert_eq!(RuntimeLayers::new(&[], "").set("a", "1").unwrap_err().to_string(), "no admin layer specified");
    }
}
