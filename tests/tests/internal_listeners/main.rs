//! Listeners inside the process, as meshes use them for tunnels, and as any cluster can lead to one. The same
//! configuration and connections for Envoy and for the proxy under test.

mod hbone;
mod inside;
mod updates;

use std::path::PathBuf;

use outrigger_tests::config::{access_log_of, bootstrap};
use outrigger_tests::{Proxy, Settings};

/// What the bootstrap says of listeners inside the process.
const EXTENSION: &str = "bootstrap_extensions: [{ name: envoy.bootstrap.internal_listener, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener, buffer_size_kb: 64 } }]\n";

const ORIGINAL_DST: &str = ", listener_filters: [{ name: od, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst } }]";

async fn start_in(program: PathBuf, directory: tempfile::TempDir, listeners: &[String], clusters: &[String]) -> Proxy {
    let text = format!("{EXTENSION}{}", bootstrap(listeners, clusters));
    Proxy::start_in(directory, &text, Settings { program, ..Settings::default() }).await
}

async fn start(program: PathBuf, listeners: &[String], clusters: &[String]) -> Proxy {
    start_in(program, tempfile::tempdir().expect("a directory"), listeners, clusters).await
}

/// A listener inside the process with these filter chains and further fields (`, name: value`).
fn internal(name: &str, chains: &[String], more: &str) -> String {
    format!("{{ name: {name}, internal_listener: {{}}, filter_chains: [{}]{more} }}", chains.join(", "))
}

/// A cluster whose endpoint is a listener inside the process: further fields of the endpoint and of the cluster
/// (`, name: value`).
fn leading_to(name: &str, listener: &str, endpoint_id: &str, endpoint: &str, more: &str) -> String {
    format!(
        "{{ name: {name}, type: STATIC, connect_timeout: 5s, load_assignment: {{ cluster_name: {name}, endpoints: [{{ \
         lb_endpoints: [{{ endpoint: {{ address: {{ envoy_internal_address: {{ server_listener_name: {listener}, \
         endpoint_id: '{endpoint_id}' }} }} }}{endpoint} }}] }}] }}{more} }}"
    )
}

/// The transport that takes metadata along, as a field of a cluster.
fn passing(metadata: &str, inner: &str) -> String {
    format!(
        ", transport_socket: {{ name: envoy.transport_sockets.internal_upstream, typed_config: {{ '@type': \
         type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport, \
         passthrough_metadata: [{metadata}], transport_socket: {inner} }} }}"
    )
}

const RAW: &str = "{ name: raw_buffer, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer } }";

/// An object of the filter state.
fn object(key: &str, factory: &str, sharing: &str, text: &str) -> String {
    format!(
        "{{ object_key: {key}, factory_key: {factory}, shared_with_upstream: {sharing}, \
         format_string: {{ text_format_source: {{ inline_string: '{text}' }} }} }}"
    )
}

/// The network filter that sets objects.
fn set_objects(objects: &[String]) -> String {
    format!(
        "{{ name: set, typed_config: {{ '@type': \
         type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config, on_new_connection: [{}] }} }}",
        objects.join(", ")
    )
}

/// A chain of several filters.
fn chain_of(filters: &[String]) -> String {
    format!("{{ filters: [{}] }}", filters.join(", "))
}

/// Both sides of a connection, as a log tells them.
const SIDES: &str = "local=%DOWNSTREAM_LOCAL_ADDRESS% remote=%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% \
    direct=%DOWNSTREAM_DIRECT_LOCAL_ADDRESS% from=%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT% \
    id=%DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID%";

/// Where a connection goes, as a log tells it.
const UPSTREAM: &str = "host=%UPSTREAM_HOST% up=%UPSTREAM_REMOTE_ADDRESS% own=%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% \
    id=%UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID% flags=%RESPONSE_FLAGS%";

/// A log of such things in a file of its own.
fn log(name: &str, format: &str) -> String {
    access_log_of(&format!("{name}.log"), format)
}

/// The newest of `count` lines, with `names` in place of what differs between two runs.
async fn line(proxy: &Proxy, name: &str, count: usize, names: &[(String, &str)]) -> String {
    let lines = proxy.lines(&format!("{name}.log"), count).await;
    let line = lines.last().cloned().unwrap_or_default();
    names.iter().fold(format!("{name}: {line}"), |line, (what, name)| line.replace(what, name))
}
