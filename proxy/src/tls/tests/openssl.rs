//! Against OpenSSL's command line. Skipped where it is not installed.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use outrigger_config::tls::{CommonTls, DownstreamTls};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use super::pki::*;
use crate::tls::{ClientTls, ServerTls};

const PATIENCE: Duration = Duration::from_secs(60);

/// Ends with the test, whatever happens.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn openssl() -> Option<Command> {
    let works =
        Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    works.then(|| {
        let mut command = Command::new("openssl");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    })
}

#[tokio::test]
async fn openssl_connects_to_us() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf(&["api.example.com"]);
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (file(&dir, "c.pem", &leaf.pem), file(&dir, "k.pem", &leaf.key_pem));
    let config = DownstreamTls { require_client_certificate: true, ..downstream(alpn(&["h2"])) };
    let server = ServerTls::build(&config, &[leaf.secret()], Some(&ca.validation())).unwrap();
    for (version, expected) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        let Some(mut command) = openssl() else { return };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        command.args(["s_client", "-quiet", version, "-servername", "api.example.com", "-alpn", "spdy,h2", "-connect"]);
        command.arg(address.to_string()).arg("-cert").arg(&certificate).arg("-key").arg(&key);
        let _process = Process(command.spawn().unwrap());
        let (io, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        let (_, info) = timeout(PATIENCE, server.accept(io)).await.unwrap().unwrap();
        assert_eq!(info.version, expected);
        assert_eq!(info.alpn.as_deref(), Some(&b"h2"[..]));
        assert!(info.peer.unwrap().verified);
    }
}

#[tokio::test]
async fn we_connect_to_openssl() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf(&["api.example.com"]);
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (file(&dir, "c.pem", &leaf.pem), file(&dir, "k.pem", &leaf.key_pem));
    let authority = file(&dir, "ca.pem", &ca.pem);
    let common = CommonTls { alpn: vec!["h2".to_owned()], ..common() };
    let client = ClientTls::build(&upstream(common), &[leaf.secret()], Some(&ca.validation())).unwrap();
    for (version, expected) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        let Some(mut command) = openssl() else { return };
        // openssl itself does not tell which port it took. It can listen on one that is held like this, and nobody else is
        // given it.
        let held = TcpSocket::new_v4().unwrap();
        held.bind(([127, 0, 0, 1], 0).into()).unwrap();
        held.set_reuseaddr(true).unwrap();
        let port = held.local_addr().unwrap().port();
        command.args(["s_server", "-quiet", version, "-alpn", "h2", "-Verify", "1", "-verify_return_error", "-accept"]);
        command.arg(port.to_string()).arg("-cert").arg(&certificate).arg("-key").arg(&key);
        command.arg("-CAfile").arg(&authority);
        let _process = Process(command.spawn().unwrap());
        let connected = timeout(PATIENCE, async {
            loop {
                match TcpStream::connect(("127.0.0.1", port)).await {
                    Ok(io) => return io,
                    Err(_) => sleep(Duration::from_millis(20)).await,
                }
            }
        });
        let (_, info) = timeout(PATIENCE, client.connect(connected.await.unwrap(), None, None)).await.unwrap().unwrap();
        assert_eq!(info.version, expected);
        assert_eq!(info.alpn.as_deref(), Some(&b"h2"[..]));
        assert!(info.peer.unwrap().verified);
    }
}
