//! The process as launchers see it: arguments, output, exit codes, signals. Runs the built binary.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

/// Much less than the time of a drain, which is ten minutes.
const PATIENCE: Duration = Duration::from_secs(60);

fn outrigger(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.args(arguments).env_remove("OUTRIGGER_EMULATED_VERSION").stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    outrigger(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// A running process; killed at the end of the test, whatever happens.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut child = outrigger(arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    fn ready(arguments: &[&str]) -> Self {
        let running = Self::start(arguments);
        running.until_logged("ready after");
        running
    }

    fn until_logged(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => seen.push(line),
                Err(error) => panic!("{text:?} was not logged ({error}):\n{}", seen.join("\n")),
            }
        }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// The exit code.
    fn ended(&mut self) -> Option<i32> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("still running");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status and body of a request to the admin port that wrote its address to `path`.
fn admin(path: &Path, method: &str, target: &str) -> (u16, String) {
    let address = fs::read_to_string(path).unwrap();
    let mut connection = TcpStream::connect(&address).unwrap();
    write!(connection, "{method} {target} HTTP/1.0\r\nhost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

const ADMIN: &str = "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}\n";

/// A port that a process can listen on, as its socket may share an address (`SO_REUSEADDR`), and that nobody else is given as
/// long as the tests run.
fn free_port() -> u16 {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.set_reuse_address(true).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    std::mem::forget(socket);
    port
}

fn http_listener(port: u16) -> String {
    format!(
        r#"
static_resources:
  listeners:
  - name: web
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          route_config:
            virtual_hosts:
            - {{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200}}}}]}}
          http_filters:
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"#
    )
}

fn tcp_listener(port: u16, upstream: u16) -> String {
    format!(
        r#"
static_resources:
  clusters:
  - name: upstream
    connect_timeout: 1s
    load_assignment:
      cluster_name: upstream
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address:
        {{address: 127.0.0.1, port_value: {upstream}}}}}}}}}]}}]
  listeners:
  - name: tcp
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tcp
          cluster: upstream
"#
    )
}

#[test]
fn the_version_is_on_standard_output() {
    let given = output(&["--version"]);
    assert!(given.status.success());
    assert!(stdout(&given).trim().starts_with("outrigger  version: "), "{}", stdout(&given));
    assert!(stdout(&given).contains("/1.40.0/Clean/RELEASE/"));
    let other = outrigger(&["--version"]).env("OUTRIGGER_EMULATED_VERSION", "1.34.7").output().unwrap();
    assert!(stdout(&other).contains("/1.34.7/"));
}

#[test]
fn mistakes_on_the_command_line_end_with_code_1() {
    let given = output(&["--concurency", "2"]);
    assert_eq!(given.status.code(), Some(1));
    assert!(stderr(&given).starts_with("error: unknown argument \"--concurency\", did you mean --concurrency?"));
    assert!(stdout(&given).is_empty());
}

#[test]
fn the_cpus_can_be_seen() {
    let given = output(&["--dump-cpus", "--concurrency", "1"]);
    assert!(given.status.success());
    assert!(stdout(&given).contains("1 worker"), "{}", stdout(&given));
}

#[test]
fn a_good_bootstrap_is_ok() {
    let files = Files::new();
    let path = files.write("good.yaml", &http_listener(free_port()));
    let given = output(&["--mode validate", "-c", &path]);
    assert_eq!(given.status.code(), Some(0), "{}", stderr(&given));
    assert_eq!(stdout(&given).trim(), format!("configuration '{path}' OK"));
}

#[test]
fn every_problem_is_told() {
    let files = Files::new();
    let bad = "nodee: 1\nstatic_resources: {clusters: [{name: one, connect_timeout: -1s}]}\n";
    let path = files.write("bad.yaml", bad);
    for mode in ["validate", "serve"] {
        let given = output(&["-c", &path, "--mode", mode, "-l", "off"]);
        assert_eq!(given.status.code(), Some(1));
        let text = stderr(&given);
        assert!(text.starts_with(&format!("error initializing configuration '{path}': 2 problems\n")), "{text}");
        assert!(text.contains(&format!("{path}: nodee: ")), "{text}");
        assert!(text.contains("static_resources.clusters[0].connect_timeout") || text.contains("connect_timeout: "));
    }
    let missing = output(&["-c", "/nonexistent.yaml", "--mode", "validate"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("error initializing configuration '/nonexistent.yaml': cannot read"));
    assert_eq!(stderr(&missing).matches("cannot read").count(), 1, "told once");
    assert_eq!(output(&[]).status.code(), Some(1));
}

#[test]
fn problems_behind_the_fields_are_found_too() {
    let files = Files::new();
    let text = http_listener(free_port()).replace("direct_response: {status: 200}", "route: {cluster: nobody}");
    let path = files.write("dangling.yaml", &text);
    let given = output(&["-c", &path, "--mode", "validate", "-l", "off"]);
    assert_eq!(given.status.code(), Some(1), "{}", stdout(&given));
    assert!(stderr(&given).contains("nobody"), "{}", stderr(&given));
}

#[test]
fn init_only_ends_by_itself() {
    let files = Files::new();
    let path = files.write("web.yaml", &http_listener(free_port()));
    let given = output(&["-c", &path, "--mode", "init_only", "--concurrency", "1"]);
    assert_eq!(given.status.code(), Some(0), "{}", stderr(&given));
}

#[test]
fn a_fifo_is_enough() {
    let files = Files::new();
    let fifo = files.path("bootstrap.yaml");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let writer = thread::spawn({
        let fifo = fifo.clone();
        move || fs::write(fifo, http_listener(free_port())).unwrap()
    });
    let mut running = Running::ready(&["--config-path", fifo.to_str().unwrap(), "--concurrency", "1"]);
    writer.join().unwrap();
    running.signal("INT");
    assert_eq!(running.ended(), Some(0));
}

#[test]
fn an_idle_connection_does_not_hold_up_the_end() {
    let files = Files::new();
    let port = free_port();
    let path = files.write("web.yaml", &http_listener(port));
    let mut running = Running::ready(&["-c", &path, "--concurrency", "1"]);
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let mut answer = [0; 1024];
    let length = client.read(&mut answer).unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
    running.signal("TERM");
    assert_eq!(running.ended(), Some(0));
    assert_eq!(client.read(&mut answer).unwrap(), 0, "closed");
}

#[test]
fn a_second_signal_does_not_wait_for_connections() {
    let files = Files::new();
    let (port, upstream) = (free_port(), TcpListener::bind("127.0.0.1:0").unwrap());
    let path = files.write("tcp.yaml", &tcp_listener(port, upstream.local_addr().unwrap().port()));
    let mut running = Running::ready(&["-c", &path, "--concurrency", "1"]);
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"x").unwrap();
    let (mut server, _) = upstream.accept().unwrap();
    server.read_exact(&mut [0]).unwrap();
    running.signal("TERM");
    running.until_logged("closed listeners");
    client.write_all(b"y").unwrap();
    server.read_exact(&mut [0]).unwrap();
    running.signal("TERM");
    assert_eq!(running.ended(), Some(0));
}

#[test]
fn the_admin_port_knows_the_process() {
    let files = Files::new();
    let path = files.write("admin.yaml", &format!("{ADMIN}{}", http_listener(free_port())));
    let address = files.path("address");
    let arguments = ["-c", &path, "--admin-address-path", address.to_str().unwrap(), "--concurrency", "1"];
    let mut running = Running::ready(&arguments);
    assert_eq!(admin(&address, "GET", "/ready"), (200, "LIVE\n".to_owned()));
    let (_, info) = admin(&address, "GET", "/server_info");
    assert!(info.contains("/1.40.0/Clean/RELEASE/") && info.contains("\"concurrency\": 1"), "{info}");
    let (_, stats) = admin(&address, "GET", "/stats?filter=^server.&usedonly");
    assert!(stats.contains("server.state: 0\n") && stats.contains("server.live: 1\n"), "{stats}");
    assert!(stats.contains("server.concurrency: 1\n"), "{stats}");
    let (_, levels) = admin(&address, "POST", "/logging?upstream=trace");
    assert!(levels.contains("  upstream: trace\n") && levels.contains("  http: info\n"), "{levels}");
    assert_eq!(admin(&address, "POST", "/quitquitquit").0, 200);
    assert_eq!(running.ended(), Some(0));
}

#[test]
fn a_draining_process_is_not_ready() {
    let files = Files::new();
    let (port, upstream) = (free_port(), TcpListener::bind("127.0.0.1:0").unwrap());
    let listener = tcp_listener(port, upstream.local_addr().unwrap().port());
    let path = files.write("tcp.yaml", &format!("{ADMIN}{listener}"));
    let address = files.path("address");
    let arguments = ["-c", &path, "--admin-address-path", address.to_str().unwrap(), "--concurrency", "1"];
    let mut running = Running::ready(&arguments);
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (server, _) = upstream.accept().unwrap();
    running.signal("TERM");
    running.until_logged("closed listeners");
    assert_eq!(admin(&address, "GET", "/ready"), (503, "DRAINING\n".to_owned()));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "new connections are not taken");
    drop((client, server));
    assert_eq!(running.ended(), Some(0));
}

#[test]
fn other_signals_do_not_end_it() {
    let files = Files::new();
    let path = files.write("web.yaml", &http_listener(free_port()));
    let log = files.path("log");
    let arguments = ["-c", &path, "--concurrency", "1", "--log-path", log.to_str().unwrap()];
    let mut running = Running::start(&arguments);
    until(&log, "ready after");
    running.signal("HUP");
    until(&log, "SIGHUP");
    fs::rename(&log, files.path("log.1")).unwrap();
    running.signal("USR1");
    until(&files.path("log.1"), "opening logs again");
    running.signal("TERM");
    assert_eq!(running.ended(), Some(0));
    until(&log, "exiting");
}

fn until(path: &Path, text: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !fs::read_to_string(path).is_ok_and(|content| content.contains(text)) {
        assert!(Instant::now() < deadline, "{text:?} is not in {}", path.display());
        thread::sleep(Duration::from_millis(5));
    }
}
