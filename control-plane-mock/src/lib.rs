//! A scriptable xDS server for people and tests.
//!
//! [`MockControlPlane`] serves Envoy-format resources over aggregated and per-type streams, state of the world and
//! delta, and does on purpose what control planes do by accident: answer late, not at all, or wrongly, drop streams,
//! die and come back. It records what clients ask and lets a test wait for their ACK or NACK.
//! The binary of the same name serves a directory; the [`control`] port offers the same as this library over HTTP.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use control_plane_mock::{MockControlPlane, types};
//!
//! let control_plane = MockControlPlane::start().await;
//! control_plane.set_yaml("
//! resources:
//! - '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster
//!   name: billing
//!   type: EDS
//!   eds_cluster_config: { eds_config: { ads: {}, resource_api_version: V3 } }
//! ")?;
//! // ... start a proxy that uses control_plane.address() ...
//! control_plane.wait_ack(types::CLUSTER, Duration::from_secs(5)).await?;
//! # Ok(()) }
//! ```

mod connection;
pub mod control;
mod directory;
mod faults;
mod generate;
mod protocol;
mod server;
mod service;
mod session;
mod session_delta;
mod session_sotw;
mod shared;
mod state;
mod text;
pub mod types;
mod verdict;
mod watches;
mod world;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_api::pb::google::protobuf::Any;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::AbortHandle;
use tonic::Code;

use crate::server::{Ending, Endpoints, Server};
use crate::shared::Shared;

pub use crate::directory::{DirectoryError, read as read_directory};
pub use crate::faults::{Corruption, Faults};
pub use crate::generate::Generate;
pub use crate::protocol::Protocol;
pub use crate::server::TlsPem;
pub use crate::session::{Conduct, ErrorDetail, Meaning, Standing};
pub use crate::state::{NamedResource, Origin, Resource, Store, TypeState};
pub use crate::text::{TextError, TextFormat, parse as parse_resources};
pub use crate::verdict::{Ack, Nack, Verdict, WaitError};
pub use crate::world::{Asked, StreamChoice, StreamInfo, World};

/// How to start a [`MockControlPlane`].
#[derive(Clone, Debug)]
pub struct Builder {
    endpoints: Endpoints,
    control: Option<SocketAddr>,
    conduct: Conduct,
    directory: Option<PathBuf>,
}

/// Why a control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be taken, or the TLS material is no good.
    #[error("{what}: {source}")]
    Listen {
        /// What was to listen.
        what: String,
        /// The reason.
        source: io::Error,
    },
    /// The directory does not hold a good snapshot.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

impl Builder {
    /// TCP address for xDS; port 0 (the default, on 127.0.0.1) takes any free one.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.endpoints.tcp = address;
        self
    }

    /// Serves xDS on this Unix socket too, without TLS.
    #[must_use]
    pub fn unix(mut self, path: impl Into<PathBuf>) -> Self {
        self.endpoints.unix = Some(path.into());
        self
    }

    /// Serves xDS on TCP over TLS.
    #[must_use]
    pub fn tls(mut self, pem: TlsPem) -> Self {
        self.endpoints.tls = Some(pem);
        self
    }

    /// Opens the HTTP control port (see [`control`]).
    #[must_use]
    pub fn control(mut self, address: SocketAddr) -> Self {
        self.control = Some(address);
        self
    }

    /// Chooses among behaviours that xDS allows.
    #[must_use]
    pub fn conduct(mut self, conduct: Conduct) -> Self {
        self.conduct = conduct;
        self
    }

    /// Serves all YAML and JSON files of a directory as one snapshot, and again whenever they change.
    ///
    /// A resource that a test sets hides one of the same name in the directory; one that a test removes comes back
    /// with the next change of the directory.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Binds and serves in the background, until all clones of the handle are dropped and the runtime ends.
    ///
    /// # Errors
    /// If an address cannot be taken or the directory cannot be read.
    pub async fn start(mut self) -> Result<MockControlPlane, StartError> {
        let shared = Arc::new(Shared::new(World::new(self.conduct)));
        let mut watched = None;
        if let Some(directory) = self.directory.take() {
            // Taken before reading: a change in between is then seen as one.
            let fingerprint = directory::fingerprint(&directory);
            let resources = directory::read(&directory)?;
            shared.change(|world| world.store.replace_directory(resources));
            watched = Some((directory, fingerprint));
        }
        let listen = |what: String| move |source| StartError::Listen { what, source };
        let held = server::hold(self.endpoints.tcp).map_err(listen(format!("xDS server on {}", self.endpoints.tcp)))?;
        let taken = held.local_addr();
        // A restart must come back to the port that clients know.
        self.endpoints.tcp = taken.map_err(listen(format!("xDS server on {}", self.endpoints.tcp)))?;
        let server = Server::start(&self.endpoints, &shared)
            .await
            .map_err(listen(format!("xDS server on {}", self.endpoints.tcp)))?;
        let address = server.address();
        let control = match self.control {
            None => None,
            Some(wanted) => Some(TcpListener::bind(wanted).await.map_err(listen(format!("control port on {wanted}")))?),
        };
        let control_address = control.as_ref().and_then(|listener| listener.local_addr().ok());
        let mock = MockControlPlane {
            shared: shared.clone(),
            server: Arc::new(tokio::sync::Mutex::new(Some(server))),
            endpoints: Arc::new(self.endpoints),
            _held: Arc::new(held),
            address,
            control_address,
            background: Arc::new(Background::default()),
        };
        if let Some((directory, fingerprint)) = watched {
            mock.background.add(tokio::spawn(directory::follow(directory, shared, fingerprint)).abort_handle());
        }
        if let Some(listener) = control {
            // The control task holds a handle itself, so it must not keep the background alive.
            let inner = MockControlPlane { background: Arc::new(Background::default()), ..mock.clone() };
            mock.background.add(tokio::spawn(control::serve(listener, inner)).abort_handle());
        }
        Ok(mock)
    }
}

/// A running control plane. Clones are handles to the same one.
///
/// Every `type_url` may also be a short name such as `cds` (see [`types::resolve`]).
#[derive(Clone, Debug)]
pub struct MockControlPlane {
    shared: Arc<Shared>,
    /// `None` while stopped.
    server: Arc<tokio::sync::Mutex<Option<Server>>>,
    endpoints: Arc<Endpoints>,
    /// Keeps the port while nobody listens.
    _held: Arc<TcpSocket>,
    address: SocketAddr,
    control_address: Option<SocketAddr>,
    background: Arc<Background>,
}

impl MockControlPlane {
    /// How to start one that is not plain.
    pub fn builder() -> Builder {
        Builder {
            endpoints: Endpoints { tcp: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), tls: None, unix: None },
            control: None,
            conduct: Conduct::default(),
            directory: None,
        }
    }

    /// Starts an empty one on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// If there is no free port: a test cannot go on without it.
    pub async fn start() -> Self {
        match Self::builder().start().await {
            Ok(started) => started,
            Err(error) => panic!("the mock control plane does not start: {error}"),
        }
    }

    /// Address of the xDS server; it stays the same over [`restart`](Self::restart).
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Address of the control port, if there is one.
    pub fn control_address(&self) -> Option<SocketAddr> {
        self.control_address
    }

    /// Adds or replaces one resource. `body` may be anything, also bytes that are no such resource.
    pub fn set(&self, type_url: &str, name: &str, body: Any) {
        let body = Any { type_url: types::resolve(type_url), ..body };
        let resource = NamedResource { name: name.to_owned(), body, ttl: None, aliases: Vec::new() };
        self.set_resources(vec![resource]);
    }

    /// The same with a time to live, after which the client must forget it unless it hears of it again.
    pub fn set_with_ttl(&self, type_url: &str, name: &str, body: Any, ttl: Duration) {
        let body = Any { type_url: types::resolve(type_url), ..body };
        let resource = NamedResource { name: name.to_owned(), body, ttl: Some(ttl), aliases: Vec::new() };
        self.set_resources(vec![resource]);
    }

    /// Adds or replaces resources in one step, each under the name in it; says how many had a name.
    pub fn set_all(&self, resources: impl IntoIterator<Item = Any>) -> usize {
        let named: Vec<_> = resources.into_iter().filter_map(NamedResource::from_any).collect();
        let count = named.len();
        self.set_resources(named);
        count
    }

    /// Adds or replaces resources in one step.
    pub fn set_resources(&self, resources: Vec<NamedResource>) {
        self.shared.change(|world| world.store.set(resources, Origin::Api));
    }

    /// Adds or replaces, in one step, the resources of a YAML or JSON text (see [`parse_resources`]);
    /// gives back their types and names.
    ///
    /// # Errors
    /// If the text is not good, and then nothing has changed.
    pub fn set_yaml(&self, text: &str) -> Result<Vec<(String, String)>, TextError> {
        let resources = text::parse(text, TextFormat::Yaml)?;
        let names = resources.iter().map(|resource| (resource.body.type_url.clone(), resource.name.clone())).collect();
        self.set_resources(resources);
        Ok(names)
    }

    /// Removes one resource; says whether it was there.
    pub fn remove(&self, type_url: &str, name: &str) -> bool {
        self.shared.change(|world| world.store.remove(&types::resolve(type_url), name))
    }

    /// Sends all of a type again, under a new set version.
    pub fn push(&self, type_url: &str) {
        self.shared.change(|world| world.store.push(&types::resolve(type_url)));
    }

    /// Sends nothing of this type until [`release`](Self::release).
    pub fn hold(&self, type_url: &str) {
        self.shared.change(|world| world.faults.hold(&types::resolve(type_url)));
    }

    /// Ends a hold.
    pub fn release(&self, type_url: &str) {
        self.shared.change(|world| world.faults.release(&types::resolve(type_url)));
    }

    /// Lets this much time pass before each response of the type; zero ends it.
    pub fn delay(&self, type_url: &str, delay: Duration) {
        self.shared.change(|world| world.faults.delay(&types::resolve(type_url), delay));
    }

    /// Spoils the next response of the type. It does not cause one: follow it by a change or [`push`](Self::push).
    pub fn corrupt(&self, type_url: &str, how: Corruption) {
        self.shared.change(|world| world.faults.corrupt(&types::resolve(type_url), how));
    }

    /// Sends a TTL heartbeat (same version, no body) to the streams that have these resources.
    pub fn heartbeat(&self, type_url: &str, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.shared.change(|world| world.heartbeat(&types::resolve(type_url), &names));
    }

    /// Ends all streams with `UNAVAILABLE`; says how many.
    pub fn drop_streams(&self) -> usize {
        self.drop_streams_where(Code::Unavailable, |_| true)
    }

    /// Ends the chosen streams with this code; says how many.
    pub fn drop_streams_where(&self, code: Code, which: impl Fn(&StreamChoice<'_>) -> bool) -> usize {
        self.shared.change(|world| world.end_streams(which, code.into()))
    }

    /// Refuses new streams with this code; `None` accepts them again.
    pub fn refuse(&self, code: Option<Code>) {
        self.shared.change(|world| world.faults.refuse = code.map(Into::into));
    }

    /// Breaks all connections without a word and goes on listening.
    pub async fn cut_connections(&self) {
        if let Some(server) = self.server.lock().await.as_ref() {
            server.cut_connections();
        }
    }

    /// Stops listening: streams end with `UNAVAILABLE`, connections with GOAWAY. What is served is kept.
    pub async fn stop(&self) {
        self.end(Ending::Polite).await;
    }

    /// Stops as a process that dies: connections break off.
    pub async fn kill(&self) {
        self.end(Ending::Abrupt).await;
    }

    /// Listens again on the same addresses, after stopping politely if it was not stopped.
    ///
    /// # Errors
    /// If an address was taken by someone else meanwhile.
    pub async fn restart(&self) -> io::Result<()> {
        self.stop().await;
        let mut server = self.server.lock().await;
        *server = Some(Server::start(&self.endpoints, &self.shared).await?);
        Ok(())
    }

    /// Waits until every client that asks for this type has confirmed all it should have of it, and there is one.
    ///
    /// # Errors
    /// When the time is over, or as soon as a client has rejected the current version.
    pub async fn wait_ack(&self, type_url: &str, within: Duration) -> Result<Ack, WaitError> {
        self.shared.wait_ack(&types::resolve(type_url), None, within).await
    }

    /// The same for one resource: its current version is confirmed, or that it is gone.
    ///
    /// # Errors
    /// As [`wait_ack`](Self::wait_ack).
    pub async fn wait_ack_of(&self, type_url: &str, name: &str, within: Duration) -> Result<Ack, WaitError> {
        self.shared.wait_ack(&types::resolve(type_url), Some(name), within).await
    }

    /// Waits until a client has rejected the version that is current now (or a later one).
    ///
    /// # Errors
    /// When the time is over.
    pub async fn wait_nack(&self, type_url: &str, within: Duration) -> Result<Nack, WaitError> {
        self.shared.wait_nack(&types::resolve(type_url), within).await
    }

    /// Waits until `look` finds something in the state of the control plane; `None` when the time is over.
    pub async fn wait_for<T>(&self, within: Duration, look: impl Fn(&World) -> Option<T>) -> Option<T> {
        self.shared.wait(within, look).await
    }

    /// Looks at the state of the control plane.
    pub fn look<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        self.shared.read(look)
    }

    /// The streams that are open: who is there, and what they ask for.
    pub fn streams(&self) -> Vec<StreamInfo> {
        self.shared.read(World::streams)
    }

    /// What clients have said, oldest first, from the request after number `after` on (0 for all).
    /// The last few thousand requests are kept.
    pub fn requests(&self, after: u64) -> Vec<Asked> {
        self.shared.read(|world| world.asked(after))
    }

    /// The Unix socket, if one is served.
    pub fn unix_path(&self) -> Option<&Path> {
        self.endpoints.unix.as_deref()
    }

    async fn end(&self, how: Ending) {
        // Held to the end: whoever restarts waits until the port is free.
        let mut server = self.server.lock().await;
        if let Some(server) = server.take() {
            if how == Ending::Polite {
                self.drop_streams();
            }
            server.stop(how).await;
        }
    }
}

/// Tasks that end with the last handle.
#[derive(Debug, Default)]
struct Background(Mutex<Vec<AbortHandle>>);

impl Background {
    fn add(&self, task: AbortHandle) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        for task in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }
}
