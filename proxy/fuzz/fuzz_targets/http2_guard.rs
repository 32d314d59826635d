//! Frames of HTTP/2 as the limits on floods see them. The first byte says how they are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::http::h2::guard::Guard;
use outrigger_config::http::{FloodLimits, Http2Options};

fuzz_target!(|data: &[u8]| {
    let [piece, bytes @ ..] = data else { return };
    let piece = usize::from(*piece).max(1);
    let floods = FloodLimits {
        outbound_frames: 20,
        outbound_control_frames: 5,
        empty_frames_in_a_row: 1,
        priorities_per_stream: 2,
        window_updates_per_data_frame: 1,
    };
    let options = Http2Options { floods, ..Http2Options::default() };
    let (mut whole, mut cut) = (Guard::of_client(&options), Guard::of_client(&options));
    let verdict = whole.receive(bytes);
    assert_eq!(bytes.chunks(piece).try_for_each(|piece| cut.receive(piece)), verdict);
    assert_eq!(whole.flood(), verdict.err());
    let (mut whole, mut cut) = (Guard::of_server(&options), Guard::of_server(&options));
    let verdict = whole.send(bytes);
    assert_eq!(bytes.chunks(piece).try_for_each(|piece| cut.send(piece)), verdict);
    assert_eq!(whole.goaway(), cut.goaway());
    whole.drained();
    assert_eq!(whole.send(b""), verdict, "a verdict stays");
});
