//! Sockets to endpoints.
//!
//! Owns the way from an address to a connected socket: options, sources, and which of several addresses is tried when. Never
//! counts, and never says a byte.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use outrigger_config::address::Address;
use outrigger_config::cluster::Cluster;
use outrigger_config::listener::SocketState;
use outrigger_policy::happy_eyeballs;
use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, TcpKeepalive, Type};
use tokio::net::{TcpStream, UnixStream};

use super::connect::{ConnectError, Means};
use super::host::Host;
use crate::worker::socket::{Socket, SocketKind};

/// A socket to one of the endpoint's addresses.
pub(super) async fn open_host(host: &Host, cluster: &Cluster, means: &Means<'_>) -> Result<Socket, ConnectError> {
    if host.additional_addresses.is_empty() {
        return open(&host.address, cluster, means.unacknowledged).await;
    }
    let mut addresses = Vec::new();
    for address in std::iter::once(&host.address).chain(&host.additional_addresses) {
        match address {
            Address::Ip(ip) => addresses.push(*ip),
            Address::Pipe { .. } | Address::Internal(_) => return open(address, cluster, means.unacknowledged).await,
        }
    }
    let order = happy_eyeballs::order(&addresses, cluster.happy_eyeballs);
    let attempts = order.into_iter().map(|position| {
        let address = Address::Ip(addresses[position]);
        async move { open(&address, cluster, means.unacknowledged).await }
    });
    first_of(attempts).await
}

/// The first success. An attempt begins when the one before has failed or has had its head start (RFC 8305, section 5).
async fn first_of<A>(mut attempts: impl ExactSizeIterator<Item = A>) -> Result<Socket, ConnectError>
where
    A: Future<Output = Result<Socket, ConnectError>>,
{
    let mut running: Vec<Pin<Box<A>>> = Vec::with_capacity(attempts.len());
    let mut failure = None;
    let mut head_start = pin!(tokio::time::sleep(Duration::ZERO));
    std::future::poll_fn(|cx| {
        loop {
            let mut index = 0;
            let mut failed = false;
            while let Some(attempt) = running.get_mut(index) {
                match attempt.as_mut().poll(cx) {
                    Poll::Ready(Ok(socket)) => return Poll::Ready(Ok(socket)),
                    Poll::Ready(Err(error)) => {
                        failure.get_or_insert(error);
                        failed = true;
                        drop(running.swap_remove(index));
                    }
                    Poll::Pending => index += 1,
                }
            }
            let is_time = running.is_empty() || failed || head_start.as_mut().poll(cx).is_ready();
            if is_time && let Some(attempt) = attempts.next() {
                running.push(Box::pin(attempt));
                head_start.as_mut().reset(tokio::time::Instant::now() + HEAD_START);
            } else if running.is_empty() {
                let none = || ConnectError::Io(std::io::ErrorKind::AddrNotAvailable.into());
                return Poll::Ready(Err(failure.take().unwrap_or_else(none)));
            } else {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// What Envoy gives an attempt before the next one begins.
const HEAD_START: Duration = Duration::from_millis(300);

/// A socket to this address.
pub(super) async fn open(
    address: &Address,
    cluster: &Cluster,
    unacknowledged: Option<Duration>,
) -> Result<Socket, ConnectError> {
    let immediate = |error| ConnectError::Immediate(error, address.clone());
    match address {
        Address::Ip(ip) => {
            let stream = begin_tcp(*ip, cluster, unacknowledged).map_err(immediate)?;
            stream.writable().await.map_err(ConnectError::Io)?;
            match stream.take_error().map_err(ConnectError::Io)? {
                None => Ok(Socket::new(SocketKind::Tcp(stream))),
                Some(error) => Err(ConnectError::Io(error)),
            }
        }
        Address::Pipe { path, .. } => {
            // That a full backlog is a refusal, although the listener might take us a moment later, is as Envoy has it.
            let stream = outrigger_sys::unix::connect_now(&path.to_string_lossy()).map_err(immediate)?;
            Ok(Socket::new(SocketKind::Unix(UnixStream::from_std(stream).map_err(immediate)?)))
        }
        // Further addresses of an endpoint are never such ones.
        Address::Internal(_) => Err(immediate(std::io::ErrorKind::Unsupported.into())),
    }
}

fn begin_tcp(
    address: std::net::SocketAddr,
    cluster: &Cluster,
    unacknowledged: Option<Duration>,
) -> std::io::Result<TcpStream> {
    let raw = RawSocket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    raw.set_tcp_nodelay(true)?;
    if unacknowledged.is_some() {
        // Before the configured options, so that those have the last word.
        raw.set_tcp_user_timeout(unacknowledged)?;
    }
    if let Some(keepalive) = &cluster.tcp_keepalive {
        set_keepalive(&SockRef::from(&raw), keepalive)?;
    }
    if let Some(bind) = &cluster.bind {
        if bind.freebind {
            outrigger_sys::sockopt::set_freebind(&raw, true)?;
        }
        let options = bind.options_for(address);
        for option in options.iter().filter(|option| option.is_for(Some(address.ip()), SocketState::PreBind)) {
            crate::listener::socket_options::apply(&raw, option)?;
        }
        // A source of the other family cannot be used for this destination.
        if let Some(source) = bind.source_for(address) {
            raw.bind(&source.into())?;
        }
        for option in options.iter().filter(|option| option.is_for(Some(address.ip()), SocketState::Bound)) {
            crate::listener::socket_options::apply(&raw, option)?;
        }
    }
    match raw.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    TcpStream::from_std(raw.into())
}

/// `connect(2)` goes on in the background; Linux's number on every architecture that it runs on here.
const EINPROGRESS: i32 = 115;

/// Applies keep-alive settings; what is not given stays the system's.
pub fn set_keepalive(
    socket: &SockRef<'_>,
    keepalive: &outrigger_config::listener::TcpKeepalive,
) -> std::io::Result<()> {
    let seconds = |value: u32| std::time::Duration::from_secs(u64::from(value));
    let mut settings = TcpKeepalive::new();
    if let Some(time) = keepalive.time_s {
        settings = settings.with_time(seconds(time));
    }
    if let Some(interval) = keepalive.interval_s {
        settings = settings.with_interval(seconds(interval));
    }
    if let Some(probes) = keepalive.probes {
        settings = settings.with_retries(probes);
    }
    socket.set_tcp_keepalive(&settings)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use outrigger_config::cluster::{BindConfig, Discovery};
    use outrigger_config::listener::{SocketOption, SocketOptionValue};

    use super::*;
    use crate::graph::hosts::tests::{assignment, cluster};

    #[tokio::test]
    async fn unacknowledged_bytes_have_a_limit_and_configuration_has_the_last_word() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let limit = Some(Duration::from_secs(30));
        let mut config = cluster("c", Discovery::Static(Arc::new(assignment(&[]))));
        let of = |config: &Cluster| {
            let stream = begin_tcp(address, config, limit).unwrap();
            SockRef::from(&stream).tcp_user_timeout().unwrap()
        };
        assert_eq!(of(&config), limit);
        let (value, state) = (SocketOptionValue::Int(0), SocketState::PreBind);
        let off = SocketOption { level: 6, name: 18, value, state, is_ipv6: None };
        config.bind = Some(Box::new(BindConfig {
            source: None,
            extra_sources: Vec::new(),
            freebind: false,
            socket_options: vec![off],
        }));
        assert_eq!(of(&config), None);
    }
}
