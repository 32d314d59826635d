//! Whether a request shows the JSON Web Tokens that it needs, and what valid tokens do to it.
//!
//! Owns the judgement from the text of a token to the changes of a request. Never fetches keys and never reads a clock:
//! keys, remembered tokens and the time come from the caller.

mod claims;
mod evaluate;
mod failure;
mod locations;
mod request;
mod token;
mod verify;

pub use evaluate::{Judgement, JwtAuthenticator, Keys, Outcome, Surroundings};
pub use failure::JwtFailure;
pub use request::Changes;
pub use token::Token;
pub use verify::{verify_signature, verify_times};

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
