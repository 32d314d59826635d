//! The command line: serve a directory, or write a generated one.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use control_plane_mock::{Conduct, Generate, MockControlPlane, StartError, TlsPem, types};
use outrigger_api::pb::google::protobuf::Any;
use outrigger_api::{JsonError, JsonStyle, Schema};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(name = "control-plane-mock", about = "A scriptable xDS server for people and tests")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve Envoy-format YAML and JSON files over xDS, again whenever they change
    Serve(Serve),
    /// Write a directory of generated clusters and endpoints
    Generate(GenerateArgs),
}

#[derive(Args)]
struct Serve {
    /// Directory of resources; without it only the control port fills the server
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Address for xDS; port 0 takes any free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Unix socket for xDS, beside the address
    #[arg(long)]
    unix: Option<PathBuf>,
    /// Address of the HTTP control port
    #[arg(long)]
    control: Option<SocketAddr>,
    /// Certificate chain (PEM) to serve xDS over TLS
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key (PEM) of the certificate
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// CA (PEM) that client certificates must come from
    #[arg(long, requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// State-of-the-world updates of endpoints, routes and secrets carry only what changed
    #[arg(long)]
    partial_updates: bool,
    /// Answer a NACK with the same content at once
    #[arg(long)]
    resend_after_nack: bool,
    /// Say on stdout where the server listens, a line each: `xds ADDRESS`, `control ADDRESS` (always done)
    #[arg(long)]
    print_ports: bool,
}

#[derive(Args)]
struct GenerateArgs {
    /// Number of clusters
    #[arg(long)]
    clusters: usize,
    /// Endpoints of each cluster
    #[arg(long)]
    endpoints: usize,
    /// Address that endpoints point to; several are used in turn; without one they are made up
    #[arg(long)]
    backend: Vec<SocketAddr>,
    /// Port of a listener with a route to each cluster; without it there is none
    #[arg(long)]
    listener_port: Option<u16>,
    /// Directory to write to; made if it is not there
    #[arg(long)]
    out: PathBuf,
}

/// Why the program ends with an error.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("generated resource: {0}")]
    Json(#[from] JsonError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(options) => serve(options).await,
        Command::Generate(options) => generate(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("control-plane-mock: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: Serve) -> Result<(), Failure> {
    let Serve {
        dir,
        listen,
        unix,
        control,
        tls_cert,
        tls_key,
        tls_client_ca,
        partial_updates,
        resend_after_nack,
        // Kept so that scripts may say what they rely on.
        print_ports: _,
    } = options;
    let mut builder = MockControlPlane::builder().listen(listen).conduct(Conduct {
        partial_updates,
        resend_after_nack,
        virtual_hosts_by_name: false,
    });
    if let Some(dir) = dir {
        builder = builder.directory(dir);
    }
    if let Some(path) = unix {
        builder = builder.unix(path);
    }
    if let Some(address) = control {
        builder = builder.control(address);
    }
    if let (Some(certificate), Some(key)) = (tls_cert, tls_key) {
        builder = builder.tls(TlsPem {
            certificate: read(&certificate)?,
            key: read(&key)?,
            client_ca: tls_client_ca.as_deref().map(read).transpose()?,
        });
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mock = builder.start().await?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "xds {}", mock.address())?;
    if let Some(path) = mock.unix_path() {
        writeln!(stdout, "unix {}", path.display())?;
    }
    if let Some(address) = mock.control_address() {
        writeln!(stdout, "control {address}")?;
    }
    stdout.flush()?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    mock.stop().await;
    Ok(())
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|source| Failure::File { path: path.to_owned(), source })
}

/// Writes one JSON file for each type: `cds.json`, `eds.json` and so on.
fn generate(options: &GenerateArgs) -> Result<(), Failure> {
    let GenerateArgs { clusters, endpoints, backend, listener_port, out } = options;
    let plan = Generate {
        clusters: *clusters,
        endpoints: *endpoints,
        backends: backend.clone(),
        listener_port: *listener_port,
    };
    let mut files = std::collections::BTreeMap::<String, Vec<Any>>::new();
    for resource in plan.resources() {
        files.entry(types::short_name(&resource.type_url).to_owned()).or_default().push(resource);
    }
    std::fs::create_dir_all(out).map_err(|source| Failure::File { path: out.clone(), source })?;
    let schema = Schema::load();
    for (kind, resources) in files {
        let shown: Result<Vec<Value>, JsonError> =
            resources.iter().map(|any| schema.any_to_json(any, JsonStyle::default())).collect();
        let path = out.join(format!("{kind}.json"));
        // Written aside and renamed: a server may be watching.
        let aside = out.join(format!(".{kind}.json.new"));
        std::fs::write(&aside, format!("{:#}\n", json!({ "resources": shown? })))
            .and_then(|()| std::fs::rename(&aside, &path))
            .map_err(|source| Failure::File { path, source })?;
    }
    Ok(())
}
