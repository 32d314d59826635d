//! Network filters: what happens to a connection between its filter chain's choice and the terminal filter.
//!
//! Owns the order in which they are asked and what becomes of a connection that one of them refuses. They are asked once,
//! when the connection is ready (after the TLS handshake), so that nothing is done for one that is refused. Never reads
//! what a connection carries.

mod ext_authz;
mod limit;
mod rate;
mod ratelimit;
mod rbac;
mod refuse;
mod stats;

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::http::filters::FilterStateEntry;
use outrigger_config::istio::MetadataExchange;
use outrigger_config::listener::NetworkFilterConfig;
use outrigger_config::network::{RuntimeFlag, SetFilterState, SniDynamicForward};

pub use rate::SharedBuckets;
pub(crate) use rbac::ConnectionFacts;
pub use refuse::refuse;
pub use stats::NetworkStats;

use crate::accesslog::{Facts, format};
use crate::graph::{Application, ChainNode, RuntimeSnapshot};
use crate::istio;
use crate::stream::{ConnectionInfo, ResponseFlag, StreamInfo};
use crate::upstream::dns_cache::{DYNAMIC_HOST, DYNAMIC_PORT};
use crate::worker::Worker;
use crate::worker::socket::Io;

/// A filter that is not terminal, with what it keeps for all of its connections.
pub enum NetworkFilter {
    /// Lets through what its rules allow.
    Rbac(rbac::RbacFilter),
    /// Asks a service outside.
    ExtAuthz(ext_authz::AuthzFilter),
    /// Asks a service outside whether there is room.
    GlobalRateLimit(ratelimit::GlobalRateFilter),
    /// Lets a number of connections through at a time.
    ConnectionLimit(Arc<limit::Limit>),
    /// Lets a number of connections through in a time.
    LocalRateLimit(rate::RateFilter),
    /// Makes the server name the cluster of the TCP proxy.
    SniCluster,
    /// Makes the server name the host of a dynamic forward proxy.
    SniDynamicForward(Arc<SniDynamicForward>),
    /// Leaves objects for the filters after it.
    SetFilterState(Arc<SetFilterState>),
    /// Says who we are before the first byte of the application.
    MetadataExchange(Arc<MetadataExchange>),
    /// Does nothing.
    Idle,
}

impl NetworkFilter {
    /// The filter of a configuration; `None` for a terminal one, and for one that has to be discovered.
    pub fn build(config: &NetworkFilterConfig) -> Option<Self> {
        match config {
            NetworkFilterConfig::Rbac(config) => Some(Self::Rbac(rbac::RbacFilter::new(Arc::clone(config)))),
            NetworkFilterConfig::ExtAuthz(config) => {
                Some(Self::ExtAuthz(ext_authz::AuthzFilter::new(Arc::clone(config))))
            }
            NetworkFilterConfig::GlobalRateLimit(config) => {
                Some(Self::GlobalRateLimit(ratelimit::GlobalRateFilter::new(Arc::clone(config))))
            }
            NetworkFilterConfig::ConnectionLimit(config) => {
                Some(Self::ConnectionLimit(Arc::new(limit::Limit::new(Arc::clone(config)))))
            }
            NetworkFilterConfig::LocalRateLimit(config) => {
                Some(Self::LocalRateLimit(rate::RateFilter::new(Arc::clone(config))))
            }
            NetworkFilterConfig::SniCluster => Some(Self::SniCluster),
            NetworkFilterConfig::SniDynamicForward(config) => Some(Self::SniDynamicForward(Arc::clone(config))),
            NetworkFilterConfig::SetFilterState(config) => Some(Self::SetFilterState(Arc::clone(config))),
            NetworkFilterConfig::MetadataExchange(config) => Some(Self::MetadataExchange(Arc::clone(config))),
            // The TCP proxy reports what becomes of the connection.
            NetworkFilterConfig::IstioStats(_) => Some(Self::Idle),
            NetworkFilterConfig::TcpProxy(_)
            | NetworkFilterConfig::Http(_)
            | NetworkFilterConfig::OwnAnswer(_)
            | NetworkFilterConfig::Discovered(_) => None,
        }
    }
}

/// What filters hold for a connection that they let through, given back when dropped.
#[derive(Default)]
pub struct Admission {
    _places: Vec<limit::Place>,
}

/// A filter's refusal of a connection.
#[derive(Debug, Default)]
pub struct Refusal {
    /// Why, as the details of a response.
    pub reason: Option<&'static str>,
    /// Why, for the access log.
    pub details: Option<Cow<'static, str>>,
    /// What the access log calls it.
    pub flag: Option<ResponseFlag>,
    /// The connection is closed when its first bytes arrive, as one would be whose bytes were looked at: clients then see
    /// an end and no error.
    pub after_first_bytes: bool,
    /// Time until it is closed.
    pub delay: Option<Duration>,
}

impl Refusal {
    /// Tells the access log.
    pub fn record(&self, info: &StreamInfo) {
        if let Some(flag) = self.flag {
            info.flag(flag);
        }
        if let Some(reason) = self.reason {
            info.set_details(reason);
        }
        if let Some(details) = &self.details {
            *info.termination.borrow_mut() = Some(details.clone());
        }
    }
}

/// Asks the filters of a chain about a connection.
///
/// # Errors
/// When one of them refuses it.
pub async fn admit(
    worker: &Rc<Worker>,
    filters: &[NetworkFilter],
    connection: &ConnectionInfo,
) -> Result<Admission, Refusal> {
    let mut admission = Admission::default();
    for filter in filters {
        match filter {
            NetworkFilter::Rbac(filter) => filter.check(worker, connection)?,
            // Boxed: few chains have one, and all connections would pay for its size.
            NetworkFilter::ExtAuthz(filter) => Box::pin(filter.check(worker, connection)).await?,
            NetworkFilter::GlobalRateLimit(filter) => Box::pin(filter.check(worker, connection)).await?,
            NetworkFilter::ConnectionLimit(limit) => {
                admission._places.extend(limit::Limit::take_place(limit, worker)?);
            }
            NetworkFilter::LocalRateLimit(filter) => filter.check(worker)?,
            NetworkFilter::SniCluster => {
                if let Some(name) = &connection.server_name {
                    connection.filter_state.borrow_mut().insert(TCP_PROXY_CLUSTER.to_owned(), name.clone());
                }
            }
            NetworkFilter::SniDynamicForward(settings) => {
                // The TCP proxy resolves it, and a connection without a name has nowhere to go.
                let mut state = connection.filter_state.borrow_mut();
                if let Some(name) = &connection.server_name {
                    let (host, port) = (DYNAMIC_HOST.to_owned(), DYNAMIC_PORT.to_owned());
                    state.entry(host).or_insert_with(|| name.clone());
                    state.entry(port).or_insert_with(|| settings.port.to_string());
                }
            }
            NetworkFilter::SetFilterState(settings) => set_filter_state(worker, connection, settings),
            NetworkFilter::MetadataExchange(_) | NetworkFilter::Idle => {}
        }
    }
    Ok(admission)
}

/// The stream of an admitted connection, on which the filters of its chain may say something first, and hear what the client
/// says.
pub fn begin(worker: &Worker, chain: &ChainNode, connection: &ConnectionInfo, io: Io) -> Io {
    let reported = matches!(&chain.application, Application::Tcp(node) if node.reporter.is_some());
    let alpn = connection.tls.as_ref().and_then(|tls| tls.alpn.as_deref());
    chain.filters.iter().fold(io, |io, filter| match filter {
        NetworkFilter::MetadataExchange(settings) => {
            let heard = reported.then(|| Arc::clone(connection.peer_words.get_or_init(istio::Heard::default)));
            istio::introduce(worker, settings, alpn, io, heard)
        }
        _ => io,
    })
}

fn set_filter_state(worker: &Worker, connection: &ConnectionInfo, settings: &SetFilterState) {
    for entry in &settings.objects {
        let FilterStateEntry { value, omit_empty_values, skip_if_empty, .. } = entry;
        let mut info = StreamInfo::new(connection.start, None);
        info.dynamic_metadata.clone_from(&connection.dynamic_metadata);
        info.filter_state.clone_from(&connection.filter_state);
        let mut text = Vec::new();
        let write = if *omit_empty_values { format::write_header } else { format::write };
        write(value, &Facts::new(&info, connection, &worker.process.clock, Instant::now()), &mut text);
        if *skip_if_empty && text.is_empty() {
            continue;
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        connection.filter_state.borrow_mut().set(entry, text);
    }
}

/// The object of the filter state that names the cluster of a TCP proxy.
pub const TCP_PROXY_CLUSTER: &str = "envoy.tcp_proxy.cluster";

/// Whether a flag is set, by the runtime or by itself.
pub fn holds(flag: &RuntimeFlag, runtime: &RuntimeSnapshot) -> bool {
    let RuntimeFlag { default, runtime_key } = flag;
    if runtime_key.is_empty() { *default } else { runtime.flag(runtime_key, *default) }
}
