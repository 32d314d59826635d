//! A process as the admin port sees it, and a client that writes requests as they are.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_api::pb::envoy::config::bootstrap::v3::Bootstrap;
use outrigger_api::pb::google::protobuf::Any;
use outrigger_api::{Schema, UnknownFields};
use outrigger_config::Context;
use outrigger_config::address::Address;
use outrigger_config::bootstrap::{Admin, RuntimeValue, StatsConfig, StatsMatcher};
use outrigger_config::cluster::Cluster;
use outrigger_xds::ResourceKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::{
    AdminContext, BoundAddress, Configuration, DrainRequest, Facts, LogLevels, Server, ServerState, serve,
};
use crate::graph::coverage::Idle;
use crate::graph::history::{Record, Refusal, ResourceHistory};
use crate::graph::journal::{Difference, Push};
use crate::graph::overrides::{Changes, Override, Undo};
use crate::graph::{ClusterNode, Graph, HostList, RuntimeSnapshot, Transports};
use crate::logging::{Component, ComponentLevels, Level};
use crate::process::Process;
use crate::stats::export::ExportSettings;
use crate::upstream::host::Host;
use crate::worker::Workers;

/// What was asked of the process, and what it says.
pub struct FakeServer {
    pub state: RefCell<ServerState>,
    pub calls: RefCell<Vec<String>>,
}

impl Server for FakeServer {
    fn state(&self) -> ServerState {
        *self.state.borrow()
    }

    fn uptime(&self) -> Duration {
        Duration::from_secs(61)
    }

    fn refresh_stats(&self) {
        self.calls.borrow_mut().push("refresh".to_owned());
    }

    fn set_health_checks_failed(&self, failed: bool) {
        self.calls.borrow_mut().push(format!("health checks failed: {failed}"));
    }

    fn drain_listeners(&self, request: DrainRequest) {
        self.calls.borrow_mut().push(format!("{request:?}"));
    }

    fn quit(&self) {
        self.calls.borrow_mut().push("quit".to_owned());
    }

    fn reopen_logs(&self) {
        self.calls.borrow_mut().push("reopen".to_owned());
    }

    fn announce(&self, address: &Address) -> io::Result<()> {
        self.calls.borrow_mut().push(format!("announce {address}"));
        Ok(())
    }
}

/// Resources, and what was set.
#[derive(Default)]
pub struct FakeConfiguration {
    pub resources: RefCell<HashMap<ResourceKind, BTreeMap<Arc<str>, ResourceHistory>>>,
    pub runtime: RefCell<Vec<(String, String)>>,
    pub pushes: RefCell<Vec<Push>>,
    pub overrides: RefCell<Vec<(String, Option<Undo>)>>,
}

impl Configuration for FakeConfiguration {
    fn resources(&self, kind: ResourceKind) -> Vec<(Arc<str>, ResourceHistory)> {
        self.resources.borrow().get(&kind).cloned().unwrap_or_default().into_iter().collect()
    }

    fn version(&self, kind: ResourceKind) -> String {
        if kind == ResourceKind::Cluster { "c7".to_owned() } else { String::new() }
    }

    fn listeners(&self) -> Vec<(Arc<str>, Vec<Address>)> {
        let pipe = Address::Pipe { path: "/tmp/p.sock".into(), mode: 0 };
        let (one, two) = ("127.0.0.1:80".parse().unwrap(), "[::1]:80".parse().unwrap());
        vec![("in".into(), vec![Address::Ip(one), Address::Ip(two)]), ("pipe".into(), vec![pipe])]
    }

    fn set_runtime(&self, values: &[(String, String)]) -> Result<(), String> {
        if values.iter().any(|(key, _)| key == "no") {
            return Err("there is no admin layer".to_owned());
        }
        self.runtime.borrow_mut().extend_from_slice(values);
        Ok(())
    }

    fn unready_targets(&self) -> Vec<String> {
        vec!["cluster \"x\"".to_owned(), "listener \"y\"".to_owned()]
    }

    fn text_readouts(&self) -> Vec<(String, String)> {
        vec![("cluster_manager.cds.version_text".to_owned(), "c7".to_owned())]
    }

    fn refresh_stats(&self) {}

    fn pushes(&self) -> Vec<Push> {
        self.pushes.borrow().clone()
    }

    fn differences(&self, from: u64, _to: u64) -> Result<Vec<Difference>, String> {
        if from == 0 { Err("generation 0 is not known any more".to_owned()) } else { Ok(Vec::new()) }
    }

    fn without_effect(&self) -> (Vec<Idle>, u64) {
        let (name, path, reason) = ("a".into(), "x.y".to_owned(), "because".to_owned());
        (vec![Idle { kind: "cluster", name, path, reason }], 0)
    }

    fn overrides(&self) -> Vec<Override> {
        Vec::new()
    }

    fn override_for(&self, what: Changes, time: Duration, undo: Option<Undo>) -> Result<u64, String> {
        self.overrides.borrow_mut().push((format!("{} for {time:?}", what.words()), undo));
        Ok(7)
    }

    fn end_override(&self, id: u64) -> bool {
        if id == 7
            && let Some((_, Some(undo))) = self.overrides.borrow_mut().pop()
        {
            undo();
        }
        id == 7
    }
}

/// Log levels of nothing.
pub struct FakeLogging(pub RefCell<BTreeMap<&'static str, Level>>);

impl LogLevels for FakeLogging {
    fn levels(&self) -> Vec<(&'static str, &'static str)> {
        self.0.borrow().iter().map(|(name, level)| (*name, level.as_str())).collect()
    }

    fn set_all(&self, level: Level) {
        self.0.borrow_mut().values_mut().for_each(|value| *value = level);
    }

    fn set(&self, levels: &ComponentLevels) {
        for (component, level) in levels.iter() {
            self.0.borrow_mut().insert(component.name(), level);
        }
    }
}

/// Everything of one test.
pub struct Fixture {
    pub server: Rc<FakeServer>,
    pub configuration: Rc<FakeConfiguration>,
    pub process: Arc<Process>,
    pub context: Rc<AdminContext>,
}

impl Fixture {
    pub fn new() -> Self {
        Self::with_stats(StatsConfig {
            tags: Vec::new(),
            use_all_default_tags: true,
            allow_default_tag_overrides: false,
            matcher: StatsMatcher::All,
            histogram_buckets: Vec::new(),
        })
    }

    pub fn with_stats(stats: StatsConfig) -> Self {
        let server = Rc::new(FakeServer { state: RefCell::new(ServerState::Live), calls: RefCell::new(Vec::new()) });
        let configuration = Rc::new(FakeConfiguration::default());
        let process = Arc::new(Process::default());
        let levels = ["admin", "http"].map(|name| (Component::named(name).unwrap().name(), Level::Warning));
        let bootstrap = "{node: {id: n1}, admin: {}, static_resources: {}}";
        let bootstrap: Bootstrap = message(bootstrap);
        let context = Rc::new(AdminContext {
            process: Arc::clone(&process),
            stats: Rc::new(ExportSettings::new(&stats).unwrap()),
            server: Rc::clone(&server) as Rc<dyn Server>,
            configuration: Rc::clone(&configuration) as Rc<dyn Configuration>,
            logging: Rc::new(FakeLogging(RefCell::new(levels.into_iter().collect()))),
            workers: Workers::new(Vec::new()),
            access_logs: Vec::new(),
            facts: Facts {
                version: "abc/1.40.0/Clean/RELEASE/aws-lc".to_owned(),
                hot_restart_version: "disabled".to_owned(),
                command_line: Default::default(),
                node: bootstrap.node.clone().unwrap(),
                bootstrap: prost::Message::encode_to_vec(&bootstrap).into(),
                bootstrap_read_at: Some(at(0)),
                read_only: false,
            },
        });
        Self { server, configuration, process, context }
    }

    /// Adds a resource.
    pub fn add(&self, kind: ResourceKind, name: &str, history: ResourceHistory) {
        self.configuration.resources.borrow_mut().entry(kind).or_default().insert(name.into(), history);
    }

    /// Publishes a graph of these clusters, given as YAML.
    pub fn publish(&self, clusters: &[&str]) {
        let mut graph = Graph { generation: 1, ..Graph::default() };
        for yaml in clusters {
            let cluster = Cluster::parse(&Context::new(&crate::bootstrap::System), message(yaml)).unwrap();
            graph.clusters.insert(Arc::clone(&cluster.name), Arc::new(node(cluster)));
        }
        let value = |text: &str| RuntimeValue { text: text.to_owned(), number: None, flag: None, fraction: None };
        let layer = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect();
        graph.runtime = Arc::new(RuntimeSnapshot {
            values: layer(&[("a.b", "5"), ("x", "hello")]),
            layers: vec![
                ("static".into(), layer(&[("a.b", "1"), ("x", "hello")])),
                ("admin".into(), layer(&[("a.b", "5")])),
            ],
        });
        self.process.graph.publish(Arc::new(graph));
    }

    /// Serves on a port that the system chooses.
    pub fn serve(&self) -> BoundAddress {
        self.serve_on(Address::Ip("127.0.0.1:0".parse().unwrap()))
    }

    pub fn serve_on(&self, address: Address) -> BoundAddress {
        let config = Admin { address, socket_options: Vec::new(), access_logs: Vec::new(), allowed_paths: Vec::new() };
        serve(&config, Rc::clone(&self.context)).unwrap()
    }
}

fn node(cluster: Cluster) -> ClusterNode {
    use outrigger_config::address::EndpointAddress;
    use outrigger_config::cluster::Discovery;
    let mut hosts = Vec::new();
    if let Discovery::Static(assignment) = &cluster.discovery {
        for at in &assignment.localities {
            for endpoint in &at.endpoints {
                let EndpointAddress::Resolved(address) = &endpoint.address else { continue };
                hosts.push(Arc::new(Host {
                    address: address.clone(),
                    additional_addresses: Vec::new(),
                    hostname: Arc::clone(&endpoint.hostname),
                    weight: endpoint.weight,
                    max_requests: None,
                    priority: at.priority,
                    locality: Arc::new(at.locality.clone()),
                    health: endpoint.health,
                    metadata: None,
                    transport: 0,
                    preconnect: false,
                    health_check: None,
                    passed: None,
                    http_proxy: None,
                    shared: Arc::default(),
                }));
            }
        }
    }
    ClusterNode {
        config: Arc::new(cluster),
        hosts: Arc::new(HostList { hosts, ..HostList::default() }),
        tls: Transports::default(),
        shared: Arc::default(),
        outlier: None,
    }
}

/// A message from YAML.
pub fn message<M: prost::Message + prost::Name + Default>(yaml: &str) -> M {
    Schema::load().parse_yaml::<M>(yaml, UnknownFields::Reject).unwrap().message
}

/// A moment.
pub fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_226_025 + seconds)
}

/// A record of a message.
pub fn record<M: prost::Message + prost::Name>(version: &str, message: &M) -> Record {
    let any: Any = outrigger_api::pack(message);
    Record { version: version.to_owned(), updated: at(1), resource: Some(Arc::new(any)) }
}

/// In use.
pub fn active(record: Record) -> ResourceHistory {
    ResourceHistory { active: Some(record), ..ResourceHistory::default() }
}

/// Refused, for a reason.
pub fn refused(record: Record, details: &str) -> Refusal {
    Refusal { record, details: details.to_owned() }
}

/// Status, head and body of an answer.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Sends a request line as it is and reads the answer.
pub async fn ask(bound: &BoundAddress, method: &str, target: &str) -> Answer {
    let text = format!("{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    exchange(bound, &text).await
}

/// Sends bytes as they are and reads the answer until the connection ends.
pub async fn exchange(bound: &BoundAddress, text: &str) -> Answer {
    let Address::Ip(address) = bound.address else { panic!("not TCP") };
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    exchange_on(stream, text).await
}

pub async fn exchange_on(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, text: &str) -> Answer {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = if head.contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_owned() };
    Answer { status, head: head.to_owned(), body }
}

fn unchunked(mut text: &str) -> String {
    let mut body = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        body.push_str(&rest[..size]);
        text = &rest[size + 2..];
    }
    body
}

/// Runs a test on a local runtime, as the control thread has one.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .unwrap();
    runtime.block_on(test);
}
