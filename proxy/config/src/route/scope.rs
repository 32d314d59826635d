//! Scopes of routes (`envoy.config.route.v3.ScopedRouteConfiguration`).
//!
//! Owns the checked model of one scope. Never reads how requests find theirs (see `http::scoped_routes`).

use std::sync::Arc;

use outrigger_api::pb::envoy::config::route::v3 as pb;
use outrigger_api::pb::envoy::config::route::v3::scoped_route_configuration as parts;
use outrigger_api::pb::google::protobuf::BoolValue;

use super::RouteConfiguration;
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// A scope: which requests have it, and their routes.
#[derive(Clone, Debug)]
pub struct ScopedRoute {
    /// Unique among the scopes of a source.
    pub name: Arc<str>,
    /// What requests must yield, fragment by fragment.
    pub key: Vec<String>,
    /// Its routes.
    pub routes: ScopeRoutes,
}

/// Where the routes of a scope are.
#[derive(Clone, Debug)]
pub enum ScopeRoutes {
    /// In the scope.
    Inline(Arc<RouteConfiguration>),
    /// To be discovered.
    Rds {
        /// The name of the route configuration.
        name: Arc<str>,
        /// Only once a request wants them.
        on_demand: bool,
    },
}

impl ScopedRoute {
    /// Reads a discovered scope.
    pub fn parse(context: &Context<'_>, wire: pb::ScopedRouteConfiguration) -> Parsed<Self> {
        let name = wire.name.clone();
        Self::parse_at(context, &FieldPath::resource("scoped route", &name), wire)
    }

    /// Reads the scope that stands at `at`.
    pub(crate) fn parse_at(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: pb::ScopedRouteConfiguration,
    ) -> Parsed<Self> {
        decide!(wire, at, pb::ScopedRouteConfiguration as "envoy.config.route.v3.ScopedRouteConfiguration" {
            implemented: on_demand, name, route_configuration_name, route_configuration, key;
            no_effect: ;
            unsupported: ;
        });
        if name.is_empty() {
            return Err(at.field("name").reject("must not be empty"));
        }
        let routes = match (route_configuration, route_configuration_name) {
            (None, name) if name.is_empty() => {
                return Err(at.reject("needs one of route_configuration_name, route_configuration"));
            }
            (None, name) => ScopeRoutes::Rds { name: name.into(), on_demand },
            (Some(_), name) if !name.is_empty() => {
                return Err(at.field("route_configuration").reject("excludes route_configuration_name"));
            }
            (Some(_), _) if on_demand => {
                return Err(at.field("on_demand").reject("needs route_configuration_name, not route_configuration"));
            }
            (Some(mut wire), _) => {
                // As in a listener, inline routes are checked against the clusters unless they say otherwise.
                wire.validate_clusters.get_or_insert(BoolValue { value: true });
                let routes = RouteConfiguration::parse_inline(context, &at.field("route_configuration"), wire)?;
                ScopeRoutes::Inline(Arc::new(routes))
            }
        };
        let Some(key) = key else { return Err(at.field("key").reject("is required")) };
        Ok(Self { name: name.into(), key: self::key(&at.field("key"), key)?, routes })
    }
}

fn key(at: &FieldPath<'_>, wire: parts::Key) -> Parsed<Vec<String>> {
    let parts::Key { fragments } = wire;
    let at = at.field("fragments");
    if fragments.is_empty() {
        return Err(at.reject("must not be empty"));
    }
    wire::each(&at, fragments, |at, parts::key::Fragment { r#type }| match r#type {
        Some(parts::key::fragment::Type::StringKey(text)) => Ok(text),
        None => Err(at.reject("needs string_key")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::NoEnvironment;

    fn scope(change: impl FnOnce(&mut pb::ScopedRouteConfiguration)) -> Result<ScopedRoute, String> {
        let fragment =
            |text: &str| parts::key::Fragment { r#type: Some(parts::key::fragment::Type::StringKey(text.to_owned())) };
        let mut wire = pb::ScopedRouteConfiguration {
            name: "s".into(),
            route_configuration_name: "r".into(),
            key: Some(parts::Key { fragments: vec![fragment("a"), fragment("")] }),
            ..Default::default()
        };
        change(&mut wire);
        ScopedRoute::parse(&Context::new(&NoEnvironment), wire).map_err(|error| error.to_string())
    }

    #[test]
    fn a_scope_names_its_routes_or_has_them() {
        let named = scope(|_| ()).unwrap();
        assert_eq!(named.key, ["a", ""]);
        assert!(matches!(named.routes, ScopeRoutes::Rds { name, on_demand: false } if &*name == "r"));
        let inline = scope(|wire| {
            wire.route_configuration_name.clear();
            wire.route_configuration = Some(pb::RouteConfiguration { name: "x".into(), ..Default::default() });
        });
        assert!(matches!(inline.unwrap().routes, ScopeRoutes::Inline(routes) if routes.validate_clusters));
    }

    #[test]
    fn what_is_missing_or_too_much_is_named() {
        let both = scope(|wire| wire.route_configuration = Some(Default::default())).unwrap_err();
        assert_eq!(both, "scoped route \"s\": route_configuration: excludes route_configuration_name");
        let neither = scope(|wire| wire.route_configuration_name.clear()).unwrap_err();
        assert_eq!(neither, "scoped route \"s\": needs one of route_configuration_name, route_configuration");
        let keyless = scope(|wire| wire.key = None).unwrap_err();
        assert_eq!(keyless, "scoped route \"s\": key: is required");
        let empty = scope(|wire| wire.key = Some(parts::Key { fragments: Vec::new() })).unwrap_err();
        assert_eq!(empty, "scoped route \"s\": key.fragments: must not be empty");
    }
}
