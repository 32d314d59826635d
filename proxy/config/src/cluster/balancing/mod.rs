//! How endpoints are chosen, as a cluster says it.
//!
//! Owns the checked model of policies and of what surrounds them: localities, subsets, slow start. Reading it is in
//! files of its own: `read` for the fields of the cluster, `extension` for `load_balancing_policy`, and one for each
//! thing that both can say. Never chooses an endpoint (see `outrigger-policy`).

mod consistent;
mod extension;
mod locality;
mod metadata;
mod override_host;
mod peak_ewma;
mod read;
mod reported;
mod slow_start;
mod subset;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use crate::route::HashPolicy;
use crate::units::Percent;

pub(crate) use metadata::lb_metadata;
pub use metadata::{LbMetadata, LbValue};
pub(in crate::cluster) use override_host::metadata_path;
pub use override_host::{MetadataPath, OverrideHosts, OverrideSource, OverrideStatus};
pub use peak_ewma::PeakEwma;
pub(super) use read::{BalancingFields, ReadBalancing, balancing};
pub(super) use reported::metric;
pub use reported::{OutOfBand, ReportOptions, ReportedMetric};
pub use subset::{Fallback, SelectorFallback, SubsetOptions, SubsetSelector};

/// How an endpoint is chosen among its like. Source: `lb_policy` or `load_balancing_policy`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LoadBalancing {
    /// Weighted, smooth.
    RoundRobin,
    /// The better of `choice_count` random ones by active requests; the best of all for `u32::MAX`.
    LeastRequest { choice_count: u32, active_request_bias: f64 },
    /// The one of lowest cost among some random ones, by latency and active requests.
    PeakEwma(PeakEwma),
    /// Weighted, smooth; endpoints say their weights themselves ([`BalancingOptions::reports`]).
    Reported,
    /// Random, whatever the weights.
    Random,
    /// The first that is fit, in the order of discovery or, shuffled, in an order of this process.
    PickFirst { shuffle: bool },
    /// By the request's hash, on a ring that holds each endpoint many times. Sizes are 1 to 8,388,608 places.
    RingHash { function: HashFunction, minimum_size: u32, maximum_size: u32, consistent: Consistent },
    /// By the request's hash, in a table whose size is a prime number up to 5,000,011.
    Maglev { table_size: u32, consistent: Consistent },
    /// The cluster type brings its own (original destination).
    ClusterProvided,
}

/// What places endpoints on a ring. Source: `RingHashLbConfig.HashFunction`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum HashFunction {
    /// XXH64.
    #[default]
    XxHash,
    /// MurmurHash64A, as the GNU C++ library hashes strings.
    MurmurHash2,
}

/// Source: `ConsistentHashingLbConfig`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Consistent {
    /// Endpoints are placed by their host name instead of their address.
    pub use_hostname: bool,
    /// In percent of the average load, 100 or more: an endpoint with more than that is passed over.
    pub balance_factor: Option<u32>,
}

/// What a cluster says about balancing beside the policy itself.
#[derive(Clone, Debug, Default)]
pub struct BalancingOptions {
    /// Whether it matters where endpoints are.
    pub locality: LocalityBalancing,
    /// New endpoints get their share little by little.
    pub slow_start: Option<SlowStart>,
    /// Requests may ask for a part of the endpoints.
    pub subsets: Option<Arc<SubsetOptions>>,
    /// Only so many endpoints are used, which differ from process to process; above zero.
    pub subset_size: Option<u32>,
    /// Requests may name endpoints, which the policy then does not choose.
    pub override_hosts: Option<Arc<OverrideHosts>>,
    /// How fit an endpoint must be that a request or a filter names.
    pub override_status: OverrideStatus,
    /// How endpoints say their weights, for [`LoadBalancing::Reported`].
    pub reports: Option<Arc<ReportOptions>>,
    /// What requests are hashed by instead of what their route says; empty to leave it to the route.
    pub hash_policy: Arc<[HashPolicy]>,
    /// Endpoints are left out until their first health check, if there are health checks.
    pub ignore_new_hosts_until_first_check: bool,
    /// When endpoints come or go, no connection to any of them takes further requests.
    pub close_connections_on_change: bool,
}

/// Source: `locality_config_specifier` of `CommonLbConfig` or `LocalityLbConfig`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LocalityBalancing {
    /// All localities of a priority are one, unless the bootstrap names a local cluster: then as [`ZoneAware`] is by
    /// default.
    #[default]
    Ignored,
    /// First a locality by its weight, then an endpoint.
    Weighted,
    /// The own zone is preferred.
    ZoneAware(ZoneAware),
}

/// Source: `ZoneAwareLbConfig`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ZoneAware {
    /// Share of requests that are routed by zone; 100 % unless given.
    pub routing_enabled: Percent,
    /// Smaller clusters are not routed by zone; 6 unless given.
    pub min_cluster_size: u64,
    /// In panic there is no endpoint instead of any.
    pub fail_traffic_on_panic: bool,
    /// All goes to the own zone if it has at least so many endpoints.
    pub force_local_zone: Option<u32>,
    /// Zones are compared by the weight of their endpoints instead of their number.
    pub by_weight: bool,
}

impl Default for ZoneAware {
    fn default() -> Self {
        Self {
            routing_enabled: Percent::ALL,
            min_cluster_size: 6,
            fail_traffic_on_panic: false,
            force_local_zone: None,
            by_weight: false,
        }
    }
}

/// Source: `SlowStartConfig`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// From an endpoint's beginning to its full share; above zero.
    pub window: Duration,
    /// The share is the part of the window that is over, to the power of 1 / this; above zero, 1 unless given.
    pub aggression: f64,
    /// The least share; 10 % unless given.
    pub min_weight: Percent,
}
