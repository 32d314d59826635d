//! What the mock does wrong on purpose: held and delayed types, corrupted responses, refused streams.
//!
//! Owns the orders given by tests. Never touches sockets; `world` asks it before a response goes out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use outrigger_api::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use serde::{Deserialize, Serialize};

use crate::types;

/// How one response is spoiled.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Corruption {
    /// The bytes of every resource are no protobuf message.
    Garbage,
    /// Every resource claims to be of another type than the response.
    WrongType,
    /// The response itself claims another type, one that nobody may have asked for.
    WrongResponseType,
    /// The nonce is one that the server does not know, so that no answer to it counts.
    BadNonce,
    /// There is no nonce.
    NoNonce,
    /// Every resource is there twice.
    Duplicate,
}

/// Orders in force.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    held: BTreeSet<String>,
    delays: BTreeMap<String, Duration>,
    corruptions: BTreeMap<String, VecDeque<Corruption>>,
    /// gRPC code that new streams are refused with.
    pub refuse: Option<i32>,
}

impl Faults {
    /// Sends nothing of this type until it is released.
    pub fn hold(&mut self, type_url: &str) {
        self.held.insert(type_url.to_owned());
    }

    /// Ends a hold.
    pub fn release(&mut self, type_url: &str) {
        self.held.remove(type_url);
    }

    /// Whether the type is held.
    pub fn is_held(&self, type_url: &str) -> bool {
        self.held.contains(type_url)
    }

    /// Lets this much time pass between a response being due and being sent; zero ends it.
    pub fn delay(&mut self, type_url: &str, delay: Duration) {
        if delay.is_zero() {
            self.delays.remove(type_url);
        } else {
            self.delays.insert(type_url.to_owned(), delay);
        }
    }

    /// The delay in force for the type.
    pub fn delay_of(&self, type_url: &str) -> Option<Duration> {
        self.delays.get(type_url).copied()
    }

    /// Spoils the next response of this type; several orders spoil as many responses, in order.
    pub fn corrupt(&mut self, type_url: &str, how: Corruption) {
        self.corruptions.entry(type_url.to_owned()).or_default().push_back(how);
    }

    /// The order for the response that is about to be sent.
    pub(crate) fn take_corruption(&mut self, type_url: &str) -> Option<Corruption> {
        self.corruptions.get_mut(type_url)?.pop_front()
    }

    /// Whether any order at all is in force for the type.
    pub fn of(&self, type_url: &str) -> (bool, Option<Duration>, usize) {
        let corruptions = self.corruptions.get(type_url).map_or(0, VecDeque::len);
        (self.is_held(type_url), self.delay_of(type_url), corruptions)
    }
}

impl Corruption {
    /// Whether the answer to the response can no longer be matched to it.
    pub(crate) fn disowns(self) -> bool {
        matches!(self, Self::BadNonce | Self::NoNonce)
    }

    pub(crate) fn spoil_sotw(self, response: &mut DiscoveryResponse) {
        match self {
            Self::Garbage => response.resources.iter_mut().for_each(|any| any.value = garbage()),
            Self::WrongType => {
                let other = another_type(&response.type_url).to_owned();
                response.resources.iter_mut().for_each(|any| any.type_url.clone_from(&other));
            }
            Self::WrongResponseType => response.type_url = another_type(&response.type_url).to_owned(),
            Self::BadNonce => response.nonce = unknown_nonce(&response.nonce),
            Self::NoNonce => response.nonce.clear(),
            Self::Duplicate => response.resources.extend(response.resources.clone()),
        }
    }

    pub(crate) fn spoil_delta(self, response: &mut DeltaDiscoveryResponse) {
        let bodies = response.resources.iter_mut().filter_map(|resource| resource.resource.as_mut());
        match self {
            Self::Garbage => bodies.for_each(|any| any.value = garbage()),
            Self::WrongType => {
                let other = another_type(&response.type_url).to_owned();
                bodies.for_each(|any| any.type_url.clone_from(&other));
            }
            Self::WrongResponseType => response.type_url = another_type(&response.type_url).to_owned(),
            Self::BadNonce => response.nonce = unknown_nonce(&response.nonce),
            Self::NoNonce => response.nonce.clear(),
            Self::Duplicate => response.resources.extend(response.resources.clone()),
        }
    }
}

/// A length-delimited field 1 that promises more bytes than there are.
fn garbage() -> Vec<u8> {
    vec![0x0a, 0xff, 0xff, 0x03, 0xde, 0xad]
}

fn another_type(type_url: &str) -> &'static str {
    if type_url == types::SECRET { types::CLUSTER } else { types::SECRET }
}

fn unknown_nonce(nonce: &str) -> String {
    format!("never-sent-{nonce}")
}

#[cfg(test)]
mod tests {
    use outrigger_api::pb::envoy::service::discovery::v3::Resource;
    use outrigger_api::pb::google::protobuf::Any;

    use super::*;
    use crate::state::NamedResource;
    use crate::state::tests::resource;

    #[test]
    fn each_corruption_does_what_it_says() {
        let body = resource(types::CLUSTER, "a", 1).body;
        let good = DiscoveryResponse {
            type_url: types::CLUSTER.to_owned(),
            nonce: "1".to_owned(),
            resources: vec![body.clone()],
            ..Default::default()
        };
        let spoilt = |how: Corruption| {
            let mut response = good.clone();
            how.spoil_sotw(&mut response);
            response
        };
        assert_eq!(NamedResource::from_any(spoilt(Corruption::Garbage).resources[0].clone()), None);
        assert_eq!(spoilt(Corruption::WrongType).resources[0].type_url, types::SECRET);
        assert_eq!(spoilt(Corruption::WrongResponseType).type_url, types::SECRET);
        assert_ne!(spoilt(Corruption::BadNonce).nonce, "1");
        assert_eq!(spoilt(Corruption::NoNonce).nonce, "");
        assert_eq!(spoilt(Corruption::Duplicate).resources.len(), 2);

        let mut delta = DeltaDiscoveryResponse {
            type_url: types::SECRET.to_owned(),
            resources: vec![Resource {
                resource: Some(Any { type_url: types::SECRET.to_owned(), ..body }),
                ..Default::default()
            }],
            ..Default::default()
        };
        Corruption::WrongType.spoil_delta(&mut delta);
        assert_eq!(delta.resources[0].resource.as_ref().unwrap().type_url, types::CLUSTER);
    }

    #[test]
    fn corruptions_are_used_up_in_order() {
        let mut faults = Faults::default();
        faults.corrupt(types::CLUSTER, Corruption::Garbage);
        faults.corrupt(types::CLUSTER, Corruption::Duplicate);
        assert_eq!(faults.take_corruption(types::LISTENER), None);
        assert_eq!(faults.take_corruption(types::CLUSTER), Some(Corruption::Garbage));
        assert_eq!(faults.take_corruption(types::CLUSTER), Some(Corruption::Duplicate));
        assert_eq!(faults.take_corruption(types::CLUSTER), None);
    }
}
