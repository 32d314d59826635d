//! Collecting whole requests (`envoy.extensions.filters.http.buffer.v3`).
//!
//! Owns the limit. Never collects a body.

use outrigger_api::pb::envoy::extensions::filters::http::buffer::v3 as pb;

use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};

/// Source: `envoy.extensions.filters.http.buffer.v3.Buffer`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Buffer {
    /// Longer requests are answered with 413; at least 1.
    pub max_request_bytes: u32,
}

impl Buffer {
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::Buffer) -> Parsed<Self> {
        decide!(wire, at, pb::Buffer as "envoy.extensions.filters.http.buffer.v3.Buffer" {
            implemented: max_request_bytes;
            no_effect: ;
            unsupported: ;
        });
        match max_request_bytes {
            Some(number) if number.value > 0 => Ok(Self { max_request_bytes: number.value }),
            Some(_) => Err(at.field("max_request_bytes").reject("0 must be above zero")),
            None => Err(at.field("max_request_bytes").reject("is required")),
        }
    }

    /// What a route says; `None` that requests are not collected.
    pub(super) fn parse_route(at: &FieldPath<'_>, wire: pb::BufferPerRoute) -> Parsed<Option<Self>> {
        use pb::buffer_per_route::Override;
        decide!(wire, at, pb::BufferPerRoute as "envoy.extensions.filters.http.buffer.v3.BufferPerRoute" {
            implemented: r#override;
            no_effect: ;
            unsupported: ;
        });
        match r#override {
            Some(Override::Disabled(true)) => Ok(None),
            Some(Override::Disabled(false)) => Err(at.field("disabled").reject("false is not allowed here")),
            Some(Override::Buffer(wire)) => Self::parse(&at.field("buffer"), wire).map(Some),
            None => Err(at.reject("needs one of disabled, buffer")),
        }
    }
}

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::protobuf::UInt32Value;

    use super::*;

    #[test]
    fn a_buffer_has_a_limit_and_a_route_says_something() {
        let root = FieldPath::resource("listener", "l");
        let buffer = |value| pb::Buffer { max_request_bytes: Some(UInt32Value { value }) };
        assert_eq!(Buffer::parse(&root, buffer(7)), Ok(Buffer { max_request_bytes: 7 }));
        assert!(Buffer::parse(&root, buffer(0)).is_err());
        assert!(Buffer::parse(&root, pb::Buffer::default()).is_err());
        use pb::buffer_per_route::Override;
        let route = |said| Buffer::parse_route(&root, pb::BufferPerRoute { r#override: said });
        assert_eq!(route(Some(Override::Disabled(true))), Ok(None));
        assert_eq!(route(Some(Override::Buffer(buffer(9)))), Ok(Some(Buffer { max_request_bytes: 9 })));
        assert!(route(Some(Override::Disabled(false))).is_err());
        assert!(route(None).is_err());
    }
}
