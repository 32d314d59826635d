//! Heads that are too large, that unpack to something too large, or that never end.

use outrigger_tests::frames::{
    CONTINUATION, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Frame, HEADERS, PROTOCOL_ERROR, Peer, REFUSED_STREAM,
    RST_STREAM, block, request,
};
use outrigger_tests::within;

use super::Side;

/// A head in as many frames as it takes.
fn frames_of(stream: u32, block: &[u8]) -> Vec<u8> {
    let mut pieces: Vec<&[u8]> = block.chunks(16_000).collect();
    let last = pieces.pop().unwrap_or_default();
    let mut frames = Vec::new();
    for (index, piece) in pieces.iter().chain([&last]).enumerate() {
        let kind = if index == 0 { HEADERS } else { CONTINUATION };
        let ends_stream = if index == 0 { END_STREAM } else { 0 };
        let ends_head = if index == pieces.len() { END_HEADERS } else { 0 };
        frames.extend(Frame::bytes(kind, ends_stream | ends_head, stream, piece));
    }
    frames
}

/// A request with so many fields of a thousand bytes.
fn large(fields: usize) -> Vec<u8> {
    let names: Vec<String> = (0..fields).map(|number| format!("x-{number:02}")).collect();
    let value = "a".repeat(1000);
    request("GET", "/", &names.iter().map(|name| (name.as_str(), value.as_str())).collect::<Vec<_>>())
}

/// 60 KiB count names and values alone, as with Envoy. Beyond them, Envoy resets the stream and outrigger answers; both go
/// on with the connection.
#[tokio::test]
async fn a_head_beyond_max_request_headers_kb() {
    for side in Side::both("", "", "").await {
        let mut peer = Peer::connect(side.web, &[]).await;
        assert!(peer.send_bytes(&frames_of(1, &large(60))).await);
        assert_eq!(peer.status(1).await, 200);
        assert!(peer.send_bytes(&frames_of(3, &large(70))).await);
        if side.is_envoy {
            peer.wait("a reset", |frame| frame.kind == RST_STREAM && frame.stream == 3).await;
            side.expect_logged("0 DR http2.header_list_size_too_large").await;
        } else {
            assert_eq!(peer.status(3).await, 431);
            side.expect_logged("431 - http2.header_list_size_too_large").await;
        }
        assert!(peer.get(5, "/", &[]).await);
        assert_eq!(peer.status(5).await, 200);
        side.expect(&[("http2.header_list_size_too_large", 1), ("http.web.downstream_cx_protocol_error", 0)]).await;
        assert_eq!(side.upstream.seen().len(), 2);
    }
}

/// A head that never ends. Envoy resets the stream when it is too large, and ends the connection when it does not stop
/// then; outrigger ends the connection at once.
#[tokio::test]
async fn continuations_without_an_end() {
    for side in Side::both("", "", "").await {
        let mut peer = Peer::connect(side.web, &[]).await;
        assert!(peer.get(1, "/", &[("x-reply", "hang")]).await);
        side.wait_active(1).await;
        assert!(peer.send(HEADERS, END_STREAM, 3, &request("GET", "/", &[])).await);
        let more = block(&[("x-more", &"a".repeat(100))]);
        within("the end of the connection", async { while peer.send(CONTINUATION, 0, 3, &more).await {} }).await;
        peer.rest().await;
        side.expect(&[("http.web.downstream_cx_protocol_error", 1), ("http.web.downstream_rq_active", 0)]).await;
        side.expect(&[("http.web.downstream_rq_too_many_premature_resets", 0)]).await;
        if !side.is_envoy {
            side.expect(&[("http2.header_list_size_too_large", 1)]).await;
            side.expect_logged("0 DPE http2.header_list_size_too_large").await;
        }
        side.expect_others_are_served().await;
    }
}

/// A field of 3,900 bytes that is remembered once and named 8,000 times: 30 MB from 12 KB.
fn bomb() -> Vec<u8> {
    // A literal that goes to the table, whose name and value have lengths of one byte and of three.
    let mut block = request("GET", "/", &[]);
    block.extend(b"\x40\x03x-b\x7f\xbd\x1d");
    block.extend([b'a'; 3900]);
    block.extend([0xbe; 8000]);
    block
}

#[tokio::test]
async fn heads_that_unpack_to_much_more() {
    for side in Side::both("", "", "").await {
        side.expect_others_are_served().await;
        let before = resident(side.proxy.id());
        for number in 1..=20 {
            let mut peer = Peer::connect(side.web, &[]).await;
            assert!(peer.send_bytes(&frames_of(1, &bomb())).await);
            if side.is_envoy {
                peer.wait("a reset", |frame| frame.kind == RST_STREAM).await;
            } else {
                let (frames, _) = peer.rest().await;
                assert_eq!(frames.iter().find_map(Frame::goaway), Some((0, ENHANCE_YOUR_CALM)), "{frames:?}");
            }
            side.expect(&[("http2.header_list_size_too_large", number)]).await;
        }
        // One bomb alone would be 30 MB.
        let grown = resident(side.proxy.id()).saturating_sub(before);
        assert!(grown < 25_000_000, "{grown} bytes");
        side.expect(&[("http.web.downstream_rq_too_many_premature_resets", 0)]).await;
        side.expect_others_are_served().await;
    }
}

/// Bytes of memory of a process.
pub fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// Names that no message may have end the connection, and what is in flight on it, for both.
#[tokio::test]
async fn names_that_are_none() {
    for side in Side::both("", "", "").await {
        for (number, name) in ["", "X-Upper", "a b"].into_iter().enumerate() {
            let mut peer = Peer::connect(side.web, &[]).await;
            assert!(peer.get(1, "/", &[("x-reply", "hang")]).await);
            side.wait_active(1).await;
            assert!(peer.get(3, "/", &[(name, "1")]).await);
            let (frames, _) = peer.rest().await;
            if !side.is_envoy {
                assert_eq!(
                    frames.iter().find_map(Frame::goaway).map(|(_, code)| code),
                    Some(PROTOCOL_ERROR),
                    "{name:?}"
                );
            }
            let count = number as u64 + 1;
            let stats = [("http.web.downstream_cx_protocol_error", count), ("http2.rx_messaging_error", count)];
            side.expect(&stats).await;
            side.expect(&[("http.web.downstream_rq_active", 0), ("cluster.up.upstream_rq_active", 0)]).await;
        }
        let details = if side.is_envoy { "The_user_callback_function_failed" } else { "Protocol_violation" };
        side.expect_logged(&format!("0 DPE codec_error:{details}")).await;
        side.expect_others_are_served().await;
    }
}

#[tokio::test]
async fn streams_beyond_max_concurrent_streams_are_refused() {
    for side in Side::both("", "max_concurrent_streams: 2", "").await {
        let mut peer = Peer::connect(side.web, &[]).await;
        for stream in [1, 3] {
            assert!(peer.get(stream, "/", &[("x-reply", "gate")]).await);
        }
        side.upstream.wait("both wait", |counts| counts.waiting == 2).await;
        assert!(peer.get(5, "/", &[]).await);
        let reset = peer.wait("a reset", |frame| frame.kind == RST_STREAM).await;
        assert_eq!((reset.stream, reset.number(0)), (5, REFUSED_STREAM));
        side.expect(&[("http2.stream_refused_errors", 1), ("http2.tx_reset", 1)]).await;
        side.upstream.open_gate();
        for _ in 0..2 {
            let head = peer.wait("a response", |frame| frame.kind == HEADERS).await;
            assert_eq!(head.status(), Some(200));
        }
        side.expect(&[("http.web.downstream_rq_active", 0)]).await;
        assert!(peer.get(7, "/", &[]).await);
        assert_eq!(peer.status(7).await, 200);
        assert_eq!(side.upstream.seen().len(), 3);
    }
}

/// The last stream of a connection is as good as any.
#[tokio::test]
async fn the_last_stream_of_a_connection_is_served() {
    for side in Side::both("", "", "").await {
        let mut peer = Peer::connect(side.web, &[]).await;
        assert!(peer.get(0x7fff_ffff, "/", &[]).await);
        assert_eq!(peer.status(0x7fff_ffff).await, 200);
        side.expect(&[("http.web.downstream_cx_protocol_error", 0)]).await;
        // No number is left, and one that is lower begins nothing: Envoy overlooks it, outrigger says what it is.
        assert!(peer.get(1, "/", &[]).await);
        if !side.is_envoy {
            let (frames, _) = peer.rest().await;
            assert_eq!(frames.iter().find_map(Frame::goaway), Some((0x7fff_ffff, PROTOCOL_ERROR)));
        }
        side.expect_others_are_served().await;
    }
}
