//! Distributed tracing: spans of requests, and where they go.
//!
//! Owns the way of a span: begun and ended on a worker as plain facts, handed over by a push into a buffer, written in the
//! form of its provider and sent by the control thread. A worker never waits for a collector, and a request that is not
//! recorded touches no buffer. Never decides whether a request is traced (see `outrigger_policy::trace`).

mod attempt;
mod call;
pub(crate) mod exemplar;
mod exporter;
mod headers;
mod manager;
pub(crate) mod otlp;
mod phases;
pub(crate) mod post;
mod request;
mod span;
mod stats;
mod tags;
mod tail;
mod zipkin;

pub use attempt::{Aside, answered, begin_attempt, end_aside, fail_attempt, retry_attempt, set_aside, take_up};
pub use call::{CallParent, CallSpan};
pub use headers::for_copy;
pub use manager::{Channels, TraceManager, Tracer};
pub use phases::{Opening, acquired, queued};
pub use request::{Mark, RequestTrace, begin, end, mark, response_head, set_cluster, set_route};
