//! An HTTP upstream in this process: HTTP/1.1 and HTTP/2 on one port, told apart by the preface.
//!
//! Owns its connections and the record of what came. What it answers is up to `reply`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::h1::{self, Framing, Reader, Stream};
use crate::h2c;
use crate::reply::{Reply, Seen};

/// `one` at 127.0.0.1 and `two` at `other`, both with the same port.
pub async fn pair(other: &str) -> (Upstream, Upstream) {
    let other: std::net::IpAddr = other.parse().expect("an address");
    let mut taken = Vec::new();
    // A port that is free at the one may be somebody's at the other.
    for _ in 0..50 {
        let one = Upstream::start("one").await;
        match TcpListener::bind((other, one.port())).await {
            Ok(listener) => return (one, Upstream::over("two", listener, None)),
            Err(error) => taken.push((one, error)),
        }
    }
    panic!("no port is free at both: {:?}", taken.pop().map(|(_, error)| error));
}

/// What an upstream has counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Connections accepted.
    pub connections: usize,
    /// Connections that are open.
    pub open: usize,
    /// Request heads read.
    pub requests: usize,
    /// Requests that wait at the gate.
    pub waiting: usize,
    /// Request streams or connections that the peer gave up before the answer.
    pub abandoned: usize,
    /// The most requests at one time.
    pub peak: usize,
    /// Requests without a complete answer.
    pub active: usize,
}

#[derive(Debug)]
struct Shared {
    name: String,
    seen: Mutex<Vec<Seen>>,
    counts: watch::Sender<Counts>,
    gate: watch::Sender<bool>,
    standing: Mutex<Standing>,
}

/// What stands in all answers.
#[derive(Debug, Default)]
struct Standing {
    status: Option<u16>,
    headers: Vec<(String, String)>,
    trailers: Vec<(String, String)>,
}

impl Shared {
    fn reply(&self, headers: &[(String, String)]) -> Reply {
        let mut reply = Reply::to(headers);
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        reply.status = standing.status.unwrap_or(reply.status);
        reply.headers.extend_from_slice(&standing.headers);
        reply.trailers.extend_from_slice(&standing.trailers);
        reply
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        self.counts.send_modify(|counts| {
            change(counts);
            counts.peak = counts.peak.max(counts.active);
        });
    }

    fn remember(&self, seen: &Seen) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen.clone());
    }

    /// Waits as ordered.
    async fn wait_for(&self, reply: &Reply) {
        if reply.hang {
            std::future::pending::<()>().await;
        }
        if let Some(delay) = reply.delay {
            tokio::time::sleep(delay).await;
        }
        if reply.gate {
            self.pass_gate().await;
        }
    }

    async fn pass_gate(&self) {
        self.count(|counts| counts.waiting += 1);
        drop(self.gate.subscribe().wait_for(|open| *open).await);
        self.count(|counts| counts.waiting -= 1);
    }
}

/// Counts a request as active until dropped.
struct Active(Arc<Shared>, bool);

impl Active {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.count(|counts| {
            counts.requests += 1;
            counts.active += 1;
        });
        Self(shared.clone(), false)
    }

    fn done(mut self) {
        self.1 = true;
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let answered = self.1;
        self.0.count(|counts| {
            counts.active -= 1;
            counts.abandoned += usize::from(!answered);
        });
    }
}

/// A running upstream; it ends, with its connections, when dropped.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    /// Starts on a free port of 127.0.0.1.
    pub async fn start(name: &str) -> Self {
        Self::listen(name, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), None).await
    }

    /// Starts over TLS.
    pub async fn tls(name: &str, config: Arc<rustls::ServerConfig>) -> Self {
        Self::listen(name, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), Some(TlsAcceptor::from(config))).await
    }

    /// Starts on this address.
    pub async fn listen(name: &str, address: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap_or_else(|error| panic!("{address}: {error}"));
        Self::over(name, listener, tls)
    }

    fn over(name: &str, listener: TcpListener, tls: Option<TlsAcceptor>) -> Self {
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            seen: Mutex::default(),
            counts: watch::Sender::new(Counts::default()),
            gate: watch::Sender::new(false),
            standing: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, shared.clone(), tls)).abort_handle();
        Self { address, shared, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What came so far; a request is there once its body is read.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The counts now.
    pub fn counts(&self) -> Counts {
        *self.shared.counts.borrow()
    }

    /// Waits until the counts are as wanted.
    pub async fn wait(&self, what: &str, good: impl FnMut(&Counts) -> bool) -> Counts {
        let mut counts = self.shared.counts.subscribe();
        let found = tokio::time::timeout(crate::SOON, counts.wait_for(good)).await;
        match found {
            Ok(Ok(found)) => *found,
            _ => panic!("{what}: {:?}", self.counts()),
        }
    }

    /// All answers have this status from now on.
    pub fn always_answer(&self, status: u16) {
        self.shared.standing.lock().unwrap_or_else(PoisonError::into_inner).status = Some(status);
    }

    /// All answers have this header, too.
    pub fn always_say(&self, name: &str, value: &str) {
        let mut standing = self.shared.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing.headers.push((name.to_owned(), value.to_owned()));
    }

    /// All answers have this trailer, too.
    pub fn always_end_with(&self, name: &str, value: &str) {
        let mut standing = self.shared.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing.trailers.push((name.to_owned(), value.to_owned()));
    }

    /// Lets pass who waits at the gate, and all that come.
    pub fn open_gate(&self) {
        self.shared.gate.send_replace(true);
    }

    /// Closes the gate again.
    pub fn close_gate(&self) {
        self.shared.gate.send_replace(false);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tls: Option<TlsAcceptor>) {
    let mut connections = JoinSet::new();
    let mut number = 0;
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        number += 1;
        let (shared, tls) = (shared.clone(), tls.clone());
        connections.spawn(async move {
            shared.count(|counts| {
                counts.connections += 1;
                counts.open += 1;
            });
            // How a connection ends is the proxy's affair; the tests look at what it did before.
            drop(serve(stream, &shared, tls, number).await);
            shared.count(|counts| counts.open -= 1);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, shared: &Arc<Shared>, tls: Option<TlsAcceptor>, number: usize) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream: Box<dyn Stream> = match tls {
        Some(tls) => Box::new(tls.accept(stream).await?),
        None => Box::new(stream),
    };
    // A request of HTTP/1.1 is never shorter than the preface of HTTP/2, nor does it begin with `PRI `.
    let mut start = [0; 4];
    stream.read_exact(&mut start).await?;
    if start == *b"PRI " {
        http2(Box::new(Rewound { start: start.to_vec(), stream }), shared, number).await.map_err(io::Error::other)
    } else {
        http1(Reader::new(stream, start.to_vec()), shared, number).await
    }
}

async fn http1(mut reader: Reader, shared: &Arc<Shared>, number: usize) -> io::Result<()> {
    while let Some(head) = reader.head().await? {
        let active = Active::new(shared);
        let mut headers = [httparse::EMPTY_HEADER; 128];
        let mut parsed = httparse::Request::new(&mut headers);
        parsed.parse(&head).map_err(io::Error::other)?;
        let mut seen = Seen {
            connection: number,
            version: if parsed.version == Some(0) { "1.0" } else { "1.1" },
            method: parsed.method.unwrap_or_default().to_owned(),
            target: parsed.path.unwrap_or_default().to_owned(),
            headers: h1::owned(parsed.headers),
            ..Seen::default()
        };
        seen.authority = seen.header("host").unwrap_or_default().to_owned();
        let reply = shared.reply(&seen.headers);
        let framing = h1::message_framing(&seen.headers).unwrap_or(Framing::None);
        if reply.early {
            shared.remember(&seen);
            send1(&mut reader, shared, &reply, &seen).await?;
            active.done();
            reader.body(framing).await?;
            continue;
        }
        if seen.header("expect").is_some() {
            reader.stream().write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        (seen.body, seen.trailers) = reader.body(framing).await?;
        shared.remember(&seen);
        wait1(&mut reader, shared, &reply).await?;
        send1(&mut reader, shared, &reply, &seen).await?;
        active.done();
        if reply.close {
            return reader.stream().shutdown().await;
        }
    }
    Ok(())
}

/// Waits as ordered, but no longer than the peer stays.
async fn wait1(reader: &mut Reader, shared: &Arc<Shared>, reply: &Reply) -> io::Result<()> {
    if !reply.waits() {
        return Ok(());
    }
    let wait = shared.wait_for(reply);
    let mut byte = [0; 1];
    tokio::select! {
        () = wait => Ok(()),
        // A peer that pipelines is not ours; whatever arrives now is the end.
        _ = reader.stream().read(&mut byte) => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

async fn send1(reader: &mut Reader, shared: &Arc<Shared>, reply: &Reply, seen: &Seen) -> io::Result<()> {
    if reply.reset {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    let body = reply.body(&shared.name, seen);
    let mut head = String::new();
    if reply.interim {
        head.push_str("HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n");
    }
    head.push_str(&format!("HTTP/1.1 {} Whatever\r\n", reply.status));
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let bodiless = matches!(reply.status, 204 | 304) || seen.method == "HEAD";
    let chunked = reply.chunked || !reply.trailers.is_empty();
    if reply.close {
        head.push_str("connection: close\r\n");
    }
    if chunked {
        head.push_str("transfer-encoding: chunked\r\n");
    } else if !matches!(reply.status, 204 | 304) {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    let half = body.len() / 2;
    if reply.half {
        bytes.extend_from_slice(&body[..half]);
        reader.stream().write_all(&bytes).await?;
        reader.stream().flush().await?;
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    if !bodiless {
        if chunked { bytes.extend(chunks(&body, &reply.trailers)) } else { bytes.extend_from_slice(&body) }
    }
    reader.stream().write_all(&bytes).await?;
    reader.stream().flush().await
}

/// The body in chunks of odd sizes, so that they do not fall together with anything.
fn chunks(body: &[u8], trailers: &[(String, String)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in body.chunks(7919) {
        bytes.extend(format!("{:x}\r\n", part.len()).into_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        bytes.extend(format!("{name}: {value}\r\n").into_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

async fn http2(stream: Box<dyn Stream>, shared: &Arc<Shared>, number: usize) -> Result<(), h2::Error> {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 22);
    let mut connection = builder.handshake::<_, Bytes>(stream).await?;
    let mut requests = JoinSet::new();
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        let shared = shared.clone();
        requests.spawn(async move { drop(answer2(request, respond, &shared, number).await) });
        while requests.try_join_next().is_some() {}
    }
    Ok(())
}

async fn answer2(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    shared: &Arc<Shared>,
    number: usize,
) -> Result<(), h2::Error> {
    let active = Active::new(shared);
    let (head, mut stream) = request.into_parts();
    let mut seen = Seen {
        connection: number,
        version: "2",
        method: head.method.to_string(),
        target: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        authority: head.uri.authority().map(ToString::to_string).unwrap_or_default(),
        headers: h2c::pairs(&head.headers),
        ..Seen::default()
    };
    let reply = shared.reply(&seen.headers);
    if reply.echo {
        echo2(stream, respond).await?;
        active.done();
        return Ok(());
    }
    if !reply.early {
        while let Some(data) = stream.data().await {
            let data = data?;
            stream.flow_control().release_capacity(data.len())?;
            seen.body.extend_from_slice(&data);
        }
        seen.trailers = stream.trailers().await?.map(|map| h2c::pairs(&map)).unwrap_or_default();
    }
    shared.remember(&seen);
    if reply.waits() {
        tokio::select! {
            () = shared.wait_for(&reply) => {}
            reset = std::future::poll_fn(|context| respond.poll_reset(context)) => return reset.map(|_| ()),
        }
    }
    send2(respond, shared, &reply, &seen).await?;
    active.done();
    Ok(())
}

async fn echo2(mut body: h2::RecvStream, mut respond: h2::server::SendResponse<Bytes>) -> Result<(), h2::Error> {
    let mut stream = respond.send_response(http::Response::new(()), false)?;
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        h2c::send_all(&mut stream, data, false).await?;
    }
    h2c::send_all(&mut stream, Bytes::new(), true).await
}

async fn send2(
    mut respond: h2::server::SendResponse<Bytes>,
    shared: &Arc<Shared>,
    reply: &Reply,
    seen: &Seen,
) -> Result<(), h2::Error> {
    if reply.reset {
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
        return Ok(());
    }
    let bodiless = matches!(reply.status, 204 | 304) || seen.method == "HEAD";
    let body = reply.body(&shared.name, seen);
    let mut head = http::Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        head = head.header(name, value);
    }
    if !reply.chunked && reply.trailers.is_empty() && !matches!(reply.status, 204 | 304) {
        head = head.header("content-length", body.len());
    }
    let head = head.body(()).expect("a response");
    let ends = (bodiless || body.is_empty()) && reply.trailers.is_empty();
    let mut stream = respond.send_response(head, ends)?;
    if ends {
        return Ok(());
    }
    if reply.half {
        let half = Bytes::copy_from_slice(&body[..body.len() / 2]);
        h2c::send_all(&mut stream, half, false).await?;
        // A reset throws away what is not written yet: let the connection write first.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        stream.send_reset(h2::Reason::INTERNAL_ERROR);
        return Ok(());
    }
    if !bodiless {
        h2c::send_all(&mut stream, Bytes::from(body), reply.trailers.is_empty()).await?;
    }
    if reply.trailers.is_empty() {
        return Ok(());
    }
    let trailers: Vec<(&str, &str)> = reply.trailers.iter().map(|(name, value)| (&**name, &**value)).collect();
    stream.send_trailers(h2c::header_map(&trailers))
}

/// A stream whose first bytes were read already.
struct Rewound {
    start: Vec<u8>,
    stream: Box<dyn Stream>,
}

impl tokio::io::AsyncRead for Rewound {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        if self.start.is_empty() {
            return std::pin::Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let count = self.start.len().min(buffer.remaining());
        buffer.put_slice(&self.start[..count]);
        self.start.drain(..count);
        std::task::Poll::Ready(Ok(()))
    }
}

impl tokio::io::AsyncWrite for Rewound {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
