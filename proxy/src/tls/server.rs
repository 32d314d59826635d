//! TLS towards downstream (`DownstreamTlsContext`).
//!
//! Owns the rustls configurations of one context, and the choice between them by what a client offers. Never accepts
//! sockets or limits the time of a handshake.

use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use outrigger_config::tls::{DownstreamTls, OcspPolicy, TicketKeys, TlsCertificate, Validation};
use rustls::crypto::CryptoProvider;
use rustls::server::{Accepted, Acceptor, ClientHello, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;

use super::adapter::ClientVerifier;
use super::client::{alpn_values, warn_left_out};
use super::error::{HandshakeError, HandshakeFailure, TlsError};
use super::expiration::{Expirations, SecretNames};
use super::identity::Identities;
use super::info::tls_info;
use super::intern::{Sha256, sha256_parts};
use super::key_log::{Ends, KeyLog};
use super::ocsp::Stapling;
use super::origin::noted;
use super::provider::{provider, signature_schemes, versions};
use super::tickets::{session_store, ticketer};
use super::verify::{PeerRole, PeerVerifier};
use crate::listener::filters::{Parse, client_hello};
use crate::stream::TlsInfo;

/// A context for connections from downstream.
pub struct ServerTls {
    without_alpn: Arc<ServerConfig>,
    /// `None` when no ALPN is configured.
    with_alpn: Option<Arc<ServerConfig>>,
    require_sni: bool,
    verifier: Option<Arc<PeerVerifier>>,
    local_uri_sans: Vec<String>,
    local_principal: Arc<str>,
    identities: Arc<Identities>,
    ocsp_policy: OcspPolicy,
    /// What the client says of OCSP matters.
    reads_hello: bool,
    key_log: Option<KeyLog>,
    local: Option<Arc<CertifiedKey>>,
    expirations: Expirations,
}

impl ServerTls {
    /// Builds a context. `certificates` are those of the configuration, resolved, in order: the first is used where no
    /// name fits. `validation` is the resolved one; without it, clients are not asked for a certificate.
    pub fn build(
        config: &DownstreamTls,
        certificates: &[Arc<TlsCertificate>],
        validation: Option<&Validation>,
    ) -> Result<Self, TlsError> {
        Self::build_with(config, certificates, validation, None)
    }

    /// As [`Self::build`], with the keys of session tickets, resolved too.
    pub fn build_with(
        config: &DownstreamTls,
        certificates: &[Arc<TlsCertificate>],
        validation: Option<&Validation>,
        ticket_keys: Option<&TicketKeys>,
    ) -> Result<Self, TlsError> {
        let DownstreamTls {
            common,
            require_client_certificate,
            require_sni,
            disable_stateless_resumption,
            disable_stateful_resumption,
            prefer_client_ciphers,
            ticket_keys: _,
            session_timeout,
            ocsp_policy,
        } = config;
        let provider = provider(common)?;
        let schemes = signature_schemes(common)?;
        let identities = Identities::load(certificates, &provider, schemes.as_ref())?;
        if identities.is_empty() {
            return Err(TlsError::NoCertificate);
        }
        identities.check_staples(*ocsp_policy, certificates)?;
        let identities = Arc::new(identities);
        warn_left_out(common);
        let local_uri_sans = identities.uri_sans();
        let local_principal = identities.principal();
        let verifier = client_verifier(validation, *require_client_certificate, &provider, schemes)?;
        let binding = binding(validation, *require_client_certificate, &identities);
        let local = identities.certified();
        let expirations = Expirations {
            names: SecretNames::default(),
            certificates: identities.expirations(),
            authorities: verifier.as_ref().and_then(|verifier| verifier.peer.authorities_expire()),
            staple: identities.first_staple_expires(),
        };
        let versions = versions(common.versions, &provider)?;
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&versions)?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let mut rustls = builder.with_cert_resolver(identities.clone());
        // Our order is by cost on this machine, and an operator's list is meant to be followed.
        rustls.ignore_client_order = !prefer_client_ciphers;
        let resumption = Resumption {
            stateless: !disable_stateless_resumption,
            stateful: !disable_stateful_resumption,
            keys: ticket_keys,
            timeout: *session_timeout,
            binding,
        };
        resumption.set(&mut rustls)?;
        let alpn = alpn_values(&common.alpn)?;
        let with_alpn = (!alpn.is_empty()).then(|| {
            let mut rustls = rustls.clone();
            rustls.alpn_protocols = alpn;
            Arc::new(rustls)
        });
        Ok(Self {
            without_alpn: Arc::new(rustls),
            with_alpn,
            require_sni: *require_sni,
            verifier: verifier.map(|verifier| verifier.peer.clone()),
            local_uri_sans,
            local_principal,
            reads_hello: *ocsp_policy != OcspPolicy::Lenient || identities.staple(),
            identities,
            ocsp_policy: *ocsp_policy,
            key_log: common.key_log.as_deref().map(KeyLog::open).transpose()?,
            local,
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

    /// Does the server's side of a handshake. The caller limits its time.
    pub async fn accept<S>(&self, io: S) -> Result<(TlsStream<S>, TlsInfo), HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.accept_between(io, Ends::default()).await
    }

    /// As [`Self::accept`], on a connection whose addresses are known.
    pub async fn accept_between<S>(&self, mut io: S, ends: Ends) -> Result<(TlsStream<S>, TlsInfo), HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (accepted, bytes) = read_hello(&mut io, self.reads_hello).await?;
        let mut start = StartHandshake::from_parts(accepted, io);
        let hello = start.client_hello();
        if self.require_sni && hello.server_name().is_none() {
            // The client is told why, as far as it still listens.
            let _ = start.io.write_all(&fatal(UNRECOGNIZED_NAME)).await;
            return Err(HandshakeError::new(HandshakeFailure::Protocol, "NO_SNI: the client sent no server name"));
        }
        let stapling = bytes.and_then(|bytes| self.stapling(&hello, &bytes));
        if stapling == Some(Stapling::Refused) {
            let _ = start.io.write_all(&fatal(HANDSHAKE_FAILURE)).await;
            return Err(HandshakeError::new(
                HandshakeFailure::Staple,
                "OCSP_STAPLE: the client asks for an OCSP response, and that of the certificate has expired",
            ));
        }
        let config = self.config_for(&hello).clone();
        let config = match self.key_log.as_ref().and_then(|log| log.of(ends)) {
            None => config,
            Some(key_log) => {
                let mut logged = (*config).clone();
                logged.key_log = key_log;
                Arc::new(logged)
            }
        };
        let handshake = async {
            // The first message is looked at before there is a future.
            let rest = start.into_stream(config);
            rest.await
        };
        let (stream, note) = noted(handshake).await;
        let stream = stream?;
        let connection = stream.get_ref().1;
        let verifier = self.verifier.as_deref();
        let mut info = tls_info(connection, verifier, &self.local_uri_sans, &self.local_principal, note);
        info.local.clone_from(&self.local);
        info.sni = stream.get_ref().1.server_name().map(Into::into);
        info.stapling = stapling;
        Ok((stream, info))
    }

    /// What becomes of the certificate for a client that asks for an OCSP response; `None` if it does not ask.
    fn stapling(&self, hello: &ClientHello<'_>, bytes: &[u8]) -> Option<Stapling> {
        let Parse::Complete(read) = client_hello::parse(bytes, MOST_HELLO_BYTES) else { return None };
        let identity = self.identities.for_server_name(hello.server_name(), hello.signature_schemes())?;
        read.asks_for_ocsp.then(|| identity.stapling(self.ocsp_policy))
    }

    /// Whether clients are asked for a certificate.
    pub fn verifies_clients(&self) -> bool {
        self.verifier.is_some()
    }

    /// A client whose offers we do not know goes on without ALPN, as with Envoy; rustls would turn it away.
    fn config_for(&self, hello: &ClientHello<'_>) -> &Arc<ServerConfig> {
        let Some(with_alpn) = &self.with_alpn else { return &self.without_alpn };
        let known = |offer: &[u8]| with_alpn.alpn_protocols.iter().any(|own| own == offer);
        let overlap = hello.alpn().is_none_or(|mut offers| offers.any(known));
        if overlap { with_alpn } else { &self.without_alpn }
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("identities", &self.without_alpn.cert_resolver)
            .field("require_sni", &self.require_sni)
            .field("verifier", &self.verifier)
            .finish_non_exhaustive()
    }
}

/// Reads the client's first message; its bytes are kept if they are wanted.
async fn read_hello<S>(io: &mut S, keep: bool) -> Result<(Accepted, Option<Vec<u8>>), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut acceptor = Acceptor::default();
    let mut kept = keep.then(Vec::new);
    let mut buffer = vec![0; HELLO_BUFFER];
    loop {
        let count = io.read(&mut buffer).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let mut bytes = &buffer[..count];
        if let Some(kept) = kept.as_mut().filter(|kept| kept.len() < MOST_HELLO_BYTES) {
            kept.extend_from_slice(bytes);
        }
        while !bytes.is_empty() {
            acceptor.read_tls(&mut bytes)?;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok((accepted, kept)),
            Ok(None) => {}
            Err((error, mut alert)) => {
                let mut bytes = Vec::new();
                // The client is told why, as far as it still listens. Writing to a buffer cannot fail.
                let _ = alert.write_all(&mut bytes);
                let _ = io.write_all(&bytes).await;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error).into());
            }
        }
    }
}

/// As much as a usual ClientHello with hybrid keys has.
const HELLO_BUFFER: usize = 2 << 10;
/// More than rustls takes.
const MOST_HELLO_BYTES: usize = 64 << 10;

/// A fatal alert as a plain record: nothing has been negotiated yet.
fn fatal(alert: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, alert]
}

const UNRECOGNIZED_NAME: u8 = 112;
const HANDSHAKE_FAILURE: u8 = 40;

/// Enough for the clients that come back soon; a session is about 2 KB with client certificates.
const SESSIONS: usize = 128;

/// Clients are asked for a certificate when there is something to verify it with, or when they must have one. Names
/// and pins make it mandatory even if the configuration does not, unless untrusted clients are accepted: these are
/// asked only to show who they say they are.
fn client_verifier(
    validation: Option<&Validation>,
    require: bool,
    provider: &CryptoProvider,
    schemes: Option<Arc<[SignatureScheme]>>,
) -> Result<Option<Arc<ClientVerifier>>, TlsError> {
    let nothing = Validation::default();
    let validation = validation.unwrap_or(&nothing);
    let algorithms = provider.signature_verification_algorithms;
    let peer = PeerVerifier::build(PeerRole::Client, validation, algorithms, schemes)?;
    let lenient = validation.accept_untrusted;
    if !require && !lenient && !peer.has_roots() && !peer.has_names_or_pins() {
        return Ok(None);
    }
    let mandatory = require || (peer.has_names_or_pins() && !lenient);
    Ok(Some(Arc::new(ClientVerifier { peer: Arc::new(peer), mandatory })))
}

/// What a resumed session takes for granted: the checks that its client has passed, and whom it spoke to.
fn binding(validation: Option<&Validation>, require: bool, identities: &Identities) -> Sha256 {
    // Where files lie differs between machines that share their keys.
    let checks = validation.map(|validation| Validation { files: Vec::new(), ..validation.clone() });
    let checks = format!("{checks:?} {require}");
    sha256_parts([checks.as_str(), TICKET_FORM].into_iter().chain(identities.names()).map(str::as_bytes))
}

/// Changes when the content of tickets does, so that nobody takes those of another form for their own.
const TICKET_FORM: &str = "2";

/// How clients may come back.
struct Resumption<'a> {
    stateless: bool,
    stateful: bool,
    keys: Option<&'a TicketKeys>,
    timeout: Option<Duration>,
    binding: Sha256,
}

impl Resumption<'_> {
    /// Tickets cost no memory here, so where they are allowed nothing is stored at all. Unless keys are given, they are
    /// the context's own: a session that one context has verified is worth nothing in another.
    fn set(&self, config: &mut ServerConfig) -> Result<(), TlsError> {
        if self.stateless {
            config.ticketer = ticketer(self.keys, self.timeout, self.binding)?;
        }
        config.session_storage = if self.stateful && !self.stateless {
            session_store(SESSIONS, self.timeout)
        } else {
            Arc::new(NoServerSessionStorage {})
        };
        if !self.stateless && !self.stateful {
            config.send_tls13_tickets = 0;
        }
        Ok(())
    }
}
