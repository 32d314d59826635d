//! The whole control side, fed by files.

use std::future::Future;
use std::net::TcpListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::bootstrap::v3 as pb;
use outrigger_api::{ParseOptions, Schema};
use outrigger_config::Context;
use outrigger_config::address::Address;
use outrigger_config::bootstrap::Bootstrap;
use outrigger_xds::ResourceKind;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::{
    Application, DrainRequest, DrainScope, Graph, GraphManager, ManagerHandle, ManagerOptions, Patience, Readiness,
    validate,
};
use crate::accesslog::{AccessLogManager, FlushOptions};
use crate::bootstrap::System;
use crate::cli::{DrainStrategy, UnknownDynamicFields};
use crate::process::Process;
use crate::worker::{Command, Workers};

/// Files that stand in for a control plane, and the bootstrap that names them.
struct Fixture {
    directory: tempfile::TempDir,
}

struct Started {
    handle: ManagerHandle,
    process: Arc<Process>,
    commands: UnboundedReceiver<Command>,
}

const URL: &str = "type.googleapis.com/";

impl Fixture {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Replaces a file as a whole; each resource is the JSON of its message with its type.
    fn put(&self, name: &str, version: u32, resources: &[String]) {
        let text = format!("{{\"version_info\": \"{version}\", \"resources\": [{}]}}", resources.join(","));
        std::fs::write(self.path("new"), text).unwrap();
        std::fs::rename(self.path("new"), self.path(name)).unwrap();
    }

    fn source(&self, name: &str) -> String {
        format!(
            "{{\"path_config_source\": {{\"path\": {:?}}}, \"initial_fetch_timeout\": \"0s\", \"resource_api_version\": \"V3\"}}",
            self.path(name)
        )
    }

    fn dynamic(&self) -> String {
        format!(
            "\"dynamic_resources\": {{\"cds_config\": {}, \"lds_config\": {}}}",
            self.source("cds.json"),
            self.source("lds.json")
        )
    }

    fn cluster(&self, name: &str) -> String {
        let source = self.source("eds.json");
        format!(
            "{{\"@type\": \"{URL}envoy.config.cluster.v3.Cluster\", \"name\": \"{name}\", \"type\": \"EDS\", \
             \"connect_timeout\": \"1s\", \"eds_cluster_config\": {{\"eds_config\": {source}}}}}"
        )
    }

    fn manager(&self, prefix: &str, routes: &str) -> String {
        format!(
            "{{\"name\": \"hcm\", \"typed_config\": {{\"@type\": \"{URL}envoy.extensions.filters.network\
             .http_connection_manager.v3.HttpConnectionManager\", \"stat_prefix\": \"{prefix}\", {routes}, \
             \"http_filters\": [{{\"name\": \"r\", \"typed_config\": {{\"@type\": \
             \"{URL}envoy.extensions.filters.http.router.v3.Router\"}}}}]}}}}"
        )
    }

    fn chain(&self, port: u16, filter: &str, more: &str) -> String {
        format!("{{\"filter_chain_match\": {{\"destination_port\": {port}}}, \"filters\": [{filter}]{more}}}")
    }

    fn rds(&self) -> String {
        format!("\"rds\": {{\"route_config_name\": \"r\", \"config_source\": {}}}", self.source("rds.json"))
    }
}

fn assignment(name: &str, addresses: &[&str]) -> String {
    let endpoint = |address: &&str| {
        format!(
            "{{\"endpoint\": {{\"address\": {{\"socket_address\": {{\"address\": \"{address}\", \"port_value\": 80}}}}}}}}"
        )
    };
    let endpoints: Vec<String> = addresses.iter().map(endpoint).collect();
    format!(
        "{{\"@type\": \"{URL}envoy.config.endpoint.v3.ClusterLoadAssignment\", \"cluster_name\": \"{name}\", \
         \"endpoints\": [{{\"lb_endpoints\": [{}]}}]}}",
        endpoints.join(",")
    )
}

fn routes(cluster: &str) -> String {
    format!(
        "{{\"@type\": \"{URL}envoy.config.route.v3.RouteConfiguration\", \"name\": \"r\", \"virtual_hosts\": [{{\"name\": \
         \"v\", \"domains\": [\"*\"], \"routes\": [{{\"match\": {{\"prefix\": \"/\"}}, \"route\": {{\"cluster\": \
         \"{cluster}\"}}}}]}}]}}"
    )
}

fn listener(name: &str, port: u16, chains: &[String]) -> String {
    format!(
        "{{\"@type\": \"{URL}envoy.config.listener.v3.Listener\", \"name\": \"{name}\", \"address\": {{\"socket_address\": \
         {{\"address\": \"127.0.0.1\", \"port_value\": {port}}}}}, \"filter_chains\": [{}]}}",
        chains.join(",")
    )
}

fn bootstrap(body: &str) -> Bootstrap {
    let text = format!("{{\"node\": {{\"id\": \"n\", \"cluster\": \"c\"}}, {body}}}");
    let wire: pb::Bootstrap = Schema::load().parse_json(&text, ParseOptions::default()).unwrap().message;
    Bootstrap::parse(&Context::new(&System), wire).unwrap()
}

fn options(process: &Process) -> ManagerOptions {
    ManagerOptions {
        drain_time: Duration::from_millis(50),
        drain_strategy: DrainStrategy::Immediate,
        unknown_fields: UnknownDynamicFields::Warn,
        environment: Rc::new(System),
        access_logs: Arc::new(AccessLogManager::new(FlushOptions::default(), &process.stats)),
        bootstrap_message: None,
        without_effect: Vec::new(),
    }
}

fn start(body: &str) -> Result<Started, Vec<String>> {
    start_with(body, |_| {})
}

/// For what is looked at while something drains, which is not to be over by then.
fn slow_drains(options: &mut ManagerOptions) {
    options.drain_time = Duration::from_secs(3);
}

fn start_with(body: &str, change: impl FnOnce(&mut ManagerOptions)) -> Result<Started, Vec<String>> {
    let bootstrap = bootstrap(body);
    let process = Arc::new(Process::default());
    let mut options = options(&process);
    change(&mut options);
    let (sender, commands) = mpsc::unbounded_channel();
    let node = bootstrap.node.clone();
    let workers = Workers::new(vec![sender]);
    let handle = GraphManager::start(Arc::clone(&process), bootstrap, node, workers, options)?;
    Ok(Started { handle, process, commands })
}

impl Started {
    fn graph(&self) -> Arc<Graph> {
        self.process.graph.load()
    }

    async fn until(&self, what: &str, reached: impl Fn(&Graph) -> bool) -> Arc<Graph> {
        for _ in 0..6000 {
            let graph = self.graph();
            if reached(&graph) {
                return graph;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {what}; waiting for {:?}", self.handle.with(GraphManager::unready));
    }

    async fn refused(&self, kind: ResourceKind, name: &str) -> String {
        for _ in 0..6000 {
            let details = self.handle.with(|manager| {
                let mut known = manager.history().of(kind);
                known.find(|(known, _)| ***known == *name).and_then(|(_, history)| history.refusal.clone())
            });
            if let Some(refusal) = details {
                return refusal.details;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name} was never refused");
    }

    fn commands(&mut self) -> Vec<&'static str> {
        let mut seen = Vec::new();
        while let Ok(command) = self.commands.try_recv() {
            seen.push(match command {
                Command::StartListener { .. } => "start",
                Command::StopListener { .. } => "stop",
                Command::CheckDrains => "drains",
                Command::ResumeAccepting
                | Command::RescaleTimers
                | Command::ResetHeavyRequests
                | Command::ShrinkHeap => "overload",
                Command::MakeRoom { .. } => "room",
                Command::TellRequests(_) | Command::TellFailures(_) | Command::KillRequest { .. } => "admin",
                Command::LookAtGraph => "look",
                Command::Exit => "exit",
            });
        }
        seen
    }
}

fn hosts(graph: &Graph, cluster: &str) -> Vec<String> {
    let node = graph.clusters.get(cluster);
    node.map(|node| node.hosts.hosts.iter().map(|host| host.address.to_string()).collect()).unwrap_or_default()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn static_resources_are_in_service_at_once_and_their_sockets_go_to_the_workers() {
    let fixture = Fixture::new();
    let cluster = "{\"name\": \"a\", \"connect_timeout\": \"1s\", \"load_assignment\": {\"cluster_name\": \"a\", \
                   \"endpoints\": [{\"lb_endpoints\": [{\"endpoint\": {\"address\": {\"socket_address\": {\"address\": \
                   \"10.0.0.1\", \"port_value\": 80}}}}]}]}}";
    let inline = routes("a").replace(&format!("\"@type\": \"{URL}envoy.config.route.v3.RouteConfiguration\", "), "");
    let chain = fixture.chain(0, &fixture.manager("p", &format!("\"route_config\": {inline}")), "");
    let chain = chain.replace("\"filter_chain_match\": {\"destination_port\": 0}, ", "");
    let listener =
        listener("l", 0, &[chain]).replace(&format!("\"@type\": \"{URL}envoy.config.listener.v3.Listener\", "), "");
    run(async move {
        let body = format!("\"static_resources\": {{\"clusters\": [{cluster}], \"listeners\": [{listener}]}}");
        let mut started = start(&body).unwrap();
        assert_eq!(started.handle.ready(), Readiness::Live);
        started.handle.wait_initialised().await;
        let graph = started.graph();
        assert_eq!(hosts(&graph, "a"), ["10.0.0.1:80"]);
        assert!(matches!(graph.listeners["l"].chains[0].application, Application::Http(_)));
        let addresses = started.handle.with(GraphManager::listener_addresses);
        assert!(matches!(addresses[0].1[..], [Address::Ip(address)] if address.port() != 0));
        assert_eq!(started.commands(), ["start"]);
        started.handle.shutdown();
        assert!(graph.listeners["l"].chains[0].draining.has_begun());
        assert_eq!(started.commands(), ["stop", "drains"]);
    });
}

#[test]
fn discovered_resources_come_in_order_and_updates_keep_what_did_not_change() {
    let fixture = Fixture::new();
    run(async move {
        let chain = |prefix: &str, port| fixture.chain(port, &fixture.manager(prefix, &fixture.rds()), "");
        fixture.put("lds.json", 1, &[listener("l", 0, &[chain("one", 1), chain("two", 2)])]);
        let mut started = start_with(&fixture.dynamic(), slow_drains).unwrap();
        assert_eq!(started.handle.ready(), Readiness::PreInitializing);
        fixture.put("cds.json", 1, &[fixture.cluster("a"), fixture.cluster("b")]);
        fixture.put("eds.json", 1, &[assignment("a", &["10.0.0.1"]), assignment("b", &["10.0.0.2"])]);
        let first = started.until("clusters", |graph| graph.clusters.len() == 2).await;
        assert!(first.listeners.is_empty());
        fixture.put("rds.json", 1, &[routes("a")]);
        let first = started.until("the listener", |graph| graph.listeners.len() == 1).await;
        started.handle.wait_initialised().await;
        assert!(first.routes.contains_key("r"));
        assert_eq!(started.commands(), ["start"]);

        fixture.put("eds.json", 2, &[assignment("a", &["10.0.0.1", "10.0.0.9"]), assignment("b", &["10.0.0.2"])]);
        let second = started.until("an endpoint", |graph| hosts(graph, "a").len() == 2).await;
        assert!(Arc::ptr_eq(&first.clusters["b"], &second.clusters["b"]));
        assert!(Arc::ptr_eq(&first.listeners["l"], &second.listeners["l"]));
        assert!(Arc::ptr_eq(&first.clusters["a"].shared, &second.clusters["a"].shared));
        assert!(Arc::ptr_eq(&first.clusters["a"].config, &second.clusters["a"].config));

        fixture.put("lds.json", 2, &[listener("l", 0, &[chain("one", 1), chain("three", 2)])]);
        let third =
            started.until("the new chain", |graph| !Arc::ptr_eq(&graph.listeners["l"], &second.listeners["l"])).await;
        let (old, new) = (&second.listeners["l"], &third.listeners["l"]);
        assert!(Arc::ptr_eq(&old.chains[0], &new.chains[0]));
        assert!(new.chain(&new.config.filter_chains[0]).is_some());
        assert!(old.chains[1].draining.has_begun() && !new.chains[1].draining.has_begun());
        assert_eq!(started.commands(), ["drains"]);
        started.until("the end of the drain", |_| old.chains[1].draining.has_expired()).await;
        assert_eq!(started.commands(), ["drains"]);

        fixture.put("lds.json", 3, &[]);
        started.until("the end of the listener", |graph| graph.listeners.is_empty()).await;
        assert!(new.chains[0].draining.has_begun());
        assert_eq!(started.commands(), ["stop", "drains"]);
        fixture.put("cds.json", 2, &[fixture.cluster("b")]);
        started.until("the end of a cluster", |graph| graph.clusters.len() == 1).await;
        // Who is still connected to a listener that has gone may ask for its routes.
        started.until("the end of the routes", |graph| graph.routes.is_empty()).await;
    });
}

/// The wire form of a listener of the bootstrap.
fn static_listener(fixture: &Fixture, name: &str) -> String {
    let chain = fixture.chain(1, &fixture.manager("p", "\"route_config\": {}"), "");
    listener(name, 0, &[chain]).replace(&format!("\"@type\": \"{URL}envoy.config.listener.v3.Listener\", "), "")
}

#[test]
fn listeners_are_shown_in_the_order_in_which_they_were_added() {
    let fixture = Fixture::new();
    let listeners = ["z", "a", "m"].map(|name| static_listener(&fixture, name)).join(",");
    run(async move {
        let started = start(&format!("\"static_resources\": {{\"listeners\": [{listeners}]}}")).unwrap();
        let shown = started.handle.with(GraphManager::listener_addresses);
        assert_eq!(shown.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["z", "a", "m"]);
    });
}

#[test]
fn a_gradual_drain_asks_connections_evenly_over_its_time() {
    let fixture = Fixture::new();
    let listener = static_listener(&fixture, "l");
    run(async move {
        tokio::time::pause();
        let body = format!("\"static_resources\": {{\"listeners\": [{listener}]}}");
        let gradual = |options: &mut ManagerOptions| {
            options.drain_time = Duration::from_secs(100);
            options.drain_strategy = DrainStrategy::Gradual;
        };
        let mut started = start_with(&body, gradual).unwrap();
        started.commands();
        let draining = Arc::clone(&started.graph().listeners["l"].chains[0].draining);
        let connections: Vec<Patience> = (0..1000).map(|share| Patience::new(share * (u64::MAX / 999))).collect();
        let asked = || connections.iter().filter(|patience| draining.asks(**patience)).count();
        started.handle.drain(DrainRequest { scope: DrainScope::All, graceful: true, skip_exit: false });
        assert_eq!((draining.has_begun(), asked(), started.commands()), (true, 0, vec!["drains"]));
        for (seconds, least, most) in [(25, 240, 260), (50, 740, 760), (24, 980, 999)] {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            assert!((least..=most).contains(&asked()), "{}", asked());
            assert!(started.commands().iter().all(|command| *command == "drains"));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(asked() == 1000 && draining.has_expired());
        assert!(started.commands().contains(&"stop"));
    });
}

#[test]
fn a_file_with_unknown_fields_is_read_unless_they_are_refused() {
    let fixture = Fixture::new();
    run(async move {
        let cluster = fixture.cluster("a").replacen("\"type\"", "\"news\": 1, \"type\"", 1);
        fixture.put("cds.json", 1, &[cluster]);
        fixture.put("eds.json", 1, &[assignment("a", &["10.0.0.1"])]);
        let counted = |started: &Started| {
            started.handle.with(|manager| manager.unknown_fields.stats.dynamic_unknown_fields.value())
        };
        let started = start(&fixture.dynamic()).unwrap();
        started.until("the cluster", |graph| graph.clusters.len() == 1).await;
        assert_eq!(counted(&started), 1);
        let reject = |options: &mut ManagerOptions| options.unknown_fields = UnknownDynamicFields::Reject;
        let started = start_with(&fixture.dynamic(), reject).unwrap();
        while counted(&started) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(started.graph().clusters.is_empty());
    });
}

#[test]
fn circuit_breakers_show_what_remains_where_that_is_asked_for() {
    let limits = "\"circuit_breakers\": {\"thresholds\": [{\"max_requests\": 7, \"track_remaining\": true}]}";
    let cluster = format!("{{\"name\": \"a:80\", \"type\": \"STATIC\", \"connect_timeout\": \"1s\", {limits}}}");
    run(async move {
        let started = start(&format!("\"static_resources\": {{\"clusters\": [{cluster}]}}")).unwrap();
        started.handle.refresh_stats();
        let wanted = |name: &str| name.starts_with("cluster.a_80.circuit_breakers.");
        let names: Vec<String> =
            started.process.stats.collect(&wanted).into_iter().map(|family| family.name.replace("_80", "")).collect();
        let remaining: Vec<_> = names.iter().filter(|name| name.contains("remaining")).collect();
        let expected = ["cx", "pending", "retries", "rq"]
            .map(|what| format!("cluster.a.circuit_breakers.default.remaining_{what}"));
        assert_eq!(remaining, expected.iter().collect::<Vec<_>>());
        assert!(names.contains(&"cluster.a.circuit_breakers.high.rq_pending_open".to_owned()));
    });
}

#[test]
fn what_is_refused_leaves_what_is_in_use_alone() {
    let fixture = Fixture::new();
    run(async move {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let chain = |prefix: &str| fixture.chain(1, &fixture.manager(prefix, &fixture.rds()), "");
        fixture.put("cds.json", 1, &[fixture.cluster("a")]);
        fixture.put("eds.json", 1, &[assignment("a", &["10.0.0.1"])]);
        fixture.put("rds.json", 1, &[routes("a")]);
        fixture.put("lds.json", 1, &[listener("l", 0, &[chain("p")])]);
        let mut started = start(&fixture.dynamic()).unwrap();
        let first = started.until("the listener", |graph| graph.listeners.len() == 1).await;
        fixture.put("lds.json", 2, &[listener("l", port, &[chain("p")]), listener("m", 0, &[chain("q")])]);
        let details = started.refused(ResourceKind::Listener, "l").await;
        assert!(details.starts_with(&format!("cannot bind 127.0.0.1:{port}: Address already in use")), "{details}");
        let second = started.until("the good one", |graph| graph.listeners.len() == 2).await;
        assert!(Arc::ptr_eq(&first.listeners["l"], &second.listeners["l"]));
        assert_eq!(started.commands(), ["start", "start"]);
        let bad = fixture.cluster("bad").replace("\"1s\"", "\"-1s\"");
        fixture.put("cds.json", 2, &[fixture.cluster("a"), bad]);
        let details = started.refused(ResourceKind::Cluster, "bad").await;
        assert!(details.starts_with("cluster \"bad\": connect_timeout"), "{details}");
        assert!(started.graph().clusters.contains_key("a"));
    });
}

#[test]
fn a_removed_cluster_serves_until_nothing_in_use_names_it_but_not_for_long() {
    let fixture = Fixture::new();
    run(async move {
        let chain = fixture.chain(1, &fixture.manager("p", &fixture.rds()), "");
        let all = ["a", "b", "c"].map(|name| assignment(name, &["10.0.0.1"]));
        fixture.put("eds.json", 1, &all);
        fixture.put("cds.json", 1, &[fixture.cluster("a"), fixture.cluster("b")]);
        fixture.put("rds.json", 1, &[routes("a")]);
        fixture.put("lds.json", 1, &[listener("l", 0, &[chain])]);
        let started = start_with(&fixture.dynamic(), slow_drains).unwrap();
        started.until("the listener", |graph| graph.listeners.len() == 1).await;
        fixture.put("cds.json", 2, &[fixture.cluster("b"), fixture.cluster("c")]);
        let graph = started.until("a new cluster", |graph| graph.clusters.contains_key("c")).await;
        assert!(graph.clusters.contains_key("a"));
        fixture.put("rds.json", 2, &[routes("b")]);
        started.until("the end of the old one", |graph| !graph.clusters.contains_key("a")).await;
        // A cluster that comes back in time is the same again.
        fixture.put("cds.json", 3, &[]);
        started.until("the end of what nobody names", |graph| !graph.clusters.contains_key("c")).await;
        let before = started.graph().clusters["b"].clone();
        fixture.put("cds.json", 4, &[fixture.cluster("b"), fixture.cluster("c")]);
        let graph = started.until("clusters", |graph| graph.clusters.contains_key("c")).await;
        assert!(Arc::ptr_eq(&graph.clusters["b"].shared, &before.shared));
        fixture.put("cds.json", 5, &[fixture.cluster("c")]);
        started.until("the end of one that is named for too long", |graph| !graph.clusters.contains_key("b")).await;
    });
}

#[test]
fn a_listener_waits_for_its_secret_and_a_new_one_does_not_drain_it() {
    let fixture = Fixture::new();
    run(async move {
        let secret = || {
            let key = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
            format!(
                "{{\"@type\": \"{URL}envoy.extensions.transport_sockets.tls.v3.Secret\", \"name\": \"s\", \
                 \"tls_certificate\": {{\"certificate_chain\": {{\"inline_string\": {:?}}}, \"private_key\": \
                 {{\"inline_string\": {:?}}}}}}}",
                key.cert.pem(),
                key.signing_key.serialize_pem()
            )
        };
        let socket = format!(
            ", \"transport_socket\": {{\"name\": \"tls\", \"typed_config\": {{\"@type\": \
             \"{URL}envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\", \"common_tls_context\": \
             {{\"tls_certificate_sds_secret_configs\": [{{\"name\": \"s\", \"sds_config\": {}}}]}}}}}}",
            fixture.source("sds.json")
        );
        let chain = fixture.chain(1, &fixture.manager("p", &fixture.rds()), &socket);
        fixture.put("cds.json", 1, &[]);
        fixture.put("rds.json", 1, &[routes("a")]);
        fixture.put("lds.json", 1, &[listener("l", 0, &[chain])]);
        let mut started = start(&fixture.dynamic()).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(started.graph().listeners.is_empty());
        fixture.put("sds.json", 1, &[secret()]);
        let first = started.until("the listener", |graph| graph.listeners.len() == 1).await;
        assert!(first.listeners["l"].chains[0].tls.is_some());
        assert_eq!(started.commands(), ["start"]);
        fixture.put("sds.json", 2, &[secret()]);
        let second =
            started.until("the new secret", |graph| !Arc::ptr_eq(&graph.listeners["l"], &first.listeners["l"])).await;
        let (old, new) = (&first.listeners["l"].chains[0], &second.listeners["l"].chains[0]);
        assert!(Arc::ptr_eq(&old.draining, &new.draining) && !new.draining.has_begun());
        let (Application::Http(old), Application::Http(new)) = (&old.application, &new.application) else {
            panic!("not HTTP");
        };
        assert!(Arc::ptr_eq(old, new));
        assert!(started.commands().is_empty());
        fixture.put("sds.json", 3, &[secret().replace("BEGIN CERTIFICATE", "BEGIN NONSENSE")]);
        let details = started.refused(ResourceKind::Secret, "s").await;
        assert!(details.contains("certificate chain"), "{details}");
        assert!(Arc::ptr_eq(&started.graph().listeners["l"], &second.listeners["l"]));
    });
}

#[test]
fn validation_names_references_that_lead_nowhere() {
    let fixture = Fixture::new();
    let inline = routes("gone").replace(&format!("\"@type\": \"{URL}envoy.config.route.v3.RouteConfiguration\", "), "");
    let inline =
        format!("\"route_config\": {}", inline.replacen("\"name\"", "\"validate_clusters\": true, \"name\"", 1));
    let chain = fixture.chain(1, &fixture.manager("p", &inline), "");
    let listener =
        listener("l", 0, &[chain]).replace(&format!("\"@type\": \"{URL}envoy.config.listener.v3.Listener\", "), "");
    run(async move {
        let body = format!("\"static_resources\": {{\"listeners\": [{listener}]}}");
        let problems = validate(bootstrap(&body), options(&Process::default()));
        assert_eq!(problems, ["listener \"l\": route_config \"r\": unknown cluster 'gone'"]);
    });
}
