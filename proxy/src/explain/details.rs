//! Reasons of replies that were made here, by their details.
//!
//! Owns a sentence and the field to look at for each of Envoy's `%RESPONSE_CODE_DETAILS%` that name the reason completely.
//! Details that need numbers or names are spoken of in `reason`.

/// Details, what they mean, and the field that decided; sorted by details.
const KNOWN: [(&str, &str, &str); 48] = [
    (
        "absolute_path_rejected",
        "the request names a whole URL",
        "HttpConnectionManager.http_protocol_options.allow_absolute_url",
    ),
    ("ambiguous_framing", "the request gives its length in two ways", "RFC 9112"),
    ("basic_auth_failed", "the request has no valid user name and password", "BasicAuth.users"),
    (
        "client_not_allowed",
        "the API key belongs to a client that this route does not allow",
        "ApiKeyAuthPerRoute.allowed_clients",
    ),
    ("cluster_not_found", "the route names a cluster that does not exist", "RouteAction.cluster"),
    (
        "codec_error:Too_many_PRIORITY_frames",
        "the client sent too many PRIORITY frames",
        "Http2ProtocolOptions.max_inbound_priority_frames_per_stream",
    ),
    (
        "codec_error:Too_many_WINDOW_UPDATE_frames",
        "the client sent too many WINDOW_UPDATE frames",
        "Http2ProtocolOptions.max_inbound_window_update_frames_per_data_frame_sent",
    ),
    (
        "codec_error:Too_many_control_frames_in_the_outbound_queue.",
        "the client asked for more answers to control frames than it took",
        "Http2ProtocolOptions.max_outbound_control_frames",
    ),
    (
        "codec_error:Too_many_frames_in_the_outbound_queue.",
        "the client does not take the frames that are sent to it",
        "Http2ProtocolOptions.max_outbound_frames",
    ),
    (
        "csrf_origin_mismatch",
        "the request's origin is neither its destination nor allowed",
        "CsrfPolicy.additional_origins",
    ),
    ("dns_cache_overflow", "the cache of names is full", "DnsCacheConfig.max_hosts"),
    ("drain_time_exceeded", "the proxy drains, and the time for that is up", "--drain-time-s"),
    (
        "drop_overload",
        "the control plane asks for requests to be dropped",
        "ClusterLoadAssignment.policy.drop_overloads",
    ),
    (
        "dynamic_forward_proxy_pending_request_overflow",
        "too many requests wait for the name of their host to be resolved",
        "DnsCacheConfig.dns_cache_circuit_breaker.max_pending_requests",
    ),
    ("ext_authz_denied", "the authorization service denied the request", "ExtAuthz"),
    ("ext_authz_error", "the authorization service failed or did not answer in time", "ExtAuthz.failure_mode_allow"),
    (
        "ext_authz_invalid",
        "the authorization service answered with a header that cannot be sent",
        "ExtAuthz.validate_mutations",
    ),
    ("fault_filter_abort", "a fault was injected", "HTTPFault.abort"),
    ("fault_filter_overflow", "as many faults as may be are active", "HTTPFault.max_active_faults"),
    ("filter_chain_not_found", "no filter chain of the listener matches the connection", "Listener.filter_chains"),
    ("grpc_http1_bridge", "the gRPC bridge answered", "filters.http.grpc_http1_bridge"),
    (
        "health_check_failed",
        "the health check filter found the proxy or what is behind it unwell",
        "HealthCheck.cluster_min_healthy_percentages",
    ),
    ("http1.codec_error", "the client broke HTTP/1.1", "RFC 9112"),
    (
        "http2.header_list_size_too_large",
        "the request head is too large",
        "HttpConnectionManager.max_request_headers_kb",
    ),
    (
        "http2.inbound_empty_frames_flood",
        "the client sent too many frames without content",
        "Http2ProtocolOptions.max_consecutive_inbound_frames_with_empty_payload",
    ),
    ("http2.too_many_headers", "the request has too many headers", "HttpProtocolOptions.max_headers_count"),
    ("local_rate_limited", "the token bucket is empty", "LocalRateLimit.token_bucket"),
    ("low_version", "HTTP/1.0 is not accepted", "Http1ProtocolOptions.accept_http_10"),
    ("maintenance_mode", "the runtime refuses requests to the cluster", "upstream.maintenance_mode.<cluster>"),
    ("missing_api_key", "the request has no API key", "ApiKeyAuth.key_sources"),
    ("missing_host_header", "the request has no host", "RFC 9112 section 3.2"),
    ("multiple_api_key", "the request has more than one API key", "ApiKeyAuth.key_sources"),
    ("no_basic_auth_header", "the request has no credentials", "BasicAuth.users"),
    ("no_healthy_upstream", "the cluster has no endpoint that may be used", "Cluster.load_assignment"),
    ("overload", "the process is overloaded", "Bootstrap.overload_manager.actions"),
    ("path_normalization_failed", "the path cannot be normalised", "HttpConnectionManager.normalize_path"),
    ("rate_limiter_error", "the rate limit service failed or did not answer in time", "RateLimit.failure_mode_deny"),
    (
        "request_header_timeout",
        "the client did not send the request head in time",
        "HttpConnectionManager.request_headers_timeout",
    ),
    ("request_headers_too_large", "the request head is too large", "HttpConnectionManager.max_request_headers_kb"),
    ("request_overall_timeout", "the client did not send the request in time", "HttpConnectionManager.request_timeout"),
    (
        "request_payload_too_large",
        "the request body is larger than what is buffered",
        "Buffer.max_request_bytes or Route.per_request_buffer_limit_bytes",
    ),
    ("request_rate_limited", "the rate limit service refused the request", "RateLimit.rate_limited_status"),
    ("route_not_found", "no route of the virtual host matches the request", "VirtualHost.routes"),
    ("stream_idle_timeout", "nothing moved for too long", "HttpConnectionManager.stream_idle_timeout"),
    (
        "unexpected_underscore",
        "the name of a header has an underscore",
        "HttpProtocolOptions.headers_with_underscores_action",
    ),
    ("unknown_api_key", "the API key is not known", "ApiKeyAuth.credentials"),
    (
        "upgrade_failed",
        "the protocol that the request asks for is not enabled on the route",
        "HttpConnectionManager.upgrade_configs",
    ),
    ("upstream_queue_full", "too many requests wait for an endpoint", "ConcurrencyOptions.max_queue"),
];

/// What details mean, and the field that decided.
pub(super) fn known(details: &str) -> Option<(&'static str, &'static str)> {
    let position = KNOWN.binary_search_by(|(known, _, _)| (*known).cmp(details)).ok()?;
    let (_, meaning, field) = KNOWN[position];
    Some((meaning, field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_so_that_all_are_found() {
        for (details, meaning, field) in KNOWN {
            assert_eq!(known(details), Some((meaning, field)));
        }
        assert_eq!(known("via_upstream"), None);
    }
}
