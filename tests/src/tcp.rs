//! TCP peers of the scenarios: one that echoes, one that names itself, and ports where things go wrong.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// What a peer does with a connection.
#[derive(Clone, Debug)]
pub enum Conduct {
    /// Sends back all it reads, then closes.
    Echo,
    /// Sends this at once, reads to the end, then closes.
    Greet(Vec<u8>),
    /// Reads to the end and then answers with what it read, upside down; needs half-close to work.
    ReverseAtEnd,
    /// Closes as soon as it has accepted.
    CloseAtOnce,
    /// Resets the connection as soon as something arrives.
    Reset,
}

/// A TCP peer; it ends when dropped.
#[derive(Debug)]
pub struct Peer {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Peer {
    /// Starts on a free port of 127.0.0.1.
    pub async fn start(conduct: Conduct) -> Self {
        Self::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), conduct).await
    }

    /// Starts on this address.
    pub async fn listen(address: SocketAddr, conduct: Conduct) -> Self {
        let listener = TcpListener::bind(address).await.unwrap_or_else(|error| panic!("{address}: {error}"));
        let address = listener.local_addr().expect("a bound socket has an address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                connections.spawn(serve(stream, conduct.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, accepted, task: task.abort_handle() }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// A port of 127.0.0.1 where nobody listens: bound, so that nobody else takes it, and connecting to it is refused.
#[derive(Debug)]
pub struct ClosedPort {
    port: u16,
    _socket: tokio::net::TcpSocket,
}

impl ClosedPort {
    /// Takes one.
    pub fn take() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        let port = socket.local_addr().expect("a bound socket has an address").port();
        Self { port, _socket: socket }
    }

    /// Its number.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// A port of 127.0.0.1 that stays a scenario's own, whether somebody listens there at the moment or not. Whoever is told of it
/// can listen there, if its socket may share an address (`SO_REUSEADDR`), as those of all programs here; connecting is
/// refused while nobody does; and the system gives it to nobody else.
#[derive(Debug)]
pub struct HeldPort {
    address: SocketAddr,
    _socket: tokio::net::TcpSocket,
}

impl HeldPort {
    /// Takes one.
    pub fn take() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        // Not before: it could be given a port then that somebody else holds like this.
        socket.set_reuseaddr(true).expect("a socket option");
        let address = socket.local_addr().expect("a bound socket has an address");
        Self { address, _socket: socket }
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its number.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

async fn serve(mut stream: TcpStream, conduct: Conduct) {
    // Errors are the end of the connection, which is what a peer does about them.
    let ended = match conduct {
        Conduct::Echo => echo(&mut stream).await,
        Conduct::Greet(greeting) => greet(&mut stream, &greeting).await,
        Conduct::ReverseAtEnd => reverse(&mut stream).await,
        Conduct::CloseAtOnce => Ok(()),
        Conduct::Reset => reset(&mut stream).await,
    };
    drop(ended);
}

async fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..read]).await?;
    }
}

async fn greet(stream: &mut TcpStream, greeting: &[u8]) -> std::io::Result<()> {
    stream.write_all(greeting).await?;
    stream.read_to_end(&mut Vec::new()).await?;
    stream.shutdown().await
}

async fn reverse(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await?;
    all.reverse();
    stream.write_all(&all).await?;
    stream.shutdown().await
}

async fn reset(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.readable().await?;
    stream.set_zero_linger()
}
