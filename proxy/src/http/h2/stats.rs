//! Stats of the HTTP/2 codec (`http2.*` of all downstream connections, `cluster.<name>.http2.*`).
//!
//! Owns the metrics' names. Never decides when they change.

use super::guard::Flood;
use crate::scope;

scope! {
    /// One worker's share of the codec's stats.
    pub struct Http2Stats {
        goaway_sent: Counter,
        header_list_size_too_large: Counter,
        header_overflow: Counter,
        inbound_empty_frames_flood: Counter,
        inbound_priority_frames_flood: Counter,
        inbound_window_update_frames_flood: Counter,
        keepalive_timeout: Counter,
        outbound_control_flood: Counter,
        outbound_flood: Counter,
        rx_messaging_error: Counter,
        rx_reset: Counter,
        stream_refused_errors: Counter,
        tx_reset: Counter,
    }
}

impl Http2Stats {
    /// Counts a connection that ends for it.
    pub fn count_flood(&self, flood: Flood) {
        let counter = match flood {
            Flood::EmptyFrames => &self.inbound_empty_frames_flood,
            Flood::Priorities => &self.inbound_priority_frames_flood,
            Flood::WindowUpdates => &self.inbound_window_update_frames_flood,
            Flood::Control => &self.outbound_control_flood,
            Flood::Waiting => &self.outbound_flood,
        };
        counter.increment();
    }
}
