//! TLS contexts and secrets (`envoy.extensions.transport_sockets.tls.v3`).
//!
//! Owns the checked model, with PEM bytes read in. Never builds a rustls configuration or talks TLS.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::matching::StringMatcher;
use crate::source::ConfigSource;

mod certificate;
mod context;
mod parameters;
mod secret;
mod transport;
mod validation;

pub(crate) use transport::{downstream_transport_socket, tlv_filter, upstream_transport_socket};
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
    /// Cipher suites and groups that were configured and do not exist here; worth a warning.
    pub left_out: Vec<String>,
    /// Offered or accepted protocols.
    pub alpn: Vec<String>,
    /// Own certificates.
    pub certificates: Vec<CertificateSource>,
    /// How the peer is checked.
    pub validation: ValidationSource,
}

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

/// Source: `SubjectAltNameMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct SanMatcher {
    /// Which kind of name; `None` for the older untyped list (DNS, URI, e-mail and IP).
    pub kind: Option<SanKind>,
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
}
