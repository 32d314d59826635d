//! The cookies that a signed-in user has (`OAuth2Credentials.CookieNames`, `CookieConfigs`).
//!
//! Owns their names and attributes. Never makes one.

use outrigger_api::pb::envoy::extensions::filters::http::oauth2::v3 as pb;

use crate::decide::decide;
use crate::http::header_mutations::is_token_byte;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// All cookies.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cookies {
    /// The access token.
    pub bearer_token: Cookie,
    /// What vouches for the others.
    pub hmac: Cookie,
    /// When the access token ends.
    pub expires: Cookie,
    /// The ID token.
    pub id_token: Cookie,
    /// The refresh token.
    pub refresh_token: Cookie,
    /// What a sign-in began with.
    pub nonce: Cookie,
    /// The secret of a sign-in (RFC 7636).
    pub code_verifier: Cookie,
    /// All are for this domain; for the host of the request if `None`.
    pub domain: Option<Box<str>>,
}

/// A cookie without its value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cookie {
    /// Its name; of a sign-in, what its name begins with.
    pub name: Box<str>,
    /// Source: `CookieConfig.same_site`.
    pub same_site: SameSite,
    /// Where it is for.
    pub path: Box<str>,
    /// Kept apart by the site that it is embedded in.
    pub partitioned: bool,
}

/// Source: `CookieConfig.SameSite`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SameSite {
    /// Not said.
    #[default]
    Unsaid,
    /// `Strict`.
    Strict,
    /// `Lax`.
    Lax,
    /// `None`.
    None,
}

impl Cookies {
    /// Reads names, domain and attributes, which stand in different places.
    pub(super) fn parse(
        credentials: &FieldPath<'_>,
        names: Option<pb::o_auth2_credentials::CookieNames>,
        domain: String,
        configs: &FieldPath<'_>,
        config: Option<pb::CookieConfigs>,
    ) -> Parsed<Self> {
        let names_at = credentials.field("cookie_names");
        let wire = names.unwrap_or_default();
        decide!(wire, names_at, pb::o_auth2_credentials::CookieNames
            as "envoy.extensions.filters.http.oauth2.v3.OAuth2Credentials.CookieNames" {
            implemented: bearer_token, oauth_hmac, oauth_expires, id_token, refresh_token, oauth_nonce, code_verifier;
            no_effect: ;
            unsupported: ;
        });
        let wire = config.unwrap_or_default();
        decide!(wire, configs, pb::CookieConfigs as "envoy.extensions.filters.http.oauth2.v3.CookieConfigs" {
            implemented: bearer_token_cookie_config, oauth_hmac_cookie_config, oauth_expires_cookie_config,
                id_token_cookie_config, refresh_token_cookie_config, oauth_nonce_cookie_config,
                code_verifier_cookie_config;
            no_effect: ;
            unsupported: ;
        });
        let cookie = |field: &'static str, name: String, default: &str, config_field: &'static str, config| {
            let name = cookie_name(&names_at.field(field), name, default)?;
            Cookie::parse(&configs.field(config_field), name, config)
        };
        let cookies = Self {
            bearer_token: cookie(
                "bearer_token",
                bearer_token,
                "BearerToken",
                "bearer_token_cookie_config",
                bearer_token_cookie_config,
            )?,
            hmac: cookie("oauth_hmac", oauth_hmac, "OauthHMAC", "oauth_hmac_cookie_config", oauth_hmac_cookie_config)?,
            expires: cookie(
                "oauth_expires",
                oauth_expires,
                "OauthExpires",
                "oauth_expires_cookie_config",
                oauth_expires_cookie_config,
            )?,
            id_token: cookie("id_token", id_token, "IdToken", "id_token_cookie_config", id_token_cookie_config)?,
            refresh_token: cookie(
                "refresh_token",
                refresh_token,
                "RefreshToken",
                "refresh_token_cookie_config",
                refresh_token_cookie_config,
            )?,
            nonce: cookie(
                "oauth_nonce",
                oauth_nonce,
                "OauthNonce",
                "oauth_nonce_cookie_config",
                oauth_nonce_cookie_config,
            )?,
            code_verifier: cookie(
                "code_verifier",
                code_verifier,
                "CodeVerifier",
                "code_verifier_cookie_config",
                code_verifier_cookie_config,
            )?,
            domain: attribute(&credentials.field("cookie_domain"), domain)?,
        };
        cookies.check_names(&names_at)?;
        Ok(cookies)
    }

    /// Two cookies of one name would overwrite each other, and what vouches for tokens could not be told from them.
    fn check_names(&self, at: &FieldPath<'_>) -> Parsed<()> {
        let Self { bearer_token, hmac, expires, id_token, refresh_token, nonce, code_verifier, domain: _ } = self;
        let all = [bearer_token, hmac, expires, id_token, refresh_token, nonce, code_verifier];
        for (index, cookie) in all.iter().enumerate() {
            if all[..index].iter().any(|other| other.name == cookie.name) {
                return Err(at.reject(format!("{:?} is the name of two cookies", cookie.name)));
            }
        }
        Ok(())
    }
}

impl Cookie {
    fn parse(at: &FieldPath<'_>, name: Box<str>, wire: Option<pb::CookieConfig>) -> Parsed<Self> {
        let wire = wire.unwrap_or_default();
        decide!(wire, at, pb::CookieConfig as "envoy.extensions.filters.http.oauth2.v3.CookieConfig" {
            implemented: same_site, path, partitioned;
            no_effect: ;
            unsupported: ;
        });
        use pb::cookie_config::SameSite as Wire;
        let path_at = at.field("path");
        if !path.is_empty() && !path.starts_with('/') {
            return Err(path_at.reject(format!("{path:?} does not begin with \"/\"")));
        }
        Ok(Self {
            name,
            same_site: match Wire::try_from(same_site) {
                Ok(Wire::Disabled) => SameSite::Unsaid,
                Ok(Wire::Strict) => SameSite::Strict,
                Ok(Wire::Lax) => SameSite::Lax,
                Ok(Wire::None) => SameSite::None,
                Err(_) => return Err(wire::unknown_enum(&at.field("same_site"), same_site)),
            },
            path: attribute(&path_at, path)?.unwrap_or_else(|| "/".into()),
            partitioned,
        })
    }
}

fn cookie_name(at: &FieldPath<'_>, name: String, default: &str) -> Parsed<Box<str>> {
    match name.as_str() {
        "" => Ok(default.into()),
        name if name.bytes().all(is_token_byte) => Ok(name.into()),
        name => Err(at.reject(format!("{name:?} is not the name of a cookie"))),
    }
}

/// What cannot end an attribute of a cookie; `None` if it is empty.
fn attribute(at: &FieldPath<'_>, value: String) -> Parsed<Option<Box<str>>> {
    let ends = |character: char| character.is_ascii_control() || " \",;<>\\".contains(character);
    if value.contains(ends) {
        return Err(at.reject(format!("{value:?} has a character that cannot stand in a cookie")));
    }
    Ok(Some(value).filter(|value| !value.is_empty()).map(String::into_boxed_str))
}
