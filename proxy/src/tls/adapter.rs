//! Our checks of peers, as rustls asks for them.
//!
//! Owns the adapters for clients and for servers. Never decides who is accepted (see `verify`).

use std::borrow::Cow;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ProtocolVersion, SignatureScheme};

use super::error::VerifyFailure;
use super::verify::{PeerVerifier, failure};

/// Checks clients.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) peer: Arc<PeerVerifier>,
    /// Clients without a certificate are turned away.
    pub(super) mandatory: bool,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.peer.hints()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if !self.peer.can_accept() {
            return Err(rustls::Error::InvalidCertificate(failure(VerifyFailure::Nothing)));
        }
        self.peer.accept(end_entity, intermediates, None, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.peer.verify_signature(ProtocolVersion::TLSv1_2, message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.peer.verify_signature(ProtocolVersion::TLSv1_3, message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.peer.verify_schemes()
    }
}

/// Checks servers.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) peer: Arc<PeerVerifier>,
    pub(super) expected: Expected,
}

/// Whom the certificate of a server must be for.
#[derive(Debug)]
pub(super) enum Expected {
    /// As the validation context says.
    Configured,
    /// The name we sent (`auto_sni_san_validation`).
    ServerName,
    /// This name.
    Name(String),
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let name = match &self.expected {
            Expected::Configured => None,
            Expected::ServerName => Some(server_name.to_str()),
            Expected::Name(name) => Some(Cow::Borrowed(name.as_str())),
        };
        self.peer.accept(end_entity, intermediates, name.as_deref(), now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.peer.verify_signature(ProtocolVersion::TLSv1_2, message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.peer.verify_signature(ProtocolVersion::TLSv1_3, message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.peer.verify_schemes()
    }
}
