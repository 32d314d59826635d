//! What the control plane wants its clients to have: resources by type and name, with versions.
//!
//! Owns the resources and decides when a version changes. Never knows who has received what
//! (see `session_sotw`, `session_delta`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use outrigger_api::pb::envoy::service::discovery::v3 as discovery;
use outrigger_api::pb::google::protobuf::{Any, Duration as ProtoDuration};
use prost::Message;

use crate::types;

/// One resource as read from a file, a test or the control port.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedResource {
    /// Name that clients subscribe to.
    pub name: String,
    /// The resource itself; its type URL is the resource type.
    pub body: Any,
    /// Time after which a client must forget the resource (`Resource.ttl`).
    pub ttl: Option<Duration>,
    /// Other names for it (`Resource.aliases`, delta VHDS alone).
    pub aliases: Vec<String>,
}

impl NamedResource {
    /// A resource under the name that its first field holds: all xDS resource types have their name in field 1.
    ///
    /// A `Resource` wrapper is opened, and its name, TTL and aliases are used. `None` if there is no name.
    pub fn from_any(body: Any) -> Option<Self> {
        if body.type_url == types::RESOURCE {
            let discovery::Resource { name, aliases, resource, ttl, .. } =
                discovery::Resource::decode(body.value.as_slice()).ok()?;
            let inner = Self::from_any(resource?);
            let name = if name.is_empty() { inner.as_ref()?.name.clone() } else { name };
            let ttl = ttl
                .and_then(|ttl| Some(Duration::new(u64::try_from(ttl.seconds).ok()?, u32::try_from(ttl.nanos).ok()?)));
            return Some(Self { name, body: inner?.body, ttl, aliases });
        }
        let Leading { name } = Leading::decode(body.value.as_slice()).ok()?;
        if name.is_empty() { None } else { Some(Self { name, body, ttl: None, aliases: Vec::new() }) }
    }
}

/// The first field of any xDS resource.
#[derive(Clone, PartialEq, Message)]
struct Leading {
    #[prost(string, tag = "1")]
    name: String,
}

/// Who put a resource here: reloading the directory touches only what came from it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// A test or the control port.
    Api,
    /// A file of the served directory.
    Directory,
}

/// One resource with its version.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Version of the content: the same content always has the same version, also after a restart.
    pub version: String,
    /// The resource.
    pub body: Any,
    /// Time to live at the client.
    pub ttl: Option<Duration>,
    /// Other names.
    pub aliases: Vec<String>,
    origin: Origin,
}

impl Resource {
    /// The delta form, also used to wrap a resource with a TTL in a state-of-the-world response.
    pub(crate) fn wrapped(&self, name: &str) -> discovery::Resource {
        discovery::Resource { resource: Some(self.body.clone()), ..self.heartbeat(name) }
    }

    /// The same without the body: it says that the resource is still valid (TTL heartbeat).
    pub(crate) fn heartbeat(&self, name: &str) -> discovery::Resource {
        discovery::Resource {
            name: name.to_owned(),
            aliases: self.aliases.clone(),
            version: self.version.clone(),
            ttl: self.ttl.map(proto_duration),
            ..Default::default()
        }
    }
}

/// All resources of one type.
#[derive(Clone, Debug, Default)]
pub struct TypeState {
    /// Counts the changes of this set; its text is the `version_info` of responses.
    pub version: u64,
    /// Version at which everything had to be sent again, changed or not.
    pub pushed: u64,
    /// The resources by name.
    pub resources: BTreeMap<String, Resource>,
}

impl TypeState {
    /// The name of the resource that goes by this name or alias; the name itself if there is none.
    pub(crate) fn canonical(&self, name: &str) -> String {
        let by_alias =
            || self.resources.iter().find(|(_, resource)| resource.aliases.iter().any(|alias| alias == name));
        match self.resources.contains_key(name) {
            true => name.to_owned(),
            false => by_alias().map_or(name, |(known, _)| known).to_owned(),
        }
    }
}

/// Everything the control plane serves.
#[derive(Clone, Debug, Default)]
pub struct Store {
    types: BTreeMap<String, TypeState>,
}

impl Store {
    /// The resources of a type; an empty set for a type never seen.
    pub fn of(&self, type_url: &str) -> &TypeState {
        static NOTHING: TypeState = TypeState { version: 0, pushed: 0, resources: BTreeMap::new() };
        self.types.get(type_url).unwrap_or(&NOTHING)
    }

    /// All types with their resources.
    pub fn types(&self) -> impl Iterator<Item = (&str, &TypeState)> {
        self.types.iter().map(|(url, state)| (url.as_str(), state))
    }

    /// Adds or replaces resources at once; the set version of each type that changed goes up by one.
    pub fn set(&mut self, resources: impl IntoIterator<Item = NamedResource>, origin: Origin) {
        let mut changed = BTreeSet::new();
        for resource in resources {
            let type_url = resource.body.type_url.clone();
            if self.put(resource, origin) {
                changed.insert(type_url);
            }
        }
        self.bump(changed);
    }

    /// Removes one resource; says whether it was there.
    pub fn remove(&mut self, type_url: &str, name: &str) -> bool {
        let removed = self.types.get_mut(type_url).is_some_and(|state| state.resources.remove(name).is_some());
        if removed {
            self.bump([type_url.to_owned()]);
        }
        removed
    }

    /// Makes `resources` the whole content of the directory: what came from it before and is not among them
    /// goes away, in the same step. What a test has set under the same name stays as the test wants it.
    pub fn replace_directory(&mut self, resources: Vec<NamedResource>) {
        let wanted: BTreeSet<(String, String)> =
            resources.iter().map(|resource| (resource.body.type_url.clone(), resource.name.clone())).collect();
        let mut changed = BTreeSet::new();
        for (type_url, state) in &mut self.types {
            let before = state.resources.len();
            state.resources.retain(|name, resource| {
                resource.origin == Origin::Api || wanted.contains(&(type_url.clone(), name.clone()))
            });
            if state.resources.len() != before {
                changed.insert(type_url.clone());
            }
        }
        for resource in resources {
            let type_url = resource.body.type_url.clone();
            let present = self.types.get(&type_url).and_then(|state| state.resources.get(&resource.name));
            if present.is_some_and(|present| present.origin == Origin::Api) {
                continue;
            }
            if self.put(resource, Origin::Directory) {
                changed.insert(type_url);
            }
        }
        self.bump(changed);
    }

    /// Makes every client of this type get all it asked for once more, under a new set version.
    pub fn push(&mut self, type_url: &str) {
        let state = self.types.entry(type_url.to_owned()).or_default();
        state.version += 1;
        state.pushed = state.version;
    }

    fn put(&mut self, resource: NamedResource, origin: Origin) -> bool {
        let NamedResource { name, body, ttl, aliases } = resource;
        let state = self.types.entry(body.type_url.clone()).or_default();
        let next = Resource { version: version_of(&body, ttl, &aliases), body, ttl, aliases, origin };
        let same = state.resources.get(&name).is_some_and(|present| present.version == next.version);
        state.resources.insert(name, next);
        !same
    }

    fn bump(&mut self, types: impl IntoIterator<Item = String>) {
        for type_url in types {
            self.types.entry(type_url).or_default().version += 1;
        }
    }
}

/// FNV-1a (64 bit) of everything a client can see of the resource, as hexadecimal.
fn version_of(body: &Any, ttl: Option<Duration>, aliases: &[String]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    add(body.type_url.as_bytes());
    add(&body.value);
    add(&ttl.map_or(0, |ttl| ttl.as_nanos()).to_le_bytes());
    for alias in aliases {
        add(alias.as_bytes());
        add(&[0]);
    }
    format!("{hash:016x}")
}

fn proto_duration(duration: Duration) -> ProtoDuration {
    ProtoDuration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A resource of `type_url` whose content differs with `salt`.
    pub(crate) fn resource(type_url: &str, name: &str, salt: u8) -> NamedResource {
        let mut value = Leading { name: name.to_owned() }.encode_to_vec();
        // Field 2, varint: unknown to `Leading`, and so skipped by it.
        value.extend([0x10, salt]);
        NamedResource {
            name: name.to_owned(),
            body: Any { type_url: type_url.to_owned(), value },
            ttl: None,
            aliases: Vec::new(),
        }
    }

    #[test]
    fn a_resource_knows_its_name() {
        let plain = resource(types::CLUSTER, "billing", 1);
        assert_eq!(NamedResource::from_any(plain.body.clone()), Some(plain.clone()));
        let wrapper = discovery::Resource {
            name: "routes/billing".to_owned(),
            ttl: Some(ProtoDuration { seconds: 3, nanos: 0 }),
            resource: Some(plain.body.clone()),
            ..Default::default()
        };
        let opened =
            NamedResource::from_any(Any { type_url: types::RESOURCE.to_owned(), value: wrapper.encode_to_vec() })
                .unwrap();
        assert_eq!((opened.name.as_str(), opened.ttl), ("routes/billing", Some(Duration::from_secs(3))));
        assert_eq!(NamedResource::from_any(Any { type_url: types::CLUSTER.to_owned(), value: Vec::new() }), None);
    }

    #[test]
    fn the_set_version_counts_changes_only() {
        let mut store = Store::default();
        store.set([resource(types::CLUSTER, "a", 1), resource(types::CLUSTER, "b", 1)], Origin::Api);
        assert_eq!(store.of(types::CLUSTER).version, 1);
        let first = store.of(types::CLUSTER).resources["a"].version.clone();
        store.set([resource(types::CLUSTER, "a", 1)], Origin::Api);
        assert_eq!(store.of(types::CLUSTER).version, 1);
        store.set([resource(types::CLUSTER, "a", 2)], Origin::Api);
        assert_eq!(store.of(types::CLUSTER).version, 2);
        assert_ne!(store.of(types::CLUSTER).resources["a"].version, first);
        assert!(store.remove(types::CLUSTER, "a"));
        assert!(!store.remove(types::CLUSTER, "a"));
        assert_eq!(store.of(types::CLUSTER).version, 3);
        store.push(types::CLUSTER);
        assert_eq!((store.of(types::CLUSTER).version, store.of(types::CLUSTER).pushed), (4, 4));
    }

    #[test]
    fn a_directory_replaces_only_what_came_from_it() {
        let mut store = Store::default();
        store.replace_directory(vec![resource(types::CLUSTER, "a", 1), resource(types::CLUSTER, "b", 1)]);
        store.set([resource(types::CLUSTER, "b", 9), resource(types::CLUSTER, "c", 1)], Origin::Api);
        let pinned = store.of(types::CLUSTER).resources["b"].version.clone();
        store.replace_directory(vec![resource(types::CLUSTER, "b", 2), resource(types::CLUSTER, "d", 1)]);
        let names: Vec<_> = store.of(types::CLUSTER).resources.keys().cloned().collect();
        assert_eq!(names, ["b", "c", "d"]);
        assert_eq!(store.of(types::CLUSTER).resources["b"].version, pinned);
        let version = store.of(types::CLUSTER).version;
        store.replace_directory(vec![resource(types::CLUSTER, "d", 1)]);
        assert_eq!(store.of(types::CLUSTER).version, version);
    }
}
