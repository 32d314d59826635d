//! Telling upstreams of a trace.
//!
//! Owns which headers are written. Never reads them.

use outrigger_policy::trace::{Format, Identity, b3, w3c};

use crate::http::headers::Headers;
use crate::http::manager::request::Request;
use crate::http::message::RequestHead;

/// Writes the identity of a span. `continued` says that the trace was there before us.
pub(super) fn inject(identity: &Identity, continued: bool, headers: &mut Headers) {
    match identity.format {
        Format::W3c => {
            traceparent(identity, headers);
            // A state without its parent belongs to no trace (W3C Trace Context section 3.3).
            if !continued {
                headers.remove_by_name(TRACESTATE);
            }
        }
        Format::B3Single { w3c } => {
            let context =
                b3::Context { trace_id: identity.trace_id, span_id: identity.span_id, parent_id: identity.parent_id };
            let single = b3::Single { context: Some(context), sampled: Some(identity.sampled) };
            headers.set_by_name(B3, &single.to_text());
            if w3c {
                traceparent(identity, headers);
            }
        }
        Format::B3Several { w3c } => {
            headers.set_by_name(B3_TRACE_ID, &b3::trace_id_text(identity.trace_id));
            headers.set_by_name(B3_SPAN_ID, &b3::id_text(identity.span_id));
            if let Some(parent) = identity.parent_id {
                headers.set_by_name(B3_PARENT_ID, &b3::id_text(parent));
            }
            headers.set_by_name(B3_SAMPLED, if identity.sampled { b"1" } else { b"0" });
            if w3c {
                traceparent(identity, headers);
            }
        }
    }
}

fn traceparent(identity: &Identity, headers: &mut Headers) {
    let Identity { trace_id, span_id, sampled, .. } = *identity;
    headers.set_by_name(TRACEPARENT, &w3c::Traceparent { trace_id, parent_id: span_id, sampled }.to_text());
}

/// Tells whoever gets a copy of a request of its trace; as one that is not recorded unless `sampled`.
pub fn for_copy(request: &Request<'_>, head: &mut RequestHead, sampled: bool) {
    let Some(identity) = request.trace.as_ref().and_then(|trace| trace.identity.as_ref()) else { return };
    let silent = request.connection.node.config.tracing.as_ref().is_none_or(|tracing| tracing.no_context_propagation);
    if !silent {
        let told = Identity { sampled: identity.sampled && sampled, ..*identity };
        inject(&told, identity.remote_parent, &mut head.headers);
    }
}

/// Of W3C Trace Context.
pub(super) const TRACEPARENT: &str = "traceparent";
/// Of W3C Trace Context.
pub(super) const TRACESTATE: &str = "tracestate";
/// Of B3.
pub(super) const B3: &str = "b3";
/// Of B3.
pub(super) const B3_TRACE_ID: &str = "x-b3-traceid";
/// Of B3.
pub(super) const B3_SPAN_ID: &str = "x-b3-spanid";
/// Of B3.
pub(super) const B3_PARENT_ID: &str = "x-b3-parentspanid";
/// Of B3.
pub(super) const B3_SAMPLED: &str = "x-b3-sampled";

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(format: Format) -> Identity {
        Identity { trace_id: 0xaa, span_id: 0xbb, parent_id: Some(0xcc), remote_parent: true, sampled: true, format }
    }

    fn injected(format: Format, continued: bool) -> Vec<String> {
        let mut headers = Headers::default();
        headers.append(b"tracestate", b"a=b");
        headers.append(b"baggage", b"k=v");
        inject(&identity(format), continued, &mut headers);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        headers.iter().map(|(_, name, value)| format!("{}: {}", text(name), text(value))).collect()
    }

    #[test]
    fn each_format_writes_its_own_headers_and_leaves_baggage_alone() {
        let parent = "traceparent: 00-000000000000000000000000000000aa-00000000000000bb-01";
        assert_eq!(injected(Format::W3c, true), ["tracestate: a=b", "baggage: k=v", parent]);
        assert_eq!(injected(Format::W3c, false), ["baggage: k=v", parent]);
        let single = "b3: 00000000000000aa-00000000000000bb-1-00000000000000cc";
        assert_eq!(injected(Format::B3Single { w3c: false }, true), ["tracestate: a=b", "baggage: k=v", single]);
        let several = injected(Format::B3Several { w3c: true }, true);
        assert_eq!(
            several[2..],
            [
                "x-b3-traceid: 00000000000000aa",
                "x-b3-spanid: 00000000000000bb",
                "x-b3-parentspanid: 00000000000000cc",
                "x-b3-sampled: 1",
                parent
            ]
        );
    }
}
