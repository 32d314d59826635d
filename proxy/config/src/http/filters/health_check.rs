//! Answering health checks (`envoy.extensions.filters.http.health_check.v3`).
//!
//! Owns which requests are health checks and what they depend on. Never answers one.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::extensions::filters::http::health_check::v3 as pb;

use super::fault::header_matchers;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::route::HeaderMatcher;
use crate::wire;

/// Source: `envoy.extensions.filters.http.health_check.v3.HealthCheck`.
#[derive(Clone, Debug)]
pub struct HealthCheck {
    /// Requests with all of these are health checks.
    pub headers: Vec<HeaderMatcher>,
    /// Who answers.
    pub mode: HealthCheckMode,
}

/// Who answers health checks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HealthCheckMode {
    /// The upstream; what it says counts for so long, if given.
    PassThrough { cache_time: Option<Duration> },
    /// The proxy: well as long as so many whole percent of the endpoints of these clusters are. By name.
    Answer { clusters: Vec<(Arc<str>, u8)> },
}

impl HealthCheck {
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::HealthCheck) -> Parsed<Self> {
        decide!(wire, at, pb::HealthCheck as "envoy.extensions.filters.http.health_check.v3.HealthCheck" {
            implemented: pass_through_mode, cache_time, cluster_min_healthy_percentages, headers;
            no_effect: ;
            unsupported: ;
        });
        let cache_at = at.field("cache_time");
        let clusters_at = at.field("cluster_min_healthy_percentages");
        let cache_time = wire::limit(&cache_at, cache_time, None)?;
        let mode = match pass_through_mode {
            None => return Err(at.field("pass_through_mode").reject("is required")),
            // Envoy accepts percentages here, too, and never looks at them.
            Some(flag) if flag.value => HealthCheckMode::PassThrough { cache_time },
            Some(_) if cache_time.is_some() => {
                return Err(cache_at.reject("must not be set without pass-through mode"));
            }
            Some(_) => {
                let mut clusters = Vec::with_capacity(cluster_min_healthy_percentages.len());
                for (name, wire) in cluster_min_healthy_percentages {
                    let percent = wire::percent(&clusters_at.key(&name), wire)?;
                    // Within 0 to 100, and what is behind the point does not count.
                    clusters.push((name.into(), percent.value() as u8));
                }
                clusters.sort_unstable();
                HealthCheckMode::Answer { clusters }
            }
        };
        Ok(Self { headers: header_matchers(&at.field("headers"), headers)?, mode })
    }
}

#[cfg(test)]
mod tests {
    use outrigger_api::pb::envoy::r#type::v3::Percent;
    use outrigger_api::pb::google::protobuf::{BoolValue, Duration as WireDuration};

    use super::*;

    fn read(pass: Option<bool>, cache: Option<i64>, clusters: &[(&str, f64)]) -> Result<HealthCheckMode, String> {
        let wire = pb::HealthCheck {
            pass_through_mode: pass.map(|value| BoolValue { value }),
            cache_time: cache.map(|seconds| WireDuration { seconds, nanos: 0 }),
            cluster_min_healthy_percentages: clusters
                .iter()
                .map(|(name, value)| ((*name).to_owned(), Percent { value: *value }))
                .collect(),
            headers: Vec::new(),
        };
        let read = HealthCheck::parse(&FieldPath::resource("listener", "l"), wire);
        read.map(|check| check.mode).map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn each_mode_has_its_own_fields() {
        let second = Duration::from_secs(1);
        assert_eq!(read(Some(true), Some(1), &[]), Ok(HealthCheckMode::PassThrough { cache_time: Some(second) }));
        assert_eq!(read(Some(true), Some(0), &[]), Ok(HealthCheckMode::PassThrough { cache_time: None }));
        let clusters = vec![("a".into(), 12), ("b".into(), 100)];
        assert_eq!(read(Some(false), None, &[("b", 100.0), ("a", 12.9)]), Ok(HealthCheckMode::Answer { clusters }));
        for (pass, cache, clusters, expected) in [
            (None, None, &[][..], "pass_through_mode: is required"),
            (Some(false), Some(1), &[], "cache_time: must not be set without pass-through mode"),
            (
                Some(false),
                None,
                &[("a", 101.0)],
                "cluster_min_healthy_percentages[\"a\"].value: 101 is not within 0 to 100",
            ),
        ] {
            assert_eq!(read(pass, cache, clusters), Err(format!("listener \"l\": {expected}")));
        }
    }
}
