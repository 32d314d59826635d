//! How old a downstream connection becomes.
//!
//! Owns which limits hold for which version of HTTP. Never ends a connection.

use std::time::Duration;

use super::HttpConnection;
use crate::jitter::lengthened;

impl HttpConnection {
    /// The age at which it is to end. Source: `HttpProtocolOptions.max_connection_duration`.
    pub(super) fn max_duration(&self) -> Option<Duration> {
        let config = &self.node.config;
        Some(lengthened(config.max_connection_duration?, config.max_connection_duration_jitter, self.info.id))
    }

    /// The age at which it is to end while it speaks HTTP/1 and no request is served: none where its end has to wait for a
    /// response. Source: `HttpConnectionManager.http1_safe_max_connection_duration`.
    pub(super) fn max_idle_duration(&self) -> Option<Duration> {
        self.max_duration().filter(|_| !self.node.config.http1_safe_max_connection_duration)
    }

    /// From the first GOAWAY to the end. Source: `HttpConnectionManager.drain_timeout`.
    pub(super) fn drain_timeout(&self) -> Duration {
        let config = &self.node.config;
        lengthened(config.drain_timeout, config.drain_timeout_jitter, self.info.id)
    }
}
