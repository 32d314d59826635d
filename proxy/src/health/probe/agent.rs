//! Checks by an agent that speaks the text protocol of HAProxy.
//!
//! Owns the exchange. Never reads the words (see `outrigger-policy`).

use std::io;

use outrigger_config::cluster::{AgentProbe, HealthCheck};
use outrigger_policy::health::{CheckResult, FailureKind, agent_report, line_end};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connection::open_at;
use super::{Checked, Ended, Kept, Target};

pub(super) async fn check(target: &Target, settings: &HealthCheck, probe: &AgentProbe) -> Ended {
    let mut connection = open_at(target, settings, probe.port).await?;
    connection.write_all(probe.send.as_bytes()).await?;
    connection.flush().await?;
    let mut answer = Vec::new();
    // The end of the connection ends the line too.
    while line_end(&answer).is_none() && connection.read_buf(&mut answer).await? > 0 {
        if answer.len() > MAX_LINE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the line of the agent does not end").into());
        }
    }
    let (report, reason) = agent_report(&answer);
    if !reason.is_empty() || report.is_empty() {
        let (cluster, address) = (&target.node.config.name, &target.host.address);
        let line = String::from_utf8_lossy(&answer);
        tracing::debug!(target: "hc", "agent of {address} in cluster {cluster:?}: {:?}", line.trim_end());
    }
    let result = match report.up {
        Some(true) => CheckResult::Success { degraded: false },
        Some(false) => CheckResult::Failure { kind: FailureKind::Active, retriable: false },
        None => CheckResult::Nothing { reached: true },
    };
    Ok((Checked { told: true, agent: Some(report), ..Checked::of(result) }, Kept::Nothing))
}

/// Far beyond what agents have to say.
const MAX_LINE: usize = 4096;
