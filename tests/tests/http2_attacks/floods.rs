//! Frames of which nobody has an honest use.

use outrigger_tests::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, Frame, HEADERS, PING, PRIORITY, Peer, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    request,
};

use super::Side;

/// What a flood is, and what becomes of a request that is in flight on its connection.
struct Flood {
    options: &'static str,
    /// Sent once the request is with the endpoint.
    frames: Vec<Vec<u8>>,
    stat: &'static str,
    logged: &'static str,
}

/// The connection ends for both; Envoy says nothing to the peer, and outrigger a GOAWAY with ENHANCE_YOUR_CALM.
async fn ends_the_connection(flood: Flood) {
    for side in Side::both("", flood.options, "").await {
        let mut peer = Peer::connect(side.web, &[]).await;
        let head = request("POST", "/", &[("x-reply", "hang")]);
        assert!(peer.send(HEADERS, END_HEADERS, 1, &head).await);
        side.wait_active(1).await;
        peer.send_bytes(&flood.frames.concat()).await;
        let (frames, _) = peer.rest().await;
        let goaway = frames.iter().find_map(Frame::goaway);
        let said = if side.is_envoy { None } else { Some((1, outrigger_tests::frames::ENHANCE_YOUR_CALM)) };
        assert_eq!(goaway, said, "{frames:?}");
        side.expect(&[(flood.stat, 1), ("http.web.downstream_rq_active", 0), ("cluster.up.upstream_rq_active", 0)])
            .await;
        side.expect(&[("http.web.downstream_cx_protocol_error", 0), ("http.web.downstream_rq_rx_reset", 1)]).await;
        side.expect(&[("http2.rx_reset", 0), ("cluster.up.upstream_rq_tx_reset", 1)]).await;
        side.expect_logged(flood.logged).await;
        side.expect_others_are_served().await;
    }
}

fn empty() -> Vec<u8> {
    Frame::bytes(DATA, 0, 1, b"")
}

#[tokio::test]
async fn frames_without_content() {
    ends_the_connection(Flood {
        options: "",
        frames: vec![empty(), empty()],
        stat: "http2.inbound_empty_frames_flood",
        logged: "0 DPE http2.inbound_empty_frames_flood",
    })
    .await;
}

#[tokio::test]
async fn frames_with_padding_alone_are_without_content() {
    const PADDED: u8 = 8;
    ends_the_connection(Flood {
        options: "max_consecutive_inbound_frames_with_empty_payload: 3",
        frames: vec![Frame::bytes(DATA, PADDED, 1, &[3, 0, 0, 0]); 4],
        stat: "http2.inbound_empty_frames_flood",
        logged: "0 DPE http2.inbound_empty_frames_flood",
    })
    .await;
}

#[tokio::test]
async fn continuations_without_content() {
    let mut frames = vec![Frame::bytes(HEADERS, 0, 3, &request("GET", "/", &[]))];
    frames.extend(vec![Frame::bytes(CONTINUATION, 0, 3, b""); 2]);
    ends_the_connection_of_two(frames).await;
}

/// As above, where the frames begin a second request, of which Envoy knows already.
async fn ends_the_connection_of_two(frames: Vec<Vec<u8>>) {
    for side in Side::both("", "", "").await {
        let mut peer = Peer::connect(side.web, &[]).await;
        assert!(peer.get(1, "/", &[("x-reply", "hang")]).await);
        side.wait_active(1).await;
        peer.send_bytes(&frames.concat()).await;
        let (frames, _) = peer.rest().await;
        assert_eq!(frames.iter().any(|frame| frame.goaway().is_some()), !side.is_envoy, "{frames:?}");
        side.expect(&[("http2.inbound_empty_frames_flood", 1), ("http.web.downstream_rq_active", 0)]).await;
        side.expect_logged("0 DPE http2.inbound_empty_frames_flood").await;
        side.expect_others_are_served().await;
    }
}

#[tokio::test]
async fn frames_without_content_in_between_are_no_flood() {
    for side in Side::both("", "", "").await {
        let mut peer = Peer::connect(side.web, &[]).await;
        assert!(peer.send(HEADERS, END_HEADERS, 1, &request("POST", "/", &[("x-reply", "hang")])).await);
        side.wait_active(1).await;
        for _ in 0..50 {
            assert!(peer.send_bytes(&[empty(), Frame::bytes(DATA, 0, 1, b"x")].concat()).await);
        }
        assert!(peer.get(3, "/", &[]).await);
        assert_eq!(peer.status(3).await, 200);
        side.expect(&[("http2.inbound_empty_frames_flood", 0)]).await;
    }
}

#[tokio::test]
async fn priorities() {
    ends_the_connection(Flood {
        options: "",
        frames: vec![Frame::bytes(PRIORITY, 0, 1, &[0, 0, 0, 0, 15]); 500],
        stat: "http2.inbound_priority_frames_flood",
        logged: "0 DPE codec_error:Too_many_PRIORITY_frames",
    })
    .await;
}

#[tokio::test]
async fn priorities_up_to_the_limit_do_nothing() {
    for side in Side::both("", "max_inbound_priority_frames_per_stream: 7", "").await {
        let mut peer = Peer::connect(side.web, &[]).await;
        let priority = Frame::bytes(PRIORITY, 0, 1, &[0, 0, 0, 0, 15]);
        assert!(peer.send_bytes(&priority.repeat(7)).await);
        assert!(peer.get(1, "/", &[]).await);
        assert_eq!(peer.status(1).await, 200);
        // Envoy does not count the stream, outrigger does; beyond this both end.
        peer.send_bytes(&priority.repeat(8)).await;
        peer.rest().await;
        side.expect(&[("http2.inbound_priority_frames_flood", 1)]).await;
    }
}

#[tokio::test]
async fn window_updates() {
    ends_the_connection(Flood {
        options: "",
        frames: vec![Frame::bytes(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]); 50],
        stat: "http2.inbound_window_update_frames_flood",
        logged: "0 DPE codec_error:Too_many_WINDOW_UPDATE_frames",
    })
    .await;
}

/// Before there is any stream, five are free, as with Envoy.
#[tokio::test]
async fn a_few_window_updates_are_free() {
    for side in Side::both("", "", "").await {
        let update = Frame::bytes(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
        let mut peer = Peer::connect(side.web, &[]).await;
        assert!(peer.send_bytes(&update.repeat(5)).await);
        assert!(peer.get(1, "/", &[]).await);
        assert_eq!(peer.status(1).await, 200);
        let mut other = Peer::connect(side.web, &[]).await;
        other.send_bytes(&update.repeat(6)).await;
        other.rest().await;
        side.expect(&[("http2.inbound_window_update_frames_flood", 1)]).await;
    }
}

/// A client that takes a long body in small steps needs many of them.
#[tokio::test]
async fn window_updates_for_data_are_no_flood() {
    for side in Side::both("", "", "").await {
        let mut peer = Peer::connect(side.web, &[(outrigger_tests::frames::SETTINGS_INITIAL_WINDOW_SIZE, 1000)]).await;
        assert!(peer.get(1, "/", &[("x-reply", "bytes=100000")]).await);
        let mut received = 0;
        while received < 100_000 {
            let frame = peer.wait("data", |frame| frame.kind == DATA).await;
            received += frame.payload.len();
            let increment = u32::try_from(frame.payload.len()).unwrap().to_be_bytes();
            for stream in [0, 1] {
                // In halves, as some do.
                for half in [[0, 0, 0, 1], u32::from_be_bytes(increment).saturating_sub(1).max(1).to_be_bytes()] {
                    peer.send(WINDOW_UPDATE, 0, stream, &half).await;
                }
            }
        }
        assert_eq!(received, 100_000);
        side.expect(&[("http2.inbound_window_update_frames_flood", 0)]).await;
    }
}

/// Answers to these are never read. Envoy, or the library in it, ends the connection at some time as well, but not all of
/// its ways to do so are counted.
async fn unread(kind: u8, payload: &[u8]) {
    for side in Side::both("", "", "").await {
        let mut peer = Peer::connect_narrow(side.web, &[]).await;
        assert!(peer.get(1, "/", &[("x-reply", "hang")]).await);
        side.wait_active(1).await;
        let frames = Frame::bytes(kind, 0, 0, payload).repeat(20_000);
        outrigger_tests::eventually("the end of the connection", async || {
            if peer.offer(&frames).await && side.proxy.stat("http.web.downstream_rq_active").await > 0 {
                return Err("it goes on".to_owned());
            }
            Ok(())
        })
        .await;
        if !side.is_envoy {
            side.expect(&[("http2.outbound_control_flood", 1)]).await;
            side.expect_logged("0 DPE codec_error:Too_many_control_frames_in_the_outbound_queue.").await;
        }
        side.expect(&[("http.web.downstream_cx_active", 0), ("cluster.up.upstream_rq_active", 0)]).await;
        side.expect_others_are_served().await;
    }
}

#[tokio::test]
async fn pings_whose_answers_are_not_read() {
    unread(PING, &[0; 8]).await;
}

#[tokio::test]
async fn settings_whose_answers_are_not_read() {
    unread(SETTINGS, b"").await;
}

/// The limit is for answers that wait; who reads them may ask as often as it likes.
#[tokio::test]
async fn pings_whose_answers_are_read_are_no_flood() {
    for side in Side::both("", "max_outbound_control_frames: 20", "").await {
        let mut peer = Peer::connect(side.web, &[]).await;
        for number in 0..500_u64 {
            assert!(peer.send(PING, 0, 0, &number.to_be_bytes()).await);
            let same =
                |frame: &Frame| (frame.kind, frame.flags) == (PING, ACK) && frame.payload == number.to_be_bytes();
            peer.wait("an answer", same).await;
        }
        assert!(peer.get(1, "/", &[]).await);
        assert_eq!(peer.status(1).await, 200);
        side.expect(&[("http2.outbound_control_flood", 0)]).await;
    }
}

/// Streams that are opened and reset at once, without a look at anything. Envoy resets the connection without a word.
#[tokio::test]
async fn rapid_resets_end_the_connection_and_what_is_in_flight_on_it() {
    for side in Side::both("", "", "").await {
        let mut peer = Peer::connect(side.web, &[]).await;
        assert!(peer.get(1, "/", &[("x-reply", "hang")]).await);
        side.wait_active(1).await;
        for stream in (3..1003).step_by(2) {
            let head = Frame::bytes(HEADERS, END_HEADERS | 1, stream, &request("GET", "/", &[("x-reply", "hang")]));
            if !peer.send_bytes(&[head, Frame::bytes(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()).await {
                break;
            }
        }
        let (frames, _) = peer.rest().await;
        let goaway = frames.iter().find_map(Frame::goaway).map(|(_, code)| code);
        if side.is_envoy {
            assert_eq!(goaway, None);
        } else {
            assert_eq!(goaway, Some(outrigger_tests::frames::ENHANCE_YOUR_CALM), "{frames:?}");
        }
        side.expect(&[
            ("http.web.downstream_rq_too_many_premature_resets", 1),
            ("http.web.downstream_cx_protocol_error", 1),
            ("http.web.downstream_rq_active", 0),
            ("cluster.up.upstream_rq_active", 0),
        ])
        .await;
        // Those that were reset before anybody looked have no entry.
        let in_flight = if side.is_envoy { "0 DR http2.remote_reset" } else { "0 DPE too_many_premature_resets" };
        side.expect_logged(in_flight).await;
        side.expect_others_are_served().await;
    }
}
