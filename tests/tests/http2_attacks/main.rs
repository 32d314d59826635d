//! Peers that abuse HTTP/2: what they see, what is counted and what is logged, beside Envoy.

mod floods;
mod goaway;
mod heads;
mod liveness;
mod windows;

use std::net::SocketAddr;
use std::path::PathBuf;

use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster_with, http, routes};
use outrigger_tests::{Proxy, Settings, Upstream, proxy};

/// A proxy with the listener `web`, which speaks HTTP/2 to both sides and logs what becomes of requests.
struct Side {
    is_envoy: bool,
    upstream: Upstream,
    proxy: Proxy,
    web: SocketAddr,
}

/// The log of all requests: code, flags and details.
const LOG: &str = "web.log";

fn upstream_http2(fields: &str) -> String {
    config::HTTP2.replace("http2_protocol_options: {}", &format!("http2_protocol_options: {{ {fields} }}"))
}

impl Side {
    /// Both proxies, ours first, with fields of the connection manager, of its HTTP/2 options and of the cluster's.
    async fn both(manager: &str, downstream: &str, upstream: &str) -> [Self; 2] {
        let ours = Self::start(proxy::program(), manager, downstream, upstream).await;
        [ours, Self::start(proxy::envoy(), manager, downstream, upstream).await]
    }

    async fn start(program: PathBuf, manager: &str, downstream: &str, http2: &str) -> Self {
        let is_envoy = program.file_name().is_some_and(|name| name.to_string_lossy().contains("envoy"));
        let upstream = Upstream::start("up").await;
        let cluster = cluster_with("up", &[upstream.port()], &upstream_http2(http2));
        let log = config::access_log_of(LOG, "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%");
        let options = format!(", http2_protocol_options: {{ {downstream} }}");
        let routes = routes(&all_to("up"));
        let listener =
            config::listener("web", &[chain(&http("web", &format!("{routes}{log}{options}{manager}")), "")], "");
        let settings = Settings { program, ..Settings::default() };
        let proxy = Proxy::start_with(&bootstrap(&[listener], &[cluster]), settings).await;
        let web = proxy.listener("web").await;
        Self { is_envoy, upstream, proxy, web }
    }

    /// Waits until requests are with the endpoint and not answered.
    async fn wait_active(&self, count: usize) {
        self.upstream.wait("the endpoint has it", |counts| counts.active == count).await;
    }

    /// Waits until these counters have exactly these values.
    async fn expect(&self, stats: &[(&str, u64)]) {
        for (name, value) in stats {
            self.proxy.wait_stat(name, |found| found == *value).await;
        }
    }

    /// Waits for a line in the log.
    async fn expect_logged(&self, line: &str) {
        outrigger_tests::eventually(line, async || {
            let text = std::fs::read_to_string(self.proxy.file(LOG)).unwrap_or_default();
            if text.lines().any(|found| found == line) { Ok(()) } else { Err(text) }
        })
        .await;
    }

    /// Another client is served as if nothing had been. Envoy answers 503 as long as it ends its own connection to the
    /// endpoint.
    async fn expect_others_are_served(&self) {
        let other = outrigger_tests::h2c::Client::connect(self.web).await;
        if !self.is_envoy {
            return assert_eq!(other.get("/").await.status, 200);
        }
        outrigger_tests::eventually("Envoy serves others", async || match other.get("/").await.status {
            200 => Ok(()),
            status => Err(status.to_string()),
        })
        .await;
    }
}
