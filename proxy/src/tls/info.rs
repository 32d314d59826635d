//! What a finished handshake showed.
//!
//! Owns the translation from rustls to what logs, headers and filters read. Never changes a connection.

use std::sync::Arc;

use rustls::{CommonState, HandshakeKind};

use super::certificate::peer_certificate;
use super::provider::{group_name, suite_name, version_name};
use super::verify::PeerVerifier;
use crate::stream::TlsInfo;

/// Facts of a connection; `verifier` is the one that accepted the peer, if any did.
pub(super) fn tls_info(
    connection: &CommonState,
    verifier: Option<&PeerVerifier>,
    local_uri_sans: &[String],
    local_principal: &Arc<str>,
) -> TlsInfo {
    let chain = connection.peer_certificates().unwrap_or_default();
    let verified = verifier.is_some_and(|verifier| verifier.is_verified(chain));
    TlsInfo {
        version: version_name(connection.protocol_version()),
        cipher: connection.negotiated_cipher_suite().map_or("", |suite| suite_name(suite.suite())),
        alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
        peer: peer_certificate(chain, verified).map(Arc::new),
        local_uri_sans: local_uri_sans.to_vec(),
        local_principal: Arc::clone(local_principal),
        sni: None,
        resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        stapling: None,
        group: connection.negotiated_key_exchange_group().map_or("", |group| group_name(group.name())),
        local: None,
        handshake: std::time::Duration::ZERO,
    }
}
