//! TLS towards downstream and upstream: contexts built from the checked model, handshakes, and what they showed.
//!
//! Owns rustls configurations, how peers are verified and what is known of certificates. Never reads secrets from a
//! control plane or watches files: resolved certificates and validations come in, and a change means a new context.

mod adapter;
mod certificate;
mod client;
mod error;
mod expiration;
mod identity;
mod info;
mod intern;
mod key_log;
mod name;
mod ocsp;
mod origin;
mod provider;
mod san;
mod server;
mod sessions;
#[cfg(test)]
mod tests;
mod tickets;
mod trust;
mod verify;

pub use certificate::{CertificateFacts, CertificateReport, SubjectAltName, certificate_details, certificate_report};
pub use client::{ClientTls, Peer};
pub use error::{HandshakeError, HandshakeFailure, TlsError};
pub use expiration::{Expirations, SecretNames};
pub use key_log::Ends;
pub use ocsp::{Stapling, staple_holds_until};
pub use san::peer_has_name;
pub use server::ServerTls;
