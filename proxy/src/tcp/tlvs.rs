//! TLVs that a TCP proxy adds to PROXY protocol headers towards endpoints.
//!
//! Owns how they are put together with those that came with the connection. Never writes a header (see
//! `upstream::proxy_header`).

use outrigger_config::tcp::{MadeTlv, ProxyTlvs, TlvMergePolicy};

use crate::stream::ConnectionInfo;
use crate::upstream::proxy_header::Tlv;

/// The TLVs of the PROXY protocol header that a connection came with; `None` if it came with none.
pub(super) fn of_header(connection: &ConnectionInfo) -> Option<&[Tlv]> {
    let came = connection.proxy_tlvs.as_deref().map(Vec::as_slice);
    came.or_else(|| (connection.remote != connection.direct_remote).then_some(&[][..]))
}

/// What a header gets; `None` for what came, and nothing else. `came` is `None` if the connection came without a header, and
/// `make` gives the value of a TLV.
pub(super) fn merged(config: &ProxyTlvs, came: Option<&[Tlv]>, make: impl Fn(&MadeTlv) -> Vec<u8>) -> Option<Vec<Tlv>> {
    if came.is_some() && config.policy == TlvMergePolicy::AddIfAbsent {
        return None;
    }
    let fixed = config.fixed.iter().map(|(kind, value)| (*kind, Box::from(&**value)));
    let made = config.made.iter().map(|tlv| (tlv.kind, make(tlv).into_boxed_slice()));
    let mut added: Vec<Tlv> = fixed.chain(made).collect();
    let came = came.unwrap_or_default();
    if config.policy == TlvMergePolicy::Append {
        return Some(came.iter().cloned().chain(added).collect());
    }
    let others: Vec<Tlv> = came.iter().filter(|(kind, _)| added.iter().all(|(own, _)| own != kind)).cloned().collect();
    added.extend(others);
    Some(added)
}

#[cfg(test)]
mod tests {
    use outrigger_config::format::Format;

    use super::*;

    fn merge(policy: TlvMergePolicy, came: Option<&[Tlv]>) -> Option<Vec<(u8, String)>> {
        let fixed = vec![(2, b"two"[..].into()), (4, b"four"[..].into())];
        let made = vec![MadeTlv { kind: 5, value: Format::default(), omit_empty_values: false }];
        let merged = merged(&ProxyTlvs { fixed, made, policy }, came, |_| b"made".to_vec())?;
        Some(merged.into_iter().map(|(kind, value)| (kind, String::from_utf8_lossy(&value).into_owned())).collect())
    }

    fn list(tlvs: &[(u8, &str)]) -> Option<Vec<(u8, String)>> {
        Some(tlvs.iter().map(|(kind, value)| (*kind, (*value).to_owned())).collect())
    }

    #[test]
    fn each_policy_is_as_in_envoy() {
        use TlvMergePolicy::{AddIfAbsent, Append, OverwriteByType};
        let came: [Tlv; 2] = [(2, b"in"[..].into()), (3, b"three"[..].into())];
        let own = [(2, "two"), (4, "four"), (5, "made")];
        for policy in [AddIfAbsent, OverwriteByType, Append] {
            assert_eq!(merge(policy, None), list(&own));
        }
        assert_eq!(merge(AddIfAbsent, Some(&came)), None);
        assert_eq!(merge(AddIfAbsent, Some(&[])), None);
        assert_eq!(merge(OverwriteByType, Some(&[])), list(&own));
        assert_eq!(merge(OverwriteByType, Some(&came)), list(&[own[0], own[1], own[2], (3, "three")]));
        assert_eq!(merge(Append, Some(&came)), list(&[(2, "in"), (3, "three"), own[0], own[1], own[2]]));
    }
}
