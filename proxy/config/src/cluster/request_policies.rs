//! What a cluster says about requests in place of the routes that lead to it (`HttpProtocolOptions.hash_policy`,
//! `retry_policy`, `request_mirror_policies`).
//!
//! Owns the checked model. Never hashes, retries or copies a request.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::route::v3 as pb;

use crate::context::Context;
use crate::rejection::{FieldPath, Parsed};
use crate::route::{HashPolicy, MirrorPolicy, RetryPolicy, hash_policies, mirror_policies, retry_policy};

/// Policies for requests to a cluster. Each replaces what routes and virtual hosts say, as a whole, where it is there.
#[derive(Clone, Debug)]
pub struct RequestPolicies {
    /// What requests are hashed by; empty if the cluster says nothing.
    pub hash: Arc<[HashPolicy]>,
    /// What is tried again, and how often.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Where copies go; empty if the cluster says nothing.
    pub mirrors: Vec<MirrorPolicy>,
}

/// The fields of the message that are read here.
pub(super) struct WirePolicies {
    pub request_mirror_policies: Vec<pb::route_action::RequestMirrorPolicy>,
    pub hash_policy: Vec<pb::route_action::HashPolicy>,
    pub retry_policy: Option<pb::RetryPolicy>,
}

impl RequestPolicies {
    /// Reads those of the message at `at`; `None` if it has none.
    pub(super) fn read(context: &Context<'_>, at: &FieldPath<'_>, wire: WirePolicies) -> Parsed<Option<Self>> {
        let read = Self {
            hash: hash_policies(&at.field("hash_policy"), wire.hash_policy)?,
            retry: match wire.retry_policy {
                None => None,
                Some(policy) => Some(Arc::new(retry_policy(context, &at.field("retry_policy"), policy)?)),
            },
            mirrors: mirror_policies(&at.field("request_mirror_policies"), wire.request_mirror_policies)?,
        };
        let says_nothing = read.hash.is_empty() && read.retry.is_none() && read.mirrors.is_empty();
        Ok((!says_nothing).then_some(read))
    }
}
