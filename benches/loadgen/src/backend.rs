//! The server behind the proxies. One thread, one epoll; it does as little as
//! it can while staying correct: HTTP/1.1 (plain, or mutual TLS), HTTP/2 with
//! prior knowledge (fixed answers, or gRPC unary echo), and for TCP an endless
//! source of bytes and a one-shot exchange.
//!
//! It never decodes HPACK: which answer a request gets depends on the port it
//! came in on, so header blocks can be skipped.

use crate::Args;
use crate::hpack;
use crate::http1::header;
use crate::net::{self, Conn, Event, Poller, Tls};
use crate::wire2::{self, Link};
use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

#[derive(Clone, Copy, PartialEq)]
enum Service {
    Http1,
    Http1MutualTls,
    Http2,
    Grpc,
    Source,
    OneShot,
}

const LISTENER: u64 = 1 << 32;

enum Peer {
    Http1 { conn: Conn, partial: Vec<u8> },
    Http2(Box<Http2>),
    Source { sock: TcpStream, offset: usize },
    OneShot(TcpStream),
}

struct Http2 {
    conn: Conn,
    link: Link,
    grpc: bool,
    preface_seen: bool,
    partial: Vec<u8>,
    /// Request bodies (gRPC only) of streams not yet complete.
    bodies: HashMap<u32, Vec<u8>>,
    /// Answers held back by the connection's flow-control window.
    held: VecDeque<(u32, Vec<u8>)>,
    out: Vec<u8>,
}

struct Answers {
    tag: String,
    http1: HashMap<usize, Vec<u8>>,
    http2_head: Vec<u8>,
    http2_body: Vec<u8>,
    grpc_head: Vec<u8>,
    grpc_trailers: Vec<u8>,
    stream: Vec<u8>,
}

impl Answers {
    fn new(tag: &str, http2_size: usize) -> Self {
        let (mut http2_head, mut grpc_head, mut grpc_trailers) = (vec![0x88], vec![0x88], Vec::new());
        for (head, kind) in [(&mut http2_head, "text/plain"), (&mut grpc_head, "application/grpc")] {
            hpack::literal(head, 0, Some("content-type"), kind);
            hpack::literal(head, 0, Some("x-served-by"), tag);
        }
        hpack::literal(&mut http2_head, 0, Some("content-length"), &http2_size.to_string());
        hpack::literal(&mut grpc_trailers, 0, Some("grpc-status"), "0");
        Answers {
            tag: tag.into(),
            http1: HashMap::new(),
            http2_head,
            http2_body: net::pattern(http2_size),
            grpc_head,
            grpc_trailers,
            stream: net::pattern(26 * 10_000),
        }
    }

    fn http1(&mut self, size: usize) -> &[u8] {
        let tag = &self.tag;
        self.http1.entry(size).or_insert_with(|| {
            let mut answer = format!(
                "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\ncontent-type: text/plain\r\nx-served-by: {tag}\r\ncontent-length: {size}\r\n\r\n"
            ).into_bytes();
            answer.extend(net::pattern(size));
            answer
        })
    }
}

/// The size asked for: GET /b/SIZE. Anything else gets 100 bytes.
fn wanted_size(head: &[u8]) -> usize {
    let path = head.split(|b| *b == b' ').nth(1).unwrap_or_default();
    path.strip_prefix(b"/b/").and_then(|s| std::str::from_utf8(s).ok()).and_then(|s| s.parse().ok()).unwrap_or(100)
}

fn wants_close(head: &[u8]) -> bool {
    header(head, b"connection").is_some_and(|v| v.eq_ignore_ascii_case(b"close"))
}

/// Bytes of a request's body; `None` while not all of it is there.
fn body_length(head: &[u8], rest: &[u8]) -> Option<usize> {
    if header(head, b"transfer-encoding").is_none() {
        let length =
            header(head, b"content-length").and_then(|v| std::str::from_utf8(v).ok()?.parse().ok()).unwrap_or(0);
        return (rest.len() >= length).then_some(length);
    }
    let mut at = 0;
    loop {
        let line = memchr::memmem::find(&rest[at..], b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[at..at + line]).ok()?.trim(), 16).ok()?;
        at += line + 2 + size + 2;
        if rest.len() < at {
            return None;
        }
        if size == 0 {
            return Some(at);
        }
    }
}

fn serve_http1(
    conn: &mut Conn,
    partial: &mut Vec<u8>,
    buf: &mut Vec<u8>,
    answers: &mut Answers,
) -> std::io::Result<bool> {
    buf.clear();
    buf.append(partial);
    let mut open = conn.receive(buf)?;
    let mut rest = &buf[..];
    while let Some(end) = memchr::memmem::find(rest, b"\r\n\r\n") {
        let head = &rest[..end];
        let Some(body) = body_length(head, &rest[end + 4..]) else { break };
        conn.send(answers.http1(wanted_size(head)))?;
        open &= !wants_close(head);
        rest = &rest[end + 4 + body..];
    }
    partial.extend_from_slice(rest);
    Ok(open)
}

impl Http2 {
    fn answer(&mut self, id: u32, body: Vec<u8>, answers: &Answers) {
        let message = if self.grpc { &body } else { &answers.http2_body };
        if !self.link.may_send(message.len()) {
            self.held.push_back((id, body));
            return;
        }
        if self.grpc {
            wire2::frame(&mut self.out, wire2::HEADERS, wire2::END_HEADERS, id, &answers.grpc_head);
            wire2::frame(&mut self.out, wire2::DATA, 0, id, message);
            wire2::frame(
                &mut self.out,
                wire2::HEADERS,
                wire2::END_HEADERS | wire2::END_STREAM,
                id,
                &answers.grpc_trailers,
            );
        } else {
            wire2::frame(&mut self.out, wire2::HEADERS, wire2::END_HEADERS, id, &answers.http2_head);
            wire2::frame(&mut self.out, wire2::DATA, wire2::END_STREAM, id, message);
        }
    }

    fn serve(&mut self, buf: &mut Vec<u8>, answers: &Answers) -> std::io::Result<bool> {
        buf.clear();
        buf.append(&mut self.partial);
        let open = self.conn.receive(buf)?;
        let mut rest = &buf[..];
        if !self.preface_seen && rest.len() >= wire2::PREFACE.len() {
            if !rest.starts_with(wire2::PREFACE) {
                return Ok(false);
            }
            self.preface_seen = true;
            rest = &rest[wire2::PREFACE.len()..];
        }
        while let Some((frame, len)) = self.preface_seen.then(|| wire2::parse(rest)).flatten() {
            self.link.control(&frame, &mut self.out);
            match frame.kind {
                wire2::DATA if self.grpc => {
                    self.bodies.entry(frame.stream).or_default().extend_from_slice(frame.content())
                }
                wire2::RST_STREAM => drop(self.bodies.remove(&frame.stream)),
                _ => {}
            }
            if matches!(frame.kind, wire2::DATA | wire2::HEADERS) && frame.has(wire2::END_STREAM) {
                let body = self.bodies.remove(&frame.stream).unwrap_or_default();
                self.answer(frame.stream, body, answers);
            }
            rest = &rest[len..];
        }
        self.partial.extend_from_slice(rest);
        for (id, body) in std::mem::take(&mut self.held) {
            self.answer(id, body, answers);
        }
        if !self.out.is_empty() {
            self.conn.send(&self.out)?;
            self.out.clear();
        }
        Ok(open)
    }
}

fn accept(service: Service, sock: TcpStream, tls: Option<&Tls>, poller: &Poller, token: u64) -> std::io::Result<Peer> {
    net::prepare(&sock)?;
    let fd = sock.as_raw_fd();
    match service {
        Service::Source => {
            poller.add(fd, token, false, true)?;
            return Ok(Peer::Source { sock, offset: 0 });
        }
        Service::OneShot => {
            poller.add(fd, token, true, false)?;
            return Ok(Peer::OneShot(sock));
        }
        _ => {}
    }
    let mut conn = Conn::new(sock, tls.filter(|_| service == Service::Http1MutualTls))?;
    conn.register(poller, token)?;
    Ok(match service {
        Service::Http2 | Service::Grpc => {
            let mut out = Vec::new();
            let link = Link::open(&mut out);
            conn.send(&out)?;
            out.clear();
            let grpc = service == Service::Grpc;
            Peer::Http2(Box::new(Http2 {
                conn,
                link,
                grpc,
                preface_seen: false,
                partial: Vec::new(),
                bodies: HashMap::new(),
                held: VecDeque::new(),
                out,
            }))
        }
        _ => Peer::Http1 { conn, partial: Vec::new() },
    })
}

impl Peer {
    /// Ok(false) and errors end the connection.
    fn serve(
        &mut self,
        event: &Event,
        buf: &mut Vec<u8>,
        answers: &mut Answers,
        poller: &Poller,
    ) -> std::io::Result<bool> {
        match self {
            Peer::Source { sock, offset } => {
                if event.readable && !event.writable {
                    return Ok(false);
                }
                match sock.write(&answers.stream[*offset..]) {
                    Ok(n) => *offset = (*offset + n) % answers.stream.len(),
                    Err(e) if net::would_block(&e) => {}
                    Err(e) => return Err(e),
                }
                Ok(true)
            }
            Peer::OneShot(sock) => {
                if sock.read(&mut [0; 256])? > 0 {
                    sock.write_all(&answers.stream[..64])?;
                }
                Ok(false)
            }
            Peer::Http1 { conn, partial } => {
                if event.writable {
                    conn.flush()?;
                }
                let open = !event.readable || serve_http1(conn, partial, buf, answers)?;
                conn.update_interest(poller, event.token)?;
                Ok(open)
            }
            Peer::Http2(peer) => {
                if event.writable {
                    peer.conn.flush()?;
                }
                let open = !event.readable || peer.serve(buf, answers)?;
                peer.conn.update_interest(poller, event.token)?;
                Ok(open)
            }
        }
    }
}

pub struct Server {
    poller: Poller,
    listeners: Vec<(Service, TcpListener)>,
    peers: Vec<Option<Peer>>,
    vacant: Vec<usize>,
    answers: Answers,
    tls: Option<Tls>,
    events: Vec<Event>,
    buf: Vec<u8>,
}

impl Server {
    pub fn new(args: &Args) -> Self {
        let tls = args.text("backend-cert").map(|cert| {
            Tls::Server(crate::tls::server(cert, args.text("backend-key").expect("--backend-key"), args.text("ca")))
        });
        let mut server = Server {
            poller: Poller::new(),
            listeners: Vec::new(),
            peers: Vec::new(),
            vacant: Vec::new(),
            answers: Answers::new(args.text("tag").unwrap_or("a"), args.number("h2-body", 1024)),
            tls,
            events: Vec::new(),
            buf: Vec::with_capacity(256 * 1024),
        };
        let services = [
            ("h1", Service::Http1),
            ("mtls", Service::Http1MutualTls),
            ("h2", Service::Http2),
            ("grpc", Service::Grpc),
            ("source", Service::Source),
            ("oneshot", Service::OneShot),
        ];
        for (flag, service) in services {
            for addr in args.all(flag) {
                let listener = net::listen(addr.parse().expect("address")).unwrap_or_else(|e| panic!("{addr}: {e}"));
                let token = LISTENER + server.listeners.len() as u64;
                server.poller.add(listener.as_raw_fd(), token, true, false).expect("epoll_ctl");
                server.listeners.push((service, listener));
            }
        }
        server
    }

    /// Waits for events (forever without a timeout) and serves them.
    pub fn poll(&mut self, timeout: Option<Duration>) {
        let Server { poller, listeners, peers, vacant, answers, tls, events, buf } = self;
        poller.wait(timeout, events).expect("epoll_wait");
        for event in events {
            if event.token >= LISTENER {
                let (service, listener) = &listeners[(event.token - LISTENER) as usize];
                while let Ok((sock, _)) = listener.accept() {
                    let at = vacant.pop().unwrap_or_else(|| {
                        peers.push(None);
                        peers.len() - 1
                    });
                    match accept(*service, sock, tls.as_ref(), poller, at as u64) {
                        Ok(peer) => peers[at] = Some(peer),
                        Err(_) => vacant.push(at),
                    }
                }
                continue;
            }
            let at = event.token as usize;
            let Some(peer) = peers[at].as_mut() else { continue };
            if !matches!(peer.serve(event, buf, answers, poller), Ok(true)) {
                if let Some(Peer::Http1 { conn, .. }) = peers[at].as_mut() {
                    conn.finish();
                }
                peers[at] = None;
                vacant.push(at);
            }
        }
    }
}

pub fn serve(args: &Args) -> String {
    let mut server = Server::new(args);
    println!("ready");
    loop {
        server.poll(None);
    }
}
