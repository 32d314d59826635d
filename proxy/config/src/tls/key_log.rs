//! Reader of where the secrets of connections are written (`TlsKeyLog`).
//!
//! Owns which connections are meant. Never opens the file.

use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3 as tls;

use super::KeyLog;
use crate::address_parse::cidr;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

impl KeyLog {
    pub(super) fn read(at: &FieldPath<'_>, wire: tls::TlsKeyLog) -> Parsed<Self> {
        decide!(wire, at, tls::TlsKeyLog as "envoy.extensions.transport_sockets.tls.v3.TlsKeyLog" {
            implemented: path, local_address_range, remote_address_range;
            no_effect: ;
            unsupported: ;
        });
        if path.is_empty() {
            return Err(at.field("path").reject("must not be empty"));
        }
        Ok(KeyLog {
            path: path.into(),
            local: wire::each(&at.field("local_address_range"), local_address_range, cidr)?,
            remote: wire::each(&at.field("remote_address_range"), remote_address_range, cidr)?,
        })
    }
}
