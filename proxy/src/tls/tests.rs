//! Our server against our client, over memory; and either against OpenSSL.

mod handshake;
mod openssl;
mod peers;
mod pki;
mod refused;
mod sessions;
