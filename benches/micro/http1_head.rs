//! Reading and writing HTTP/1.1 heads, as short as a health check's and as long as a browser's.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use outrigger::http::h1::encode;
use outrigger::http::h1::parse::{Framing, Limits, parse_request, parse_response};
use outrigger::http::message::{RequestHead, ResponseHead};
use outrigger_config::http::HeaderCase;

const SHORT_REQUEST: &[u8] = b"GET /b/100 HTTP/1.1\r\nhost: bench.local\r\nuser-agent: bench\r\naccept: */*\r\n\r\n";

const LONG_REQUEST: &[u8] = b"GET /catalogue/items/4711?sort=price&order=descending&page=3 HTTP/1.1\r\n\
    host: shop.example.org\r\n\
    user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    accept-language: en-GB,en;q=0.7,de;q=0.3\r\n\
    accept-encoding: gzip, deflate, br, zstd\r\n\
    referer: https://shop.example.org/catalogue/items?page=2\r\n\
    cookie: session=6f1f1f3c9d0e4b52a7c0; theme=dark; consent=necessary; last=4710\r\n\
    x-request-id: 8a2b6f0e-5d0a-4bb6-a1c4-2f1f7a3f9d10\r\n\
    x-forwarded-for: 192.0.2.17\r\n\
    x-forwarded-proto: https\r\n\
    traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\
    cache-control: max-age=0\r\n\
    connection: keep-alive\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
    date: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
    content-type: application/json\r\n\
    content-length: 100\r\n\
    etag: \"33a64df5\"\r\n\
    vary: accept-encoding\r\n\
    x-envoy-upstream-service-time: 3\r\n\r\n";

const LIMITS: Limits =
    Limits { max_head_bytes: 60 * 1024, max_headers: 100, allow_chunked_length: false, allow_custom_methods: false };

fn requests(criterion: &mut Criterion) {
    for (name, bytes) in [("short", SHORT_REQUEST), ("long", LONG_REQUEST)] {
        let mut head = RequestHead::default();
        let mut group = criterion.benchmark_group("http1_head");
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(BenchmarkId::new("parse_request", name), |bencher| {
            bencher.iter(|| {
                let parsed = parse_request(black_box(bytes), &LIMITS, &mut head);
                assert!(matches!(parsed, Ok(Some(_))));
            });
        });
        let mut out = Vec::with_capacity(2048);
        group.bench_function(BenchmarkId::new("encode_request", name), |bencher| {
            bencher.iter(|| {
                out.clear();
                encode::request(black_box(&head), Framing::None, false, HeaderCase::Lower, &mut out);
            });
        });
        group.finish();
    }
}

fn responses(criterion: &mut Criterion) {
    let mut head = ResponseHead::default();
    let mut group = criterion.benchmark_group("http1_head");
    group.throughput(Throughput::Bytes(RESPONSE.len() as u64));
    group.bench_function("parse_response", |bencher| {
        bencher.iter(|| {
            let parsed = parse_response(black_box(RESPONSE), &LIMITS, false, &mut head);
            assert!(matches!(parsed, Ok(Some(_))));
        });
    });
    let mut out = Vec::with_capacity(2048);
    group.bench_function("encode_response", |bencher| {
        bencher.iter(|| {
            out.clear();
            let framing = Some(Framing::Length(100));
            encode::response(black_box(&head), framing, false, HeaderCase::Lower, &mut out);
        });
    });
    group.finish();
}

criterion_group!(benches, requests, responses);
criterion_main!(benches);
