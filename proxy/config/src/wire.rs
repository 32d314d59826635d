//! Readers of the small messages that stand everywhere in the API: durations, percentages, matchers, data sources,
//! extensions.
//!
//! Owns how such a value is checked, once. Never knows which resource it belongs to.

use std::path::PathBuf;
use std::time::Duration;

use outrigger_api::JsonError;
use outrigger_api::pb;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::r#type::matcher::v3 as matcher;
use outrigger_api::pb::envoy::r#type::v3 as types;
use outrigger_api::pb::google::protobuf::Any;

use crate::context::Context;
use crate::matching::StringMatcher;
use crate::rejection::{FieldPath, Parsed};
use crate::units::{Fraction, Percent, RuntimeFraction, RuntimeNumber};

/// A duration of zero or more.
pub(crate) fn duration(at: &FieldPath<'_>, wire: pb::google::protobuf::Duration) -> Parsed<Duration> {
    let pb::google::protobuf::Duration { seconds, nanos } = wire;
    let (Ok(whole), Ok(part)) = (u64::try_from(seconds), u32::try_from(nanos)) else {
        return Err(at.reject(format!("{seconds}.{:09}s must not be negative", nanos.unsigned_abs())));
    };
    if part > 999_999_999 || whole > MAX_SECONDS {
        return Err(at.reject(format!("{seconds} s and {nanos} ns is out of range, expected up to {MAX_SECONDS} s")));
    }
    Ok(Duration::new(whole, part))
}

/// A duration above zero.
pub(crate) fn positive_duration(at: &FieldPath<'_>, wire: pb::google::protobuf::Duration) -> Parsed<Duration> {
    let value = duration(at, wire)?;
    if value.is_zero() { Err(at.reject("0s must be above zero")) } else { Ok(value) }
}

/// A limit: absent gives `default`, `0s` switches it off.
pub(crate) fn limit(
    at: &FieldPath<'_>,
    wire: Option<pb::google::protobuf::Duration>,
    default: Option<Duration>,
) -> Parsed<Option<Duration>> {
    match wire {
        None => Ok(default),
        Some(wire) => Ok(Some(duration(at, wire)?).filter(|value| !value.is_zero())),
    }
}

/// Forgets a flag that says what its absence says, so that an unsupported one is refused only when it is on.
pub(crate) fn drop_false(field: &mut Option<pb::google::protobuf::BoolValue>) {
    field.take_if(|flag| !flag.value);
}

/// Forgets a duration that says what its absence says, so that an unsupported one is refused only when it is on.
pub(crate) fn drop_zero(field: &mut Option<pb::google::protobuf::Duration>) {
    field.take_if(|duration| duration.seconds == 0 && duration.nanos == 0);
}

/// A status code that HTTP knows, if given.
pub(crate) fn http_status(at: &FieldPath<'_>, wire: Option<types::HttpStatus>) -> Parsed<Option<u16>> {
    let Some(types::HttpStatus { code }) = wire else { return Ok(None) };
    match (types::StatusCode::try_from(code), u16::try_from(code)) {
        (Ok(types::StatusCode::Empty) | Err(_), _) | (_, Err(_)) => {
            Err(at.field("code").reject(format!("{code} is not a known status")))
        }
        (Ok(_), Ok(status)) => Ok(Some(status)),
    }
}

/// A share in percent.
pub(crate) fn percent(at: &FieldPath<'_>, wire: types::Percent) -> Parsed<Percent> {
    let types::Percent { value } = wire;
    Percent::new(value).ok_or_else(|| at.field("value").reject(format!("{value} is not within 0 to 100")))
}

/// A fraction of a hundred, ten thousand or a million.
pub(crate) fn fraction(at: &FieldPath<'_>, wire: types::FractionalPercent) -> Parsed<Fraction> {
    let types::FractionalPercent { numerator, denominator } = wire;
    let denominator = match types::fractional_percent::DenominatorType::try_from(denominator) {
        Ok(types::fractional_percent::DenominatorType::Hundred) => 100,
        Ok(types::fractional_percent::DenominatorType::TenThousand) => 10_000,
        Ok(types::fractional_percent::DenominatorType::Million) => 1_000_000,
        Err(_) => return Err(unknown_enum(&at.field("denominator"), denominator)),
    };
    Fraction::new(numerator, denominator).ok_or_else(|| at.reject("the denominator must be above zero"))
}

/// A fraction that runtime may override.
pub(crate) fn runtime_fraction(at: &FieldPath<'_>, wire: core::RuntimeFractionalPercent) -> Parsed<RuntimeFraction> {
    let core::RuntimeFractionalPercent { default_value, runtime_key } = wire;
    let Some(default_value) = default_value else {
        return Err(at.field("default_value").reject("is required"));
    };
    Ok(RuntimeFraction { default: fraction(&at.field("default_value"), default_value)?, runtime_key })
}

/// A finite number that runtime may override.
pub(crate) fn runtime_double(
    at: &FieldPath<'_>,
    wire: Option<core::RuntimeDouble>,
    default: f64,
) -> Parsed<RuntimeNumber> {
    let Some(wire) = wire else { return Ok(RuntimeNumber { default, runtime_key: String::new() }) };
    let core::RuntimeDouble { default_value, runtime_key } = wire;
    if !default_value.is_finite() {
        return Err(at.field("default_value").reject(format!("{default_value} must be finite")));
    }
    Ok(RuntimeNumber { default: default_value, runtime_key })
}

/// A share in percent that runtime may override.
pub(crate) fn runtime_percent(
    at: &FieldPath<'_>,
    wire: Option<core::RuntimePercent>,
    default: f64,
) -> Parsed<RuntimeNumber> {
    let Some(wire) = wire else { return Ok(RuntimeNumber { default, runtime_key: String::new() }) };
    let core::RuntimePercent { default_value, runtime_key } = wire;
    let value = percent(&at.field("default_value"), default_value.unwrap_or_default())?.value();
    Ok(RuntimeNumber { default: value, runtime_key })
}

/// A whole number that runtime may override.
pub(crate) fn runtime_uint32(wire: Option<core::RuntimeUInt32>, default: u32) -> RuntimeNumber {
    let given = core::RuntimeUInt32 { default_value: default, runtime_key: String::new() };
    let core::RuntimeUInt32 { default_value, runtime_key } = wire.unwrap_or(given);
    RuntimeNumber { default: default_value.into(), runtime_key }
}

/// A string matcher.
pub(crate) fn string_matcher(at: &FieldPath<'_>, wire: matcher::StringMatcher) -> Parsed<StringMatcher> {
    let matcher::StringMatcher { ignore_case, match_pattern } = wire;
    use matcher::string_matcher::MatchPattern;
    let nonempty = |field: &'static str, value: String| {
        if value.is_empty() { Err(at.field(field).reject("must not be empty")) } else { Ok(value) }
    };
    Ok(match match_pattern {
        Some(MatchPattern::Exact(value)) => StringMatcher::Exact { value, ignore_case },
        Some(MatchPattern::Prefix(value)) => StringMatcher::Prefix { value: nonempty("prefix", value)?, ignore_case },
        Some(MatchPattern::Suffix(value)) => StringMatcher::Suffix { value: nonempty("suffix", value)?, ignore_case },
        Some(MatchPattern::Contains(value)) => {
            StringMatcher::Contains { value: nonempty("contains", value)?, ignore_case }
        }
        Some(MatchPattern::SafeRegex(value)) => StringMatcher::Regex(regex(&at.field("safe_regex"), value)?),
        Some(MatchPattern::Custom(_)) => return Err(at.field("custom").unsupported()),
        None => return Err(at.reject("needs one of exact, prefix, suffix, contains, safe_regex")),
    })
}

/// A regular expression that must match as a whole.
pub(crate) fn regex(at: &FieldPath<'_>, wire: matcher::RegexMatcher) -> Parsed<regex::Regex> {
    let text = regex_text(at, wire)?;
    compile(at, &format!("^(?:{text})$"))
}

/// A regular expression that matches anywhere.
pub(crate) fn search_regex(at: &FieldPath<'_>, wire: matcher::RegexMatcher) -> Parsed<regex::Regex> {
    let text = regex_text(at, wire)?;
    compile(at, &text)
}

fn regex_text(at: &FieldPath<'_>, wire: matcher::RegexMatcher) -> Parsed<String> {
    // The engine is RE2 syntax in any case, so the choice (a deprecated field) changes nothing.
    let matcher::RegexMatcher { regex, engine_type: _ } = wire;
    if regex.is_empty() { Err(at.field("regex").reject("must not be empty")) } else { Ok(regex) }
}

fn compile(at: &FieldPath<'_>, pattern: &str) -> Parsed<regex::Regex> {
    regex::RegexBuilder::new(pattern)
        .unicode(true)
        .size_limit(REGEX_BYTES)
        .build()
        .map_err(|error| at.field("regex").reject(format!("is not a valid regular expression: {error}")))
}

/// Bytes given in place, by file or by environment variable.
pub(crate) struct Data {
    /// The content.
    pub bytes: Vec<u8>,
    /// The file it came from.
    pub file: Option<PathBuf>,
}

/// Reads a data source.
pub(crate) fn data_source(context: &Context<'_>, at: &FieldPath<'_>, wire: core::DataSource) -> Parsed<Data> {
    // A watched directory only says when to read a file again; the caller watches every file it is told of.
    let core::DataSource { watched_directory: _, specifier } = wire;
    use core::data_source::Specifier;
    match specifier {
        Some(Specifier::InlineBytes(bytes)) => Ok(Data { bytes, file: None }),
        Some(Specifier::InlineString(text)) => Ok(Data { bytes: text.into_bytes(), file: None }),
        Some(Specifier::Filename(name)) => {
            let path = PathBuf::from(&name);
            let bytes = context
                .environment()
                .read_file(&path)
                .map_err(|error| at.field("filename").reject(format!("cannot read {name:?}: {error}")))?;
            Ok(Data { bytes, file: Some(path) })
        }
        Some(Specifier::EnvironmentVariable(name)) => match context.environment().variable(&name) {
            Some(value) => Ok(Data { bytes: value.into_bytes(), file: None }),
            None => Err(at.field("environment_variable").reject(format!("{name:?} is not set"))),
        },
        None => Err(at.reject("needs one of filename, inline_bytes, inline_string, environment_variable")),
    }
}

/// The extension config inside an `Any`, with typed structs turned into the type they name.
pub(crate) fn extension(context: &Context<'_>, at: &FieldPath<'_>, wire: Any) -> Parsed<Any> {
    if !type_name(&wire).ends_with("TypedStruct") {
        return Ok(wire);
    }
    match outrigger_api::unwrap_typed_struct(&wire, context.schema()) {
        Ok(Some(inner)) => Ok(inner),
        Ok(None) => Ok(wire),
        Err(error) => Err(at.reject(error.to_string())),
    }
}

/// As [`extension`], but a `TypedStruct` of a type that nobody knows gives the URL of that type instead of a rejection.
pub(crate) fn known_extension(context: &Context<'_>, at: &FieldPath<'_>, wire: Any) -> Parsed<Result<Any, String>> {
    if !type_name(&wire).ends_with("TypedStruct") {
        return Ok(Ok(wire));
    }
    match outrigger_api::unwrap_typed_struct(&wire, context.schema()) {
        Ok(Some(inner)) => Ok(Ok(inner)),
        Ok(None) => Ok(Ok(wire)),
        Err(JsonError::UnknownType(type_url)) => Ok(Err(type_url)),
        Err(error) => Err(at.reject(error.to_string())),
    }
}

/// The message name of an `Any`: what follows the last slash of its type URL.
pub(crate) fn type_name(wire: &Any) -> &str {
    wire.type_url.rsplit('/').next().unwrap_or_default()
}

/// Decodes the message of an `Any` whose type was already looked at.
pub(crate) fn decode<M: prost::Message + Default>(at: &FieldPath<'_>, wire: &Any) -> Parsed<M> {
    M::decode(wire.value.as_slice()).map_err(|error| at.reject(format!("is not a valid {}: {error}", type_name(wire))))
}

/// Text that will stand in a header: without the bytes that end a line.
pub(crate) fn header_value(at: &FieldPath<'_>, text: &str) -> Parsed<()> {
    if text.contains(['\0', '\r', '\n']) {
        return Err(at.reject(format!("{text:?} must not contain a line end or a zero byte")));
    }
    Ok(())
}

/// A number within a range, if given.
pub(crate) fn number_within(
    at: &FieldPath<'_>,
    wire: Option<pb::google::protobuf::UInt32Value>,
    range: std::ops::RangeInclusive<u32>,
) -> Parsed<Option<u32>> {
    let Some(pb::google::protobuf::UInt32Value { value }) = wire else { return Ok(None) };
    if !range.contains(&value) {
        return Err(at.reject(format!("{value} is not within {} to {}", range.start(), range.end())));
    }
    Ok(Some(value))
}

/// Reads the items of a repeated field. What comes back is as large as what it holds: collected in place, the list would
/// keep the memory of the messages, which are many times larger than what is read from them.
pub(crate) fn each<W, T>(
    at: &FieldPath<'_>,
    wire: Vec<W>,
    read: impl Fn(&FieldPath<'_>, W) -> Parsed<T>,
) -> Parsed<Vec<T>> {
    let mut items = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        items.push(read(&at.item(index), wire)?);
    }
    Ok(items)
}

/// An enum value that this version of the API does not know.
pub(crate) fn unknown_enum(at: &FieldPath<'_>, value: i32) -> crate::Rejection {
    at.reject(format!("{value} is not a known value"))
}

/// Durations above ten thousand years are mistakes.
const MAX_SECONDS: u64 = 315_576_000_000;
/// Room for one compiled expression; RE2's default budget is of the same order.
const REGEX_BYTES: usize = 10 << 20;
