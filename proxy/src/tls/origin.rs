//! What rustls does not tell of a finished handshake: the algorithm that the peer signed with, and, where a session was
//! taken up again, the group and the algorithm that it began with.
//!
//! Owns the note that key exchanges, verifiers and session stores write while a handshake is polled on their thread, and
//! what of it goes along with a session. Never decides anything about a handshake.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::{ActiveKeyExchange, CompletedKeyExchange, SupportedKxGroup};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::server::{ProducesTickets, StoresServerSessions};
use rustls::{NamedGroup, ProtocolVersion, SignatureScheme};

/// How a session began.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Origin {
    /// What the peer signed with, if it showed a certificate.
    pub(super) scheme: Option<SignatureScheme>,
    /// What keys were exchanged with.
    pub(super) group: Option<NamedGroup>,
}

/// What was seen of a handshake.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Note {
    /// By itself.
    pub(super) seen: Origin,
    /// The beginning of the session that our side found for it, if any.
    pub(super) earlier: Option<Origin>,
}

thread_local! {
    static NOTE: Cell<Note> = Cell::default();
}

/// Polls a handshake, and tells what was seen of it.
pub(super) async fn noted<F: Future>(handshake: F) -> (F::Output, Note) {
    let mut note = Note::default();
    let mut handshake = pin!(handshake);
    let output = poll_fn(|context| {
        // Others have their turn on this thread between two polls.
        NOTE.set(note);
        let polled = handshake.as_mut().poll(context);
        note = NOTE.get();
        polled
    })
    .await;
    (output, note)
}

/// The peer has signed with this.
pub(super) fn signed(scheme: SignatureScheme) {
    change(|note| note.seen.scheme = Some(scheme));
}

fn change(change: impl FnOnce(&mut Note)) {
    let mut note = NOTE.get();
    change(&mut note);
    NOTE.set(note);
}

impl Origin {
    /// Of the session that is sealed now. In a handshake that takes up an earlier one nobody signs.
    fn now() -> Self {
        let Note { seen, earlier } = NOTE.get();
        let earlier = earlier.unwrap_or_default();
        Self { scheme: seen.scheme.or(earlier.scheme), group: seen.group.or(earlier.group) }
    }

    /// Numbers as on the wire; zero stands for none, and is reserved there.
    fn bytes(self) -> [u8; ORIGIN_BYTES] {
        let [a, b] = self.scheme.map_or(0, u16::from).to_be_bytes();
        let [c, d] = self.group.map_or(0, u16::from).to_be_bytes();
        [a, b, c, d]
    }

    fn read([a, b, c, d]: [u8; ORIGIN_BYTES]) -> Self {
        let some = |number: u16| (number != 0).then_some(number);
        Self {
            scheme: some(u16::from_be_bytes([a, b])).map(SignatureScheme::from),
            group: some(u16::from_be_bytes([c, d])).map(NamedGroup::from),
        }
    }

    /// A session with this in front of it.
    fn seal(session: &[u8]) -> Vec<u8> {
        [&Self::now().bytes()[..], session].concat()
    }

    /// The session, after a note of what stands in front of it.
    fn open(sealed: &[u8]) -> Option<Vec<u8>> {
        let (origin, session) = sealed.split_first_chunk()?;
        change(|note| note.earlier = Some(Self::read(*origin)));
        Some(session.to_vec())
    }
}

const ORIGIN_BYTES: usize = 4;

/// A group that leaves a note when it is used.
#[derive(Debug)]
pub(super) struct Noting(pub(super) &'static dyn SupportedKxGroup);

impl SupportedKxGroup for Noting {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        change(|note| note.seen.group = Some(self.0.name()));
        self.0.start()
    }

    fn start_and_complete(&self, peer_pub_key: &[u8]) -> Result<CompletedKeyExchange, rustls::Error> {
        change(|note| note.seen.group = Some(self.0.name()));
        self.0.start_and_complete(peer_pub_key)
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        self.0.ffdhe_group()
    }

    fn name(&self) -> NamedGroup {
        self.0.name()
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        self.0.usable_for_version(version)
    }
}

/// Tickets that hold how their session began.
#[derive(Debug)]
pub(super) struct Tickets(pub(super) Arc<dyn ProducesTickets>);

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(&Origin::seal(plain))
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        Origin::open(&self.0.decrypt(cipher)?)
    }
}

/// Sessions in memory that hold how they began.
#[derive(Debug)]
pub(super) struct Stored(pub(super) Arc<dyn StoresServerSessions>);

impl StoresServerSessions for Stored {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.0.put(key, Origin::seal(&value))
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        Origin::open(&self.0.get(key)?)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        Origin::open(&self.0.take(key)?)
    }

    fn can_cache(&self) -> bool {
        self.0.can_cache()
    }
}

/// How the latest sessions with servers began, by their names: sessions towards upstream hold nothing of ours.
#[derive(Default)]
pub(super) struct Origins(Mutex<VecDeque<(Box<str>, Origin)>>);

impl Origins {
    /// Of a session that was taken up again.
    pub(super) fn of(&self, server: &str) -> Option<Origin> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(name, _)| **name == *server).map(|(_, origin)| *origin)
    }

    /// A session has begun.
    pub(super) fn began(&self, server: &str, origin: Origin) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, last)) = known.iter_mut().find(|(name, _)| **name == *server) {
            *last = origin;
            return;
        }
        while known.len() >= SERVERS {
            known.pop_front();
        }
        known.push_back((server.into(), origin));
    }
}

impl fmt::Debug for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origins").finish_non_exhaustive()
    }
}

/// As many as a context keeps sessions of.
const SERVERS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin { scheme: Some(SignatureScheme::ED25519), group: Some(NamedGroup::X25519MLKEM768) };

    #[tokio::test]
    async fn handshakes_on_one_thread_have_notes_of_their_own() {
        let other = async {
            signed(SignatureScheme::RSA_PSS_SHA256);
            tokio::task::yield_now().await;
            signed(SignatureScheme::RSA_PSS_SHA512);
        };
        let one = async {
            signed(SignatureScheme::ED25519);
            tokio::task::yield_now().await;
            Origin::now().scheme
        };
        let ((_, other), (sealed, one)) = tokio::join!(noted(other), noted(one));
        assert_eq!(other.seen.scheme, Some(SignatureScheme::RSA_PSS_SHA512));
        assert_eq!((sealed, one.seen.scheme), (Some(SignatureScheme::ED25519), Some(SignatureScheme::ED25519)));
    }

    #[tokio::test]
    async fn a_session_tells_how_it_began_and_goes_on_to_tell_it() {
        for origin in [ORIGIN, Origin::default(), Origin { scheme: None, ..ORIGIN }] {
            assert_eq!(Origin::read(origin.bytes()), origin);
            let sealed = [&origin.bytes()[..], b"session"].concat();
            let again = async {
                let session = Origin::open(&sealed).unwrap();
                assert_eq!(session, b"session");
                Origin::seal(&session)
            };
            let (resealed, note) = noted(again).await;
            assert_eq!((resealed, note.earlier), (sealed, Some(origin)));
        }
        assert_eq!(Origin::open(b"abc"), None);
    }

    #[test]
    fn the_latest_beginnings_are_kept() {
        let origins = Origins::default();
        for index in 0..=SERVERS {
            origins.began(&index.to_string(), Origin::default());
        }
        origins.began("1", ORIGIN);
        assert_eq!((origins.of("0"), origins.of("1"), origins.of("2")), (None, Some(ORIGIN), Some(Origin::default())));
    }
}
