//! Reads access log filters (`envoy.config.accesslog.v3.AccessLogFilter`).
//!
//! Owns how filters are checked. Never evaluates them.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::accesslog::v3 as accesslog;
use outrigger_api::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use outrigger_api::pb::envoy::data::accesslog::v3::AccessLogType;
use outrigger_api::pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;

use super::{AccessLogFilter, Comparison, ComparisonOperator};
use crate::cel::Expression;
use crate::decide::decide;
use crate::matching::MetadataMatcher;
use crate::rejection::{FieldPath, Parsed};
use crate::units::{Fraction, RuntimeFraction};
use crate::{route, wire};

/// Reads one filter, with those inside it.
pub(crate) fn filter(at: &FieldPath<'_>, wire: accesslog::AccessLogFilter) -> Parsed<AccessLogFilter> {
    let accesslog::AccessLogFilter { filter_specifier } = wire;
    Ok(match filter_specifier {
        Some(FilterSpecifier::StatusCodeFilter(accesslog::StatusCodeFilter { comparison })) => {
            AccessLogFilter::StatusCode(self::comparison(
                &at.field("status_code_filter").field("comparison"),
                comparison,
            )?)
        }
        Some(FilterSpecifier::DurationFilter(accesslog::DurationFilter { comparison })) => {
            AccessLogFilter::Duration(self::comparison(&at.field("duration_filter").field("comparison"), comparison)?)
        }
        Some(FilterSpecifier::NotHealthCheckFilter(accesslog::NotHealthCheckFilter {})) => {
            AccessLogFilter::NotHealthCheck
        }
        Some(FilterSpecifier::TraceableFilter(accesslog::TraceableFilter {})) => AccessLogFilter::Traceable,
        Some(FilterSpecifier::RuntimeFilter(wire)) => runtime(&at.field("runtime_filter"), wire)?,
        Some(FilterSpecifier::AndFilter(accesslog::AndFilter { filters })) => {
            AccessLogFilter::And(several(&at.field("and_filter").field("filters"), filters)?)
        }
        Some(FilterSpecifier::OrFilter(accesslog::OrFilter { filters })) => {
            AccessLogFilter::Or(several(&at.field("or_filter").field("filters"), filters)?)
        }
        Some(FilterSpecifier::HeaderFilter(accesslog::HeaderFilter { header })) => {
            let field = at.field("header_filter");
            let field = field.field("header");
            let Some(header) = header else {
                return Err(field.reject("is required"));
            };
            AccessLogFilter::Header(Box::new(route::header_matcher(&field, header)?))
        }
        Some(FilterSpecifier::ResponseFlagFilter(accesslog::ResponseFlagFilter { flags })) => {
            response_flags(&at.field("response_flag_filter").field("flags"), flags)?
        }
        Some(FilterSpecifier::GrpcStatusFilter(wire)) => grpc_status(&at.field("grpc_status_filter"), wire)?,
        Some(FilterSpecifier::ExtensionFilter(wire)) => extension(&at.field("extension_filter"), wire)?,
        Some(FilterSpecifier::MetadataFilter(wire)) => metadata(&at.field("metadata_filter"), wire)?,
        Some(FilterSpecifier::LogTypeFilter(wire)) => log_type(&at.field("log_type_filter"), wire)?,
        None => return Err(at.reject("needs a filter")),
    })
}

fn several(at: &FieldPath<'_>, wire: Vec<accesslog::AccessLogFilter>) -> Parsed<Vec<AccessLogFilter>> {
    if wire.len() < 2 {
        return Err(at.reject(format!("has {} entries, expected at least 2", wire.len())));
    }
    wire::each(at, wire, filter)
}

fn comparison(at: &FieldPath<'_>, wire: Option<accesslog::ComparisonFilter>) -> Parsed<Comparison> {
    let Some(wire) = wire else {
        return Err(at.reject("is required"));
    };
    decide!(wire, at, accesslog::ComparisonFilter as "envoy.config.accesslog.v3.ComparisonFilter" {
        implemented: op, value;
        no_effect: ;
        unsupported: ;
    });
    use accesslog::comparison_filter::Op;
    let operator = match Op::try_from(op) {
        Ok(Op::Eq) => ComparisonOperator::Equal,
        Ok(Op::Ge) => ComparisonOperator::GreaterOrEqual,
        Ok(Op::Le) => ComparisonOperator::LessOrEqual,
        Ok(Op::Ne) => ComparisonOperator::NotEqual,
        Err(_) => return Err(wire::unknown_enum(&at.field("op"), op)),
    };
    let Some(value) = value else {
        return Err(at.field("value").reject("is required"));
    };
    Ok(Comparison { operator, value: value.default_value, runtime_key: value.runtime_key })
}

fn runtime(at: &FieldPath<'_>, wire: accesslog::RuntimeFilter) -> Parsed<AccessLogFilter> {
    decide!(wire, at, accesslog::RuntimeFilter as "envoy.config.accesslog.v3.RuntimeFilter" {
        implemented: runtime_key, percent_sampled, use_independent_randomness;
        no_effect: ;
        unsupported: ;
    });
    if runtime_key.is_empty() {
        return Err(at.field("runtime_key").reject("must not be empty"));
    }
    let default = match percent_sampled {
        Some(wire) => wire::fraction(&at.field("percent_sampled"), wire)?,
        None => Fraction::new(0, 100).unwrap_or(Fraction::ALWAYS),
    };
    let fraction = RuntimeFraction { default, runtime_key };
    Ok(AccessLogFilter::Runtime { fraction, independent: use_independent_randomness })
}

fn response_flags(at: &FieldPath<'_>, flags: Vec<String>) -> Parsed<AccessLogFilter> {
    for (index, flag) in flags.iter().enumerate() {
        if !RESPONSE_FLAGS.contains(&flag.as_str()) {
            return Err(at.item(index).reject(format!("{flag:?} is not a known response flag")));
        }
    }
    Ok(AccessLogFilter::ResponseFlag(flags))
}

fn grpc_status(at: &FieldPath<'_>, wire: accesslog::GrpcStatusFilter) -> Parsed<AccessLogFilter> {
    decide!(wire, at, accesslog::GrpcStatusFilter as "envoy.config.accesslog.v3.GrpcStatusFilter" {
        implemented: statuses, exclude;
        no_effect: ;
        unsupported: ;
    });
    let list = at.field("statuses");
    let codes = statuses
        .into_iter()
        .enumerate()
        .map(|(index, status)| match u32::try_from(status) {
            Ok(code) if code <= MAX_GRPC_STATUS => Ok(code),
            _ => Err(wire::unknown_enum(&list.item(index), status)),
        })
        .collect::<Parsed<Vec<_>>>()?;
    Ok(AccessLogFilter::GrpcStatus { codes, exclude })
}

fn metadata(at: &FieldPath<'_>, wire: accesslog::MetadataFilter) -> Parsed<AccessLogFilter> {
    decide!(wire, at, accesslog::MetadataFilter as "envoy.config.accesslog.v3.MetadataFilter" {
        implemented: matcher, match_if_key_not_found;
        no_effect: ;
        unsupported: ;
    });
    let matcher = match matcher {
        Some(wire) => Some(Box::new(MetadataMatcher::parse(&at.field("matcher"), wire)?)),
        None => None,
    };
    let if_absent = match_if_key_not_found.is_none_or(|flag| flag.value);
    Ok(AccessLogFilter::Metadata { matcher, if_absent })
}

fn log_type(at: &FieldPath<'_>, wire: accesslog::LogTypeFilter) -> Parsed<AccessLogFilter> {
    decide!(wire, at, accesslog::LogTypeFilter as "envoy.config.accesslog.v3.LogTypeFilter" {
        implemented: types, exclude;
        no_effect: ;
        unsupported: ;
    });
    let list = at.field("types");
    let types = types.into_iter().enumerate().map(|(index, number)| match AccessLogType::try_from(number) {
        Ok(known) => Ok(known as i32),
        Err(_) => Err(wire::unknown_enum(&list.item(index), number)),
    });
    Ok(AccessLogFilter::LogType { types: types.collect::<Parsed<_>>()?, exclude })
}

fn extension(at: &FieldPath<'_>, wire: accesslog::ExtensionFilter) -> Parsed<AccessLogFilter> {
    let accesslog::ExtensionFilter { name: _, config_type } = wire;
    let at = at.field("typed_config");
    let Some(accesslog::extension_filter::ConfigType::TypedConfig(any)) = config_type else {
        return Err(at.reject("is required"));
    };
    match wire::type_name(&any) {
        "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter" => {
            let wire: ExpressionFilter = wire::decode(&at, &any)?;
            decide!(wire, at, ExpressionFilter as "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter" {
                implemented: expression;
                no_effect: ;
                unsupported: cel_config;
            });
            let compiled = Expression::parse(&expression).map_err(|why| at.field("expression").reject(why))?;
            Ok(AccessLogFilter::Expression(Arc::new(compiled)))
        }
        _ => Err(at.reject(format!("the access log filter {:?} is not supported", any.type_url))),
    }
}

/// UNAUTHENTICATED.
const MAX_GRPC_STATUS: u32 = 16;
/// Source: `ResponseFlagFilter.flags`.
const RESPONSE_FLAGS: [&str; 30] = [
    "LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE", "DC", "URX", "SI", "IH",
    "DPE", "UMSDR", "RFCF", "NFCF", "DT", "UPE", "NC", "OM", "DF", "DO", "DR", "UDO",
];

#[cfg(test)]
mod tests {
    use outrigger_api::pb::envoy::config::core::v3::RuntimeUInt32;

    use super::*;

    fn read(specifier: Option<FilterSpecifier>) -> Result<AccessLogFilter, String> {
        let wire = accesslog::AccessLogFilter { filter_specifier: specifier };
        filter(&FieldPath::resource("listener", "l").field("filter"), wire).map_err(|rejection| rejection.to_string())
    }

    fn status(op: i32) -> FilterSpecifier {
        FilterSpecifier::StatusCodeFilter(accesslog::StatusCodeFilter {
            comparison: Some(accesslog::ComparisonFilter {
                op,
                value: Some(RuntimeUInt32 { default_value: 500, runtime_key: "k".into() }),
            }),
        })
    }

    fn wrapped(specifier: FilterSpecifier) -> accesslog::AccessLogFilter {
        accesslog::AccessLogFilter { filter_specifier: Some(specifier) }
    }

    #[test]
    fn filters_nest() {
        let flags = accesslog::ResponseFlagFilter { flags: vec!["UF".into()] };
        let or = accesslog::OrFilter {
            filters: vec![wrapped(status(1)), wrapped(FilterSpecifier::ResponseFlagFilter(flags))],
        };
        let at_least_500 =
            Comparison { operator: ComparisonOperator::GreaterOrEqual, value: 500, runtime_key: "k".into() };
        assert_eq!(
            read(Some(FilterSpecifier::OrFilter(or))).unwrap(),
            AccessLogFilter::Or(vec![
                AccessLogFilter::StatusCode(at_least_500),
                AccessLogFilter::ResponseFlag(vec!["UF".into()])
            ])
        );
    }

    #[test]
    fn each_bad_filter_is_refused_by_path() {
        let and = accesslog::AndFilter { filters: vec![wrapped(status(0))] };
        let flags = accesslog::ResponseFlagFilter { flags: vec!["UF".into(), "XX".into()] };
        let codes = accesslog::GrpcStatusFilter { statuses: vec![17], exclude: false };
        for (specifier, expected) in [
            (None, ": needs a filter"),
            (Some(status(7)), ".status_code_filter.comparison.op: 7 is not a known value"),
            (Some(FilterSpecifier::AndFilter(and)), ".and_filter.filters: has 1 entries, expected at least 2"),
            (
                Some(FilterSpecifier::ResponseFlagFilter(flags)),
                ".response_flag_filter.flags[1]: \"XX\" is not a known response flag",
            ),
            (
                Some(FilterSpecifier::GrpcStatusFilter(codes)),
                ".grpc_status_filter.statuses[0]: 17 is not a known value",
            ),
            (
                Some(FilterSpecifier::RuntimeFilter(accesslog::RuntimeFilter::default())),
                ".runtime_filter.runtime_key: must not be empty",
            ),
            (
                Some(FilterSpecifier::LogTypeFilter(accesslog::LogTypeFilter { types: vec![99], exclude: false })),
                ".log_type_filter.types[0]: 99 is not a known value",
            ),
            (
                Some(FilterSpecifier::ExtensionFilter(accesslog::ExtensionFilter::default())),
                ".extension_filter.typed_config: is required",
            ),
        ] {
            assert_eq!(read(specifier).unwrap_err(), format!("listener \"l\": filter{expected}"));
        }
    }
}
