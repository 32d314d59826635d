//! The listening sockets of the xDS server: TCP (plain or TLS) and a Unix socket.
//!
//! Owns binding, accepting, stopping and binding again. What is said on the streams is `service`'s.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Identity, Server as TonicServer, ServerTlsConfig};

use crate::connection::{Connection, Scissors};
use crate::service::Xds;
use crate::shared::Shared;

/// Time that clients get to leave when the server stops.
const GOODBYE: Duration = Duration::from_millis(500);

/// Pause after an accept that failed.
const ACCEPT_RETRY: Duration = Duration::from_millis(10);

/// Connections accepted but not served yet.
const BACKLOG: u32 = 1024;

/// PEM texts for serving over TLS.
#[derive(Clone, Debug)]
pub struct TlsPem {
    /// Certificate chain.
    pub certificate: String,
    /// Private key.
    pub key: String,
    /// CA that client certificates must come from; `None` asks for none.
    pub client_ca: Option<String>,
}

/// Where to listen.
#[derive(Clone, Debug)]
pub(crate) struct Endpoints {
    pub tcp: SocketAddr,
    pub tls: Option<TlsPem>,
    pub unix: Option<PathBuf>,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    scissors: Scissors,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// How a server ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ending {
    /// Streams end with a status and connections with GOAWAY.
    Polite,
    /// Connections break off, as when a process dies.
    Abrupt,
}

impl Server {
    /// Binds and serves in the background.
    pub(crate) async fn start(endpoints: &Endpoints, shared: &Arc<Shared>) -> io::Result<Self> {
        let tcp = bind_tcp(endpoints.tcp)?;
        let unix = endpoints.unix.as_deref().map(bind_unix).transpose()?;
        let address = tcp.local_addr()?;
        let (scissors, stop) = (Scissors::new(), watch::Sender::new(false));
        let mut tasks = Vec::new();
        let mut builder = TonicServer::builder();
        if let Some(TlsPem { certificate, key, client_ca }) = &endpoints.tls {
            let mut tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
            if let Some(ca) = client_ca {
                tls = tls.client_ca_root(Certificate::from_pem(ca));
            }
            builder = builder.tls_config(tls).map_err(io::Error::other)?;
        }
        let (sender, incoming) = mpsc::channel(1);
        let (stopping, knife) = (stop.subscribe(), scissors.clone());
        tasks.push(tokio::spawn(accept(stopping, sender, async move || {
            let (socket, _) = tcp.accept().await?;
            // Responses are small and awaited: waiting for more bytes would only delay them.
            socket.set_nodelay(true)?;
            Ok(knife.guard(socket))
        })));
        tasks.push(serve(builder, shared, incoming, stop.subscribe()));
        if let Some(unix) = unix {
            let (sender, incoming) = mpsc::channel(1);
            let (stopping, knife) = (stop.subscribe(), scissors.clone());
            tasks.push(tokio::spawn(accept(stopping, sender, async move || Ok(knife.guard(unix.accept().await?.0)))));
            tasks.push(serve(TonicServer::builder(), shared, incoming, stop.subscribe()));
        }
        Ok(Self { address, scissors, stop, tasks })
    }

    /// The TCP address, with the port that was really taken.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Breaks all connections and goes on listening.
    pub(crate) fn cut_connections(&self) {
        self.scissors.cut();
    }

    /// Stops; when this returns the port is free. Streams must have been told to end before a polite one.
    pub(crate) async fn stop(self, how: Ending) {
        self.stop.send_replace(true);
        if how == Ending::Abrupt {
            self.scissors.cut();
        }
        let mut tasks = self.tasks;
        let all = async {
            for task in &mut tasks {
                // A task that panicked has said so on stderr, and is over like any other.
                drop(task.await);
            }
        };
        if tokio::time::timeout(GOODBYE, all).await.is_err() {
            self.scissors.cut();
            for task in &tasks {
                task.abort();
            }
        }
    }
}

/// Hands connections over until told to stop; the listening socket closes with it.
async fn accept<S, F>(mut stop: watch::Receiver<bool>, sender: mpsc::Sender<io::Result<Connection<S>>>, next: F)
where
    F: AsyncFn() -> io::Result<Connection<S>>,
{
    loop {
        tokio::select! {
            () = told(&mut stop) => return,
            accepted = next() => match accepted {
                Ok(connection) => {
                    if sender.send(Ok(connection)).await.is_err() {
                        return;
                    }
                }
                // It concerns one client, or there are no file descriptors: then waiting helps and hurrying does not.
                Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
            },
        }
    }
}

fn serve<S>(
    builder: TonicServer,
    shared: &Arc<Shared>,
    incoming: mpsc::Receiver<io::Result<Connection<S>>>,
    mut stop: watch::Receiver<bool>,
) -> JoinHandle<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = Xds(shared.clone());
    tokio::spawn(async move {
        let incoming = ReceiverStream::new(incoming);
        let served = builder.serve_with_incoming_shutdown(service, incoming, told(&mut stop)).await;
        if let Err(error) = served {
            eprintln!("control-plane-mock: the xDS server ended: {error}");
        }
    })
}

/// Returns when the server has to stop. Its owner being gone is a stop too.
async fn told(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stopped| *stopped).await);
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = tcp_socket(address)?;
    // Connections of the server before may linger in TIME_WAIT, and `hold` has the port: a restart takes the same one.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn tcp_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

/// Takes an address without listening there. Servers of ours can listen there as long as this lives, and the system gives
/// the port to nobody else while none does.
pub(crate) fn hold(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = tcp_socket(address)?;
    if address.port() != 0 {
        // Whoever names a port may have had a server there just now.
        socket.set_reuseaddr(true)?;
    }
    socket.bind(address)?;
    // For a port of the system's choice not before: it could be one that somebody else holds like this.
    socket.set_reuseaddr(true)?;
    Ok(socket)
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    // A socket file left over from before would make the bind fail.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}
