//! HTTP/2 frame by frame, for peers that do what no library would: floods, half messages, GOAWAY in the middle.
//!
//! Owns frames on a connection, as a client or as a server. Never decides what is sent, and of compressed headers reads only
//! the status of a response.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::within;

/// Kinds of frames (RFC 9113 section 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags.
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// Codes (RFC 9113 section 7).
pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// Settings (RFC 9113 section 6.5.2).
const SETTINGS_HEADER_TABLE_SIZE: u16 = 1;
pub const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The bytes of it.
    pub fn bytes(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// The number at a place of the payload.
    pub fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }

    /// Last stream and code of a GOAWAY.
    pub fn goaway(&self) -> Option<(u32, u32)> {
        (self.kind == GOAWAY).then(|| (self.number(0) & 0x7fff_ffff, self.number(4)))
    }

    /// The status, if it is the head of a response. Both proxies write common ones by their place in the static table and
    /// the digits of others in the clear or in Huffman's code.
    pub fn status(&self) -> Option<u16> {
        if self.kind != HEADERS {
            return None;
        }
        // Updates of the size of the table come first.
        let block = &self.payload[self.payload.iter().position(|byte| byte >> 5 != 1)?..];
        match block {
            [place @ 0x88..=0x8e, ..] => Some([200, 204, 206, 304, 400, 404, 500][usize::from(place - 0x88)]),
            [_, 3, digits @ ..] => std::str::from_utf8(digits.get(..3)?).ok()?.parse().ok(),
            [_, length @ (0x82 | 0x83), code @ ..] => huffman_digits(code.get(..usize::from(length & 0x7f))?),
            _ => None,
        }
    }
}

/// Three digits in two bytes or three: only `0`, `1` and `2` have five bits, all others six (RFC 7541 appendix B).
fn huffman_digits(code: &[u8]) -> Option<u16> {
    let bits: String = code.iter().map(|byte| format!("{byte:08b}")).collect();
    let mut rest = bits.as_str();
    let mut status = 0;
    for _ in 0..3 {
        let (digit, length) = match u16::from_str_radix(rest.get(..5)?, 2).ok()? {
            short @ 0..=2 => (short, 5),
            _ => (u16::from_str_radix(rest.get(..6)?, 2).ok()?.checked_sub(0b01_1001)? + 3, 6),
        };
        status = status * 10 + digit;
        rest = &rest[length..];
    }
    Some(status)
}

/// A header block: every field spelled out, nothing remembered.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        text(name, &mut block);
        text(value, &mut block);
    }
    block
}

fn text(text: &str, out: &mut Vec<u8>) {
    match text.len() {
        short @ ..127 => out.push(u8::try_from(short).expect("seven bits")),
        long => {
            out.push(127);
            let mut rest = long - 127;
            while rest >= 128 {
                out.push(u8::try_from(rest % 128).expect("seven bits") | 128);
                rest /= 128;
            }
            out.push(u8::try_from(rest).expect("seven bits"));
        }
    }
    out.extend_from_slice(text.as_bytes());
}

/// The header block of a request, with fields of its own.
pub fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "example.com")];
    block(&[&pseudo[..], more].concat())
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// The peer said that it is done.
    Finished,
    /// The peer broke it off.
    Broken,
}

/// One side of a connection.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    read: Vec<u8>,
    /// What was offered and not taken.
    unsent: Vec<u8>,
    end: Option<End>,
}

impl Peer {
    /// Connects as a client with these settings, and without a table for headers, so that each response spells out its own.
    pub async fn connect(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        Self::hello(TcpStream::connect(address).await.expect("connecting"), settings).await
    }

    /// The same with the smallest buffer for what the proxy sends that the system gives.
    pub async fn connect_narrow(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(1).expect("an option");
        Self::hello(socket.connect(address).await.expect("connecting"), settings).await
    }

    async fn hello(stream: TcpStream, settings: &[(u16, u32)]) -> Self {
        stream.set_nodelay(true).expect("an option");
        let mut peer = Self { stream, read: Vec::new(), unsent: Vec::new(), end: None };
        assert!(peer.send_bytes(&[PREFACE, &settings_frame(settings)].concat()).await);
        peer
    }

    /// Takes a connection as a server with these settings, and reads the client's first words.
    pub async fn accept(listener: &TcpListener, settings: &[(u16, u32)]) -> Self {
        let (stream, _) = within("a connection", listener.accept()).await.expect("accepting");
        stream.set_nodelay(true).expect("an option");
        let mut peer = Self { stream, read: Vec::new(), unsent: Vec::new(), end: None };
        while peer.read.len() < PREFACE.len() {
            assert!(peer.fill().await, "an end within the preface");
        }
        assert!(peer.read.starts_with(PREFACE));
        peer.read.drain(..PREFACE.len());
        assert!(peer.send_bytes(&settings_frame(settings)).await);
        peer
    }

    /// Sends a frame; false if the connection is over.
    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.send_bytes(&Frame::bytes(kind, flags, stream, payload)).await
    }

    /// Sends bytes; false if the connection is over.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> bool {
        within("the peer to take bytes", self.stream.write_all(bytes)).await.is_ok()
    }

    /// Sends bytes as far as the peer takes them, which may be nowhere; the next offer begins with what is left, and is
    /// nothing else until that is gone. False if the connection is over.
    pub async fn offer(&mut self, bytes: &[u8]) -> bool {
        if self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
        }
        while !self.unsent.is_empty() {
            let patience = std::time::Duration::from_millis(200);
            match tokio::time::timeout(patience, self.stream.write(&self.unsent)).await {
                Ok(Ok(count)) => drop(self.unsent.drain(..count)),
                Ok(Err(_)) => return false,
                Err(_) => break,
            }
        }
        true
    }

    /// Opens a stream with a request without a body.
    pub async fn get(&mut self, stream: u32, path: &str, more: &[(&str, &str)]) -> bool {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", path, more)).await
    }

    async fn fill(&mut self) -> bool {
        let mut piece = [0; 16 * 1024];
        match within("bytes, or the end", self.stream.read(&mut piece)).await {
            Ok(0) => self.end = Some(End::Finished),
            Ok(count) => self.read.extend_from_slice(&piece[..count]),
            Err(_) => self.end = Some(End::Broken),
        }
        self.end.is_none()
    }

    /// The next frame; `None` at the end.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some((head, rest)) = self.read.split_first_chunk::<9>() {
                let [a, b, c, kind, flags, stream @ ..] = *head;
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                if rest.len() >= length {
                    let payload = rest[..length].to_vec();
                    self.read.drain(..9 + length);
                    return Some(Frame { kind, flags, stream: u32::from_be_bytes(stream) & 0x7fff_ffff, payload });
                }
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The next frame that is as wanted; those before it are dropped, and pings and settings answered.
    ///
    /// # Panics
    /// If the connection ends before.
    pub async fn wait(&mut self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let Some(frame) = self.next().await else { panic!("the connection ended before {what}") };
            if matches!(frame.kind, PING | SETTINGS) && frame.flags & ACK == 0 {
                let payload = if frame.kind == PING { frame.payload.clone() } else { Vec::new() };
                self.send(frame.kind, ACK, 0, &payload).await;
            }
            if wanted(&frame) {
                return frame;
            }
        }
    }

    /// The status of the response on a stream.
    pub async fn status(&mut self, stream: u32) -> u16 {
        let frame = self.wait("a response", |frame| frame.kind == HEADERS && frame.stream == stream).await;
        frame.status().unwrap_or_else(|| panic!("no status in {frame:?}"))
    }

    /// All frames until the connection ends, and how it does.
    pub async fn rest(&mut self) -> (Vec<Frame>, End) {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        (frames, self.end.expect("an end"))
    }
}

fn settings_frame(settings: &[(u16, u32)]) -> Vec<u8> {
    let settings = [&[(SETTINGS_HEADER_TABLE_SIZE, 0)], settings].concat();
    let each = |(name, value): &(u16, u32)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat();
    Frame::bytes(SETTINGS, 0, 0, &settings.iter().flat_map(each).collect::<Vec<u8>>())
}
