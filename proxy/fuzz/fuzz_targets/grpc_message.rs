//! Answers of gRPC services that requests wait for: framing, status and message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::http::headers::Headers;
use outrigger::http::message::ResponseHead;
use outrigger::upstream::grpc_message::message;
use outrigger_api::pb::envoy::service::auth::v3::CheckResponse;
use outrigger_api::pb::envoy::service::ratelimit::v3::RateLimitResponse;

fuzz_target!(|input: (u16, Vec<u8>, Vec<u8>)| {
    let (status, grpc_status, body) = input;
    let mut head = ResponseHead { status, ..ResponseHead::default() };
    head.headers.append(b"content-type", b"application/grpc");
    let mut trailers = Headers::default();
    trailers.append(b"grpc-status", &grpc_status);
    let _ = message::<CheckResponse>(&head, &body, Some(&trailers));
    let _ = message::<RateLimitResponse>(&head, &body, Some(&trailers));
});
