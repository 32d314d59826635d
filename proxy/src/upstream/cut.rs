//! Ends of connections to endpoints that are made from outside of whoever uses them.
//!
//! Owns a second handle to the socket below a connection. Never decides when it is time.

use std::cell::{Cell, RefCell};
use std::net::Shutdown;
use std::rc::{Rc, Weak};

use socket2::SockRef;

use crate::worker::socket::{Socket, SocketKind};

/// One connection that can be cut.
#[derive(Debug)]
pub struct Cut {
    socket: socket2::Socket,
    done: Cell<bool>,
}

impl Cut {
    /// Whether the connection was ended by this.
    pub fn is_done(&self) -> bool {
        self.done.get()
    }

    fn cut(&self) {
        self.done.set(true);
        // Whoever reads or writes finds the end, in whatever protocol. One that has ended already needs no more.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// The connections of an endpoint that can be cut.
#[derive(Debug, Default)]
pub struct Cuts(RefCell<Vec<Weak<Cut>>>);

impl Cuts {
    /// Adds a connection. There is no handle for one that stays inside of the process, or when the process may not have
    /// another descriptor.
    pub fn add(&self, socket: &Socket) -> Option<Rc<Cut>> {
        let handle = match socket.kind() {
            SocketKind::Tcp(tcp) => SockRef::from(tcp).try_clone(),
            SocketKind::Unix(unix) => SockRef::from(unix).try_clone(),
            SocketKind::InProcess(_) => return None,
        };
        let cut = Rc::new(Cut { socket: handle.ok()?, done: Cell::new(false) });
        let mut all = self.0.borrow_mut();
        all.retain(|cut| cut.strong_count() > 0);
        all.push(Rc::downgrade(&cut));
        Some(cut)
    }

    /// Cuts all that are still open.
    pub fn cut_all(&self) {
        self.0.take().iter().filter_map(Weak::upgrade).for_each(|cut| cut.cut());
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn both_ends_see_a_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let mut near = Socket::new(SocketKind::Tcp(stream));
        let cuts = Cuts::default();
        let cut = cuts.add(&near).unwrap();
        assert!(!cut.is_done());
        cuts.cut_all();
        assert!(cut.is_done());
        assert_eq!((near.read(&mut [0; 8]).await.unwrap(), far.read(&mut [0; 8]).await.unwrap()), (0, 0));
    }

    #[tokio::test]
    async fn ended_connections_are_forgotten() {
        let (one, _other) = tokio::net::UnixStream::pair().unwrap();
        let socket = Socket::new(SocketKind::Unix(one));
        let cuts = Cuts::default();
        drop(cuts.add(&socket));
        let cut = cuts.add(&socket);
        assert_eq!(cuts.0.borrow().len(), 1);
        drop(cut);
        cuts.cut_all();
    }
}
