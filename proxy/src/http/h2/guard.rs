//! What a peer may send on an HTTP/2 connection, and what it may make us send (the flood limits of `Http2ProtocolOptions`).
//!
//! Owns the counts of frames in both directions, and the verdict. Looks at the headers of frames alone, never at what they
//! mean, and never ends a connection itself.

use outrigger_config::http::{FloodLimits, Http2Options};

/// A limit that a peer went beyond.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Flood {
    /// Too many frames in a row that say nothing.
    #[error("too many frames without content")]
    EmptyFrames,
    /// Too many PRIORITY frames for the streams that there were.
    #[error("too many PRIORITY frames")]
    Priorities,
    /// Too many WINDOW_UPDATE frames for the data that was sent.
    #[error("too many WINDOW_UPDATE frames")]
    WindowUpdates,
    /// Too many answers to control frames, which the peer does not take.
    #[error("too many control frames wait to be sent")]
    Control,
    /// Too many frames that the peer does not take.
    #[error("too many frames wait to be sent")]
    Waiting,
}

impl Flood {
    /// As in `%RESPONSE_CODE_DETAILS%`; Envoy's words.
    pub fn details(self) -> &'static str {
        match self {
            Self::EmptyFrames => "http2.inbound_empty_frames_flood",
            Self::Priorities => "codec_error:Too_many_PRIORITY_frames",
            Self::WindowUpdates => "codec_error:Too_many_WINDOW_UPDATE_frames",
            Self::Control => "codec_error:Too_many_control_frames_in_the_outbound_queue.",
            Self::Waiting => "codec_error:Too_many_frames_in_the_outbound_queue.",
        }
    }
}

/// Why the library ends a connection by itself, as it tells the peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Farewell {
    /// Streams were opened and reset before anybody looked at them.
    Resets,
    /// A head does not end, or unpacks to far more than may be.
    LargeHead,
    /// Anything else.
    Other,
}

/// The counts of one connection.
#[derive(Debug)]
pub struct Guard {
    limits: FloodLimits,
    received: Frames,
    sent: Frames,
    empty_in_a_row: u32,
    priorities: u64,
    window_updates: u64,
    data_sent: u64,
    opened: u64,
    highest: u32,
    /// Frames since the socket last took everything.
    waiting: u32,
    waiting_control: u32,
    refused: u32,
    farewell: Option<Farewell>,
    flood: Option<Flood>,
}

impl Guard {
    /// For a connection that a client opens to us.
    pub fn of_server(options: &Http2Options) -> Self {
        Self::new(options, Frames::after(PREFACE_BYTES), Frames::after(0))
    }

    /// For a connection that we open.
    pub fn of_client(options: &Http2Options) -> Self {
        Self::new(options, Frames::after(0), Frames::after(PREFACE_BYTES))
    }

    fn new(options: &Http2Options, received: Frames, sent: Frames) -> Self {
        Self {
            limits: options.floods,
            received,
            sent,
            empty_in_a_row: 0,
            priorities: 0,
            window_updates: 0,
            data_sent: 0,
            opened: 0,
            highest: 0,
            waiting: 0,
            waiting_control: 0,
            refused: 0,
            farewell: None,
            flood: None,
        }
    }

    /// The limit that was passed first; nothing is counted after that.
    pub fn flood(&self) -> Option<Flood> {
        self.flood
    }

    /// Looks at bytes that have come.
    ///
    /// # Errors
    /// When they pass a limit, now or earlier.
    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while self.flood.is_none()
            && let Some(frame) = self.received.next(&mut bytes)
        {
            self.flood = self.received_frame(frame);
        }
        self.flood.map_or(Ok(()), Err)
    }

    fn received_frame(&mut self, frame: Frame) -> Option<Flood> {
        let limits = self.limits;
        match frame.kind {
            HEADERS | CONTINUATION | DATA => {
                self.count_stream(frame);
                if !frame.is_empty || frame.ends_stream() {
                    self.empty_in_a_row = 0;
                    return None;
                }
                self.empty_in_a_row += 1;
                (self.empty_in_a_row > limits.empty_frames_in_a_row).then_some(Flood::EmptyFrames)
            }
            PRIORITY => {
                self.priorities += 1;
                let allowed = u64::from(limits.priorities_per_stream) * (1 + self.opened);
                (self.priorities > allowed).then_some(Flood::Priorities)
            }
            WINDOW_UPDATE => {
                self.window_updates += 1;
                let for_data = u64::from(limits.window_updates_per_data_frame).saturating_mul(self.data_sent);
                let allowed = for_data.saturating_add(self.opened).saturating_mul(2).saturating_add(5);
                (self.window_updates > allowed).then_some(Flood::WindowUpdates)
            }
            _ => None,
        }
    }

    /// Looks at bytes that are to be sent.
    ///
    /// # Errors
    /// When they pass a limit, now or earlier.
    pub fn send(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while self.flood.is_none()
            && let Some(frame) = self.sent.next(&mut bytes)
        {
            self.flood = self.sent_frame(frame);
        }
        self.flood.map_or(Ok(()), Err)
    }

    fn sent_frame(&mut self, frame: Frame) -> Option<Flood> {
        self.waiting += 1;
        match frame.kind {
            DATA => self.data_sent += 1,
            HEADERS => self.count_stream(frame),
            RST_STREAM => {
                self.waiting_control += 1;
                self.refused += u32::from(frame.error == Some(REFUSED_STREAM));
            }
            PING | SETTINGS if frame.flags & ACK != 0 => self.waiting_control += 1,
            GOAWAY => self.farewell = frame.farewell,
            _ => {}
        }
        match self.limits {
            limits if self.waiting > limits.outbound_frames => Some(Flood::Waiting),
            limits if self.waiting_control > limits.outbound_control_frames => Some(Flood::Control),
            _ => None,
        }
    }

    /// Clients alone open streams, with ever higher numbers.
    fn count_stream(&mut self, frame: Frame) {
        if frame.kind == HEADERS && frame.stream > self.highest {
            self.highest = frame.stream;
            self.opened += 1;
        }
    }

    /// The socket has taken all that was to be sent.
    pub fn drained(&mut self) {
        self.waiting = 0;
        self.waiting_control = 0;
    }

    /// Streams that were refused since somebody asked.
    pub fn take_refused(&mut self) -> u32 {
        std::mem::take(&mut self.refused)
    }

    /// What was said in the last GOAWAY, if that was not that all is well.
    pub fn farewell(&self) -> Option<Farewell> {
        self.farewell
    }

    /// A GOAWAY that says so, if it may be sent here: not within another frame.
    pub fn goaway(&self) -> Option<[u8; GOAWAY_BYTES]> {
        if !self.sent.is_between_frames() {
            return None;
        }
        let mut frame = [0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ENHANCE_YOUR_CALM];
        frame[9..13].copy_from_slice(&self.highest.to_be_bytes());
        Some(frame)
    }
}

/// What of a frame is counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    /// Nothing is in it but padding.
    is_empty: bool,
    /// The code of a RST_STREAM.
    error: Option<u32>,
    /// The reason of a GOAWAY.
    farewell: Option<Farewell>,
}

impl Frame {
    fn ends_stream(self) -> bool {
        self.kind != CONTINUATION && self.flags & END_STREAM != 0
    }
}

/// Finds frames in a stream of bytes, however it was cut.
#[derive(Debug)]
struct Frames {
    /// The header of the next frame and what is wanted of its payload, as far as they came.
    head: [u8; HEAD_BYTES + MOST_PAYLOAD],
    filled: usize,
    /// Bytes of no interest that come first.
    skip: u32,
}

impl Frames {
    fn after(skip: u32) -> Self {
        Self { head: [0; HEAD_BYTES + MOST_PAYLOAD], filled: 0, skip }
    }

    fn is_between_frames(&self) -> bool {
        self.filled == 0 && self.skip == 0
    }

    /// The next frame, whose payload need not have come; `None` once `bytes` are used up.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        if self.skip > 0 {
            let count = bytes.len().min(self.skip as usize);
            *bytes = &bytes[count..];
            // Not more than `skip`.
            self.skip -= count as u32;
        }
        // Nearly all frames come with their header in one piece, and nothing of their payload is wanted.
        if self.filled == 0
            && let Some((head, rest)) = bytes.split_first_chunk()
            && payload_wanted(head) == 0
        {
            *bytes = rest;
            self.skip = length(head);
            return Some(frame(head, &[]));
        }
        while self.filled < self.wanted() {
            let count = bytes.len().min(self.wanted() - self.filled);
            if count == 0 {
                return None;
            }
            let (now, later) = bytes.split_at(count);
            self.head[self.filled..self.filled + count].copy_from_slice(now);
            self.filled += count;
            *bytes = later;
        }
        let (head, payload) = self.head[..self.filled].split_first_chunk()?;
        let frame = frame(head, payload);
        // At most `MOST_PAYLOAD`, and not more than the length.
        self.skip = length(head) - payload.len() as u32;
        self.filled = 0;
        Some(frame)
    }

    /// How much of a frame is looked at.
    fn wanted(&self) -> usize {
        match self.head.first_chunk() {
            // While there is something to skip, its header has not begun.
            Some(head) if self.skip == 0 && self.filled >= HEAD_BYTES => HEAD_BYTES + payload_wanted(head),
            _ => HEAD_BYTES,
        }
    }
}

/// How much of its payload a frame is told by.
fn payload_wanted(head: &[u8; HEAD_BYTES]) -> usize {
    let payload = match head[3] {
        RST_STREAM => CODE_BYTES,
        GOAWAY => MOST_PAYLOAD,
        DATA | HEADERS if head[4] & PADDED != 0 => 1,
        _ => return 0,
    };
    payload.min(length(head) as usize)
}

fn length(head: &[u8; HEAD_BYTES]) -> u32 {
    u32::from_be_bytes([0, head[0], head[1], head[2]])
}

fn frame(head: &[u8; HEAD_BYTES], payload: &[u8]) -> Frame {
    let [_, _, _, kind, flags, a, b, c, d] = *head;
    let padding = match (kind, payload) {
        (DATA | HEADERS, [padding]) => 1 + u32::from(*padding),
        _ => 0,
    };
    let error = match (kind, payload.first_chunk()) {
        (RST_STREAM, Some(code)) => Some(u32::from_be_bytes(*code)),
        _ => None,
    };
    let farewell = if kind == GOAWAY { farewell(payload) } else { None };
    let stream = u32::from_be_bytes([a & 0x7f, b, c, d]);
    Frame { kind, flags, stream, is_empty: length(head) <= padding, error, farewell }
}

/// The last stream, the code, and the first of the library's words.
fn farewell(payload: &[u8]) -> Option<Farewell> {
    let (head, words) = payload.split_first_chunk::<8>()?;
    match (head, words) {
        ([.., 0, 0, 0, 0], _) => None,
        (_, b"too_many_r") => Some(Farewell::Resets),
        (_, b"too_many_c" | b"header_lis") => Some(Farewell::LargeHead),
        _ => Some(Farewell::Other),
    }
}

/// The client's first words. RFC 9113 section 3.4.
const PREFACE_BYTES: u32 = 24;
/// RFC 9113 section 4.1.
const HEAD_BYTES: usize = 9;
/// The code of a RST_STREAM.
const CODE_BYTES: usize = 4;
/// What of a GOAWAY is looked at: enough to tell the library's reasons from each other.
const MOST_PAYLOAD: usize = 18;
const GOAWAY_BYTES: usize = HEAD_BYTES + 8;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const PADDED: u8 = 8;

const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u8 = 11;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// A guard behind the client's preface.
    fn guard() -> Guard {
        let mut guard = Guard::of_server(&Http2Options::default());
        assert_eq!(guard.receive(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Ok(()));
        guard
    }

    fn receive(guard: &mut Guard, frames: &[Vec<u8>]) -> Result<(), Flood> {
        frames.iter().try_for_each(|frame| guard.receive(frame))
    }

    #[test]
    fn one_frame_may_be_empty_and_two_in_a_row_may_not() {
        let (empty, full) = (frame(DATA, 0, 1, b""), frame(DATA, 0, 1, b"x"));
        let mut calm = guard();
        for _ in 0..100 {
            assert_eq!(receive(&mut calm, &[empty.clone(), full.clone()]), Ok(()));
        }
        assert_eq!(calm.receive(&empty), Ok(()));
        assert_eq!(calm.receive(&frame(CONTINUATION, 4, 1, b"")), Err(Flood::EmptyFrames));
        assert_eq!(calm.receive(&full), Err(Flood::EmptyFrames), "it stays so");
        let padding = frame(DATA, PADDED, 1, &[3, 0, 0, 0]);
        assert_eq!(receive(&mut guard(), &[padding.clone(), padding.clone()]), Err(Flood::EmptyFrames));
        let end = frame(DATA, END_STREAM, 1, b"");
        assert_eq!(receive(&mut guard(), &[end.clone(), end.clone(), end]), Ok(()));
    }

    #[test]
    fn priorities_are_counted_against_streams() {
        let priority = frame(PRIORITY, 0, 1, &[0; 5]);
        let mut all = guard();
        assert_eq!(receive(&mut all, &vec![priority.clone(); 100]), Ok(()));
        assert_eq!(all.receive(&frame(HEADERS, 5, 1, b"\x82")), Ok(()));
        assert_eq!(receive(&mut all, &vec![priority.clone(); 100]), Ok(()));
        assert_eq!(all.receive(&priority), Err(Flood::Priorities));
    }

    #[test]
    fn window_updates_are_counted_against_streams_and_data() {
        let update = frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
        let mut all = guard();
        assert_eq!(receive(&mut all, &vec![update.clone(); 5]), Ok(()));
        assert_eq!(all.receive(&frame(HEADERS, 5, 1, b"\x82")), Ok(()));
        assert_eq!(all.send(&frame(HEADERS, 4, 1, b"\x88")), Ok(()));
        assert_eq!(all.send(&frame(DATA, 1, 1, b"x")), Ok(()));
        assert_eq!(receive(&mut all, &vec![update.clone(); 22]), Ok(()));
        assert_eq!(all.receive(&update), Err(Flood::WindowUpdates));
    }

    #[test]
    fn answers_that_nobody_takes_end_in_a_flood() {
        let pong = frame(PING, ACK, 0, &[0; 8]);
        let mut guard = guard();
        for _ in 0..3 {
            (0..1000).for_each(|_| assert_eq!(guard.send(&pong), Ok(())));
            guard.drained();
        }
        let ours = frame(PING, 0, 0, &[0; 8]);
        (0..1000).for_each(|_| assert_eq!(guard.send(&ours), Ok(())));
        (0..1000).for_each(|_| assert_eq!(guard.send(&pong), Ok(())));
        assert_eq!(guard.send(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])), Err(Flood::Control));
        assert_eq!(guard.flood(), Some(Flood::Control));
    }

    #[test]
    fn refused_streams_are_counted() {
        let mut guard = guard();
        guard.send(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 7])).unwrap();
        guard.send(&frame(RST_STREAM, 0, 3, &[0, 0, 0, 8])).unwrap();
        assert_eq!((guard.take_refused(), guard.take_refused()), (1, 0));
    }

    #[test]
    fn the_reason_of_a_goaway_is_noted() {
        let said = |code: u8, words: &[u8]| {
            let mut guard = guard();
            guard.send(&frame(GOAWAY, 0, 0, &[&[0, 0, 0, 1, 0, 0, 0, code], words].concat())).unwrap();
            guard.farewell()
        };
        assert_eq!(said(0, b""), None);
        assert_eq!(said(1, b""), Some(Farewell::Other));
        assert_eq!(said(11, b"too_many_resets"), Some(Farewell::Resets));
        assert_eq!(said(11, b"too_many_continuations"), Some(Farewell::LargeHead));
        assert_eq!(said(11, b"header_list_way_too_large"), Some(Farewell::LargeHead));
        assert_eq!(said(11, b"too_many_data_frames"), Some(Farewell::Other));
    }

    #[test]
    fn a_goaway_is_not_put_inside_another_frame() {
        let mut guard = guard();
        guard.receive(&frame(HEADERS, 5, 0x0102, b"\x82")).unwrap();
        let goaway = frame(GOAWAY, 0, 0, &[0, 0, 1, 2, 0, 0, 0, 11]);
        assert_eq!(guard.goaway().unwrap(), goaway[..]);
        let data = frame(DATA, 0, 1, b"xx");
        guard.send(&data[..data.len() - 1]).unwrap();
        assert_eq!(guard.goaway(), None);
        guard.send(b"x").unwrap();
        assert!(guard.goaway().is_some());
    }

    prop_compose! {
        fn any_frame()(kind in 0_u8..11, flags: u8, stream in 0_u32..9, payload in prop::collection::vec(0_u8..4, 0..6)) -> Vec<u8> {
            frame(kind, flags, stream, &payload)
        }
    }

    proptest! {
        #[test]
        fn the_verdict_does_not_depend_on_how_bytes_were_cut(
            frames in prop::collection::vec(any_frame(), 0..40),
            piece in 1_usize..40,
        ) {
            let bytes = frames.concat();
            let limits = FloodLimits {
                priorities_per_stream: 2,
                window_updates_per_data_frame: 1,
                outbound_control_frames: 3,
                ..FloodLimits::default()
            };
            let options = Http2Options { floods: limits, ..Http2Options::default() };
            let (mut whole, mut cut) = (Guard::of_client(&options), Guard::of_client(&options));
            let expected = whole.receive(&bytes);
            let cut_result = bytes.chunks(piece).try_for_each(|piece| cut.receive(piece));
            prop_assert_eq!(cut_result, expected);
            let (mut whole, mut cut) = (Guard::of_server(&options), Guard::of_server(&options));
            let expected = whole.send(&bytes);
            let cut_result = bytes.chunks(piece).try_for_each(|piece| cut.send(piece));
            prop_assert_eq!(cut_result, expected);
            prop_assert_eq!(whole.goaway().is_some(), cut.goaway().is_some());
        }
    }
}
