//! What arrived, as the admin port shows it: each resource as received, its version, and what was refused.
//!
//! Owns the records. Never decides anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_api::pb::google::protobuf::Any;
use outrigger_xds::ResourceKind;

use super::journal::Former;

/// A resource as received.
#[derive(Clone, Debug)]
pub struct Record {
    /// `version_info`; empty for static resources.
    pub version: String,
    /// When it was accepted.
    pub updated: SystemTime,
    /// As received; none for static resources when the bootstrap message is not at hand.
    pub resource: Option<Arc<Any>>,
}

/// A resource that was refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// As received.
    pub record: Record,
    /// Why.
    pub details: String,
}

/// All there is under one name.
#[derive(Clone, Debug, Default)]
pub struct ResourceHistory {
    /// From the bootstrap.
    pub is_static: bool,
    /// In use.
    pub active: Option<Record>,
    /// Accepted, not in use yet.
    pub warming: Option<Record>,
    /// Removed, but its connections live on.
    pub draining: Option<Record>,
    /// The last attempt, if it failed.
    pub refusal: Option<Refusal>,
    /// Since when all attempts have failed.
    pub failing_since: Option<SystemTime>,
}

impl ResourceHistory {
    fn is_empty(&self) -> bool {
        self.active.is_none() && self.warming.is_none() && self.draining.is_none() && self.refusal.is_none()
    }
}

/// The records of all types.
#[derive(Debug, Default)]
pub struct History {
    kinds: BTreeMap<ResourceKind, BTreeMap<Arc<str>, ResourceHistory>>,
    versions: BTreeMap<ResourceKind, String>,
}

impl History {
    /// Resources of a type by name.
    pub fn of(&self, kind: ResourceKind) -> impl Iterator<Item = (&Arc<str>, &ResourceHistory)> {
        self.kinds.get(&kind).into_iter().flatten()
    }

    /// What a resource is now, or will be once it is not waited for any more.
    pub(super) fn latest(&self, kind: ResourceKind, name: &str) -> Former {
        let Some(history) = self.kinds.get(&kind).and_then(|names| names.get(name)) else { return Former::Absent };
        match history.warming.as_ref().or(history.active.as_ref()) {
            None => Former::Absent,
            Some(Record { resource: Some(resource), .. }) => Former::Known(Arc::clone(resource)),
            Some(Record { resource: None, .. }) => Former::Forgotten,
        }
    }

    /// Whether anything is known of a resource.
    pub(super) fn knows(&self, noun: &str, name: &str) -> bool {
        self.kinds.iter().any(|(kind, names)| kind.noun() == noun && names.contains_key(name))
    }

    /// `version_info` of the last response that was accepted as a whole.
    pub fn version(&self, kind: ResourceKind) -> &str {
        self.versions.get(&kind).map_or("", String::as_str)
    }

    pub(super) fn set_version(&mut self, kind: ResourceKind, version: &str) {
        self.versions.insert(kind, version.to_owned());
    }

    pub(super) fn offered(&mut self, kind: ResourceKind, name: &Arc<str>, record: Record, is_static: bool) {
        let history = self.entry(kind, name);
        history.is_static = is_static;
        history.warming = Some(record);
        history.refusal = None;
        history.failing_since = None;
    }

    pub(super) fn activated(&mut self, kind: ResourceKind, name: &Arc<str>) {
        let history = self.entry(kind, name);
        if let Some(record) = history.warming.take() {
            history.active = Some(record);
        }
    }

    pub(super) fn refused(&mut self, kind: ResourceKind, name: &Arc<str>, refusal: Refusal) {
        let history = self.entry(kind, name);
        history.failing_since.get_or_insert(refusal.record.updated);
        history.refusal = Some(refusal);
    }

    /// What was in use drains if `drains`.
    pub(super) fn removed(&mut self, kind: ResourceKind, name: &Arc<str>, drains: bool) {
        let history = self.entry(kind, name);
        let active = history.active.take();
        history.warming = None;
        history.refusal = None;
        history.failing_since = None;
        if drains {
            history.draining = active;
        }
        self.clean(kind, name);
    }

    /// Nobody wants resources of this type any longer.
    pub(super) fn clear(&mut self, kind: ResourceKind) {
        self.kinds.remove(&kind);
    }

    pub(super) fn drained(&mut self, kind: ResourceKind, name: &Arc<str>) {
        self.entry(kind, name).draining = None;
        self.clean(kind, name);
    }

    fn clean(&mut self, kind: ResourceKind, name: &Arc<str>) {
        if self.entry(kind, name).is_empty()
            && let Some(names) = self.kinds.get_mut(&kind)
        {
            names.remove(name);
        }
    }

    fn entry(&mut self, kind: ResourceKind, name: &Arc<str>) -> &mut ResourceHistory {
        self.kinds.entry(kind).or_default().entry(Arc::clone(name)).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(version: &str) -> Record {
        Record { version: version.into(), updated: SystemTime::UNIX_EPOCH, resource: None }
    }

    #[test]
    fn a_record_moves_from_warming_to_active_to_draining() {
        let kind = ResourceKind::Listener;
        let name: Arc<str> = "l".into();
        let mut history = History::default();
        history.offered(kind, &name, record("1"), false);
        history.activated(kind, &name);
        history.offered(kind, &name, record("2"), false);
        history.refused(kind, &name, Refusal { record: record("3"), details: "no".into() });
        let (_, shown) = history.of(kind).next().unwrap();
        let version = |record: &Option<Record>| record.as_ref().map(|record| record.version.clone());
        assert_eq!((version(&shown.active), version(&shown.warming)), (Some("1".into()), Some("2".into())));
        assert_eq!(shown.refusal.as_ref().unwrap().record.version, "3");
        history.removed(kind, &name, true);
        let (_, shown) = history.of(kind).next().unwrap();
        assert_eq!((version(&shown.active), version(&shown.draining)), (None, Some("1".into())));
        history.drained(kind, &name);
        assert_eq!(history.of(kind).count(), 0);
    }
}
