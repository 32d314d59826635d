//! From discovery responses to named resources.
//!
//! Owns unwrapping, naming and the checks that need no knowledge of a resource's meaning. Never compares with what is
//! held or wanted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::service::discovery::v3 as discovery;
use outrigger_api::pb::google::protobuf::{Any, Duration as WireDuration};
use prost::{Message, Name};

use super::{Rejection, ResourceKind};

/// A response, taken apart.
#[derive(Debug, Default)]
pub(crate) struct Decoded {
    pub version: String,
    pub nonce: String,
    /// Resources with unique names.
    pub entries: Vec<Entry>,
    /// Names that the server says are gone.
    pub removed: Vec<String>,
    /// Per-name errors that the server reports, other than "not found".
    pub errors: Vec<Rejection>,
    /// Resources refused already.
    pub rejections: Vec<Rejection>,
    /// Whether a refused resource has no known name, so that nothing may be concluded from the absence of a name.
    pub unnamed: bool,
}

/// One resource of a response.
#[derive(Debug)]
pub(crate) struct Entry {
    pub name: String,
    /// Empty in state of the world unless the wrapper gave one.
    pub version: String,
    /// `None` is a heartbeat (or, for a virtual host, "does not exist").
    pub body: Option<Arc<Any>>,
    pub ttl: Option<Duration>,
    pub aliases: Vec<String>,
}

/// gRPC code NOT_FOUND.
const NOT_FOUND: i32 = 5;

/// Takes a state-of-the-world response apart.
pub(crate) fn sotw(kind: ResourceKind, response: discovery::DiscoveryResponse) -> Decoded {
    let discovery::DiscoveryResponse {
        version_info,
        resources,
        canary: _, // no longer has a meaning in the API
        type_url: _,
        nonce,
        control_plane: _, // kept by the stream
        resource_errors,
    } = response;
    let mut decoded = Decoded { version: version_info, nonce, ..Decoded::default() };
    for (index, resource) in resources.into_iter().enumerate() {
        let entry = if resource.type_url == discovery::Resource::type_url() {
            discovery::Resource::decode(resource.value.as_slice())
                .map_err(|error| unnamed(index, format!("Resource wrapper cannot be decoded: {error}")))
                .and_then(|wrapper| from_wrapper(kind, index, wrapper, NameFrom::WrapperOrBody))
        } else {
            name_in_body(kind, index, "", &resource).map(|name| Entry {
                name,
                version: String::new(),
                body: Some(Arc::new(resource)),
                ttl: None,
                aliases: Vec::new(),
            })
        };
        decoded.push(entry);
    }
    decoded.take_errors(resource_errors);
    decoded.refuse_duplicates();
    decoded
}

/// Takes a delta response apart.
pub(crate) fn delta(kind: ResourceKind, response: discovery::DeltaDiscoveryResponse) -> Decoded {
    let discovery::DeltaDiscoveryResponse {
        system_version_info,
        resources,
        type_url: _,
        removed_resources,
        removed_resource_names,
        nonce,
        control_plane: _, // kept by the stream
        resource_errors,
    } = response;
    let mut removed = removed_resources;
    removed.extend(removed_resource_names.into_iter().map(plain_name));
    let mut decoded = Decoded { version: system_version_info, nonce, removed, ..Decoded::default() };
    for (index, wrapper) in resources.into_iter().enumerate() {
        decoded.push(from_wrapper(kind, index, wrapper, NameFrom::Wrapper));
    }
    decoded.take_errors(resource_errors);
    decoded.refuse_duplicates();
    decoded
}

/// Where the name of a wrapped resource may come from.
#[derive(Clone, Copy, PartialEq)]
enum NameFrom {
    Wrapper,
    WrapperOrBody,
}

struct Refused {
    rejection: Rejection,
    named: bool,
}

impl Decoded {
    fn push(&mut self, entry: Result<Entry, Refused>) {
        match entry {
            Ok(entry) => self.entries.push(entry),
            Err(Refused { rejection, named }) => {
                self.rejections.push(rejection);
                self.unnamed |= !named;
            }
        }
    }

    fn take_errors(&mut self, errors: Vec<discovery::ResourceError>) {
        for discovery::ResourceError { resource_name, error_detail } in errors {
            let name = resource_name.map(plain_name).unwrap_or_default();
            let (code, message) = error_detail.map_or((0, String::new()), |detail| (detail.code, detail.message));
            if code == NOT_FOUND {
                self.removed.push(name);
            } else {
                let message = format!("control plane reports code {code}: {message}");
                self.errors.push(Rejection { name, message });
            }
        }
    }

    /// A name that occurs twice leaves open which resource is meant, so neither is taken.
    fn refuse_duplicates(&mut self) {
        let mut count: HashMap<&str, usize> = HashMap::new();
        let all = self.entries.iter().map(|entry| entry.name.as_str()).chain(self.removed.iter().map(String::as_str));
        for name in all {
            *count.entry(name).or_default() += 1;
        }
        let mut twice: Vec<String> = self
            .entries
            .iter()
            .map(|entry| entry.name.as_str())
            .filter(|name| count.get(name).is_some_and(|count| *count > 1))
            .map(str::to_owned)
            .collect();
        if twice.is_empty() {
            return;
        }
        twice.sort();
        twice.dedup();
        self.entries.retain(|entry| twice.binary_search(&entry.name).is_err());
        self.removed.retain(|name| twice.binary_search(name).is_err());
        self.rejections.extend(
            twice
                .into_iter()
                .map(|name| Rejection { message: format!("duplicate resource name \"{name}\" in one response"), name }),
        );
    }
}

fn from_wrapper(
    kind: ResourceKind,
    index: usize,
    wrapper: discovery::Resource,
    name_from: NameFrom,
) -> Result<Entry, Refused> {
    let discovery::Resource {
        name,
        resource_name,
        aliases,
        version,
        resource,
        ttl,
        cache_control: _, // addressed to caching intermediaries between server and client
        metadata: _,      // addressed to caching intermediaries between server and client
    } = wrapper;
    let mut name = if name.is_empty() { resource_name.map(plain_name).unwrap_or_default() } else { name };
    let ttl = ttl.map(duration).transpose().map_err(|message| refuse(index, &name, message))?;
    match &resource {
        None if name.is_empty() => return Err(unnamed(index, "has neither a name nor a body".into())),
        None => {}
        Some(_) if name.is_empty() && name_from == NameFrom::Wrapper => {
            return Err(unnamed(index, "Resource.name is empty".into()));
        }
        Some(body) => {
            let inner = name_in_body(kind, index, &name, body)?;
            if name.is_empty() {
                name = inner;
            } else if !same_resource(kind, &name, &inner, &aliases) {
                return Err(refuse(index, &name, format!("named \"{inner}\" inside; both names must be equal")));
            }
        }
    }
    Ok(Entry { name, version, body: resource.map(Arc::new), ttl, aliases })
}

/// A virtual host may go by an alias, and by its name below that of its route configuration.
fn same_resource(kind: ResourceKind, outer: &str, inner: &str, aliases: &[String]) -> bool {
    let below_route =
        || outer.strip_suffix(inner).is_some_and(|prefix| prefix.ends_with('/')) || aliases.iter().any(|a| a == inner);
    outer == inner || (kind == ResourceKind::VirtualHost && below_route())
}

fn name_in_body(kind: ResourceKind, index: usize, outer: &str, body: &Any) -> Result<String, Refused> {
    if body.type_url != kind.type_url() {
        let message = format!("type is \"{}\", expected \"{}\"", body.type_url, kind.type_url());
        return Err(refuse(index, outer, message));
    }
    let name = kind
        .name_of(&body.value)
        .map_err(|error| refuse(index, outer, format!("cannot be decoded as {}: {error}", kind.type_url())))?;
    if name.is_empty() {
        return Err(refuse(index, outer, "has no name".into()));
    }
    Ok(name)
}

fn refuse(index: usize, name: &str, message: String) -> Refused {
    if name.is_empty() {
        return unnamed(index, message);
    }
    Refused { rejection: Rejection { name: name.to_owned(), message }, named: true }
}

fn unnamed(index: usize, message: String) -> Refused {
    Refused { rejection: Rejection { name: format!("resources[{index}]"), message }, named: false }
}

fn plain_name(name: discovery::ResourceName) -> String {
    // This client never sends dynamic parameters, so a server has no variants to choose from.
    let discovery::ResourceName { name, dynamic_parameter_constraints: _ } = name;
    name
}

fn duration(wire: WireDuration) -> Result<Duration, String> {
    let WireDuration { seconds, nanos } = wire;
    match (u64::try_from(seconds), u32::try_from(nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 && seconds <= MAX_TTL_SECONDS => {
            Ok(Duration::new(seconds, nanos))
        }
        _ => Err(format!("ttl: {seconds} s {nanos} ns is not a duration within 0 and {MAX_TTL_SECONDS} s")),
    }
}

/// Largest duration protobuf allows (10,000 years); also keeps deadlines within what [`std::time::Instant`] can hold.
const MAX_TTL_SECONDS: u64 = 315_576_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str) -> Any {
        let message =
            outrigger_api::pb::envoy::config::cluster::v3::Cluster { name: name.into(), ..Default::default() };
        Any { type_url: ResourceKind::Cluster.type_url().into(), value: message.encode_to_vec() }
    }

    #[test]
    fn wrapped_and_plain_resources_mix() {
        let wrapper = discovery::Resource {
            version: "7".into(),
            resource: Some(cluster("b")),
            ttl: Some(WireDuration { seconds: 3, nanos: 0 }),
            ..Default::default()
        };
        let wrapped = Any { type_url: discovery::Resource::type_url(), value: wrapper.encode_to_vec() };
        let response = discovery::DiscoveryResponse { resources: vec![cluster("a"), wrapped], ..Default::default() };
        let decoded = sotw(ResourceKind::Cluster, response);
        assert!(decoded.rejections.is_empty());
        assert_eq!(decoded.entries[0].name, "a");
        assert_eq!((decoded.entries[1].name.as_str(), decoded.entries[1].version.as_str()), ("b", "7"));
        assert_eq!(decoded.entries[1].ttl, Some(Duration::from_secs(3)));
    }

    #[test]
    fn impossible_ttls_are_refused() {
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MAX, 0)] {
            assert!(duration(WireDuration { seconds, nanos }).is_err());
        }
        assert_eq!(duration(WireDuration { seconds: 1, nanos: 5 }), Ok(Duration::new(1, 5)));
    }

    #[test]
    fn virtual_hosts_may_be_named_by_route_and_alias() {
        let aliases = ["routes/example.com".to_owned()];
        assert!(same_resource(ResourceKind::VirtualHost, "routes/example", "example", &[]));
        assert!(same_resource(ResourceKind::VirtualHost, "x", "routes/example.com", &aliases));
        assert!(!same_resource(ResourceKind::VirtualHost, "routes/other", "example", &aliases));
        assert!(!same_resource(ResourceKind::Secret, "a/b", "b", &[]));
    }
}
