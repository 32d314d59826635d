//! Signing users in at an authorization server, with what a user has in cookies (RFC 6749, RFC 7636).
//!
//! Owns the form of cookies, of the state that travels through the server, and of its answers; all in Envoy's ways, so that
//! a user who has signed in at one proxy has done so at the other. Never knows a clock or makes random numbers, and never
//! asks the server.

mod answer;
mod cookies;
mod domains;
mod seal;
mod session;
mod state;

pub use answer::{TokenAnswer, TokenAnswerError, is_plain};
pub use cookies::RequestCookies;
pub use domains::is_allowed;
pub use seal::{Keys, Opened, Sealing, code_challenge};
pub use session::{Session, Tokens, expiry_of};
pub use state::{State, StateError, flow_id};
