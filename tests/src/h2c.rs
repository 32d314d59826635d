//! An HTTP/2 client without magic: one connection, requests with bodies and trailers.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::h1::Stream;
use crate::{Response, within};

/// A connection; it ends when dropped.
#[derive(Clone, Debug)]
pub struct Client {
    sender: SendRequest<Bytes>,
    authority: String,
    scheme: &'static str,
    _connection: std::sync::Arc<Connection>,
}

#[derive(Debug)]
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    /// Connects by prior knowledge.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = within("connecting", TcpStream::connect(address)).await;
        let stream = stream.unwrap_or_else(|error| panic!("connecting to {address}: {error}"));
        stream.set_nodelay(true).expect("a TCP option");
        Self::over(Box::new(stream), "http").await
    }

    /// Speaks over a stream that is open, such as TLS.
    pub async fn over(stream: Box<dyn Stream>, scheme: &'static str) -> Self {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 22);
        let (sender, connection) = within("the HTTP/2 handshake", builder.handshake(stream)).await.expect("HTTP/2");
        let driver = tokio::spawn(async move { drop(connection.await) });
        let connection = std::sync::Arc::new(Connection(driver.abort_handle()));
        Self { sender, authority: "example.com".to_owned(), scheme, _connection: connection }
    }

    /// The same client naming another `:authority`.
    #[must_use]
    pub fn authority(mut self, authority: &str) -> Self {
        authority.clone_into(&mut self.authority);
        self
    }

    /// `GET target`.
    pub async fn get(&self, target: &str) -> Response {
        self.request("GET", target, &[], b"").await
    }

    /// A request with headers and a body.
    pub async fn request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.try_request(method, target, headers, body, &[]).await.unwrap_or_else(|error| panic!("{target}: {error}"))
    }

    /// The same with trailers, where it may fail.
    ///
    /// # Errors
    /// As HTTP/2 says.
    pub async fn try_request(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        trailers: &[(&str, &str)],
    ) -> Result<Response, h2::Error> {
        within("a response", self.exchange(method, target, headers, body, trailers)).await
    }

    /// Starts a request and hands out both halves, to go step by step. A `:protocol` makes it an extended CONNECT.
    ///
    /// # Errors
    /// As HTTP/2 says.
    pub async fn open(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        ends: bool,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        let uri = format!("{}://{}{target}", self.scheme, self.authority);
        let mut request = Request::builder().method(method).uri(uri).version(http::Version::HTTP_2);
        for (name, value) in headers {
            request = match *name {
                ":protocol" => request.extension(h2::ext::Protocol::from(*value)),
                name => request.header(name, *value),
            };
        }
        let request = request.body(()).expect("a request");
        let mut sender = self.sender.clone().ready().await?;
        sender.send_request(request, ends)
    }

    async fn exchange(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        trailers: &[(&str, &str)],
    ) -> Result<Response, h2::Error> {
        let empty = body.is_empty() && trailers.is_empty();
        let (response, mut stream) = self.open(method, target, headers, empty).await?;
        if !empty {
            let body = Bytes::copy_from_slice(body);
            let trailers = header_map(trailers);
            // Beside the reading: an early response must not wait for a body that nobody takes.
            tokio::spawn(async move {
                if send_all(&mut stream, body, trailers.is_empty()).await.is_ok() && !trailers.is_empty() {
                    drop(stream.send_trailers(trailers));
                }
            });
        }
        read(response.await?).await
    }
}

/// Reads all of a response.
///
/// # Errors
/// If the stream is reset.
pub async fn read(response: http::Response<h2::RecvStream>) -> Result<Response, h2::Error> {
    let (head, mut stream) = response.into_parts();
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let trailers = stream.trailers().await?.map(|map| pairs(&map)).unwrap_or_default();
    Ok(Response { status: head.status.as_u16(), headers: pairs(&head.headers), body, trailers, interim: Vec::new() })
}

/// Sends a body as the peer's window allows.
///
/// # Errors
/// If the stream is reset.
pub async fn send_all(stream: &mut h2::SendStream<Bytes>, mut body: Bytes, ends: bool) -> Result<(), h2::Error> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let capacity = std::future::poll_fn(|context| stream.poll_capacity(context)).await;
        let Some(capacity) = capacity else { return Err(h2::Error::from(h2::Reason::CANCEL)) };
        let part = body.split_to(capacity?.min(body.len()));
        stream.send_data(part, false)?;
    }
    if ends { stream.send_data(Bytes::new(), true) } else { Ok(()) }
}

/// Pairs of text as a header map.
pub fn header_map(headers: &[(&str, &str)]) -> HeaderMap {
    let parse = |name: &str, value: &str| (HeaderName::try_from(name), HeaderValue::try_from(value));
    headers
        .iter()
        .filter_map(|(name, value)| match parse(name, value) {
            (Ok(name), Ok(value)) => Some((name, value)),
            _ => None,
        })
        .collect()
}

/// A header map as pairs of text.
pub fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}
