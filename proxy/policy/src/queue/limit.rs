//! How many requests an endpoint takes at a time.
//!
//! Owns how that moves with the load of the cluster and the age of the endpoint. Never counts requests.

use outrigger_config::cluster::Concurrency;

/// What an endpoint's limit depends on besides the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Requests in flight or waiting in the cluster.
    pub in_cluster: u32,
    /// The part of its share that an endpoint in slow start gets; 1 for all others.
    pub part: f64,
}

/// The limit of an endpoint; `None` if there is none. `own` is what the endpoint says of itself.
///
/// Never below 1 unless 0 was asked for: an endpoint that takes nothing at all would never get out of slow start.
pub fn endpoint_limit(options: &Concurrency, own: Option<u32>, load: Load) -> Option<u32> {
    let most = own.or(options.max_requests)?;
    let mut limit = most;
    if let Some((least, full_load)) = options.moving
        && load.in_cluster < full_load
    {
        let share = u64::from(most) * u64::from(load.in_cluster) / u64::from(full_load.max(1));
        limit = u32::try_from(share).unwrap_or(most).clamp(least.min(most), most);
    }
    if options.slow_start && load.part < 1.0 {
        limit = (f64::from(limit) * load.part) as u32;
    }
    Some(limit.max(most.min(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Load = Load { in_cluster: 0, part: 1.0 };

    #[test]
    fn an_endpoint_says_more_than_its_cluster() {
        let options = Concurrency { max_requests: Some(10), ..Concurrency::default() };
        assert_eq!(endpoint_limit(&options, None, IDLE), Some(10));
        assert_eq!(endpoint_limit(&options, Some(3), IDLE), Some(3));
        assert_eq!(endpoint_limit(&options, Some(0), IDLE), Some(0));
        assert_eq!(endpoint_limit(&Concurrency::default(), None, IDLE), None);
    }

    #[test]
    fn a_moving_limit_follows_the_load_of_the_cluster() {
        let options = Concurrency { max_requests: Some(100), moving: Some((10, 1000)), ..Concurrency::default() };
        let at = |in_cluster| endpoint_limit(&options, None, Load { in_cluster, part: 1.0 });
        assert_eq!([0, 50, 100, 500, 999, 1000, 5000].map(at), [10, 10, 10, 50, 99, 100, 100].map(Some));
    }

    #[test]
    fn slow_start_holds_back_but_never_shuts_out() {
        let options = Concurrency { max_requests: Some(20), slow_start: true, ..Concurrency::default() };
        let at = |part| endpoint_limit(&options, None, Load { in_cluster: 0, part });
        assert_eq!([0.0, 0.1, 0.5, 1.0].map(at), [1, 2, 10, 20].map(Some));
        assert_eq!(endpoint_limit(&options, Some(0), Load { in_cluster: 0, part: 0.5 }), Some(0));
    }
}
