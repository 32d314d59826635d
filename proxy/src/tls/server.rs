//! TLS towards downstream (`DownstreamTlsContext`).
//!
//! Owns the rustls configurations of one context, and the choice between them by what a client offers. Never accepts
//! sockets or limits the time of a handshake.

use std::fmt;
use std::sync::Arc;

use outrigger_config::tls::{DownstreamTls, TlsCertificate, Validation};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ServerSessionMemoryCache};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::client::{alpn_values, warn_left_out};
use super::error::{HandshakeError, HandshakeFailure, TlsError};
use super::identity::Identities;
use super::info::tls_info;
use super::provider::{provider, versions};
use super::verify::{ClientVerifier, PeerRole, PeerVerifier};
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
}

impl ServerTls {
    /// Builds a context. `certificates` are those of the configuration, resolved, in order: the first is used where no
    /// name fits. `validation` is the resolved one; without it, clients are not asked for a certificate.
    pub fn build(
        config: &DownstreamTls,
        certificates: &[Arc<TlsCertificate>],
        validation: Option<&Validation>,
    ) -> Result<Self, TlsError> {
        let DownstreamTls {
            common,
            require_client_certificate,
            require_sni,
            disable_stateless_resumption,
            disable_stateful_resumption,
            prefer_client_ciphers,
        } = config;
        let provider = provider(common)?;
        let identities = Identities::load(certificates, &provider)?;
        if identities.is_empty() {
            return Err(TlsError::NoCertificate);
        }
        warn_left_out(common);
        let local_uri_sans = identities.uri_sans();
        let local_principal = identities.principal();
        let verifier = client_verifier(validation, *require_client_certificate, &provider)?;
        let versions = versions(common.versions, &provider)?;
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&versions)?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let mut rustls = builder.with_cert_resolver(Arc::new(identities));
        // Our order is by cost on this machine, and an operator's list is meant to be followed.
        rustls.ignore_client_order = !prefer_client_ciphers;
        set_resumption(&mut rustls, !disable_stateless_resumption, !disable_stateful_resumption)?;
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
        })
    }

    /// Does the server's side of a handshake. The caller limits its time.
    pub async fn accept<S>(&self, io: S) -> Result<(TlsStream<S>, TlsInfo), HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut start = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
        let hello = start.client_hello();
        if self.require_sni && hello.server_name().is_none() {
            // The client is told why, as far as it still listens.
            let _ = start.io.write_all(&UNRECOGNIZED_NAME).await;
            return Err(HandshakeError::new(HandshakeFailure::Protocol, "NO_SNI: the client sent no server name"));
        }
        let config = self.config_for(&hello).clone();
        let stream = start.into_stream(config).await?;
        let mut info =
            tls_info(stream.get_ref().1, self.verifier.as_deref(), &self.local_uri_sans, &self.local_principal);
        info.sni = stream.get_ref().1.server_name().map(Into::into);
        Ok((stream, info))
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

/// The alert `unrecognized_name` as a plain record: nothing has been negotiated yet.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Enough for the clients that come back soon; a session is about 2 KB with client certificates.
const SESSIONS: usize = 128;

/// Clients are asked for a certificate when there is something to verify it with, or when they must have one. Names
/// and pins make it mandatory even if the configuration does not, unless untrusted clients are accepted: these are
/// asked only to show who they say they are.
fn client_verifier(
    validation: Option<&Validation>,
    require: bool,
    provider: &CryptoProvider,
) -> Result<Option<Arc<ClientVerifier>>, TlsError> {
    let nothing = Validation::default();
    let validation = validation.unwrap_or(&nothing);
    let peer = PeerVerifier::build(PeerRole::Client, validation, provider.signature_verification_algorithms)?;
    let lenient = validation.accept_untrusted;
    if !require && !lenient && !peer.has_roots() && !peer.has_names_or_pins() {
        return Ok(None);
    }
    let mandatory = require || (peer.has_names_or_pins() && !lenient);
    Ok(Some(Arc::new(ClientVerifier { peer: Arc::new(peer), mandatory })))
}

/// Tickets cost no memory here, so where they are allowed nothing is stored at all. Keys are the context's own:
/// a session that one context has verified is worth nothing in another.
fn set_resumption(config: &mut ServerConfig, stateless: bool, stateful: bool) -> Result<(), TlsError> {
    if stateless {
        config.ticketer = Ticketer::new()?;
    }
    config.session_storage = if stateful && !stateless {
        ServerSessionMemoryCache::new(SESSIONS)
    } else {
        Arc::new(NoServerSessionStorage {})
    };
    if !stateless && !stateful {
        config.send_tls13_tickets = 0;
    }
    Ok(())
}
