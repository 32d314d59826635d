//! Counting gRPC calls and messages (`envoy.extensions.filters.http.grpc_stats.v3`).
//!
//! Owns which calls are told apart. Never counts one.

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::http::grpc_stats::v3 as pb;

use crate::decide::decide;

/// Source: `envoy.extensions.filters.http.grpc_stats.v3.FilterConfig`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GrpcStats {
    /// Message counts are left in the filter state.
    pub emit_filter_state: bool,
    /// Which calls have stats of their own.
    pub methods: GrpcMethods,
    /// The time that upstreams take is recorded.
    pub upstream_stats: bool,
    /// Dots in names of services become underscores.
    pub replace_dots: bool,
}

/// Which calls have stats of their own; all others share the cluster's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum GrpcMethods {
    /// All.
    All,
    /// These: `/service/method`, sorted.
    Listed(Vec<String>),
}

impl GrpcStats {
    pub(super) fn parse(wire: pb::FilterConfig) -> Self {
        decide!(wire, at, pb::FilterConfig as "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig" {
            implemented: emit_filter_state, enable_upstream_stats, replace_dots_in_grpc_service_name,
                per_method_stat_specifier;
            no_effect: ;
            unsupported: ;
        });
        use pb::filter_config::PerMethodStatSpecifier;
        let methods = match per_method_stat_specifier {
            Some(PerMethodStatSpecifier::StatsForAllMethods(flag)) if flag.value => GrpcMethods::All,
            Some(PerMethodStatSpecifier::StatsForAllMethods(_)) | None => GrpcMethods::Listed(Vec::new()),
            Some(PerMethodStatSpecifier::IndividualMethodStatsAllowlist(list)) => GrpcMethods::Listed(listed(list)),
        };
        Self {
            emit_filter_state,
            methods,
            upstream_stats: enable_upstream_stats,
            replace_dots: replace_dots_in_grpc_service_name,
        }
    }
}

fn listed(wire: core::GrpcMethodList) -> Vec<String> {
    let core::GrpcMethodList { services } = wire;
    let paths = services.into_iter().flat_map(|core::grpc_method_list::Service { name, method_names }| {
        method_names.into_iter().map(move |method| format!("/{name}/{method}"))
    });
    let mut paths: Vec<String> = paths.collect();
    paths.sort_unstable();
    paths
}

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::protobuf::BoolValue;

    use super::*;

    #[test]
    fn no_method_is_told_apart_unless_asked_for() {
        use self::core::grpc_method_list::Service;
        use pb::filter_config::PerMethodStatSpecifier as Which;
        let read = |which| {
            let wire = pb::FilterConfig { per_method_stat_specifier: which, ..Default::default() };
            GrpcStats::parse(wire).methods
        };
        let none = GrpcMethods::Listed(Vec::new());
        assert_eq!(read(None), none);
        assert_eq!(read(Some(Which::StatsForAllMethods(BoolValue { value: false }))), none);
        assert_eq!(read(Some(Which::StatsForAllMethods(BoolValue { value: true }))), GrpcMethods::All);
        let service = Service { name: "p.S".into(), method_names: vec!["B".into(), "A".into()] };
        let list = self::core::GrpcMethodList { services: vec![service] };
        assert_eq!(
            read(Some(Which::IndividualMethodStatsAllowlist(list))),
            GrpcMethods::Listed(vec!["/p.S/A".into(), "/p.S/B".into()])
        );
    }
}
