//! The proxies, each before the same endpoints.
//!
//! Owns their configurations and processes. Never sends a request.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use outrigger_tests::config::{self, bootstrap, chain, http, routes};
use outrigger_tests::{Proxy, Settings, proxy};

/// A running proxy; it ends when dropped.
pub struct Running {
    address: SocketAddr,
    _process: Process,
}

enum Process {
    /// One that takes the Envoy API.
    Api {
        _proxy: Box<Proxy>,
    },
    HaProxy {
        child: Child,
        _directory: tempfile::TempDir,
    },
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Self::HaProxy { child, .. } = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What one proxy is to do.
#[derive(Clone)]
pub struct Contender {
    /// As the table calls it.
    pub name: &'static str,
    pub kind: Kind,
}

#[derive(Clone)]
pub enum Kind {
    /// Fields of the cluster, and of the route.
    Outrigger(String, String),
    /// The same.
    Envoy(String, String),
    /// Lines of the backend, and options of each server.
    HaProxy(String, String),
}

impl Contender {
    /// Starts it before these endpoints; `None`, with a word about it, where the program is missing.
    pub async fn start(&self, ports: &[u16]) -> Option<Running> {
        let (program, cluster, route) = match &self.kind {
            Kind::Outrigger(cluster, route) => (outrigger(), cluster, route),
            Kind::Envoy(cluster, route) => (proxy::envoy(), cluster, route),
            Kind::HaProxy(lines, options) => return haproxy(self.name, lines, options, ports),
        };
        if Command::new(&program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            eprintln!("{}: {} is missing", self.name, program.display());
            return None;
        }
        let to = format!("{{ match: {{ prefix: / }}, route: {{ cluster: upstream{route} }} }}");
        let listener = config::listener("web", &[chain(&http("web", &routes(&to)), "")], "");
        let cluster = format!(
            "{{ name: upstream, type: STATIC, connect_timeout: 0.25s, load_assignment: {}{cluster} }}",
            config::endpoints("upstream", ports)
        );
        let text = bootstrap(&[listener], &[cluster]);
        let settings = Settings { program, ..Settings::default() };
        let proxy = Proxy::start_with(&text, settings).await;
        let address = proxy.listener("web").await;
        Some(Running { address, _process: Process::Api { _proxy: Box::new(proxy) } })
    }
}

/// The proxy under test.
pub fn outrigger() -> PathBuf {
    std::env::var_os("OUTRIGGER_BIN").map_or_else(|| PathBuf::from("target/release/outrigger"), PathBuf::from)
}

fn haproxy(name: &str, lines: &str, options: &str, ports: &[u16]) -> Option<Running> {
    let directory = tempfile::tempdir().expect("a directory");
    // The port is free again when HAProxy takes it; nothing else here asks for one meanwhile.
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    let address = address.expect("a free port");
    let servers: String = ports
        .iter()
        .enumerate()
        .map(|(number, port)| format!("    server s{number} 127.0.0.1:{port} {options}\n"))
        .collect();
    let text = format!(
        "global\n    nbthread 1\ndefaults\n    mode http\n    timeout client 60s\n    timeout server 5s\n    timeout connect 250ms\n    \
         timeout queue 5s\nfrontend web\n    bind {address}\n    default_backend upstream\nbackend upstream\n{lines}{servers}"
    );
    let path = directory.path().join("haproxy.cfg");
    std::fs::write(&path, text).expect("the configuration is written");
    let child = Command::new("haproxy").arg("-f").arg(&path).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(child) = child else {
        eprintln!("{name}: haproxy is missing");
        return None;
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "{name} does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(Running { address, _process: Process::HaProxy { child, _directory: directory } })
}
