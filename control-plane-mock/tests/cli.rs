//! The binary as people run it: generate a directory, serve it, change it, end it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_control-plane-mock");

struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        // It has ended by itself in a test that passes.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn state(control: &str) -> String {
    let mut socket = TcpStream::connect(control).unwrap();
    socket.write_all(b"GET /state HTTP/1.1\r\nhost: control\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_generated_directory_is_served_until_sigterm() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("generated");
    let generate = |clusters: &str| {
        let made = Command::new(BINARY)
            .args(["generate", "--clusters", clusters, "--endpoints", "2", "--listener-port", "10000", "--out"])
            .arg(&out)
            .status()
            .unwrap();
        assert!(made.success());
    };
    generate("3");
    let mut child = Command::new(BINARY)
        .args(["serve", "--control", "127.0.0.1:0", "--print-ports", "--dir"])
        .arg(&out)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut served = Served(child);
    let mut address = |what: &str| {
        let line = lines.next().unwrap().unwrap();
        line.strip_prefix(what).unwrap_or_else(|| panic!("{line:?} is not {what}")).to_owned()
    };
    TcpStream::connect(address("xds ")).unwrap();
    let control = address("control ");
    let before = state(&control);
    assert!(before.contains("cluster-2") && before.contains("RouteConfiguration"), "{before}");

    generate("5");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !state(&control).contains("cluster-4") {
        assert!(Instant::now() < deadline, "the new files were not taken up");
        std::thread::sleep(Duration::from_millis(20));
    }

    assert!(Command::new("kill").arg(served.0.id().to_string()).status().unwrap().success());
    assert!(served.0.wait().unwrap().success());
}

#[test]
fn a_bad_directory_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("bad.yaml"), "resources: [").unwrap();
    let ended = Command::new(BINARY).args(["serve", "--dir"]).arg(directory.path()).output().unwrap();
    assert!(!ended.status.success());
    let reason = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(reason.contains("bad.yaml"), "{reason}");
}
