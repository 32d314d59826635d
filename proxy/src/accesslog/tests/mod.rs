//! Tests of what a log shows, file sinks and log services.

mod files;
mod lines;
mod services;

/// Loggers are part of the graph, which all threads share.
#[test]
fn loggers_and_their_manager_are_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<super::AccessLogger>();
    shared::<super::AccessLogManager>();
}
