//! What the filters of all workers share, such as a limit over the whole process.
//!
//! Owns the way by which the same filter in several workers finds the same thing. Looked at when filters are made, never for
//! a request.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Things by type and key; each lives as long as somebody holds it.
#[derive(Default)]
pub struct SharedStates(Mutex<HashMap<(TypeId, String), Weak<dyn Any + Send + Sync>>>);

impl SharedStates {
    /// The thing of this type and key, made by `make` if nobody holds it.
    pub fn get<T: Any + Send + Sync>(&self, key: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (TypeId::of::<T>(), key.to_owned());
        if let Some(known) = states.get(&key).and_then(Weak::upgrade).and_then(|known| known.downcast().ok()) {
            return known;
        }
        states.retain(|_, state| state.strong_count() > 0);
        let made = Arc::new(make());
        let weak: Weak<dyn Any + Send + Sync> = Arc::downgrade(&(Arc::clone(&made) as Arc<dyn Any + Send + Sync>));
        states.insert(key, weak);
        made
    }

    /// The same for settings: whoever holds the same `settings` finds the same thing, and must hold them as long as it.
    pub fn of<S, T: Any + Send + Sync>(&self, settings: &Arc<S>, make: impl FnOnce() -> T) -> Arc<T> {
        self.get(&format!("{:p}", Arc::as_ptr(settings)), make)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn the_same_key_finds_the_same_thing_while_it_is_held() {
        let states = SharedStates::default();
        let one = states.get("a", || AtomicU32::new(1));
        let two = states.get("a", || AtomicU32::new(2));
        assert_eq!(two.fetch_add(1, Ordering::Relaxed), 1);
        assert_eq!(states.get("b", || AtomicU32::new(3)).load(Ordering::Relaxed), 3);
        assert_eq!(*states.get("a", || 7_u64), 7);
        drop((one, two));
        assert_eq!(states.get("a", || AtomicU32::new(4)).load(Ordering::Relaxed), 4);
    }
}
