//! Waiting for what is discovered on demand (`envoy.extensions.filters.http.on_demand.v3.OnDemand`).
//!
//! Owns the wait of a request that has no route, or whose route leads to a cluster that is not known. Never discovers
//! anything (see `graph::demands`).

use std::sync::Arc;

use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::OnDemand as Settings;
use outrigger_config::route::{ClusterChoice, RouteAction, WeightedCluster};

use super::{Exchange, HttpFilter, Verdict};
use crate::graph::Wanted;

/// The filter.
pub struct OnDemand {
    settings: Arc<Settings>,
}

impl OnDemand {
    /// A filter.
    pub fn new(settings: &Arc<Settings>) -> Self {
        Self { settings: Arc::clone(settings) }
    }

    fn wait_for_cluster(&self, exchange: &Exchange<'_, '_, '_>) -> Verdict {
        let said = match exchange.route_config() {
            Some(RouteFilterConfig::OnDemand(said)) => &said.clusters,
            _ => &self.settings.clusters,
        };
        let Some(clusters) = said else { return Verdict::Continue };
        if exchange.cluster().is_some() {
            return Verdict::Continue;
        }
        // A route that leads nowhere waits for nothing.
        let Some(name) = exchange.cluster_name().filter(|name| !name.is_empty()) else { return Verdict::Continue };
        let ask = |name: &str| {
            let wanted = Wanted::Cluster { from: Arc::clone(clusters), name: name.into() };
            exchange.worker().process.demands.ask(wanted)
        };
        let mut answers = vec![ask(&name)];
        // The route is chosen anew then, and may lead to another one.
        let others =
            weighted(exchange).filter(|other| *other != &*name && !exchange.graph().clusters.contains_key(*other));
        answers.extend(others.map(ask));
        let all = async move {
            for answer in answers {
                // Without an answer there is nothing to wait for either.
                let _ = answer.await;
            }
        };
        // Found or not, the request goes on: the router says that there is no such cluster.
        Verdict::wait(tokio::time::timeout(clusters.timeout, all), |_, _| Verdict::LookAgain)
    }
}

/// The names of the clusters among which the route chooses.
fn weighted<'a>(exchange: &'a Exchange<'_, '_, '_>) -> impl Iterator<Item = &'a str> {
    let clusters: &[WeightedCluster] = match exchange.chosen().map(|chosen| &chosen.route.action) {
        Some(RouteAction::Forward(forward)) => match &forward.cluster {
            ClusterChoice::Weighted(clusters) => clusters,
            ClusterChoice::Cluster(_) | ClusterChoice::Header(_) => &[],
        },
        _ => &[],
    };
    clusters.iter().filter(|cluster| cluster.name_header.is_none()).map(|cluster| &*cluster.name)
}

impl HttpFilter for OnDemand {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        if exchange.chosen().is_some() {
            return self.wait_for_cluster(exchange);
        }
        let Some(wanted) = exchange.connection().missing(exchange.graph(), exchange.head()) else {
            return Verdict::Continue;
        };
        let answer = exchange.worker().process.demands.ask(wanted);
        // Without an answer there is nothing to wait for either: the route configuration is gone.
        Verdict::wait(answer, |_, _| Verdict::LookAgain)
    }
}
