//! Compiles format strings into [`Format`].
//!
//! Owns the syntax `%COMMAND(parameters):max_bytes%` and the table of operators. Never evaluates them.

use std::sync::Arc;

use super::{Format, FormatPart, GrpcStatusForm, MetadataOf, Operator, named};
use crate::cel::Expression;
use crate::context::Environment;
use crate::http::header_mutations::header_name;
use crate::rejection::{FieldPath, Parsed};

impl Format {
    /// Compiles `text`. `%ENVIRONMENT(..)%` is refused, see [`Format::parse_with_environment`].
    pub fn parse(at: &FieldPath<'_>, text: &str) -> Parsed<Self> {
        compile(at, text, None)
    }

    /// Compiles `text`, with the variables that `%ENVIRONMENT(..)%` names taken from `environment` now.
    pub fn parse_with_environment(environment: &dyn Environment, at: &FieldPath<'_>, text: &str) -> Parsed<Self> {
        compile(at, text, Some(environment))
    }
}

fn compile(at: &FieldPath<'_>, text: &str, environment: Option<&dyn Environment>) -> Parsed<Format> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('%') {
        literal.push_str(&rest[..start]);
        let after = &rest[start + 1..];
        if let Some(tail) = after.strip_prefix('%') {
            literal.push('%');
            rest = tail;
            continue;
        }
        let Some((command, tail)) = Command::split(after) else {
            let position = text.len() - rest.len() + start;
            return Err(at.reject(format!("{text:?} has no valid command at position {position}")));
        };
        if !literal.is_empty() {
            parts.push(FormatPart::Literal(std::mem::take(&mut literal).into()));
        }
        parts.push(FormatPart::Operator { operator: command.operator(at, environment)?, max_bytes: command.max_bytes });
        rest = tail;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(FormatPart::Literal(literal.into()));
    }
    Ok(Format { parts })
}

/// The pieces of `COMMAND(parameters):max_bytes`.
pub(super) struct Command<'a> {
    pub(super) name: &'a str,
    pub(super) parameters: Option<&'a str>,
    pub(super) max_bytes: Option<usize>,
}

impl<'a> Command<'a> {
    /// Splits off a command from what follows its opening `%`, and returns what follows its closing one.
    fn split(text: &'a str) -> Option<(Self, &'a str)> {
        let end = text.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))?;
        let (name, rest) = text.split_at(end);
        if name.is_empty() {
            return None;
        }
        let Some(inside) = rest.strip_prefix('(') else {
            let (max_bytes, tail) = split_end(rest)?;
            return Some((Command { name, parameters: None, max_bytes }, tail));
        };
        // Parameters may hold `%` and `)` themselves, so the first `)` that a command can end with is the one.
        inside.match_indices(')').find_map(|(close, _)| {
            let (max_bytes, tail) = split_end(&inside[close + 1..])?;
            Some((Command { name, parameters: Some(&inside[..close]), max_bytes }, tail))
        })
    }

    pub(super) fn operator(&self, at: &FieldPath<'_>, environment: Option<&dyn Environment>) -> Parsed<Operator> {
        if let Some(operator) = named::bare(self.name) {
            return match (self.parameters, self.max_bytes) {
                (None, None) => Ok(operator),
                _ => Err(at.reject(format!("{} takes no parameters and no length", self.name))),
            };
        }
        if self.max_bytes.is_some() && NO_LENGTH.contains(&self.name) {
            return Err(at.reject(format!("{} takes no length", self.name)));
        }
        if let Some((of, local)) = named::date(self.name) {
            return Ok(Operator::Date { of, local, format: self.parameters.filter(|f| !f.is_empty()).map(Arc::from) });
        }
        if let Some(operator) = self.address(at)? {
            return Ok(operator);
        }
        let name = self.name;
        Ok(match name {
            "REQ" | "REQUEST_HEADER" => {
                let (name, alternative) = self.headers(at)?;
                Operator::RequestHeader { name, alternative }
            }
            "RESP" | "RESPONSE_HEADER" => {
                let (name, alternative) = self.headers(at)?;
                Operator::ResponseHeader { name, alternative }
            }
            "TRAILER" | "RESPONSE_TRAILER" => {
                let (name, alternative) = self.headers(at)?;
                Operator::ResponseTrailer { name, alternative }
            }
            "REQ_WITHOUT_QUERY" => {
                let (name, alternative) = self.headers(at)?;
                Operator::RequestWithoutQuery { name, alternative }
            }
            "QUERY_PARAM" => Operator::QueryParameter(self.required(at)?.into()),
            "QUERY_PARAMS" => Operator::QueryParameters { decoded: self.query_form(at)? },
            "PATH" => self.path(at)?,
            "REQUESTED_SERVER_NAME" => self.server_name(at)?,
            "RESPONSE_CODE_DETAILS" => {
                Operator::ResponseCodeDetails { blanks: self.parameters == Some("ALLOW_WHITESPACES") }
            }
            "COMMON_DURATION" => self.common_duration(at)?,
            "GRPC_STATUS" => Operator::GrpcStatus(self.grpc_status_form(at)?),
            "DYNAMIC_METADATA" => Operator::DynamicMetadata { path: path(self.required(at)?) },
            "CLUSTER_METADATA" => Operator::Metadata { of: MetadataOf::Cluster, path: path(self.required(at)?) },
            "UPSTREAM_METADATA" => Operator::Metadata { of: MetadataOf::UpstreamHost, path: path(self.required(at)?) },
            "METADATA" => self.metadata(at)?,
            "FILTER_STATE" => {
                let (key, form) = self.filter_state(at)?;
                Operator::FilterState { key, form }
            }
            // There are no filters of upstreams that could leave any.
            "UPSTREAM_FILTER_STATE" => self.filter_state(at).map(|_| Operator::Nothing)?,
            "ENVIRONMENT" => match environment {
                Some(environment) => {
                    Operator::Environment { value: environment.variable(self.required(at)?).map(Arc::from) }
                }
                None => return Err(at.reject("the operator ENVIRONMENT is not supported here")),
            },
            "COALESCE" => super::coalesce::parse(at, self.required(at)?, environment)?,
            "CEL" | "TYPED_CEL" => {
                let expression = Expression::parse(self.required(at)?).map_err(|error| at.reject(error))?;
                Operator::Cel { expression: Arc::new(expression), typed: name == "TYPED_CEL" }
            }
            "TIMER" => self.timer(at)?,
            _ => return Err(at.reject(format!("the operator {name} is not supported"))),
        })
    }

    pub(super) fn required(&self, at: &FieldPath<'_>) -> Parsed<&'a str> {
        match self.parameters {
            Some(parameters) if !parameters.is_empty() => Ok(parameters),
            _ => Err(at.reject(format!("{} requires parameters", self.name))),
        }
    }

    /// `NAME` or `NAME?ALTERNATIVE`.
    fn headers(&self, at: &FieldPath<'_>) -> Parsed<(Arc<str>, Option<Arc<str>>)> {
        let parameters = self.required(at)?;
        let mut names = parameters.split('?');
        let name = header_name(at, names.next().unwrap_or_default())?;
        let alternative = match names.next() {
            None | Some("") => None,
            Some(alternative) => Some(header_name(at, alternative)?),
        };
        if names.next().is_some() {
            return Err(at.reject(format!("{}({parameters}) names more than one alternative header", self.name)));
        }
        Ok((name, alternative))
    }

    fn grpc_status_form(&self, at: &FieldPath<'_>) -> Parsed<GrpcStatusForm> {
        Ok(match self.parameters.unwrap_or_default() {
            "" | "CAMEL_STRING" => GrpcStatusForm::Camel,
            "SNAKE_STRING" => GrpcStatusForm::Snake,
            "NUMBER" => GrpcStatusForm::Number,
            other => {
                return Err(at.reject(format!(
                    "GRPC_STATUS({other}) is not known, expected CAMEL_STRING, SNAKE_STRING or NUMBER"
                )));
            }
        })
    }

    fn metadata(&self, at: &FieldPath<'_>) -> Parsed<Operator> {
        let parameters = self.required(at)?;
        let (kind, rest) = parameters.split_once(':').unwrap_or((parameters, ""));
        let of = match kind {
            "DYNAMIC" => return Ok(Operator::DynamicMetadata { path: path(rest) }),
            "CLUSTER" => MetadataOf::Cluster,
            "ROUTE" => MetadataOf::Route,
            "UPSTREAM_HOST" => MetadataOf::UpstreamHost,
            "LISTENER" => MetadataOf::Listener,
            "LISTENER_FILTER_CHAIN" => MetadataOf::FilterChain,
            "VIRTUAL_HOST" => MetadataOf::VirtualHost,
            _ => return Err(at.reject(format!("METADATA({parameters}): {kind:?} is not a known type of metadata"))),
        };
        Ok(Operator::Metadata { of, path: path(rest) })
    }
}

/// Splits off `%` or `:digits%`, the end of a command.
fn split_end(text: &str) -> Option<(Option<usize>, &str)> {
    if let Some(tail) = text.strip_prefix('%') {
        return Some((None, tail));
    }
    let digits = text.strip_prefix(':')?;
    let end = digits.find(|c: char| !c.is_ascii_digit())?;
    let max_bytes = digits[..end].parse().ok()?;
    Some((Some(max_bytes), digits[end..].strip_prefix('%')?))
}

/// `namespace:key:...`, or the older `["namespace", "key", ...]`.
fn path(parameters: &str) -> Vec<Arc<str>> {
    match parameters.strip_prefix('[').and_then(|list| list.strip_suffix(']')) {
        Some(list) => list.split(',').map(|key| key.trim().trim_matches('"').into()).collect(),
        None => parameters.split(':').map(Arc::from).collect(),
    }
}

/// The operators whose values cannot be cut.
const NO_LENGTH: [&str; 13] = [
    "START_TIME",
    "START_TIME_LOCAL",
    "EMIT_TIME",
    "EMIT_TIME_LOCAL",
    "DOWNSTREAM_PEER_CERT_V_START",
    "DOWNSTREAM_PEER_CERT_V_END",
    "UPSTREAM_PEER_CERT_V_START",
    "UPSTREAM_PEER_CERT_V_END",
    "REQUESTED_SERVER_NAME",
    "RESPONSE_CODE_DETAILS",
    "COMMON_DURATION",
    "GRPC_STATUS",
    "TIMER",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{AddressPart, DateOf, FilterStateForm};
    use super::*;

    fn parse(text: &str) -> Result<Format, String> {
        Format::parse(&FieldPath::resource("listener", "l").field("format"), text).map_err(|rejection| rejection.reason)
    }

    fn only(text: &str) -> (Operator, Option<usize>) {
        match parse(text).unwrap().parts.as_slice() {
            [FormatPart::Operator { operator, max_bytes }] => (operator.clone(), *max_bytes),
            parts => panic!("{text}: {parts:?}"),
        }
    }

    #[test]
    fn literals_and_operators_alternate() {
        let parts = parse("a%PROTOCOL%%%b%BYTES_SENT%").unwrap().parts;
        assert_eq!(parts.len(), 4);
        assert_eq!(parts[0], FormatPart::Literal("a".into()));
        assert_eq!(parts[2], FormatPart::Literal("%b".into()));
        assert_eq!(parse("").unwrap().parts.len(), 0);
        assert_eq!(parse("100%%").unwrap().as_literal(), Some("100%"));
    }

    #[test]
    fn parameters_and_lengths() {
        assert_eq!(
            only("%REQ(X-Envoy-Original-Path?:PATH):30%"),
            (
                Operator::RequestHeader { name: "x-envoy-original-path".into(), alternative: Some(":path".into()) },
                Some(30)
            )
        );
        assert_eq!(
            only("%START_TIME(%Y/%m (x) %s%3f)%").0,
            Operator::Date { of: DateOf::Start, local: false, format: Some("%Y/%m (x) %s%3f".into()) }
        );
        assert_eq!(only("%START_TIME%").0, Operator::Date { of: DateOf::Start, local: false, format: None });
        assert_eq!(only("%GRPC_STATUS(NUMBER)%").0, Operator::GrpcStatus(GrpcStatusForm::Number));
        assert_eq!(
            only("%DOWNSTREAM_DIRECT_REMOTE_PORT%").0,
            Operator::DownstreamDirectRemoteAddress(AddressPart::Port)
        );
        assert_eq!(
            only("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%").0,
            Operator::DownstreamRemoteAddress(AddressPart::WithoutPort)
        );
        let of_host = Operator::Metadata { of: MetadataOf::UpstreamHost, path: vec!["a".into(), "b".into()] };
        for text in ["%UPSTREAM_METADATA(a:b)%", "%UPSTREAM_METADATA([\"a\", \"b\"])%", "%METADATA(UPSTREAM_HOST:a:b)%"]
        {
            assert_eq!(only(text).0, of_host);
        }
        for (text, form) in [
            ("%FILTER_STATE(k)%", FilterStateForm::Typed),
            ("%FILTER_STATE(k:TYPED)%", FilterStateForm::Typed),
            ("%FILTER_STATE(k:PLAIN)%", FilterStateForm::Plain),
            ("%FILTER_STATE(k:FIELD:f)%", FilterStateForm::Field("f".into())),
        ] {
            assert_eq!(only(text).0, Operator::FilterState { key: "k".into(), form });
        }
    }

    #[test]
    fn each_mistake_is_explained() {
        for (text, expected) in [
            ("100%", "\"100%\" has no valid command at position 3"),
            ("%REQ(a)%%", "\"%REQ(a)%%\" has no valid command at position 8"),
            ("%RESPONSE_FLAGS%x%y%", "\"%RESPONSE_FLAGS%x%y%\" has no valid command at position 17"),
            ("%req(a)%", "\"%req(a)%\" has no valid command at position 0"),
            ("%REQ%", "REQ requires parameters"),
            ("%REQ()%", "REQ requires parameters"),
            ("%REQ(a?b?c)%", "REQ(a?b?c) names more than one alternative header"),
            ("%REQ( :METHOD)%", "\" :METHOD\" is not a valid header name"),
            ("%NOPE%", "the operator NOPE is not supported"),
            ("%PROTOCOL(x)%", "PROTOCOL takes no parameters and no length"),
            ("%DURATION:2%", "DURATION takes no parameters and no length"),
            ("%START_TIME:4%", "START_TIME takes no length"),
            ("%GRPC_STATUS(foo)%", "GRPC_STATUS(foo) is not known, expected CAMEL_STRING, SNAKE_STRING or NUMBER"),
            ("%METADATA(X:a)%", "METADATA(X:a): \"X\" is not a known type of metadata"),
            (
                "%FILTER_STATE(k:JSON)%",
                "FILTER_STATE(k:JSON): \"JSON\" is not known, expected PLAIN, TYPED or FIELD:name",
            ),
            ("%ENVIRONMENT(HOME)%", "the operator ENVIRONMENT is not supported here"),
        ] {
            assert_eq!(parse(text).unwrap_err(), expected);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_compiled_or_refused(text in "(%|REQ|\\(|\\)|:|[A-Z]|[0-9]|\\PC){0,40}") {
            let _ = parse(&text);
        }
    }
}
