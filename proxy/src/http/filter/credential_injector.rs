//! Adding a credential of this workload to requests (`envoy.extensions.filters.http.credential_injector.v3`).
//!
//! Owns what becomes of a request with and without a credential. Never fetches one (see `tokens`, and `graph::secrets`).

use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::http::filters::{Credential, CredentialInjector as Settings};

use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::graph::secrets::SecretReader;
use crate::http::manager::reply::LocalReply;
use crate::scope;
use crate::tokens::{self, RemoteToken};

scope! {
    /// Stats of the filter (`http.<prefix>.credential_injector.*`).
    pub struct InjectorStats {
        already_exists: Counter,
        failed: Counter,
        injected: Counter,
    }
}

/// The filter.
pub struct CredentialInjector(Rc<Injector>);

struct Injector {
    settings: Arc<Settings>,
    source: Source,
    stats: Arc<InjectorStats>,
}

enum Source {
    Secret(SecretReader),
    Token(Arc<RemoteToken>),
}

impl CredentialInjector {
    /// A filter with its stats, whose names begin with `prefix`.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>, prefix: &str) -> Self {
        let source = match &settings.credential {
            Credential::Secret { secret, .. } => Source::Secret(SecretReader::new(secret)),
            Credential::Token(token) => {
                Source::Token(maker.worker.process.tokens.get(&tokens::stat_prefix(prefix).into(), token))
            }
        };
        let stats = maker.worker.scope(&format!("{prefix}credential_injector."));
        Self(Rc::new(Injector { settings: Arc::clone(settings), source, stats }))
    }
}

impl HttpFilter for CredentialInjector {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        match &self.0.source {
            // It is on its way for the first time.
            Source::Token(token) if !token.was_tried() => {
                let injector = Rc::clone(&self.0);
                Verdict::wait(token.first_attempt(), move |(), exchange| injector.inject(exchange))
            }
            Source::Secret(_) | Source::Token(_) => self.0.inject(exchange),
        }
    }
}

impl Injector {
    fn inject(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let header = match &self.settings.credential {
            Credential::Secret { header, .. } => &**header,
            Credential::Token(_) => "authorization",
        };
        if !self.settings.overwrite && exchange.head().headers.get_by_name(header).is_some() {
            self.stats.already_exists.increment();
            return Verdict::Continue;
        }
        if self.set(header, exchange) {
            self.stats.injected.increment();
            return Verdict::Continue;
        }
        self.stats.failed.increment();
        if self.settings.allow_without {
            return Verdict::Continue;
        }
        let reply = LocalReply::new(401, "failed_to_inject_credential");
        Verdict::reply(reply.body(&b"Failed to inject credential."[..]))
    }

    /// False if there is nothing that could stand in a header.
    fn set(&self, header: &str, exchange: &mut Exchange<'_, '_, '_>) -> bool {
        match (&self.source, &self.settings.credential) {
            (Source::Secret(secret), Credential::Secret { prefix, .. }) => {
                let Some(secret) = secret.get(exchange.graph()) else { return false };
                // Files end in a line end.
                let end =
                    secret.value.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
                let value = &secret.value[..end];
                if value.is_empty() || value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
                    return false;
                }
                exchange.head_mut().headers.set_by_name(header, &[prefix.as_bytes(), value].concat());
                true
            }
            (Source::Token(token), _) => token.with_header(|value| match value {
                Some(value) => {
                    exchange.head_mut().headers.set_by_name(header, value);
                    true
                }
                None => false,
            }),
            (Source::Secret(_), Credential::Token(_)) => false,
        }
    }
}
