//! Parameters of command operators.
//!
//! Owns their syntax, operator by operator. Never evaluates anything.

use std::sync::Arc;

use super::parse::Command;
use super::{AddressPart, FilterStateForm, Operator, Original, Precision, ServerNameOrder, TimePoint};
use crate::rejection::{FieldPath, Parsed};

impl Command<'_> {
    /// One of the address operators; `None` if it is something else.
    pub(super) fn address(&self, at: &FieldPath<'_>) -> Parsed<Option<Operator>> {
        type Make = fn(AddressPart) -> Operator;
        let sides: [(&str, Make); 6] = [
            ("UPSTREAM_LOCAL_", Operator::UpstreamLocalAddress),
            ("UPSTREAM_REMOTE_", Operator::UpstreamRemoteAddress),
            ("DOWNSTREAM_REMOTE_", Operator::DownstreamRemoteAddress),
            ("DOWNSTREAM_DIRECT_REMOTE_", Operator::DownstreamDirectRemoteAddress),
            ("DOWNSTREAM_LOCAL_", Operator::DownstreamLocalAddress),
            ("DOWNSTREAM_DIRECT_LOCAL_", Operator::DownstreamDirectLocalAddress),
        ];
        for (side, operator) in sides {
            let Some(part) = self.name.strip_prefix(side) else { continue };
            let part = match (part, self.parameters) {
                ("ADDRESS", None) => AddressPart::Full,
                ("PORT", None) => AddressPart::Port,
                ("ADDRESS_WITHOUT_PORT", None | Some("")) => AddressPart::WithoutPort,
                ("ADDRESS_WITHOUT_PORT", Some(length)) => match length.parse() {
                    Ok(length @ 0..=128) => AddressPart::Masked(length),
                    _ => return Err(at.reject(format!("{}({length}): expected 0 to 128 bits", self.name))),
                },
                ("ADDRESS" | "PORT", Some(_)) => return Err(self.takes_nothing(at)),
                _ => continue,
            };
            if self.max_bytes.is_some() {
                return Err(self.takes_nothing(at));
            }
            return Ok(Some(operator(part)));
        }
        Ok(None)
    }

    fn takes_nothing(&self, at: &FieldPath<'_>) -> crate::rejection::Rejection {
        at.reject(format!("{} takes no parameters and no length", self.name))
    }

    /// Whether query parameters are decoded.
    pub(super) fn query_form(&self, at: &FieldPath<'_>) -> Parsed<bool> {
        match self.parameters.unwrap_or_default() {
            "" | "ORIG" => Ok(false),
            "DECODED" => Ok(true),
            other => Err(at.reject(format!("QUERY_PARAMS({other}) is not known, expected ORIG or DECODED"))),
        }
    }

    /// `PATH(X:Y)`.
    pub(super) fn path(&self, at: &FieldPath<'_>) -> Parsed<Operator> {
        let (form, source) = self.pair();
        let query = match form {
            "" | "WQ" => true,
            "NQ" => false,
            other => return Err(at.reject(format!("PATH({other}) is not known, expected WQ or NQ"))),
        };
        Ok(Operator::Path { query, source: self.original(at, source, "PATH")? })
    }

    /// `REQUESTED_SERVER_NAME(X:Y)`.
    pub(super) fn server_name(&self, at: &FieldPath<'_>) -> Parsed<Operator> {
        let (order, source) = self.pair();
        let order = match order {
            "" | "SNI_ONLY" => ServerNameOrder::SniOnly,
            "SNI_FIRST" => ServerNameOrder::SniFirst,
            "HOST_FIRST" => ServerNameOrder::HostFirst,
            other => {
                let expected = "expected SNI_ONLY, SNI_FIRST or HOST_FIRST";
                return Err(at.reject(format!("REQUESTED_SERVER_NAME({other}) is not known, {expected}")));
            }
        };
        Ok(Operator::RequestedServerName { order, host: self.original(at, source, "HOST")? })
    }

    fn pair(&self) -> (&str, &str) {
        let parameters = self.parameters.unwrap_or_default();
        parameters.split_once(':').unwrap_or((parameters, ""))
    }

    fn original(&self, at: &FieldPath<'_>, source: &str, current: &str) -> Parsed<Original> {
        match source {
            "" => Ok(Original::First),
            "ORIG" => Ok(Original::Only),
            source if source == current => Ok(Original::Current),
            source if source.strip_prefix("ORIG_OR_") == Some(current) => Ok(Original::First),
            other => Err(at.reject(format!(
                "{}: {other:?} is not known, expected ORIG, {current} or ORIG_OR_{current}",
                self.name
            ))),
        }
    }

    /// `COMMON_DURATION(start:end:precision)`; milliseconds unless said.
    pub(super) fn common_duration(&self, at: &FieldPath<'_>) -> Parsed<Operator> {
        let parameters = self.required(at)?;
        let reject = |reason: &str| at.reject(format!("COMMON_DURATION({parameters}): {reason}"));
        let mut parts = parameters.split(':');
        let (Some(from), Some(to)) = (parts.next(), parts.next()) else {
            return Err(reject("expected start:end or start:end:precision"));
        };
        let precision = match parts.next() {
            None | Some("ms") => Precision::Milliseconds,
            Some("us") => Precision::Microseconds,
            Some("ns") => Precision::Nanoseconds,
            Some(other) => return Err(reject(&format!("{other:?} is not a precision, expected ms, us or ns"))),
        };
        if parts.next().is_some() {
            return Err(reject("expected start:end or start:end:precision"));
        }
        Ok(Operator::CommonDuration { from: time_point(from), to: time_point(to), precision })
    }

    /// `FILTER_STATE(key:form:field)`.
    pub(super) fn filter_state(&self, at: &FieldPath<'_>) -> Parsed<(Arc<str>, FilterStateForm)> {
        let parameters = self.required(at)?;
        let (key, form) = parameters.split_once(':').unwrap_or((parameters, "TYPED"));
        let form = match form.split_once(':').unwrap_or((form, "")) {
            ("TYPED", "") => FilterStateForm::Typed,
            ("PLAIN", "") => FilterStateForm::Plain,
            ("FIELD", field) if !field.is_empty() => FilterStateForm::Field(field.into()),
            _ => {
                let reason = "is not known, expected PLAIN, TYPED or FIELD:name";
                return Err(at.reject(format!("{}({parameters}): {form:?} {reason}", self.name)));
            }
        };
        Ok((key.into(), form))
    }

    /// `TIMER(name)`.
    pub(super) fn timer(&self, at: &FieldPath<'_>) -> Parsed<Operator> {
        let name = self.required(at)?;
        if !TIMERS.contains(&name) {
            let expected = TIMERS.join(", ");
            return Err(at.reject(format!("TIMER({name}) is not known, expected one of {expected}")));
        }
        Ok(Operator::Timer(name.into()))
    }
}

/// HAProxy's names.
const TIMERS: [&str; 8] = ["TR", "Tq", "Tw", "Tc", "Tr", "Td", "Ta", "Tt"];

/// `None` for the names of points that only custom filters set.
fn time_point(name: &str) -> Option<TimePoint> {
    Some(match name {
        "DS_RX_BEG" => TimePoint::RequestBegin,
        "DS_RX_END" => TimePoint::RequestEnd,
        "US_CX_BEG" => TimePoint::ConnectBegin,
        "US_CX_END" => TimePoint::ConnectEnd,
        "US_HS_END" => TimePoint::HandshakeEnd,
        "US_TX_BEG" => TimePoint::UpstreamTxBegin,
        "US_TX_END" => TimePoint::UpstreamTxEnd,
        "US_RX_BEG" => TimePoint::ResponseBegin,
        "US_RX_BODY_BEG" => TimePoint::ResponseBodyBegin,
        "US_RX_END" => TimePoint::ResponseEnd,
        "DS_TX_BEG" => TimePoint::DownstreamTxBegin,
        "DS_TX_END" => TimePoint::DownstreamTxEnd,
        "DS_CX_BEG" => TimePoint::ConnectionBegin,
        "DS_CX_END" => TimePoint::ConnectionEnd,
        _ => return None,
    })
}
