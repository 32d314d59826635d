//! The set filter state filter: leaves objects for whoever asks by their names.
//!
//! Owns the order of levels. What is left stands in the settings.

use std::sync::Arc;

use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{FilterStateEntry, SetFilterState as Settings};

use super::{Exchange, HttpFilter, Verdict};
use crate::accesslog::format;

/// The filter.
pub struct SetFilterState {
    settings: Arc<Settings>,
}

impl SetFilterState {
    /// A filter.
    pub fn new(settings: &Arc<Settings>) -> Self {
        Self { settings: Arc::clone(settings) }
    }
}

impl HttpFilter for SetFilterState {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        set(&self.settings, exchange);
        let mut reroute = self.settings.clear_route_cache;
        let of_route = exchange.route_configs().filter_map(|config| match config {
            RouteFilterConfig::SetFilterState(settings) => Some(settings),
            _ => None,
        });
        let levels: Vec<_> = of_route.collect();
        // The most specific level has the last word.
        for settings in levels.into_iter().rev() {
            set(settings, exchange);
            reroute |= settings.clear_route_cache;
        }
        if reroute {
            exchange.reroute();
        }
        Verdict::Continue
    }
}

fn set(settings: &Settings, exchange: &Exchange<'_, '_, '_>) {
    for entry in &settings.on_request {
        let FilterStateEntry { value, omit_empty_values, skip_if_empty, .. } = entry;
        let mut text = Vec::new();
        let write = if *omit_empty_values { format::write_header } else { format::write };
        write(value, &exchange.stream().facts(), &mut text);
        if *skip_if_empty && text.is_empty() {
            continue;
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        exchange.info().filter_state.borrow_mut().set(entry, text);
    }
}
