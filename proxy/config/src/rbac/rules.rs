//! Reads rules and policies.
//!
//! Owns the messages `RBAC`, `Policy` and `Action`, and what both sides of a policy share. Never reads permissions or
//! principals themselves.

use std::collections::HashMap;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::rbac::v3 as pb;
use outrigger_api::pb::envoy::r#type::matcher::v3 as matcher;
use outrigger_api::pb::xds::r#type::matcher::v3 as xds;

use super::{Action, Engine, MetadataSource, NamedAction, Permission, Policy, Principal, Rules, SourcedMetadata};
use crate::cel;
use crate::context::Context;
use crate::decide::decide;
use crate::matcher::{Ask, Kinds, Matcher, OnMatch, Place};
use crate::matching::{MetadataMatcher, StringMatcher};
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Reading rules for one kind of filter.
pub(super) struct Reader<'a> {
    pub context: &'a Context<'a>,
    /// For requests; otherwise for connections, which have no headers.
    pub http: bool,
}

impl Reader<'_> {
    /// What decides: the match tree if there is one, the rules otherwise. `None` if there is neither.
    pub fn engine(
        &self,
        at: &FieldPath<'_>,
        names: (&'static str, &'static str),
        rules: Option<pb::Rbac>,
        tree: Option<xds::Matcher>,
    ) -> Parsed<Option<Engine>> {
        if let Some(wire) = tree {
            let tree = self.tree(&at.field(names.1), wire)?;
            let logs = contains_log(&tree);
            return Ok(Some(Engine::Matcher { tree, logs }));
        }
        rules.map(|wire| self.rules(&at.field(names.0), wire).map(Engine::Rules)).transpose()
    }

    fn tree(&self, at: &FieldPath<'_>, wire: xds::Matcher) -> Parsed<Matcher<NamedAction>> {
        let kinds = Kinds {
            place: if self.http { Place::Request } else { Place::Connection },
            action: &|at, any| {
                if wire::type_name(any) != "envoy.config.rbac.v3.Action" {
                    return Err(at.reject(format!("the action {:?} is not supported", any.type_url)));
                }
                let pb::Action { name, action: wire } = wire::decode(at, any)?;
                if name.is_empty() {
                    return Err(at.field("name").reject("must not be empty"));
                }
                Ok(NamedAction { name: name.into(), action: action(&at.field("action"), wire)? })
            },
        };
        Matcher::parse(self.context, at, &kinds, wire)
    }

    fn rules(&self, at: &FieldPath<'_>, wire: pb::Rbac) -> Parsed<Rules> {
        decide!(wire, at, pb::Rbac as "envoy.config.rbac.v3.RBAC" {
            implemented: action, policies, audit_logging_options;
            no_effect: ;
            unsupported: ;
        });
        if let Some(wire) = audit_logging_options {
            refuse_audit(&at.field("audit_logging_options"), wire)?;
        }
        Ok(Rules { action: self::action(&at.field("action"), action)?, policies: self.policies(at, policies)? })
    }

    fn policies(&self, at: &FieldPath<'_>, wire: HashMap<String, pb::Policy>) -> Parsed<Vec<Policy>> {
        let mut wire: Vec<_> = wire.into_iter().collect();
        wire.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let at = at.field("policies");
        let mut policies = Vec::with_capacity(wire.len());
        for (name, wire) in wire {
            policies.push(self.policy(&at.key(&name), &name, wire)?);
        }
        Ok(policies)
    }

    fn policy(&self, at: &FieldPath<'_>, name: &str, wire: pb::Policy) -> Parsed<Policy> {
        decide!(wire, at, pb::Policy as "envoy.config.rbac.v3.Policy" {
            implemented: permissions, principals, condition, checked_condition;
            no_effect: ;
            unsupported: cel_config;
        });
        let condition = match (condition, checked_condition) {
            (None, None) => None,
            (Some(wire), None) => Some(cel::parsed(&at.field("condition"), wire)?),
            (None, Some(wire)) => Some(cel::checked(&at.field("checked_condition"), wire)?),
            (Some(_), Some(_)) => {
                return Err(at.field("checked_condition").reject("cannot be given beside condition"));
            }
        };
        let list = at.field("permissions");
        let permissions = self.permissions(&list, permissions)?;
        let list = at.field("principals");
        Ok(Policy {
            name: name.into(),
            permissions,
            principals: self.principals(&list, principals)?,
            condition: condition.map(Arc::new),
        })
    }

    /// One or more permissions.
    pub fn permissions(&self, at: &FieldPath<'_>, wire: Vec<pb::Permission>) -> Parsed<Vec<Permission>> {
        if wire.is_empty() {
            return Err(at.reject("must not be empty"));
        }
        wire::each(at, wire, |at, wire| self.permission(at, wire))
    }

    /// One or more principals.
    pub fn principals(&self, at: &FieldPath<'_>, wire: Vec<pb::Principal>) -> Parsed<Vec<Principal>> {
        if wire.is_empty() {
            return Err(at.reject("must not be empty"));
        }
        wire::each(at, wire, |at, wire| self.principal(at, wire))
    }
}

/// An enum value of `RBAC.Action`.
fn action(at: &FieldPath<'_>, wire: i32) -> Parsed<Action> {
    match pb::rbac::Action::try_from(wire) {
        Ok(pb::rbac::Action::Allow) => Ok(Action::Allow),
        Ok(pb::rbac::Action::Deny) => Ok(Action::Deny),
        Ok(pb::rbac::Action::Log) => Ok(Action::Log),
        Err(_) => Err(wire::unknown_enum(at, wire)),
    }
}

/// Whoever wants an audit log must not get none without being told.
fn refuse_audit(at: &FieldPath<'_>, wire: pb::rbac::AuditLoggingOptions) -> Parsed<()> {
    use pb::rbac::AuditLoggingOptions;
    use pb::rbac::audit_logging_options::AuditCondition;
    decide!(wire, at, AuditLoggingOptions as "envoy.config.rbac.v3.RBAC.AuditLoggingOptions" {
        implemented: audit_condition, logger_configs;
        no_effect: ;
        unsupported: ;
    });
    match AuditCondition::try_from(audit_condition) {
        Ok(AuditCondition::None) => return Ok(()),
        Ok(_) => {}
        Err(_) => return Err(wire::unknown_enum(&at.field("audit_condition"), audit_condition)),
    }
    match logger_configs.iter().position(|logger| !logger.is_optional) {
        Some(index) => Err(at.field("logger_configs").item(index).field("audit_logger").unsupported()),
        None => Ok(()),
    }
}

/// A path matcher, of which there is one kind.
pub(super) fn url_path(at: &FieldPath<'_>, wire: matcher::PathMatcher) -> Parsed<StringMatcher> {
    let matcher::PathMatcher { rule } = wire;
    match rule {
        Some(matcher::path_matcher::Rule::Path(wire)) => wire::string_matcher(&at.field("path"), wire),
        None => Err(at.field("path").reject("is required")),
    }
}

/// The older form of a metadata matcher: dynamic metadata.
pub(super) fn dynamic_metadata(at: &FieldPath<'_>, wire: matcher::MetadataMatcher) -> Parsed<SourcedMetadata> {
    Ok(SourcedMetadata { source: MetadataSource::Dynamic, matcher: MetadataMatcher::parse(at, wire)? })
}

/// A metadata matcher that says where the metadata comes from.
pub(super) fn sourced_metadata(at: &FieldPath<'_>, wire: pb::SourcedMetadata) -> Parsed<SourcedMetadata> {
    decide!(wire, at, pb::SourcedMetadata as "envoy.config.rbac.v3.SourcedMetadata" {
        implemented: metadata_matcher, metadata_source;
        no_effect: ;
        unsupported: ;
    });
    let source = match pb::MetadataSource::try_from(metadata_source) {
        Ok(pb::MetadataSource::Dynamic) => MetadataSource::Dynamic,
        Ok(pb::MetadataSource::Route) => MetadataSource::Route,
        Err(_) => return Err(wire::unknown_enum(&at.field("metadata_source"), metadata_source)),
    };
    let at = at.field("metadata_matcher");
    let Some(matcher) = metadata_matcher else { return Err(at.reject("is required")) };
    Ok(SourcedMetadata { source, matcher: MetadataMatcher::parse(&at, matcher)? })
}

fn contains_log(tree: &Matcher<NamedAction>) -> bool {
    let logs = |on_match: &OnMatch<NamedAction>| match on_match {
        OnMatch::Action(action) => action.action == Action::Log,
        OnMatch::Matcher(tree) => contains_log(tree),
    };
    let asked = match &tree.ask {
        None => false,
        Some(Ask::List(list)) => list.iter().any(|(_, on_match)| logs(on_match)),
        Some(Ask::Exact { map, .. } | Ask::Prefix { map, .. }) => map.iter().any(|(_, on_match)| logs(on_match)),
        Some(Ask::Network { targets, .. } | Ask::Domain { targets, .. }) => targets.iter().any(logs),
    };
    asked || tree.on_no_match.as_deref().is_some_and(logs)
}
