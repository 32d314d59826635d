//! Reader of config sources (`envoy.config.core.v3.ConfigSource`, `ApiConfigSource`).
//!
//! Owns which discovery protocols are accepted. Never asks whether the clusters that are named exist.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb;
use outrigger_api::pb::envoy::config::core::v3 as core;

use super::{ApiSource, ConfigSource, FileSource, GrpcService, GrpcTarget, RequestRateLimit, SourceKind, XdsProtocol};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Where a kind of resource comes from.
pub(crate) fn config_source(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: core::ConfigSource,
) -> Parsed<ConfigSource> {
    decide!(wire, at, core::ConfigSource as "envoy.config.core.v3.ConfigSource" {
        implemented: config_source_specifier, initial_fetch_timeout, resource_api_version;
        no_effect: ;
        unsupported: authorities;
    });
    api_version(&at.field("resource_api_version"), resource_api_version)?;
    use core::config_source::ConfigSourceSpecifier as Specifier;
    let kind = match config_source_specifier {
        Some(Specifier::Ads(core::AggregatedConfigSource {})) => SourceKind::Ads,
        Some(Specifier::ApiConfigSource(wire)) => {
            SourceKind::Api(Arc::new(api_source(context, &at.field("api_config_source"), wire)?))
        }
        Some(Specifier::PathConfigSource(wire)) => {
            SourceKind::File(Arc::new(file_source(&at.field("path_config_source"), wire)?))
        }
        Some(Specifier::Path(path)) if path.is_empty() => {
            return Err(at.field("path").reject("must not be empty"));
        }
        Some(Specifier::Path(path)) => {
            SourceKind::File(Arc::new(FileSource { path: PathBuf::from(path), watched_directory: None }))
        }
        Some(Specifier::Self_(_)) => return Err(at.field("self").unsupported()),
        None => return Err(at.reject("needs one of ads, api_config_source, path_config_source")),
    };
    let timeout = &at.field("initial_fetch_timeout");
    Ok(ConfigSource {
        kind,
        initial_fetch_timeout: wire::limit(timeout, initial_fetch_timeout, Some(DEFAULT_FETCH_TIMEOUT))?,
    })
}

/// A management server, asked by gRPC.
pub(crate) fn api_source(context: &Context<'_>, at: &FieldPath<'_>, wire: core::ApiConfigSource) -> Parsed<ApiSource> {
    decide!(wire, at, core::ApiConfigSource as "envoy.config.core.v3.ApiConfigSource" {
        implemented: api_type, transport_api_version, grpc_services, rate_limit_settings,
            set_node_on_first_message_only;
        no_effect: refresh_delay = "for REST only, which is refused",
            request_timeout = "for REST only, which is refused";
        unsupported: cluster_names, config_validators;
    });
    let protocol = protocol(&at.field("api_type"), api_type)?;
    api_version(&at.field("transport_api_version"), transport_api_version)?;
    let services_at = at.field("grpc_services");
    if grpc_services.is_empty() {
        return Err(services_at.reject("must not be empty"));
    }
    if grpc_services.len() > MAX_SERVICES {
        return Err(services_at.reject(format!("{} services, expected up to {MAX_SERVICES}", grpc_services.len())));
    }
    let mut services = Vec::with_capacity(grpc_services.len());
    for (index, wire) in grpc_services.into_iter().enumerate() {
        services.push(super::grpc_service(context, &services_at.item(index), wire)?);
    }
    // All are one control plane: what is sent to the one is sent to the other, and a token must not go astray.
    if let [first, second] = services.as_slice()
        && credentials(first) != credentials(second)
    {
        return Err(services_at
            .item(1)
            .reject("its initial_metadata or call credentials differ from those of the first"));
    }
    let limit_at = at.field("rate_limit_settings");
    Ok(ApiSource {
        protocol,
        services,
        set_node_on_first_message_only,
        rate_limit: rate_limit_settings.map(|wire| rate_limit(&limit_at, wire)).transpose()?,
    })
}

/// A token's file, header and prefix.
type Token<'a> = (&'a PathBuf, &'a str, &'a str);

/// What is sent with each call.
fn credentials(service: &GrpcService) -> (&[(String, String)], Option<Token<'_>>) {
    let GrpcService { target, timeout: _, initial_metadata } = service;
    let token = match target {
        GrpcTarget::Uri { token_file, token_header, token_prefix, .. } => {
            token_file.as_ref().map(|file| (file, token_header.as_str(), token_prefix.as_str()))
        }
        GrpcTarget::Cluster { name: _, authority: _, max_receive_message_bytes: _ } => None,
    };
    (initial_metadata, token)
}

fn protocol(at: &FieldPath<'_>, api_type: i32) -> Parsed<XdsProtocol> {
    use core::api_config_source::ApiType;
    match ApiType::try_from(api_type) {
        Ok(ApiType::Grpc) => Ok(XdsProtocol::Sotw),
        Ok(ApiType::DeltaGrpc) => Ok(XdsProtocol::Delta),
        Ok(ApiType::DeprecatedAndUnavailableDoNotUse) => Err(at.reject("is required, expected GRPC or DELTA_GRPC")),
        Ok(other @ (ApiType::Rest | ApiType::AggregatedGrpc | ApiType::AggregatedDeltaGrpc)) => {
            Err(at.reject(format!("{} is not supported, expected GRPC or DELTA_GRPC", other.as_str_name())))
        }
        Err(_) => Err(wire::unknown_enum(at, api_type)),
    }
}

/// We speak v3, which `AUTO` means today, too.
pub(crate) fn api_version(at: &FieldPath<'_>, version: i32) -> Parsed<()> {
    match core::ApiVersion::try_from(version) {
        Ok(core::ApiVersion::V3 | core::ApiVersion::Auto) => Ok(()),
        Ok(core::ApiVersion::V2) => Err(at.reject("V2 is not supported, expected V3")),
        Err(_) => Err(wire::unknown_enum(at, version)),
    }
}

fn file_source(at: &FieldPath<'_>, wire: core::PathConfigSource) -> Parsed<FileSource> {
    decide!(wire, at, core::PathConfigSource as "envoy.config.core.v3.PathConfigSource" {
        implemented: path, watched_directory;
        no_effect: ;
        unsupported: poll_interval;
    });
    if path.is_empty() {
        return Err(at.field("path").reject("must not be empty"));
    }
    let watched_directory = match watched_directory {
        None => None,
        Some(wire) => Some(watched_directory_path(&at.field("watched_directory"), wire)?),
    };
    Ok(FileSource { path: PathBuf::from(path), watched_directory })
}

fn watched_directory_path(at: &FieldPath<'_>, wire: core::WatchedDirectory) -> Parsed<PathBuf> {
    decide!(wire, at, core::WatchedDirectory as "envoy.config.core.v3.WatchedDirectory" {
        implemented: path;
        no_effect: ;
        unsupported: watch_modify;
    });
    if path.is_empty() { Err(at.field("path").reject("must not be empty")) } else { Ok(PathBuf::from(path)) }
}

fn rate_limit(at: &FieldPath<'_>, wire: core::RateLimitSettings) -> Parsed<RequestRateLimit> {
    decide!(wire, at, core::RateLimitSettings as "envoy.config.core.v3.RateLimitSettings" {
        implemented: max_tokens, fill_rate;
        no_effect: ;
        unsupported: ;
    });
    let fill_rate = fill_rate.map_or(DEFAULT_FILL_RATE, |pb::google::protobuf::DoubleValue { value }| value);
    let at = at.field("fill_rate");
    if fill_rate.is_nan() || fill_rate <= 0.0 {
        return Err(at.reject(format!("{fill_rate} must be above zero")));
    }
    // A float that is too large saturates. A positive rate never becomes none at all.
    let fill_rate_milli = ((fill_rate * 1000.0).round() as u64).max(1);
    Ok(RequestRateLimit { max_tokens: max_tokens.map_or(DEFAULT_MAX_TOKENS, |number| number.value), fill_rate_milli })
}

const DEFAULT_FETCH_TIMEOUT: Duration = Duration::from_secs(15);
/// The first, and one to fail over to.
const MAX_SERVICES: usize = 2;
const DEFAULT_MAX_TOKENS: u32 = 100;
/// A second.
const DEFAULT_FILL_RATE: f64 = 10.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::NoEnvironment;
    use pb::google::protobuf::{DoubleValue, Duration as WireDuration};

    const ROOT: FieldPath<'static> = FieldPath::Resource { kind: "cluster", name: "billing" };

    fn read(wire: core::ConfigSource) -> Result<ConfigSource, String> {
        config_source(&Context::new(&NoEnvironment), &ROOT.field("eds_config"), wire).map_err(|error| error.to_string())
    }

    fn source(specifier: core::config_source::ConfigSourceSpecifier) -> core::ConfigSource {
        core::ConfigSource { config_source_specifier: Some(specifier), ..Default::default() }
    }

    fn api() -> core::ApiConfigSource {
        let envoy = core::grpc_service::EnvoyGrpc { cluster_name: "xds".into(), ..Default::default() };
        core::ApiConfigSource {
            api_type: core::api_config_source::ApiType::DeltaGrpc.into(),
            transport_api_version: core::ApiVersion::V3.into(),
            grpc_services: vec![core::GrpcService {
                target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(envoy)),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn ads_waits_fifteen_seconds_unless_told_to_wait_for_ever() {
        let ads = || source(core::config_source::ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {}));
        assert_eq!(
            read(ads()).unwrap(),
            ConfigSource { kind: SourceKind::Ads, initial_fetch_timeout: Some(DEFAULT_FETCH_TIMEOUT) }
        );
        let forever = core::ConfigSource { initial_fetch_timeout: Some(WireDuration::default()), ..ads() };
        assert_eq!(read(forever).unwrap().initial_fetch_timeout, None);
    }

    #[test]
    fn an_api_source_keeps_protocol_services_and_rate() {
        let mut wire = api();
        wire.rate_limit_settings =
            Some(core::RateLimitSettings { fill_rate: Some(DoubleValue { value: 0.5 }), ..Default::default() });
        wire.set_node_on_first_message_only = true;
        let read = read(source(core::config_source::ConfigSourceSpecifier::ApiConfigSource(wire))).unwrap();
        let SourceKind::Api(api) = read.kind else { panic!("{read:?}") };
        assert_eq!(api.protocol, XdsProtocol::Delta);
        assert!(api.set_node_on_first_message_only);
        assert_eq!(api.rate_limit, Some(RequestRateLimit { max_tokens: 100, fill_rate_milli: 500 }));
        assert!(matches!(&api.services[0].target, GrpcTarget::Cluster { name, .. } if &**name == "xds"));
    }

    #[test]
    fn sources_that_are_refused() {
        use super::core::config_source::ConfigSourceSpecifier::{Ads, ApiConfigSource, Path, PathConfigSource, Self_};
        let changed = |change: fn(&mut core::ApiConfigSource)| {
            let mut wire = api();
            change(&mut wire);
            source(ApiConfigSource(wire))
        };
        let file = |change: fn(&mut core::PathConfigSource)| {
            let mut wire = core::PathConfigSource { path: "/a".into(), ..Default::default() };
            change(&mut wire);
            source(PathConfigSource(wire))
        };
        let cases = [
            (core::ConfigSource::default(), ": needs one of ads, api_config_source, path_config_source"),
            (source(Self_(Default::default())), ".self: is not supported"),
            (source(Path(String::new())), ".path: must not be empty"),
            (
                core::ConfigSource { resource_api_version: 1, ..source(Ads(Default::default())) },
                ".resource_api_version: V2 is not supported, expected V3",
            ),
            (
                changed(|wire| wire.api_type = 1),
                ".api_config_source.api_type: REST is not supported, expected GRPC or DELTA_GRPC",
            ),
            (
                changed(|wire| wire.api_type = 0),
                ".api_config_source.api_type: is required, expected GRPC or DELTA_GRPC",
            ),
            (changed(|wire| wire.api_type = 4), ".api_config_source.api_type: 4 is not a known value"),
            (
                changed(|wire| {
                    let header = core::HeaderValue { key: "a".into(), value: "b".into(), ..Default::default() };
                    let first = &wire.grpc_services[0];
                    let second = core::GrpcService { initial_metadata: vec![header], ..first.clone() };
                    wire.grpc_services.push(second);
                }),
                ".api_config_source.grpc_services[1]: its initial_metadata or call credentials differ from those of the first",
            ),
            (changed(|wire| wire.grpc_services.clear()), ".api_config_source.grpc_services: must not be empty"),
            (
                changed(|wire| wire.cluster_names = vec!["a".into()]),
                ".api_config_source.cluster_names: is not supported",
            ),
            (
                changed(|wire| {
                    wire.rate_limit_settings = Some(core::RateLimitSettings {
                        fill_rate: Some(DoubleValue { value: 0.0 }),
                        ..Default::default()
                    })
                }),
                ".api_config_source.rate_limit_settings.fill_rate: 0 must be above zero",
            ),
            (file(|wire| wire.path.clear()), ".path_config_source.path: must not be empty"),
            (
                file(|wire| wire.watched_directory = Some(core::WatchedDirectory::default())),
                ".path_config_source.watched_directory.path: must not be empty",
            ),
        ];
        for (wire, expected) in cases {
            assert_eq!(read(wire).unwrap_err(), format!("cluster \"billing\": eds_config{expected}"));
        }
    }
}
