//! The set metadata filter: gives requests dynamic metadata.
//!
//! Owns the order of levels. What values there are stands in the settings.

use std::sync::Arc;

use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{MetadataValue, SetMetadata as Settings};
use outrigger_config::metadata;

use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::scope;
use crate::stream::StreamInfo;

scope! {
    /// Stats of the filter (`http.<prefix>.set_metadata.*`).
    pub struct SetMetadataStats {
        overwrite_denied: Counter,
    }
}

/// The filter.
pub struct SetMetadata {
    settings: Arc<Settings>,
    stats: Arc<SetMetadataStats>,
}

impl SetMetadata {
    /// A filter with its stats.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        Self { settings: Arc::clone(settings), stats: maker.stats("set_metadata") }
    }

    fn set(&self, values: &Settings, info: &StreamInfo) {
        for MetadataValue { namespace, allow_overwrite, value } in &values.0 {
            let mut all = info.dynamic_metadata.borrow_mut();
            match all.get_mut(&**namespace) {
                None => drop(all.insert(String::from(&**namespace), value.clone())),
                Some(known) if *allow_overwrite => metadata::merge(known, value),
                Some(_) => self.stats.overwrite_denied.increment(),
            }
        }
    }
}

impl HttpFilter for SetMetadata {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        self.set(&self.settings, exchange.info());
        let of_route = exchange.route_configs().find_map(|config| match config {
            RouteFilterConfig::SetMetadata(values) => Some(values),
            _ => None,
        });
        if let Some(values) = of_route {
            self.set(values, exchange.info());
        }
        Verdict::Continue
    }
}
