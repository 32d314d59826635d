//! The access log of the admin port (`Admin.access_log`).
//!
//! Owns how a request to it becomes an entry. Never writes the log itself.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::rc::Rc;
use std::time::Instant;

use http::request::Parts;
use outrigger_config::address::Address;

use super::Admin;
use crate::accesslog::{Facts, LogType};
use crate::http::message::{RequestHead, Version};
use crate::stream::{ConnectionInfo, StreamInfo};

/// What entries of one connection have in common.
pub(super) struct Access {
    admin: Rc<Admin>,
    connection: ConnectionInfo,
}

impl Access {
    pub(super) fn new(admin: Rc<Admin>, local: Address, remote: Address) -> Self {
        let connection = ConnectionInfo {
            id: admin.context.process.next_connection_id(),
            start: Instant::now(),
            listener: "admin".into(),
            local,
            direct_remote: remote.clone(),
            remote,
            server_name: None,
            application_protocols: Vec::new(),
            filter_chain: "".into(),
            tls: None,
            socket_local: None,
            local_restored: false,
            proxy_tlvs: None,
            outgoing_tlvs: Default::default(),
            tls_fingerprints: None,
            dynamic_metadata: Default::default(),
            filter_state: Default::default(),
            peer_words: Default::default(),
        };
        Self { admin, connection }
    }

    /// Writes the entry of a request that is over.
    pub(super) fn log(&self, head: &Parts, start: Instant, status: u16, bytes_sent: u64) {
        let context = &self.admin.context;
        if context.access_logs.is_empty() {
            return;
        }
        let version = match head.version {
            http::Version::HTTP_10 => Version::Http10,
            http::Version::HTTP_2 => Version::Http2,
            _ => Version::Http11,
        };
        let info = StreamInfo::new(start, Some(version));
        let now = Instant::now();
        info.response_code.set(status);
        info.bytes_sent.set(bytes_sent);
        info.request_end.set(Some(start));
        info.end.set(Some(now));
        info.set_details("admin_filter_response");
        let request = request_head(head, version);
        let mut facts = Facts::new(&info, &self.connection, &context.process.clock, now);
        facts.request = Some(&request);
        facts.log_type = LogType::DownstreamEnd;
        let graph = context.process.graph.load();
        // Each state is keyed at random: enough to sample by.
        let random = RandomState::new().build_hasher().finish();
        for log in &context.access_logs {
            log.log(&facts, random, &*graph.runtime);
        }
    }
}

fn request_head(head: &Parts, version: Version) -> RequestHead {
    let mut request = RequestHead::default();
    request.version = version;
    request.set_method(head.method.as_str().as_bytes());
    request.set_path(head.uri.path_and_query().map_or("/", |target| target.as_str()).as_bytes());
    request.set_scheme(b"http");
    for (name, value) in &head.headers {
        if name == http::header::HOST {
            request.set_authority(value.as_bytes());
        } else {
            request.headers.append(name.as_str().as_bytes(), value.as_bytes());
        }
    }
    request
}
