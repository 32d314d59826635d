//! Prometheus itself, which scrapes proxies and answers what dashboards ask it.
//!
//! Owns the process, and how it is asked. Never knows what is worth asking.

use std::net::SocketAddr;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::{eventually, h1, within};

/// A running Prometheus; it ends when dropped.
#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    _directory: tempfile::TempDir,
    _process: Child,
}

impl Prometheus {
    /// One that scrapes the admin ports `targets` each second, with further fields of the configuration (`, name: value`).
    ///
    /// # Panics
    /// If there is no `prometheus` on the PATH.
    pub async fn start(targets: &[SocketAddr], parameters: &str) -> Self {
        let targets: Vec<String> = targets.iter().map(|target| format!("'{target}'")).collect();
        let directory = tempfile::tempdir().expect("a directory");
        let config = directory.path().join("prometheus.yaml");
        let text = format!(
            "global: {{ scrape_interval: 1s }}\nscrape_configs: [{{ job_name: proxy, metrics_path: /stats/prometheus{parameters}, \
             static_configs: [{{ targets: [{}] }}] }}]\n",
            targets.join(", ")
        );
        std::fs::write(&config, text).expect("a file");
        let mut process = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .args(["--web.listen-address=127.0.0.1:0", "--enable-feature=exemplar-storage"])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("this test needs `prometheus`: {error}"));
        let mut lines = BufReader::new(process.stderr.take().expect("a pipe")).lines();
        let address = within("Prometheus listens", async {
            while let Some(line) = lines.next_line().await.expect("text") {
                if line.contains("Listening on")
                    && let Some((_, address)) = line.split_once("address=")
                {
                    return address.trim_matches('"').parse().expect("an address");
                }
            }
            panic!("Prometheus has ended")
        })
        .await;
        // Nobody waits for it to read its log.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { address, _directory: directory, _process: process }
    }

    /// What the API `path` (which ends with `?` or `&`) answers to a query.
    ///
    /// # Errors
    /// If it cannot be reached, or answers with something else than JSON.
    pub async fn ask(&self, path: &str, query: &str) -> Result<Value, String> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let mut client = h1::Client::try_connect(self.address).await.map_err(|error| error.to_string())?;
        let response = client.get(&format!("/api/v1/{path}query={encoded}")).await;
        serde_json::from_slice(&response.body).map_err(|error| format!("{error}: {}", response.text()))
    }

    /// The values of a query, once there are some and all of them are numbers. What makes them is done `meanwhile`.
    pub async fn values(&self, query: &str, mut meanwhile: impl AsyncFnMut()) -> Vec<f64> {
        eventually(query, async || {
            meanwhile().await;
            self.try_values(query).await
        })
        .await
    }

    /// The values of a query.
    ///
    /// # Errors
    /// The answer, if there are none, or one of them is no number.
    pub async fn try_values(&self, query: &str) -> Result<Vec<f64>, String> {
        let answer = self.ask("query?", query).await?;
        let series = answer["data"]["result"].as_array().ok_or_else(|| answer.to_string())?;
        let values: Vec<f64> = series.iter().filter_map(|one| one["value"][1].as_str()?.parse().ok()).collect();
        let good = !values.is_empty() && values.iter().all(|value| value.is_finite());
        if good { Ok(values) } else { Err(answer.to_string()) }
    }

    /// Asks all queries until each of them has had values that are good. What makes them is done `meanwhile`.
    ///
    /// # Panics
    /// If no further one is answered for a long time; the message names those that were not, with their last answers.
    pub async fn answers<S: AsRef<str>>(
        &self,
        queries: &[S],
        good: impl Fn(&str, &[f64]) -> bool,
        mut meanwhile: impl AsyncFnMut(),
    ) {
        let mut open: Vec<&str> = queries.iter().map(AsRef::as_ref).collect();
        while !open.is_empty() {
            open = eventually("a further answer", async || {
                meanwhile().await;
                let (mut later, mut report) = (Vec::new(), String::new());
                for query in &open {
                    let wrong = match self.try_values(query).await {
                        Ok(values) if good(query, &values) => continue,
                        Ok(values) => format!("{values:?}"),
                        Err(answer) => answer,
                    };
                    report.push_str(&format!("{query}\n  {wrong}\n"));
                    later.push(*query);
                }
                if later.len() < open.len() { Ok(later) } else { Err(report) }
            })
            .await;
        }
    }
}
