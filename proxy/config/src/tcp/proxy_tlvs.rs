//! TLVs that a TCP proxy adds to PROXY protocol headers towards endpoints (`TcpProxy.proxy_protocol_tlvs`).
//!
//! Owns which there are, and what becomes of those that came with the connection. Never writes a header.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;

use crate::context::Context;
use crate::format::Format;
use crate::http::filters::format_string;
use crate::rejection::{FieldPath, Parsed};
use crate::tls::tlv_type;
use crate::wire;

/// What is added. Only types that the transport of a cluster passes through leave.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyTlvs {
    /// Those with a value, in order: type and value.
    pub fixed: Vec<(u8, Arc<[u8]>)>,
    /// Those whose value is made for each connection; they follow.
    pub made: Vec<MadeTlv>,
    /// What becomes of those that came.
    pub policy: TlvMergePolicy,
}

/// A TLV whose value is made for each connection.
#[derive(Clone, Debug, PartialEq)]
pub struct MadeTlv {
    /// Its type.
    pub kind: u8,
    /// Its value.
    pub value: Format,
    /// What is absent is written as nothing instead of as `-`.
    pub omit_empty_values: bool,
}

/// Source: `ProxyProtocolTlvMergePolicy`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlvMergePolicy {
    /// A connection that came with a header keeps what was in it, and gets nothing more.
    AddIfAbsent,
    /// Those that came stay where none of their type is added.
    OverwriteByType,
    /// Those that came stay, and come first.
    Append,
}

impl ProxyTlvs {
    /// Reads the list at `at`; `None` if it is empty.
    pub(super) fn parse(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: Vec<core::TlvEntry>,
        policy: i32,
    ) -> Parsed<Option<Box<Self>>> {
        let list = at.field("proxy_protocol_tlvs");
        use tcp::ProxyProtocolTlvMergePolicy as Wire;
        let policy = match Wire::try_from(policy) {
            Ok(Wire::AddIfAbsent) => TlvMergePolicy::AddIfAbsent,
            Ok(Wire::OverwriteByTypeIfExistsOrAdd) => TlvMergePolicy::OverwriteByType,
            Ok(Wire::AppendIfExistsOrAdd) => TlvMergePolicy::Append,
            Err(_) => return Err(wire::unknown_enum(&at.field("proxy_protocol_tlv_merge_policy"), policy)),
        };
        let (mut fixed, mut made) = (Vec::new(), Vec::new());
        for (index, core::TlvEntry { r#type, value, format_string: format }) in wire.into_iter().enumerate() {
            let at = list.item(index);
            let kind = tlv_type(&at.field("type"), r#type)?;
            match format {
                Some(_) if !value.is_empty() => {
                    return Err(at.field("value").reject("must not be set together with format_string"));
                }
                Some(wire) => {
                    let (value, omit_empty_values) = format_string(context, &at.field("format_string"), wire)?;
                    made.push(MadeTlv { kind, value, omit_empty_values });
                }
                None if value.is_empty() => return Err(at.reject("needs one of value, format_string")),
                None => fixed.push((kind, Arc::from(value))),
            }
        }
        let some = !fixed.is_empty() || !made.is_empty();
        Ok(some.then(|| Box::new(Self { fixed, made, policy })))
    }
}
