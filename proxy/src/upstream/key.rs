//! What tells the connections of one endpoint apart: a request may only use one that was made for its like.
//!
//! Owns what a request asks of a connection ([`Fit`]) and what a connection was made with ([`ConnectionKey`]). Most
//! clusters ask for nothing. Never opens or keeps connections.

use std::rc::{Rc, Weak};

use outrigger_config::address::Address;
use outrigger_config::http::filters::AlpnOffer;

use super::proxy_header::Tlv;
use super::worker_host::WorkerHost;
use crate::filter_state::SharedObjects;
use crate::stream::ConnectionInfo;

/// What a request asks of its connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fit<'a> {
    /// What the handshake offers in place of the cluster's own list.
    pub alpn: Option<&'a AlpnOffer>,
    /// The host that the handshake names or asks the certificate for.
    pub name: Option<&'a str>,
    /// The connection says on whose behalf it is.
    pub proxied: Option<&'a Rc<ConnectionInfo>>,
    /// The connection serves this downstream connection alone.
    pub own: Option<&'a Rc<ConnectionInfo>>,
    /// Objects of the filter state go with the connection, and tell it apart.
    pub objects: Option<&'a SharedObjects>,
}

/// What a connection was made with.
#[derive(Clone, Debug, Default)]
pub struct ConnectionKey {
    alpn: Option<AlpnOffer>,
    name: Option<Box<str>>,
    proxied: Option<Proxied>,
    own: Option<Weak<ConnectionInfo>>,
    objects: Option<Vec<(Box<str>, Box<str>)>>,
}

#[derive(Clone, Debug)]
struct Proxied {
    source: Address,
    destination: Address,
    tlvs: Vec<Tlv>,
    downstream: Weak<ConnectionInfo>,
}

impl<'a> Fit<'a> {
    /// What a request to `host` asks for: `name` is its host without port, `downstream` its connection, and `objects` are
    /// those of the filter state that go with connections.
    pub fn of(
        host: &WorkerHost,
        alpn: Option<&'a AlpnOffer>,
        name: &'a str,
        downstream: Option<&'a Rc<ConnectionInfo>>,
        objects: Option<&'a SharedObjects>,
    ) -> Self {
        let config = &host.node.config;
        let tls = host.node.tls.get(host.host.transport).is_some();
        let named = tls && (config.http.auto_sni || config.http.auto_san_validation) && !name.is_empty();
        Self {
            alpn: alpn.filter(|_| tls),
            name: named.then_some(name),
            proxied: downstream.filter(|_| host.proxy_header().is_some()),
            own: downstream.filter(|_| config.pool_per_downstream),
            objects: objects.filter(|objects| objects.has_hashable()),
        }
    }

    /// Any connection will do that asks for nothing either.
    pub fn is_plain(&self) -> bool {
        self.alpn.is_none()
            && self.name.is_none()
            && self.proxied.is_none()
            && self.own.is_none()
            && self.objects.is_none()
    }

    /// The key of a connection that is made for this.
    pub fn key(&self) -> Option<Box<ConnectionKey>> {
        if self.is_plain() {
            return None;
        }
        Some(Box::new(ConnectionKey {
            alpn: self.alpn.cloned(),
            name: self.name.map(Box::from),
            proxied: self.proxied.map(|info| Proxied {
                source: info.remote.clone(),
                destination: info.local.clone(),
                tlvs: info.tlvs().to_vec(),
                downstream: Rc::downgrade(info),
            }),
            own: self.own.map(Rc::downgrade),
            objects: self.objects.and_then(SharedObjects::hashable),
        }))
    }

    /// Whether a connection with this key serves the request.
    pub fn matches(&self, key: Option<&ConnectionKey>) -> bool {
        let Some(key) = key else { return self.is_plain() };
        let alpn = match (&key.alpn, self.alpn) {
            (None, None) => true,
            (Some(own), Some(offer)) => std::sync::Arc::ptr_eq(own, offer) || own == offer,
            (None, Some(_)) | (Some(_), None) => false,
        };
        let proxied = match (&key.proxied, self.proxied) {
            (None, None) => true,
            (Some(own), Some(info)) => {
                own.source == info.remote && own.destination == info.local && own.tlvs == info.tlvs()
            }
            (None, Some(_)) | (Some(_), None) => false,
        };
        let own = match (&key.own, self.own) {
            (None, None) => true,
            (Some(own), Some(info)) => std::ptr::eq(own.as_ptr(), Rc::as_ptr(info)),
            (None, Some(_)) | (Some(_), None) => false,
        };
        let objects = match (&key.objects, self.objects) {
            (None, None) => true,
            (Some(own), Some(objects)) => objects.hashes_as(own),
            (None, Some(_)) | (Some(_), None) => false,
        };
        alpn && key.name.as_deref() == self.name && proxied && own && objects
    }
}

impl ConnectionKey {
    /// Whether the downstream connection is gone that it was made for.
    pub fn is_orphaned(&self) -> bool {
        let gone = |info: &Weak<ConnectionInfo>| info.strong_count() == 0;
        self.own.as_ref().is_some_and(gone) || self.proxied.as_ref().is_some_and(|proxied| gone(&proxied.downstream))
    }
}
