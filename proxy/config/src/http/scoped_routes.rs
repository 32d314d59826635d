//! Where a connection manager with scopes has its routes from (`...http_connection_manager.v3.ScopedRoutes`).
//!
//! Owns how the scope of a request is found, and where scopes come from. Never reads a request (see
//! `outrigger_policy::route`).

use std::collections::HashMap;
use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::scoped_routes as parts;
use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::scoped_routes::scope_key_builder as builder;

use super::header_mutations::header_name;
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::route::{ScopeRoutes, ScopedRoute};
use crate::source::{ConfigSource, config_source};
use crate::wire;

/// Routes by scope.
#[derive(Debug)]
pub struct ScopedRoutes {
    /// For stats and dumps.
    pub name: Arc<str>,
    /// What a request yields as its key, fragment by fragment.
    pub key: Vec<KeyFragment>,
    /// Where route configurations come from that scopes name.
    pub rds: Option<ConfigSource>,
    /// Where scopes come from.
    pub scopes: ScopeSource,
}

/// Where scopes come from.
#[derive(Debug)]
pub enum ScopeSource {
    /// From here; keys are unique.
    Inline(Vec<ScopedRoute>),
    /// By scoped route discovery.
    Srds(ConfigSource),
}

/// A part of a key, from a request header. Source: `HeaderValueExtractor`.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyFragment {
    /// Lower case.
    pub header: Arc<str>,
    /// What separates the elements of its value; the value is one element unless given.
    pub separator: Option<String>,
    /// Which element.
    pub element: KeyElement,
}

/// Which element of a header's value.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyElement {
    /// By position.
    Index(u32),
    /// The value behind this key; elements are `key separator value`.
    Named {
        /// Not empty.
        separator: String,
        /// Not empty.
        key: String,
    },
}

impl ScopedRoutes {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::ScopedRoutes) -> Parsed<Self> {
        decide!(wire, at, pb::ScopedRoutes as "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes" {
            implemented: name, scope_key_builder, rds_config_source, config_specifier;
            no_effect: ;
            unsupported: ;
        });
        if name.is_empty() {
            return Err(at.field("name").reject("must not be empty"));
        }
        let key_at = at.field("scope_key_builder");
        let Some(parts::ScopeKeyBuilder { fragments }) = scope_key_builder else {
            return Err(key_at.reject("is required"));
        };
        let fragments_at = key_at.field("fragments");
        if fragments.is_empty() {
            return Err(fragments_at.reject("must not be empty"));
        }
        let rds = match rds_config_source {
            None => None,
            Some(wire) => Some(config_source(context, &at.field("rds_config_source"), wire)?),
        };
        let scopes = match config_specifier {
            Some(parts::ConfigSpecifier::ScopedRouteConfigurationsList(wire)) => {
                let at = at.field("scoped_route_configurations_list");
                ScopeSource::Inline(scopes(context, &at.field("scoped_route_configurations"), wire)?)
            }
            Some(parts::ConfigSpecifier::ScopedRds(wire)) => {
                ScopeSource::Srds(scoped_rds(context, &at.field("scoped_rds"), wire)?)
            }
            None => return Err(at.reject("needs one of scoped_route_configurations_list, scoped_rds")),
        };
        let key = wire::each(&fragments_at, fragments, key_fragment)?;
        Ok(Self { name: name.into(), key, rds, scopes })
    }
}

fn scopes(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: pb::ScopedRouteConfigurationsList,
) -> Parsed<Vec<ScopedRoute>> {
    let pb::ScopedRouteConfigurationsList { scoped_route_configurations } = wire;
    if scoped_route_configurations.is_empty() {
        return Err(at.reject("must not be empty"));
    }
    let scopes = wire::each(at, scoped_route_configurations, |at, wire| ScopedRoute::parse_at(context, at, wire))?;
    let mut known: HashMap<&[String], &str> = HashMap::new();
    for (index, scope) in scopes.iter().enumerate() {
        let at = at.item(index);
        if let ScopeRoutes::Rds { .. } = scope.routes {
            return Err(at.field("route_configuration_name").reject("scopes in a listener need route_configuration"));
        }
        if let Some(other) = known.insert(&scope.key, &scope.name) {
            return Err(at.field("key").reject(format!("scope {other:?} has the same key")));
        }
    }
    Ok(scopes)
}

fn scoped_rds(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::ScopedRds) -> Parsed<ConfigSource> {
    decide!(wire, at, pb::ScopedRds as "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRds" {
        implemented: scoped_rds_config_source;
        no_effect: ;
        unsupported: srds_resources_locator;
    });
    let at = at.field("scoped_rds_config_source");
    match scoped_rds_config_source {
        Some(wire) => config_source(context, &at, wire),
        None => Err(at.reject("is required")),
    }
}

fn key_fragment(at: &FieldPath<'_>, wire: builder::FragmentBuilder) -> Parsed<KeyFragment> {
    use builder::fragment_builder::header_value_extractor::{ExtractType, KvElement};
    use builder::fragment_builder::{HeaderValueExtractor, Type};
    let Some(Type::HeaderValueExtractor(wire)) = wire.r#type else {
        return Err(at.reject("needs header_value_extractor"));
    };
    let at = at.field("header_value_extractor");
    let HeaderValueExtractor { name, element_separator, extract_type } = wire;
    let separator = Some(element_separator).filter(|separator| !separator.is_empty());
    let element = match extract_type {
        Some(ExtractType::Index(index)) if index > 0 && separator.is_none() => {
            return Err(at.field("index").reject(format!("{index} needs an element_separator")));
        }
        Some(ExtractType::Index(index)) => KeyElement::Index(index),
        Some(ExtractType::Element(KvElement { separator, key })) => {
            let at = at.field("element");
            if separator.is_empty() {
                return Err(at.field("separator").reject("must not be empty"));
            }
            if key.is_empty() {
                return Err(at.field("key").reject("must not be empty"));
            }
            KeyElement::Named { separator, key }
        }
        None => return Err(at.reject("needs one of index, element")),
    };
    Ok(KeyFragment { header: header_name(&at.field("name"), &name)?, separator, element })
}
