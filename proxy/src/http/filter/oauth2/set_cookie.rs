//! The cookies that users get and lose (`set-cookie`, RFC 6265 section 4.1).
//!
//! Owns their text. Never decides who gets one.

use outrigger_config::http::filters::{Cookie, SameSite};
use outrigger_policy::oauth2::{RequestCookies, Sealing, TokenAnswer, Tokens, expiry_of};

use super::active::Ready;

/// What a user has been given, and for how long.
pub(super) struct Granted {
    pub tokens: Tokens,
    /// When the access token ends, in seconds since 1970.
    pub expires: String,
    /// Seconds that cookies hold.
    pub access_age: u64,
    id_age: u64,
    refresh_age: u64,
}

/// All cookies of a user who has just signed in, or whose tokens are new.
pub(super) struct ResponseCookies<'a> {
    pub ready: &'a Ready,
    pub granted: &'a Granted,
    /// What the user has.
    pub request: &'a RequestCookies,
    /// Whom the signature is for.
    pub domain: &'a str,
    /// How tokens are sealed.
    pub sealing: Sealing,
}

impl Ready {
    /// What of an answer is kept.
    pub(super) fn granted(&self, answer: TokenAnswer, expires_in: u64, now: u64) -> Granted {
        let settings = &self.settings;
        let TokenAnswer { access, id, refresh, expires_in: _ } = answer;
        let id_age = match expiry_of(&id, now).filter(|_| !settings.id_token_expires_with_access_token) {
            Some(seconds) if !id.is_empty() => seconds,
            _ => expires_in,
        };
        let refresh_age = match settings.use_refresh_token {
            true => expiry_of(&refresh, now).unwrap_or(settings.default_refresh_token_expires_in),
            false => expires_in,
        };
        let kept = |keeps: bool, token: String| if keeps { token } else { String::new() };
        Granted {
            tokens: Tokens {
                access: kept(settings.keeps_access_token, access),
                id: kept(settings.keeps_id_token, id),
                refresh: kept(settings.keeps_refresh_token && settings.use_refresh_token, refresh),
            },
            expires: now.saturating_add(expires_in).to_string(),
            access_age: expires_in,
            id_age,
            refresh_age,
        }
    }

    /// A cookie of this kind with a name of its own.
    pub(super) fn cookie(&self, name: &str, value: &str, kind: &Cookie, age: u64) -> Vec<u8> {
        let Cookie { name: _, same_site, path, partitioned } = kind;
        let domain = self.domain_attribute();
        let same_site = match same_site {
            SameSite::Unsaid => "",
            SameSite::Strict => ";SameSite=Strict",
            SameSite::Lax => ";SameSite=Lax",
            SameSite::None => ";SameSite=None",
        };
        let partitioned = if *partitioned { ";Partitioned" } else { "" };
        format!("{name}={value}{domain};path={path};Max-Age={age};secure;HttpOnly{same_site}{partitioned}").into_bytes()
    }

    /// Takes a cookie of this kind away.
    pub(super) fn no_cookie(&self, name: &str, kind: &Cookie) -> Vec<u8> {
        // Browsers take such names only from cookies that are secure.
        let secure = if name.starts_with("__Secure-") || name.starts_with("__Host-") { "; Secure" } else { "" };
        let (path, domain) = (&kind.path, self.domain_attribute());
        format!("{name}=deleted; path={path}; expires=Thu, 01 Jan 1970 00:00:00 GMT{domain}{secure}").into_bytes()
    }

    fn domain_attribute(&self) -> String {
        self.settings.cookies.domain.as_ref().map_or_else(String::new, |domain| format!(";domain={domain}"))
    }

    /// Takes the cookies of a sign-in away; its name may be empty.
    pub(super) fn forget_flow(&self, flow: &str) -> Vec<Vec<u8>> {
        let names = &self.settings.cookies;
        let mut cookies = Vec::new();
        for kind in [&names.nonce, &names.code_verifier] {
            if !flow.is_empty() {
                cookies.push(self.no_cookie(&format!("{}.{flow}", kind.name), kind));
            }
            cookies.push(self.no_cookie(&kind.name, kind));
        }
        cookies
    }
}

impl ResponseCookies<'_> {
    /// In Envoy's order. A token that cannot be sealed is not given.
    pub(super) fn all(&self) -> Vec<Vec<u8>> {
        let Self { ready, granted, request, domain, sealing } = self;
        let Granted { tokens, expires, access_age, id_age, refresh_age } = granted;
        let names = &ready.settings.cookies;
        let signature = ready.keys.vouch(domain, expires, tokens);
        let mut cookies = vec![
            ready.cookie(&names.hmac.name, &signature, &names.hmac, *access_age),
            ready.cookie(&names.expires.name, expires, &names.expires, *access_age),
        ];
        for (kind, token, age) in [
            (&names.bearer_token, &tokens.access, access_age),
            (&names.id_token, &tokens.id, id_age),
            (&names.refresh_token, &tokens.refresh, refresh_age),
        ] {
            if token.is_empty() {
                if request.contains(&kind.name) {
                    cookies.push(ready.no_cookie(&kind.name, kind));
                }
                continue;
            }
            let value = match ready.settings.seals_tokens {
                true => ready.seal(token, *sealing),
                false => Some(token.clone()),
            };
            cookies.extend(value.map(|value| ready.cookie(&kind.name, &value, kind, *age)));
        }
        cookies
    }
}
