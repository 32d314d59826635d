//! Reader of gRPC services (`envoy.config.core.v3.GrpcService`).
//!
//! Owns whom a gRPC client calls and what it sends along. Never connects.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::core::v3::grpc_service::google_grpc;
use outrigger_api::pb::envoy::config::grpc_credential::v3 as credential;

use super::{GoogleCall, GoogleTls, GrpcCall, GrpcService, GrpcTarget, TokenFile, google};
use crate::context::Context;
use crate::decide::decide;
use crate::http_uri::CallRetries;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Whom to call and how.
pub(crate) fn grpc_service(context: &Context<'_>, at: &FieldPath<'_>, wire: core::GrpcService) -> Parsed<GrpcService> {
    decide!(wire, at, core::GrpcService as "envoy.config.core.v3.GrpcService" {
        implemented: target_specifier, timeout, initial_metadata, retry_policy;
        no_effect: ;
        unsupported: ;
    });
    if retry_policy.is_some() {
        return Err(at.field("retry_policy").unsupported());
    }
    let metadata_at = at.field("initial_metadata");
    let mut metadata = Vec::with_capacity(initial_metadata.len());
    for (index, wire) in initial_metadata.into_iter().enumerate() {
        metadata.push(metadata_entry(&metadata_at.item(index), wire)?);
    }
    let target = match target_specifier {
        Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(wire)) => cluster_target(&at.field("envoy_grpc"), wire)?,
        Some(core::grpc_service::TargetSpecifier::GoogleGrpc(wire)) => {
            uri_target(context, &at.field("google_grpc"), wire, &mut metadata)?
        }
        None => return Err(at.reject("needs one of envoy_grpc, google_grpc")),
    };
    let timeout = wire::limit(&at.field("timeout"), timeout, None)?;
    Ok(GrpcService { target, timeout, initial_metadata: metadata })
}

/// A service that requests wait for; without a timeout it has `default_timeout`. A target of `google_grpc` becomes a cluster,
/// since a request must find its connection on its worker.
pub(crate) fn grpc_call(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    mut wire: core::GrpcService,
    default_timeout: Duration,
) -> Parsed<GrpcCall> {
    let given = wire.timeout.is_some();
    let retries = match wire.retry_policy.take() {
        None => None,
        Some(wire) => CallRetries::parse(&at.field("retry_policy"), wire)?,
    };
    let service = grpc_service(context, at, wire)?;
    let authority = service.authority();
    let GrpcService { target, timeout, initial_metadata } = service;
    match target {
        GrpcTarget::Cluster { name, authority: _, max_receive_message_bytes } => Ok(GrpcCall {
            cluster: name,
            authority,
            timeout: if given { timeout } else { Some(default_timeout) },
            metadata: initial_metadata,
            max_answer_bytes: max_receive_message_bytes,
            retries,
            google: None,
        }),
        GrpcTarget::Uri {
            target: uri,
            tls,
            token_file,
            token_header: header,
            token_prefix: prefix,
            max_receive_message_bytes,
            stat_prefix,
        } => {
            let target = google::target(context, &at.field("google_grpc"), &uri, tls.as_ref())?;
            Ok(GrpcCall {
                cluster: Arc::clone(&target.cluster.name),
                authority,
                timeout: if given { timeout } else { Some(default_timeout) },
                metadata: initial_metadata,
                max_answer_bytes: max_receive_message_bytes,
                retries,
                google: Some(Arc::new(GoogleCall {
                    target,
                    uri: uri.into(),
                    stat_prefix,
                    token: token_file.map(|file| TokenFile { file, header, prefix }),
                })),
            })
        }
    }
}

fn cluster_target(at: &FieldPath<'_>, wire: core::grpc_service::EnvoyGrpc) -> Parsed<GrpcTarget> {
    decide!(wire, at, core::grpc_service::EnvoyGrpc as "envoy.config.core.v3.GrpcService.EnvoyGrpc" {
        implemented: cluster_name, authority, max_receive_message_length;
        no_effect: skip_envoy_headers = "none are sent";
        unsupported: retry_policy;
    });
    if cluster_name.is_empty() {
        return Err(at.field("cluster_name").reject("must not be empty"));
    }
    if !is_header_value(&authority) {
        return Err(at.field("authority").reject(format!("{authority:?} is not a header value")));
    }
    Ok(GrpcTarget::Cluster {
        name: Arc::from(cluster_name),
        authority: Some(authority).filter(|authority| !authority.is_empty()),
        // 0 says unlimited, as the default does.
        max_receive_message_bytes: max_receive_message_length.map(|bytes| bytes.value).filter(|bytes| *bytes > 0),
    })
}

fn uri_target(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: core::grpc_service::GoogleGrpc,
    metadata: &mut Vec<(String, String)>,
) -> Parsed<GrpcTarget> {
    decide!(wire, at, core::grpc_service::GoogleGrpc as "envoy.config.core.v3.GrpcService.GoogleGrpc" {
        implemented: target_uri, channel_credentials, call_credentials, credentials_factory_name, channel_args,
            stat_prefix;
        no_effect: per_stream_buffer_limit_bytes = "flow control of HTTP/2 bounds what is buffered";
        unsupported: channel_credentials_plugin, call_credentials_plugin, config;
    });
    if target_uri.is_empty() {
        return Err(at.field("target_uri").reject("must not be empty"));
    }
    if stat_prefix.is_empty() {
        return Err(at.field("stat_prefix").reject("must not be empty"));
    }
    if !["", "envoy.grpc_credentials.default", FILE_CREDENTIALS].contains(&credentials_factory_name.as_str()) {
        let factory = at.field("credentials_factory_name");
        return Err(factory.reject(format!("{credentials_factory_name:?} is not supported")));
    }
    let tls = channel_tls(context, &at.field("channel_credentials"), channel_credentials, &target_uri)?;
    let credentials_at = at.field("call_credentials");
    let mut token = None;
    for (index, wire) in call_credentials.into_iter().enumerate() {
        let item = credentials_at.item(index);
        let read = call_token(context, &item, wire)?;
        // A token on a plain connection could be read by anyone; gRPC refuses that, too.
        if tls.is_none() && !target_uri.starts_with("unix:") {
            return Err(item.reject("needs ssl_credentials"));
        }
        match read {
            CallToken::Value(value) => metadata.push((AUTHORIZATION.into(), format!("Bearer {value}"))),
            CallToken::File(_) if token.is_some() => return Err(item.reject("is a second token from a file")),
            CallToken::File(file) => token = Some(file),
        }
    }
    let max_receive_message_bytes =
        channel_args.map_or(Ok(None), |wire| receive_limit(&at.field("channel_args"), wire))?;
    let (token_file, token_header, token_prefix) = match token {
        Some(TokenFile { file, header, prefix }) => (Some(file), header, prefix),
        None => (None, AUTHORIZATION.into(), String::new()),
    };
    let stat_prefix = stat_prefix.into();
    Ok(GrpcTarget::Uri {
        target: target_uri,
        tls,
        token_file,
        token_header,
        token_prefix,
        max_receive_message_bytes,
        stat_prefix,
    })
}

fn channel_tls(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<google_grpc::ChannelCredentials>,
    target_uri: &str,
) -> Parsed<Option<GoogleTls>> {
    let Some(wire) = wire else { return Ok(None) };
    decide!(wire, at, google_grpc::ChannelCredentials
        as "envoy.config.core.v3.GrpcService.GoogleGrpc.ChannelCredentials" {
        implemented: credential_specifier;
        no_effect: ;
        unsupported: ;
    });
    use google_grpc::channel_credentials::CredentialSpecifier;
    match credential_specifier {
        Some(CredentialSpecifier::SslCredentials(wire)) => {
            Ok(Some(ssl_credentials(context, &at.field("ssl_credentials"), wire)?))
        }
        Some(CredentialSpecifier::LocalCredentials(google_grpc::GoogleLocalCredentials {})) => {
            if target_uri.starts_with("unix:") {
                Ok(None)
            } else {
                Err(at.field("local_credentials").reject(format!("{target_uri:?} is not a Unix socket")))
            }
        }
        Some(CredentialSpecifier::GoogleDefault(_)) => Err(at.field("google_default").unsupported()),
        None => Err(at.reject("needs one of ssl_credentials, local_credentials")),
    }
}

fn ssl_credentials(context: &Context<'_>, at: &FieldPath<'_>, wire: google_grpc::SslCredentials) -> Parsed<GoogleTls> {
    decide!(wire, at, google_grpc::SslCredentials as "envoy.config.core.v3.GrpcService.GoogleGrpc.SslCredentials" {
        implemented: root_certs, private_key, cert_chain;
        no_effect: ;
        unsupported: ;
    });
    let read = |field: &'static str, wire: Option<core::DataSource>| {
        wire.map(|wire| wire::data_source(context, &at.field(field), wire).map(|data| data.bytes)).transpose()
    };
    let tls = GoogleTls {
        root_certs: read("root_certs", root_certs)?,
        cert_chain: read("cert_chain", cert_chain)?,
        private_key: read("private_key", private_key)?,
    };
    if tls.cert_chain.is_some() != tls.private_key.is_some() {
        return Err(at.reject("needs both of cert_chain and private_key, or none"));
    }
    Ok(tls)
}

/// What call credentials come down to here.
enum CallToken {
    /// Sent as a bearer token.
    Value(String),
    /// Read again for each call.
    File(TokenFile),
}

fn call_token(context: &Context<'_>, at: &FieldPath<'_>, wire: google_grpc::CallCredentials) -> Parsed<CallToken> {
    decide!(wire, at, google_grpc::CallCredentials
        as "envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials" {
        implemented: credential_specifier;
        no_effect: ;
        unsupported: ;
    });
    use google_grpc::call_credentials::CredentialSpecifier;
    match credential_specifier {
        Some(CredentialSpecifier::AccessToken(token)) if token.is_empty() || !is_header_value(&token) => {
            Err(at.field("access_token").reject("is not a token"))
        }
        Some(CredentialSpecifier::AccessToken(token)) => Ok(CallToken::Value(token)),
        Some(CredentialSpecifier::FromPlugin(wire)) => plugin_token(context, &at.field("from_plugin"), wire),
        Some(CredentialSpecifier::GoogleComputeEngine(_)) => Err(at.field("google_compute_engine").unsupported()),
        Some(CredentialSpecifier::GoogleRefreshToken(_)) => Err(at.field("google_refresh_token").unsupported()),
        Some(CredentialSpecifier::ServiceAccountJwtAccess(_)) => {
            Err(at.field("service_account_jwt_access").unsupported())
        }
        Some(CredentialSpecifier::GoogleIam(_)) => Err(at.field("google_iam").unsupported()),
        Some(CredentialSpecifier::StsService(_)) => Err(at.field("sts_service").unsupported()),
        None => Err(at.reject("needs one of access_token, from_plugin")),
    }
}

fn plugin_token(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: google_grpc::call_credentials::MetadataCredentialsFromPlugin,
) -> Parsed<CallToken> {
    use google_grpc::call_credentials::MetadataCredentialsFromPlugin;
    use google_grpc::call_credentials::metadata_credentials_from_plugin::ConfigType;
    decide!(wire, at, MetadataCredentialsFromPlugin
        as "envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.MetadataCredentialsFromPlugin" {
        implemented: config_type;
        no_effect: name = "the type of the config says which plugin it is";
        unsupported: ;
    });
    let at = at.field("typed_config");
    let Some(ConfigType::TypedConfig(config)) = config_type else { return Err(at.reject("is required")) };
    let config = wire::extension(context, &at, config)?;
    if wire::type_name(&config) != "envoy.config.grpc_credential.v3.FileBasedMetadataConfig" {
        return Err(at.reject(format!("{:?} is not supported", wire::type_name(&config))));
    }
    let wire = wire::decode(&at, &config)?;
    decide!(wire, at, credential::FileBasedMetadataConfig
        as "envoy.config.grpc_credential.v3.FileBasedMetadataConfig" {
        implemented: secret_data, header_key, header_prefix;
        no_effect: ;
        unsupported: ;
    });
    let data_at = at.field("secret_data");
    let Some(core::DataSource { specifier: Some(core::data_source::Specifier::Filename(file)), watched_directory: _ }) =
        secret_data
    else {
        return Err(data_at.reject("needs filename"));
    };
    if file.is_empty() {
        return Err(data_at.field("filename").reject("must not be empty"));
    }
    if !header_key.is_empty() && !is_header_name(&header_key) {
        return Err(at.field("header_key").reject(format!("{header_key:?} is not a header name")));
    }
    if !is_header_value(&header_prefix) {
        return Err(at.field("header_prefix").reject(format!("{header_prefix:?} is not a header value")));
    }
    let header = if header_key.is_empty() { AUTHORIZATION.into() } else { header_key.to_ascii_lowercase() };
    Ok(CallToken::File(TokenFile { file: PathBuf::from(file), header, prefix: header_prefix }))
}

/// The one argument of channels that matters here; others that cannot matter are accepted by name.
fn receive_limit(at: &FieldPath<'_>, wire: google_grpc::ChannelArgs) -> Parsed<Option<u32>> {
    let google_grpc::ChannelArgs { args } = wire;
    let args_at = at.field("args");
    // In order, so that the same one is refused each time.
    let mut args: Vec<_> = args.into_iter().collect();
    args.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut limit = None;
    for (name, google_grpc::channel_args::Value { value_specifier }) in args {
        let item = args_at.key(&name);
        match (name.as_str(), value_specifier) {
            // Each of our clients has connections of its own.
            ("grpc.use_local_subchannel_pool", Some(_)) => {}
            (
                "grpc.max_receive_message_length",
                Some(google_grpc::channel_args::value::ValueSpecifier::IntValue(bytes)),
            ) => {
                // -1 says unlimited.
                limit = match bytes {
                    -1 => None,
                    bytes => Some(
                        u32::try_from(bytes).map_err(|_| item.reject(format!("{bytes} is not a number of bytes")))?,
                    ),
                };
            }
            (_, Some(_)) => return Err(item.unsupported()),
            (_, None) => return Err(item.reject("needs one of string_value, int_value")),
        }
    }
    Ok(limit)
}

pub(crate) fn metadata_entry(at: &FieldPath<'_>, wire: core::HeaderValue) -> Parsed<(String, String)> {
    decide!(wire, at, core::HeaderValue as "envoy.config.core.v3.HeaderValue" {
        implemented: key, value, raw_value;
        no_effect: ;
        unsupported: ;
    });
    if !is_header_name(&key) {
        return Err(at.field("key").reject(format!("{key:?} is not a header name")));
    }
    let (field, value) = if value.is_empty() {
        let text = String::from_utf8(raw_value).map_err(|_| at.field("raw_value").reject("is not UTF-8"))?;
        ("raw_value", text)
    } else {
        ("value", value)
    };
    if !is_header_value(&value) {
        return Err(at.field(field).reject(format!("{value:?} is not a header value")));
    }
    // Values are format strings; there is no request to take operands from, so that only `%%` has a meaning.
    let plain = value.replace("%%", "");
    if plain.contains('%') {
        return Err(at.field(field).reject(format!("{value:?} has an operator, which is not supported here")));
    }
    Ok((key.to_ascii_lowercase(), value.replace("%%", "%")))
}

fn is_header_name(name: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.len() <= MAX_HEADER_BYTES && name.bytes().all(token)
}

fn is_header_value(value: &str) -> bool {
    let fits = |byte: u8| byte == b'\t' || !byte.is_ascii_control();
    value.len() <= MAX_HEADER_BYTES && value.bytes().all(fits)
}

const AUTHORIZATION: &str = "authorization";
const FILE_CREDENTIALS: &str = "envoy.grpc_credentials.file_based_metadata";
const MAX_HEADER_BYTES: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::core::grpc_service::TargetSpecifier;
    use super::*;
    use crate::context::NoEnvironment;
    use outrigger_api::pb::google::protobuf::Any;
    use prost::Message;
    use std::collections::HashMap;

    const ROOT: FieldPath<'static> = FieldPath::Resource { kind: "bootstrap", name: "" };

    fn read(wire: core::GrpcService) -> Result<GrpcService, String> {
        grpc_service(&Context::new(&NoEnvironment), &ROOT.field("service"), wire).map_err(|error| error.to_string())
    }

    fn envoy(cluster: &str) -> core::GrpcService {
        let wire = core::grpc_service::EnvoyGrpc { cluster_name: cluster.into(), ..Default::default() };
        core::GrpcService { target_specifier: Some(TargetSpecifier::EnvoyGrpc(wire)), ..Default::default() }
    }

    fn google(change: impl FnOnce(&mut core::grpc_service::GoogleGrpc)) -> core::GrpcService {
        let mut wire = core::grpc_service::GoogleGrpc {
            target_uri: "xds.example:5678".into(),
            stat_prefix: "xds".into(),
            ..Default::default()
        };
        change(&mut wire);
        core::GrpcService { target_specifier: Some(TargetSpecifier::GoogleGrpc(wire)), ..Default::default() }
    }

    fn inline(text: &str) -> Option<core::DataSource> {
        let specifier = Some(core::data_source::Specifier::InlineString(text.into()));
        Some(core::DataSource { specifier, ..Default::default() })
    }

    fn ssl() -> Option<google_grpc::ChannelCredentials> {
        let wire = google_grpc::SslCredentials { root_certs: inline("roots"), ..Default::default() };
        Some(google_grpc::ChannelCredentials {
            credential_specifier: Some(google_grpc::channel_credentials::CredentialSpecifier::SslCredentials(wire)),
        })
    }

    fn token_file() -> google_grpc::CallCredentials {
        let config = credential::FileBasedMetadataConfig {
            secret_data: Some(core::DataSource {
                specifier: Some(core::data_source::Specifier::Filename("/token".into())),
                ..Default::default()
            }),
            ..Default::default()
        };
        let any = Any {
            type_url: "type.googleapis.com/envoy.config.grpc_credential.v3.FileBasedMetadataConfig".into(),
            value: config.encode_to_vec(),
        };
        google_grpc::CallCredentials {
            credential_specifier: Some(google_grpc::call_credentials::CredentialSpecifier::FromPlugin(
                google_grpc::call_credentials::MetadataCredentialsFromPlugin {
                    name: FILE_CREDENTIALS.into(),
                    config_type: Some(
                        google_grpc::call_credentials::metadata_credentials_from_plugin::ConfigType::TypedConfig(any),
                    ),
                },
            )),
        }
    }

    #[test]
    fn a_cluster_target_sends_metadata() {
        let mut wire = envoy("xds");
        wire.initial_metadata =
            vec![core::HeaderValue { key: "X-Token".into(), value: "100%%".into(), ..Default::default() }];
        let service = read(wire).unwrap();
        assert_eq!(service.initial_metadata, [("x-token".to_owned(), "100%".to_owned())]);
        assert!(matches!(service.target, GrpcTarget::Cluster { name, authority: None, .. } if &*name == "xds"));
    }

    #[test]
    fn a_uri_target_takes_tls_and_a_token_from_a_file() {
        let service = read(google(|wire| {
            wire.channel_credentials = ssl();
            wire.call_credentials = vec![token_file()];
            wire.credentials_factory_name = FILE_CREDENTIALS.into();
            wire.channel_args = Some(google_grpc::ChannelArgs {
                args: HashMap::from([(
                    "grpc.use_local_subchannel_pool".to_owned(),
                    google_grpc::channel_args::Value {
                        value_specifier: Some(google_grpc::channel_args::value::ValueSpecifier::IntValue(1)),
                    },
                )]),
            });
        }));
        let GrpcTarget::Uri { target, tls, token_file, token_header, .. } = service.unwrap().target else { panic!() };
        assert_eq!(target, "xds.example:5678");
        assert_eq!(tls.unwrap().root_certs.as_deref(), Some("roots".as_bytes()));
        assert_eq!(token_file, Some(PathBuf::from("/token")));
        assert_eq!(token_header, "authorization");
    }

    #[test]
    fn services_that_are_refused() {
        let header = |key: &str, value: &str| core::GrpcService {
            initial_metadata: vec![core::HeaderValue { key: key.into(), value: value.into(), ..Default::default() }],
            ..envoy("xds")
        };
        let cases = [
            (core::GrpcService::default(), ": needs one of envoy_grpc, google_grpc"),
            (envoy(""), ".envoy_grpc.cluster_name: must not be empty"),
            (header(":path", "a"), ".initial_metadata[0].key: \":path\" is not a header name"),
            (header("a", "b\n"), ".initial_metadata[0].value: \"b\\n\" is not a header value"),
            (
                header("a", "%REQ(b)%"),
                ".initial_metadata[0].value: \"%REQ(b)%\" has an operator, which is not supported here",
            ),
            (google(|wire| wire.stat_prefix.clear()), ".google_grpc.stat_prefix: must not be empty"),
            (
                google(|wire| wire.call_credentials = vec![token_file()]),
                ".google_grpc.call_credentials[0]: needs ssl_credentials",
            ),
            (
                google(|wire| {
                    wire.channel_args = Some(google_grpc::ChannelArgs {
                        args: HashMap::from([(
                            "grpc.keepalive_time_ms".to_owned(),
                            google_grpc::channel_args::Value {
                                value_specifier: Some(google_grpc::channel_args::value::ValueSpecifier::IntValue(1)),
                            },
                        )]),
                    })
                }),
                ".google_grpc.channel_args.args[\"grpc.keepalive_time_ms\"]: is not supported",
            ),
            (
                core::GrpcService { retry_policy: Some(Default::default()), ..envoy("xds") },
                ".retry_policy: is not supported",
            ),
        ];
        for (wire, expected) in cases {
            assert_eq!(read(wire).unwrap_err(), format!("bootstrap \"\": service{expected}"));
        }
    }
}
