//! Asking a service who may connect (`envoy.extensions.filters.network.ext_authz.v3.ExtAuthz`).
//!
//! Owns what is asked of a connection and what follows. Without an answer the connection is refused, unless the settings
//! say otherwise. Never speaks to the service itself (see `upstream::call`).

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use outrigger_api::pb::envoy::service::auth::v3::attribute_context::TlsSession;
use outrigger_api::pb::envoy::service::auth::v3::check_response::HttpResponse;
use outrigger_api::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use outrigger_config::metadata::{self, MetadataMap};
use outrigger_config::network::ExtAuthz as Settings;

use super::Refusal;
use super::stats::AuthzStats;
use crate::accesslog::entry;
use crate::authz;
use crate::stats::names;
use crate::stream::{ConnectionInfo, ResponseFlag};
use crate::upstream::call;
use crate::upstream::repeated_call::ask;
use crate::worker::Worker;

/// The filter of a chain.
pub struct AuthzFilter {
    settings: Arc<Settings>,
    prefix: Arc<str>,
}

/// A question that is counted as long as it is open.
struct Open(Arc<AuthzStats>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.active.decrement();
    }
}

impl AuthzFilter {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        let prefix = names::prefix("ext_authz", &settings.stat_prefix).into();
        Self { settings, prefix }
    }

    /// Asks the service.
    pub(super) async fn check(&self, worker: &Rc<Worker>, connection: &ConnectionInfo) -> Result<(), Refusal> {
        let stats = worker.network.authz.get(&worker.process.stats, &self.prefix);
        let settings = &self.settings;
        if let Some(matcher) = &settings.enabled_metadata
            && !matcher.matches(connection.dynamic_metadata.borrow().get(&*matcher.filter))
        {
            stats.disabled.increment();
            return Ok(());
        }
        stats.total.increment();
        stats.active.increment();
        let open = Open(Arc::clone(&stats));
        let began = Instant::now();
        let call = call::unary(&settings.service, CHECK, &self.question(worker, connection), true);
        let answer = ask::<CheckResponse>(worker, &settings.service, call).await;
        drop(open);
        match answer {
            Ok(CheckResponse { status, dynamic_metadata, http_response }) => {
                let consents = status.unwrap_or_default().code == 0;
                let told = dynamic_metadata.map(metadata::object).unwrap_or_default();
                tell(connection, told, consents.then_some(began));
                if consents {
                    stats.ok.increment();
                    self.tell_shadow("OK", None, connection);
                    return Ok(());
                }
                stats.denied.increment();
                if settings.shadow {
                    self.tell_shadow("DENIED", Some(status_of(http_response)), connection);
                    return Ok(());
                }
                stats.cx_closed.increment();
                Err(refusal("ext_authz_denied"))
            }
            Err(error) => {
                tracing::debug!(cluster = &*settings.service.cluster, "external authorization: {error}");
                stats.error.increment();
                if settings.shadow {
                    self.tell_shadow("ERROR", None, connection);
                    return Ok(());
                }
                if settings.failure_mode_allow {
                    stats.failure_mode_allowed.increment();
                    return Ok(());
                }
                stats.cx_closed.increment();
                Err(refusal("ext_authz_error"))
            }
        }
    }

    /// Leaves the decision where logs and later filters find it, in the JSON form of `ShadowDecision`.
    fn tell_shadow(&self, result: &str, status: Option<i32>, connection: &ConnectionInfo) {
        if !self.settings.shadow {
            return;
        }
        let status = status.map(|status| format!(",\"status_code\":{status}")).unwrap_or_default();
        let decision = format!("{{\"check_result\":\"{result}\"{status}}}");
        connection.filter_state.borrow_mut().insert(NAMESPACE.to_owned(), decision);
    }

    fn question(&self, worker: &Worker, connection: &ConnectionInfo) -> CheckRequest {
        let settings = &self.settings;
        let known = connection.dynamic_metadata.borrow();
        let of_handshake = connection.tls.as_ref().and_then(|tls| tls.sni.as_deref());
        let attributes = AttributeContext {
            source: Some(authz::source(connection, settings.tells_certificate)),
            destination: Some(authz::destination(
                connection,
                authz::labels(&worker.process.node_metadata, &settings.labels_key),
            )),
            metadata_context: Some(authz::metadata(&settings.metadata_namespaces, |name| {
                known.get(name).map(entry::object)
            })),
            tls_session: settings.tells_tls_session.then(|| TlsSession {
                // Also of a TLS connection that goes on as it is, where the client's first bytes have said it.
                sni: of_handshake.or(connection.server_name.as_deref()).unwrap_or_default().to_owned(),
            }),
            ..AttributeContext::default()
        };
        CheckRequest { attributes: Some(attributes) }
    }
}

/// Leaves what the service says for the filters after this one, and for logs.
fn tell(connection: &ConnectionInfo, mut told: MetadataMap, began: Option<Instant>) {
    if told.is_empty() {
        return;
    }
    if let Some(began) = began {
        let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        told.insert("ext_authz_duration".to_owned(), took.into());
    }
    let mut known = connection.dynamic_metadata.borrow_mut();
    metadata::merge(known.entry(NAMESPACE.to_owned()).or_default(), &told);
}

/// The status that the service would have a request refused with.
fn status_of(answer: Option<HttpResponse>) -> i32 {
    let Some(HttpResponse::DeniedResponse(denied)) = answer else { return FORBIDDEN };
    denied.status.map(|status| status.code).filter(|code| *code != 0).unwrap_or(FORBIDDEN)
}

fn refusal(details: &'static str) -> Refusal {
    Refusal {
        reason: Some(details),
        details: Some(details.into()),
        flag: Some(ResponseFlag::UnauthorizedExternalService),
        after_first_bytes: true,
        delay: None,
    }
}

const FORBIDDEN: i32 = 403;
/// Where metadata and decisions of the service go, as in Envoy whatever the filter's name is.
const NAMESPACE: &str = "envoy.filters.network.ext_authz";
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
