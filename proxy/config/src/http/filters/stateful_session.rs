//! Sessions that stay at one endpoint (`envoy.extensions.filters.http.stateful_session.v3`).
//!
//! Owns where a session's endpoint is kept and how strictly it is kept to. Never chooses an endpoint.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::http::stateful_session::v3 as pb;
use outrigger_api::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use outrigger_api::pb::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use outrigger_api::pb::envoy::r#type::http::v3 as http;

use crate::context::Context;
use crate::decide::decide;
use crate::http::header_mutations::{header_name, is_token_byte};
use crate::rejection::{FieldPath, Parsed};
use crate::route::HashCookie;
use crate::wire;

/// Source: `envoy.extensions.filters.http.stateful_session.v3.StatefulSession`.
#[derive(Clone, Debug)]
pub struct StatefulSession {
    /// Where the endpoint of a session is kept; `None` keeps none.
    pub state: Option<SessionState>,
    /// Requests go nowhere else.
    pub strict: bool,
    /// The `<prefix>` in `http.<prefix>.stateful_session.<prefix>.*` stats; there are none if it is empty.
    pub stat_prefix: Box<str>,
    /// Status of strict requests whose endpoint is not there.
    pub not_found_status: u16,
}

/// Where the endpoint of a session is kept.
#[derive(Clone, Debug)]
pub enum SessionState {
    /// In a cookie that clients are given. The lifetime is always there; zero ends with the client's session.
    Cookie(HashCookie),
    /// In a header, which clients send back by themselves; lower case.
    Header(Arc<str>),
}

impl StatefulSession {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::StatefulSession) -> Parsed<Self> {
        decide!(wire, at, pb::StatefulSession as "envoy.extensions.filters.http.stateful_session.v3.StatefulSession" {
            implemented: session_state, strict, stat_prefix, status_on_strict_destination_not_found;
            no_effect: ;
            unsupported: ;
        });
        let status = status_on_strict_destination_not_found;
        let not_found_status = match u16::try_from(status) {
            Ok(0) => 503,
            Ok(status @ 200..=599) => status,
            _ => {
                let at = at.field("status_on_strict_destination_not_found");
                return Err(at.reject(format!("{status} is not within 200 to 599")));
            }
        };
        Ok(Self {
            state: session_state.map(|wire| state(context, &at.field("session_state"), wire)).transpose()?,
            strict,
            stat_prefix: stat_prefix.into(),
            not_found_status,
        })
    }

    /// Reads what a route says; `None` switches the filter off.
    pub(super) fn parse_route(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: pb::StatefulSessionPerRoute,
    ) -> Parsed<Option<Self>> {
        use pb::stateful_session_per_route::Override;
        let pb::StatefulSessionPerRoute { r#override } = wire;
        match r#override {
            Some(Override::Disabled(true)) => Ok(None),
            Some(Override::Disabled(false)) => Err(at.field("disabled").reject("must be true if it is set")),
            Some(Override::StatefulSession(wire)) => {
                Self::parse(context, &at.field("stateful_session"), wire).map(Some)
            }
            None => Err(at.reject("needs one of disabled, stateful_session")),
        }
    }
}

fn state(context: &Context<'_>, at: &FieldPath<'_>, wire: core::TypedExtensionConfig) -> Parsed<SessionState> {
    let core::TypedExtensionConfig { name: _, typed_config } = wire;
    let at = at.field("typed_config");
    let Some(any) = typed_config else { return Err(at.reject("is required")) };
    let any = wire::extension(context, &at, any)?;
    match wire::type_name(&any) {
        "envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState" => {
            let CookieBasedSessionState { cookie } = wire::decode(&at, &any)?;
            let cookie_at = at.field("cookie");
            let Some(wire) = cookie else { return Err(cookie_at.reject("is required")) };
            self::cookie(&cookie_at, wire).map(SessionState::Cookie)
        }
        "envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState" => {
            let HeaderBasedSessionState { name } = wire::decode(&at, &any)?;
            header_name(&at.field("name"), &name).map(SessionState::Header)
        }
        _ => Err(at.reject(format!("the session state {:?} is not supported", any.type_url))),
    }
}

fn cookie(at: &FieldPath<'_>, wire: http::Cookie) -> Parsed<HashCookie> {
    decide!(wire, at, http::Cookie as "envoy.type.http.v3.Cookie" {
        implemented: name, ttl, path, attributes;
        no_effect: ;
        unsupported: ;
    });
    let name_at = at.field("name");
    if name.is_empty() || !name.bytes().all(is_token_byte) {
        return Err(name_at.reject(format!("{name:?} is not a valid name of a cookie")));
    }
    wire::header_value(&at.field("path"), &path)?;
    let attribute = |at: &FieldPath<'_>, http::CookieAttribute { name, value }| {
        if name.is_empty() || !name.bytes().all(is_token_byte) {
            return Err(at.field("name").reject(format!("{name:?} is not a valid name of an attribute")));
        }
        wire::header_value(&at.field("value"), &value)?;
        Ok((name, value))
    };
    Ok(HashCookie {
        name: name.into(),
        ttl: Some(ttl.map_or(Ok(Default::default()), |ttl| wire::duration(&at.field("ttl"), ttl))?),
        path: Some(path).filter(|path| !path.is_empty()),
        attributes: wire::each(&at.field("attributes"), attributes, attribute)?,
    })
}

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::protobuf::Any;
    use prost::Message as _;

    use super::*;
    use crate::context::NoEnvironment;

    fn read(state: Option<(&str, Vec<u8>)>, status: u32) -> Result<StatefulSession, String> {
        let any = |(name, value): (&str, Vec<u8>)| Any { type_url: format!("type.googleapis.com/{name}"), value };
        let session_state =
            state.map(|state| core::TypedExtensionConfig { name: "s".into(), typed_config: Some(any(state)) });
        let wire =
            pb::StatefulSession { session_state, status_on_strict_destination_not_found: status, ..Default::default() };
        let context = Context::new(&NoEnvironment);
        StatefulSession::parse(&context, &FieldPath::resource("listener", "l"), wire).map_err(|error| error.to_string())
    }

    #[test]
    fn states_are_read() {
        const COOKIE: &str = "envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState";
        let cookie = |name: &str| {
            let cookie = http::Cookie { name: name.into(), ..Default::default() };
            CookieBasedSessionState { cookie: Some(cookie) }.encode_to_vec()
        };
        let read_cookie = read(Some((COOKIE, cookie("sid"))), 0).unwrap();
        assert!(matches!(&read_cookie.state, Some(SessionState::Cookie(cookie)) if cookie.ttl.is_some()));
        assert_eq!(read_cookie.not_found_status, 503);
        assert!(read(None, 404).is_ok_and(|session| session.state.is_none() && session.not_found_status == 404));
        for (state, status, expected) in [
            (
                Some((COOKIE, cookie("a b"))),
                0,
                "session_state.typed_config.cookie.name: \"a b\" is not a valid name of a cookie",
            ),
            (Some((COOKIE, Vec::new())), 0, "session_state.typed_config.cookie: is required"),
            (None, 99, "status_on_strict_destination_not_found: 99 is not within 200 to 599"),
            (
                Some(("envoy.extensions.http.stateful_session.envelope.v3.EnvelopeSessionState", Vec::new())),
                0,
                "session_state.typed_config: the session state \
                 \"type.googleapis.com/envoy.extensions.http.stateful_session.envelope.v3.EnvelopeSessionState\" is not supported",
            ),
        ] {
            assert_eq!(read(state, status).unwrap_err(), format!("listener \"l\": {expected}"));
        }
    }
}
