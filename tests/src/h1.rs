//! An HTTP/1.1 client of exact bytes, and the reading of messages that the upstream shares with it.
//!
//! It sends what it is given, right or wrong, and reads one message at a time. Never pools, retries or adds a header.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{Response, SOON, response, within};

/// A byte stream: TCP, or TLS over it.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How the end of a message's body is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// There is no body.
    None,
    /// So many bytes.
    Length(usize),
    /// Chunks.
    Chunked,
    /// Until the connection ends.
    UntilEnd,
}

/// A stream with what was read of it too early.
pub struct Reader {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

impl Reader {
    /// Reads from this stream, after the bytes that were read already.
    pub fn new(stream: Box<dyn Stream>, buffer: Vec<u8>) -> Self {
        Self { stream, buffer }
    }

    /// The stream, for writing.
    pub fn stream(&mut self) -> &mut Box<dyn Stream> {
        &mut self.stream
    }

    /// Bytes that were read and not used.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer
    }

    /// Reads a head up to its empty line; `None` at the end of the stream.
    ///
    /// # Errors
    /// If the stream fails or ends inside a head.
    pub async fn head(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.until(b"\r\n\r\n").await {
            Ok(head) => Ok(Some(head)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && self.buffer.is_empty() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads up to and with the first `end`.
    ///
    /// # Errors
    /// If reading fails, or the stream ends before.
    pub async fn until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(start) = self.buffer.windows(end.len()).position(|window| window == end) {
                let rest = self.buffer.split_off(start + end.len());
                return Ok(std::mem::replace(&mut self.buffer, rest));
            }
            if !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads a body and its trailers.
    ///
    /// # Errors
    /// If the stream fails or ends too early, or a chunk is malformed.
    pub async fn body(&mut self, framing: Framing) -> io::Result<(Vec<u8>, Vec<(String, String)>)> {
        match framing {
            Framing::None => Ok((Vec::new(), Vec::new())),
            Framing::Length(length) => Ok((self.take(length).await?, Vec::new())),
            Framing::UntilEnd => {
                while self.more().await? {}
                Ok((std::mem::take(&mut self.buffer), Vec::new()))
            }
            Framing::Chunked => self.chunks().await,
        }
    }

    /// Whether the peer has closed, after reading all it sent.
    pub async fn ended(&mut self) -> bool {
        while self.more().await.unwrap_or(false) {}
        true
    }

    async fn chunks(&mut self) -> io::Result<(Vec<u8>, Vec<(String, String)>)> {
        let mut body = Vec::new();
        loop {
            let line = self.line().await?;
            let digits = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(digits, 16)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("chunk size {line:?}: {error}")))?;
            if size == 0 {
                break;
            }
            body.extend(self.take(size).await?);
            let end = self.line().await?;
            if !end.is_empty() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("after a chunk: {end:?}")));
            }
        }
        let mut trailers = Vec::new();
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(':') else { return Ok((body, trailers)) };
            trailers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            self.need().await?;
        }
    }

    async fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.need().await?;
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    async fn need(&mut self) -> io::Result<()> {
        if self.more().await? { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    async fn more(&mut self) -> io::Result<bool> {
        let mut part = vec![0; 64 * 1024];
        let read = self.stream.read(&mut part).await?;
        self.buffer.extend_from_slice(&part[..read]);
        Ok(read > 0)
    }
}

/// A connection of a client.
pub struct Client {
    reader: Reader,
}

impl Client {
    /// Connects.
    ///
    /// # Panics
    /// If nobody listens.
    pub async fn connect(address: SocketAddr) -> Self {
        match Self::try_connect(address).await {
            Ok(client) => client,
            Err(error) => panic!("connecting to {address}: {error}"),
        }
    }

    /// The same where it may fail.
    ///
    /// # Errors
    /// As of connecting.
    pub async fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let stream = within("connecting", TcpStream::connect(address)).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(Box::new(stream)))
    }

    /// Speaks over a stream that is open, such as TLS.
    pub fn over(stream: Box<dyn Stream>) -> Self {
        Self { reader: Reader::new(stream, Vec::new()) }
    }

    /// Sends bytes. A peer that has closed shows when reading.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let stream = self.reader.stream();
        let sent = async {
            stream.write_all(bytes.as_ref()).await?;
            stream.flush().await
        };
        drop(within("sending", sent).await);
    }

    /// Sends `GET target` for a host.
    pub async fn get(&mut self, target: &str) -> Response {
        self.send(format!("GET {target} HTTP/1.1\r\nhost: example.com\r\n\r\n")).await;
        self.response("GET").await
    }

    /// Sends a request with headers and a body of known length, and reads the response.
    pub async fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.send(request_bytes(method, target, headers, body)).await;
        self.response(method).await
    }

    /// Reads the response to a request of this method.
    ///
    /// # Panics
    /// If there is none.
    pub async fn response(&mut self, method: &str) -> Response {
        match self.try_response(method).await {
            Ok(response) => response,
            Err(error) => panic!("no response: {error}"),
        }
    }

    /// The same where the connection may end instead.
    ///
    /// # Errors
    /// What came instead.
    pub async fn try_response(&mut self, method: &str) -> Result<Response, String> {
        let read = tokio::time::timeout(SOON, self.read(method)).await;
        read.map_err(|_| "no whole response in time".to_owned())?
    }

    /// Only the head, of a response whose body comes later.
    pub async fn head(&mut self) -> Response {
        let head = within("a response head", self.reader.head()).await.expect("a head").expect("a head");
        parse(&head).expect("a response head")
    }

    /// Reads the body that follows a head.
    ///
    /// # Errors
    /// If it is cut short.
    pub async fn body(&mut self, head: &Response, method: &str) -> io::Result<Vec<u8>> {
        let framing = framing(head, method);
        within("a response body", self.reader.body(framing)).await.map(|(body, _)| body)
    }

    /// Reads what the peer still sends, to its end.
    pub async fn ended(&mut self) {
        within("the peer closes", self.reader.ended()).await;
    }

    /// All bytes up to the end.
    pub async fn rest(&mut self) -> Vec<u8> {
        within("the peer closes", self.reader.body(Framing::UntilEnd)).await.map(|(body, _)| body).unwrap_or_default()
    }

    /// Bytes of no message, such as those in a tunnel, up to and with the first `end`.
    pub async fn until(&mut self, end: &[u8]) -> Vec<u8> {
        let what = format!("bytes up to {:?}", String::from_utf8_lossy(end));
        within(&what, self.reader.until(end)).await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// The stream, for writing: what was read too early is not in it any more.
    pub fn stream(&mut self) -> &mut Box<dyn Stream> {
        self.reader.stream()
    }

    async fn read(&mut self, method: &str) -> Result<Response, String> {
        let mut interim = Vec::new();
        loop {
            let head = self.reader.head().await.map_err(|error| format!("{error}, with {:?}", self.unread()))?;
            let head = head.ok_or_else(|| "the connection was closed".to_owned())?;
            let mut response = parse(&head)?;
            if (100..200).contains(&response.status) && response.status != 101 {
                interim.push(response.status);
                continue;
            }
            response.interim = interim;
            let framing = framing(&response, method);
            let body = self.reader.body(framing).await;
            (response.body, response.trailers) =
                body.map_err(|error| format!("body of {} {:?}: {error}", response.status, response.headers))?;
            return Ok(response);
        }
    }

    fn unread(&self) -> String {
        String::from_utf8_lossy(self.reader.buffered()).into_owned()
    }
}

/// One request with a body of known length.
pub fn request_bytes(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {target} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        text.push_str("host: example.com\r\n");
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// One request on a connection of its own.
pub async fn get(address: SocketAddr, target: &str) -> Response {
    Client::connect(address).await.get(target).await
}

/// The framing of a response to a request of this method (RFC 9112 section 6.3).
pub fn framing(head: &Response, method: &str) -> Framing {
    if method == "HEAD" || matches!(head.status, 100..200 | 204 | 304) {
        return Framing::None;
    }
    message_framing(&head.headers).unwrap_or(Framing::UntilEnd)
}

/// The framing that headers tell; `None` if they tell nothing.
pub fn message_framing(headers: &[(String, String)]) -> Option<Framing> {
    if response::find(headers, "transfer-encoding").is_some_and(|value| value.to_ascii_lowercase().contains("chunked"))
    {
        return Some(Framing::Chunked);
    }
    response::find(headers, "content-length").and_then(|value| value.parse().ok()).map(Framing::Length)
}

fn parse(head: &[u8]) -> Result<Response, String> {
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut parsed = httparse::Response::new(&mut headers);
    parsed.parse(head).map_err(|error| format!("{error}: {}", String::from_utf8_lossy(head)))?;
    Ok(Response { status: parsed.code.unwrap_or_default(), headers: owned(parsed.headers), ..Response::default() })
}

/// Headers as text.
pub fn owned(headers: &[httparse::Header<'_>]) -> Vec<(String, String)> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    headers.iter().map(|header| (header.name.to_owned(), text(header.value))).collect()
}
