//! Where a resource comes from (`envoy.config.core.v3.ConfigSource`).
//!
//! Owns the checked description of discovery servers and files. Never connects.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::http_uri::CallRetries;

mod google;
mod grpc;
mod parse;

pub use google::{GOOGLE_PREFIX, GoogleTarget};

pub(crate) use grpc::{grpc_call, grpc_service, metadata_entry};
pub(crate) use parse::{api_source, api_version, config_source};

/// A source of one kind of resource, and how long initialisation waits for it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ConfigSource {
    /// The server or file.
    pub kind: SourceKind,
    /// `None` waits for ever (`initial_fetch_timeout: 0s`); 15 s unless given.
    pub initial_fetch_timeout: Option<Duration>,
}

/// The server or file of a [`ConfigSource`].
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum SourceKind {
    /// The one aggregated stream of the bootstrap's `ads_config`.
    Ads,
    /// A stream of its own for this type of resource.
    Api(Arc<ApiSource>),
    /// A file that holds a DiscoveryResponse.
    File(Arc<FileSource>),
}

/// Source: `PathConfigSource`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct FileSource {
    /// The file to read.
    pub path: PathBuf,
    /// A move into this directory, instead of one onto the file, makes it be read again.
    pub watched_directory: Option<PathBuf>,
}

/// Which protocol a management server is spoken to with.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum XdsProtocol {
    /// State of the world (`GRPC`).
    Sotw,
    /// Incremental (`DELTA_GRPC`).
    Delta,
}

/// Source: `ApiConfigSource`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ApiSource {
    /// State of the world or delta.
    pub protocol: XdsProtocol,
    /// In order of preference.
    pub services: Vec<GrpcService>,
    /// Only the first request of a stream carries the node.
    pub set_node_on_first_message_only: bool,
    /// At most this many requests a second, with bursts of `max_tokens`.
    pub rate_limit: Option<RequestRateLimit>,
}

/// Source: `RateLimitSettings`. The fill rate is kept in milli-requests a second so that the type stays `Eq`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct RequestRateLimit {
    /// Size of the bucket, 100 unless given.
    pub max_tokens: u32,
    /// Tokens added per 1,000 s (10/s is 10,000).
    pub fill_rate_milli: u64,
}

/// Source: `GrpcService`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct GrpcService {
    /// Whom to call.
    pub target: GrpcTarget,
    /// Limit for one call; none for streams.
    pub timeout: Option<Duration>,
    /// Headers sent with each call, in order.
    pub initial_metadata: Vec<(String, String)>,
}

/// A gRPC service that is called for requests: in one of our clusters, or at a target that is made one. Source: `GrpcService`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GrpcCall {
    /// Which cluster.
    pub cluster: Arc<str>,
    /// The `:authority` of calls.
    pub authority: String,
    /// Limit for one call; none if `None`.
    pub timeout: Option<Duration>,
    /// Headers sent with each call, in order; lower case.
    pub metadata: Vec<(String, String)>,
    /// Longer answers are refused.
    pub max_answer_bytes: Option<u32>,
    /// In which cases it is called again, within the limit.
    pub retries: Option<CallRetries>,
    /// Set if it is a target of `google_grpc`.
    pub google: Option<Arc<GoogleCall>>,
}

/// What calls of a target of `google_grpc` have besides. Source: `GoogleGrpc`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GoogleCall {
    /// The cluster that stands for the target.
    pub target: Arc<GoogleTarget>,
    /// As configured.
    pub uri: Arc<str>,
    /// The `<prefix>` in `grpc.<prefix>.*` stats.
    pub stat_prefix: Arc<str>,
    /// Sent with each call.
    pub token: Option<TokenFile>,
}

/// A token that a file holds, which is read for each call.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct TokenFile {
    /// The file.
    pub file: PathBuf,
    /// The header that it is sent in.
    pub header: String,
    /// What comes before it there.
    pub prefix: String,
}

impl GrpcService {
    /// The `:authority` of calls: what is configured, else the name of the cluster or what the target names.
    pub fn authority(&self) -> String {
        match &self.target {
            GrpcTarget::Cluster { authority: Some(authority), name: _, max_receive_message_bytes: _ } => {
                authority.clone()
            }
            GrpcTarget::Cluster { name, authority: None, max_receive_message_bytes: _ } => name.to_string(),
            GrpcTarget::Uri { target, .. } if target.starts_with("unix") => "localhost".to_owned(),
            GrpcTarget::Uri { target, .. } => {
                let schemes = ["dns:", "ipv4:", "ipv6:"];
                let plain = schemes.iter().find_map(|scheme| target.strip_prefix(scheme)).unwrap_or(target);
                plain.trim_start_matches('/').to_owned()
            }
        }
    }
}

/// Source: `GrpcService.target_specifier`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum GrpcTarget {
    /// One of our own clusters (`envoy_grpc`).
    Cluster { name: Arc<str>, authority: Option<String>, max_receive_message_bytes: Option<u32> },
    /// A target URI of its own (`google_grpc`): `host:port`, `dns:///host:port` or `unix:path`.
    ///
    /// The content of `token_file`, if given, goes with each call in the header `token_header`, after `token_prefix`.
    Uri {
        target: String,
        tls: Option<GoogleTls>,
        token_file: Option<PathBuf>,
        token_header: String,
        token_prefix: String,
        max_receive_message_bytes: Option<u32>,
        stat_prefix: Arc<str>,
    },
}

/// Source: `GoogleGrpc.SslCredentials`; all PEM.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct GoogleTls {
    /// Trusted roots; the system's when `None`.
    pub root_certs: Option<Vec<u8>>,
    /// Client certificate chain.
    pub cert_chain: Option<Vec<u8>>,
    /// Client private key.
    pub private_key: Option<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_what_the_target_names() {
        let authority = |target: &str| {
            let target = GrpcTarget::Uri {
                target: target.into(),
                tls: None,
                token_file: None,
                token_header: String::new(),
                token_prefix: String::new(),
                max_receive_message_bytes: None,
                stat_prefix: "".into(),
            };
            GrpcService { target, timeout: None, initial_metadata: Vec::new() }.authority()
        };
        assert_eq!(authority("xds.example:443"), "xds.example:443");
        assert_eq!(authority("dns:///xds.example:443"), "xds.example:443");
        assert_eq!(authority("ipv4:10.0.0.1:443"), "10.0.0.1:443");
        assert_eq!(authority("unix:/run/xds"), "localhost");
        assert_eq!(authority("unix-abstract:xds"), "localhost");
    }
}
