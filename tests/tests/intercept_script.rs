//! The shipped `deploy/interception/intercept`, for the connections of a workload: IPv4 and IPv6, HTTP and TCP, servers
//! that speak first, destinations where nobody listens. See `interop/interception.py`; connections that arrive from
//! elsewhere are in `interception.rs`.

use std::time::Duration;

use outrigger_tests::{programs, proxy};

#[tokio::test]
async fn redirected_connections_reach_where_they_wanted_to_go() {
    let script = programs::interop("interception.py");
    let (script, proxy) = (script.to_string_lossy(), proxy::program());
    // Root needs no user namespace, which many systems forbid to others.
    let id = programs::run("id", &["-u"], &[], Duration::from_secs(60)).await;
    let namespaces = if id.trim() == "0" { "-n" } else { "-rn" };
    let arguments = [namespaces, "python3", &script, &proxy.to_string_lossy()];
    let report = programs::run("unshare", &arguments, &[], Duration::from_secs(600)).await;
    assert!(report.ends_with("ok\n"), "{report}");
}
