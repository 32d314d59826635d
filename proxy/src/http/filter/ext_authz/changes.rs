//! Changes that an authorization service wants in a request.
//!
//! Owns what it may change, and what stands in no message. Pure.

use outrigger_config::http::AppendAction;
use outrigger_config::http::filters::{ExtAuthz as Settings, HeaderChange, Ruling};

use super::answer::{Consent, Header, HeaderAction};
use crate::http::filter::header_mutation::{with, without};
use crate::http::message::RequestHead;
use crate::http::token::{is_framing, is_token};

/// The answer of the service asks for what must not be.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Invalid;

/// Makes the changes of a consent.
pub(super) fn apply(consent: &Consent, settings: &Settings, head: &mut RequestHead) -> Result<(), Invalid> {
    for (action, header) in &consent.request {
        if !is_valid(header) {
            return Err(Invalid);
        }
        if may(settings, &header.0, HeaderChange::Set)? {
            change(head, *action, header)?;
        }
    }
    for name in &consent.remove {
        let kept = name.starts_with(':') || name == "host" || !is_token(name.as_bytes());
        if !kept && may(settings, name, HeaderChange::Remove)? {
            head.headers.remove_by_name(name);
        }
    }
    if consent.query_set.is_empty() && consent.query_remove.is_empty() {
        return Ok(());
    }
    let mut path = head.path_str().to_owned();
    for (key, value) in &consent.query_set {
        if settings.validate_mutations && !(is_parameter(key) && is_parameter(value)) {
            return Err(Invalid);
        }
        path = with(&path, key, value.as_bytes(), AppendAction::OverwriteIfExistsOrAdd);
    }
    for key in &consent.query_remove {
        path = without(&path, key);
    }
    head.set_path(path.as_bytes());
    Ok(())
}

fn may(settings: &Settings, name: &str, change: HeaderChange) -> Result<bool, Invalid> {
    match settings.rules.as_ref().map_or(Ruling::Allowed, |rules| rules.ruling(name, change)) {
        Ruling::Allowed => Ok(true),
        Ruling::Ignored => Ok(false),
        Ruling::Error => Err(Invalid),
    }
}

fn change(head: &mut RequestHead, action: HeaderAction, (name, value): &Header) -> Result<(), Invalid> {
    let before = head.lookup(name).map(|value| value.into_owned());
    let joined;
    let value = match (action, &before) {
        (HeaderAction::Join, None) => return Ok(()),
        (HeaderAction::Join, Some(before)) => {
            joined = [before, &b","[..], value].concat();
            &joined
        }
        (HeaderAction::Set | HeaderAction::Add, _) => value,
    };
    match name.as_str() {
        ":path" if is_target(value) => head.set_path(value),
        ":method" if is_token(value) => head.set_method(value),
        ":authority" | "host" if is_target(value) => head.set_authority(value),
        ":scheme" if matches!(value.as_slice(), b"http" | b"https") => head.set_scheme(value),
        name if name.starts_with(':') || name == "host" => return Err(Invalid),
        // How a message is framed, and what belongs to one connection, nobody else may say.
        name if is_of_one_hop(name) => {}
        name if action == HeaderAction::Add => head.headers.append(name.as_bytes(), value),
        name => head.headers.set_by_name(name, value),
    }
    Ok(())
}

/// Whether a header can stand in a message.
pub(super) fn is_valid((name, value): &Header) -> bool {
    let name = name.strip_prefix(':').unwrap_or(name);
    is_token(name.as_bytes()) && value.iter().all(|byte| *byte == b'\t' || !byte.is_ascii_control())
}

/// Headers that say how one message is framed on one connection (RFC 9110 section 7.6.1).
pub(super) fn is_of_one_hop(name: &str) -> bool {
    name == "expect" || is_framing(name)
}

fn is_target(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_graphic)
}

/// Escaped as URLs want it.
fn is_parameter(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$'()*+,;:@/?".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> RequestHead {
        let mut head = RequestHead::default();
        head.set_method(b"GET");
        head.set_path(b"/p?a=1&b=2");
        head.set_authority(b"a.example");
        head.headers.append(b"x-a", b"1");
        head
    }

    fn settings() -> Settings {
        use outrigger_config::http::filters::{AuthzService, HeaderChoice};
        Settings {
            service: std::sync::Arc::new(AuthzService::Grpc(outrigger_config::source::GrpcCall {
                cluster: "c".into(),
                authority: "c".into(),
                timeout: None,
                metadata: Vec::new(),
                max_answer_bytes: None,
                retries: None,
                google: None,
            })),
            failure_mode_allow: false,
            failure_mode_allow_header: false,
            body: None,
            clear_route_cache: false,
            status_on_error: 403,
            validate_mutations: false,
            metadata_namespaces: Vec::new(),
            route_metadata_namespaces: Vec::new(),
            enabled: None,
            enabled_metadata: None,
            deny_at_disable: None,
            tells_certificate: false,
            tells_tls_session: false,
            stat_prefix: "".into(),
            headers: HeaderChoice::default(),
            raw_headers: false,
            rules: None,
            takes_metadata: true,
            counts_for_cluster: true,
            shadow: false,
            max_denied_body_bytes: None,
            emits_span: true,
            labels_key: String::new(),
            fields: None,
            measures: false,
            limits_response: false,
        }
    }

    fn after(action: HeaderAction, name: &str, value: &str) -> Result<RequestHead, Invalid> {
        let mut head = head();
        let request = vec![(action, (name.to_owned(), value.as_bytes().to_vec()))];
        apply(&Consent { request, ..Consent::default() }, &settings(), &mut head)?;
        Ok(head)
    }

    #[test]
    fn each_action_does_what_it_says() {
        for (action, name, expected) in [
            (HeaderAction::Set, "x-a", Some("2")),
            (HeaderAction::Set, "x-b", Some("2")),
            (HeaderAction::Join, "x-a", Some("1,2")),
            (HeaderAction::Join, "x-b", None),
            (HeaderAction::Add, "x-b", Some("2")),
        ] {
            let head = after(action, name, "2").unwrap();
            let value = head.headers.get_by_name(name).map(|value| std::str::from_utf8(value).unwrap());
            assert_eq!(value, expected, "{action:?} {name}");
        }
    }

    #[test]
    fn pseudo_headers_are_the_heads_own() {
        let set = |name: &str, value: &str| after(HeaderAction::Set, name, value);
        assert_eq!(set(":path", "/q").unwrap().path_str(), "/q");
        assert_eq!(set("host", "b.example").unwrap().authority_str(), "b.example");
        assert_eq!(set(":method", "PUT").unwrap().method_str(), "PUT");
        for (name, value) in [(":path", "/a b"), (":method", ""), (":scheme", "ftp"), (":status", "200"), ("a b", "c")]
        {
            assert_eq!(set(name, value).err(), Some(Invalid), "{name}");
        }
        assert_eq!(set("x-b", "1\r\nx-c: 2").err(), Some(Invalid));
        // The framing is not the service's to say.
        for name in ["content-length", "transfer-encoding", "connection"] {
            assert!(set(name, "1").unwrap().headers.get_by_name(name).is_none(), "{name}");
        }
    }

    #[test]
    fn what_a_request_needs_is_not_removed() {
        let mut head = head();
        let remove = ["x-a", "host", ":path", "\n"].map(str::to_owned).into();
        let query_set = vec![("b".to_owned(), "3 4".to_owned()), ("c".to_owned(), "5".to_owned())];
        let consent = Consent { remove, query_set, query_remove: vec!["a".into()], ..Consent::default() };
        apply(&consent, &settings(), &mut head).unwrap();
        assert_eq!((head.path_str(), head.authority_str()), ("/p?b=3%204&c=5", "a.example"));
        assert!(head.headers.is_empty());
        let strict = Settings { validate_mutations: true, ..settings() };
        assert_eq!(apply(&consent, &strict, &mut head), Err(Invalid));
    }
}
