//! Reader of the keys of session tickets (`TlsSessionTicketKeys`).
//!
//! Owns their number and size. Never seals a ticket, and never prints a key.

use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3 as tls;

use super::{TICKET_KEY_BYTES, TicketKeys};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

impl TicketKeys {
    pub(super) fn read(context: &Context<'_>, at: &FieldPath<'_>, wire: tls::TlsSessionTicketKeys) -> Parsed<Self> {
        decide!(wire, at, tls::TlsSessionTicketKeys
            as "envoy.extensions.transport_sockets.tls.v3.TlsSessionTicketKeys" {
            implemented: keys;
            no_effect: ;
            unsupported: ;
        });
        let list = at.field("keys");
        if keys.is_empty() {
            return Err(list.reject("must not be empty"));
        }
        let sources = wire::each(&list, keys, |at, wire| {
            let wire::Data { bytes, file } = wire::data_source(context, at, wire)?;
            let length = bytes.len();
            let key: Result<[u8; TICKET_KEY_BYTES], Vec<u8>> = bytes.try_into();
            let key = key.map_err(|_| at.reject(format!("has {length} bytes, expected {TICKET_KEY_BYTES}")))?;
            Ok((key, file))
        })?;
        let (keys, files): (_, Vec<_>) = sources.into_iter().unzip();
        Ok(TicketKeys { keys, files: files.into_iter().flatten().collect() })
    }
}
