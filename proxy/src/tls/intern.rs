//! Sharing of equal things between TLS contexts.
//!
//! A mesh gives hundreds of clusters the same certificate and the same roots: each is parsed once and kept once. Owns
//! weak references by content; what nobody uses any more is freed. Never used on the path of a request.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use aws_lc_rs::digest::{Context, SHA256, digest};

/// A SHA-256.
pub(super) type Sha256 = [u8; 32];

/// Equal things by the hash of what they were built from.
pub(super) struct Interned<T>(LazyLock<Mutex<HashMap<Sha256, Weak<T>>>>);

impl<T> Interned<T> {
    pub(super) const fn new() -> Self {
        Self(LazyLock::new(Mutex::default))
    }

    /// The existing value, or a new one.
    pub(super) fn get_or_try<E>(&self, key: Sha256, build: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        // Only map operations run under the lock, which a panic cannot leave half done.
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = lock().get(&key).and_then(Weak::upgrade) {
            return Ok(found);
        }
        let built = Arc::new(build()?);
        let mut map = lock();
        if let Some(found) = map.get(&key).and_then(Weak::upgrade) {
            return Ok(found);
        }
        map.retain(|_, value| value.strong_count() > 0);
        map.insert(key, Arc::downgrade(&built));
        Ok(built)
    }
}

/// The hash of `bytes`.
pub(super) fn sha256(bytes: &[u8]) -> Sha256 {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// The hash of several parts, in which no byte can move from one part to another unnoticed.
pub(super) fn sha256_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Sha256 {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_things_are_shared_while_in_use_and_freed_after() {
        static THINGS: Interned<String> = Interned::new();
        let key = sha256(b"a");
        let build = || Ok::<_, ()>("a".to_owned());
        let first = THINGS.get_or_try(key, build).unwrap();
        assert!(Arc::ptr_eq(&first, &THINGS.get_or_try(key, || Err(())).unwrap()));
        drop(first);
        assert_eq!(THINGS.get_or_try(key, || Err("built again")), Err("built again"));
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(sha256_parts([&b"ab"[..], b"c"]), sha256_parts([&b"a"[..], b"bc"]));
        assert_eq!(hex(&sha256(b"")[..4]), "e3b0c442");
    }
}
