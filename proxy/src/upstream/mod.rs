//! Upstream: endpoints, pools of connections, and the ways to connect.

pub mod admission;
pub mod aggregate;
pub mod call;
pub mod call_metadata;
pub mod choice_stats;
pub mod clusters;
pub mod connect;
pub mod dial;
pub mod dns;
pub mod dns_cache;
pub mod feedback;
pub mod gate;
pub mod grpc_message;
pub mod grpc_stream;
pub mod h1;
pub mod h2;
pub mod host;
pub mod key;
pub mod pool;
pub mod proxy_header;
pub mod repeated_call;
pub mod stats;
pub mod stream;
pub mod vacancy;
