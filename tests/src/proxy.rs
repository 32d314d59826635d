//! The proxy under test: a process with its own directory, started from a bootstrap and killed with the test.
//!
//! Owns finding the binary, its files, log and admin port. Never speaks to listeners (see `h1`, `h2c`, `tcp`).

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use serde_json::Value;
use tokio::process::{Child, Command};

use crate::{Response, eventually, h1, within};

/// How to start a proxy; the default is one worker and a bootstrap file.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Program to run.
    pub program: PathBuf,
    /// Worker threads.
    pub concurrency: usize,
    /// Arguments after those of the harness.
    pub arguments: Vec<String>,
    /// Whether to wait until it is ready.
    pub await_ready: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { program: program(), concurrency: 1, arguments: Vec::new(), await_ready: true }
    }
}

/// The proxy under test: `OUTRIGGER_BIN`, else `outrigger` beside this test's own `deps` directory.
///
/// # Panics
/// If it was not built.
pub fn program() -> PathBuf {
    if let Some(named) = std::env::var_os("OUTRIGGER_BIN") {
        return PathBuf::from(named);
    }
    let test = std::env::current_exe().expect("a running program has a path");
    // target/debug/deps/<test> -> target/debug/outrigger
    let built = test.ancestors().nth(2).map(|directory| directory.join("outrigger"));
    match built {
        Some(path) if path.is_file() => path,
        other => panic!("no proxy to test at {other:?}: run `cargo build -p outrigger` first, or set OUTRIGGER_BIN"),
    }
}

/// Envoy, for comparisons and as a peer: `ENVOY_BIN`, else `envoy` on the PATH.
pub fn envoy() -> PathBuf {
    std::env::var_os("ENVOY_BIN").map_or_else(|| PathBuf::from("envoy"), PathBuf::from)
}

/// Whether the proxy under test is Envoy itself, with which scenarios are checked.
pub fn tests_envoy() -> bool {
    program().file_name().is_some_and(|name| name.to_string_lossy().contains("envoy"))
}

/// A running proxy; its log is printed if the test panics, and it is killed when dropped.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    directory: tempfile::TempDir,
    admin: SocketAddr,
}

impl Proxy {
    /// Starts the proxy under test and waits until it is ready.
    ///
    /// `$dir` in the bootstrap stands for the directory of the proxy; an `admin` section is added if there is none.
    pub async fn start(bootstrap: &str) -> Self {
        Self::start_with(bootstrap, Settings::default()).await
    }

    /// The same with other settings.
    pub async fn start_with(bootstrap: &str, settings: Settings) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the proxy");
        Self::start_in(directory, bootstrap, settings).await
    }

    /// The same in a directory that holds files already.
    pub async fn start_in(directory: tempfile::TempDir, bootstrap: &str, settings: Settings) -> Self {
        let bootstrap = complete(bootstrap, directory.path());
        std::fs::write(directory.path().join("bootstrap.yaml"), &bootstrap).expect("the bootstrap is written");
        let child = spawn(directory.path(), &settings);
        let mut proxy = Self { child, directory, admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)) };
        proxy.admin = proxy.wait_for_admin().await;
        if settings.await_ready {
            proxy.wait_ready().await;
        }
        proxy
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id().expect("the proxy runs")
    }

    /// Address of the admin port.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Path of a file in the directory of the proxy.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// Waits until `/ready` says so.
    pub async fn wait_ready(&self) {
        eventually("the proxy is ready", async || match self.try_admin("GET", "/ready").await {
            Ok(response) if response.status == 200 => Ok(()),
            Ok(response) => Err(response.text()),
            Err(error) => Err(error),
        })
        .await;
    }

    /// An admin page.
    pub async fn admin(&self, path: &str) -> Response {
        match self.try_admin("GET", path).await {
            Ok(response) => response,
            Err(error) => panic!("admin page {path}: {error}"),
        }
    }

    /// POSTs to an admin path.
    pub async fn admin_post(&self, path: &str) -> Response {
        match self.try_admin("POST", path).await {
            Ok(response) => response,
            Err(error) => panic!("admin path {path}: {error}"),
        }
    }

    /// The same for one that may be gone.
    ///
    /// # Errors
    /// What kept it from answering.
    pub async fn try_admin(&self, method: &str, path: &str) -> Result<Response, String> {
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let mut client = h1::Client::try_connect(self.admin).await.map_err(|error| error.to_string())?;
        client.send(&request).await;
        client.try_response(method).await
    }

    /// The listeners that accept, with their addresses.
    pub async fn listeners(&self) -> Vec<(String, SocketAddr)> {
        let page = self.admin("/listeners?format=json").await.json();
        let found = page["listener_statuses"].as_array().cloned().unwrap_or_default();
        found
            .iter()
            .filter_map(|status| Some((status["name"].as_str()?.to_owned(), socket(&status["local_address"])?)))
            .collect()
    }

    /// The address of a listener, once it accepts.
    pub async fn listener(&self, name: &str) -> SocketAddr {
        eventually("the listener accepts", async || {
            let all = self.listeners().await;
            all.iter()
                .find(|(found, _)| found == name)
                .map(|(_, address)| *address)
                .ok_or(format!("{name} not in {all:?}"))
        })
        .await
    }

    /// Waits until no listener of this name accepts.
    pub async fn listener_gone(&self, name: &str) {
        eventually("the listener is gone", async || {
            let all = self.listeners().await;
            if all.iter().any(|(found, _)| found == name) { Err(format!("{all:?}")) } else { Ok(()) }
        })
        .await;
    }

    /// The value of a counter or gauge; 0 if there is none of this name.
    pub async fn stat(&self, name: &str) -> u64 {
        let page = self.admin("/stats").await.text();
        page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok()).unwrap_or(0)
    }

    /// Waits until a counter or gauge is as wanted.
    pub async fn wait_stat(&self, name: &str, good: impl Fn(u64) -> bool) -> u64 {
        eventually(name, async || {
            let value = self.stat(name).await;
            if good(value) { Ok(value) } else { Err(value.to_string()) }
        })
        .await
    }

    /// Waits until a counter or gauge has this value. An answer may be with its client before all that belongs to it is counted.
    pub async fn stat_is(&self, name: &str, value: u64) {
        self.wait_stat(name, |seen| seen == value).await;
    }

    /// Waits until a file of the proxy's directory has `count` lines, and gives them.
    pub async fn lines(&self, file: &str, count: usize) -> Vec<String> {
        eventually("lines in the file", async || {
            let text = std::fs::read_to_string(self.file(file)).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            if lines.len() >= count && text.ends_with('\n') { Ok(lines) } else { Err(text) }
        })
        .await
    }

    /// Sends a signal such as `TERM`.
    pub async fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.id().to_string()).status().await;
        assert!(status.is_ok_and(|status| status.success()), "kill -{name} {}", self.id());
    }

    /// Waits for its end.
    pub async fn exit(&mut self) -> ExitStatus {
        within("the proxy exits", self.child.wait()).await.expect("a child can be waited for")
    }

    async fn wait_for_admin(&mut self) -> SocketAddr {
        let file = self.file("admin");
        let log = self.file("log");
        let child = &mut self.child;
        eventually("the admin port opens", async || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!(
                    "the proxy ended at its start, {status}:\n{}",
                    std::fs::read_to_string(&log).unwrap_or_default()
                );
            }
            let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
            text.trim().parse().map_err(|error| format!("{text:?}: {error}"))
        })
        .await
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of the proxy ----\n{}\n---- end ----", self.log());
        }
        // `kill_on_drop` does the same; what has ended already is as good.
        drop(self.child.start_kill());
    }
}

/// Runs the proxy under test to its end, as `--mode validate` and `--version` do; gives status, stdout and stderr.
pub async fn run(arguments: &[&str]) -> (ExitStatus, String, String) {
    let run = Command::new(program()).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = within("the program ends", run).await.expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status, text(&output.stdout), text(&output.stderr))
}

fn complete(bootstrap: &str, directory: &Path) -> String {
    let mut text = bootstrap.replace("$dir", &directory.display().to_string());
    if !text.lines().any(|line| line.starts_with("admin:")) {
        text.push_str("\nadmin: { address: { socket_address: { address: 127.0.0.1, port_value: 0 } } }\n");
    }
    text
}

fn spawn(directory: &Path, settings: &Settings) -> Child {
    let log = File::create(directory.join("log")).expect("the log file");
    let level = std::env::var("OUTRIGGER_TEST_LOG").unwrap_or_else(|_| "warning".to_owned());
    Command::new(&settings.program)
        .arg("-c")
        .arg(directory.join("bootstrap.yaml"))
        .arg("--admin-address-path")
        .arg(directory.join("admin"))
        .args(["--disable-hot-restart", "--file-flush-interval-msec", "20", "-l", &level])
        .args(["--concurrency", &settings.concurrency.to_string()])
        .args(&settings.arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("the log file"))
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{} does not start: {error}", settings.program.display()))
}

fn socket(address: &Value) -> Option<SocketAddr> {
    let socket = &address["socket_address"];
    let port = u16::try_from(socket["port_value"].as_u64()?).ok()?;
    Some(SocketAddr::new(socket["address"].as_str()?.parse().ok()?, port))
}
