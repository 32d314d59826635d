//! Authentication by user names and passwords (`envoy.extensions.filters.http.basic_auth.v3`).
//!
//! Owns the users with the hashes of their passwords. Never looks at a request.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::http::basic_auth::v3 as pb;

use crate::context::Context;
use crate::decide::decide;
use crate::http::header_mutations::header_name;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Source: `BasicAuth`.
#[derive(Clone, Debug)]
pub struct BasicAuth {
    /// Who may come in.
    pub users: Arc<Users>,
    /// Gets the name of the user.
    pub forward_username_header: Option<Arc<str>>,
    /// Holds the credentials; `authorization` unless given.
    pub authentication_header: Arc<str>,
    /// Requests without such credentials pass, too.
    pub allow_missing: bool,
    /// The name of the user goes into dynamic metadata.
    pub emit_metadata: bool,
}

/// Users, with base64 of the SHA-1 of their passwords.
#[derive(Clone, Default)]
pub struct Users(BTreeMap<String, String>);

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} users", self.0.len())
    }
}

impl Users {
    /// The hash of a user's password.
    pub fn hash(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Reads the format of htpasswd, as far as hashes are SHA-1.
    fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: Option<core::DataSource>) -> Parsed<Arc<Self>> {
        let Some(wire) = wire else { return Err(at.reject("is required")) };
        let data = wire::data_source(context, at, wire)?;
        let Ok(text) = String::from_utf8(data.bytes) else { return Err(at.reject("is not UTF-8")) };
        if text.is_empty() {
            return Err(at.reject("must not be empty"));
        }
        let mut users = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // A password must not reach the message.
            let reject = |reason: &str| Err(at.reject(format!("line {}: {reason}", index + 1)));
            let Some((name, hash)) = line.split_once(':') else { return reject("expected username:password") };
            if name.is_empty() || hash.is_empty() {
                return reject("has an empty user name or password");
            }
            let Some(hash) = hash.strip_prefix("{SHA}") else { return reject("only {SHA} is supported") };
            if hash.len() != HASH_LENGTH {
                return reject("the length of the SHA hash is wrong");
            }
            if users.insert(name.to_owned(), hash.to_owned()).is_some() {
                return reject("the user stands there twice");
            }
        }
        Ok(Arc::new(Self(users)))
    }
}

impl BasicAuth {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::BasicAuth) -> Parsed<Self> {
        decide!(wire, at, pb::BasicAuth as "envoy.extensions.filters.http.basic_auth.v3.BasicAuth" {
            implemented: users, forward_username_header, authentication_header, allow_missing, emit_dynamic_metadata;
            no_effect: ;
            unsupported: ;
        });
        let header = |field: &'static str, name: &str| match name {
            "" => Ok(None),
            name => plain_header(&at.field(field), name).map(Some),
        };
        Ok(Self {
            users: Users::parse(context, &at.field("users"), users)?,
            forward_username_header: header("forward_username_header", &forward_username_header)?,
            authentication_header: header("authentication_header", &authentication_header)?
                .unwrap_or_else(|| "authorization".into()),
            allow_missing,
            emit_metadata: emit_dynamic_metadata,
        })
    }

    pub(super) fn parse_route(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: pb::BasicAuthPerRoute,
    ) -> Parsed<Arc<Users>> {
        decide!(wire, at, pb::BasicAuthPerRoute as "envoy.extensions.filters.http.basic_auth.v3.BasicAuthPerRoute" {
            implemented: users;
            no_effect: ;
            unsupported: ;
        });
        Users::parse(context, &at.field("users"), users)
    }
}

/// Credentials have no business in what requests are routed by.
pub(super) fn plain_header(at: &FieldPath<'_>, name: &str) -> Parsed<Arc<str>> {
    let name = header_name(at, name)?;
    if name.starts_with(':') || *name == *"host" {
        return Err(at.reject(format!("{name:?} must not be a pseudo header")));
    }
    Ok(name)
}

/// Base64 of 20 bytes.
const HASH_LENGTH: usize = 28;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::NoEnvironment;

    fn users(text: &str) -> Result<Arc<Users>, String> {
        let specifier = Some(core::data_source::Specifier::InlineString(text.into()));
        let wire = core::DataSource { specifier, ..Default::default() };
        let root = FieldPath::resource("listener", "l");
        Users::parse(&Context::new(&NoEnvironment), &root, Some(wire)).map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn users_are_read_line_by_line() {
        let hash = "qUqP5cyxm6YcTAhz05Hph5gvu9M=";
        let read = users(&format!("# all\na:{{SHA}}{hash}\n\nb:{{SHA}}{hash}")).unwrap();
        assert_eq!((read.hash("a"), read.hash("c")), (Some(hash), None));
        for (text, reason) in [
            ("", "must not be empty"),
            ("a", "line 1: expected username:password"),
            (":x", "line 1: has an empty user name or password"),
            ("a:", "line 1: has an empty user name or password"),
            ("a:secret", "line 1: only {SHA} is supported"),
            ("\na:{SHA}abc", "line 2: the length of the SHA hash is wrong"),
        ] {
            assert_eq!(users(text).unwrap_err(), format!("listener \"l\": {reason}"));
        }
        let twice = users(&format!("a:{{SHA}}{hash}\na:{{SHA}}{hash}")).unwrap_err();
        assert_eq!(twice, "listener \"l\": line 2: the user stands there twice");
    }
}
