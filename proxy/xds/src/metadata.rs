//! What is sent along with each call to a control plane.
//!
//! Owns the form of keys and values, and that values made for each call are made anew. Never shows a value: it may be a
//! secret.

use std::fmt;
use std::sync::Arc;

use tonic::metadata::{AsciiMetadataKey, BinaryMetadataKey, BinaryMetadataValue, MetadataMap};

/// Gives the metadata of one call, or says why there is none now.
type Make = dyn Fn() -> Result<MetadataMap, String> + Send + Sync;

/// Makes the metadata of a call. Asked again for each, so that what it reads, such as a token in a file, may change.
#[derive(Clone)]
pub struct CallMetadata(Arc<Make>);

impl CallMetadata {
    /// Asks `make` for each call. A call for which there is none fails, and is tried again like any other.
    pub fn new(make: impl Fn() -> Result<MetadataMap, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }

    /// The same for each call.
    #[must_use]
    pub fn fixed(map: MetadataMap) -> Self {
        Self::new(move || Ok(map.clone()))
    }

    /// For the next call.
    pub(crate) fn make(&self) -> Result<MetadataMap, String> {
        (self.0)()
    }
}

impl fmt::Debug for CallMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallMetadata")
    }
}

/// Metadata that cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum InvalidMetadata {
    /// Not a header name.
    #[error("initial_metadata key \"{0}\" is not a valid header name")]
    Key(String),
    /// Not a header value. The value may be a secret, so it is not repeated.
    #[error("initial_metadata value of \"{0}\" is not a valid header value")]
    Value(String),
}

/// Makes a metadata map. Values of keys that end in `-bin` are raw bytes.
///
/// # Errors
/// At the first key or value that cannot be sent.
pub fn metadata<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<MetadataMap, InvalidMetadata> {
    let mut map = MetadataMap::new();
    for (key, value) in pairs {
        let bad_key = || InvalidMetadata::Key(key.to_owned());
        // Header names on the wire are lower case; configuration may spell them as it likes.
        let name = key.to_ascii_lowercase();
        if name.ends_with("-bin") {
            let name = BinaryMetadataKey::from_bytes(name.as_bytes()).map_err(|_| bad_key())?;
            map.append_bin(name, BinaryMetadataValue::from_bytes(value));
        } else {
            let name = AsciiMetadataKey::from_bytes(name.as_bytes()).map_err(|_| bad_key())?;
            let value = value.try_into().map_err(|_| InvalidMetadata::Value(key.to_owned()))?;
            map.append(name, value);
        }
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_takes_text_and_binary_and_refuses_what_cannot_be_sent() {
        let map = metadata([("X-Consul-Token", b"t".as_slice()), ("trace-bin", &[0, 255])]).unwrap();
        assert_eq!(map.get("x-consul-token").unwrap(), "t");
        assert_eq!(map.get_bin("trace-bin").unwrap().to_bytes().unwrap().as_ref(), &[0, 255]);
        assert!(matches!(metadata([("a b", b"".as_slice())]), Err(InvalidMetadata::Key(_))));
        assert!(matches!(metadata([("a", b"\n".as_slice())]), Err(InvalidMetadata::Value(_))));
    }

    #[test]
    fn values_are_not_shown() {
        let map = metadata([("authorization", b"Bearer secret".as_slice())]).unwrap();
        assert!(!format!("{:?}", CallMetadata::fixed(map)).contains("secret"));
    }
}
