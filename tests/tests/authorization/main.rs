//! Who may connect and who may ask: rules by certificate, address and port, as meshes write them.

mod discovered;
mod http;
mod limits;
mod mesh;
mod verdicts;

use std::net::SocketAddr;

use outrigger_tests::certificates::{self, Authority, Identity};
use outrigger_tests::{Proxy, Settings, config, proxy, within};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// The workloads of a small mesh, with certificates of one authority.
struct Workloads {
    authority: Authority,
    server: Identity,
    web: Identity,
    batch: Identity,
}

impl Workloads {
    fn new() -> Self {
        let authority = Authority::new();
        let issue = |uri: &str, names: &[&str], common_name| authority.issue_workload(uri, names, common_name);
        Self {
            server: issue("spiffe://cluster.local/ns/shop/sa/server", &["server"], "server"),
            web: issue("spiffe://cluster.local/ns/shop/sa/web", &["web.example.com"], "web workload"),
            batch: issue("spiffe://cluster.local/ns/jobs/sa/batch", &[], "batch"),
            authority,
        }
    }

    /// A directory with what a server needs.
    fn directory(&self) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), self.authority.pem()).unwrap();
        self.server.write(directory.path(), "server");
        directory
    }

    async fn start(&self, program: std::path::PathBuf, bootstrap: &str) -> Proxy {
        let settings = Settings { program, ..Settings::default() };
        Proxy::start_in(self.directory(), bootstrap, settings).await
    }

    /// Says hello, and tells whether it was echoed.
    async fn is_echoed(&self, address: SocketAddr, client: Client) -> bool {
        match client {
            Client::Plain => hello(within("connecting", TcpStream::connect(address)).await.unwrap()).await,
            Client::Anonymous => hello(self.connect(address, None).await).await,
            Client::Web => hello(self.connect(address, Some(&self.web)).await).await,
            Client::Batch => hello(self.connect(address, Some(&self.batch)).await).await,
        }
    }

    async fn connect(
        &self,
        address: SocketAddr,
        identity: Option<&Identity>,
    ) -> tokio_rustls::client::TlsStream<TcpStream> {
        certificates::connect(address, "server", self.authority.client(&[], identity)).await.unwrap()
    }
}

/// Who connects.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Client {
    /// Without TLS.
    Plain,
    /// By TLS without a certificate.
    Anonymous,
    /// As `ns/shop/sa/web`.
    Web,
    /// As `ns/jobs/sa/batch`.
    Batch,
}

async fn hello(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> bool {
    if stream.write_all(b"hello").await.is_err() {
        return false;
    }
    let mut answer = [0; 5];
    // An end, or an error where the other side had no time to say so.
    match within("an answer or the end", stream.read(&mut answer)).await {
        Ok(count) if count > 0 => {
            assert_eq!(&answer[..count], b"hello");
            true
        }
        Ok(_) | Err(_) => false,
    }
}

/// A network filter.
fn filter(kind: &str, fields: &str) -> String {
    format!(
        "{{ name: a filter, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.network.{kind}, \
         {fields} }} }}"
    )
}

fn rbac(stat_prefix: &str, fields: &str) -> String {
    filter("rbac.v3.RBAC", &format!("stat_prefix: {stat_prefix}, {fields}"))
}

/// TLS that asks for a client certificate, and may require one.
fn mutual_tls(required: bool) -> String {
    format!(
        ", transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         require_client_certificate: {required}, common_tls_context: {{ tls_certificates: [{{ \
         certificate_chain: {{ filename: '$dir/server.crt' }}, private_key: {{ filename: '$dir/server.key' }} }}], \
         validation_context: {{ trusted_ca: {{ filename: $dir/ca.pem }} }} }} }} }}"
    )
}

/// A chain of these filters and a TCP proxy to `peer` that logs how each connection ended.
fn chain(name: &str, filters: &[String], more: &str) -> String {
    let log = config::access_log_of("log.txt", "%FILTER_CHAIN_NAME% %RESPONSE_FLAGS% %CONNECTION_TERMINATION_DETAILS%");
    let tcp = config::tcp_with(&format!("cluster: peer{log}"));
    let filters: Vec<String> = filters.iter().cloned().chain([tcp]).collect();
    format!("{{ name: {name}, filters: [{}]{more} }}", filters.join(", "))
}

fn envoy() -> std::path::PathBuf {
    proxy::envoy()
}
