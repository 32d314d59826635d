//! From config sources to what the xDS client takes.
//!
//! Owns how control planes are reached and told apart. Never connects itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use outrigger_api::{Format, Parsed, Schema, UnknownFields};
use outrigger_config::cluster::Cluster;
use outrigger_config::http::Http2Keepalive;
use outrigger_config::source::{ApiSource, ConfigSource, FileSource, GrpcService, GrpcTarget, SourceKind, XdsProtocol};
use outrigger_xds::{
    CallMetadata, Connector, GrpcSource, ParseDiscoveryResponse, Protocol, RateLimit, ResourceKind, Source,
    SourceConfig,
};

use super::need::{Need, Reference};
use super::unknown_fields::UnknownFieldRule;
use crate::process::Process;
use crate::upstream::call_metadata::call_metadata;
use crate::upstream::dial::{self, DialError};

/// Why a source cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// `ads: {}` without `ads_config`.
    #[error("the source is ADS, but the bootstrap has no dynamic_resources.ads_config")]
    NoAds,
    /// Nobody to ask.
    #[error("api_config_source names no gRPC service")]
    NoService,
    /// Only static clusters reach control planes.
    #[error("cluster {0:?} is not a static cluster of the bootstrap")]
    UnknownCluster(Arc<str>),
    /// It cannot be dialed.
    #[error("gRPC service: {0}")]
    Dial(#[from] DialError),
}

/// Turns sources of the configuration into those of the client, the same into the same.
pub struct Sources {
    process: Arc<Process>,
    ads: Option<Arc<ApiSource>>,
    clusters: HashMap<Arc<str>, Arc<Cluster>>,
    unknown_fields: UnknownFieldRule,
    made: RefCell<HashMap<SourceKind, Source>>,
}

impl Sources {
    /// Sources of a bootstrap.
    pub fn new(
        process: Arc<Process>,
        ads: Option<Arc<ApiSource>>,
        clusters: &[Arc<Cluster>],
        unknown_fields: UnknownFieldRule,
    ) -> Self {
        let clusters = clusters.iter().map(|cluster| (Arc::clone(&cluster.name), Arc::clone(cluster))).collect();
        Self { process, ads, clusters, unknown_fields, made: RefCell::default() }
    }

    /// The client's form of a source.
    pub fn resolve(&self, config: &ConfigSource) -> Result<SourceConfig, SourceError> {
        let made = self.made.borrow().get(&config.kind).cloned();
        let source = match made {
            Some(source) => source,
            None => {
                let source = match &config.kind {
                    SourceKind::Ads => Source::Ads(self.grpc(self.ads.as_deref().ok_or(SourceError::NoAds)?)?),
                    SourceKind::Api(api) => Source::Grpc(self.grpc(api)?),
                    SourceKind::File(file) => Source::File(Arc::new(file_source(file, &self.unknown_fields))),
                };
                self.made.borrow_mut().insert(config.kind.clone(), source.clone());
                source
            }
        };
        Ok(SourceConfig { source, initial_fetch_timeout: config.initial_fetch_timeout })
    }

    /// The need that a resource of this source is.
    pub fn need(&self, kind: ResourceKind, name: &Arc<str>, source: &ConfigSource) -> Result<Need, SourceError> {
        Ok(Need::Resource { kind, source: self.resolve(source)?.key(kind), name: Arc::clone(name) })
    }

    /// The need that a reference is.
    pub fn need_of(&self, reference: &Reference<'_>) -> Result<Need, SourceError> {
        self.need(reference.kind, reference.name, reference.source)
    }

    fn grpc(&self, api: &ApiSource) -> Result<Arc<GrpcSource>, SourceError> {
        let ApiSource { protocol, services, set_node_on_first_message_only, rate_limit } = api;
        let first = services.first().ok_or(SourceError::NoService)?;
        let protocol = match protocol {
            XdsProtocol::Sotw => Protocol::Sotw,
            XdsProtocol::Delta => Protocol::Delta,
        };
        let mut connectors = Vec::with_capacity(services.len());
        for service in services {
            if let GrpcTarget::Cluster { name, .. } = &service.target
                && !self.clusters.contains_key(name)
            {
                return Err(SourceError::UnknownCluster(Arc::clone(name)));
            }
            connectors.push(dial::connector_for(service, &self.process)?);
        }
        let mut source = GrpcSource::new(identity(services), in_order(connectors), protocol);
        source.node_on_first_message_only = *set_node_on_first_message_only;
        source.rate_limit = rate_limit
            .map(|limit| RateLimit { max_tokens: limit.max_tokens, fill_rate: limit.fill_rate_milli as f64 / 1000.0 });
        source.authority = first.authority();
        match &first.target {
            GrpcTarget::Cluster { name, authority: _, max_receive_message_bytes } => {
                self.apply_cluster(name, &mut source);
                apply_limit(*max_receive_message_bytes, &mut source);
            }
            GrpcTarget::Uri { target: _, tls, max_receive_message_bytes, .. } => {
                source.secure = tls.is_some();
                apply_limit(*max_receive_message_bytes, &mut source);
            }
        }
        let service = first.clone();
        source.initial_metadata = CallMetadata::new(move || call_metadata(&service).map_err(|error| error.to_string()));
        Ok(Arc::new(source))
    }

    fn apply_cluster(&self, name: &Arc<str>, source: &mut GrpcSource) {
        let Some(cluster) = self.clusters.get(name) else { return };
        source.secure = cluster.transport.tls().is_some();
        source.connect_timeout = cluster.connect_timeout;
        // A stream of a control plane is never sent on a connection that was idle.
        let keepalive = |Http2Keepalive { interval, timeout, idle_interval: _ }| {
            Some(outrigger_xds::Http2Keepalive { interval: interval?, timeout })
        };
        source.http2_keepalive = cluster.http.http2.keepalive.and_then(keepalive);
    }
}

fn apply_limit(limit: Option<u32>, source: &mut GrpcSource) {
    if let Some(bytes) = limit {
        source.max_message_bytes = bytes as usize;
    }
}

/// The name of what is called, and a number for all the rest, so that other headers make another control plane.
fn identity(services: &[GrpcService]) -> String {
    let name = match services.first().map(|service| &service.target) {
        Some(GrpcTarget::Cluster { name, .. }) => name.to_string(),
        Some(GrpcTarget::Uri { target, .. }) => target.clone(),
        None => String::new(),
    };
    let mut hasher = DefaultHasher::new();
    services.hash(&mut hasher);
    format!("{name}#{:08x}", hasher.finish() as u32)
}

/// The first that connects.
fn in_order(mut connectors: Vec<Connector>) -> Connector {
    if connectors.len() == 1 {
        return connectors.remove(0);
    }
    let connectors: Arc<[Connector]> = connectors.into();
    Connector::new(move || {
        let connectors = Arc::clone(&connectors);
        async move {
            let mut failure = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
            for connector in connectors.iter() {
                match connector.connect().await {
                    Ok(connection) => return Ok(connection),
                    Err(error) => failure = error,
                }
            }
            Err(failure)
        }
    })
}

fn file_source(file: &FileSource, rule: &UnknownFieldRule) -> outrigger_xds::FileSource {
    let FileSource { path, watched_directory } = file;
    let rule = rule.clone();
    let parse: ParseDiscoveryResponse = Arc::new(move |path: &Path, content: &[u8]| {
        let format = Format::of(path, content);
        let Parsed { message, unknown_fields } = Schema::load()
            .parse_discovery_response(content, format, UnknownFields::Collect)
            .map_err(|error| error.to_string())?;
        // Encoded resources still have their unknown fields: those are told of one by one.
        if format != Format::Protobuf {
            rule.check(&path.display(), &unknown_fields)?;
        }
        Ok(message)
    });
    outrigger_xds::FileSource { path: path.clone(), watched_directory: watched_directory.clone(), parse }
}
