//! Endpoints that a pick avoids as long as there are others.
//!
//! Owns what they are for a retry. Never picks.

use std::sync::Arc;

use outrigger_config::cluster::{LbMetadata, LbValue};
use outrigger_config::route::AvoidedHosts;

use super::host::Host;

/// What one pick avoids; nothing by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Avoid<'a> {
    /// These, which were tried.
    pub tried: &'a [Arc<Host>],
    /// What the policy of a retry says.
    pub policy: Option<&'a AvoidedHosts>,
}

impl<'a> Avoid<'a> {
    /// What a pick for a request avoids after `tried`: nothing the first time.
    pub fn of(policy: &'a AvoidedHosts, tried: &'a [Arc<Host>]) -> Self {
        match tried {
            [] => Self::default(),
            tried if policy.previous => Self { tried, policy: Some(policy) },
            _ => Self { tried: &[], policy: Some(policy) },
        }
    }

    /// There is nothing to avoid.
    pub fn is_empty(&self) -> bool {
        self.tried.is_empty() && self.policy.is_none()
    }

    /// This is one of them.
    pub fn has(&self, host: &Host) -> bool {
        self.tried.iter().any(|tried| Arc::ptr_eq(&tried.shared, &host.shared))
            || self.policy.is_some_and(|policy| {
                let said = host.metadata.as_deref();
                (policy.canaries && host.is_canary()) || policy.metadata.iter().any(|wanted| has_all(said, wanted))
            })
    }
}

/// Whether what an endpoint says has all that is wanted. Of a list, one item will do.
fn has_all(said: Option<&LbMetadata>, wanted: &LbMetadata) -> bool {
    wanted.iter().all(|(key, value)| match said.and_then(|said| said.get(key)) {
        Some(LbValue::List(items)) => items.contains(value),
        found => found == Some(value),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(json: Value) -> LbMetadata {
        LbMetadata::from(json.as_object().unwrap())
    }

    #[test]
    fn all_pairs_are_wanted_and_one_item_of_a_list_will_do() {
        let endpoint = said(json!({ "version": "v2", "stages": ["dev", "test"], "n": 1 }));
        for (wanted, has) in [
            (json!({}), true),
            (json!({ "version": "v2" }), true),
            (json!({ "version": "v2", "stages": "test" }), true),
            (json!({ "version": "v2", "stages": "prod" }), false),
            (json!({ "version": "v1" }), false),
            (json!({ "n": "1" }), false),
            (json!({ "other": "x" }), false),
        ] {
            assert_eq!(has_all(Some(&endpoint), &said(wanted.clone())), has, "{wanted}");
            assert_eq!(has_all(None, &said(wanted.clone())), wanted == json!({}));
        }
    }
}
