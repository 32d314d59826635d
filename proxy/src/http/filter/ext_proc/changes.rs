//! Changes that a processing service wants in heads and trailers.
//!
//! Owns what it may change, and what stands in no message. Pure.

use outrigger_api::pb::envoy::config::core::v3::HeaderValue;
use outrigger_api::pb::envoy::service::ext_proc::v3::HeaderMutation;
use outrigger_config::http::filters::{HeaderChange, HeaderRules, Ruling};

use crate::http::headers::Headers;
use crate::http::message::{RequestHead, ResponseHead};
use crate::http::token::{is_framing, is_token};

/// What is changed.
pub(super) enum Target<'a> {
    /// The head of a request.
    Request(&'a mut RequestHead),
    /// The head of a response.
    Response(&'a mut ResponseHead),
    /// Trailers.
    Trailers(&'a mut Headers),
}

/// The service asks for what must not be: why, as in `%RESPONSE_CODE_DETAILS%`.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Invalid(pub &'static str);

/// What the service says with a change.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Permissions {
    /// A message is replaced as a whole, its method included.
    pub replacing: bool,
}

/// Makes the changes; how many were left out, as the rules want it.
pub(super) fn apply(
    mutation: &HeaderMutation,
    mut target: Target<'_>,
    rules: &HeaderRules,
    permissions: Permissions,
) -> Result<u64, (u64, Invalid)> {
    let mut rejected = 0;
    for name in &mutation.remove_headers {
        let name = name.to_ascii_lowercase();
        if !is_name(&name) {
            return Err((rejected + 1, Invalid("header_mutation_remove_contains_invalid_character")));
        }
        match rules.ruling(&name, HeaderChange::Remove) {
            Ruling::Allowed if is_framing(&name) => {}
            Ruling::Allowed => drop(target.headers().remove_by_name(&name)),
            Ruling::Ignored => rejected += 1,
            Ruling::Error => return Err((rejected + 1, Invalid("header_mutation_remove_headers_failed"))),
        }
    }
    for option in &mutation.set_headers {
        let Some(header) = &option.header else { continue };
        let (name, value) = match read(header) {
            Ok(read) => read,
            Err(invalid) => return Err((rejected + 1, invalid)),
        };
        // As in Envoy, the newer field that says more has no effect here.
        #[allow(deprecated)]
        let append = option.append.as_ref().is_some_and(|append| append.value);
        // Only a service that replaces the whole message has a say in its method.
        let method = permissions.replacing && name == ":method";
        let ruling = match rules.ruling(&name, HeaderChange::Set) {
            _ if method => Ruling::Allowed,
            ruling => ruling,
        };
        match ruling {
            Ruling::Allowed if is_framing(&name) => {}
            Ruling::Allowed => {
                if !target.set(&name, value, append) {
                    rejected += 1;
                }
            }
            Ruling::Ignored => rejected += 1,
            Ruling::Error => return Err((rejected + 1, Invalid("header_mutation_set_headers_failed"))),
        }
    }
    Ok(rejected)
}

fn read(header: &HeaderValue) -> Result<(String, &[u8]), Invalid> {
    let HeaderValue { key, value, raw_value } = header;
    if !value.is_empty() && !raw_value.is_empty() {
        return Err(Invalid("header_mutation_set_contains_invalid_character"));
    }
    let value = if raw_value.is_empty() { value.as_bytes() } else { raw_value };
    let name = key.to_ascii_lowercase();
    if !is_name(&name) || value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
        return Err(Invalid("header_mutation_set_contains_invalid_character"));
    }
    Ok((name, value))
}

impl Target<'_> {
    fn headers(&mut self) -> &mut Headers {
        match self {
            Target::Request(head) => &mut head.headers,
            Target::Response(head) => &mut head.headers,
            Target::Trailers(headers) => headers,
        }
    }

    /// False if the header cannot have this value, or is none of this message.
    fn set(&mut self, name: &str, value: &[u8], append: bool) -> bool {
        let target = |value: &[u8]| !value.is_empty() && value.iter().all(u8::is_ascii_graphic);
        match (self, name) {
            (Target::Request(head), ":path") if target(value) => head.set_path(value),
            (Target::Request(head), ":authority" | "host") if target(value) => head.set_authority(value),
            (Target::Request(head), ":method") if is_token(value) => head.set_method(value),
            (Target::Request(head), ":scheme") if matches!(value, b"http" | b"https") => head.set_scheme(value),
            (Target::Response(head), ":status") => {
                let status = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                let Some(status) = status.filter(|status| (200..600).contains(status)) else { return false };
                head.status = status;
            }
            (_, name) if name.starts_with(':') => return false,
            (Target::Request(_), "host") => return false,
            (target, name) if append => target.headers().append(name.as_bytes(), value),
            (target, name) => target.headers().set_by_name(name, value),
        }
        true
    }
}

/// A name in lower case; those of pseudo headers begin with a colon.
fn is_name(name: &str) -> bool {
    let name = name.strip_prefix(':').unwrap_or(name);
    is_token(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use outrigger_api::pb::envoy::config::core::v3::HeaderValueOption;
    use outrigger_api::pb::google::protobuf::BoolValue;

    use super::*;

    #[allow(deprecated)]
    fn option(name: &str, value: &str, append: bool) -> HeaderValueOption {
        let header = HeaderValue { key: name.into(), raw_value: value.into(), ..HeaderValue::default() };
        HeaderValueOption { header: Some(header), append: Some(BoolValue { value: append }), ..Default::default() }
    }

    fn head() -> RequestHead {
        let mut head = RequestHead::default();
        head.set_method(b"GET");
        head.set_path(b"/p");
        head.set_authority(b"a.example");
        head.headers.append(b"x-a", b"1");
        head
    }

    fn changed(options: Vec<HeaderValueOption>, remove: &[&str]) -> (RequestHead, Result<u64, (u64, Invalid)>) {
        let mut head = head();
        let remove_headers = remove.iter().map(|name| (*name).to_owned()).collect();
        let mutation = HeaderMutation { set_headers: options, remove_headers };
        let result = apply(&mutation, Target::Request(&mut head), &HeaderRules::default(), Permissions::default());
        (head, result)
    }

    #[test]
    fn headers_are_set_or_added() {
        for (append, name, expected) in
            [(false, "X-A", &["2"][..]), (true, "x-a", &["1", "2"]), (false, "x-b", &["2"]), (true, "x-b", &["2"])]
        {
            let (head, result) = changed(vec![option(name, "2", append)], &[]);
            let name = name.to_ascii_lowercase();
            let values: Vec<_> = head.headers.get_all_by_name(&name).map(String::from_utf8_lossy).collect();
            assert_eq!((values, result), (expected.iter().map(|text| (*text).into()).collect(), Ok(0)), "{name}");
        }
    }

    #[test]
    fn the_rules_decide_what_may_be_changed() {
        let set = |name: &str, value: &str| option(name, value, false);
        let (head, result) =
            changed(vec![set(":path", "/q"), set(":method", "PUT"), set("x-envoy-a", "1")], &["x-a", "host", ":path"]);
        assert_eq!((head.path_str(), head.method_str(), result), ("/q", "GET", Ok(4)));
        assert!(head.headers.get_by_name("x-a").is_none());
        let (head, result) = changed(vec![set("content-length", "9"), set(":path", "/a b")], &[]);
        assert_eq!((head.path_str(), result), ("/p", Ok(1)));
        assert!(head.headers.get_by_name("content-length").is_none());
        for bad in [set("x a", "1"), set("x-b", "1\r\nx-c: 2"), set("", "1")] {
            let (_, result) = changed(vec![bad], &[]);
            assert_eq!(result, Err((1, Invalid("header_mutation_set_contains_invalid_character"))));
        }
    }
}
