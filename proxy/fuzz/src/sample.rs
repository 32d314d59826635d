//! A request of which a fuzzer chooses the words.
//!
//! Owns the facts that formats and expressions are evaluated with. Never evaluates them.

use std::sync::Arc;
use std::time::Instant;

use outrigger::accesslog::{Facts, LogType};
use outrigger::http::headers::Headers;
use outrigger::http::message::{RequestHead, ResponseHead, Version};
use outrigger::stream::{ConnectionInfo, PeerCertificate, StreamInfo, TlsInfo, WallClock};
use outrigger_config::address::Address;

/// A request with its response and its connection.
pub struct Sample {
    info: StreamInfo,
    connection: ConnectionInfo,
    request: RequestHead,
    response: ResponseHead,
    trailers: Headers,
    clock: WallClock,
}

impl Sample {
    /// Takes as many of `words` as there are places for them.
    pub fn of<'w>(mut words: impl Iterator<Item = &'w [u8]>) -> Self {
        let mut next = || words.next().unwrap_or_default();
        let start = Instant::now();
        let info = StreamInfo::new(start, Some(Version::Http11));
        let mut request = RequestHead::default();
        request.set_method(b"GET");
        request.set_scheme(b"http");
        request.set_authority(b"example.com");
        request.set_path(&[b"/", next()].concat());
        request.headers.append(b"x-a", next());
        request.headers.append(b"x-b", next());
        request.headers.append(b"cookie", next());
        let mut response = ResponseHead { status: 200, ..ResponseHead::default() };
        response.headers.append(b"x-a", next());
        response.headers.append(b"grpc-status", next());
        let mut trailers = Headers::default();
        trailers.append(b"grpc-status", next());
        info.response_code.set(200);
        info.set_details(text(next()));
        let peer = PeerCertificate {
            subject: text(next()),
            uri_sans: vec![text(next())],
            dns_sans: vec![text(next())],
            chain_der: vec![next().to_vec()],
            ..PeerCertificate::default()
        };
        let connection = connection(start, TlsInfo { peer: Some(Arc::new(peer)), ..TlsInfo::default() });
        let value = serde_json::from_slice(next()).unwrap_or_default();
        let map = serde_json::Map::from_iter([("key".to_owned(), value)]);
        connection.dynamic_metadata.borrow_mut().insert("ns".to_owned(), map);
        connection.filter_state.borrow_mut().insert("key".to_owned(), text(next()));
        Self { info, connection, request, response, trailers, clock: WallClock::new() }
    }

    /// As they are at the end.
    pub fn facts(&self) -> Facts<'_> {
        Facts {
            request: Some(&self.request),
            response: Some(&self.response),
            trailers: Some(&self.trailers),
            hostname: "host",
            log_type: LogType::DownstreamEnd,
            ..Facts::new(&self.info, &self.connection, &self.clock, self.info.start)
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn connection(start: Instant, tls: TlsInfo) -> ConnectionInfo {
    let peer = || Address::Ip(([127, 0, 0, 1], 40_000).into());
    ConnectionInfo {
        id: 1,
        start,
        listener: "l".into(),
        local: Address::Ip(([127, 0, 0, 1], 443).into()),
        remote: peer(),
        direct_remote: peer(),
        server_name: Some("www.example.com".to_owned()),
        application_protocols: Vec::new(),
        filter_chain: "chain".into(),
        tls: Some(tls),
        socket_local: None,
        local_restored: false,
        proxy_tlvs: None,
        outgoing_tlvs: Default::default(),
        tls_fingerprints: None,
        dynamic_metadata: Default::default(),
        filter_state: Default::default(),
        peer_words: Default::default(),
    }
}
