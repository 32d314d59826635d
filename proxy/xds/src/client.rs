//! The client that the proxy uses: watches in, updates out.
//!
//! Owns the sources in use, which watch belongs to which, and the loop that drives protocol cores and transports.
//! Never judges a resource; the [`Handler`] does.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use outrigger_api::pb::envoy::config::core::v3::Node;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::Status;

use crate::core::{
    Ending, Event, FileCore, Interest, Rejection, ResourceKind, Response, StreamCore, StreamOptions, TypedState, Update,
};
use crate::file::FileWatcher;
use crate::snapshot::{self, Epoch, SourceSnapshot, SourceStats, XdsStats};
use crate::source::{FileSource, GrpcSource, Source, SourceConfig, SourceKey};
use crate::transport::{self, Outgoing, SharedChannel, Signal, Signals};

/// Judges updates and learns what else happens. Runs on the control thread, inside [`Driver::run`].
///
/// It may call [`XdsClient::watch`] and [`XdsClient::unwatch`] from within: they take effect when the call returns, and
/// all changes of one call go into one request per type.
pub trait Handler {
    /// Takes an update in and returns what cannot be accepted of it; the rest counts as accepted and is acknowledged at
    /// once, whether or not it is in use yet. Called for every response, also for one that changes nothing.
    fn on_update(&mut self, source: &SourceKey, update: Update) -> Vec<Rejection>;

    /// `initial_fetch_timeout` passed without an answer for a name (`None`: for the wildcard). It may still come.
    fn on_fetch_timeout(&mut self, source: &SourceKey, kind: ResourceKind, name: Option<&str>);

    /// The stream to a control plane was established or lost. What was accepted stays valid either way.
    fn on_connected(&mut self, source: &SourceKey, connected: bool);
}

/// One watch, for [`XdsClient::unwatch`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct WatchId(u64);

/// The handle to the client; cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct XdsClient {
    commands: mpsc::UnboundedSender<Command>,
    next_watch: Arc<AtomicU64>,
    stats: Arc<Mutex<XdsStats>>,
}

#[derive(Debug)]
enum Command {
    Watch { id: WatchId, kind: ResourceKind, interest: Interest, config: SourceConfig },
    Unwatch(WatchId),
    Snapshot(oneshot::Sender<Vec<SourceSnapshot>>),
}

impl XdsClient {
    /// A client for `node`, and the loop that must be run for it.
    #[must_use]
    pub fn new(node: Node) -> (Self, Driver) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (signal_sender, signals) = mpsc::channel(1);
        let stats = Arc::new(Mutex::new(XdsStats::default()));
        let driver = Driver {
            node,
            commands: receiver,
            signals,
            signal_sender,
            sources: BTreeMap::new(),
            watches: HashMap::new(),
            channels: HashMap::new(),
            next_task: 0,
            stats: Arc::clone(&stats),
            epoch: Epoch::new(now(), SystemTime::now()),
        };
        (Self { commands, next_watch: Arc::new(AtomicU64::new(0)), stats }, driver)
    }

    /// Asks for a resource, or for all of a type. Several watches of the same resource are one subscription; only the
    /// first brings it, since what was brought is expected to be kept until the last watch ends.
    pub fn watch(&self, kind: ResourceKind, interest: Interest, config: &SourceConfig) -> WatchId {
        let id = WatchId(self.next_watch.fetch_add(1, Ordering::Relaxed));
        self.send(Command::Watch { id, kind, interest, config: config.clone() });
        id
    }

    /// Ends a watch. With the last one on a resource the subscription ends; no removal is reported.
    pub fn unwatch(&self, watch: WatchId) {
        self.send(Command::Unwatch(watch));
    }

    /// Counters as of the last event.
    #[must_use]
    pub fn stats(&self) -> XdsStats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every resource with its version and state, for config dumps. Empty if the driver does not run.
    pub async fn snapshot(&self) -> Vec<SourceSnapshot> {
        let (sender, receiver) = oneshot::channel();
        self.send(Command::Snapshot(sender));
        receiver.await.unwrap_or_default()
    }

    fn send(&self, command: Command) {
        // The driver is gone only while the process ends; a watch means nothing then.
        drop(self.commands.send(command));
    }
}

/// The loop that carries the protocol. Must run inside a tokio runtime with time and I/O enabled; one thread suffices.
#[derive(Debug)]
pub struct Driver {
    node: Node,
    commands: mpsc::UnboundedReceiver<Command>,
    signals: mpsc::Receiver<(u64, Signal)>,
    signal_sender: Signals,
    sources: BTreeMap<SourceKey, Running>,
    watches: HashMap<WatchId, (SourceKey, ResourceKind, Interest)>,
    /// By [`GrpcSource::identity`].
    channels: HashMap<String, Arc<SharedChannel>>,
    next_task: u64,
    /// Written here after each event, read by [`XdsClient::stats`]; nothing else happens under the lock.
    stats: Arc<Mutex<XdsStats>>,
    epoch: Epoch,
}

/// A source in use.
#[derive(Debug)]
enum Running {
    Stream { core: Box<StreamCore>, source: Arc<GrpcSource>, task: Option<Task>, outgoing: Option<Outgoing> },
    File { core: Box<FileCore>, source: Arc<FileSource>, task: Task },
}

/// A task that ends with its owner.
#[derive(Debug)]
struct Task {
    number: u64,
    handle: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Driver {
    /// Runs until every [`XdsClient`] is dropped. Dropping the future ends all streams.
    pub async fn run(mut self, mut handler: impl Handler) {
        loop {
            self.settle(&mut handler);
            let deadline = self.sources.values().filter_map(Running::poll_timeout).min();
            let sleep = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                Some((task, signal)) = self.signals.recv() => self.hear(task, signal, &mut handler),
                () = sleep => self.handle_timeouts(),
            }
        }
    }

    /// Does all that follows from the last event: the handler's own commands first, so that they share requests.
    fn settle(&mut self, handler: &mut impl Handler) {
        loop {
            while let Ok(command) = self.commands.try_recv() {
                self.obey(command);
            }
            let mut quiet = true;
            for (key, running) in &mut self.sources {
                quiet &= !running.tell(key, handler);
            }
            if quiet {
                break;
            }
        }
        self.sources.retain(|_, running| !running.wants_nothing());
        let sources = &self.sources;
        self.channels.retain(|identity, _| sources.values().any(|running| running.identity() == Some(identity)));
        self.transmit();
        self.publish_stats();
    }

    fn transmit(&mut self) {
        let now = now();
        for (key, running) in &mut self.sources {
            let Running::Stream { core, source, task, outgoing } = running else { continue };
            if core.poll_connect(now) {
                let only = only_kind(key);
                let channel = Arc::clone(self.channels.entry(source.identity.clone()).or_default());
                let number = self.next_task;
                self.next_task += 1;
                let stream = transport::run(Arc::clone(source), channel, only, number, self.signal_sender.clone());
                *task = Some(Task { number, handle: tokio::spawn(stream) });
            }
            if let Some(outgoing) = outgoing {
                while let Some(request) = core.poll_request(now) {
                    outgoing.send(request);
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Watch { id, kind, interest, config } => {
                let key = config.key(kind);
                if !self.sources.contains_key(&key) {
                    let running = self.start(&key, kind, &config.source);
                    self.sources.insert(key.clone(), running);
                }
                if let Some(running) = self.sources.get_mut(&key) {
                    running.subscribe(kind, &interest, config.initial_fetch_timeout);
                }
                self.watches.insert(id, (key, kind, interest));
            }
            Command::Unwatch(id) => {
                let Some((key, kind, interest)) = self.watches.remove(&id) else { return };
                if let Some(running) = self.sources.get_mut(&key) {
                    running.unsubscribe(kind, &interest);
                }
            }
            Command::Snapshot(reply) => drop(reply.send(self.snapshot())),
        }
    }

    fn start(&mut self, key: &SourceKey, kind: ResourceKind, source: &Source) -> Running {
        match source {
            Source::Ads(grpc) | Source::Grpc(grpc) => {
                let only = only_kind(key);
                let core = StreamCore::new(StreamOptions {
                    protocol: grpc.protocol_for(only),
                    node: self.node.clone(),
                    node_on_first_message_only: grpc.node_on_first_message_only,
                    explicit_wildcard: grpc.explicit_wildcard,
                    rate_limit: grpc.rate_limit,
                    only,
                });
                Running::Stream { core: Box::new(core), source: Arc::clone(grpc), task: None, outgoing: None }
            }
            Source::File(file) => {
                let number = self.next_task;
                self.next_task += 1;
                let FileSource { path, watched_directory, parse: _ } = &**file;
                // Watching starts here, before the first read, so that no change falls between the two.
                let watcher = FileWatcher::new(path, watched_directory.as_deref());
                let handle = tokio::spawn(report_changes(watcher, number, self.signal_sender.clone()));
                let core = Box::new(FileCore::new(kind));
                Running::File { core, source: Arc::clone(file), task: Task { number, handle } }
            }
        }
    }

    fn hear(&mut self, number: u64, signal: Signal, handler: &mut impl Handler) {
        // A task that was replaced may have left a last report behind.
        let Some((key, running)) = self.sources.iter_mut().find(|(_, running)| running.task() == Some(number)) else {
            return;
        };
        match (running, signal) {
            (Running::Stream { core, outgoing, .. }, Signal::Opened(sender)) => {
                *outgoing = Some(sender);
                core.stream_opened();
            }
            (Running::Stream { core, .. }, Signal::Response(response)) => respond(core, key, response, handler),
            (Running::Stream { core, task, outgoing, .. }, Signal::Closed(status)) => {
                *task = None;
                *outgoing = None;
                report_end(key, core.stream_closed(now(), jitter()), &status);
            }
            (Running::File { core, .. }, Signal::FileChanged) => core.changed(),
            (Running::Stream { .. }, Signal::FileChanged) | (Running::File { .. }, _) => {}
        }
    }

    fn handle_timeouts(&mut self) {
        let now = now();
        for running in self.sources.values_mut() {
            match running {
                Running::Stream { core, .. } => core.handle_timeout(now),
                Running::File { core, .. } => core.handle_timeout(now),
            }
        }
    }

    fn publish_stats(&self) {
        let sources = self.sources.iter().map(|(key, running)| SourceStats {
            key: key.clone(),
            connected: running.is_connected(),
            control_plane: running.control_plane().to_owned(),
            types: running.types().map(|state| snapshot::summary(state, self.epoch)).collect(),
        });
        let stats = XdsStats { sources: sources.collect() };
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    fn snapshot(&self) -> Vec<SourceSnapshot> {
        let sources = self.sources.iter().map(|(key, running)| SourceSnapshot {
            key: key.clone(),
            types: running.types().map(|state| snapshot::snapshot(state, self.epoch)).collect(),
        });
        sources.collect()
    }
}

impl Running {
    fn subscribe(&mut self, kind: ResourceKind, interest: &Interest, fetch_timeout: Option<Duration>) {
        match self {
            Self::Stream { core, .. } => core.subscribe(kind, interest, fetch_timeout, now()),
            Self::File { core, .. } => core.subscribe(interest, fetch_timeout, now()),
        }
    }

    fn unsubscribe(&mut self, kind: ResourceKind, interest: &Interest) {
        match self {
            Self::Stream { core, .. } => core.unsubscribe(kind, interest),
            Self::File { core, .. } => core.unsubscribe(interest),
        }
    }

    fn wants_nothing(&self) -> bool {
        match self {
            Self::Stream { core, .. } => core.wants_nothing(),
            Self::File { core, .. } => core.wants_nothing(),
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Stream { core, .. } => core.poll_timeout(),
            Self::File { core, .. } => core.poll_timeout(),
        }
    }

    fn poll_event(&mut self) -> Option<Event> {
        match self {
            Self::Stream { core, .. } => core.poll_event(),
            Self::File { core, .. } => core.poll_event(),
        }
    }

    fn task(&self) -> Option<u64> {
        match self {
            Self::Stream { task, .. } => task.as_ref().map(|task| task.number),
            Self::File { task, .. } => Some(task.number),
        }
    }

    fn identity(&self) -> Option<&String> {
        match self {
            Self::Stream { source, .. } => Some(&source.identity),
            Self::File { .. } => None,
        }
    }

    fn is_connected(&self) -> bool {
        match self {
            Self::Stream { core, .. } => core.is_connected(),
            Self::File { .. } => true,
        }
    }

    fn control_plane(&self) -> &str {
        match self {
            Self::Stream { core, .. } => core.control_plane(),
            Self::File { .. } => "",
        }
    }

    fn types(&self) -> Box<dyn Iterator<Item = &TypedState> + '_> {
        match self {
            Self::Stream { core, .. } => Box::new(core.types()),
            Self::File { core, .. } => Box::new(std::iter::once(core.state())),
        }
    }

    /// Tells the handler what happened without a response; true if there was anything.
    fn tell(&mut self, key: &SourceKey, handler: &mut impl Handler) -> bool {
        let mut told = false;
        if let Self::File { core, source, .. } = self
            && core.poll_read()
        {
            read(core, source, key, handler);
            told = true;
        }
        while let Some(event) = self.poll_event() {
            told = true;
            match event {
                Event::Connected(connected) => handler.on_connected(key, connected),
                Event::FetchTimeout { kind, name } => {
                    tracing::info!(source = %key, kind = kind.noun(), name, "no answer within initial_fetch_timeout");
                    handler.on_fetch_timeout(key, kind, name.as_deref());
                }
                Event::Update(update) => {
                    let kind = update.kind;
                    let rejections = handler.on_update(key, update);
                    match self {
                        Self::Stream { core, .. } => core.reject_held(kind, &rejections, now()),
                        Self::File { core, .. } => core.reject_held(&rejections, now()),
                    }
                }
            }
        }
        told
    }
}

fn respond(core: &mut StreamCore, key: &SourceKey, response: Response, handler: &mut impl Handler) {
    core.on_response(response, now(), &mut |update: Update| handler.on_update(key, update));
}

fn read(core: &mut FileCore, source: &FileSource, key: &SourceKey, handler: &mut impl Handler) {
    let FileSource { path, watched_directory: _, parse } = source;
    // Configuration files are small and local, and this thread carries no traffic: a blocking read is no loss.
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read configuration file");
            return core.failed(&error.to_string());
        }
    };
    match parse(path, &bytes) {
        Err(details) => {
            tracing::warn!(path = %path.display(), details, "configuration file refused, keeping what was read before");
            core.failed(&details);
        }
        Ok(response) => {
            let rejections = core.loaded(response, now(), &mut |update: Update| handler.on_update(key, update));
            for Rejection { name, message } in rejections {
                tracing::warn!(path = %path.display(), name, details = message, "resource in configuration file refused");
            }
        }
    }
}

fn report_end(key: &SourceKey, ending: Ending, status: &Status) {
    let (code, details) = (status.code() as i32, status.message());
    match ending {
        // Servers end long streams as a matter of course; a warning would only frighten.
        Ending::Normal => tracing::info!(source = %key, code, details, "xDS stream closed, connecting again"),
        Ending::Failure => tracing::warn!(source = %key, code, details, "xDS stream failed, connecting again"),
    }
}

async fn report_changes(mut watcher: FileWatcher, number: u64, signals: Signals) {
    loop {
        watcher.changed().await;
        if signals.send((number, Signal::FileChanged)).await.is_err() {
            return;
        }
    }
}

fn only_kind(key: &SourceKey) -> Option<ResourceKind> {
    match key {
        SourceKey::Ads(_) => None,
        SourceKey::Grpc { kind, .. } | SourceKey::File { kind, .. } => Some(*kind),
    }
}

/// The clock of the protocol: tokio's, so that tests can pause it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Random in `0.0..1.0`, from the random keys of the standard library's hash maps: good enough to spread reconnects.
fn jitter() -> f64 {
    let bits = std::hash::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}
