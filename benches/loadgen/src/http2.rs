//! HTTP/2 generator (prior knowledge): plain GETs, or gRPC unary echo calls
//! with their trailers. Every answer's status, length and bytes are checked.

use crate::Args;
use crate::hpack::{self, Decoder};
use crate::http1::MAX_ERRORS;
use crate::net::{self, Conn, Event, Poller};
use crate::report::Run;
use crate::wire2::{self, Link};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The header block of a request: the first one on a connection fills the
/// receiver's dynamic table, the later ones refer to it, as real clients do.
struct Blocks {
    first: Vec<u8>,
    later: Vec<u8>,
}

impl Blocks {
    fn new(grpc: bool, size: usize, authority: &str) -> Self {
        let path = if grpc { "/bench.Echo/Unary".to_string() } else { format!("/b/{size}") };
        let method = if grpc { 0x83 } else { 0x82 };
        let http = 0x86;
        // 0x40 | index of the name in the static table: literal, to be indexed.
        let mut fields: Vec<(u8, Option<&str>, &str)> =
            vec![(0x44, None, &path), (0x41, None, authority), (0x7a, None, "loadgen")];
        if grpc {
            fields.push((0x5f, None, "application/grpc"));
            fields.push((0x40, Some("te"), "trailers"));
        } else {
            fields.push((0x53, None, "*/*"));
        }
        let (mut first, mut later) = (vec![method, http], vec![method, http]);
        for (i, (prefix, name, value)) in fields.iter().enumerate() {
            hpack::literal(&mut first, *prefix, *name, value);
            let newest_first = fields.len() - 1 - i;
            later.push(0x80 | (62 + newest_first) as u8);
        }
        Blocks { first, later }
    }
}

#[derive(Default)]
struct Stream {
    sent: Option<Instant>,
    status_ok: bool,
    body: usize,
    body_ok: bool,
    grpc_ok: bool,
}

struct Client {
    conn: Conn,
    link: Link,
    hpack: Decoder,
    partial: Vec<u8>,
    header_block: Vec<u8>,
    out: Vec<u8>,
    streams: HashMap<u32, Stream>,
    next_id: u32,
    /// Requests held back by the connection's flow-control window.
    waiting: u32,
}

struct Plan {
    target: SocketAddr,
    grpc: bool,
    blocks: Blocks,
    /// What is sent (gRPC) and expected back.
    message: Vec<u8>,
}

impl Client {
    fn new(plan: &Plan, poller: &Poller, token: u64) -> std::io::Result<Self> {
        let mut conn = Conn::new(net::connect(plan.target)?, None)?;
        conn.register(poller, token)?;
        let mut out = wire2::PREFACE.to_vec();
        let link = Link::open(&mut out);
        Ok(Client {
            conn,
            link,
            hpack: Decoder::new(),
            partial: Vec::new(),
            header_block: Vec::new(),
            out,
            streams: HashMap::new(),
            next_id: 1,
            waiting: 0,
        })
    }

    fn request(&mut self, plan: &Plan) {
        let sends_body = plan.grpc;
        if sends_body && !self.link.may_send(plan.message.len()) {
            self.waiting += 1;
            return;
        }
        let id = self.next_id;
        self.next_id += 2;
        let block = if id == 1 { &plan.blocks.first } else { &plan.blocks.later };
        let end = if sends_body { 0 } else { wire2::END_STREAM };
        wire2::frame(&mut self.out, wire2::HEADERS, wire2::END_HEADERS | end, id, block);
        if sends_body {
            wire2::frame(&mut self.out, wire2::DATA, wire2::END_STREAM, id, &plan.message);
        }
        self.streams.insert(id, Stream { sent: Some(Instant::now()), body_ok: true, ..Stream::default() });
    }

    /// Handles what was received; returns how many streams have ended.
    fn take(&mut self, data: &[u8], plan: &Plan, run: &mut Run) -> Result<u64, String> {
        let joined;
        let mut input = data;
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(data);
            joined = std::mem::take(&mut self.partial);
            input = &joined;
        }
        let mut ended = 0;
        while let Some((frame, len)) = wire2::parse(input) {
            input = &input[len..];
            self.link.control(&frame, &mut self.out);
            match frame.kind {
                wire2::HEADERS | wire2::CONTINUATION => {
                    self.header_block.extend_from_slice(frame.content());
                    if frame.has(wire2::END_HEADERS) {
                        let stream = self.streams.get_mut(&frame.stream).ok_or("headers on an unknown stream")?;
                        let block = std::mem::take(&mut self.header_block);
                        let decoded = self.hpack.decode(&block, |name, value| match name {
                            b":status" => stream.status_ok = value == b"200",
                            b"grpc-status" => stream.grpc_ok = value == b"0",
                            _ => {}
                        });
                        decoded.ok_or("malformed header block")?;
                    }
                }
                wire2::DATA => {
                    let stream = self.streams.get_mut(&frame.stream).ok_or("data on an unknown stream")?;
                    let content = frame.content();
                    let expected = plan.message.get(stream.body..stream.body + content.len());
                    stream.body_ok &= expected == Some(content);
                    stream.body += content.len();
                    run.bytes += content.len() as u64;
                }
                wire2::RST_STREAM => {
                    self.streams.remove(&frame.stream);
                    run.errors.protocol += 1;
                    ended += 1;
                    continue;
                }
                _ => {}
            }
            let ends = matches!(frame.kind, wire2::HEADERS | wire2::DATA) && frame.has(wire2::END_STREAM);
            if ends {
                let stream = self.streams.remove(&frame.stream).ok_or("end of an unknown stream")?;
                run.errors.status += !(stream.status_ok && (stream.grpc_ok || !plan.grpc)) as u64;
                run.errors.body += !(stream.body_ok && stream.body == plan.message.len()) as u64;
                run.answered(stream.sent.unwrap().elapsed());
                ended += 1;
            }
        }
        self.partial.extend_from_slice(input);
        Ok(ended)
    }

    fn flush(&mut self, poller: &Poller, token: u64) -> std::io::Result<()> {
        if !self.out.is_empty() {
            self.conn.send(&self.out)?;
            self.out.clear();
        }
        self.conn.update_interest(poller, token)
    }
}

pub fn load(args: &Args) -> String {
    let size: usize = args.number("body", 1024);
    let grpc = args.has("grpc");
    let mut message = net::pattern(size);
    if grpc {
        let mut framed = vec![0];
        framed.extend_from_slice(&(size as u32).to_be_bytes());
        framed.append(&mut message);
        message = framed;
    }
    let plan = Plan {
        target: args.address("target"),
        grpc,
        blocks: Blocks::new(grpc, size, args.text("host").unwrap_or("bench.local")),
        message,
    };
    let connections: u64 = args.number("connections", 10);
    let streams: u64 = args.number("streams", 32);
    let warmup: u64 = args.number("warmup", 1000);
    let total = warmup + args.number::<u64>("requests", 100_000);
    let deadline = Instant::now() + Duration::from_secs_f64(args.number("max-seconds", 20.0));

    let mut run = Run::new(&args.all("watch"));
    let mut poller = Poller::new();
    let (mut events, mut buf) = (Vec::<Event>::new(), Vec::with_capacity(256 * 1024));
    let (mut issued, mut done) = (0u64, 0u64);
    let mut clients = Vec::new();
    for token in 0..connections {
        let mut client = Client::new(&plan, &poller, token).expect("connect");
        for _ in 0..streams.min(total - issued) {
            client.request(&plan);
            issued += 1;
        }
        client.flush(&poller, token).expect("send");
        clients.push(Some(client));
    }
    let mut measuring = false;
    while done < total && Instant::now() < deadline && run.errors.total() < MAX_ERRORS {
        poller.wait(Some(deadline.saturating_duration_since(Instant::now())), &mut events).expect("epoll_wait");
        for event in &events {
            let Some(client) = clients[event.token as usize].as_mut() else { continue };
            buf.clear();
            let open = !event.readable || client.conn.receive(&mut buf).unwrap_or(false);
            let ended = match client.take(&buf, &plan, &mut run) {
                Ok(ended) if open && !client.link.closing => ended,
                outcome => {
                    if let Err(what) = outcome {
                        eprintln!("loadgen: {what}");
                        run.errors.protocol += 1;
                    }
                    // The proxy ended the connection with requests on it.
                    run.errors.connection += 1;
                    clients[event.token as usize] = None;
                    continue;
                }
            };
            done += ended;
            for _ in 0..ended + std::mem::take(&mut client.waiting) as u64 {
                client.request(&plan);
            }
            if event.writable {
                let _ = client.conn.flush();
            }
            if client.flush(&poller, event.token).is_err() {
                run.errors.connection += 1;
                clients[event.token as usize] = None;
            }
        }
        if done >= warmup && !measuring {
            measuring = true;
            run.begin();
        }
        if clients.iter().all(|c| c.is_none()) {
            break;
        }
    }
    run.finish(total.saturating_sub(done))
}
