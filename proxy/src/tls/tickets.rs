//! Session tickets of a server: what they are sealed with, and how long they are worth something.
//!
//! Owns the form of a ticket. A ticket names the checks under which its session began, so that it opens nothing where
//! others hold, even if the keys are the same; whoever has the same keys and the same checks, in this process or in
//! another, takes it. Never prints a key.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{hmac, rand};
use outrigger_config::tls::{TICKET_KEY_BYTES, TicketKeys};
use rustls::crypto::GetRandomFailed;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{ProducesTickets, ServerSessionMemoryCache, StoresServerSessions};
use rustls::ticketer::TicketRotator;

use super::error::TlsError;
use super::intern::Sha256;
use super::origin;

/// What a server seals tickets with. `binding` stands for everything that a resumed session takes for granted.
pub(super) fn ticketer(
    keys: Option<&TicketKeys>,
    timeout: Option<Duration>,
    binding: Sha256,
) -> Result<Arc<dyn ProducesTickets>, TlsError> {
    let timeout = seconds(timeout);
    let (keys, lifetime): (Arc<dyn ProducesTickets>, u32) = match (keys, timeout) {
        // Keys that nobody else has, and that are thrown away after some hours, need nothing more.
        (None, None) => return Ok(Arc::new(origin::Tickets(Ticketer::new()?))),
        (None, Some(timeout)) => (Arc::new(TicketRotator::new(timeout, random_key)?), timeout),
        (Some(keys), timeout) => (Arc::new(GivenKeys::new(keys)), timeout.unwrap_or(LIFETIME)),
    };
    Ok(Arc::new(origin::Tickets(Arc::new(Tickets { keys, lifetime, binding }))))
}

/// A store of sessions that forgets those older than `timeout`.
pub(super) fn session_store(sessions: usize, timeout: Option<Duration>) -> Arc<dyn StoresServerSessions> {
    let store = ServerSessionMemoryCache::new(sessions);
    let store: Arc<dyn StoresServerSessions> = match seconds(timeout) {
        None => store,
        Some(lifetime) => Arc::new(TimedSessions { store, lifetime }),
    };
    Arc::new(origin::Stored(store))
}

/// As in BoringSSL, zero says nothing.
fn seconds(timeout: Option<Duration>) -> Option<u32> {
    timeout.map(|timeout| u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX)).filter(|seconds| *seconds > 0)
}

/// Of tickets under keys from outside, which nobody here throws away.
const LIFETIME: u32 = 2 * 60 * 60;

/// Tickets with a time and a binding inside.
struct Tickets {
    keys: Arc<dyn ProducesTickets>,
    /// Seconds.
    lifetime: u32,
    binding: Sha256,
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.lifetime
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys.encrypt(&stamped(unix_seconds(), &[&self.binding, plain].concat()))
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let opened = self.keys.decrypt(cipher)?;
        let bound = fresh(&opened, unix_seconds(), self.lifetime)?;
        bound.strip_prefix(&self.binding).map(<[u8]>::to_vec)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

/// Keys of the configuration. The first seals, all open.
struct GivenKeys(Box<[GivenKey]>);

struct GivenKey {
    name: [u8; NAME],
    /// Gives each ticket a key of its own, so that no number of them, sealed by however many processes, is too many.
    derive: hmac::Key,
}

const NAME: usize = 16;
const SALT: usize = 32;

impl GivenKeys {
    fn new(keys: &TicketKeys) -> Self {
        Self(keys.keys.iter().map(GivenKey::new).collect())
    }
}

impl GivenKey {
    fn new(material: &[u8; TICKET_KEY_BYTES]) -> Self {
        let (name, secret) = material.split_at(NAME);
        let mut own = [0; NAME];
        own.copy_from_slice(name);
        Self { name: own, derive: hmac::Key::new(hmac::HMAC_SHA256, secret) }
    }

    fn cipher(&self, salt: &[u8]) -> Option<LessSafeKey> {
        let key = hmac::sign(&self.derive, &[b"outrigger session ticket\0", salt].concat());
        UnboundKey::new(&AES_256_GCM, key.as_ref()).ok().map(LessSafeKey::new)
    }

    /// `name`, `salt`, and what is sealed. The key serves this ticket alone, so the nonce may always be the same.
    fn seal(&self, salt: &[u8; SALT], plain: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = plain.to_vec();
        let head = [&self.name[..], salt].concat();
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        self.cipher(salt)?.seal_in_place_append_tag(nonce, Aad::from(&head), &mut sealed).ok()?;
        Some([head, sealed].concat())
    }

    fn open(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (head, sealed) = ticket.split_at_checked(NAME + SALT)?;
        let salt = head.strip_prefix(&self.name)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let plain = self.cipher(salt)?.open_in_place(nonce, Aad::from(head), &mut sealed).ok()?;
        Some(plain.to_vec())
    }
}

impl ProducesTickets for GivenKeys {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut salt = [0; SALT];
        rand::fill(&mut salt).ok()?;
        self.0.first()?.seal(&salt, plain)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        // Names may repeat.
        self.0.iter().find_map(|key| key.open(ticket))
    }
}

impl fmt::Debug for GivenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GivenKeys").field("count", &self.0.len()).finish_non_exhaustive()
    }
}

fn random_key() -> Result<Box<dyn ProducesTickets>, GetRandomFailed> {
    let mut material = [0; TICKET_KEY_BYTES];
    rand::fill(&mut material).map_err(|_| GetRandomFailed)?;
    Ok(Box::new(GivenKeys(Box::new([GivenKey::new(&material)]))))
}

/// Sessions in memory, each with the time at which it began.
#[derive(Debug)]
struct TimedSessions {
    store: Arc<ServerSessionMemoryCache>,
    /// Seconds.
    lifetime: u32,
}

impl StoresServerSessions for TimedSessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.store.put(key, stamped(unix_seconds(), &value))
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let found = self.store.get(key)?;
        fresh(&found, unix_seconds(), self.lifetime).map(<[u8]>::to_vec)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let found = self.store.take(key)?;
        fresh(&found, unix_seconds(), self.lifetime).map(<[u8]>::to_vec)
    }

    fn can_cache(&self) -> bool {
        self.store.can_cache()
    }
}

fn stamped(now: u64, content: &[u8]) -> Vec<u8> {
    [&now.to_be_bytes()[..], content].concat()
}

/// What was stamped, unless it is too old. Clocks of several machines differ a little, so a stamp may lie ahead.
fn fresh(stamped: &[u8], now: u64, lifetime: u32) -> Option<&[u8]> {
    let (stamp, content) = stamped.split_first_chunk()?;
    let age = now.saturating_sub(u64::from_be_bytes(*stamp));
    (age < u64::from(lifetime)).then_some(content)
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(letters: &[u8]) -> TicketKeys {
        TicketKeys { keys: letters.iter().map(|letter| [*letter; TICKET_KEY_BYTES]).collect(), files: Vec::new() }
    }

    fn tickets(letters: &[u8], binding: u8) -> Arc<dyn ProducesTickets> {
        ticketer(Some(&keys(letters)), None, [binding; 32]).unwrap()
    }

    #[test]
    fn keys_rotate() {
        let old = tickets(b"a", 0).encrypt(b"session").unwrap();
        assert_eq!(tickets(b"ba", 0).decrypt(&old).unwrap(), b"session");
        let new = tickets(b"ba", 0).encrypt(b"session").unwrap();
        assert!(new.starts_with(b"bbbb"), "the first key seals");
        assert_eq!(tickets(b"a", 0).decrypt(&new), None);
        assert_eq!(tickets(b"b", 0).decrypt(&old), None);
    }

    #[test]
    fn a_ticket_opens_nothing_where_other_checks_hold() {
        let ticket = tickets(b"a", 0).encrypt(b"session").unwrap();
        assert_eq!(tickets(b"a", 1).decrypt(&ticket), None);
        assert_ne!(ticket, tickets(b"a", 0).encrypt(b"session").unwrap());
    }

    #[test]
    fn sessions_grow_old() {
        let stamp = stamped(1000, b"x");
        assert_eq!(fresh(&stamp, 1059, 60), Some(&b"x"[..]));
        assert_eq!(fresh(&stamp, 1060, 60), None);
        assert_eq!(fresh(&stamp, 990, 60), Some(&b"x"[..]));
        assert_eq!(fresh(&stamp[..7], 1000, 60), None);
        assert_eq!(seconds(Some(Duration::from_millis(1900))), Some(1));
        assert_eq!(seconds(Some(Duration::ZERO)), None);
    }

    #[test]
    fn a_timeout_without_keys() {
        let own = ticketer(None, Some(Duration::from_secs(60)), [0; 32]).unwrap();
        let ticket = own.encrypt(b"session").unwrap();
        assert_eq!((own.lifetime(), own.decrypt(&ticket).unwrap()), (60, b"session".to_vec()));
        let other = ticketer(None, Some(Duration::from_secs(60)), [0; 32]).unwrap();
        assert_eq!(other.decrypt(&ticket), None);
        let store = session_store(4, Some(Duration::from_secs(60)));
        assert!(store.put(vec![1], vec![2]));
        assert_eq!((store.get(&[1]), store.take(&[1]), store.get(&[1])), (Some(vec![2]), Some(vec![2]), None));
    }

    proptest! {
        #[test]
        fn nothing_but_the_whole_ticket_opens(
            content in prop::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let tickets = tickets(b"ab", 7);
            let mut ticket = tickets.encrypt(&content).unwrap();
            prop_assert_eq!(tickets.decrypt(&ticket), Some(content));
            prop_assert_eq!(tickets.decrypt(&ticket[..at.index(ticket.len())]), None);
            let index = at.index(ticket.len());
            ticket[index] ^= flip;
            prop_assert_eq!(tickets.decrypt(&ticket), None);
        }
    }
}
