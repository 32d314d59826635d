//! What filters keep for longer than a request: for the whole process, such as a limit over all workers; for settings of
//! routes; for a connection.
//!
//! Owns the ways by which such things are found again. What belongs to the process is looked at when filters are made and
//! when settings are met for the first time, never for each request.

use std::any::{Any, TypeId};
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
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

/// What one filter in one worker keeps for each of several settings: those of its chain, and those of routes.
pub struct SettingsStates<S, T>(RefCell<ByPlace<S, T>>);

/// By where the settings are.
type ByPlace<S, T> = HashMap<usize, (Weak<S>, Rc<T>)>;

impl<S, T> Default for SettingsStates<S, T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<S, T> SettingsStates<S, T> {
    /// The thing of `settings`, made by `make` when they are met for the first time. What belongs to settings that are
    /// gone goes when new ones come.
    pub fn get(&self, settings: &Arc<S>, make: impl FnOnce() -> T) -> Rc<T> {
        let mut states = self.0.borrow_mut();
        // A weak reference keeps the place from being used for other settings.
        let place = Arc::as_ptr(settings).addr();
        if let Some((_, state)) = states.get(&place) {
            return Rc::clone(state);
        }
        states.retain(|_, (settings, _)| settings.strong_count() > 0);
        let state = Rc::new(make());
        states.insert(place, (Arc::downgrade(settings), Rc::clone(&state)));
        state
    }
}

/// What filters keep for a connection, by the place of their settings. Empty, it is one word.
#[derive(Default)]
pub struct ConnectionStates(OnceCell<Box<States>>);

type States = RefCell<Vec<(Arc<dyn Any + Send + Sync>, Rc<dyn Any>)>>;

impl ConnectionStates {
    /// The thing of `settings`, made by `make` on first use.
    pub fn get<S: Any + Send + Sync, T: Any>(&self, settings: &Arc<S>, make: impl FnOnce() -> T) -> Rc<T> {
        let mut states = self.0.get_or_init(Box::default).borrow_mut();
        let is_meant = |known: &Arc<dyn Any + Send + Sync>| Arc::as_ptr(known).addr() == Arc::as_ptr(settings).addr();
        let known = states.iter().find_map(
            |(known, state)| {
                if is_meant(known) { Rc::clone(state).downcast().ok() } else { None }
            },
        );
        known.unwrap_or_else(|| {
            let made = Rc::new(make());
            states.push((Arc::clone(settings) as Arc<dyn Any + Send + Sync>, Rc::clone(&made) as Rc<dyn Any>));
            made
        })
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

    #[test]
    fn settings_find_what_was_made_for_them_and_take_it_along() {
        let states = SettingsStates::<u32, AtomicU32>::default();
        let (one, two) = (Arc::new(1), Arc::new(2));
        states.get(&one, || AtomicU32::new(1)).fetch_add(1, Ordering::Relaxed);
        assert_eq!(states.get(&one, || AtomicU32::new(7)).load(Ordering::Relaxed), 2);
        drop(one);
        assert_eq!(states.get(&two, || AtomicU32::new(3)).load(Ordering::Relaxed), 3);
        assert_eq!(states.0.borrow().len(), 1);
    }

    #[test]
    fn a_connection_keeps_one_thing_for_each_settings() {
        let states = ConnectionStates::default();
        let (one, two) = (Arc::new(1_u8), Arc::new(2_u8));
        states.get(&one, || AtomicU32::new(1)).fetch_add(1, Ordering::Relaxed);
        assert_eq!(states.get(&one, || AtomicU32::new(9)).load(Ordering::Relaxed), 2);
        assert_eq!(states.get(&two, || AtomicU32::new(5)).load(Ordering::Relaxed), 5);
        assert_eq!(size_of::<ConnectionStates>(), size_of::<usize>());
    }
}
