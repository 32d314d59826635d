//! The identity of a span: its ids, its parent's, and whether it is recorded.
//!
//! Owns how identities follow from what callers sent, for both kinds of providers. Random numbers come as arguments.

use outrigger_config::cel::Expression;
use outrigger_config::tracing::{OpenTelemetry, Zipkin};

use super::decision::is_sampled;
use super::{b3, w3c};

/// The identity of a span.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Identity {
    /// Of the trace.
    pub trace_id: u128,
    /// Of the span.
    pub span_id: u64,
    /// Of the parent.
    pub parent_id: Option<u64>,
    /// The parent is another process's.
    pub remote_parent: bool,
    /// The span is recorded.
    pub sampled: bool,
    /// How others are told.
    pub format: Format,
}

/// The headers that carry an identity.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// `traceparent` and `tracestate`.
    W3c,
    /// `b3`, and `traceparent` too if `w3c`.
    B3Single { w3c: bool },
    /// `x-b3-*`, and `traceparent` too if `w3c`.
    B3Several { w3c: bool },
}

/// What headers say of the caller.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller<'a> {
    /// `traceparent`.
    pub traceparent: Option<&'a [u8]>,
    /// `b3`.
    pub b3: Option<&'a [u8]>,
    /// `x-b3-traceid`.
    pub b3_trace_id: Option<&'a [u8]>,
    /// `x-b3-spanid`.
    pub b3_span_id: Option<&'a [u8]>,
    /// `x-b3-parentspanid`.
    pub b3_parent_id: Option<&'a [u8]>,
    /// `x-b3-sampled`.
    pub b3_sampled: Option<&'a [u8]>,
}

/// What new ids are made from.
#[derive(Clone, Copy, Debug)]
pub struct Seeds {
    /// Evenly distributed, and independent of each other.
    pub random: [u64; 3],
    /// Seconds since 1970.
    pub seconds: u64,
}

impl Seeds {
    /// Ids are not 0.
    fn id(&self, index: usize) -> u64 {
        self.random[index].max(1)
    }
}

/// The identity of an OpenTelemetry span; `None` where the caller's header is malformed: then there is no span, and the
/// header is passed on untouched. `holds` says whether an expression is true of the request.
pub fn begin_otlp(
    provider: &OpenTelemetry,
    traceparent: Option<&[u8]>,
    traced: bool,
    seeds: &Seeds,
    holds: &dyn Fn(&Expression) -> bool,
) -> Option<Identity> {
    let caller = match traceparent {
        Some(text) => Some(w3c::Traceparent::parse(text)?),
        None => None,
    };
    let trace_id = match caller {
        Some(caller) => caller.trace_id,
        None => u128::from(seeds.random[0]) << 64 | u128::from(seeds.id(1)),
    };
    let asked = caller.map(|caller| caller.sampled);
    let sampled = traced && is_sampled(provider.sampler.as_ref(), asked, trace_id, holds);
    Some(Identity {
        trace_id,
        span_id: seeds.id(2),
        parent_id: caller.map(|caller| caller.parent_id),
        remote_parent: caller.is_some(),
        sampled,
        format: Format::W3c,
    })
}

/// The identity of a Zipkin span; `None` where the caller's headers are malformed. `server` says that the span is
/// a server's: that of a proxy whose tries have spans of their own always is.
pub fn begin_zipkin(
    provider: &Zipkin,
    caller: &Caller<'_>,
    traced: bool,
    server: bool,
    seeds: &Seeds,
) -> Option<Identity> {
    let w3c = provider.w3c;
    let (context, sampled, format) = match caller.b3 {
        Some(text) => {
            let single = b3::Single::parse(text).ok()?;
            (single.context, single.sampled, Format::B3Single { w3c })
        }
        None => {
            let several = b3::from_several(caller.b3_trace_id, caller.b3_span_id, caller.b3_parent_id).ok()?;
            (several, caller.b3_sampled.map(b3::sampled), Format::B3Several { w3c })
        }
    };
    let traceparent = caller.traceparent.filter(|_| w3c && context.is_none() && caller.b3.is_none());
    let traceparent = traceparent.and_then(w3c::Traceparent::parse);
    let context = context.or(traceparent.map(|caller| b3::Context {
        trace_id: caller.trace_id,
        span_id: caller.parent_id,
        parent_id: None,
    }));
    let sampled = sampled.or(traceparent.map(|caller| caller.sampled)).unwrap_or(traced);
    Some(match context {
        Some(context) if server && provider.shared_span_context => Identity {
            trace_id: context.trace_id,
            span_id: context.span_id,
            parent_id: context.parent_id,
            remote_parent: true,
            sampled,
            format,
        },
        Some(context) => Identity {
            trace_id: context.trace_id,
            span_id: seeds.id(2),
            parent_id: Some(context.span_id),
            remote_parent: true,
            sampled,
            format,
        },
        None => {
            let (span_id, high) = new_zipkin_ids(provider, seeds);
            let trace_id = u128::from(high) << 64 | u128::from(span_id);
            Identity { trace_id, span_id, parent_id: None, remote_parent: false, sampled, format }
        }
    })
}

/// The id of the first span of a trace, which is the lower half of the trace's id too, and the upper half.
fn new_zipkin_ids(provider: &Zipkin, seeds: &Seeds) -> (u64, u64) {
    let dated = |number: u64| (seeds.seconds & 0xffff_ffff) << 32 | number & 0xffff_ffff;
    match (provider.trace_id_128bit, provider.timestamp_trace_ids) {
        (false, false) => (seeds.id(2), 0),
        (false, true) => (dated(seeds.id(2)), 0),
        (true, false) => (seeds.id(2), seeds.id(0)),
        (true, true) => (seeds.id(2), dated(seeds.random[0])),
    }
}

/// The identity of a span below `parent` in this process.
pub fn child(parent: &Identity, random: u64) -> Identity {
    Identity { span_id: random.max(1), parent_id: Some(parent.span_id), remote_parent: false, ..*parent }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_config::tracing::{HttpService, OtlpExporter, ZipkinEncoding};

    use super::*;

    const SEEDS: Seeds = Seeds { random: [0xa, 0xb, 0xc], seconds: 0x1234 };

    fn service() -> HttpService {
        HttpService {
            cluster: "c".into(),
            host: String::new(),
            path: "/".into(),
            timeout: Duration::from_secs(1),
            headers: Vec::new(),
        }
    }

    /// There is no expression.
    fn never(_: &Expression) -> bool {
        false
    }

    fn otlp() -> OpenTelemetry {
        OpenTelemetry {
            exporter: OtlpExporter::Http(service()),
            resource: Vec::new(),
            sdk_attributes: true,
            instrumentation_scope: true,
            sampler: None,
            tail: None,
            max_waiting: 1,
        }
    }

    fn zipkin(w3c: bool, shared_span_context: bool, trace_id_128bit: bool) -> Zipkin {
        Zipkin {
            collector: service(),
            encoding: ZipkinEncoding::Json,
            trace_id_128bit,
            shared_span_context,
            w3c,
            timestamp_trace_ids: false,
            own_hop: false,
        }
    }

    const PARENT: &[u8] = b"00-11111111111111111111111111111111-2222222222222222-01";

    #[test]
    fn opentelemetry_continues_traces_and_gives_up_on_malformed_ones() {
        let fresh = begin_otlp(&otlp(), None, true, &SEEDS, &never).unwrap();
        assert_eq!((fresh.trace_id, fresh.span_id, fresh.parent_id), (0xa << 64 | 0xb, 0xc, None));
        let next = begin_otlp(&otlp(), Some(PARENT), true, &SEEDS, &never).unwrap();
        assert_eq!((next.span_id, next.parent_id, next.sampled), (0xc, Some(0x2222222222222222), true));
        // Not sampled here, although the caller is.
        assert!(!begin_otlp(&otlp(), Some(PARENT), false, &SEEDS, &never).unwrap().sampled);
        assert_eq!(begin_otlp(&otlp(), Some(&PARENT[1..]), true, &SEEDS, &never), None);
    }

    #[test]
    fn zipkin_shares_the_span_of_its_client_unless_told_otherwise() {
        let b3 = Caller { b3: Some(b"00000000000000aa-00000000000000bb-1-00000000000000dd"), ..Caller::default() };
        let shared = begin_zipkin(&zipkin(false, true, false), &b3, false, true, &SEEDS).unwrap();
        assert_eq!((shared.trace_id, shared.span_id, shared.parent_id, shared.sampled), (0xaa, 0xbb, Some(0xdd), true));
        assert_eq!(shared.format, Format::B3Single { w3c: false });
        for own in [
            begin_zipkin(&zipkin(false, false, false), &b3, false, true, &SEEDS).unwrap(),
            begin_zipkin(&zipkin(false, true, false), &b3, false, false, &SEEDS).unwrap(),
        ] {
            assert_eq!((own.span_id, own.parent_id), (0xc, Some(0xbb)));
        }
        let several = Caller {
            b3_trace_id: Some(b"00000000000000aa"),
            b3_span_id: Some(b"00000000000000bb"),
            b3_sampled: Some(b"0"),
            ..Caller::default()
        };
        let several = begin_zipkin(&zipkin(true, true, false), &several, true, true, &SEEDS).unwrap();
        assert_eq!((several.sampled, several.format), (false, Format::B3Several { w3c: true }));
    }

    #[test]
    fn zipkin_begins_traces_and_looks_at_w3c_where_it_may() {
        let w3c = Caller { traceparent: Some(PARENT), ..Caller::default() };
        let new = begin_zipkin(&zipkin(false, true, true), &w3c, true, true, &SEEDS).unwrap();
        assert_eq!((new.trace_id, new.span_id, new.parent_id), (0xa << 64 | 0xc, 0xc, None));
        let next = begin_zipkin(&zipkin(true, false, true), &w3c, false, true, &SEEDS).unwrap();
        assert_eq!((next.parent_id, next.sampled), (Some(0x2222222222222222), true));
        let malformed = Caller { traceparent: Some(b"x"), ..Caller::default() };
        assert_eq!(begin_zipkin(&zipkin(true, true, false), &malformed, true, true, &SEEDS).unwrap().trace_id, 0xc);
        let malformed = Caller { b3: Some(b"zz"), ..Caller::default() };
        assert_eq!(begin_zipkin(&zipkin(true, true, false), &malformed, true, true, &SEEDS), None);
        let decision_only = Caller { b3: Some(b"0"), ..Caller::default() };
        let begun = begin_zipkin(&zipkin(false, true, false), &decision_only, true, true, &SEEDS).unwrap();
        assert_eq!((begun.parent_id, begun.sampled, begun.format), (None, false, Format::B3Single { w3c: false }));
    }

    #[test]
    fn trace_ids_may_tell_the_time() {
        let dated = |wide| Zipkin { timestamp_trace_ids: true, ..zipkin(false, true, wide) };
        let begin =
            |provider: &Zipkin| begin_zipkin(provider, &Caller::default(), true, true, &SEEDS).unwrap().trace_id;
        assert_eq!(begin(&dated(false)), 0x1234 << 32 | 0xc);
        assert_eq!(begin(&dated(true)), (0x1234 << 32 | 0xa) << 64 | 0xc);
    }

    #[test]
    fn children_stay_in_the_trace() {
        let parent = begin_otlp(&otlp(), Some(PARENT), true, &SEEDS, &never).unwrap();
        let child = child(&parent, 0);
        assert_eq!((child.trace_id, child.span_id, child.parent_id), (parent.trace_id, 1, Some(parent.span_id)));
        assert!(!child.remote_parent);
    }
}
