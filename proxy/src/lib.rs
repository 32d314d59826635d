//! outrigger: a service-mesh sidecar proxy configured by xDS.

pub mod accesslog;
pub mod admin;
pub mod bootstrap;
pub mod calendar;
pub mod cli;
pub mod graph;
pub mod health;
pub mod http;
pub mod istio;
pub mod jwks;
pub mod lifecycle;
pub mod listener;
pub mod load_report;
pub mod logging;
pub mod network;
pub mod overload;
pub mod process;
pub mod rbac;
pub mod sinks;
pub mod stats;
pub mod stream;
pub mod tcp;
pub mod tls;
pub mod trace;
pub mod upstream;
pub mod worker;
