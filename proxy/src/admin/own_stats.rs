//! Stats that belong to the admin port: of its own requests, and those of the process that only it looks after.
//!
//! Owns the names.

use super::Admin;
use super::certs::{days_until_first_expires, first_staple_expires};
use crate::scope;

scope! {
    /// Facts that only the admin port looks after, written before stats are shown.
    pub struct AdminGauges {
        days_until_first_cert_expiring: Gauge,
        seconds_until_first_ocsp_response_expiring: Gauge,
        stats_recent_lookups: Gauge,
    }
}

scope! {
    /// Requests to the admin port.
    pub struct AdminHttpStats {
        downstream_cx_active: Gauge,
        downstream_cx_total: Counter,
        downstream_rq_total: Counter,
        downstream_rq_2xx: Counter,
        downstream_rq_3xx: Counter,
        downstream_rq_4xx: Counter,
        downstream_rq_5xx: Counter,
        downstream_rq_completed: Counter,
    }
}

scope! {
    /// Connections to the admin port.
    pub struct AdminListenerStats {
        downstream_cx_active: Gauge,
        downstream_cx_destroy: Counter,
        downstream_cx_total: Counter,
    }
}

impl AdminHttpStats {
    /// Counts an answer.
    pub fn response(&self, status: u16) {
        self.downstream_rq_completed.increment();
        match status / 100 {
            2 => self.downstream_rq_2xx.increment(),
            3 => self.downstream_rq_3xx.increment(),
            4 => self.downstream_rq_4xx.increment(),
            5 => self.downstream_rq_5xx.increment(),
            _ => {}
        }
    }
}

impl Admin {
    /// Brings stats that are not counted as things happen up to date.
    pub(super) fn refresh_stats(&self) {
        self.context.server.refresh_stats();
        self.context.configuration.refresh_stats();
        let days = days_until_first_expires(&self.context);
        // There is no table of names in which stats are looked up.
        self.gauges.stats_recent_lookups.set(0);
        self.gauges.days_until_first_cert_expiring.set(i64::try_from(days).unwrap_or(i64::MAX));
        let staple = first_staple_expires(&self.context);
        self.gauges.seconds_until_first_ocsp_response_expiring.set(i64::try_from(staple).unwrap_or(i64::MAX));
    }
}
