//! Header mutations (`HeaderValueOption` lists and lists of names to remove).
//!
//! Owns how such lists are checked. Never applies them.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;

use super::{AppendAction, HeaderAddition, HeaderMutations};
use crate::decide::decide;
use crate::format::Format;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Reads `request_headers_to_add` and `request_headers_to_remove` of the message `at`.
pub(crate) fn request_header_mutations(
    at: &FieldPath<'_>,
    to_add: Vec<core::HeaderValueOption>,
    to_remove: Vec<String>,
) -> Parsed<HeaderMutations> {
    header_mutations(&at.field("request_headers_to_add"), to_add, &at.field("request_headers_to_remove"), to_remove)
}

/// Reads `response_headers_to_add` and `response_headers_to_remove` of the message `at`.
pub(crate) fn response_header_mutations(
    at: &FieldPath<'_>,
    to_add: Vec<core::HeaderValueOption>,
    to_remove: Vec<String>,
) -> Parsed<HeaderMutations> {
    header_mutations(&at.field("response_headers_to_add"), to_add, &at.field("response_headers_to_remove"), to_remove)
}

/// Reads additions that stand at `add_at` and removals that stand at `remove_at`.
pub(crate) fn header_mutations(
    add_at: &FieldPath<'_>,
    to_add: Vec<core::HeaderValueOption>,
    remove_at: &FieldPath<'_>,
    to_remove: Vec<String>,
) -> Parsed<HeaderMutations> {
    if to_add.len() > MAX_ADDITIONS {
        return Err(add_at.reject(format!("has {} entries, expected up to {MAX_ADDITIONS}", to_add.len())));
    }
    let add = wire::each(add_at, to_add, header_addition)?;
    let remove = wire::each(remove_at, to_remove, |at, name| mutable_header_name(at, &name, "removed"))?;
    Ok(HeaderMutations { remove, add })
}

/// A header name as RFC 9110 has it, in lower case. Pseudo headers such as `:path` are allowed.
pub(crate) fn header_name(at: &FieldPath<'_>, name: &str) -> Parsed<Arc<str>> {
    let token = name.strip_prefix(':').unwrap_or(name);
    if token.is_empty() {
        return Err(at.reject(if name.is_empty() { "must not be empty" } else { "\":\" is not a valid header name" }));
    }
    if name.len() > MAX_BYTES || !token.bytes().all(is_token_byte) {
        return Err(at.reject(format!("{name:?} is not a valid header name")));
    }
    Ok(name.to_ascii_lowercase().into())
}

/// Bytes of an RFC 9110 token.
pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A header value that cannot break a message apart.
pub(crate) fn check_header_value(at: &FieldPath<'_>, value: &str) -> Parsed<()> {
    if value.contains(['\0', '\r', '\n']) {
        return Err(at.reject(format!("{value:?} must not contain a line end or a zero byte")));
    }
    Ok(())
}

/// Routing has already looked at `:path`, `:authority` and the like, so lists may not touch them (use rewrites instead).
fn mutable_header_name(at: &FieldPath<'_>, name: &str, done: &str) -> Parsed<Arc<str>> {
    let name = header_name(at, name)?;
    if name.starts_with(':') || &*name == "host" {
        return Err(at.reject(format!("{name:?}: \":\"-prefixed or host headers may not be {done}")));
    }
    Ok(name)
}

/// Reads one addition.
pub(crate) fn header_addition(at: &FieldPath<'_>, wire: core::HeaderValueOption) -> Parsed<HeaderAddition> {
    decide!(wire, at, core::HeaderValueOption as "envoy.config.core.v3.HeaderValueOption" {
        implemented: header, append, append_action, keep_empty_value;
        no_effect: ;
        unsupported: ;
    });
    let Some(header) = header else {
        return Err(at.field("header").reject("is required"));
    };
    let (name, value) = name_and_value(&at.field("header"), header)?;
    use core::header_value_option::HeaderAppendAction as Action;
    let action = match Action::try_from(append_action) {
        Ok(Action::AppendIfExistsOrAdd) => AppendAction::AppendIfExistsOrAdd,
        Ok(Action::AddIfAbsent) => AppendAction::AddIfAbsent,
        Ok(Action::OverwriteIfExistsOrAdd) => AppendAction::OverwriteIfExistsOrAdd,
        Ok(Action::OverwriteIfExists) => AppendAction::OverwriteIfExists,
        Err(_) => return Err(wire::unknown_enum(&at.field("append_action"), append_action)),
    };
    let action = match append {
        None => action,
        Some(_) if append_action != 0 => {
            return Err(at.field("append").reject("must not be set together with append_action"));
        }
        Some(append) if append.value => AppendAction::AppendIfExistsOrAdd,
        Some(_) => AppendAction::OverwriteIfExistsOrAdd,
    };
    Ok(HeaderAddition { name, value, action, keep_empty_value })
}

fn name_and_value(at: &FieldPath<'_>, wire: core::HeaderValue) -> Parsed<(Arc<str>, Format)> {
    decide!(wire, at, core::HeaderValue as "envoy.config.core.v3.HeaderValue" {
        implemented: key, value, raw_value;
        no_effect: ;
        unsupported: ;
    });
    let name = mutable_header_name(&at.field("key"), &key, "modified")?;
    let (field, text) = if raw_value.is_empty() {
        (at.field("value"), value)
    } else if !value.is_empty() {
        return Err(at.field("raw_value").reject("must not be set together with value"));
    } else {
        let field = at.field("raw_value");
        let text =
            String::from_utf8(raw_value).map_err(|_| field.reject("bytes that are not UTF-8 are not supported"))?;
        (field, text)
    };
    if text.len() > MAX_BYTES {
        return Err(field.reject(format!("has {} bytes, expected up to {MAX_BYTES}", text.len())));
    }
    check_header_value(&field, &text)?;
    Ok((name, Format::parse(&field, &text)?))
}

/// Source: `(validate.rules).repeated.max_items` of the lists.
const MAX_ADDITIONS: usize = 1000;
/// Source: `(validate.rules).string.max_bytes` of names and values.
const MAX_BYTES: usize = 16_384;

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::protobuf::BoolValue;

    use super::*;

    fn option(key: &str, value: &str) -> core::HeaderValueOption {
        core::HeaderValueOption {
            header: Some(core::HeaderValue { key: key.into(), value: value.into(), raw_value: vec![] }),
            ..Default::default()
        }
    }

    fn read(add: Vec<core::HeaderValueOption>, remove: &[&str]) -> Result<HeaderMutations, String> {
        let root = FieldPath::resource("route configuration", "r");
        let remove = remove.iter().map(|name| (*name).to_owned()).collect();
        request_header_mutations(&root, add, remove).map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn names_are_lower_case_and_values_are_compiled() {
        let got = read(vec![option("X-Method", "m=%REQ(:METHOD)%")], &["X-Gone"]).unwrap();
        assert_eq!(&*got.remove[0], "x-gone");
        assert_eq!(&*got.add[0].name, "x-method");
        assert_eq!(got.add[0].value.parts.len(), 2);
        assert_eq!(got.add[0].action, AppendAction::AppendIfExistsOrAdd);
    }

    #[test]
    fn the_deprecated_append_flag_still_decides() {
        for (append, expected) in
            [(true, AppendAction::AppendIfExistsOrAdd), (false, AppendAction::OverwriteIfExistsOrAdd)]
        {
            let wire = core::HeaderValueOption { append: Some(BoolValue { value: append }), ..option("a", "b") };
            assert_eq!(read(vec![wire], &[]).unwrap().add[0].action, expected);
        }
    }

    #[test]
    fn each_bad_entry_is_refused_by_path() {
        let at = "route configuration \"r\": request_headers_to_add[0]";
        let both =
            core::HeaderValueOption { append: Some(BoolValue { value: true }), append_action: 1, ..option("a", "b") };
        for (wire, expected) in [
            (option(":path", "x"), ".header.key: \":path\": \":\"-prefixed or host headers may not be modified"),
            (option("Host", "x"), ".header.key: \"host\": \":\"-prefixed or host headers may not be modified"),
            (option("a b", "x"), ".header.key: \"a b\" is not a valid header name"),
            (option("", "x"), ".header.key: must not be empty"),
            (option("a", "x\ny"), ".header.value: \"x\\ny\" must not contain a line end or a zero byte"),
            (option("a", "100%"), ".header.value: \"100%\" has no valid command at position 3"),
            (core::HeaderValueOption::default(), ".header: is required"),
            (
                core::HeaderValueOption { append_action: 9, ..option("a", "b") },
                ".append_action: 9 is not a known value",
            ),
            (both, ".append: must not be set together with append_action"),
        ] {
            assert_eq!(read(vec![wire], &[]).unwrap_err(), format!("{at}{expected}"));
        }
        assert_eq!(
            read(vec![], &["a", ":method"]).unwrap_err(),
            "route configuration \"r\": request_headers_to_remove[1]: \":method\": \":\"-prefixed or host headers may not \
             be removed"
        );
    }
}
