//! Checks by a connection, and by bytes on it.
//!
//! Owns the comparison with what is expected. Never opens connections itself.

use std::io;

use outrigger_config::cluster::{HealthCheck, TcpProbe};
use outrigger_policy::health::contains_in_order;
use outrigger_xds::connector::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connection::{self, Offer, Opened};
use super::{Checked, Ended, Kept, ProbeError, Target};
use crate::upstream::proxy_header;

pub(super) async fn check(target: &Target, settings: &HealthCheck, probe: &TcpProbe, kept: Kept) -> Ended {
    if probe.receive.is_empty() {
        // Only a new connection shows that there can be one.
        let mut connection = connect(target, settings, probe).await?;
        connection.write_all(&probe.send).await?;
        connection.flush().await?;
        return Ok((Checked::success(), Kept::Nothing));
    }
    if let Kept::Plain(mut connection) = kept
        && exchange(&mut connection, probe).await.is_ok()
    {
        return Ok((Checked::success(), Kept::Plain(connection)));
    }
    let mut connection = connect(target, settings, probe).await?;
    exchange(&mut connection, probe).await?;
    Ok((Checked::success(), Kept::Plain(connection)))
}

async fn connect(target: &Target, settings: &HealthCheck, probe: &TcpProbe) -> Result<Connection, ProbeError> {
    let Opened { mut stream, addresses } = connection::open(target, settings, Offer::Nothing).await?;
    if let Some(version) = probe.proxy_protocol {
        stream.write_all(&proxy_header::own(version, addresses)).await?;
    }
    Ok(stream)
}

/// Sends, and reads until all that is expected has come. Only the time limit ends it if something else comes.
async fn exchange(connection: &mut Connection, probe: &TcpProbe) -> io::Result<()> {
    connection.write_all(&probe.send).await?;
    connection.flush().await?;
    let mut answer = Vec::new();
    while !contains_in_order(&probe.receive, &answer) {
        if answer.len() > MAX_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer does not contain what is expected"));
        }
        if connection.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// An endpoint that talks without end is not what is looked for.
const MAX_ANSWER: usize = 1 << 20;
