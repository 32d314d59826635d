//! TLS with other people's programs: who may connect to whom, and what each side says about it if not.

mod clients;
mod counted;
mod keeping;
mod mesh;
mod others;
mod pki;
mod problems;
mod retiring;
mod rotation;
mod servers;
mod sessions;

use std::path::Path;
use std::process::{Output, Stdio};

use outrigger_tests::config;
use outrigger_tests::within;
use tokio::process::Command;

/// A certificate as a field of `common_tls_context`, by its name in the directory of the proxy.
fn certificate(name: &str) -> String {
    format!(
        "tls_certificates: [{{ certificate_chain: {{ filename: $dir/{name}.crt }}, \
         private_key: {{ filename: $dir/{name}.key }} }}]"
    )
}

/// A transport socket for a listener, as a field of its filter chain.
fn downstream(context: &str, common: &str) -> String {
    transport("DownstreamTlsContext", context, common)
}

/// A transport socket for a cluster, as a field of it.
fn upstream(context: &str, common: &str) -> String {
    transport("UpstreamTlsContext", context, common)
}

fn transport(message: &str, context: &str, common: &str) -> String {
    let comma = if context.is_empty() { "" } else { ", " };
    format!(
        ", transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{message}, \
         {context}{comma}common_tls_context: {{ {common} }} }} }}"
    )
}

/// A connection manager that answers by itself.
fn answers(more: &str) -> String {
    let route = "{ match: { prefix: / }, direct_response: { status: 200, body: { inline_string: secret } } }";
    config::http("tls", &format!("{}{more}", config::routes(route)))
}

/// A directory with all certificates.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    pki::write(directory.path());
    directory
}

/// Arguments with `$dir` replaced.
fn placed(arguments: &[&str], directory: &Path) -> Vec<String> {
    let directory = directory.display().to_string();
    arguments.iter().map(|argument| argument.replace("$dir", &directory)).collect()
}

/// Runs a program to its end, whatever that is.
async fn run(program: &str, arguments: &[String]) -> Output {
    let run = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    within(program, run).await.unwrap_or_else(|error| panic!("this test needs `{program}`: {error}"))
}

fn texts(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
