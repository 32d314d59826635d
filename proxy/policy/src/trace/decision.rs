//! Whether a request is traced, and why.
//!
//! Owns the order in which callers, clients and shares are asked, which is Envoy's, and how ids of requests carry the
//! answer. Random numbers come as arguments.

use outrigger_config::cel::Expression;
use outrigger_config::tracing::{RequestIdTracing, Sampler, Sampling};

use super::hex;
use crate::route::{RuntimeView, fraction_holds};

/// Why a request is traced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// It is not.
    NotTraceable,
    /// By lot.
    Sampling,
    /// A proxy or service asked for it (`x-envoy-force-trace`).
    ServiceForced,
    /// The client asked for it (`x-client-trace-id`).
    ClientForced,
}

impl Reason {
    /// Whether the request is traced.
    pub fn is_traced(self) -> bool {
        self != Reason::NotTraceable
    }

    /// The character of a request id (a version 4 UUID) that says so.
    fn digit(self) -> u8 {
        match self {
            Reason::NotTraceable => b'4',
            Reason::Sampling => b'9',
            Reason::ServiceForced => b'a',
            Reason::ClientForced => b'b',
        }
    }

    /// What a request id says.
    fn of_id(id: &[u8]) -> Self {
        if id.len() != ID_LENGTH {
            return Reason::NotTraceable;
        }
        match id[REASON_POSITION] {
            b'9' => Reason::Sampling,
            b'a' => Reason::ServiceForced,
            b'b' => Reason::ClientForced,
            _ => Reason::NotTraceable,
        }
    }
}

/// What the decision follows from.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// `x-request-id`.
    pub request_id: Option<&'a [u8]>,
    /// There is an `x-client-trace-id`.
    pub client_asks: bool,
    /// There is an `x-envoy-force-trace`, and whoever sent it may.
    pub service_asks: bool,
    /// Evenly distributed.
    pub random: u64,
}

/// The decision.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Decision {
    /// Whether and why.
    pub reason: Reason,
    /// What the request id must hold at [`Decision::POSITION`] to say so, if it does not yet.
    pub digit: Option<u8>,
}

impl Decision {
    /// Where a request id says whether the request is traced.
    pub const POSITION: usize = REASON_POSITION;
}

/// Decides on a request.
///
/// A decision that an earlier proxy left in the request id stands. Else the client is asked, then services, then the lot.
/// Whatever they say, the overall share limits it. The lot is drawn by the request id, so that all proxies on a request's
/// way decide the same.
pub fn decide(
    sampling: &Sampling,
    id: RequestIdTracing,
    facts: &RequestFacts<'_>,
    runtime: &dyn RuntimeView,
) -> Decision {
    if !id.decides {
        return Decision { reason: Reason::Sampling, digit: None };
    }
    let lot = facts.request_id.and_then(|id| hex::number(id.get(..8)?));
    let (Some(request_id), Some(lot)) = (facts.request_id, lot) else {
        return Decision { reason: Reason::NotTraceable, digit: None };
    };
    let lot = lot % 10_000;
    let before = Reason::of_id(request_id);
    let mut reason = before;
    if !before.is_traced() {
        if facts.client_asks && fraction_holds(&sampling.client, facts.random, runtime) {
            reason = Reason::ClientForced;
        } else if facts.service_asks {
            reason = Reason::ServiceForced;
        } else if fraction_holds(&sampling.random, lot, runtime) {
            reason = Reason::Sampling;
        }
    }
    if reason.is_traced() && !fraction_holds(&sampling.overall, lot, runtime) {
        reason = Reason::NotTraceable;
    }
    let packs = id.pack_trace_reason && request_id.len() == ID_LENGTH && reason != before;
    Decision { reason, digit: packs.then(|| reason.digit()) }
}

/// Whether the span of a traced request is recorded by OpenTelemetry: as the sampler says if there is one, else as the
/// caller does. `holds` says whether an expression is true of the request.
pub fn is_sampled(
    sampler: Option<&Sampler>,
    caller: Option<bool>,
    trace_id: u128,
    holds: &dyn Fn(&Expression) -> bool,
) -> bool {
    match sampler {
        None => caller.unwrap_or(true),
        Some(Sampler::AlwaysOn) => true,
        // The first half of the id as a little-endian number: what Envoy decides, so that both decide alike.
        Some(Sampler::TraceIdRatio(share)) => share.holds(((trace_id >> 64) as u64).swap_bytes()),
        Some(Sampler::ParentBased(inner)) => match caller {
            Some(sampled) => sampled,
            None => is_sampled(Some(inner), None, trace_id, holds),
        },
        Some(Sampler::Expression(expression)) => holds(expression),
    }
}

/// Characters of a UUID.
const ID_LENGTH: usize = 36;
/// Where a UUID has its version.
const REASON_POSITION: usize = 14;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use outrigger_config::units::Fraction;

    use super::*;

    struct Runtime(HashMap<&'static str, Fraction>);

    impl RuntimeView for Runtime {
        fn fraction(&self, key: &str) -> Option<Fraction> {
            self.0.get(key).copied()
        }
    }

    fn percent(share: u32) -> Fraction {
        Fraction::new(share, 100).unwrap()
    }

    fn sampling(client: u32, random: u32, overall: u32) -> Sampling {
        Sampling::new(percent(client), percent(random), percent(overall))
    }

    /// The first eight digits are 5000 (0x1388) in decimal, so the lot is 5000 of 10000.
    const ID: &[u8] = b"00001388-554f-4600-89ed-b47e695b9dc5";

    fn facts(request_id: &[u8]) -> RequestFacts<'_> {
        RequestFacts { request_id: Some(request_id), client_asks: false, service_asks: false, random: 7 }
    }

    fn decided(sampling: &Sampling, facts: &RequestFacts<'_>) -> Decision {
        decide(sampling, RequestIdTracing::default(), facts, &Runtime(HashMap::new()))
    }

    #[test]
    fn the_order_is_id_client_service_lot_and_the_overall_share_limits_all() {
        let all = sampling(100, 100, 100);
        let asks = RequestFacts { client_asks: true, service_asks: true, ..facts(ID) };
        let expected = |reason, digit| Decision { reason, digit };
        assert_eq!(decided(&all, &asks), expected(Reason::ClientForced, Some(b'b')));
        assert_eq!(decided(&sampling(0, 100, 100), &asks), expected(Reason::ServiceForced, Some(b'a')));
        assert_eq!(decided(&all, &facts(ID)), expected(Reason::Sampling, Some(b'9')));
        assert_eq!(decided(&sampling(100, 0, 100), &facts(ID)), expected(Reason::NotTraceable, None));
        let forced = b"00001388-554f-a600-89ed-b47e695b9dc5";
        // What an earlier proxy decided stands, even where nothing would be sampled.
        assert_eq!(decided(&sampling(0, 0, 100), &facts(forced)), expected(Reason::ServiceForced, None));
        assert_eq!(decided(&sampling(0, 0, 0), &facts(forced)), expected(Reason::NotTraceable, Some(b'4')));
        assert_eq!(decided(&sampling(100, 100, 0), &asks), expected(Reason::NotTraceable, None));
    }

    #[test]
    fn the_lot_is_the_request_ids() {
        let share = |numerator| Sampling::new(percent(100), Fraction::new(numerator, 10_000).unwrap(), percent(100));
        assert!(!decided(&share(5_000), &facts(ID)).reason.is_traced());
        assert!(decided(&share(5_001), &facts(ID)).reason.is_traced());
        for id in [&b"short"[..], b"zzzzzzzz-554f-4600-89ed-b47e695b9dc5"] {
            assert!(!decided(&share(10_000), &facts(id)).reason.is_traced());
        }
        // Whatever begins with eight digits is good enough to draw lots, and only UUIDs are marked.
        assert_eq!(decided(&share(10_000), &facts(b"00001388")).digit, None);
        let nothing = RequestFacts { request_id: None, client_asks: true, service_asks: true, random: 0 };
        assert!(!decided(&share(10_000), &nothing).reason.is_traced());
    }

    #[test]
    fn runtime_values_replace_shares() {
        let runtime = Runtime(HashMap::from([("tracing.random_sampling", percent(0))]));
        let all = sampling(100, 100, 100);
        let decision = decide(&all, RequestIdTracing::default(), &facts(ID), &runtime);
        assert_eq!(decision.reason, Reason::NotTraceable);
        let runtime = Runtime(HashMap::from([("tracing.global_enabled", percent(0))]));
        let asks = RequestFacts { client_asks: true, ..facts(ID) };
        assert_eq!(decide(&all, RequestIdTracing::default(), &asks, &runtime).reason, Reason::NotTraceable);
    }

    #[test]
    fn ids_can_be_left_alone() {
        let none = sampling(0, 0, 0);
        let free = RequestIdTracing { pack_trace_reason: true, decides: false };
        let decision = decide(&none, free, &facts(ID), &Runtime(HashMap::new()));
        assert_eq!(decision, Decision { reason: Reason::Sampling, digit: None });
        let unmarked = RequestIdTracing { pack_trace_reason: false, decides: true };
        let decision = decide(&sampling(100, 100, 100), unmarked, &facts(ID), &Runtime(HashMap::new()));
        assert_eq!(decision, Decision { reason: Reason::Sampling, digit: None });
    }

    #[test]
    fn samplers_decide_instead_of_shares() {
        let ratio = Sampler::TraceIdRatio(percent(2));
        let parent_based = Sampler::ParentBased(Box::new(ratio.clone()));
        // Envoy 1.40 samples 2 % of traces with the first of these ids and without the second.
        let (lucky, unlucky) = (0x0100_0000_0000_0000 << 64 | 0x24, 1 << 64 | 1);
        for (sampler, caller, trace_id, expected) in [
            (None, None, 0, true),
            (None, Some(false), 0, false),
            (Some(&Sampler::AlwaysOn), Some(false), 0, true),
            (Some(&ratio), Some(false), lucky, true),
            (Some(&ratio), Some(true), unlucky, false),
            (Some(&parent_based), Some(true), unlucky, true),
            (Some(&parent_based), Some(false), lucky, false),
            (Some(&parent_based), None, lucky, true),
            (Some(&parent_based), None, unlucky, false),
        ] {
            let sampled = is_sampled(sampler, caller, trace_id, &|_| false);
            assert_eq!(sampled, expected, "{sampler:?} {caller:?} {trace_id:x}");
        }
        let expression = Sampler::Expression(Expression::parse("request.path == '/a'").unwrap().into());
        let parent_based = Sampler::ParentBased(Box::new(expression.clone()));
        for (sampler, caller, holds, expected) in [
            (&expression, Some(false), true, true),
            (&expression, Some(true), false, false),
            (&parent_based, Some(false), true, false),
            (&parent_based, None, true, true),
        ] {
            assert_eq!(is_sampled(Some(sampler), caller, 1, &|_| holds), expected, "{sampler:?} {caller:?} {holds}");
        }
    }
}
