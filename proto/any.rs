//! Putting messages into `google.protobuf.Any` and taking them out by type name.

use prost::{DecodeError, Message, Name};

use crate::pb::google::protobuf::Any;

/// Why a message could not be taken out of an `Any`.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UnpackError {
    /// The `Any` holds something else.
    #[error("type {found}, expected {expected}")]
    OtherType {
        /// Type URL of the `Any`.
        found: String,
        /// Full name of the message that was asked for.
        expected: String,
    },
    /// The bytes are not a message of that type.
    #[error("{type_name} does not decode: {source}")]
    Undecodable {
        /// Full name of the message that was asked for.
        type_name: String,
        /// What is wrong with the bytes.
        source: DecodeError,
    },
}

/// The type URL of `M`, with the usual prefix `type.googleapis.com/`.
pub fn type_url<M: Name>() -> String {
    format!("type.googleapis.com/{}", M::full_name())
}

/// The full message name in a type URL: what follows the last slash.
pub fn type_name(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

/// Packs a message.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: type_url::<M>(), value: message.encode_to_vec() }
}

/// Takes an `M` out of `any`, whatever the prefix of its type URL.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, UnpackError> {
    if type_name(&any.type_url) != M::full_name() {
        return Err(UnpackError::OtherType { found: any.type_url.clone(), expected: M::full_name() });
    }
    M::decode(any.value.as_slice()).map_err(|source| UnpackError::Undecodable { type_name: M::full_name(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::config::cluster::v3::Cluster;
    use crate::pb::envoy::config::listener::v3::Listener;

    #[test]
    fn a_packed_message_comes_out_again_and_only_as_its_own_type() {
        let cluster = Cluster { name: "billing".into(), ..Default::default() };
        let any = pack(&cluster);
        assert_eq!(any.type_url, "type.googleapis.com/envoy.config.cluster.v3.Cluster");
        assert_eq!(unpack::<Cluster>(&any).unwrap(), cluster);
        let other = Any { type_url: "example.com/x/envoy.config.cluster.v3.Cluster".into(), ..any.clone() };
        assert_eq!(unpack::<Cluster>(&other).unwrap(), cluster);
        assert_eq!(
            unpack::<Listener>(&any).unwrap_err().to_string(),
            "type type.googleapis.com/envoy.config.cluster.v3.Cluster, expected envoy.config.listener.v3.Listener"
        );
    }

    #[test]
    fn bytes_of_another_shape_say_which_type_failed() {
        let any = Any { type_url: type_url::<Cluster>(), value: vec![0x0a, 0x7f] };
        let text = unpack::<Cluster>(&any).unwrap_err().to_string();
        assert!(text.starts_with("envoy.config.cluster.v3.Cluster does not decode: "), "{text}");
    }
}
