//! Where the admin port listens, and whom it waits for.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use outrigger_config::address::Address;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fixture::{Fixture, ask, exchange, exchange_on, message, run};
use crate::accesslog::{AccessLogManager, AccessLogger, FlushOptions};

const READY: &str = "GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[test]
fn a_chosen_port_is_announced() {
    run(async {
        let fixture = Fixture::new();
        let bound = fixture.serve();
        let Address::Ip(address) = bound.address else { panic!() };
        assert_ne!(address.port(), 0);
        assert_eq!(*fixture.server.calls.borrow(), [format!("announce {address}")]);
    });
}

#[test]
fn a_unix_socket_has_its_mode_and_replaces_an_old_one() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let address = Address::Pipe { path: path.clone(), mode: 0o600 };
        let fixture = Fixture::new();
        fixture.serve_on(address.clone()).task.abort();
        let bound = fixture.serve_on(address.clone());
        assert_eq!(bound.address, address);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let answer = exchange_on(tokio::net::UnixStream::connect(&path).await.unwrap(), READY).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "LIVE\n"));
    });
}

#[test]
fn an_abstract_socket_works_too() {
    run(async {
        let name = format!("outrigger-admin-test-{}", std::process::id());
        let fixture = Fixture::new();
        let _bound = fixture.serve_on(Address::Pipe { path: format!("@{name}").into(), mode: 0 });
        let address = outrigger_sys::unix::unix_address(&format!("@{name}")).unwrap();
        let stream = std::os::unix::net::UnixStream::connect_addr(&address).unwrap();
        stream.set_nonblocking(true).unwrap();
        let answer = exchange_on(tokio::net::UnixStream::from_std(stream).unwrap(), READY).await;
        assert_eq!(answer.status, 200);
    });
}

#[test]
fn an_address_in_use_is_an_error_that_names_it() {
    run(async {
        let fixture = Fixture::new();
        let bound = fixture.serve();
        let config = outrigger_config::bootstrap::Admin {
            address: bound.address.clone(),
            socket_options: Vec::new(),
            access_logs: Vec::new(),
        };
        let error = super::super::serve(&config, std::rc::Rc::clone(&fixture.context)).unwrap_err();
        assert_eq!(error.to_string(), format!("admin: cannot listen on {}", bound.address));
    });
}

#[test]
fn a_connection_serves_several_requests_and_old_clients_are_served_too() {
    run(async {
        let bound = Fixture::new().serve();
        let Address::Ip(address) = bound.address else { panic!() };
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        for _ in 0..3 {
            stream.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut seen = String::new();
            while !seen.ends_with("0\r\n\r\n") {
                let mut buffer = [0; 1024];
                let count = stream.read(&mut buffer).await.unwrap();
                assert_ne!(count, 0);
                seen.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
            }
            assert!(seen.contains("LIVE\n"));
        }
        let old = exchange(&bound, "GET /ready HTTP/1.0\r\n\r\n").await;
        assert_eq!((old.status, old.body.as_str()), (200, "LIVE\n"));
        let head = exchange(&bound, "HEAD /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert_eq!(head.status, 200);
    });
}

#[test]
fn a_slow_client_keeps_nobody_waiting() {
    run(async {
        let bound = Fixture::new().serve();
        let Address::Ip(address) = bound.address else { panic!() };
        let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
        slow.write_all(b"POST /runtime_modify HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\na").await.unwrap();
        let mut deaf = tokio::net::TcpStream::connect(address).await.unwrap();
        deaf.write_all(b"GET /stats HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(60), ask(&bound, "GET", "/ready")).await.unwrap();
        assert_eq!(answer.status, 200);
    });
}

#[test]
fn a_large_body_is_refused() {
    run(async {
        let bound = Fixture::new().serve();
        let text = format!(
            "POST /runtime_modify HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 70000\r\n\r\n{}",
            "a".repeat(70_000)
        );
        assert_eq!(exchange(&bound, &text).await.status, 413);
    });
}

#[test]
fn requests_are_written_to_the_access_log() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access");
        let yaml = format!(
            "{{admin: {{access_log: [{{name: a, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {}, log_format: \
             {{text_format_source: {{inline_string: \"%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %BYTES_SENT% %REQ(:AUTHORITY)%\\n\"}}}}}}}}], \
             address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}}}",
            path.display()
        );
        let context = outrigger_config::Context::new(&crate::bootstrap::System);
        let bootstrap = outrigger_config::bootstrap::Bootstrap::parse(&context, message(&yaml)).unwrap();
        let mut fixture = Fixture::new();
        let options = FlushOptions { min_bytes: 0, interval: Duration::from_secs(1) };
        let manager = AccessLogManager::new(options, &fixture.process.stats);
        let config = bootstrap.admin.unwrap();
        let logger = AccessLogger::open(&config.access_logs[0], &manager).unwrap();
        std::rc::Rc::get_mut(&mut fixture.context).unwrap().access_logs.push(std::sync::Arc::new(logger));
        let bound = fixture.serve();
        ask(&bound, "GET", "/ready?x=1").await;
        manager.flush();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "GET /ready?x=1 200 5 x\n");
    });
}
