//! The header to metadata filter: copies values of headers and cookies into dynamic metadata.
//!
//! Owns how a value becomes metadata. Which values do stands in the settings.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{
    EntryValue, HeaderToMetadata as Settings, MetadataEntry, MetadataRule, MetadataSource, ValueKind,
};
use outrigger_config::metadata::{from_protobuf, number};
use serde_json::Value;

use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::http::headers::{HeaderId, Headers};
use crate::http::message::joined;
use crate::scope;
use crate::stats::{Counter, names};
use crate::stream::StreamInfo;

scope! {
    /// Stats of settings with a prefix (`http_filter_name.<prefix>.*`).
    pub struct HeaderToMetadataStats {
        base64_decode_failed: Counter,
        header_value_too_long: Counter,
        regex_substitution_failed: Counter,
        request_header_not_found: Counter,
        request_metadata_added: Counter,
        request_rules_processed: Counter,
        response_header_not_found: Counter,
        response_metadata_added: Counter,
        response_rules_processed: Counter,
    }
}

/// The filter.
pub struct HeaderToMetadata {
    settings: Arc<Settings>,
    /// Of the chain's settings; those of routes have none.
    stats: Option<Arc<HeaderToMetadataStats>>,
}

/// What is counted of one direction.
struct Counters<'a> {
    all: &'a HeaderToMetadataStats,
    processed: &'a Counter,
    not_found: &'a Counter,
    added: &'a Counter,
}

impl HeaderToMetadata {
    /// A filter with its stats.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        let stats = settings.stat_prefix.as_ref();
        let stats = stats.map(|prefix| maker.worker.scope(&names::prefix("http_filter_name", prefix)));
        Self { settings: Arc::clone(settings), stats }
    }

    fn counters(&self, settings: &Settings, of_request: bool) -> Option<Counters<'_>> {
        let all = self.stats.as_deref().filter(|_| std::ptr::eq(settings, &*self.settings))?;
        let (processed, not_found, added) = match of_request {
            true => (&all.request_rules_processed, &all.request_header_not_found, &all.request_metadata_added),
            false => (&all.response_rules_processed, &all.response_header_not_found, &all.response_metadata_added),
        };
        Some(Counters { all, processed, not_found, added })
    }
}

impl HttpFilter for HeaderToMetadata {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let settings = of_route(exchange).unwrap_or(&self.settings);
        let counters = self.counters(settings, true);
        for rule in &settings.request {
            let value = value(rule, &exchange.head().headers);
            apply(rule, value.as_deref(), exchange.info(), counters.as_ref());
            let present = value.is_some();
            remove(rule, present, &mut exchange.head_mut().headers);
        }
        Verdict::Continue
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let settings = of_route(exchange).unwrap_or(&self.settings);
        let counters = self.counters(settings, false);
        for rule in &settings.response {
            let value = value(rule, &exchange.response().headers);
            apply(rule, value.as_deref(), exchange.info(), counters.as_ref());
            let present = value.is_some();
            remove(rule, present, &mut exchange.response_mut().headers);
        }
        Verdict::Continue
    }
}

fn of_route<'g>(exchange: &Exchange<'_, '_, 'g>) -> Option<&'g Arc<Settings>> {
    exchange.route_configs().find_map(|config| match config {
        RouteFilterConfig::HeaderToMetadata(settings) => Some(settings),
        _ => None,
    })
}

/// What a rule finds.
fn value<'h>(rule: &MetadataRule, headers: &'h Headers) -> Option<Cow<'h, [u8]>> {
    match &rule.from {
        MetadataSource::Header(name) => joined(headers, name),
        MetadataSource::Cookie(name) => cookie(headers, name.as_bytes()).map(Cow::Borrowed),
    }
}

/// The value of a cookie without its quotes, if it has one.
fn cookie<'h>(headers: &'h Headers, name: &[u8]) -> Option<&'h [u8]> {
    let pairs = headers.get_all(HeaderId::Cookie).flat_map(|header| header.split(|byte| *byte == b';'));
    let value = pairs.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="))?;
    let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    (!bare.is_empty()).then_some(bare)
}

fn remove(rule: &MetadataRule, present: bool, headers: &mut Headers) {
    if let (true, true, MetadataSource::Header(name)) = (rule.remove, present, &rule.from) {
        headers.remove_by_name(name);
    }
}

fn apply(rule: &MetadataRule, found: Option<&[u8]>, info: &StreamInfo, counters: Option<&Counters<'_>>) {
    if let Some(counters) = counters {
        counters.processed.increment();
    }
    let entry = if found.is_some() { &rule.on_present } else { &rule.on_missing };
    let Some(entry) = entry else { return };
    if let (None, Some(counters)) = (found, counters) {
        counters.not_found.increment();
    }
    let all = counters.map(|counters| counters.all);
    let Some(value) = made(entry, found.unwrap_or_default(), all) else { return };
    if let Some(counters) = counters {
        counters.added.increment();
    }
    let mut metadata = info.dynamic_metadata.borrow_mut();
    metadata.entry(String::from(&*entry.namespace)).or_default().insert(entry.key.clone(), value);
}

/// The value of an entry; `None` if there is none, or it is not of the type that is wanted.
fn made(entry: &MetadataEntry, found: &[u8], stats: Option<&HeaderToMetadataStats>) -> Option<Value> {
    let text = match &entry.value {
        EntryValue::Fixed(value) => Cow::Borrowed(value.as_bytes()),
        EntryValue::AsFound => Cow::Borrowed(found),
        EntryValue::Rewritten(rewrite) => {
            let text = String::from_utf8_lossy(found);
            let changed = rewrite.pattern.replace_all(&text, rewrite.substitution.as_str()).into_owned();
            if changed.is_empty()
                && !found.is_empty()
                && let Some(stats) = stats
            {
                stats.regex_substitution_failed.increment();
            }
            Cow::Owned(changed.into_bytes())
        }
    };
    if text.is_empty() {
        return None;
    }
    if text.len() >= MAX_VALUE_BYTES {
        stats.inspect(|stats| stats.header_value_too_long.increment());
        return None;
    }
    let bytes = if entry.base64 {
        match BASE64.decode(&text) {
            Ok(bytes) => Cow::Owned(bytes),
            Err(_) => {
                stats.inspect(|stats| stats.base64_decode_failed.increment());
                return None;
            }
        }
    } else {
        text
    };
    match entry.kind {
        ValueKind::String => Some(Value::String(String::from_utf8_lossy(&bytes).into_owned())),
        ValueKind::Number => std::str::from_utf8(&bytes).ok()?.trim().parse().ok().and_then(number),
        ValueKind::Protobuf => from_protobuf(&bytes),
    }
}

/// Longer values are not copied. Source: the documentation of the filter.
const MAX_VALUE_BYTES: usize = 8 * 1024;
/// Padding may be left out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(value: EntryValue, kind: ValueKind, base64: bool) -> MetadataEntry {
        MetadataEntry { namespace: "n".into(), key: "k".into(), value, kind, base64 }
    }

    #[test]
    fn values_are_made_of_what_was_found() {
        let stats = HeaderToMetadataStats::default();
        let found = || EntryValue::AsFound;
        for (kind, base64, text, expected) in [
            (ValueKind::String, false, "a\"b", Some(json!("a\"b"))),
            (ValueKind::String, false, "", None),
            (ValueKind::String, true, "aGk=", Some(json!("hi"))),
            (ValueKind::String, true, "aGk", Some(json!("hi"))),
            (ValueKind::String, true, "!!", None),
            (ValueKind::Number, false, "1e3", Some(json!(1000))),
            (ValueKind::Number, false, "1.5", Some(json!(1.5))),
            (ValueKind::Number, false, "zz", None),
            (ValueKind::Protobuf, true, "GgNhYmM=", Some(json!("abc"))),
        ] {
            let entry = entry(found(), kind, base64);
            assert_eq!(made(&entry, text.as_bytes(), Some(&stats)), expected, "{text}");
        }
        assert_eq!(stats.base64_decode_failed.value(), 1);
        let fixed = entry(EntryValue::Fixed("f".into()), ValueKind::String, false);
        assert_eq!(made(&fixed, b"", None), Some(json!("f")));
        let long = entry(found(), ValueKind::String, false);
        assert_eq!(made(&long, &[b'x'; MAX_VALUE_BYTES], Some(&stats)), None);
        assert_eq!(stats.header_value_too_long.value(), 1);
    }

    #[test]
    fn cookies_are_found_with_and_without_quotes() {
        let mut headers = Headers::default();
        headers.append(b"cookie", b"a=b; ck=\"q v\"; empty=");
        headers.append(b"cookie", b"other=x");
        assert_eq!(cookie(&headers, b"a"), Some(&b"b"[..]));
        assert_eq!(cookie(&headers, b"ck"), Some(&b"q v"[..]));
        assert_eq!(cookie(&headers, b"other"), Some(&b"x"[..]));
        assert_eq!(cookie(&headers, b"empty"), None);
        assert_eq!(cookie(&headers, b"b"), None);
    }
}
