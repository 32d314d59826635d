//! TLS contexts and secrets (`envoy.extensions.transport_sockets.tls.v3`).
//!
//! Owns the checked model, with PEM bytes read in. Never builds a rustls configuration or talks TLS.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::matching::StringMatcher;
use crate::source::ConfigSource;

mod certificate;
mod context;
mod generic;
mod key_log;
mod parameters;
mod rotation;
mod secret;
mod spiffe;
mod ticket_keys;
mod transport;
mod validation;

pub use generic::{GenericSecret, SecretPlace, SecretRef};
pub(crate) use rotation::retire_within;
pub(crate) use transport::{
    downstream_transport_socket, proxy_header, tlv_filter, tlv_type, upstream_transport_socket,
};
pub(crate) use validation::typed_name as typed_san_matcher;

/// Source: `DownstreamTlsContext`.
#[derive(Clone, Debug)]
pub struct DownstreamTls {
    /// What both sides have.
    pub common: CommonTls,
    /// A client without a certificate is turned away.
    pub require_client_certificate: bool,
    /// A client without SNI is turned away.
    pub require_sni: bool,
    /// No resumption with tickets.
    pub disable_stateless_resumption: bool,
    /// No resumption with session ids.
    pub disable_stateful_resumption: bool,
    /// The client's order of cipher suites decides, not ours.
    pub prefer_client_ciphers: bool,
    /// What tickets are sealed with; keys of our own when `None`.
    pub ticket_keys: Option<TicketKeySource>,
    /// How long a session may be resumed, in whole seconds; as long as its key lives when `None`.
    pub session_timeout: Option<Duration>,
    /// What becomes of a certificate without a fresh OCSP response.
    pub ocsp_policy: OcspPolicy,
}

/// Source: `DownstreamTlsContext.OcspStaplePolicy`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OcspPolicy {
    /// The certificate is used without one.
    #[default]
    Lenient,
    /// Used without one, but not beside one that has expired.
    Strict,
    /// Not used.
    Must,
}

/// Keys of session tickets, here or discovered.
#[derive(Clone, Debug)]
pub enum TicketKeySource {
    /// Given in place.
    Inline(Arc<TicketKeys>),
    /// By secret discovery; `source` is `None` for a static secret of the bootstrap.
    Sds { name: Arc<str>, source: Option<ConfigSource> },
}

/// Source: `TlsSessionTicketKeys`.
#[derive(Clone, PartialEq)]
pub struct TicketKeys {
    /// At least one. The first seals, all open. Never printed.
    pub keys: Vec<[u8; TICKET_KEY_BYTES]>,
    /// Files these came from, to be watched.
    pub files: Vec<PathBuf>,
}

/// A name of 16 bytes and two keys of 32.
pub const TICKET_KEY_BYTES: usize = 80;

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKeys")
            .field("count", &self.keys.len())
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

/// Source: `UpstreamTlsContext`.
#[derive(Clone, Debug)]
pub struct UpstreamTls {
    /// What both sides have.
    pub common: CommonTls,
    /// Sent as server name; none when empty.
    pub sni: String,
    /// Server name from the endpoint's host name.
    pub auto_host_sni: bool,
    /// The certificate must be valid for the server name sent.
    pub auto_sni_san_validation: bool,
    /// Sessions kept for resumption; 0 disables.
    pub max_session_keys: u32,
}

/// Source: `CommonTlsContext`.
#[derive(Clone, Debug)]
pub struct CommonTls {
    /// Lowest and highest version, TLS 1.2 to 1.3.
    pub versions: TlsVersions,
    /// Cipher suites of TLS 1.2 by IANA name, in order of preference; the defaults when empty.
    pub cipher_suites: Vec<&'static str>,
    /// Names of groups as in [`CURVES`], in order of preference; the defaults when empty.
    pub curves: Vec<&'static str>,
    /// Names as in [`SIGNATURE_ALGORITHMS`], in order of preference; the defaults when empty.
    pub signature_algorithms: Vec<&'static str>,
    /// Only what the policy `FIPS_202205` allows; the lists above are within it already.
    pub fips_202205: bool,
    /// Cipher suites, groups and signature algorithms that were configured and do not exist here; worth a warning.
    pub left_out: Vec<String>,
    /// Offered or accepted protocols.
    pub alpn: Vec<String>,
    /// Own certificates.
    pub certificates: Vec<CertificateSource>,
    /// How the peer is checked.
    pub validation: ValidationSource,
    /// Where the secrets of connections are written, for debugging.
    pub key_log: Option<Arc<KeyLog>>,
}

/// Source: `TlsKeyLog`.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyLog {
    /// The file, to which lines are appended.
    pub path: PathBuf,
    /// Our addresses that it is about; all when empty.
    pub local: Vec<IpNet>,
    /// The peers' addresses that it is about; all when empty.
    pub remote: Vec<IpNet>,
}

/// The signature algorithms that may stand in [`CommonTls::signature_algorithms`] (RFC 8446, 4.2.3).
pub const SIGNATURE_ALGORITHMS: [&str; 10] = [
    "ecdsa_secp256r1_sha256",
    "ecdsa_secp384r1_sha384",
    "ecdsa_secp521r1_sha512",
    "ed25519",
    "rsa_pss_rsae_sha256",
    "rsa_pss_rsae_sha384",
    "rsa_pss_rsae_sha512",
    "rsa_pkcs1_sha256",
    "rsa_pkcs1_sha384",
    "rsa_pkcs1_sha512",
];

/// The groups that may stand in [`CommonTls::curves`].
pub const CURVES: [&str; 4] = ["X25519MLKEM768", "X25519", "P-256", "P-384"];

/// Which versions of TLS.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct TlsVersions {
    /// TLS 1.2 is allowed.
    pub tls12: bool,
    /// TLS 1.3 is allowed.
    pub tls13: bool,
}

/// An own certificate, here or discovered.
#[derive(Clone, Debug)]
pub enum CertificateSource {
    /// Given in place.
    Inline(Arc<TlsCertificate>),
    /// By secret discovery; `source` is `None` for a static secret of the bootstrap.
    Sds { name: Arc<str>, source: Option<ConfigSource> },
}

/// A certificate chain with its key.
#[derive(Clone, PartialEq)]
pub struct TlsCertificate {
    /// PEM, leaf first.
    pub chain_pem: Vec<u8>,
    /// PEM. Never printed.
    pub key_pem: Vec<u8>,
    /// Files these came from, to be watched.
    pub files: Vec<PathBuf>,
    /// DER-encoded OCSP response, if any.
    pub ocsp_staple: Option<Vec<u8>>,
}

impl fmt::Debug for TlsCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsCertificate").field("files", &self.files).finish_non_exhaustive()
    }
}

/// How the peer is checked, here or discovered.
#[derive(Clone, Debug)]
pub enum ValidationSource {
    /// Not at all.
    None,
    /// Given in place.
    Inline(Arc<Validation>),
    /// By secret discovery, with the given one as base (`combined_validation_context`).
    Sds { name: Arc<str>, source: Option<ConfigSource>, default: Option<Arc<Validation>> },
}

/// Source: `CertificateValidationContext`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Validation {
    /// PEM roots; an empty list without `system_roots` trusts any chain.
    pub trusted_ca_pem: Vec<u8>,
    /// The system's roots are trusted.
    pub system_roots: bool,
    /// Base64 SHA-256 of the subject public key info; any of them.
    pub spki_pins: Vec<String>,
    /// Hex SHA-256 of the certificate, lower case without colons; any of them.
    pub certificate_hashes: Vec<String>,
    /// Any of them must match.
    pub subject_alt_names: Vec<SanMatcher>,
    /// The roots depend on the trust domain that the peer says it is of; `trusted_ca` then has no part.
    pub spiffe: Option<Arc<SpiffeTrust>>,
    /// PEM revocation lists.
    pub crl_pem: Vec<u8>,
    /// CRL check of the leaf only.
    pub only_verify_leaf_crl: bool,
    /// Expired certificates are accepted.
    pub allow_expired: bool,
    /// A certificate that does not verify is accepted (`ACCEPT_UNTRUSTED`).
    pub accept_untrusted: bool,
    /// Certificates above the leaf that a chain may have, the trust anchor included.
    pub max_verify_depth: Option<u32>,
    /// Clients are not told which authorities are trusted.
    pub suppress_client_ca_list: bool,
    /// Files these came from, to be watched.
    pub files: Vec<PathBuf>,
}

/// Source: `SPIFFECertValidatorConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct SpiffeTrust {
    /// Each name once.
    pub domains: Vec<TrustDomain>,
}

/// A SPIFFE trust domain with its roots.
#[derive(Clone, Debug, PartialEq)]
pub struct TrustDomain {
    /// Without `spiffe://`.
    pub name: Arc<str>,
    /// PEM.
    pub bundle_pem: Vec<u8>,
}

/// Source: `SubjectAltNameMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct SanMatcher {
    /// Which kind of name; `None` for the older untyped list (DNS, URI, e-mail and IP).
    pub kind: Option<SanKind>,
    /// Which other name, in dotted form; set for that kind alone.
    pub oid: Option<Arc<str>>,
    /// What it must be.
    pub matcher: StringMatcher,
}

/// Kinds of subject alternative names.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum SanKind {
    /// E-mail.
    Email,
    /// DNS.
    Dns,
    /// URI.
    Uri,
    /// IP address.
    IpAddress,
    /// Named by an object identifier.
    OtherName,
}

/// A secret resource, checked. Source: `Secret`.
#[derive(Clone, Debug)]
pub struct Secret {
    /// Its name.
    pub name: Arc<str>,
    /// What it is.
    pub kind: SecretKind,
}

/// What a [`Secret`] is.
#[derive(Clone, Debug)]
pub enum SecretKind {
    /// A certificate with its key.
    Certificate(Arc<TlsCertificate>),
    /// How peers are checked.
    Validation(Arc<Validation>),
    /// What session tickets are sealed with.
    TicketKeys(Arc<TicketKeys>),
    /// What filters use.
    Generic(Arc<GenericSecret>),
}

impl SecretKind {
    /// Files it came from, to be watched.
    pub fn files(&self) -> &[PathBuf] {
        match self {
            Self::Certificate(certificate) => &certificate.files,
            Self::Validation(validation) => &validation.files,
            Self::TicketKeys(keys) => &keys.files,
            Self::Generic(secret) => &secret.files,
        }
    }
}
