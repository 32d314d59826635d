//! Streams for tests, with facts of requests that Envoy 1.40 served and logged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::FieldPath;
use outrigger_config::accesslog::{AccessLog, AccessLogFilter, AccessLogSink, LogFormat};
use outrigger_config::address::Address;
use outrigger_config::cluster::{HealthStatus, Locality};
use outrigger_config::format::Format;
use outrigger_config::units::RuntimeFraction;

use super::facts::{Facts, LogType};
use super::filter::RuntimeLookup;
use crate::http::headers::Headers;
use crate::http::message::{RequestHead, ResponseHead, Version};
use crate::stream::{ConnectionInfo, PeerCertificate, StreamInfo, TlsInfo, WallClock};
use crate::upstream::host::{Host, HostShared};

/// Owns what [`Facts`] borrow.
pub struct Sample {
    pub info: StreamInfo,
    pub connection: ConnectionInfo,
    pub request: Option<RequestHead>,
    pub response: Option<ResponseHead>,
    pub trailers: Option<Headers>,
    pub clock: WallClock,
    pub log_type: LogType,
}

impl Sample {
    /// A request that was answered by an upstream.
    pub fn http() -> Self {
        let mut sample = Self::bare(Some(Version::Http11));
        sample.log_type = LogType::DownstreamEnd;
        let mut request = RequestHead::default();
        request.set_method(b"POST");
        request.set_path(b"/ok/1?q=1");
        request.set_authority(b"127.0.0.1:43855");
        request.set_scheme(b"http");
        for (name, value) in [
            ("x-dup", &b"1"[..]),
            ("x-dup", b"2"),
            ("x-empty", b""),
            ("x-long", b"abcdefghij"),
            ("x-esc", b"a\"b\\c\td"),
            ("x-bin", b"a\xc3\xa9\xff"),
            ("x-utf", "aéb".as_bytes()),
            ("x-cut", b"a\xc3"),
            ("user-agent", b"curl/7.88.1"),
            ("x-request-id", b"00000063-554f-4600-89ed-b47e695b9dc5"),
        ] {
            request.headers.append(name.as_bytes(), value);
        }
        sample.request = Some(request);
        let mut response = ResponseHead { status: 200, ..ResponseHead::default() };
        for (name, value) in
            [("x-multi", "a"), ("x-multi", "b"), ("x-empty", ""), ("x-envoy-upstream-service-time", "3")]
        {
            response.headers.append(name.as_bytes(), value.as_bytes());
        }
        sample.response = Some(response);
        let info = &sample.info;
        info.bytes_received.set(3);
        info.bytes_sent.set(5);
        info.upstream_bytes_received.set(168);
        info.upstream_bytes_sent.set(277);
        info.request_header_bytes.set(257);
        info.response_header_bytes.set(178);
        info.response_code.set(200);
        info.set_details("via_upstream");
        info.request_end.set(Some(info.start));
        info.response_start.set(Some(info.start + Duration::from_micros(900)));
        info.end.set(Some(info.start + Duration::from_micros(47_100)));
        info.attempts.set(1);
        info.upstream_local.set(Some(([127, 0, 0, 1], 45184).into()));
        info.upstream_version.set(Some(Version::Http11));
        *info.upstream_host.borrow_mut() = Some(host(40311));
        *info.cluster.borrow_mut() = Some("alt".into());
        *info.route_name.borrow_mut() = Some("myroute".into());
        sample
    }

    /// A connection that was refused before it got an upstream.
    pub fn tcp() -> Self {
        let mut sample = Self::bare(None);
        sample.log_type = LogType::TcpConnectionEnd;
        sample.connection.filter_chain = "".into();
        sample
    }

    /// The client spoke TLS and showed a certificate.
    pub fn with_tls(mut self) -> Self {
        self.connection.server_name = Some("a.example".into());
        self.connection.tls = Some(TlsInfo {
            version: "TLSv1.3",
            cipher: "TLS_AES_128_GCM_SHA256",
            peer: Some(Arc::new(PeerCertificate {
                uri_sans: vec!["spiffe://cli/a".into(), "spiffe://cli/b".into()],
                dns_sans: vec!["cli.example".into(), "two.example".into()],
                subject: "O=b c,CN=cli\\, x".into(),
                issuer: "O=An Org,CN=ca".into(),
                sha256: "00ff".into(),
                verified: true,
                ..PeerCertificate::default()
            })),
            local_uri_sans: vec!["spiffe://srv/a".into(), "spiffe://srv/b".into()],
            ..TlsInfo::default()
        });
        self
    }

    fn bare(version: Option<Version>) -> Self {
        let start = Instant::now();
        let peer = || Address::Ip(([127, 0, 0, 1], 45522).into());
        let connection = ConnectionInfo {
            id: 3,
            start,
            listener: "l".into(),
            local: Address::Ip(([127, 0, 0, 1], 43855).into()),
            remote: peer(),
            direct_remote: peer(),
            server_name: None,
            application_protocols: Vec::new(),
            filter_chain: "fc".into(),
            tls: None,
            socket_local: None,
            local_restored: false,
            proxy_tlvs: None,
            outgoing_tlvs: Default::default(),
            tls_fingerprints: None,
            dynamic_metadata: Default::default(),
            filter_state: Default::default(),
            peer_words: Default::default(),
        };
        Self {
            info: StreamInfo::new(start, version),
            connection,
            request: None,
            response: None,
            trailers: None,
            clock: WallClock::new(),
            log_type: LogType::NotSet,
        }
    }

    /// The facts at the end of the stream.
    pub fn facts(&self) -> Facts<'_> {
        let now = self.info.end.get().unwrap_or(self.info.start);
        Facts {
            request: self.request.as_ref(),
            response: self.response.as_ref(),
            trailers: self.trailers.as_ref(),
            cluster_name: Some("up").filter(|_| self.info.cluster.borrow().is_some()),
            hostname: "vm",
            log_type: self.log_type,
            ..Facts::new(&self.info, &self.connection, &self.clock, now)
        }
    }
}

/// An endpoint on this machine.
pub fn host(port: u16) -> Arc<Host> {
    Arc::new(Host {
        address: Address::Ip(([127, 0, 0, 1], port).into()),
        additional_addresses: Vec::new(),
        hostname: "".into(),
        weight: 1,
        priority: 0,
        locality: Arc::new(Locality { region: String::new(), zone: String::new(), sub_zone: String::new() }),
        max_requests: None,
        health: HealthStatus::Unknown,
        metadata: None,
        transport: 0,
        preconnect: false,
        health_check: None,
        passed: None,
        http_proxy: None,
        shared: Arc::new(HostShared::default()),
    })
}

/// Compiles a format.
pub fn format(text: &str) -> Format {
    Format::parse(&FieldPath::resource("listener", "l").field("format"), text).unwrap()
}

/// A logger's configuration.
pub fn access_log(sink: AccessLogSink, filter: Option<AccessLogFilter>) -> Arc<AccessLog> {
    Arc::new(AccessLog { name: "log".into(), filter, sink })
}

/// A sink that writes text to a file.
pub fn file_sink(path: &std::path::Path, text: &str) -> AccessLogSink {
    AccessLogSink::File { path: path.to_owned(), format: LogFormat::Text { format: format(text), omit_empty: false } }
}

/// A runtime without values.
pub struct NoRuntime;

impl RuntimeLookup for NoRuntime {
    fn number(&self, _: &str) -> Option<f64> {
        None
    }

    fn holds(&self, fraction: &RuntimeFraction, random: u64) -> bool {
        fraction.default.holds(random)
    }
}
