//! HTTP/1.1 for checks: one request, one answer.
//!
//! Owns reading an answer with buffers that live no longer than the check: there may be very many connections, each of
//! which is idle nearly all the time. Never judges an answer.

use std::io;

use http::{HeaderMap, HeaderName, HeaderValue};
use outrigger_config::cluster::ProbeHeader;
use outrigger_xds::connector::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Answer;
use super::http_request::{RequestParts, USER_AGENT};

/// The bytes of a request.
pub(super) fn request_bytes(parts: &RequestParts<'_>) -> Vec<u8> {
    let mut bytes = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", parts.method, parts.path, parts.host);
    let mut add = |name: &str, value: &str| {
        if !parts.removes(name) {
            bytes.push_str(&format!("{name}: {value}\r\n"));
        }
    };
    add("user-agent", USER_AGENT);
    for ProbeHeader { name, value } in parts.headers {
        add(name, value);
    }
    if !parts.body.is_empty() {
        add("content-length", &parts.body.len().to_string());
    }
    bytes.push_str("\r\n");
    [bytes.as_bytes(), &parts.body].concat()
}

/// Sends a request and reads its answer, with the first `limit` bytes of the body (`None` for all). The connection comes
/// back if it can be used again.
pub(super) async fn exchange(
    mut connection: Connection,
    request: &[u8],
    is_head: bool,
    limit: Option<usize>,
) -> io::Result<(Answer, Option<Connection>)> {
    connection.write_all(request).await?;
    connection.flush().await?;
    let mut reader = Reader { connection, buffer: Vec::new(), start: 0 };
    let head = loop {
        let head = reader.head().await?;
        if !(100..200).contains(&head.status) || head.status == 101 {
            break head;
        }
    };
    let mut body = Body { kept: Vec::new(), limit };
    let framing = head.framing(is_head)?;
    reader.body(framing, &mut body).await?;
    let reusable = head.keeps_alive && framing != Framing::UntilEnd && reader.rest().is_empty();
    let answer = Answer { status: head.status, headers: head.headers, body: body.kept, trailers: None };
    Ok((answer, reusable.then_some(reader.connection)))
}

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Framing {
    Length(u64),
    Chunked,
    UntilEnd,
}

struct Head {
    status: u16,
    keeps_alive: bool,
    headers: HeaderMap,
}

impl Head {
    /// RFC 9112 section 6.3.
    fn framing(&self, is_head: bool) -> io::Result<Framing> {
        if is_head || matches!(self.status, 204 | 304) {
            return Ok(Framing::Length(0));
        }
        let text = |name| self.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        match (text(http::header::TRANSFER_ENCODING), text(http::header::CONTENT_LENGTH)) {
            (Some(coding), _) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
            (Some(_), _) => Err(invalid("an unknown transfer-encoding")),
            (None, Some(length)) => length.parse().map(Framing::Length).map_err(|_| invalid("a bad content-length")),
            (None, None) => Ok(Framing::UntilEnd),
        }
    }
}

/// What is kept of a body.
struct Body {
    kept: Vec<u8>,
    limit: Option<usize>,
}

impl Body {
    fn push(&mut self, data: &[u8]) {
        let room = self.limit.map_or(data.len(), |limit| limit.saturating_sub(self.kept.len()).min(data.len()));
        self.kept.extend_from_slice(&data[..room]);
    }
}

struct Reader {
    connection: Connection,
    buffer: Vec<u8>,
    /// Bytes before are used up.
    start: usize,
}

impl Reader {
    fn rest(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.reserve(READ_BYTES);
        self.connection.read_buf(&mut self.buffer).await
    }

    async fn need_more(&mut self) -> io::Result<()> {
        if self.rest().len() > MAX_HEAD_BYTES {
            return Err(invalid("a head or line that is too long"));
        }
        match self.fill().await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn head(&mut self) -> io::Result<Head> {
        loop {
            if let Some((head, length)) = parse_head(self.rest())? {
                self.start += length;
                return Ok(head);
            }
            self.need_more().await?;
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.rest().windows(2).position(|window| window == b"\r\n") {
                let line = String::from_utf8_lossy(&self.rest()[..end]).into_owned();
                self.start += end + 2;
                return Ok(line);
            }
            self.need_more().await?;
        }
    }

    async fn body(&mut self, framing: Framing, body: &mut Body) -> io::Result<()> {
        match framing {
            Framing::Length(length) => self.take(length, body).await,
            Framing::Chunked => self.chunks(body).await,
            Framing::UntilEnd => loop {
                body.push(self.rest());
                self.start = self.buffer.len();
                if self.fill().await? == 0 {
                    return Ok(());
                }
            },
        }
    }

    async fn chunks(&mut self, body: &mut Body) -> io::Result<()> {
        loop {
            let line = self.line().await?;
            let digits = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(digits, 16).map_err(|_| invalid("a bad chunk size"))?;
            if size == 0 {
                break;
            }
            self.take(size, body).await?;
            if !self.line().await?.is_empty() {
                return Err(invalid("a chunk without its end"));
            }
        }
        while !self.line().await?.is_empty() {}
        Ok(())
    }

    async fn take(&mut self, mut length: u64, body: &mut Body) -> io::Result<()> {
        while length > 0 {
            if self.rest().is_empty() && self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let taken = self.rest().len().min(usize::try_from(length).unwrap_or(usize::MAX));
            body.push(&self.rest()[..taken]);
            self.start += taken;
            length -= taken as u64;
        }
        Ok(())
    }
}

/// The head at the beginning of `bytes` with its length, or `None` if it is not complete.
fn parse_head(bytes: &[u8]) -> io::Result<Option<(Head, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut fields);
    let length = match response.parse(bytes).map_err(|error| invalid(&error.to_string()))? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(None),
    };
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(io::Error::other)?;
        headers.append(name, HeaderValue::from_bytes(field.value).map_err(io::Error::other)?);
    }
    let connection = headers.get(http::header::CONNECTION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let closes = connection.split(',').any(|token| token.trim().eq_ignore_ascii_case("close"));
    let keeps_alive = response.version == Some(1) && !closes;
    Ok(Some((Head { status: response.code.unwrap_or(0), keeps_alive, headers }, length)))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

const MAX_HEADERS: usize = 100;
/// As much as the heads of other responses may take.
const MAX_HEAD_BYTES: usize = 60 * 1024;
const READ_BYTES: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(bytes: &[u8], is_head: bool, limit: Option<usize>) -> io::Result<(u16, Vec<u8>, bool)> {
        let (ours, mut theirs) = tokio::io::duplex(7);
        let bytes = bytes.to_vec();
        let peer = async move {
            let mut request = [0; 4];
            theirs.read_exact(&mut request).await.unwrap();
            let _ = theirs.write_all(&bytes).await;
        };
        let (answered, ()) = tokio::join!(exchange(Box::new(ours), b"ask!", is_head, limit), peer);
        let (answer, connection) = answered?;
        Ok((answer.status, answer.body, connection.is_some()))
    }

    #[tokio::test]
    async fn answers_end_as_they_say() {
        let full = |status, body: &[u8], reusable| (status, body.to_vec(), reusable);
        for (bytes, expected) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"[..], full(200, b"hello", true)),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\nx: y\r\n\r\n",
                full(200, b"hello", true),
            ),
            (b"HTTP/1.1 200 OK\r\n\r\nhello", full(200, b"hello", false)),
            (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", full(200, b"", false)),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 None\r\nconnection: Close\r\n\r\n", full(204, b"", false)),
            (b"HTTP/1.1 503 No\r\ncontent-length: 1\r\n\r\nab", full(503, b"a", false)),
        ] {
            assert_eq!(answer(bytes, false, None).await.unwrap(), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
        let head = answer(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", true, None).await;
        assert_eq!(head.unwrap(), full(200, b"", true));
        let limited = answer(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", false, Some(2)).await;
        assert_eq!(limited.unwrap(), full(200, b"he", true));
    }

    #[tokio::test]
    async fn broken_answers_are_errors() {
        for bytes in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell",
            b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
            b"nonsense\r\n\r\n",
        ] {
            assert!(answer(bytes, false, None).await.is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_request_is_no_longer_than_it_must_be() {
        let headers = [ProbeHeader { name: "x-a".into(), value: "b".into() }];
        let mut parts = RequestParts {
            method: "GET",
            path: "/ok",
            host: "c",
            headers: &headers,
            removed: &[],
            secure: false,
            body: Default::default(),
        };
        let text = |parts: &RequestParts<'_>| String::from_utf8(request_bytes(parts)).unwrap();
        assert_eq!(text(&parts), "GET /ok HTTP/1.1\r\nhost: c\r\nuser-agent: Envoy/HC\r\nx-a: b\r\n\r\n");
        let removed = ["user-agent".into()];
        (parts.removed, parts.method, parts.body) = (&removed, "POST", b"hi"[..].into());
        assert_eq!(text(&parts), "POST /ok HTTP/1.1\r\nhost: c\r\nx-a: b\r\ncontent-length: 2\r\n\r\nhi");
    }
}
