//! The scopes of routes in `/config_dump` (`envoy.admin.v3.ScopedRoutesConfigDump`).
//!
//! Owns which scopes stand under which connection manager's name. Never reads a query (see `config_dump`).

use std::sync::Arc;
use std::time::SystemTime;

use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::scoped_routes::ConfigSpecifier;
use outrigger_api::pb::google::protobuf::Any;
use outrigger_xds::ResourceKind;
use regex::Regex;
use serde_json::{Map, Value};

use super::context::AdminContext;
use super::dump_sections::{Named, Section, SectionMember, any_value, route_specifiers};
use super::pretty::timestamp;
use crate::graph::history::Record;

const INLINE: &[&str] = &["name", "scoped_route_configs", "last_updated"];
const DYNAMIC: &[&str] =
    &["name", "version_info", "scoped_route_configs", "last_updated", "error_state", "client_status"];

/// Scopes of listeners, and discovered ones once for each name under which listeners ask for them.
pub(super) fn section(context: &AdminContext, listeners: &Named, filter: Option<&Regex>) -> Section {
    let mut inline = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for (specifier, updated) in route_specifiers(listeners) {
        let RouteSpecifier::ScopedRoutes(scoped) = specifier else { continue };
        if filter.is_some_and(|filter| !filter.is_match(&scoped.name)) {
            continue;
        }
        match scoped.config_specifier {
            Some(ConfigSpecifier::ScopedRouteConfigurationsList(list)) => {
                let scopes = list.scoped_route_configurations.iter().map(outrigger_api::pack);
                inline.push(entry(&scoped.name, None, scopes.map(Arc::new).collect(), updated));
            }
            Some(ConfigSpecifier::ScopedRds(_)) if !names.contains(&scoped.name) => names.push(scoped.name),
            _ => {}
        }
    }
    let mut members = Vec::new();
    if !inline.is_empty() {
        let values = Box::new(inline.into_iter());
        let element = "ScopedRoutesConfigDump.InlineScopedRouteConfigs";
        members.push(("inline_scoped_route_configs", SectionMember::Many { element, fields: INLINE, values }));
    }
    if !names.is_empty() {
        let all = context.configuration.resources(ResourceKind::ScopedRouteConfiguration);
        let records: Vec<Record> = all.into_iter().filter_map(|(_, history)| history.active).collect();
        // Nothing has arrived yet, as far as can be told.
        if let Some(updated) = records.iter().map(|record| record.updated).max() {
            let version = context.configuration.version(ResourceKind::ScopedRouteConfiguration);
            let scopes: Vec<Arc<Any>> = records.into_iter().filter_map(|record| record.resource).collect();
            let values = names.into_iter().map(move |name| entry(&name, Some(&version), scopes.clone(), updated));
            let values = Box::new(values);
            let element = "ScopedRoutesConfigDump.DynamicScopedRouteConfigs";
            members.push(("dynamic_scoped_route_configs", SectionMember::Many { element, fields: DYNAMIC, values }));
        }
    }
    Section { kind: "ScopedRoutesConfigDump", members }
}

fn entry(name: &str, version: Option<&str>, scopes: Vec<Arc<Any>>, updated: SystemTime) -> Value {
    let mut fields = Map::new();
    fields.insert("name".to_owned(), name.into());
    if let Some(version) = version.filter(|version| !version.is_empty()) {
        fields.insert("version_info".to_owned(), version.into());
    }
    fields.insert("scoped_route_configs".to_owned(), scopes.iter().map(|scope| any_value(scope)).collect());
    fields.insert("last_updated".to_owned(), timestamp(updated));
    fields.into()
}
