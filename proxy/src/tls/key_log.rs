//! Secrets of connections, written down so that captured traffic can be read (`CommonTlsContext.key_log`).
//!
//! Owns the file, in the format of NSS. It is for debugging: lines are written at once, by the thread that does the
//! handshake. Never decides about a connection without asking for both of its ends.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;

use ipnet::IpNet;
use outrigger_config::tls;

use super::error::TlsError;
use super::intern::hex;

/// The ends of a connection, as far as they have addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ends {
    /// Ours.
    pub local: Option<IpAddr>,
    /// The peer's.
    pub remote: Option<IpAddr>,
}

/// Writes secrets of some connections.
pub(super) struct KeyLog {
    file: Arc<Lines>,
    local: Vec<IpNet>,
    remote: Vec<IpNet>,
}

struct Lines(File);

impl KeyLog {
    pub(super) fn open(config: &tls::KeyLog) -> Result<Self, TlsError> {
        let tls::KeyLog { path, local, remote } = config;
        // Whoever reads the file reads the traffic.
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        let file = file.map_err(|error| TlsError::KeyLog { path: path.display().to_string(), error })?;
        tracing::warn!(path = %path.display(), "secrets of TLS connections are written to a file");
        Ok(Self { file: Arc::new(Lines(file)), local: local.clone(), remote: remote.clone() })
    }

    /// Where the secrets of a connection go, if they are to be written.
    pub(super) fn of(&self, ends: Ends) -> Option<Arc<dyn rustls::KeyLog>> {
        let within = |ranges: &[IpNet], address: Option<IpAddr>| {
            ranges.is_empty() || address.is_some_and(|address| ranges.iter().any(|range| range.contains(&address)))
        };
        let meant = within(&self.local, ends.local) && within(&self.remote, ends.remote);
        meant.then(|| Arc::clone(&self.file) as Arc<dyn rustls::KeyLog>)
    }
}

impl rustls::KeyLog for Lines {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let line = format!("{label} {} {}\n", hex(client_random), hex(secret));
        // One write appends one whole line, so writers do not mix. Without the line the connection is as good.
        let _ = (&self.0).write_all(line.as_bytes());
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_between_the_ranges_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        let log = |local: &[&str], remote: &[&str]| {
            let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
            KeyLog::open(&tls::KeyLog { path: path.clone(), local: nets(local), remote: nets(remote) }).unwrap()
        };
        let ends = |local: &str, remote: &str| Ends { local: local.parse().ok(), remote: remote.parse().ok() };
        let here = ends("10.0.0.1", "192.0.2.1");
        assert!(log(&[], &[]).of(Ends::default()).is_some());
        assert!(log(&["10.0.0.0/8"], &["::/0", "192.0.2.0/24"]).of(here).is_some());
        assert!(log(&["11.0.0.0/8"], &[]).of(here).is_none());
        assert!(log(&[], &["10.0.0.0/8"]).of(here).is_none());
        assert!(log(&["10.0.0.0/8"], &[]).of(Ends::default()).is_none());
        log(&[], &[]).of(here).unwrap().log("CLIENT_RANDOM", &[1, 0xab], &[2]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "CLIENT_RANDOM 01ab 02\n");
        let config = tls::KeyLog { path: "/nowhere/keys".into(), local: Vec::new(), remote: Vec::new() };
        let error = KeyLog::open(&config).err().unwrap().to_string();
        assert_eq!(error, "key_log: cannot open \"/nowhere/keys\": entity not found");
    }
}
