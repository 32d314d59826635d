//! HTTP/1.1 generator: closed loop, constant rate, one connection per request
//! (optionally all over TLS), and a crowd of idle keep-alive connections.
//! Every answer's status, length and bytes are checked.

use crate::Args;
use crate::backend::Server;
use crate::net::{self, Conn, Event, Poller, Tls};
use crate::report::Run;
use std::collections::VecDeque;
use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A few errors are reported; a proxy that only errs ends the run.
pub const MAX_ERRORS: u64 = 1000;

struct Client {
    conn: Option<Conn>,
    /// Bytes of an answer's head that has not arrived completely.
    partial: Vec<u8>,
    /// Body bytes still to come; None while waiting for a head.
    body_left: Option<usize>,
    body_len: usize,
    /// When the request in flight should have left.
    due: Option<Instant>,
}

struct Plan {
    target: SocketAddr,
    tls: Option<Tls>,
    request: Vec<u8>,
    body: Vec<u8>,
    new_connections: bool,
}

impl Plan {
    fn from(args: &Args) -> Self {
        let size: usize = args.number("body", 100);
        let new_connections = args.has("new-connections");
        let close = if new_connections { "connection: close\r\n" } else { "" };
        let host = args.text("host").unwrap_or("bench.local");
        Plan {
            target: args.address("target"),
            tls: args.has("tls").then(|| {
                let identity = args.text("cert").zip(args.text("key"));
                Tls::Client(crate::tls::client(identity, args.has("resume")))
            }),
            request: format!(
                "GET /b/{size} HTTP/1.1\r\nhost: {host}\r\nuser-agent: loadgen\r\naccept: */*\r\n{close}\r\n"
            )
            .into_bytes(),
            body: net::pattern(size),
            new_connections,
        }
    }
}

impl Client {
    fn new() -> Self {
        Client { conn: None, partial: Vec::new(), body_left: None, body_len: 0, due: None }
    }

    fn reset(&mut self) {
        *self = Self::new();
    }

    /// Sends one request, connecting first if need be.
    fn start(&mut self, plan: &Plan, poller: &Poller, token: u64, due: Instant) -> std::io::Result<()> {
        self.due = Some(due);
        if self.conn.is_none() {
            let mut conn = Conn::new(net::connect(plan.target)?, plan.tls.as_ref())?;
            conn.register(poller, token)?;
            self.conn = Some(conn);
        }
        let conn = self.conn.as_mut().unwrap();
        conn.send(&plan.request)?;
        conn.update_interest(poller, token)
    }

    /// Takes received bytes; Ok(true) when the answer is complete.
    fn take(&mut self, received: &[u8], plan: &Plan, run: &mut Run) -> Result<bool, &'static str> {
        let joined;
        let mut data = received;
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(data);
            joined = std::mem::take(&mut self.partial);
            data = &joined;
        }
        if self.body_left.is_none() {
            let Some(end) = memchr::memmem::find(data, b"\r\n\r\n") else {
                self.partial = data.to_vec();
                return Ok(false);
            };
            let head = &data[..end];
            if head.get(..9) != Some(b"HTTP/1.1 ") {
                return Err("not an HTTP/1.1 answer");
            }
            if head.get(9..12) != Some(b"200") {
                run.errors.status += 1;
            }
            let length = header(head, b"content-length").ok_or("answer without content-length")?;
            self.body_len =
                std::str::from_utf8(length).ok().and_then(|s| s.trim().parse().ok()).ok_or("bad content-length")?;
            if self.body_len != plan.body.len() {
                run.errors.body += 1;
            }
            self.body_left = Some(self.body_len);
            data = &data[end + 4..];
        }
        let left = self.body_left.unwrap();
        if data.len() > left {
            return Err("bytes after the answer");
        }
        let at = self.body_len - left;
        if self.body_len == plan.body.len() && data != &plan.body[at..at + data.len()] {
            run.errors.body += 1;
        }
        run.bytes += data.len() as u64;
        self.body_left = Some(left - data.len());
        if left > data.len() {
            return Ok(false);
        }
        self.body_left = None;
        Ok(true)
    }
}

/// The value of a header, its name compared without regard to case.
pub fn header<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    head.split(|b| *b == b'\n').find_map(|line| {
        let (found, value) = (line.get(..name.len())?, line.get(name.len()..)?);
        (value.first() == Some(&b':') && found.eq_ignore_ascii_case(name)).then(|| value[1..].trim_ascii())
    })
}

pub fn load(args: &Args) -> String {
    let plan = Plan::from(args);
    let connections: usize = args.number("connections", 64);
    let warmup: u64 = args.number("warmup", 1000);
    let total = warmup + args.number::<u64>("requests", 100_000);
    let deadline = Instant::now() + Duration::from_secs_f64(args.number("max-seconds", 20.0));
    let rate: f64 = args.number("rate", 0.0);
    let mut server = (rate > 0.0 && args.has("h1")).then(|| Server::new(args));
    let interval = (rate > 0.0).then(|| Duration::from_secs_f64(1.0 / rate));

    let mut run = Run::new(&args.all("watch"));
    let mut poller = Poller::new();
    let mut clients: Vec<Client> = (0..connections).map(|_| Client::new()).collect();
    let (mut events, mut buf) = (Vec::<Event>::new(), Vec::with_capacity(256 * 1024));
    let (mut issued, mut done, mut measuring) = (0u64, 0u64, false);
    let start = Instant::now();

    // Constant rate: request k is due at start + k * interval, whatever the
    // answers do; one that finds no free connection waits, and that wait counts.
    let mut free: VecDeque<usize> = (0..connections).collect();
    let mut to_start: Vec<(usize, Instant)> = Vec::new();

    while done < total && Instant::now() < deadline && run.errors.total() < MAX_ERRORS {
        let now = Instant::now();
        while issued < total && !free.is_empty() {
            let due = interval.map_or(now, |i| start + i.mul_f64(issued as f64));
            if due > now {
                break;
            }
            to_start.push((free.pop_front().unwrap(), due));
            issued += 1;
        }
        for (i, due) in to_start.drain(..) {
            if clients[i].start(&plan, &poller, i as u64, due).is_err() {
                run.errors.connection += 1;
                clients[i].reset();
                free.push_back(i);
                done += 1;
            }
        }
        // At a constant rate this loop never sleeps, and may be the backend too,
        // so that no time passes in waking anything up but the proxy.
        let limit = if interval.is_some() { Duration::ZERO } else { deadline.saturating_duration_since(now) };
        poller.wait(Some(limit), &mut events).expect("epoll_wait");
        if let Some(server) = &mut server {
            server.poll(Some(Duration::ZERO));
        }

        for event in &events {
            let i = event.token as usize;
            let client = &mut clients[i];
            let Some(conn) = client.conn.as_mut() else { continue };
            if event.writable {
                let _ = conn.flush();
            }
            let mut open = true;
            if event.readable {
                buf.clear();
                open = conn.receive(&mut buf).unwrap_or(false);
            }
            let _ = conn.update_interest(&poller, event.token);
            if !event.readable {
                continue;
            }
            let complete = match client.take(&buf, &plan, &mut run) {
                Ok(complete) => complete && client.due.is_some(),
                Err(_) => {
                    run.errors.protocol += 1;
                    open = false;
                    false
                }
            };
            if complete {
                let due = client.due.take().unwrap();
                run.answered(due.elapsed());
            } else if !open && client.due.is_some() {
                run.errors.connection += 1;
            } else if open {
                continue;
            }
            // An answer, or the end of a connection.
            let answered_or_failed = complete || client.due.is_some();
            if !open || plan.new_connections {
                if let Some(conn) = client.conn.as_mut() {
                    conn.finish();
                }
                client.reset();
            }
            if answered_or_failed {
                free.push_back(i);
                done += 1;
                if done >= warmup && !measuring {
                    measuring = true;
                    run.begin();
                }
            }
        }
    }
    run.finish(total - done)
}

/// Opens connections, has one request answered on each, and holds them all
/// until standard input closes.
pub fn idle(args: &Args) -> String {
    let plan = Plan::from(args);
    let connections: usize = args.number("connections", 10_000);
    let mut run = Run::new(&[]);
    let mut held = Vec::with_capacity(connections);
    let mut poller = Poller::new();
    let (mut events, mut buf) = (Vec::new(), Vec::new());
    for token in 0..connections {
        let mut client = Client::new();
        let mut answered = client.start(&plan, &poller, token as u64, Instant::now()).map(|()| false);
        while let Ok(false) = answered {
            poller.wait(Some(Duration::from_secs(5)), &mut events).expect("epoll_wait");
            buf.clear();
            let open = client.conn.as_mut().unwrap().receive(&mut buf);
            answered = match (open, client.take(&buf, &plan, &mut run)) {
                (Ok(true), Ok(complete)) if !events.is_empty() => Ok(complete),
                _ => Err(std::io::ErrorKind::ConnectionAborted.into()),
            };
        }
        match answered {
            Ok(_) => run.requests += 1,
            Err(_) => run.errors.connection += 1,
        }
        held.push(client);
        if run.errors.total() >= MAX_ERRORS {
            break;
        }
    }
    println!("{}", run.finish(0));
    let _ = std::io::stdin().read(&mut [0]);
    // Which of them did the proxy keep open?
    let alive = held
        .iter()
        .filter(|c| c.conn.as_ref().is_some_and(|c| c.socket().peek(&mut [0]).is_err_and(|e| net::would_block(&e))))
        .count();
    format!(r#"{{"alive":{alive}}}"#)
}
