//! TLS towards upstream (`UpstreamTlsContext`).
//!
//! Owns the rustls configuration of one context. Never decides which server name is sent, opens sockets or limits the
//! time of a handshake.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};

use outrigger_config::tls::{CommonTls, TlsCertificate, UpstreamTls, Validation};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::adapter::{Expected, ServerVerifier};
use super::error::{HandshakeError, HandshakeFailure, TlsError};
use super::expiration::{Expirations, SecretNames};
use super::identity::Identities;
use super::info::tls_info;
use super::key_log::{Ends, KeyLog};
use super::origin::{Origin, Origins, noted};
use super::provider::{provider, signature_schemes, versions};
use super::sessions::Sessions;
use super::verify::{PeerRole, PeerVerifier};
use crate::stream::TlsInfo;

/// Whom to connect to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peer<'a> {
    /// Sent as server name, or else the configured one.
    pub server_name: Option<&'a str>,
    /// The certificate must be for this name, and no other name counts
    /// (`UpstreamHttpProtocolOptions.auto_san_validation`).
    pub certificate_name: Option<&'a str>,
    /// The addresses of the connection.
    pub ends: Ends,
}

/// A context for connections to upstream.
pub struct ClientTls {
    config: Arc<ClientConfig>,
    sni: String,
    match_server_name: bool,
    /// The same, but the certificate has to be for the name that is sent; made on first use.
    matching: OnceLock<Arc<ClientConfig>>,
    max_session_keys: u32,
    origins: Origins,
    verifier: Arc<PeerVerifier>,
    local_uri_sans: Vec<String>,
    local_principal: Arc<str>,
    key_log: Option<KeyLog>,
    local: Option<Arc<CertifiedKey>>,
    identities: Arc<Identities>,
    expirations: Expirations,
}

impl ClientTls {
    /// Builds a context. `certificates` are those of the configuration, resolved, in order: the first that the server
    /// can verify is shown when it asks. Without trusted certificates, pins or SAN matchers in `validation`, any
    /// server is accepted, as with Envoy.
    pub fn build(
        config: &UpstreamTls,
        certificates: &[Arc<TlsCertificate>],
        validation: Option<&Validation>,
    ) -> Result<Self, TlsError> {
        // The caller decides about the endpoint's host name, and passes it to `connect`.
        let UpstreamTls { common, sni, auto_host_sni: _, auto_sni_san_validation, max_session_keys } = config;
        let provider = provider(common)?;
        let schemes = signature_schemes(common)?;
        let identities = Identities::load(certificates, &provider, schemes.as_ref())?;
        let local_uri_sans = identities.uri_sans();
        let local_principal = identities.principal();
        let local = identities.certified();
        warn_left_out(common);
        let nothing = Validation::default();
        let validation = validation.unwrap_or(&nothing);
        let algorithms = provider.signature_verification_algorithms;
        let verifier = PeerVerifier::build(PeerRole::Server, validation, algorithms, schemes)?;
        let expirations = Expirations {
            names: SecretNames::default(),
            certificates: identities.expirations(),
            authorities: verifier.authorities_expire(),
            staple: None,
        };
        let verifier = Arc::new(verifier);
        let adapter = ServerVerifier {
            peer: verifier.clone(),
            expected: if *auto_sni_san_validation { Expected::ServerName } else { Expected::Configured },
        };
        let versions = versions(common.versions, &provider)?;
        let identities = Arc::new(identities);
        let mut rustls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(adapter))
            .with_client_cert_resolver(identities.clone());
        rustls.alpn_protocols = alpn_values(&common.alpn)?;
        rustls.resumption = match max_session_keys {
            0 => Resumption::disabled(),
            keys => Resumption::store(Arc::new(Sessions::new(*keys))),
        };
        Ok(Self {
            config: Arc::new(rustls),
            sni: sni.clone(),
            match_server_name: *auto_sni_san_validation,
            matching: OnceLock::new(),
            max_session_keys: *max_session_keys,
            origins: Origins::default(),
            verifier,
            local_uri_sans,
            local_principal,
            key_log: common.key_log.as_deref().map(KeyLog::open).transpose()?,
            local,
            identities,
            expirations,
        })
    }

    /// Says what secrets its certificates are from.
    pub fn with_names(mut self, names: SecretNames) -> Self {
        self.expirations.names = names;
        self
    }

    /// When what it is made of expires.
    pub fn expirations(&self) -> &Expirations {
        &self.expirations
    }

    /// Whether both show the same certificates and accept the same servers.
    pub fn same_trust(&self, other: &Self) -> bool {
        self.identities.same(&other.identities) && self.verifier.same(&other.verifier)
    }

    /// Whether any server is accepted, whoever has certified it.
    pub fn accepts_anybody(&self) -> bool {
        !self.verifier.has_roots() && !self.verifier.has_names_or_pins()
    }

    /// Does the client's side of a handshake. `server_name` is sent, or else the configured one; nothing is sent when
    /// both are empty, or for an IP address (RFC 6066, 3). `alpn` replaces the configured list. The caller limits the
    /// time.
    pub async fn connect<S>(
        &self,
        io: S,
        server_name: Option<&str>,
        alpn: Option<&[Vec<u8>]>,
    ) -> Result<(TlsStream<S>, TlsInfo), HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.connect_to(io, Peer { server_name, ..Peer::default() }, alpn).await
    }

    /// As [`Self::connect`], to a peer of which more is known.
    pub async fn connect_to<S>(
        &self,
        io: S,
        peer: Peer<'_>,
        alpn: Option<&[Vec<u8>]>,
    ) -> Result<(TlsStream<S>, TlsInfo), HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Peer { server_name, certificate_name, ends } = peer;
        let sent = server_name.unwrap_or(&self.sni);
        let name = self.server_name(sent)?;
        let config = match certificate_name {
            None => self.config.clone(),
            Some(expected) if expected == sent => {
                let matching = self.matching.get_or_init(|| Arc::new(self.expecting(Expected::ServerName)));
                matching.clone()
            }
            Some(expected) => Arc::new(self.expecting(Expected::Name(expected.to_owned()))),
        };
        let config = match self.key_log.as_ref().and_then(|log| log.of(ends)) {
            None => config,
            Some(key_log) => {
                let mut logged = (*config).clone();
                logged.key_log = key_log;
                Arc::new(logged)
            }
        };
        let connector = TlsConnector::from(config);
        let handshake = match alpn {
            None => connector.connect(name, io),
            Some(list) => connector.with_alpn(list.to_vec()).connect(name, io),
        };
        let (stream, mut note) = noted(handshake).await;
        let stream = stream?;
        let connection = stream.get_ref().1;
        if connection.handshake_kind() == Some(HandshakeKind::Resumed) {
            note.earlier = self.origins.of(sent);
        } else if self.max_session_keys > 0 {
            let group = connection.negotiated_key_exchange_group().map(|group| group.name());
            self.origins.began(sent, Origin { group, ..note.seen });
        }
        let verifier = Some(&*self.verifier);
        let mut info = tls_info(connection, verifier, &self.local_uri_sans, &self.local_principal, note);
        info.local.clone_from(&self.local);
        info.sni = (!sent.is_empty()).then(|| sent.into());
        Ok((stream, info))
    }

    fn expecting(&self, expected: Expected) -> ClientConfig {
        let mut config = (*self.config).clone();
        // Sessions that began with another check must not be taken up again, and those of other names neither.
        config.resumption = match (&expected, self.max_session_keys) {
            (Expected::ServerName, keys) if keys > 0 => Resumption::store(Arc::new(Sessions::new(keys))),
            _ => Resumption::disabled(),
        };
        let verifier = ServerVerifier { peer: self.verifier.clone(), expected };
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        config
    }

    fn server_name(&self, name: &str) -> Result<ServerName<'static>, HandshakeError> {
        // A fully qualified name is sent without its last dot.
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() {
            if self.match_server_name {
                let reason = "no server name is sent, so the certificate cannot be checked against it";
                return Err(HandshakeError::new(HandshakeFailure::SubjectAltName, reason));
            }
            // rustls wants some name; for an address it sends none.
            return Ok(ServerName::from(Ipv4Addr::UNSPECIFIED));
        }
        ServerName::try_from(name.to_owned()).map_err(|_| {
            HandshakeError::new(HandshakeFailure::Protocol, format!("\"{name}\" cannot be sent as server name"))
        })
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("sni", &self.sni)
            .field("match_server_name", &self.match_server_name)
            .field("verifier", &self.verifier)
            .finish_non_exhaustive()
    }
}

/// ALPN values as bytes, each of a length that fits on the wire.
pub(super) fn alpn_values(names: &[String]) -> Result<Vec<Vec<u8>>, TlsError> {
    names
        .iter()
        .map(|name| match name.len() {
            1..=255 => Ok(name.clone().into_bytes()),
            _ => Err(TlsError::Alpn(name.clone())),
        })
        .collect()
}

/// Says once per context what of its parameters does not exist here.
pub(super) fn warn_left_out(common: &CommonTls) {
    if !common.left_out.is_empty() {
        tracing::warn!(names = ?common.left_out, "cipher suites or curves of a TLS context are not supported and left out");
    }
}
