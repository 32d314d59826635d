//! Distributed tracing: whether a request is traced, and the headers by which proxies tell each other.
//!
//! Owns the decision ([`decide`]) and the forms of contexts ([`w3c`], [`b3`]). Never makes spans.

pub mod b3;
mod decision;
mod hex;
mod identity;
mod tail;
pub mod w3c;

pub use decision::{Decision, Reason, RequestFacts, decide, is_sampled};
pub use identity::{Caller, Format, Identity, Seeds, begin_otlp, begin_zipkin, child};
pub use tail::{Ended, Kept, worth_keeping};
