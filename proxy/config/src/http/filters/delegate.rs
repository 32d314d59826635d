//! HTTP filters that a match tree chooses: one that rests for some requests
//! (`envoy.extensions.common.matching.v3.ExtensionWithMatcher`), and one that is another filter for each of them
//! (`envoy.extensions.filters.http.composite.v3`).
//!
//! Owns the trees and the filters in them. Never asks a tree.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::common::matching::v3 as matching;
use outrigger_api::pb::envoy::extensions::filters::common::matcher::action::v3 as action;
use outrigger_api::pb::envoy::extensions::filters::http::composite::v3 as composite;
use outrigger_api::pb::google::protobuf::Any;
use outrigger_api::pb::xds::r#type::matcher::v3 as xds;

use super::HttpFilterConfig;
use crate::context::Context;
use crate::decide::decide;
use crate::matcher::{Kinds, Matcher, Place};
use crate::rejection::{FieldPath, Parsed};
use crate::units::RuntimeFraction;
use crate::wire;

/// A filter that a match tree chooses.
#[derive(Clone, Debug)]
pub struct Delegating {
    /// Runs where the tree says nothing; nothing does in a composite filter.
    pub own: Option<HttpFilterConfig>,
    /// Chooses.
    pub tree: Option<Arc<DelegateTree>>,
}

/// Which filter takes a request.
pub type DelegateTree = Matcher<DelegateAction>;

/// What a tree says.
#[derive(Clone, Debug)]
pub enum DelegateAction {
    /// No filter. Source: `SkipFilter`.
    Skip,
    /// This one. Source: `ExecuteFilterAction`.
    Run(Arc<Delegate>),
}

/// A filter for some requests.
#[derive(Clone, Debug)]
pub struct Delegate {
    /// What it does.
    pub config: HttpFilterConfig,
    /// It runs for such a share of them; for all unless given.
    pub share: Option<RuntimeFraction>,
}

impl Delegating {
    /// A filter with a tree around it.
    pub(super) fn parse(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: matching::ExtensionWithMatcher,
    ) -> Parsed<Self> {
        decide!(wire, at, matching::ExtensionWithMatcher as "envoy.extensions.common.matching.v3.ExtensionWithMatcher" {
            implemented: xds_matcher, extension_config;
            no_effect: ;
            unsupported: matcher;
        });
        let tree = tree(context, &at.field("xds_matcher"), xds_matcher)?;
        let at = at.field("extension_config");
        let Some(core::TypedExtensionConfig { name: _, typed_config: Some(any) }) = extension_config else {
            return Err(at.field("typed_config").reject("is required"));
        };
        let at = at.field("typed_config");
        let any = wire::extension(context, &at, any)?;
        if wire::type_name(&any) != COMPOSITE {
            return Ok(Self { own: Some(inner(context, &at, &any)?), tree });
        }
        let composite = Self::parse_composite(context, &at, wire::decode(&at, &any)?)?;
        if composite.tree.is_some() {
            return Err(at.field("matcher").reject("must not be set where xds_matcher chooses"));
        }
        Ok(Self { own: None, tree })
    }

    /// A composite filter with a tree of its own.
    pub(super) fn parse_composite(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: composite::Composite,
    ) -> Parsed<Self> {
        decide!(wire, at, composite::Composite as "envoy.extensions.filters.http.composite.v3.Composite" {
            implemented: matcher;
            no_effect: ;
            unsupported: named_filter_chains;
        });
        Ok(Self { own: None, tree: tree(context, &at.field("matcher"), matcher)? })
    }

    /// The tree of a route.
    pub(super) fn parse_route(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: matching::ExtensionWithMatcherPerRoute,
    ) -> Parsed<Option<Arc<DelegateTree>>> {
        let matching::ExtensionWithMatcherPerRoute { xds_matcher } = wire;
        tree(context, &at.field("xds_matcher"), xds_matcher)
    }

    /// The tree of a route for a composite filter.
    pub(super) fn parse_composite_route(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: composite::CompositePerRoute,
    ) -> Parsed<Option<Arc<DelegateTree>>> {
        let composite::CompositePerRoute { matcher } = wire;
        let at = at.field("matcher");
        if matcher.is_none() {
            return Err(at.reject("is required"));
        }
        tree(context, &at, matcher)
    }

    /// All filters that may run.
    pub fn filters(&self) -> Vec<&HttpFilterConfig> {
        let of_tree = self.tree.iter().flat_map(|tree| tree.filters());
        self.own.iter().chain(of_tree).collect()
    }
}

impl DelegateTree {
    /// All filters that it may choose.
    pub fn filters(&self) -> Vec<&HttpFilterConfig> {
        let mut filters = Vec::new();
        self.actions(&mut |action| {
            if let DelegateAction::Run(delegate) = action {
                filters.push(&delegate.config);
            }
        });
        filters
    }
}

fn tree(context: &Context<'_>, at: &FieldPath<'_>, wire: Option<xds::Matcher>) -> Parsed<Option<Arc<DelegateTree>>> {
    let action = |at: &FieldPath<'_>, any: &Any| match wire::type_name(any) {
        SKIP => {
            let action::SkipFilter {} = wire::decode(at, any)?;
            Ok(DelegateAction::Skip)
        }
        EXECUTE => Ok(DelegateAction::Run(Arc::new(delegate(context, at, wire::decode(at, any)?)?))),
        _ => Err(at.reject(format!("the action {:?} is not supported", any.type_url))),
    };
    let kinds = Kinds { place: Place::Response, action: &action };
    wire.map(|wire| Matcher::parse(context, at, &kinds, wire).map(Arc::new)).transpose()
}

fn delegate(context: &Context<'_>, at: &FieldPath<'_>, wire: composite::ExecuteFilterAction) -> Parsed<Delegate> {
    decide!(wire, at, composite::ExecuteFilterAction
        as "envoy.extensions.filters.http.composite.v3.ExecuteFilterAction" {
        implemented: typed_config, sample_percent;
        no_effect: ;
        unsupported: dynamic_config, filter_chain, filter_chain_name;
    });
    let share_at = at.field("sample_percent");
    let share = sample_percent.map(|wire| wire::runtime_fraction(&share_at, wire)).transpose()?;
    let at = at.field("typed_config");
    let Some(core::TypedExtensionConfig { name: _, typed_config: Some(any) }) = typed_config else {
        return Err(at.field("typed_config").reject("is required"));
    };
    let at = at.field("typed_config");
    let any = wire::extension(context, &at, any)?;
    Ok(Delegate { config: inner(context, &at, &any)?, share })
}

/// A filter in a tree, which does not choose others: the depth of a configuration has an end.
fn inner(context: &Context<'_>, at: &FieldPath<'_>, any: &Any) -> Parsed<HttpFilterConfig> {
    if matches!(wire::type_name(any), WITH_MATCHER | COMPOSITE) {
        return Err(at.reject("must not be a filter that chooses others"));
    }
    match HttpFilterConfig::parse(context, at, any)? {
        Some(config) if config.is_terminal() => Err(at.reject("must not be a terminal filter")),
        Some(config) => Ok(config),
        None => Err(at.reject(format!("the HTTP filter {:?} is not supported", any.type_url))),
    }
}

pub(super) const WITH_MATCHER: &str = "envoy.extensions.common.matching.v3.ExtensionWithMatcher";
pub(super) const COMPOSITE: &str = "envoy.extensions.filters.http.composite.v3.Composite";
const SKIP: &str = "envoy.extensions.filters.common.matcher.action.v3.SkipFilter";
const EXECUTE: &str = "envoy.extensions.filters.http.composite.v3.ExecuteFilterAction";

#[cfg(test)]
mod tests {
    use outrigger_api::pb::envoy::extensions::filters::http::buffer::v3 as buffer;
    use outrigger_api::pb::google::protobuf::UInt32Value;
    use outrigger_api::pb::xds::core::v3::TypedExtensionConfig;
    use outrigger_api::pb::xds::r#type::matcher::v3::matcher::{OnMatch, on_match};
    use prost::Message;

    use super::*;
    use crate::context::NoEnvironment;

    fn any(name: &str, message: &impl Message) -> Any {
        Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
    }

    fn buffer() -> Any {
        let settings = buffer::Buffer { max_request_bytes: Some(UInt32Value { value: 5 }) };
        any("envoy.extensions.filters.http.buffer.v3.Buffer", &settings)
    }

    /// A tree that always leads to this action.
    fn always(action: Any) -> Option<xds::Matcher> {
        let action = TypedExtensionConfig { name: "a".into(), typed_config: Some(action) };
        let on_match = OnMatch { on_match: Some(on_match::OnMatch::Action(action)), ..OnMatch::default() };
        Some(xds::Matcher { on_no_match: Some(Box::new(on_match)), matcher_type: None })
    }

    fn run(filter: Any) -> Any {
        let filter = core::TypedExtensionConfig { name: "f".into(), typed_config: Some(filter) };
        any(EXECUTE, &composite::ExecuteFilterAction { typed_config: Some(filter), ..Default::default() })
    }

    fn read(own: Any, tree: Option<xds::Matcher>) -> Result<Delegating, String> {
        let own = core::TypedExtensionConfig { name: "e".into(), typed_config: Some(own) };
        let wire = matching::ExtensionWithMatcher {
            xds_matcher: tree,
            extension_config: Some(own),
            ..matching::ExtensionWithMatcher::default()
        };
        let root = FieldPath::resource("listener", "l");
        Delegating::parse(&Context::new(&NoEnvironment), &root, wire).map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn filters_stand_in_trees_but_choose_no_others() {
        let composite = || any(COMPOSITE, &composite::Composite::default());
        let skip = || any(SKIP, &action::SkipFilter {});
        assert!(read(buffer(), always(skip())).unwrap().own.is_some());
        let chosen = read(composite(), always(run(buffer()))).unwrap();
        assert!(chosen.own.is_none());
        assert_eq!(chosen.filters().len(), 1);
        for (own, action, expected) in [
            (buffer(), buffer(), "the action \"type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer\""),
            (composite(), run(composite()), "must not be a filter that chooses others"),
            (
                composite(),
                run(any(WITH_MATCHER, &matching::ExtensionWithMatcher::default())),
                "must not be a filter that chooses others",
            ),
            (
                composite(),
                run(any("envoy.extensions.filters.http.router.v3.Router", &())),
                "must not be a terminal filter",
            ),
            (composite(), run(any("a.B", &())), "the HTTP filter \"type.googleapis.com/a.B\" is not supported"),
        ] {
            let error = read(own, always(action)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
