//! The command operators that have a name and no parameters, and those that are dates.
//!
//! Owns the tables. Never evaluates anything.

use super::{AddressPart, Bytes, CertificatePart, DateOf, GrpcStatusForm, Operator, Whose};

/// The operators without parameters.
pub(super) fn bare(name: &str) -> Option<Operator> {
    Some(match name {
        "PROTOCOL" => Operator::Protocol,
        "RESPONSE_CODE" => Operator::ResponseCode,
        "RESPONSE_FLAGS" => Operator::ResponseFlags,
        "RESPONSE_FLAGS_LONG" => Operator::ResponseFlagsLong,
        "DURATION" => Operator::Duration,
        "REQUEST_DURATION" => Operator::RequestDuration,
        "REQUEST_TX_DURATION" => Operator::RequestTxDuration,
        "RESPONSE_DURATION" => Operator::ResponseDuration,
        "RESPONSE_TX_DURATION" => Operator::ResponseTxDuration,
        "ROUNDTRIP_DURATION" => Operator::RoundtripDuration,
        "DOWNSTREAM_HANDSHAKE_DURATION" => Operator::DownstreamHandshakeDuration,
        "UPSTREAM_CONNECTION_POOL_READY_DURATION" => Operator::UpstreamPoolReadyDuration,
        "UPSTREAM_HOST" => Operator::UpstreamHost,
        "UPSTREAM_HOST_NAME" => Operator::UpstreamHostName { port: true },
        "UPSTREAM_HOST_NAME_WITHOUT_PORT" => Operator::UpstreamHostName { port: false },
        "UPSTREAM_HOSTS_ATTEMPTED" => Operator::UpstreamHostsAttempted { names: false, port: true },
        "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT" => Operator::UpstreamHostsAttempted { names: false, port: false },
        "UPSTREAM_HOST_NAMES_ATTEMPTED" => Operator::UpstreamHostsAttempted { names: true, port: true },
        "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT" => Operator::UpstreamHostsAttempted { names: true, port: false },
        "UPSTREAM_CONNECTION_ID" => Operator::UpstreamConnectionId,
        "UPSTREAM_CONNECTION_IDS_ATTEMPTED" => Operator::UpstreamConnectionIdsAttempted,
        "UPSTREAM_CLUSTER" => Operator::UpstreamCluster { raw: false },
        "UPSTREAM_CLUSTER_RAW" => Operator::UpstreamCluster { raw: true },
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Operator::UpstreamTransportFailureReason,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Operator::UpstreamRequestAttemptCount,
        "UPSTREAM_PROTOCOL" => Operator::UpstreamProtocol,
        "UPSTREAM_SERVER_NAME" => Operator::UpstreamServerName,
        "CONNECTION_ID" => Operator::ConnectionId,
        "CONNECTION_TERMINATION_DETAILS" => Operator::ConnectionTerminationDetails,
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => Operator::DownstreamTransportFailureReason,
        "ROUTE_NAME" => Operator::RouteName,
        "VIRTUAL_CLUSTER_NAME" => Operator::VirtualClusterName,
        "FILTER_CHAIN_NAME" => Operator::FilterChainName,
        "DOWNSTREAM_TLS_VERSION" => Operator::DownstreamTlsVersion,
        "DOWNSTREAM_TLS_CIPHER" => Operator::DownstreamTlsCipher,
        "DOWNSTREAM_TLS_GROUP" => Operator::DownstreamTlsGroup,
        "DOWNSTREAM_TLS_SESSION_ID" => Operator::DownstreamTlsSessionId,
        "UPSTREAM_TLS_VERSION" => Operator::UpstreamTlsVersion,
        "UPSTREAM_TLS_CIPHER" => Operator::UpstreamTlsCipher,
        "UPSTREAM_TLS_GROUP" => Operator::UpstreamTlsGroup,
        "UPSTREAM_TLS_SESSION_ID" => Operator::UpstreamTlsSessionId,
        "TLS_JA3_FINGERPRINT" => Operator::TlsJa3,
        "TLS_JA4_FINGERPRINT" => Operator::TlsJa4,
        "HOSTNAME" => Operator::Hostname,
        "LOCAL_REPLY_BODY" => Operator::LocalReplyBody,
        "GRPC_STATUS_NUMBER" => Operator::GrpcStatus(GrpcStatusForm::Number),
        "STREAM_ID" => Operator::StreamId,
        "UNIQUE_ID" => Operator::UniqueId,
        "TRACE_ID" => Operator::TraceId,
        "SPAN_ID" => Operator::SpanId,
        "REQUEST_HEADERS_BYTES" => Operator::RequestHeadersBytes,
        "RESPONSE_HEADERS_BYTES" => Operator::ResponseHeadersBytes,
        "ACCESS_LOG_TYPE" => Operator::AccessLogType,
        "TERMINATION_STATE" => Operator::TerminationState,
        "RETRY_CLASS" => Operator::RetryClass,
        "REASON" => Operator::Reason,
        "CUSTOM_FLAGS" => Operator::Empty,
        "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID" => Operator::DownstreamLocalAddress(AddressPart::EndpointId),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID" => {
            Operator::DownstreamDirectLocalAddress(AddressPart::EndpointId)
        }
        "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID" => Operator::UpstreamRemoteAddress(AddressPart::EndpointId),
        "DOWNSTREAM_CX_RTT"
        | "DOWNSTREAM_DETECTED_CLOSE_TYPE"
        | "DOWNSTREAM_LOCAL_CLOSE_REASON"
        | "UPSTREAM_DETECTED_CLOSE_TYPE"
        | "UPSTREAM_LOCAL_CLOSE_REASON" => Operator::Nothing,
        _ => return bytes(name).map(Operator::Bytes).or_else(|| certificate(name)),
    })
}

/// HTTP/2 heads are counted as they are before compression, so both kinds of counts are the same.
fn bytes(name: &str) -> Option<Bytes> {
    Some(match name {
        "BYTES_RECEIVED" => Bytes::Received,
        "BYTES_SENT" => Bytes::Sent,
        "UPSTREAM_WIRE_BYTES_RECEIVED" => Bytes::UpstreamReceived,
        "UPSTREAM_WIRE_BYTES_SENT" => Bytes::UpstreamSent,
        "DOWNSTREAM_WIRE_BYTES_RECEIVED" => Bytes::DownstreamReceived,
        "DOWNSTREAM_WIRE_BYTES_SENT" => Bytes::DownstreamSent,
        "UPSTREAM_HEADER_BYTES_SENT" | "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT" => Bytes::UpstreamHeadSent,
        "UPSTREAM_HEADER_BYTES_RECEIVED" | "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED" => Bytes::UpstreamHeadReceived,
        "DOWNSTREAM_HEADER_BYTES_SENT" | "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT" => Bytes::DownstreamHeadSent,
        "DOWNSTREAM_HEADER_BYTES_RECEIVED" | "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED" => {
            Bytes::DownstreamHeadReceived
        }
        "RESPONSE_TRAILERS_BYTES" => Bytes::ResponseTrailers,
        "BYTES_RETRANSMITTED" | "PACKETS_RETRANSMITTED" => Bytes::Retransmitted,
        _ => return None,
    })
}

fn certificate(name: &str) -> Option<Operator> {
    let sides = [
        ("DOWNSTREAM_PEER_", Whose::DownstreamPeer),
        ("DOWNSTREAM_LOCAL_", Whose::DownstreamLocal),
        ("UPSTREAM_PEER_", Whose::UpstreamPeer),
        ("UPSTREAM_LOCAL_", Whose::UpstreamLocal),
    ];
    let (part, whose) = sides.iter().find_map(|(prefix, whose)| Some((name.strip_prefix(prefix)?, *whose)))?;
    use CertificatePart as Part;
    let client = whose == Whose::DownstreamPeer;
    let downstream = matches!(whose, Whose::DownstreamPeer | Whose::DownstreamLocal);
    let peer = matches!(whose, Whose::DownstreamPeer | Whose::UpstreamPeer);
    let part = match part {
        "URI_SAN" => Part::UriSans,
        "DNS_SAN" => Part::DnsSans,
        "IP_SAN" => Part::IpSans,
        "EMAIL_SAN" if downstream => Part::EmailSans,
        "OTHERNAME_SAN" if downstream => Part::OtherSans,
        "SUBJECT" if whose != Whose::UpstreamLocal => Part::Subject,
        "ISSUER" if peer => Part::Issuer,
        "CERT" if peer => Part::Pem,
        "FINGERPRINT_256" if client => Part::Fingerprint256,
        "FINGERPRINT_1" if client => Part::Fingerprint1,
        "SERIAL" if client => Part::Serial,
        "CHAIN_FINGERPRINTS_256" if client => Part::ChainFingerprints256,
        "CHAIN_FINGERPRINTS_1" if client => Part::ChainFingerprints1,
        "CHAIN_SERIALS" if client => Part::ChainSerials,
        "ISSUER_FINGERPRINT_256" if client => Part::IssuerFingerprint256,
        "ISSUER_SERIAL" if client => Part::IssuerSerial,
        _ => return None,
    };
    Some(Operator::Certificate { whose, part })
}

/// The operators that print a date, and whether in the local time zone.
pub(super) fn date(name: &str) -> Option<(DateOf, bool)> {
    Some(match name {
        "START_TIME" => (DateOf::Start, false),
        "START_TIME_LOCAL" => (DateOf::Start, true),
        "EMIT_TIME" => (DateOf::Emit, false),
        "EMIT_TIME_LOCAL" => (DateOf::Emit, true),
        "DOWNSTREAM_PEER_CERT_V_START" => (DateOf::NotBefore(Whose::DownstreamPeer), false),
        "DOWNSTREAM_PEER_CERT_V_END" => (DateOf::NotAfter(Whose::DownstreamPeer), false),
        "UPSTREAM_PEER_CERT_V_START" => (DateOf::NotBefore(Whose::UpstreamPeer), false),
        "UPSTREAM_PEER_CERT_V_END" => (DateOf::NotAfter(Whose::UpstreamPeer), false),
        _ => return None,
    })
}
