//! What is known of a connection and of a stream (a request, or a proxied TCP connection).
//!
//! Owns the facts that access logs, stats and local replies share: recorded once, read by all. Never writes a log.

use std::borrow::Cow;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use outrigger_config::address::Address;
use outrigger_config::cluster::Cluster;
use outrigger_config::route::Route;
use rustls::sign::CertifiedKey;

use crate::explain::Cause;
use crate::filter_state::FilterState;
use crate::http::message::Version;
use crate::istio::{Heard, Peers};
use crate::listener::filters::fingerprint::Fingerprints;
use crate::moments::{Milestone, Moments, TryMoments};
use crate::upstream::host::Host;
use crate::upstream::proxy_header::Tlv;

/// A downstream connection.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// Unique in the process.
    pub id: u64,
    /// When it was accepted.
    pub start: Instant,
    /// The listener that accepted it.
    pub listener: Arc<str>,
    /// Original destination, if restored; the socket's address otherwise.
    pub local: Address,
    /// The client, after a PROXY protocol header.
    pub remote: Address,
    /// The peer of the socket.
    pub direct_remote: Address,
    /// SNI, if the client sent one; lower case.
    pub server_name: Option<String>,
    /// ALPN values offered, or found by inspection.
    pub application_protocols: Vec<String>,
    /// Name of the filter chain.
    pub filter_chain: Arc<str>,
    /// Set when TLS was terminated.
    pub tls: Option<TlsInfo>,
    /// The address of the socket, where `local` is another one.
    pub socket_local: Option<Box<Address>>,
    /// Whether a listener filter restored `local`.
    pub local_restored: bool,
    /// TLVs of its PROXY protocol header that a listener filter was told to keep.
    pub proxy_tlvs: Option<Box<Vec<Tlv>>>,
    /// What PROXY protocol headers towards endpoints get instead of those, once a TCP proxy has said so.
    pub outgoing_tlvs: OnceCell<Box<Vec<Tlv>>>,
    /// JA3 and JA4 of its ClientHello, if a listener filter was told to compute them.
    pub tls_fingerprints: Option<Box<Fingerprints>>,
    /// What network filters tell each other and the log: values by namespace.
    pub dynamic_metadata: RefCell<BTreeMap<String, serde_json::Map<String, serde_json::Value>>>,
    /// Named objects that network filters leave, as text. Requests see them too.
    pub filter_state: RefCell<FilterState>,
    /// What the client says of itself before the first byte of the application, if it is listened to.
    pub peer_words: OnceCell<Heard>,
}

impl ConnectionInfo {
    /// The address of the socket.
    pub fn direct_local(&self) -> &Address {
        self.socket_local.as_deref().unwrap_or(&self.local)
    }

    /// TLVs for PROXY protocol headers towards endpoints.
    pub fn tlvs(&self) -> &[Tlv] {
        self.outgoing_tlvs.get().or(self.proxy_tlvs.as_ref()).map_or(&[], |tlvs| tlvs)
    }

    /// Who the client's certificate says it is: its first URI name, or else its subject.
    pub fn peer_name(&self) -> Option<&str> {
        let peer = self.tls.as_ref()?.peer.as_deref()?;
        Some(peer.uri_sans.first().unwrap_or(&peer.subject))
    }

    /// The same as services outside are told it: a DNS name comes before the subject.
    pub fn peer_principal(&self) -> Option<&str> {
        let peer = self.tls.as_ref()?.peer.as_deref()?;
        Some(peer.uri_sans.first().or_else(|| peer.dns_sans.first()).unwrap_or(&peer.subject))
    }
}

/// What a TLS handshake showed.
#[derive(Clone, Debug, Default)]
pub struct TlsInfo {
    /// `TLSv1.3`, as Envoy prints it.
    pub version: &'static str,
    /// OpenSSL's name of the cipher suite.
    pub cipher: &'static str,
    /// Negotiated protocol.
    pub alpn: Option<Vec<u8>>,
    /// Facts of the peer's certificate, if it sent one.
    pub peer: Option<Arc<PeerCertificate>>,
    /// URI SAN of our own certificate.
    pub local_uri_sans: Vec<String>,
    /// What our own certificate is called: its first URI name, else its first DNS name, else its subject.
    pub local_principal: Arc<str>,
    /// The server name of the handshake.
    pub sni: Option<Box<str>>,
    /// An earlier session was taken up again.
    pub resumed: bool,
    /// What became of our OCSP response; `None` if the client did not ask for one.
    pub stapling: Option<crate::tls::Stapling>,
    /// The group of the key exchange, as OpenSSL calls it.
    pub group: &'static str,
    /// The algorithm that the peer signed the handshake with, as OpenSSL calls it; that of the first handshake where a
    /// session was taken up again, and empty without a certificate.
    pub peer_signature: &'static str,
    /// Our own certificate, the leaf first.
    pub local: Option<Arc<CertifiedKey>>,
    /// From the beginning of the connection to the end of the handshake.
    pub handshake: Duration,
}

impl TlsInfo {
    /// DER of our own certificate, if there is one.
    pub fn local_chain(&self) -> Option<&[u8]> {
        self.local.as_deref()?.cert.first().map(|der| &**der)
    }
}

/// Facts of a certificate.
#[derive(Clone, Debug, Default)]
pub struct PeerCertificate {
    /// URI names.
    pub uri_sans: Vec<String>,
    /// DNS names.
    pub dns_sans: Vec<String>,
    /// RFC 2253 subject.
    pub subject: String,
    /// RFC 2253 issuer.
    pub issuer: String,
    /// SHA-256 of the certificate, lower-case hex.
    pub sha256: String,
    /// DER of leaf and chain.
    pub chain_der: Vec<Vec<u8>>,
    /// The chain was verified against trusted roots.
    pub verified: bool,
}

/// One request, or one proxied TCP connection.
#[derive(Debug)]
pub struct StreamInfo {
    /// When it began.
    pub start: Instant,
    /// HTTP version; `None` for TCP.
    pub version: Option<Version>,
    /// Body bytes from downstream.
    pub bytes_received: Cell<u64>,
    /// Body bytes to downstream.
    pub bytes_sent: Cell<u64>,
    /// Bytes read from upstream sockets, where counted.
    pub upstream_bytes_received: Cell<u64>,
    /// Bytes written to upstream sockets, where counted.
    pub upstream_bytes_sent: Cell<u64>,
    /// The whole response has left.
    pub response_sent: Cell<bool>,
    /// Sent to downstream; 0 before.
    pub response_code: Cell<u16>,
    /// Why that code, in Envoy's words such as `via_upstream` or `route_not_found`.
    pub details: RefCell<Cow<'static, str>>,
    /// What went wrong.
    pub flags: Cell<ResponseFlags>,
    /// Last request byte received.
    pub request_end: Cell<Option<Instant>>,
    /// First response byte from upstream.
    pub response_start: Cell<Option<Instant>>,
    /// End of all; set when the entry is logged.
    pub end: Cell<Option<Instant>>,
    /// Chosen endpoint of the last try.
    pub upstream_host: RefCell<Option<Arc<Host>>>,
    /// Stat name of the cluster.
    pub cluster: RefCell<Option<Arc<str>>>,
    /// Local address of the upstream connection.
    pub upstream_local: Cell<Option<SocketAddr>>,
    /// HTTP version of the upstream.
    pub upstream_version: Cell<Option<Version>>,
    /// Why the upstream connection failed.
    pub upstream_failure: RefCell<Option<Box<str>>>,
    /// Tries made.
    pub attempts: Cell<u32>,
    /// Name of the route; empty for none.
    pub route_name: RefCell<Option<Arc<str>>>,
    /// By which of its virtual host's clusters it is counted.
    pub virtual_cluster: RefCell<Option<Arc<str>>>,
    /// How the connection ended, if it was not a plain close.
    pub termination: RefCell<Option<Cow<'static, str>>>,
    /// Bytes of the request head.
    pub request_header_bytes: Cell<u64>,
    /// Bytes of the response head.
    pub response_header_bytes: Cell<u64>,
    /// What filters tell each other and the log: values by namespace.
    pub dynamic_metadata: RefCell<BTreeMap<String, serde_json::Map<String, serde_json::Value>>>,
    /// The request is a health check.
    pub health_check: Cell<bool>,
    /// Messages of a gRPC call so far: of the request, and of the response.
    pub grpc_messages: Cell<Option<(u64, u64)>>,
    /// Named objects that filters leave, as text.
    pub filter_state: RefCell<FilterState>,
    /// From the first byte of the request to the end of its head.
    pub head_duration: Cell<Duration>,
    /// When what lies between happened.
    pub moments: Moments,
    /// The limit that ended it, if one did.
    pub cause: Cell<Option<Cause>>,
    /// The cluster.
    pub cluster_config: RefCell<Option<Arc<Cluster>>>,
    /// The route.
    pub route: RefCell<Option<Arc<Route>>>,
    /// What TLS showed of the upstream connection.
    pub upstream_tls: RefCell<Option<Arc<TlsInfo>>>,
    /// Id of the upstream connection; 0 before there is one.
    pub upstream_connection: Cell<u64>,
    /// Endpoints of tries before the last one, with the ids of their connections.
    pub earlier_tries: RefCell<Vec<(Arc<Host>, u64)>>,
    /// What workloads of a mesh said of themselves.
    pub peers: RefCell<Peers>,
    /// What is being done about it.
    pub phase: Cell<Phase>,
    /// Whether somebody wants it to end at once.
    pub kill: Cell<Kill>,
    /// Bytes of the request body that are kept to be sent again.
    pub kept_bytes: Cell<usize>,
    /// The client that the request was sent for, where it is not the peer of its connection.
    pub client: OnceCell<Box<Address>>,
}

/// What a [`StreamInfo`] records of one try.
#[derive(Clone, Debug)]
pub struct TryFacts {
    /// From 1.
    pub number: u32,
    host: Option<Arc<Host>>,
    local: Option<SocketAddr>,
    version: Option<Version>,
    connection: u64,
    tls: Option<Arc<TlsInfo>>,
    moments: TryMoments,
}

/// Ending a stream by hand.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Kill {
    /// Nobody wants that.
    #[default]
    No,
    /// Somebody does.
    Asked,
    /// It is ending because somebody did.
    Obeyed,
    /// It is reset, since it holds much memory and there is little.
    Overload,
}

/// What is being done about a stream.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Phase {
    /// It passes through filters, and seeks its route.
    #[default]
    Filters,
    /// An endpoint is sought; where places are limited, it waits for one.
    Queue,
    /// A connection is made, or waited for.
    Connect,
    /// The request is sent, or will be once the client has sent it.
    Send,
    /// All was sent.
    Wait,
    /// The next try waits for its time.
    BackOff,
    /// The response goes to the client.
    Receive,
    /// An answer of our own goes to the client.
    Answer,
    /// Bytes go both ways.
    Relay,
}

impl Phase {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Filters => "in filters",
            Phase::Queue => "waiting in queue",
            Phase::Connect => "connecting",
            Phase::Send => "sending",
            Phase::Wait => "waiting for response",
            Phase::BackOff => "waiting to retry",
            Phase::Receive => "receiving",
            Phase::Answer => "being answered here",
            Phase::Relay => "relaying",
        }
    }
}

impl StreamInfo {
    /// A stream that begins now.
    pub fn new(start: Instant, version: Option<Version>) -> Self {
        Self {
            start,
            version,
            bytes_received: Cell::new(0),
            bytes_sent: Cell::new(0),
            upstream_bytes_received: Cell::new(0),
            upstream_bytes_sent: Cell::new(0),
            response_sent: Cell::new(false),
            response_code: Cell::new(0),
            details: RefCell::new(Cow::Borrowed("")),
            flags: Cell::new(ResponseFlags::default()),
            request_end: Cell::new(None),
            response_start: Cell::new(None),
            end: Cell::new(None),
            upstream_host: RefCell::new(None),
            cluster: RefCell::new(None),
            upstream_local: Cell::new(None),
            upstream_version: Cell::new(None),
            upstream_failure: RefCell::new(None),
            attempts: Cell::new(0),
            route_name: RefCell::new(None),
            virtual_cluster: RefCell::new(None),
            termination: RefCell::new(None),
            request_header_bytes: Cell::new(0),
            response_header_bytes: Cell::new(0),
            dynamic_metadata: RefCell::default(),
            health_check: Cell::new(false),
            grpc_messages: Cell::new(None),
            filter_state: RefCell::default(),
            head_duration: Cell::new(Duration::ZERO),
            moments: Moments::default(),
            cause: Cell::new(None),
            cluster_config: RefCell::new(None),
            route: RefCell::new(None),
            upstream_tls: RefCell::new(None),
            upstream_connection: Cell::new(0),
            earlier_tries: RefCell::default(),
            peers: RefCell::default(),
            phase: Cell::default(),
            kill: Cell::default(),
            kept_bytes: Cell::new(0),
            client: OnceCell::new(),
        }
    }

    /// Records that something happened at `at`.
    pub fn reached(&self, milestone: Milestone, at: Instant) {
        self.moments.set(milestone, self.start, at);
    }

    /// A try at an endpoint begins.
    pub fn begin_try(&self, host: &Arc<Host>) {
        self.attempts.set(self.attempts.get() + 1);
        let earlier = self.upstream_host.replace(Some(Arc::clone(host)));
        let connection = self.upstream_connection.replace(0);
        if let Some(earlier) = earlier.filter(|_| self.attempts.get() > 1) {
            self.earlier_tries.borrow_mut().push((earlier, connection));
        }
    }

    /// What is recorded of the try under way.
    pub fn facts_of_try(&self) -> TryFacts {
        TryFacts {
            number: self.attempts.get(),
            host: self.upstream_host.borrow().clone(),
            local: self.upstream_local.get(),
            version: self.upstream_version.get(),
            connection: self.upstream_connection.get(),
            tls: self.upstream_tls.borrow().clone(),
            moments: self.moments.of_try(),
        }
    }

    /// Makes `facts` what is recorded of the try under way; what was recorded before is given back.
    pub fn replace_try(&self, facts: &TryFacts) -> TryFacts {
        let before = self.facts_of_try();
        *self.upstream_host.borrow_mut() = facts.host.clone();
        self.upstream_local.set(facts.local);
        self.upstream_version.set(facts.version);
        self.upstream_connection.set(facts.connection);
        *self.upstream_tls.borrow_mut() = facts.tls.clone();
        self.moments.set_try(facts.moments);
        before
    }

    /// An earlier try is the one that counts: the try under way is among the others.
    pub fn take_up_try(&self, facts: &TryFacts) {
        let before = self.replace_try(facts);
        if before.number == facts.number {
            return;
        }
        let mut others = self.earlier_tries.borrow_mut();
        let is_taken_up = |(host, connection): &(Arc<Host>, u64)| {
            *connection == facts.connection && facts.host.as_ref().is_some_and(|own| Arc::ptr_eq(own, host))
        };
        if let Some(position) = others.iter().position(is_taken_up) {
            others.remove(position);
        }
        others.extend(before.host.map(|host| (host, before.connection)));
    }

    /// The cluster that the stream goes to.
    pub fn set_cluster(&self, cluster: &Arc<Cluster>) {
        *self.cluster.borrow_mut() = Some(Arc::clone(&cluster.stat_name));
        *self.cluster_config.borrow_mut() = Some(Arc::clone(cluster));
    }

    /// Adds a response flag.
    pub fn flag(&self, flag: ResponseFlag) {
        self.flags.set(self.flags.get().with(flag));
    }

    /// Sets the reason of the response code.
    pub fn set_details(&self, details: impl Into<Cow<'static, str>>) {
        *self.details.borrow_mut() = details.into();
    }

    /// From the beginning to `end`, or to `now` while it lasts.
    pub fn duration(&self, now: Instant) -> Duration {
        self.end.get().unwrap_or(now).saturating_duration_since(self.start)
    }
}

/// Turns monotonic instants into wall-clock time.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    instant: Instant,
    system: SystemTime,
}

impl WallClock {
    /// Both clocks as of now.
    pub fn new() -> Self {
        Self { instant: Instant::now(), system: SystemTime::now() }
    }

    /// The wall-clock time of `instant`.
    pub fn at(&self, instant: Instant) -> SystemTime {
        match instant.checked_duration_since(self.instant) {
            Some(later) => self.system + later,
            None => self.system - self.instant.duration_since(instant),
        }
    }
}

impl Default for WallClock {
    fn default() -> Self {
        Self::new()
    }
}

/// A set of [`ResponseFlag`]s.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ResponseFlags(u32);

impl ResponseFlags {
    /// The set with one more.
    pub fn with(self, flag: ResponseFlag) -> Self {
        Self(self.0 | 1 << flag as u32)
    }

    /// Whether `flag` is in it.
    pub fn contains(self, flag: ResponseFlag) -> bool {
        self.0 & (1 << flag as u32) != 0
    }

    /// A bit for each flag.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// None at all.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The flags in it, in order of declaration.
    pub fn iter(self) -> impl Iterator<Item = ResponseFlag> {
        ResponseFlag::ALL.iter().copied().filter(move |flag| self.contains(*flag))
    }
}

macro_rules! response_flags {
    ($($(#[$doc:meta])* $variant:ident = $short:literal, $long:literal;)*) => {
        /// What went wrong, by Envoy's names. Operators match on them: never reworded, only added to.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum ResponseFlag { $($(#[$doc])* $variant),* }

        impl ResponseFlag {
            /// All flags.
            pub const ALL: &'static [ResponseFlag] = &[$(ResponseFlag::$variant),*];

            /// As in `%RESPONSE_FLAGS%`.
            pub fn short(self) -> &'static str {
                match self { $(ResponseFlag::$variant => $short),* }
            }

            /// As in `%RESPONSE_FLAGS_LONG%`.
            pub fn long(self) -> &'static str {
                match self { $(ResponseFlag::$variant => $long),* }
            }
        }
    };
}

impl ResponseFlag {
    /// The bit that Envoy has for it. Source: Envoy's `CoreResponseFlag`.
    pub fn bit(self) -> u64 {
        let position = match self {
            ResponseFlag::FailedLocalHealthCheck => 0,
            ResponseFlag::NoHealthyUpstream => 1,
            ResponseFlag::UpstreamRequestTimeout => 2,
            ResponseFlag::LocalReset => 3,
            ResponseFlag::UpstreamRemoteReset => 4,
            ResponseFlag::UpstreamConnectionFailure => 5,
            ResponseFlag::UpstreamConnectionTermination => 6,
            ResponseFlag::UpstreamOverflow => 7,
            ResponseFlag::NoRouteFound => 8,
            ResponseFlag::DelayInjected => 9,
            ResponseFlag::FaultInjected => 10,
            ResponseFlag::RateLimited => 11,
            ResponseFlag::UnauthorizedExternalService => 12,
            ResponseFlag::RateLimitServiceError => 13,
            ResponseFlag::DownstreamConnectionTermination => 14,
            ResponseFlag::UpstreamRetryLimitExceeded => 15,
            ResponseFlag::StreamIdleTimeout => 16,
            ResponseFlag::DownstreamProtocolError => 18,
            ResponseFlag::DurationTimeout => 22,
            ResponseFlag::UpstreamProtocolError => 23,
            ResponseFlag::NoClusterFound => 24,
            ResponseFlag::OverloadManagerTerminated => 25,
            ResponseFlag::DnsResolutionFailed => 26,
            ResponseFlag::DropOverload => 27,
            ResponseFlag::DownstreamRemoteReset => 28,
            ResponseFlag::NoFilterConfigFound => 21,
        };
        1 << position
    }
}

response_flags! {
    /// A fault filter delayed the request.
    DelayInjected = "DI", "DelayInjected";
    /// A fault filter answered the request.
    FaultInjected = "FI", "FaultInjected";
    /// A health check filter found this proxy, or what is behind it, unwell.
    FailedLocalHealthCheck = "LH", "FailedLocalHealthCheck";
    /// A rate limit refused the request.
    RateLimited = "RL", "RateLimited";
    /// An external service refused the request.
    UnauthorizedExternalService = "UAEX", "UnauthorizedExternalService";
    /// The rate limit service failed.
    RateLimitServiceError = "RLSE", "RateLimitServiceError";
    /// No healthy endpoint.
    NoHealthyUpstream = "UH", "NoHealthyUpstream";
    /// The upstream connection failed.
    UpstreamConnectionFailure = "UF", "UpstreamConnectionFailure";
    /// A circuit breaker was open.
    UpstreamOverflow = "UO", "UpstreamOverflow";
    /// No route, or no filter chain.
    NoRouteFound = "NR", "NoRouteFound";
    /// The retry limit was reached.
    UpstreamRetryLimitExceeded = "URX", "UpstreamRetryLimitExceeded";
    /// No such cluster.
    NoClusterFound = "NC", "NoClusterFound";
    /// A filter has not been discovered.
    NoFilterConfigFound = "NFCF", "NoFilterConfigFound";
    /// A duration limit was reached.
    DurationTimeout = "DT", "DurationTimeout";
    /// The client went away.
    DownstreamConnectionTermination = "DC", "DownstreamConnectionTermination";
    /// The upstream reset the stream.
    UpstreamRemoteReset = "UR", "UpstreamRemoteReset";
    /// We reset the stream.
    LocalReset = "LR", "LocalReset";
    /// The upstream closed the connection.
    UpstreamConnectionTermination = "UC", "UpstreamConnectionTermination";
    /// The request took too long.
    UpstreamRequestTimeout = "UT", "UpstreamRequestTimeout";
    /// Nothing moved for too long.
    StreamIdleTimeout = "SI", "StreamIdleTimeout";
    /// The client broke the protocol.
    DownstreamProtocolError = "DPE", "DownstreamProtocolError";
    /// The upstream broke the protocol.
    UpstreamProtocolError = "UPE", "UpstreamProtocolError";
    /// The endpoints' share of requests to drop was not used up.
    DropOverload = "DO", "DropOverload";
    /// The client reset the stream.
    DownstreamRemoteReset = "DR", "DownstreamRemoteReset";
    /// Refused because of overload.
    OverloadManagerTerminated = "OM", "OverloadManagerTerminated";
    /// The upstream's name could not be resolved.
    DnsResolutionFailed = "DF", "DnsResolutionFailed";
}
