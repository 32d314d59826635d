//! Tokens that were verified before.
//!
//! Owns their number and size, and which of them go first. A token is known as long as the keys that have verified it
//! are in use: keys that are withdrawn take their tokens with them.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::http::filters::JwtCache;
use outrigger_config::jwks::Jwks;
use outrigger_policy::jwt::Token;

/// Verified tokens of one provider in one worker.
pub(super) struct Memory {
    limits: JwtCache,
    tokens: HashMap<Rc<[u8]>, Known>,
    /// The longest unused first.
    order: BTreeMap<u64, Rc<[u8]>>,
    clock: u64,
}

struct Known {
    token: Rc<Token>,
    keys: Arc<Jwks>,
    used: u64,
}

impl Memory {
    /// Nothing is known yet.
    pub fn new(limits: JwtCache) -> Self {
        Self { limits, tokens: HashMap::new(), order: BTreeMap::new(), clock: 0 }
    }

    /// A token that `keys` have verified.
    pub fn recall(&mut self, text: &[u8], keys: &Arc<Jwks>) -> Option<Rc<Token>> {
        let known = self.tokens.get_mut(text)?;
        if !Arc::ptr_eq(&known.keys, keys) {
            self.forget(text);
            return None;
        }
        self.clock += 1;
        if let Some(name) = self.order.remove(&known.used) {
            self.order.insert(self.clock, name);
        }
        known.used = self.clock;
        Some(Rc::clone(&known.token))
    }

    /// Keeps a token, and forgets another one if there are too many.
    pub fn remember(&mut self, text: &[u8], token: Rc<Token>, keys: &Arc<Jwks>) {
        if text.len() > self.limits.max_token_bytes {
            return;
        }
        self.forget(text);
        while self.tokens.len() >= self.limits.tokens {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.tokens.remove(&oldest);
        }
        self.clock += 1;
        let name: Rc<[u8]> = text.into();
        self.order.insert(self.clock, Rc::clone(&name));
        self.tokens.insert(name, Known { token, keys: Arc::clone(keys), used: self.clock });
    }

    fn forget(&mut self, text: &[u8]) {
        if let Some(known) = self.tokens.remove(text) {
            self.order.remove(&known.used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &[u8] = b"eyJhbGciOiJIUzI1NiJ9.e30.AA";

    fn memory(tokens: usize) -> Memory {
        Memory::new(JwtCache { tokens, max_token_bytes: 16 })
    }

    fn token() -> Rc<Token> {
        Rc::new(Token::parse(TOKEN).unwrap())
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let keys = Arc::new(Jwks::default());
        let mut memory = memory(2);
        memory.remember(b"a", token(), &keys);
        memory.remember(b"b", token(), &keys);
        assert!(memory.recall(b"a", &keys).is_some());
        memory.remember(b"c", token(), &keys);
        let known = |memory: &mut Memory, text: &[u8]| memory.recall(text, &keys).is_some();
        assert!(known(&mut memory, b"a") && !known(&mut memory, b"b") && known(&mut memory, b"c"));
        assert_eq!((memory.tokens.len(), memory.order.len()), (2, 2));
    }

    #[test]
    fn long_tokens_and_those_of_other_keys_are_not_known() {
        let (keys, others) = (Arc::new(Jwks::default()), Arc::new(Jwks::default()));
        let mut memory = memory(2);
        memory.remember(TOKEN, token(), &keys);
        assert!(memory.recall(TOKEN, &keys).is_none());
        memory.remember(b"a", token(), &keys);
        assert!(memory.recall(b"a", &others).is_none());
        assert!(memory.recall(b"a", &keys).is_none() && memory.order.is_empty());
    }
}
