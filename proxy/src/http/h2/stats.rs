//! Stats of the HTTP/2 codec (`http2.*` of all downstream connections, `cluster.<name>.http2.*`).
//!
//! Owns the metrics' names. Never decides when they change.

use crate::scope;

scope! {
    /// One worker's share of the codec's stats.
    pub struct Http2Stats {
        goaway_sent: Counter,
        header_overflow: Counter,
        keepalive_timeout: Counter,
        rx_messaging_error: Counter,
        rx_reset: Counter,
        tx_reset: Counter,
    }
}
