//! Access logs: what operators, filters and expressions say of requests and connections, beside Envoy, and what HAProxy's view
//! says of failures.

mod failures;
mod moments;
mod operators;
mod setup;
