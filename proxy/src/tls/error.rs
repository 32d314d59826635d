//! Why a TLS context could not be built, or a handshake failed.
//!
//! Owns both errors and their words. Never decides what counts as a failure.

use std::io;
use std::path::PathBuf;

use rustls::{AlertDescription, CertificateError, PeerIncompatible};

/// Why a TLS context could not be built. Names the files, or says `inline`; never shows key material.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate chain cannot be used.
    #[error("certificate chain ({place}): {reason}")]
    Chain { place: String, reason: String },
    /// A private key cannot be used.
    #[error("private key ({place}): {reason}")]
    Key { place: String, reason: String },
    /// The key belongs to another certificate.
    #[error("private key does not match the first certificate of the chain ({place})")]
    Mismatch { place: String },
    /// Trusted certificates cannot be used.
    #[error("trusted certificates ({place}): {reason}")]
    Trust { place: String, reason: String },
    /// A revocation list cannot be used.
    #[error("revocation list ({place}): {reason}")]
    Revocation { place: String, reason: String },
    /// A pin is not a SHA-256 in the expected encoding.
    #[error("{field}: \"{value}\" is not {expected}")]
    Pin { field: &'static str, value: String, expected: &'static str },
    /// A server has to have a certificate.
    #[error("no certificate for a downstream TLS context")]
    NoCertificate,
    /// No version is left.
    #[error("no usable TLS version: {reason}")]
    Versions { reason: &'static str },
    /// A name that the checked model should not contain.
    #[error("{what} \"{name}\" is not supported")]
    Unsupported { what: &'static str, name: String },
    /// Checks that prove nothing.
    #[error("validation context: {0}")]
    Validation(&'static str),
    /// An ALPN value that does not fit on the wire.
    #[error("ALPN value \"{0}\" must be 1 to 255 bytes long")]
    Alpn(String),
    /// An OCSP response cannot be used, or is missing.
    #[error("ocsp_staple ({place}): {reason}")]
    Staple { place: String, reason: String },
    /// The file for secrets of connections.
    #[error("key_log: cannot open {path:?}: {}", error.kind())]
    KeyLog { path: String, error: io::Error },
    /// Refused by rustls for another reason.
    #[error("TLS context refused")]
    Refused(#[from] rustls::Error),
}

/// Where PEM data came from, for messages.
pub(super) fn place(files: &[PathBuf]) -> String {
    if files.is_empty() {
        return "inline".to_owned();
    }
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// What kind of failure ended a handshake; counters follow it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HandshakeFailure {
    /// The peer had to show a certificate and did not (`ssl.fail_verify_no_cert`).
    NoPeerCertificate,
    /// The peer's chain is not trusted (`ssl.fail_verify_error`).
    Untrusted,
    /// No subject alternative name is the expected one (`ssl.fail_verify_san`).
    SubjectAltName,
    /// Neither certificate hash nor public key is pinned (`ssl.fail_verify_cert_hash`).
    Pin,
    /// An OCSP response is missing that must be there (`ssl.ocsp_staple_failed`).
    Staple,
    /// The peer sent an alert.
    Alert,
    /// The peers share no parameters, or the peer broke the protocol (`ssl.connection_error`).
    Protocol,
    /// The connection ended in the middle.
    Closed,
}

/// A handshake that failed. Its text is a transport failure reason in the form operators know from Envoy.
#[derive(Debug, thiserror::Error)]
#[error("TLS_error:|{reason}:TLS_error_end")]
pub struct HandshakeError {
    failure: HandshakeFailure,
    reason: String,
}

impl HandshakeError {
    pub(super) fn new(failure: HandshakeFailure, reason: impl Into<String>) -> Self {
        Self { failure, reason: reason.into() }
    }

    /// What kind of failure.
    pub fn failure(&self) -> HandshakeFailure {
        self.failure
    }

    /// Whether we turned the peer's certificate down (or the lack of one).
    pub fn is_verification(&self) -> bool {
        match self.failure {
            HandshakeFailure::NoPeerCertificate
            | HandshakeFailure::Untrusted
            | HandshakeFailure::SubjectAltName
            | HandshakeFailure::Pin => true,
            HandshakeFailure::Staple
            | HandshakeFailure::Alert
            | HandshakeFailure::Protocol
            | HandshakeFailure::Closed => false,
        }
    }

    fn from_rustls(error: &rustls::Error) -> Self {
        use HandshakeFailure::{Alert, NoPeerCertificate, Protocol};
        match error {
            rustls::Error::InvalidCertificate(problem) => Self::from_certificate(problem),
            rustls::Error::NoCertificatesPresented => Self::new(NoPeerCertificate, "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
            rustls::Error::AlertReceived(alert) => Self::new(Alert, alert_reason(*alert)),
            rustls::Error::PeerIncompatible(problem) => Self::new(Protocol, incompatible_reason(problem)),
            rustls::Error::InvalidMessage(problem) => {
                Self::new(Protocol, format!("WRONG_VERSION_NUMBER: not a valid TLS message ({problem:?})"))
            }
            rustls::Error::NoApplicationProtocol => Self::new(Protocol, "NO_APPLICATION_PROTOCOL"),
            other => Self::new(Protocol, format!("PROTOCOL_ERROR: {other}")),
        }
    }

    fn from_certificate(problem: &CertificateError) -> Self {
        let (failure, detail) = match problem {
            CertificateError::Other(other) => match other.0.downcast_ref::<VerifyFailure>() {
                Some(failure) => (failure.kind(), failure.to_string()),
                None => (HandshakeFailure::Untrusted, other.to_string()),
            },
            CertificateError::UnknownIssuer => {
                (HandshakeFailure::Untrusted, "issuer is not among the trusted certificates".to_owned())
            }
            CertificateError::Revoked => (HandshakeFailure::Untrusted, "certificate revoked".to_owned()),
            CertificateError::Expired => (HandshakeFailure::Untrusted, "certificate has expired".to_owned()),
            CertificateError::NotValidYet => (HandshakeFailure::Untrusted, "certificate is not yet valid".to_owned()),
            CertificateError::BadSignature => {
                (HandshakeFailure::Untrusted, "handshake signature does not fit the certificate".to_owned())
            }
            other => (HandshakeFailure::Untrusted, other.to_string()),
        };
        Self::new(failure, format!("CERTIFICATE_VERIFY_FAILED: {detail}"))
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Self::from_rustls(tls);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Self::new(HandshakeFailure::Closed, "connection closed during the handshake")
            }
            _ => Self::new(HandshakeFailure::Closed, format!("{error} during the handshake")),
        }
    }
}

/// Why the peer's certificate was turned down. Travels through rustls inside its own error.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum VerifyFailure {
    /// The chain.
    #[error("{0}")]
    Chain(String),
    /// The names.
    #[error("SAN matcher: none of {names} is accepted")]
    SubjectAltName { names: String },
    /// The server name.
    #[error("SAN matcher: certificate is for {names}, not for {expected}")]
    ServerName { expected: String, names: String },
    /// The pins.
    #[error("certificate hash and SPKI are not pinned (SHA-256 of the certificate: {sha256})")]
    Pin { sha256: String },
    /// A certificate was asked for, and nothing is configured that it could be verified with.
    #[error("nothing to verify the certificate with: no trusted CA, SAN matcher or pin")]
    Nothing,
}

impl VerifyFailure {
    fn kind(&self) -> HandshakeFailure {
        match self {
            Self::Chain(_) | Self::Nothing => HandshakeFailure::Untrusted,
            Self::SubjectAltName { .. } | Self::ServerName { .. } => HandshakeFailure::SubjectAltName,
            Self::Pin { .. } => HandshakeFailure::Pin,
        }
    }
}

/// BoringSSL's name of a received alert, because that is what people search for.
fn alert_reason(alert: AlertDescription) -> String {
    let known = match alert {
        AlertDescription::HandshakeFailure => "SSLV3_ALERT_HANDSHAKE_FAILURE",
        AlertDescription::BadCertificate => "SSLV3_ALERT_BAD_CERTIFICATE",
        AlertDescription::UnsupportedCertificate => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        AlertDescription::CertificateRevoked => "SSLV3_ALERT_CERTIFICATE_REVOKED",
        AlertDescription::CertificateExpired => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        AlertDescription::CertificateUnknown => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        AlertDescription::IllegalParameter => "SSLV3_ALERT_ILLEGAL_PARAMETER",
        AlertDescription::UnknownCA => "TLSV1_ALERT_UNKNOWN_CA",
        AlertDescription::AccessDenied => "TLSV1_ALERT_ACCESS_DENIED",
        AlertDescription::DecodeError => "TLSV1_ALERT_DECODE_ERROR",
        AlertDescription::DecryptError => "TLSV1_ALERT_DECRYPT_ERROR",
        AlertDescription::ProtocolVersion => "TLSV1_ALERT_PROTOCOL_VERSION",
        AlertDescription::InternalError => "TLSV1_ALERT_INTERNAL_ERROR",
        AlertDescription::UnrecognisedName => "TLSV1_ALERT_UNRECOGNIZED_NAME",
        AlertDescription::CertificateRequired => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
        AlertDescription::NoApplicationProtocol => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
        other => return format!("ALERT {} ({other:?}) received", u8::from(other)),
    };
    known.to_owned()
}

fn incompatible_reason(problem: &PeerIncompatible) -> String {
    let name = match problem {
        PeerIncompatible::NoCipherSuitesInCommon => "NO_SHARED_CIPHER",
        PeerIncompatible::NoKxGroupsInCommon | PeerIncompatible::NamedGroupsExtensionRequired => "NO_SHARED_GROUP",
        PeerIncompatible::NoSignatureSchemesInCommon
        | PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon => "NO_COMMON_SIGNATURE_ALGORITHMS",
        PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        | PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::Tls13RequiredForQuic
        // Only clients older than TLS 1.2 come without it.
        | PeerIncompatible::SignatureAlgorithmsExtensionRequired => "UNSUPPORTED_PROTOCOL",
        _ => "PEER_INCOMPATIBLE",
    };
    format!("{name}: {problem:?}")
}
