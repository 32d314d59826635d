//! Operators about metadata of the configuration: of clusters, endpoints and routes.
//!
//! Owns where it is looked up. Never knows what it means. Metadata of listeners, filter chains and virtual hosts is not kept.

use std::sync::Arc;

use outrigger_config::cluster::{LbMetadata, LbValue};
use outrigger_config::format::MetadataOf;
use outrigger_config::metadata::{MetadataMap, Namespaces, encoded, encoded_namespace, number};
use serde_json::Value;

use super::facts::Facts;
use super::format::{Given, json, text};

/// The one namespace of endpoints that is kept.
const ENDPOINT_NAMESPACE: &str = "envoy.lb";

/// Writes what is at the end of a path, which begins with a namespace.
pub(super) fn write(of: MetadataOf, path: &[Arc<str>], facts: &Facts<'_>, out: &mut Vec<u8>) -> Given {
    let Some((namespace, keys)) = path.split_first() else { return Given::Absent };
    match namespace_of(of, namespace, facts) {
        Some(values) => of_namespace(&values, keys, out),
        None => Given::Absent,
    }
}

/// A namespace of metadata.
pub(super) fn namespace_of(of: MetadataOf, namespace: &str, facts: &Facts<'_>) -> Option<MetadataMap> {
    let info = facts.info;
    match of {
        MetadataOf::Cluster => {
            let cluster = info.cluster_config.borrow();
            encoded_namespace(cluster.as_ref()?.metadata.as_deref()?, namespace)
        }
        MetadataOf::Route => {
            let route = info.route.borrow();
            route.as_ref()?.metadata.as_ref()?.get(namespace).cloned()
        }
        MetadataOf::UpstreamHost if namespace == ENDPOINT_NAMESPACE => {
            info.upstream_host.borrow().as_ref()?.metadata.as_deref().map(lb_object)
        }
        MetadataOf::UpstreamHost | MetadataOf::Listener | MetadataOf::FilterChain | MetadataOf::VirtualHost => None,
    }
}

/// All metadata of its kind, by namespace; `None` where there is nobody whose it could be.
pub(super) fn all(of: MetadataOf, facts: &Facts<'_>) -> Option<Namespaces> {
    let info = facts.info;
    match of {
        MetadataOf::Cluster => {
            let cluster = info.cluster_config.borrow();
            Some(encoded(cluster.as_ref()?.metadata.as_deref().unwrap_or_default()))
        }
        MetadataOf::Route => {
            let route = info.route.borrow();
            Some(route.as_ref()?.metadata.as_deref().cloned().unwrap_or_default())
        }
        _ => {
            let host = info.upstream_host.borrow();
            let values = host.as_ref()?.metadata.as_deref().map(lb_object);
            Some(values.map(|values| (ENDPOINT_NAMESPACE.to_owned(), values)).into_iter().collect())
        }
    }
}

/// Writes what is at the end of a path of keys.
pub(super) fn of_namespace(namespace: &MetadataMap, keys: &[Arc<str>], out: &mut Vec<u8>) -> Given {
    let Some((first, rest)) = keys.split_first() else { return json(namespace, out) };
    let first = namespace.get(&**first);
    let value = rest.iter().try_fold(first, |value, key| Some(value?.as_object()?.get(&**key)));
    match value.flatten() {
        None | Some(Value::Null) => Given::Absent,
        Some(Value::String(value)) => text(Some(value.as_bytes()), out),
        Some(value @ Value::Number(_)) => {
            json(value, out);
            Given::Number
        }
        Some(value) => json(value, out),
    }
}

fn lb_object(values: &LbMetadata) -> MetadataMap {
    values.iter().map(|(key, value)| (key.to_string(), lb_json(value))).collect()
}

fn lb_json(value: &LbValue) -> Value {
    match value {
        LbValue::Null => Value::Null,
        LbValue::Bool(flag) => Value::Bool(*flag),
        LbValue::Number(bits) => number(f64::from_bits(*bits)).unwrap_or(Value::Null),
        LbValue::String(text) => Value::String(text.to_string()),
        LbValue::List(values) => Value::Array(values.iter().map(lb_json).collect()),
        LbValue::Struct(values) => Value::Object(lb_object(values)),
    }
}
