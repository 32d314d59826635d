//! Authentication by user names and passwords (`envoy.extensions.filters.http.basic_auth.v3`).
//!
//! Owns the check of the credentials of a request, and the refusal. Users stand in the settings.

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{BasicAuth as Settings, Users};
use serde_json::Value;

use super::challenge::realm;
use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::http::manager::reply::LocalReply;
use crate::scope;

scope! {
    /// Stats of the filter (`http.<prefix>.basic_auth.*`).
    pub struct BasicAuthStats {
        allowed: Counter,
        denied: Counter,
    }
}

/// The filter.
pub struct BasicAuth {
    settings: Arc<Settings>,
    stats: Arc<BasicAuthStats>,
}

/// Why a request is refused: what the client is told, and what the log is.
type Refusal = (&'static str, &'static str);

/// What a request shows.
enum Shown {
    User(String),
    /// No credentials of this kind.
    Nothing(Refusal),
}

impl BasicAuth {
    /// A filter with its stats.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        Self { settings: Arc::clone(settings), stats: maker.stats("basic_auth") }
    }

    fn check(&self, users: &Users, header: Option<&[u8]>) -> Result<Shown, Refusal> {
        let missing = "User authentication failed. Missing username and password.";
        let Some(value) = header else { return Ok(Shown::Nothing((missing, "no_credential_for_basic_auth"))) };
        let other = "User authentication failed. Expected 'Basic' authentication scheme.";
        let Some(encoded) = value.strip_prefix(b"Basic ") else {
            return Ok(Shown::Nothing((other, "invalid_scheme_for_basic_auth")));
        };
        let malformed =
            ("User authentication failed. Invalid basic credential format.", "invalid_format_for_basic_auth");
        let decoded = BASE64.decode(encoded).map_err(|_| malformed)?;
        let colon = decoded.iter().position(|byte| *byte == b':').ok_or(malformed)?;
        let (name, password) = (&decoded[..colon], &decoded[colon + 1..]);
        let wrong =
            ("User authentication failed. Invalid username/password combination.", "invalid_credential_for_basic_auth");
        let name = std::str::from_utf8(name).map_err(|_| wrong)?;
        let expected = users.hash(name).ok_or(wrong)?;
        let hash = STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, password));
        verify_slices_are_equal(hash.as_bytes(), expected.as_bytes()).map_err(|_| wrong)?;
        Ok(Shown::User(name.to_owned()))
    }

    fn refuse(&self, (text, details): Refusal, exchange: &Exchange<'_, '_, '_>) -> Verdict {
        self.stats.denied.increment();
        let mut reply = LocalReply::new(401, details).body(text.as_bytes());
        reply.header("www-authenticate", [b"Basic realm=\"", &*realm(exchange.head()), b"\""].concat());
        Verdict::reply(reply)
    }
}

impl HttpFilter for BasicAuth {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let of_route = exchange.route_configs().find_map(|config| match config {
            RouteFilterConfig::BasicAuth(users) => Some(users),
            _ => None,
        });
        let settings = &self.settings;
        let users = of_route.unwrap_or(&settings.users);
        let header = exchange.head().headers.get_by_name(&settings.authentication_header);
        let shown = match self.check(users, header) {
            Ok(shown) => shown,
            Err(refusal) => return self.refuse(refusal, exchange),
        };
        match shown {
            Shown::User(name) => {
                if let Some(header) = &settings.forward_username_header {
                    exchange.head_mut().headers.set_by_name(header, name.as_bytes());
                }
                if settings.emit_metadata {
                    let values = [("username".to_owned(), Value::String(name))].into_iter().collect();
                    exchange.set_metadata(exchange.name(), &values);
                }
                self.stats.allowed.increment();
                Verdict::Continue
            }
            Shown::Nothing(_) if settings.allow_missing => {
                // Nobody has vouched for the name that the client gives.
                if let Some(header) = &settings.forward_username_header {
                    exchange.head_mut().headers.remove_by_name(header);
                }
                Verdict::Continue
            }
            Shown::Nothing(refusal) => self.refuse(refusal, exchange),
        }
    }
}

/// Padding may be left out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
