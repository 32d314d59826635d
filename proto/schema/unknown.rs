//! Fields of encoded messages that the schema does not have: decoding drops them without a word.
//!
//! Owns finding them. Never judges them, nor types that the schema does not know.

use super::layout::{kind, shape};
use super::table::{Field, Message};
use crate::any::type_name;
use crate::wire::{Fields, Raw};

/// A sender who repeats himself is not listened to for ever.
const MOST_FOUND: usize = 32;
/// As deep as protobuf decoders go.
const DEEPEST: u32 = 100;

/// The way from the outermost message, made of borrowed steps so that it costs nothing while all is known.
#[derive(Clone, Copy)]
struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    field: Field,
}

impl Path<'_> {
    fn write(&self, out: &mut String) {
        if let Some(parent) = self.parent {
            parent.write(out);
        }
        out.push_str(self.field.name());
        out.push('.');
    }
}

/// The paths of unknown fields of `message` in `bytes`, each once, by names and finally the unknown number, such as
/// `load_assignment.endpoints.99`. What stands inside an `Any` of a known type is part of the path. Bytes that are not
/// protobuf end the search: decoding tells about them.
pub(super) fn find(message: Message, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    walk(message, bytes, None, DEEPEST, &mut found);
    found
}

fn walk(message: Message, bytes: &[u8], path: Option<&Path<'_>>, depth: u32, found: &mut Vec<String>) {
    if depth == 0 || found.len() >= MOST_FOUND {
        return;
    }
    if message.shape() == shape::ANY {
        return walk_any(bytes, path, depth, found);
    }
    // Fields of one number stand together, so the last one looked up is often the next one.
    let mut last: Option<Field> = None;
    for (number, raw) in Fields::of(bytes).map_while(Result::ok) {
        let known = last.filter(|field| field.number() == number).or_else(|| message.field_by_number(number));
        let Some(field) = known else {
            note(number, path, found);
            continue;
        };
        last = Some(field);
        if field.kind() == kind::MESSAGE
            && let (Some(inner), Raw::Bytes(bytes)) = (field.message(), raw)
            && (inner.is_plain() || inner.shape() == shape::ANY)
        {
            walk(inner, bytes, Some(&Path { parent: path, field }), depth - 1, found);
        }
    }
}

fn walk_any(bytes: &[u8], path: Option<&Path<'_>>, depth: u32, found: &mut Vec<String>) {
    let (mut url, mut value): (&[u8], &[u8]) = (&[], &[]);
    for (number, raw) in Fields::of(bytes).map_while(Result::ok) {
        match (number, raw) {
            (1, Raw::Bytes(bytes)) => url = bytes,
            (2, Raw::Bytes(bytes)) => value = bytes,
            (number, _) => note(number, path, found),
        }
    }
    if let Some(inner) = std::str::from_utf8(url).ok().and_then(|url| Message::named(type_name(url))) {
        walk(inner, value, path, depth - 1, found);
    }
}

fn note(number: u32, path: Option<&Path<'_>>, found: &mut Vec<String>) {
    let mut text = String::new();
    if let Some(path) = path {
        path.write(&mut text);
    }
    text.push_str(&number.to_string());
    if found.len() < MOST_FOUND && !found.contains(&text) {
        found.push(text);
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use crate::Schema;
    use crate::any::pack;
    use crate::pb::envoy::config::cluster::v3::Cluster;
    use crate::pb::envoy::config::core::v3::TransportSocket;
    use crate::pb::envoy::config::core::v3::transport_socket::ConfigType;
    use crate::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
    use crate::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
    use crate::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
    use crate::pb::google::protobuf::Any;
    use crate::wire::put_bytes;

    fn cluster() -> Cluster {
        let endpoint = Endpoint { hostname: "a".into(), ..Endpoint::default() };
        let host_identifier = Some(HostIdentifier::Endpoint(endpoint));
        let lb_endpoints = vec![LbEndpoint { host_identifier, ..LbEndpoint::default() }; 10];
        let endpoints = vec![LocalityLbEndpoints { lb_endpoints, ..LocalityLbEndpoints::default() }];
        let tls = pack(&UpstreamTlsContext { sni: "a".into(), ..UpstreamTlsContext::default() });
        Cluster {
            name: "a".into(),
            alt_stat_name: "b".into(),
            load_assignment: Some(ClusterLoadAssignment { endpoints, ..ClusterLoadAssignment::default() }),
            transport_socket: Some(TransportSocket {
                name: "tls".into(),
                config_type: Some(ConfigType::TypedConfig(tls)),
            }),
            ..Cluster::default()
        }
    }

    #[test]
    fn what_is_known_is_not_mentioned() {
        assert_eq!(Schema::load().unknown_fields(&pack(&cluster())), [""; 0]);
        let other = Any { type_url: "type.googleapis.com/acme.Thing".into(), value: vec![1, 2, 3] };
        assert_eq!(Schema::load().unknown_fields(&other), [""; 0]);
    }

    #[test]
    fn unknown_fields_are_found_wherever_they_are_and_told_once() {
        let mut any = pack(&cluster());
        let mut tls = UpstreamTlsContext::default().encode_to_vec();
        put_bytes(&mut tls, 5000, b"new");
        let tls = Any { type_url: crate::type_url::<UpstreamTlsContext>(), value: tls }.encode_to_vec();
        let (mut socket, mut endpoint, mut endpoints, mut assignment) = (vec![], vec![], vec![], vec![]);
        put_bytes(&mut socket, 3, &tls);
        put_bytes(&mut endpoint, 99, b"");
        for _ in 0..3 {
            put_bytes(&mut endpoints, 2, &endpoint);
        }
        put_bytes(&mut assignment, 2, &endpoints);
        put_bytes(&mut any.value, 24, &socket);
        put_bytes(&mut any.value, 33, &assignment);
        put_bytes(&mut any.value, 4242, b"x");
        assert_eq!(
            Schema::load().unknown_fields(&any),
            ["transport_socket.typed_config.5000", "load_assignment.endpoints.lb_endpoints.99", "4242"]
        );
    }

    #[test]
    fn endless_unknown_fields_and_broken_bytes_end() {
        let mut any = pack(&Cluster::default());
        (5000..9000).for_each(|number| put_bytes(&mut any.value, number, b""));
        assert_eq!(Schema::load().unknown_fields(&any).len(), super::MOST_FOUND);
        any.value = vec![0x0a, 0x7f];
        assert_eq!(Schema::load().unknown_fields(&any), [""; 0]);
    }

    /// A discovery of a large mesh is not held up.
    #[test]
    fn a_thousand_clusters_take_little_time() {
        let any = pack(&cluster());
        let start = std::time::Instant::now();
        for _ in 0..1000 {
            assert!(Schema::load().unknown_fields(&any).is_empty());
        }
        let took = start.elapsed();
        // Some milliseconds when optimised; the limit is for builds that are not, on busy machines.
        assert!(took < std::time::Duration::from_secs(2), "{took:?}");
        eprintln!("1,000 clusters: {took:?}");
    }
}
