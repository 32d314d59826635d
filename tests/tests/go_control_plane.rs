//! The integration program of go-control-plane, a control plane that many others are built on: see
//! `interop/go-control-plane/run`. Needs `go` and, for the first run, the network for its modules.

use std::path::Path;
use std::time::Duration;

use outrigger_tests::{programs, proxy};

/// Building the program for the first time takes about two minutes, each mode about ten seconds.
const LIMIT: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn drives_the_proxy_in_its_four_modes() {
    passes(&proxy::program(), &["ads", "xds", "delta", "delta-ads"], "").await;
}

#[tokio::test]
async fn drives_the_proxy_with_many_listeners_and_clusters() {
    passes(&proxy::program(), &["ads", "delta-ads"], "-http 10 -tcp 10 -clusters 40 -u 5").await;
}

/// Runs the program in these modes, with these further arguments.
async fn passes(proxy: &Path, modes: &[&str], more: &str) {
    // A missing one is named here, before anything else fails for the lack of it.
    programs::run("go", &["version"], &[], Duration::from_secs(60)).await;
    let script = programs::interop("go-control-plane/run");
    let proxy = proxy.to_string_lossy();
    let arguments: Vec<&str> = std::iter::once(&*proxy).chain(modes.iter().copied()).collect();
    let report = programs::run(&script.to_string_lossy(), &arguments, &[("GCP_ARGUMENTS", more)], LIMIT).await;
    for mode in modes {
        assert!(report.contains(&format!("{mode} passed: ")), "{mode}: {report}");
    }
}
