//! What the HTTP and the network filter of role based access control have in common.
//!
//! Owns the names under which decisions are told: stats, dynamic metadata, access log. Never decides.

use std::collections::BTreeMap;
use std::ops::DerefMut;
use std::sync::Arc;

use outrigger_config::rbac::Engine;
use outrigger_policy::rbac::{Decision, Facts, nearest};
use serde_json::{Map, Value};

use crate::scope;
use crate::stats::names::sanitize;

scope! {
    /// Stats of enforced rules (`<prefix>.rbac.*`).
    pub struct RbacStats { allowed: Counter, denied: Counter }
}

scope! {
    /// Stats of shadow rules (`<prefix>.rbac.*`).
    pub struct ShadowStats { shadow_allowed: Counter, shadow_denied: Counter }
}

/// Dynamic metadata: values by namespace.
pub type Metadata = BTreeMap<String, Map<String, Value>>;

/// Where the network filter tells of its shadow rules.
pub const NETWORK_NAMESPACE: &str = "envoy.filters.network.rbac";
/// Where the HTTP filter tells of its shadow rules.
pub const HTTP_NAMESPACE: &str = "envoy.filters.http.rbac";
/// Where both tell which policy came nearest to allowing what was denied.
pub const NEAREST_NAMESPACE: &str = "outrigger.rbac";

/// The prefix of a filter's stats, and, if not empty, of one kind of its rules.
pub fn stat_prefix(filter: &str, rules: &str) -> Arc<str> {
    let (filter, rules) = (sanitize(filter), sanitize(rules));
    let dot = |part: &str| if part.is_empty() { "" } else { "." };
    format!("{filter}{}rbac.{rules}{}", dot(&filter), dot(&rules)).into()
}

/// Why something was denied, as in `%RESPONSE_CODE_DETAILS%` and `%CONNECTION_TERMINATION_DETAILS%`: without blanks, so
/// that it stays one word.
pub fn denied_details(policy: Option<&str>) -> String {
    let name = policy.unwrap_or("none");
    let name = name.replace(|letter: char| letter.is_ascii_whitespace() || letter == '\x0b', "_");
    format!("rbac_access_denied_matched_policy[{name}]")
}

/// Tells what shadow rules would have done.
pub fn tell_shadow(metadata: &mut Metadata, namespace: &str, prefix: &str, decision: &Decision<'_>) {
    tell(metadata, namespace, prefix, "shadow", decision);
}

/// Tells what rules did.
pub fn tell_enforced(metadata: &mut Metadata, namespace: &str, prefix: &str, decision: &Decision<'_>) {
    tell(metadata, namespace, prefix, "enforced", decision);
}

fn tell(metadata: &mut Metadata, namespace: &str, prefix: &str, kind: &str, decision: &Decision<'_>) {
    let told = metadata.entry(namespace.to_owned()).or_default();
    if let Some(policy) = decision.policy {
        told.insert(format!("{prefix}{kind}_effective_policy_id"), Value::from(&**policy));
    }
    let result = if decision.allowed { "allowed" } else { "denied" };
    told.insert(format!("{prefix}{kind}_engine_result"), Value::from(result));
}

/// Tells access logs whether rules for logging matched.
pub fn tell_log_hint(metadata: &mut Metadata, decision: &Decision<'_>) {
    if let Some(hint) = decision.log_hint {
        let common = metadata.entry("envoy.common".to_owned()).or_default();
        common.insert("access_log_hint".to_owned(), Value::from(hint));
    }
}

/// Tells which policy came nearest to allowing what was denied, and which part of it did not match.
pub fn tell_nearest<M: DerefMut<Target = Metadata>>(engine: &Engine, facts: &impl Facts, metadata: impl FnOnce() -> M) {
    let Some(nearest) = nearest(engine, facts) else { return };
    tracing::debug!(
        "denied: policy {:?} came nearest, but its {} did not match",
        nearest.policy,
        nearest.failed.as_str()
    );
    let mut metadata = metadata();
    let told = metadata.entry(NEAREST_NAMESPACE.to_owned()).or_default();
    told.insert("nearest_policy".to_owned(), Value::from(&**nearest.policy));
    told.insert("failed".to_owned(), Value::from(nearest.failed.as_str()));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_those_that_dashboards_know() {
        assert_eq!(&*stat_prefix("tcp.", ""), "tcp.rbac.");
        assert_eq!(&*stat_prefix("connect_authz", ""), "connect_authz.rbac.");
        assert_eq!(&*stat_prefix("tcp.", "istio_dry_run_allow_"), "tcp.rbac.istio_dry_run_allow_.");
        assert_eq!(&*stat_prefix("", "x."), "rbac.x.");
        assert_eq!(denied_details(None), "rbac_access_denied_matched_policy[none]");
        assert_eq!(denied_details(Some("my own\tpolicy")), "rbac_access_denied_matched_policy[my_own_policy]");
    }

    #[test]
    fn metadata_is_as_others_read_it() {
        let name = Arc::from("p");
        let mut metadata = Metadata::new();
        let decision = Decision { allowed: false, policy: Some(&name), log_hint: Some(true) };
        tell_shadow(&mut metadata, NETWORK_NAMESPACE, "istio_dry_run_allow_", &decision);
        tell_log_hint(&mut metadata, &decision);
        let decision = Decision { allowed: true, policy: None, log_hint: None };
        tell_shadow(&mut metadata, HTTP_NAMESPACE, "", &decision);
        tell_log_hint(&mut metadata, &decision);
        let expected = json!({
            "envoy.common": {"access_log_hint": true},
            "envoy.filters.http.rbac": {"shadow_engine_result": "allowed"},
            "envoy.filters.network.rbac": {
                "istio_dry_run_allow_shadow_effective_policy_id": "p",
                "istio_dry_run_allow_shadow_engine_result": "denied",
            },
        });
        assert_eq!(json!(metadata), expected);
    }
}
