//! An endpoint that reads HTTP/1.1 by the letter of RFC 9112, and takes nothing that another could read otherwise.
//!
//! Owns what came, request by request. Knows nothing of the proxy's code.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// A running endpoint; it ends when dropped.
pub struct Endpoint {
    port: u16,
    seen: Arc<Mutex<Seen>>,
    task: AbortHandle,
}

#[derive(Default)]
struct Seen {
    requests: Vec<String>,
    connections: usize,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Endpoint {
    /// Starts on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = seen.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                shared.lock().unwrap_or_else(PoisonError::into_inner).connections += 1;
                let connection = Connection { stream, buffer: Vec::new(), seen: shared.clone() };
                connections.spawn(connection.serve());
                while connections.try_join_next().is_some() {}
            }
        });
        Self { port, seen, task: task.abort_handle() }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What came whole since the last call: `METHOD host/target=body`, or `!` and what was wrong.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner).requests)
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).connections
    }
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    seen: Arc<Mutex<Seen>>,
}

/// Why reading ends.
enum Ended {
    /// The peer closed, between messages or within one.
    Closed,
    /// What came is not HTTP/1.1, or could be read in another way.
    Wrong(String),
}

struct Head {
    name: String,
    body: Body,
}

#[derive(Clone, Copy)]
enum Body {
    Length(usize),
    Chunked,
}

impl Connection {
    async fn serve(mut self) {
        loop {
            let said = match self.request().await {
                Ok((name, body)) if body.is_empty() => (name.clone(), name),
                Ok((name, body)) => (format!("{name}={}", body.escape_ascii()), name),
                Err(Ended::Closed) => return,
                Err(Ended::Wrong(why)) => return self.note(format!("!{why}")),
            };
            self.note(said.0);
            let answer = format!("HTTP/1.1 200 OK\r\nx-answer-to: {}\r\ncontent-length: 0\r\n\r\n", said.1);
            if self.stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    fn note(&self, request: String) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).requests.push(request);
    }

    async fn request(&mut self) -> Result<(String, Vec<u8>), Ended> {
        let bytes = self.until(b"\r\n\r\n").await?;
        let head = head(&bytes).map_err(|why| Ended::Wrong(format!("{why}: {}", bytes.escape_ascii())))?;
        let body = match head.body {
            Body::Length(length) => self.exactly(length).await?,
            Body::Chunked => self.chunks().await?,
        };
        Ok((head.name, body))
    }

    async fn chunks(&mut self) -> Result<Vec<u8>, Ended> {
        let mut body = Vec::new();
        loop {
            let line = self.until(b"\r\n").await?;
            let digits = line.strip_suffix(b"\r\n").unwrap_or_default();
            let wrong = || Ended::Wrong(format!("chunk size {}", line.escape_ascii()));
            let is_plain = (1..=8).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
            let text = std::str::from_utf8(digits).ok().filter(|_| is_plain).ok_or_else(wrong)?;
            let size = usize::from_str_radix(text, 16).map_err(|_| wrong())?;
            if size == 0 {
                break;
            }
            body.extend(self.exactly(size).await?);
            if self.exactly(2).await? != b"\r\n" {
                return Err(Ended::Wrong("no line end behind a chunk".to_owned()));
            }
        }
        loop {
            let line = self.until(b"\r\n").await?;
            if line == b"\r\n" {
                return Ok(body);
            }
            let (name, _) = field(&line[..line.len() - 2]).map_err(Ended::Wrong)?;
            if ["content-length", "transfer-encoding", "host"].contains(&name.as_str()) {
                return Err(Ended::Wrong(format!("{name} in trailers")));
            }
        }
    }

    async fn until(&mut self, end: &[u8]) -> Result<Vec<u8>, Ended> {
        loop {
            if let Some(position) = self.buffer.windows(end.len()).position(|window| window == end) {
                let rest = self.buffer.split_off(position + end.len());
                return Ok(std::mem::replace(&mut self.buffer, rest));
            }
            self.more().await?;
        }
    }

    async fn exactly(&mut self, count: usize) -> Result<Vec<u8>, Ended> {
        while self.buffer.len() < count {
            self.more().await?;
        }
        let rest = self.buffer.split_off(count);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    async fn more(&mut self) -> Result<(), Ended> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(count) if count > 0 => Ok(()),
            _ => Err(Ended::Closed),
        }
    }
}

/// Reads a head that has one meaning for everybody.
fn head(bytes: &[u8]) -> Result<Head, String> {
    let text = bytes.strip_suffix(b"\r\n\r\n").unwrap_or(bytes);
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        lines.push(&rest[..end]);
        rest = &rest[end + 2..];
    }
    lines.push(rest);
    let parts: Vec<&[u8]> = lines[0].split(|byte| *byte == b' ').collect();
    let [method, target, b"HTTP/1.1"] = parts[..] else { return Err("request line".to_owned()) };
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
        return Err("method".to_owned());
    }
    if target.is_empty() || !target.iter().all(|byte| byte.is_ascii_graphic() || *byte >= 0x80) {
        return Err("target".to_owned());
    }
    let mut fields = Vec::new();
    for line in &lines[1..] {
        fields.push(field(line)?);
    }
    let all = |wanted: &str| -> Vec<&Vec<u8>> {
        fields.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value).collect()
    };
    let [host] = all("host")[..] else { return Err("not one host".to_owned()) };
    let body = match (&all("content-length")[..], &all("transfer-encoding")[..]) {
        ([], []) => Body::Length(0),
        ([length], []) => Body::Length(digits(length).ok_or("content-length")?),
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => Body::Chunked,
        _ => return Err("framing".to_owned()),
    };
    let name = format!("{} {}{}", method.escape_ascii(), host.escape_ascii(), target.escape_ascii());
    Ok(Head { name, body })
}

/// A header line: its name in lower case, and its value.
fn field(line: &[u8]) -> Result<(String, Vec<u8>), String> {
    let wrong = || format!("header line {}", line.escape_ascii());
    let colon = line.iter().position(|byte| *byte == b':').ok_or_else(wrong)?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    let is_plain = |byte: &u8| *byte == b'\t' || *byte >= 0x20 && *byte != 0x7f;
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) || !value.iter().all(is_plain) {
        return Err(wrong());
    }
    Ok((String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec()))
}

fn digits(value: &[u8]) -> Option<usize> {
    let all_digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| all_digits)?.parse().ok()
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
