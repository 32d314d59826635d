//! Our server against our client, over memory; and either against OpenSSL.

mod handshake;
mod openssl;
mod pki;
mod refused;
