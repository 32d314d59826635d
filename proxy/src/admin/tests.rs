//! Every endpoint over real sockets, with a process made for the purpose.

mod dump;
mod endpoints;
mod fixture;
mod sockets;
