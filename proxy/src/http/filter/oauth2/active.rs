//! Settings with what one worker needs to act on them.
//!
//! Owns the way from the secrets of the moment to keys. Never looks at a request.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::http::filters::{ClientAuth, OAuth2 as Settings};
use outrigger_config::tls::GenericSecret;
use outrigger_policy::oauth2::{Keys, Sealing, is_plain};

use super::OAuth2Stats;
use crate::graph::Graph;
use crate::graph::secrets::SecretReader;
use crate::http::filter::Exchange;
use crate::worker::Worker;

/// Settings of a chain or a route in one worker.
pub(super) struct Active {
    settings: Arc<Settings>,
    pub(super) stats: Arc<OAuth2Stats>,
    hmac: SecretReader,
    client: Option<SecretReader>,
    /// Keys and the secret that they come from.
    keys: RefCell<Option<(Arc<GenericSecret>, Rc<Keys>)>>,
}

/// The same with the secrets of a moment.
pub(super) struct Ready {
    pub settings: Arc<Settings>,
    pub stats: Arc<OAuth2Stats>,
    pub keys: Rc<Keys>,
    /// What we prove at the server who we are with; `None` if a certificate does.
    pub client: Option<Arc<GenericSecret>>,
}

impl Active {
    /// `prefix` stands before the names of stats.
    pub(super) fn new(settings: &Arc<Settings>, worker: &Worker, prefix: &str) -> Self {
        let own = &settings.stat_prefix;
        let dot = if own.is_empty() { "" } else { "." };
        Self {
            stats: worker.scope(&format!("{prefix}{own}{dot}")),
            hmac: SecretReader::new(&settings.hmac_secret),
            client: settings.client_auth.secret().map(SecretReader::new),
            keys: RefCell::default(),
            settings: Arc::clone(settings),
        }
    }

    /// With its secrets; `None` while one of them is missing or empty.
    pub(super) fn ready(&self, graph: &Graph) -> Option<Ready> {
        let hmac = self.hmac.get(graph).filter(|secret| !secret.value.is_empty())?;
        let client = match &self.client {
            None => None,
            Some(reader) => Some(reader.get(graph).filter(|secret| self.is_enough(secret))?),
        };
        let mut known = self.keys.borrow_mut();
        let keys = match &*known {
            Some((secret, keys)) if Arc::ptr_eq(secret, &hmac) => Rc::clone(keys),
            _ => {
                let keys = Rc::new(Keys::new(&hmac.value));
                *known = Some((hmac, Rc::clone(&keys)));
                keys
            }
        };
        Some(Ready { settings: Arc::clone(&self.settings), stats: Arc::clone(&self.stats), keys, client })
    }

    fn is_enough(&self, secret: &GenericSecret) -> bool {
        let with_id = matches!(self.settings.client_auth, ClientAuth::Assertion(_));
        !secret.value.is_empty() || (with_id && secret.values.get("private_key").is_some_and(|key| !key.is_empty()))
    }
}

impl Ready {
    /// Opens a cookie; `None` if it was not sealed with our secret, or not sealed at all.
    pub(super) fn open(&self, sealed: &[u8], exchange: &Exchange<'_, '_, '_>) -> Option<Vec<u8>> {
        let opened = self.keys.open(sealed, exchange.runtime().flag(LEGACY, true))?;
        // What the older mode gives back may be nonsense.
        if !is_plain(&opened.text) {
            return None;
        }
        if opened.sealing == Sealing::Cbc {
            self.stats.oauth_legacy_cbc_decrypt.increment();
        }
        Some(opened.text)
    }

    /// Seals the value of a cookie. `None` if the system has no random numbers, or the library refuses.
    pub(super) fn seal(&self, text: &str, sealing: Sealing) -> Option<String> {
        self.keys.seal(text.as_bytes(), sealing, random()?)
    }
}

/// How cookies are sealed from now on.
pub(super) fn sealing(exchange: &Exchange<'_, '_, '_>) -> Sealing {
    if exchange.runtime().flag(GCM, false) { Sealing::Gcm } else { Sealing::Cbc }
}

/// Random bytes that nobody can guess; `None` if the system has none.
pub(super) fn random<const BYTES: usize>() -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(bytes)
}

/// Source: the notes of Envoy 1.39 on CVE-2026-47775.
const GCM: &str = "envoy.reloadable_features.oauth2_use_gcm_encryption";
const LEGACY: &str = "envoy.reloadable_features.oauth2_legacy_cbc_decrypt_compat";
