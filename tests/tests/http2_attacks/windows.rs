//! Clients that open their windows hardly or never.

use outrigger_tests::frames::{DATA, END_STREAM, Peer, SETTINGS_INITIAL_WINDOW_SIZE, WINDOW_UPDATE};

use super::Side;
use super::heads::resident;

/// Bodies of these are far beyond what may wait for anybody.
const LARGE: &str = "bytes=6000000";

/// Windows of the upstream connection in these scenarios: they bound what is held of one response, and of all.
const WINDOWS: &str = "initial_stream_window_size: 65535, initial_connection_window_size: 1048576";

/// Ten responses that nobody takes, each of 6 MB: the proxy holds no more of them than its windows.
#[tokio::test]
async fn what_is_held_for_those_who_do_not_read_is_bounded() {
    for side in Side::both("", "", WINDOWS).await {
        side.expect_others_are_served().await;
        let before = resident(side.proxy.id());
        let mut peer = Peer::connect(side.web, &[(SETTINGS_INITIAL_WINDOW_SIZE, 1)]).await;
        for number in 0..10 {
            assert!(peer.get(2 * number + 1, "/", &[("x-reply", LARGE)]).await);
        }
        for _ in 0..10 {
            let data = peer.wait("a byte", |frame| frame.kind == DATA).await;
            assert_eq!(data.payload.len(), 1);
        }
        side.expect_others_are_served().await;
        let grown = resident(side.proxy.id()).saturating_sub(before);
        assert!(grown < 30_000_000, "{grown} bytes");
        drop(peer);
        side.expect(&[("http.web.downstream_rq_active", 0), ("cluster.up.upstream_rq_active", 0)]).await;
    }
}

/// A body that is taken byte by byte comes whole.
#[tokio::test]
async fn a_window_of_one_byte_is_enough() {
    for side in Side::both("", "max_inbound_window_update_frames_per_data_frame_sent: 100", "").await {
        let mut peer = Peer::connect(side.web, &[(SETTINGS_INITIAL_WINDOW_SIZE, 1)]).await;
        assert!(peer.get(1, "/", &[("x-reply", "bytes=300")]).await);
        let mut received = 0;
        loop {
            let data = peer.wait("data", |frame| frame.kind == DATA).await;
            assert!(data.payload.len() <= 1);
            received += data.payload.len();
            if data.flags & END_STREAM != 0 {
                break;
            }
            assert!(peer.send(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).await);
        }
        assert_eq!(received, 300);
    }
}

/// One who does not read holds a part of an upstream connection's window. Others on the same connection go on.
#[tokio::test]
async fn one_stuck_reader_does_not_block_others() {
    for side in Side::both("", "", WINDOWS).await {
        let mut stuck = Peer::connect(side.web, &[(SETTINGS_INITIAL_WINDOW_SIZE, 0)]).await;
        assert!(stuck.get(1, "/", &[("x-reply", LARGE)]).await);
        assert_eq!(stuck.status(1).await, 200);
        for _ in 0..20 {
            side.expect_others_are_served().await;
        }
        let seen = side.upstream.seen();
        assert!(seen.iter().all(|seen| seen.connection == 1), "all on one connection");
        side.expect(&[("http.web.downstream_rq_active", 1)]).await;
    }
}
