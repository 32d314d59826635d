//! Sessions kept for resumption towards upstream.
//!
//! Owns a handful of them per context, newest kept: a mesh has many clusters with few hosts each, and a session holds
//! the server's chain. Never verifies: a store belongs to one context, so whatever is in it passed that context's
//! checks.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

/// At most `limit` sessions, over all server names.
pub(super) struct Sessions {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Newest at the back.
    tls13: VecDeque<(ServerName<'static>, Tls13ClientSessionValue)>,
    /// Newest at the back; one per name.
    tls12: VecDeque<(ServerName<'static>, Tls12ClientSessionValue)>,
    /// The group a server asked for, so that the next hello guesses right; one per name.
    groups: VecDeque<(ServerName<'static>, NamedGroup)>,
}

impl Sessions {
    /// Source: `UpstreamTlsContext.max_session_keys`.
    pub(super) fn new(max_session_keys: u32) -> Self {
        // Looked through one by one, so kept short.
        Self {
            limit: usize::try_from(max_session_keys).unwrap_or(usize::MAX).clamp(1, LARGEST),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No operation on the lists can leave them half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const LARGEST: usize = 64;
const GROUPS: usize = 8;

fn position<T>(list: &VecDeque<(ServerName<'static>, T)>, name: &ServerName<'_>) -> Option<usize> {
    list.iter().rposition(|(known, _)| known == name)
}

fn replace<T>(list: &mut VecDeque<(ServerName<'static>, T)>, name: ServerName<'static>, value: T, limit: usize) {
    if let Some(index) = position(list, &name) {
        list.remove(index);
    }
    push(list, name, value, limit);
}

fn push<T>(list: &mut VecDeque<(ServerName<'static>, T)>, name: ServerName<'static>, value: T, limit: usize) {
    while list.len() >= limit {
        list.pop_front();
    }
    list.push_back((name, value));
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        replace(&mut self.state().groups, server_name, group, GROUPS);
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        let state = self.state();
        position(&state.groups, server_name).map(|index| state.groups[index].1)
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        replace(&mut self.state().tls12, server_name, value, self.limit);
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let state = self.state();
        position(&state.tls12, server_name).map(|index| state.tls12[index].1.clone())
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        let mut state = self.state();
        if let Some(index) = position(&state.tls12, server_name) {
            state.tls12.remove(index);
        }
    }

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        push(&mut self.state().tls13, server_name, value, self.limit);
    }

    /// A ticket is used once (RFC 8446, appendix C.4).
    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut state = self.state();
        let index = position(&state.tls13, server_name)?;
        state.tls13.remove(index).map(|(_, ticket)| ticket)
    }
}

/// Counts only: sessions are secrets.
impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Sessions")
            .field("limit", &self.limit)
            .field("tls13", &state.tls13.len())
            .field("tls12", &state.tls12.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept() {
        let mut list = VecDeque::new();
        let name = |text: &'static str| ServerName::try_from(text).unwrap();
        push(&mut list, name("a"), 1, 2);
        push(&mut list, name("a"), 2, 2);
        push(&mut list, name("b"), 3, 2);
        assert_eq!(list.iter().map(|(_, value)| *value).collect::<Vec<_>>(), [2, 3]);
        replace(&mut list, name("a"), 4, 2);
        assert_eq!(list.iter().map(|(_, value)| *value).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(position(&list, &name("b")), Some(0));
        assert_eq!(position(&list, &name("c")), None);
    }
}
