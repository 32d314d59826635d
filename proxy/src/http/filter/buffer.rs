//! The buffer filter: requests go on when they are there as a whole.
//!
//! Owns the choice of the limit. Never reads a body (see `chain`).

use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::Buffer as Settings;

use super::{Exchange, HttpFilter, Verdict};

/// The filter.
pub struct Buffer {
    settings: Settings,
}

impl Buffer {
    /// A filter.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }
}

impl HttpFilter for Buffer {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let of_route = exchange.route_configs().find_map(|config| match config {
            RouteFilterConfig::Buffer(settings) => Some(*settings),
            _ => None,
        });
        match of_route.unwrap_or(Some(self.settings)) {
            Some(settings) if !exchange.has_no_body() => {
                Verdict::Collect { limit_bytes: settings.max_request_bytes as usize }
            }
            _ => Verdict::Continue,
        }
    }
}
