//! HTTP/2 framing shared by generator and backend.

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// Receive window kept open for the other side, per connection and stream.
const WINDOW: u32 = 16 << 20;

pub struct Frame<'a> {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    payload: &'a [u8],
}

/// The first frame in `buf` and how many bytes it takes, once it is complete.
pub fn parse(buf: &[u8]) -> Option<(Frame<'_>, usize)> {
    let head = buf.get(..9)?;
    let end = 9 + u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let payload = buf.get(9..end)?;
    let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
    Some((Frame { kind: head[3], flags: head[4], stream, payload }, end))
}

impl<'a> Frame<'a> {
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The payload without padding and priority.
    pub fn content(&self) -> &'a [u8] {
        let mut p = self.payload;
        if matches!(self.kind, DATA | HEADERS) && self.has(PADDED) {
            let padding = p.first().map_or(0, |n| *n as usize);
            p = p.get(1..p.len().saturating_sub(padding)).unwrap_or_default();
        }
        if self.kind == HEADERS && self.has(PRIORITY) {
            p = p.get(5..).unwrap_or_default();
        }
        p
    }

    /// What a DATA frame takes out of the flow-control window.
    pub fn flow_len(&self) -> usize {
        self.payload.len()
    }

    fn number(&self) -> i64 {
        self.payload.get(..4).map_or(0, |b| (u32::from_be_bytes(b.try_into().unwrap()) & 0x7fff_ffff) as i64)
    }
}

pub fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Flow control and housekeeping of one connection, either side.
pub struct Link {
    /// What this side may still send.
    pub send_window: i64,
    /// What the other side allows a new stream.
    pub stream_window: i64,
    received: usize,
    pub closing: bool,
}

impl Link {
    /// Queues this side's SETTINGS and a large connection window.
    pub fn open(out: &mut Vec<u8>) -> Self {
        let mut settings = Vec::new();
        for (id, value) in [(3u16, 1024u32), (4, WINDOW)] {
            settings.extend_from_slice(&id.to_be_bytes());
            settings.extend_from_slice(&value.to_be_bytes());
        }
        frame(out, SETTINGS, 0, 0, &settings);
        frame(out, WINDOW_UPDATE, 0, 0, &(WINDOW - 65_535).to_be_bytes());
        Link { send_window: 65_535, stream_window: 65_535, received: 0, closing: false }
    }

    /// Handles the frames that concern the connection, not one stream.
    pub fn control(&mut self, frame_in: &Frame, out: &mut Vec<u8>) {
        match frame_in.kind {
            SETTINGS if !frame_in.has(ACK) => {
                for setting in frame_in.payload.chunks_exact(6) {
                    let value = u32::from_be_bytes(setting[2..].try_into().unwrap());
                    if setting[..2] == [0, 4] {
                        self.stream_window = value as i64;
                    }
                }
                frame(out, SETTINGS, ACK, 0, &[]);
            }
            PING if !frame_in.has(ACK) => frame(out, PING, ACK, 0, frame_in.payload),
            WINDOW_UPDATE if frame_in.stream == 0 => self.send_window += frame_in.number(),
            GOAWAY => self.closing = true,
            DATA => {
                self.received += frame_in.flow_len();
                if self.received > WINDOW as usize / 2 {
                    frame(out, WINDOW_UPDATE, 0, 0, &(self.received as u32).to_be_bytes());
                    self.received = 0;
                }
            }
            _ => {}
        }
    }

    /// Takes `len` bytes out of the windows, if they fit.
    pub fn may_send(&mut self, len: usize) -> bool {
        assert!(len as i64 <= self.stream_window, "the other side's stream window is too small for one message");
        let fits = len as i64 <= self.send_window;
        if fits {
            self.send_window -= len as i64;
        }
        fits
    }
}
