//! Where resources come from.
//!
//! Owns the description of control planes and files, and which of them are the same. Never connects or reads.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::service::discovery::v3::DiscoveryResponse;
use tonic::metadata::MetadataMap;

use crate::connector::Connector;
use crate::core::{Protocol, RateLimit, ResourceKind};
use crate::metadata::CallMetadata;

/// Where to get a resource. Source: `envoy.config.core.v3.ConfigSource`, with clusters resolved to connectors.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// The control plane or file.
    pub source: Source,
    /// Wait for the first answer before [`crate::Handler::on_fetch_timeout`]; `None` or zero waits for ever.
    /// Source: `ConfigSource.initial_fetch_timeout`, 15 s if not set.
    pub initial_fetch_timeout: Option<Duration>,
}

/// The kinds of source.
#[derive(Clone, Debug)]
pub enum Source {
    /// All types on one stream (`ConfigSource.ads`, `AGGREGATED_GRPC`, `AGGREGATED_DELTA_GRPC`). Watches with the same
    /// [`GrpcSource::identity`] share the stream; the first one's settings apply.
    Ads(Arc<GrpcSource>),
    /// A stream for each type, by the type's own service (`GRPC`, `DELTA_GRPC`).
    Grpc(Arc<GrpcSource>),
    /// A file that holds a `DiscoveryResponse` (`path_config_source`, `path`).
    File(Arc<FileSource>),
}

/// A control plane and how to speak with it. Source: `ApiConfigSource` and the cluster it names.
#[derive(Clone, Debug)]
pub struct GrpcSource {
    /// Tells control planes apart: two sources with the same identity are taken for the same. A hash of the
    /// `GrpcService`, or a cluster's name, serves well.
    pub identity: String,
    /// The `:authority` of requests. Source: `GrpcService.EnvoyGrpc.authority`, else the cluster's name.
    pub authority: String,
    /// Whether the connector secures its connections, so that `:scheme` is `https`.
    pub secure: bool,
    /// Makes the connections.
    pub connector: Connector,
    /// The variant of the protocol.
    pub protocol: Protocol,
    /// Sent with each stream (`GrpcService.initial_metadata`); see [`crate::metadata()`].
    pub initial_metadata: CallMetadata,
    /// HTTP/2 pings, `None` for none (`Http2ProtocolOptions.connection_keepalive`).
    pub http2_keepalive: Option<Http2Keepalive>,
    /// Time for a connection to be made (`Cluster.connect_timeout`).
    pub connect_timeout: Duration,
    /// `ApiConfigSource.set_node_on_first_message_only`.
    pub node_on_first_message_only: bool,
    /// Ask for everything by the name `*`. Off by default: not every server knows it.
    pub explicit_wildcard: bool,
    /// `ApiConfigSource.rate_limit_settings`, `None` if not set.
    pub rate_limit: Option<RateLimit>,
    /// Largest response in bytes.
    pub max_message_bytes: usize,
}

impl GrpcSource {
    /// Largest response by default, in bytes. The largest known need (Consul's dataplane) is 50 MiB.
    pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

    /// A control plane with default settings.
    pub fn new(identity: impl Into<String>, connector: Connector, protocol: Protocol) -> Self {
        let identity = identity.into();
        Self {
            authority: identity.clone(),
            identity,
            secure: false,
            connector,
            protocol,
            initial_metadata: CallMetadata::fixed(MetadataMap::new()),
            http2_keepalive: None,
            connect_timeout: Duration::from_secs(5),
            node_on_first_message_only: false,
            explicit_wildcard: false,
            rate_limit: None,
            max_message_bytes: Self::MAX_MESSAGE_BYTES,
        }
    }
}

/// HTTP/2 pings on a connection to a control plane.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Http2Keepalive {
    /// Time between pings (`KeepaliveSettings.interval`).
    pub interval: Duration,
    /// Time for the answer (`KeepaliveSettings.timeout`).
    pub timeout: Duration,
}

/// Parses the content of a file source; the path tells YAML from JSON from protobuf. The error is for a person.
pub type ParseDiscoveryResponse = Arc<dyn Fn(&Path, &[u8]) -> Result<DiscoveryResponse, String> + Send + Sync>;

/// A file and how to read it. Source: `envoy.config.core.v3.PathConfigSource`.
#[derive(Clone)]
pub struct FileSource {
    /// The file.
    pub path: PathBuf,
    /// Directory in which any moved entry means that the file is new (`watched_directory`).
    pub watched_directory: Option<PathBuf>,
    /// Parses it.
    pub parse: ParseDiscoveryResponse,
}

impl fmt::Debug for FileSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, watched_directory, parse: _ } = self;
        f.debug_struct("FileSource").field("path", path).field("watched_directory", watched_directory).finish()
    }
}

/// Identity of a source: watches with an equal key share a stream or file.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum SourceKey {
    /// The aggregated stream of the control plane with this identity.
    Ads(String),
    /// The stream for one type.
    Grpc {
        /// [`GrpcSource::identity`].
        identity: String,
        /// The type on this stream.
        kind: ResourceKind,
        /// The variant of the protocol.
        protocol: Protocol,
    },
    /// A file, read for one type.
    File {
        /// The file.
        path: PathBuf,
        /// The directory watched for it, if not its own.
        watched_directory: Option<PathBuf>,
        /// The type expected in it.
        kind: ResourceKind,
    },
}

impl SourceConfig {
    /// Wait for the first answer when a `ConfigSource` does not set it.
    pub const DEFAULT_INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

    /// The identity of this source for resources of `kind`.
    #[must_use]
    pub fn key(&self, kind: ResourceKind) -> SourceKey {
        match &self.source {
            Source::Ads(grpc) => SourceKey::Ads(grpc.identity.clone()),
            Source::Grpc(grpc) => {
                SourceKey::Grpc { identity: grpc.identity.clone(), kind, protocol: grpc.protocol_for(Some(kind)) }
            }
            Source::File(file) => {
                let FileSource { path, watched_directory, parse: _ } = &**file;
                SourceKey::File { path: path.clone(), watched_directory: watched_directory.clone(), kind }
            }
        }
    }
}

impl GrpcSource {
    /// The variant used for a stream of `only`: virtual hosts exist in delta alone.
    pub(crate) fn protocol_for(&self, only: Option<ResourceKind>) -> Protocol {
        if only == Some(ResourceKind::VirtualHost) { Protocol::Delta } else { self.protocol }
    }
}

impl fmt::Display for SourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ads(identity) => write!(f, "ADS from {identity}"),
            Self::Grpc { identity, kind, protocol: _ } => write!(f, "{} resources from {identity}", kind.noun()),
            Self::File { path, watched_directory: _, kind } => {
                write!(f, "{} resources from file {}", kind.noun(), path.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r10_all_types_of_an_ads_source_share_a_key() {
        let grpc = Arc::new(GrpcSource::new("cp", Connector::tcp(Vec::new(), None), Protocol::Sotw));
        let config = |source| SourceConfig { source, initial_fetch_timeout: None };
        let ads = config(Source::Ads(Arc::clone(&grpc)));
        assert_eq!(ads.key(ResourceKind::Listener), ads.key(ResourceKind::Cluster));
        let split = config(Source::Grpc(grpc));
        assert_ne!(split.key(ResourceKind::Listener), split.key(ResourceKind::Cluster));
        assert_ne!(split.key(ResourceKind::Listener), ads.key(ResourceKind::Listener));
        assert!(matches!(
            split.key(ResourceKind::VirtualHost),
            SourceKey::Grpc { protocol: Protocol::Delta, kind: ResourceKind::VirtualHost, .. }
        ));
    }
}
