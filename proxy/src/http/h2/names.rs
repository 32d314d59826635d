//! Header names and other short texts in the form that the `http` crate wants, kept from message to message.
//!
//! Owns what is remembered per thread, so that each text is validated and stored once. Never decides what is sent.

use http::HeaderName;

use crate::http::headers::HeaderId;

/// Places of a [`Recent`]; a power of two.
const PLACES: usize = 256;

/// Headers that tell one request from all others.
const UNIQUE: [&[u8]; 12] = [
    b"b3",
    b"grpc-timeout",
    b"traceparent",
    b"x-amzn-trace-id",
    b"x-b3-parentspanid",
    b"x-b3-spanid",
    b"x-b3-traceid",
    b"x-cloud-trace-context",
    b"x-correlation-id",
    b"x-datadog-parent-id",
    b"x-datadog-trace-id",
    b"x-request-id",
];

/// Values made of texts, each in the one place that its text has. A newer text takes the place of an older one, so no
/// choice of texts makes it large or slow.
#[derive(Debug)]
pub struct Recent<T> {
    places: Vec<Option<T>>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { places: Vec::new() }
    }
}

impl<T> Recent<T> {
    /// The value of a text, made if it is not there. `is_same` tells whether a value belongs to the text.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn find<E>(
        &mut self,
        text: &[u8],
        is_same: impl FnOnce(&T) -> bool,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<&T, E> {
        if self.places.is_empty() {
            self.places.resize_with(PLACES, || None);
        }
        let place = &mut self.places[place_of(text)];
        let value = match place.take() {
            Some(known) if is_same(&known) => known,
            _ => make()?,
        };
        Ok(place.insert(value))
    }
}

/// Names differ most in their last bytes, and by length.
fn place_of(text: &[u8]) -> usize {
    const MIX: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut hash = text.len() as u64;
    match (text.first_chunk::<8>(), text.last_chunk::<8>()) {
        (Some(first), Some(last)) => {
            hash = (hash ^ u64::from_le_bytes(*first)).wrapping_mul(MIX).rotate_left(29) ^ u64::from_le_bytes(*last);
        }
        _ => {
            for byte in text {
                hash = hash << 8 ^ u64::from(*byte);
            }
        }
    }
    (hash.wrapping_mul(MIX) >> 56) as usize & (PLACES - 1)
}

/// A header name.
#[derive(Clone, Debug)]
pub struct Name {
    /// The name.
    pub name: HeaderName,
    /// Whether its value belongs to one request alone.
    pub is_unique: bool,
}

impl Name {
    fn new(name: HeaderName) -> Self {
        let is_unique = UNIQUE.contains(&name.as_str().as_bytes());
        Self { name, is_unique }
    }
}

/// Header names: those that we know, and those that were seen.
#[derive(Debug, Default)]
pub struct Names {
    known: Vec<Option<Name>>,
    others: Recent<Name>,
}

impl Names {
    /// The name of a header; `None` if it is not one that HTTP/2 allows.
    pub fn find(&mut self, id: HeaderId, name: &[u8]) -> Option<&Name> {
        if id == HeaderId::Other {
            let is_same = |known: &Name| known.name.as_str().as_bytes() == name;
            return self.others.find(name, is_same, || HeaderName::from_lowercase(name).map(Name::new)).ok();
        }
        if self.known.is_empty() {
            self.known.resize_with(HeaderId::Other as usize, || None);
        }
        let place = self.known.get_mut(id as usize)?;
        Some(place.get_or_insert_with(|| Name::new(HeaderName::from_static(id.name()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_again_whatever_came_between() {
        let mut names = Names::default();
        for round in 0..2 {
            for number in 0..1000 {
                let text = format!("x-{number}");
                let name = names.find(HeaderId::Other, text.as_bytes()).map(|name| name.name.clone());
                assert_eq!(name.unwrap().as_str(), text, "round {round}");
            }
        }
        assert_eq!(names.others.places.len(), PLACES);
    }

    #[test]
    fn what_is_no_name_is_not_found() {
        let mut names = Names::default();
        for text in [&b""[..], b"Upper", b"with space"] {
            assert!(names.find(HeaderId::Other, text).is_none());
        }
    }

    #[test]
    fn known_names_say_whether_they_are_unique() {
        let mut names = Names::default();
        let mut is_unique = |id: HeaderId| names.find(id, id.name().as_bytes()).map(|name| name.is_unique);
        assert_eq!(is_unique(HeaderId::XRequestId), Some(true));
        assert_eq!(is_unique(HeaderId::Server), Some(false));
    }
}
