//! What `/config_dump` consists of: one section for each message of `envoy.admin.v3.*ConfigDump`.
//!
//! Owns which resource goes where and under which names. Values are made when they are written, one at a time. Never
//! reads a query (see `config_dump`).

use std::sync::Arc;
use std::time::SystemTime;

use outrigger_api::Schema;
use outrigger_api::pb::envoy::config::bootstrap::v3::Bootstrap;
use outrigger_api::pb::envoy::config::listener::v3 as listener_pb;
use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3 as http_pb;
use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use outrigger_api::pb::google::protobuf::Any;
use outrigger_xds::ResourceKind;
use prost::Message;
use regex::Regex;
use serde_json::{Map, Value};

use super::context::AdminContext;
use super::pretty::{STYLE, packed, timestamp};
use super::{dump_endpoints, dump_scopes};
use crate::graph::history::{Record, Refusal, ResourceHistory};

/// One message of the dump.
pub(super) struct Section {
    /// Name within `envoy.admin.v3`.
    pub kind: &'static str,
    /// Fields in order.
    pub members: Vec<(&'static str, SectionMember)>,
}

/// A field of a section.
pub(super) enum SectionMember {
    /// A single value.
    One(Box<dyn FnOnce() -> Value>),
    /// A list; `element` is the type of its elements within `envoy.admin.v3`, `fields` are its fields.
    Many { element: &'static str, fields: &'static [&'static str], values: Box<dyn Iterator<Item = Value>> },
}

const STATIC_CLUSTER: &[&str] = &["cluster", "last_updated"];
const DYNAMIC_CLUSTER: &[&str] = &["version_info", "cluster", "last_updated", "error_state", "client_status"];
const STATIC_LISTENER: &[&str] = &["listener", "last_updated"];
const DYNAMIC_LISTENER: &[&str] =
    &["name", "active_state", "warming_state", "draining_state", "error_state", "client_status"];
const STATIC_ROUTES: &[&str] = &["route_config", "last_updated"];
const DYNAMIC_ROUTES: &[&str] = &["version_info", "route_config", "last_updated", "error_state", "client_status"];
const STATIC_SECRET: &[&str] = &["name", "last_updated", "secret"];
const DYNAMIC_SECRET: &[&str] = &["name", "version_info", "last_updated", "secret", "error_state", "client_status"];
const ECDS_FILTER: &[&str] = &["version_info", "ecds_filter", "last_updated", "error_state", "client_status"];

/// All sections, as far as their names pass `filter`.
///
/// Tools find the bootstrap, clusters and listeners by their position, so these come first and in this order.
pub(super) fn sections(context: &AdminContext, filter: Option<&Regex>, endpoints: bool) -> Vec<Section> {
    let named = |kind: ResourceKind| -> Vec<(Arc<str>, ResourceHistory)> {
        let all = context.configuration.resources(kind).into_iter();
        all.filter(|(name, _)| filter.is_none_or(|filter| filter.is_match(name))).collect()
    };
    let listeners = named(ResourceKind::Listener);
    let inline_routes = inline_routes(&listeners, filter);
    let mut sections = vec![bootstrap(context), clusters(context, named(ResourceKind::Cluster))];
    if endpoints {
        sections.push(dump_endpoints::section(context, named(ResourceKind::ClusterLoadAssignment), filter));
    }
    let scopes = dump_scopes::section(context, &listeners, filter);
    sections.push(self::listeners(context, listeners));
    sections.push(scopes);
    sections.push(routes(inline_routes, named(ResourceKind::RouteConfiguration)));
    sections.push(secrets(named(ResourceKind::Secret)));
    let extensions = named(ResourceKind::ExtensionConfig);
    if !extensions.is_empty() {
        let filters =
            many("EcdsConfigDump.EcdsFilterConfig", ECDS_FILTER, in_use_or_refused(extensions), |_, history| {
                dynamic(history, history.active.as_ref().or(history.warming.as_ref()), "ecds_filter")
            });
        sections.push(Section { kind: "EcdsConfigDump", members: vec![("ecds_filters", filters)] });
    }
    sections
}

fn bootstrap(context: &AdminContext) -> Section {
    let bootstrap = Arc::clone(&context.facts.bootstrap);
    let mut members = vec![("bootstrap", SectionMember::One(Box::new(move || packed::<Bootstrap>(&bootstrap))))];
    if let Some(time) = context.facts.bootstrap_read_at {
        members.push(("last_updated", SectionMember::One(Box::new(move || timestamp(time)))));
    }
    Section { kind: "BootstrapConfigDump", members }
}

pub(super) type Named = Vec<(Arc<str>, ResourceHistory)>;

/// A list of what `make` makes of each resource.
pub(super) fn many(
    element: &'static str,
    fields: &'static [&'static str],
    resources: Named,
    make: impl Fn(&str, &ResourceHistory) -> Value + 'static,
) -> SectionMember {
    let values = resources.into_iter().map(move |(name, history)| make(&name, &history));
    SectionMember::Many { element, fields, values: Box::new(values) }
}

pub(super) fn chosen(resources: &Named, wanted: impl Fn(&ResourceHistory) -> bool) -> Named {
    resources.iter().filter(|(_, history)| wanted(history)).cloned().collect()
}

fn in_use_or_refused(resources: Named) -> Named {
    chosen(&resources, |history| history.active.is_some() || history.warming.is_some() || history.refusal.is_some())
}

fn version(context: &AdminContext, kind: ResourceKind) -> Option<(&'static str, SectionMember)> {
    let version = context.configuration.version(kind);
    (!version.is_empty()).then(|| ("version_info", SectionMember::One(Box::new(move || version.into()))))
}

fn clusters(context: &AdminContext, clusters: Named) -> Section {
    let fixed = chosen(&clusters, |history| history.is_static);
    // A cluster whose only version was refused is shown among the warming ones, with the reason.
    let active = chosen(&clusters, |history| !history.is_static && history.active.is_some());
    let warming = chosen(&clusters, |history| {
        !history.is_static && (history.warming.is_some() || (history.active.is_none() && history.refusal.is_some()))
    });
    let mut members: Vec<_> = version(context, ResourceKind::Cluster).into_iter().collect();
    members.push((
        "static_clusters",
        many("ClustersConfigDump.StaticCluster", STATIC_CLUSTER, fixed, |_, history| unversioned(history, "cluster")),
    ));
    let element = "ClustersConfigDump.DynamicCluster";
    members.push((
        "dynamic_active_clusters",
        many(element, DYNAMIC_CLUSTER, active, |_, history| dynamic(history, history.active.as_ref(), "cluster")),
    ));
    members.push((
        "dynamic_warming_clusters",
        many(element, DYNAMIC_CLUSTER, warming, |_, history| dynamic(history, history.warming.as_ref(), "cluster")),
    ));
    Section { kind: "ClustersConfigDump", members }
}

fn listeners(context: &AdminContext, listeners: Named) -> Section {
    let fixed = chosen(&listeners, |history| history.is_static);
    let discovered = chosen(&listeners, |history| !history.is_static);
    let mut members: Vec<_> = version(context, ResourceKind::Listener).into_iter().collect();
    members.push((
        "static_listeners",
        many("ListenersConfigDump.StaticListener", STATIC_LISTENER, fixed, |_, history| {
            unversioned(history, "listener")
        }),
    ));
    members.push((
        "dynamic_listeners",
        many("ListenersConfigDump.DynamicListener", DYNAMIC_LISTENER, discovered, |name, history| {
            let mut fields = Map::new();
            fields.insert("name".to_owned(), name.into());
            let states = [
                ("active_state", &history.active),
                ("warming_state", &history.warming),
                ("draining_state", &history.draining),
            ];
            for (state, record) in states {
                if let Some(record) = record {
                    fields.insert(state.to_owned(), versioned(Some(record), "listener").into());
                }
            }
            add_refusal(&mut fields, history);
            fields.into()
        }),
    ));
    Section { kind: "ListenersConfigDump", members }
}

fn routes(inline: Vec<(Arc<Any>, SystemTime)>, discovered: Named) -> Section {
    let inline = inline.into_iter().map(|(routes, updated)| {
        let record = Record { version: String::new(), updated, resource: Some(routes) };
        Value::from(versioned(Some(&record), "route_config"))
    });
    let inline = SectionMember::Many {
        element: "RoutesConfigDump.StaticRouteConfig",
        fields: STATIC_ROUTES,
        values: Box::new(inline),
    };
    let element = "RoutesConfigDump.DynamicRouteConfig";
    let discovered = many(element, DYNAMIC_ROUTES, in_use_or_refused(discovered), |_, history| {
        dynamic(history, history.active.as_ref().or(history.warming.as_ref()), "route_config")
    });
    let members = vec![("static_route_configs", inline), ("dynamic_route_configs", discovered)];
    Section { kind: "RoutesConfigDump", members }
}

/// Route configurations that stand in listeners.
fn inline_routes(listeners: &Named, filter: Option<&Regex>) -> Vec<(Arc<Any>, SystemTime)> {
    let found = route_specifiers(listeners).filter_map(|(specifier, updated)| match specifier {
        RouteSpecifier::RouteConfig(routes) if filter.is_none_or(|filter| filter.is_match(&routes.name)) => {
            Some((Arc::new(outrigger_api::pack(&routes)), updated))
        }
        _ => None,
    });
    found.collect()
}

/// Where the connection managers of listeners have their routes from.
pub(super) fn route_specifiers(listeners: &Named) -> impl Iterator<Item = (RouteSpecifier, SystemTime)> {
    listeners.iter().filter_map(|(_, history)| history.active.as_ref()).flat_map(|record| {
        let listener = record.resource.as_ref().and_then(|any| listener_pb::Listener::decode(&*any.value).ok());
        listener.into_iter().flat_map(network_filters).filter_map(|filter| {
            let Some(listener_pb::filter::ConfigType::TypedConfig(config)) = filter.config_type else { return None };
            if !config.type_url.ends_with(".HttpConnectionManager") {
                return None;
            }
            let manager = http_pb::HttpConnectionManager::decode(&*config.value).ok()?;
            Some((manager.route_specifier?, record.updated))
        })
    })
}

fn network_filters(listener: listener_pb::Listener) -> impl Iterator<Item = listener_pb::Filter> {
    listener.filter_chains.into_iter().chain(listener.default_filter_chain).flat_map(|chain| chain.filters)
}

fn secrets(secrets: Named) -> Section {
    let fixed = chosen(&secrets, |history| history.is_static);
    let active = chosen(&secrets, |history| !history.is_static && history.active.is_some());
    let warming = chosen(&secrets, |history| !history.is_static && history.active.is_none());
    let with_name = |name: &str, value: Value| {
        let mut fields = Map::new();
        fields.insert("name".to_owned(), name.into());
        if let Value::Object(more) = value {
            fields.extend(more);
        }
        Value::from(fields)
    };
    let element = "SecretsConfigDump.DynamicSecret";
    let members = vec![
        (
            "static_secrets",
            many("SecretsConfigDump.StaticSecret", STATIC_SECRET, fixed, move |name, history| {
                with_name(name, unversioned(history, "secret"))
            }),
        ),
        (
            "dynamic_active_secrets",
            many(element, DYNAMIC_SECRET, active, move |name, history| {
                with_name(name, dynamic(history, history.active.as_ref(), "secret"))
            }),
        ),
        (
            "dynamic_warming_secrets",
            many(element, DYNAMIC_SECRET, warming, move |name, history| {
                let mut value = with_name(name, dynamic(history, history.warming.as_ref(), "secret"));
                // Tools tell by this word that nothing has arrived yet.
                if let (None, Value::Object(fields)) = (&history.warming, &mut value) {
                    fields.insert("version_info".to_owned(), "uninitialized".into());
                }
                value
            }),
        ),
    ];
    Section { kind: "SecretsConfigDump", members }
}

/// A static resource in use.
fn unversioned(history: &ResourceHistory, field: &str) -> Value {
    versioned(history.active.as_ref().or(history.warming.as_ref()), field).into()
}

/// A discovered resource with what became of its last update.
pub(super) fn dynamic(history: &ResourceHistory, record: Option<&Record>, field: &str) -> Value {
    let mut fields = versioned(record, field);
    add_refusal(&mut fields, history);
    fields.into()
}

pub(super) fn versioned(record: Option<&Record>, field: &str) -> Map<String, Value> {
    let mut fields = Map::new();
    let Some(Record { version, updated, resource }) = record else { return fields };
    if !version.is_empty() {
        fields.insert("version_info".to_owned(), version.as_str().into());
    }
    if let Some(any) = resource {
        fields.insert(field.to_owned(), any_value(any));
    }
    fields.insert("last_updated".to_owned(), timestamp(*updated));
    fields
}

pub(super) fn any_value(any: &Any) -> Value {
    Schema::load().any_to_json(any, STYLE).unwrap_or_else(|_| {
        // Accepted resources are well formed, so this is one that was refused: its type is what can be told.
        serde_json::json!({ "@type": any.type_url })
    })
}

fn add_refusal(fields: &mut Map<String, Value>, history: &ResourceHistory) {
    let Some(Refusal { record, details }) = &history.refusal else { return };
    let mut state = Map::new();
    if let Some(any) = &record.resource {
        state.insert("failed_configuration".to_owned(), any_value(any));
    }
    state.insert("last_update_attempt".to_owned(), timestamp(record.updated));
    state.insert("details".to_owned(), details.as_str().into());
    if !record.version.is_empty() {
        state.insert("version_info".to_owned(), record.version.as_str().into());
    }
    fields.insert("error_state".to_owned(), state.into());
}
