//! Listening sockets.
//!
//! Owns how they are made: options, one for each worker, ports chosen by the system. Binding and listening are two
//! steps: a listener is refused at once if its address cannot be had, but takes connections only when it is ready.
//! Never accepts.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use outrigger_config::address::Address;
use outrigger_config::listener::{ListenAddress, Listener, SocketOption, SocketOptionValue, SocketState};
use outrigger_sys::sockopt::{self, OptionValue};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::worker::ListenSocket;

/// Why a listener has no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be bound.
    #[error("cannot bind {address}: {source}")]
    Bind {
        /// The address.
        address: Address,
        /// What the system says.
        source: io::Error,
    },
    /// A socket option cannot be set.
    #[error("cannot set {option} for {address}: {source}")]
    Option {
        /// The address.
        address: Address,
        /// The option.
        option: String,
        /// What the system says.
        source: io::Error,
    },
    /// The system does not let it listen.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: Address,
        /// What the system says.
        source: io::Error,
    },
}

/// Sockets of a listener, bound but not listening.
#[derive(Debug)]
pub struct BoundSockets {
    config: Arc<Listener>,
    /// For each worker, for each address.
    sockets: Vec<Vec<Socket>>,
    /// What each address came to be.
    pub addresses: Vec<Address>,
}

/// Binds the sockets of a listener for so many workers. `None` if it is not to be bound.
pub fn bind(config: &Arc<Listener>, workers: usize) -> Result<Option<BoundSockets>, BindError> {
    if !config.bind_to_port {
        return Ok(None);
    }
    let mut sockets: Vec<Vec<Socket>> = (0..workers).map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    for listen in &config.addresses {
        let (address, made) = match &listen.address {
            Address::Ip(address) => bind_ip(config, listen, *address, workers)?,
            Address::Pipe { path, mode } => bind_pipe(listen, path.as_ref(), *mode, workers)?,
            // Listeners with such an address have no socket.
            Address::Internal(_) => continue,
        };
        addresses.push(address);
        for (worker, socket) in sockets.iter_mut().zip(made) {
            worker.push(socket);
        }
    }
    Ok(Some(BoundSockets { config: Arc::clone(config), sockets, addresses }))
}

impl BoundSockets {
    /// Starts listening; the sockets of each worker.
    pub fn listen(self) -> Result<Vec<Vec<ListenSocket>>, BindError> {
        let Self { config, sockets, addresses } = self;
        let mut listening = Vec::with_capacity(sockets.len());
        for worker in sockets {
            let mut made = Vec::with_capacity(worker.len());
            for ((socket, listen), address) in worker.into_iter().zip(&config.addresses).zip(&addresses) {
                made.push(listen_one(&config, socket, listen, address)?);
            }
            listening.push(made);
        }
        Ok(listening)
    }
}

/// Whether both want the same sockets, so that those at hand can stay.
pub fn same_sockets(a: &Listener, b: &Listener) -> bool {
    let same_address = |(a, b): (&ListenAddress, &ListenAddress)| {
        let ListenAddress { address, ipv4_compat, socket_options } = a;
        *address == b.address && *ipv4_compat == b.ipv4_compat && *socket_options == b.socket_options
    };
    a.bind_to_port == b.bind_to_port
        && a.transparent == b.transparent
        && a.freebind == b.freebind
        && a.reuse_port == b.reuse_port
        && a.backlog == b.backlog
        && a.tcp_fast_open_queue_length == b.tcp_fast_open_queue_length
        && a.addresses.len() == b.addresses.len()
        && a.addresses.iter().zip(&b.addresses).all(same_address)
}

/// An address that both want for themselves.
pub fn conflict<'a>(a: &'a Listener, b: &Listener) -> Option<&'a Address> {
    let shared = |listen: &&ListenAddress| {
        listen.address.port() != Some(0) && b.addresses.iter().any(|other| other.address == listen.address)
    };
    a.addresses.iter().find(shared).map(|listen| &listen.address)
}

fn bind_ip(
    config: &Listener,
    listen: &ListenAddress,
    address: SocketAddr,
    workers: usize,
) -> Result<(Address, Vec<Socket>), BindError> {
    let one_each = config.reuse_port && workers > 1;
    let mut actual = address;
    let mut sockets: Vec<Socket> = Vec::with_capacity(workers);
    for worker in 0..workers {
        let socket = match sockets.first() {
            Some(first) if !one_each => first.try_clone().map_err(|source| refused(&listen.address, source))?,
            _ => bind_one(config, listen, actual)?,
        };
        if worker == 0
            && let Some(bound) = socket.local_addr().ok().and_then(|bound| bound.as_socket())
        {
            // A port that the system chose holds for all workers.
            actual = bound;
        }
        sockets.push(socket);
    }
    Ok((Address::Ip(actual), sockets))
}

fn refused(address: &Address, source: io::Error) -> BindError {
    BindError::Bind { address: address.clone(), source }
}

fn bind_one(config: &Listener, listen: &ListenAddress, address: SocketAddr) -> Result<Socket, BindError> {
    let failed = |source| refused(&listen.address, source);
    let named = |option: &'static str| {
        move |source| BindError::Option { address: listen.address.clone(), option: option.to_owned(), source }
    };
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP)).map_err(failed)?;
    socket.set_reuse_address(true).map_err(named("SO_REUSEADDR"))?;
    if address.is_ipv6() {
        socket.set_only_v6(!listen.ipv4_compat).map_err(named("IPV6_V6ONLY"))?;
    }
    if config.reuse_port {
        sockopt::set_reuse_port(&socket, true).map_err(named("SO_REUSEPORT"))?;
    }
    if config.freebind {
        sockopt::set_freebind(&socket, true).map_err(named("IP_FREEBIND"))?;
    }
    if config.transparent {
        sockopt::set_transparent(&socket, true).map_err(named("IP_TRANSPARENT"))?;
    }
    set_options(&socket, listen, SocketState::PreBind)?;
    socket.bind(&address.into()).map_err(failed)?;
    set_options(&socket, listen, SocketState::Bound)?;
    Ok(socket)
}

fn bind_pipe(
    listen: &ListenAddress,
    path: &Path,
    mode: u32,
    workers: usize,
) -> Result<(Address, Vec<Socket>), BindError> {
    let failed = |source| refused(&listen.address, source);
    let text = path.to_string_lossy();
    let address = match text.strip_prefix('@') {
        Some(name) => SockAddr::unix(format!("\0{name}")),
        None => {
            // What an earlier process left behind would be in the way.
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            SockAddr::unix(path)
        }
    };
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::UNIX, kind, None).map_err(failed)?;
    set_options(&socket, listen, SocketState::PreBind)?;
    socket.bind(&address.map_err(failed)?).map_err(failed)?;
    if mode != 0 && !text.starts_with('@') {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    }
    set_options(&socket, listen, SocketState::Bound)?;
    let mut sockets = Vec::with_capacity(workers);
    for _ in 1..workers {
        sockets.push(socket.try_clone().map_err(failed)?);
    }
    sockets.push(socket);
    Ok((listen.address.clone(), sockets))
}

fn listen_one(
    config: &Listener,
    socket: Socket,
    listen: &ListenAddress,
    address: &Address,
) -> Result<ListenSocket, BindError> {
    let pipe = matches!(address, Address::Pipe { .. });
    if let Some(queue) = config.tcp_fast_open_queue_length.filter(|_| !pipe) {
        let option = || "TCP_FASTOPEN".to_owned();
        sockopt::set_fast_open(&socket, queue).map_err(|source| BindError::Option {
            address: address.clone(),
            option: option(),
            source,
        })?;
    }
    // The kernel cuts it to net.core.somaxconn.
    let backlog = config.backlog.map_or(i32::MAX, |backlog| i32::try_from(backlog).unwrap_or(i32::MAX));
    socket.listen(backlog).map_err(|source| BindError::Listen { address: address.clone(), source })?;
    set_options(&socket, listen, SocketState::Listening)?;
    Ok(if pipe { ListenSocket::Unix(socket.into()) } else { ListenSocket::Tcp(socket.into()) })
}

fn set_options(socket: &Socket, listen: &ListenAddress, now: SocketState) -> Result<(), BindError> {
    for option in listen.socket_options.iter().filter(|option| option.is_for(listen.address.ip(), now)) {
        let SocketOption { level, name, value, state: _, is_ipv6: _ } = option;
        let value = match value {
            SocketOptionValue::Int(value) => OptionValue::Int(*value),
            SocketOptionValue::Bytes(bytes) => OptionValue::Bytes(bytes),
        };
        sockopt::set_by_number(socket, *level, *name, value).map_err(|source| BindError::Option {
            address: listen.address.clone(),
            option: format!("socket option {level}/{name}"),
            source,
        })?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use outrigger_config::listener::{DrainType, TrafficDirection};

    use super::*;

    pub fn listener(name: &str, address: Address) -> Listener {
        Listener {
            name: name.into(),
            stat_prefix: None,
            addresses: vec![ListenAddress { address, ipv4_compat: false, socket_options: Vec::new() }],
            bind_to_port: true,
            use_original_dst: false,
            transparent: false,
            freebind: false,
            reuse_port: true,
            backlog: None,
            tcp_fast_open_queue_length: None,
            max_accepts_per_event: None,
            tcp_keepalive: None,
            per_connection_buffer_limit_bytes: 1 << 20,
            listener_filters: Vec::new(),
            listener_filters_timeout: None,
            continue_on_listener_filters_timeout: false,
            filter_chain_matcher: None,
            filter_chains: Vec::new(),
            default_filter_chain: None,
            traffic_direction: TrafficDirection::Unspecified,
            drain_type: DrainType::Default,
            access_logs: Vec::new(),
            ignore_global_connection_limit: false,
            bypass_overload_manager: false,
            exact_balance: false,
            retire_within: None,
        }
    }

    fn local(port: u16) -> Address {
        Address::Ip(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    #[test]
    fn all_workers_share_the_port_that_the_system_chose_and_connections_arrive_only_after_listen() {
        let bound = bind(&Arc::new(listener("l", local(0))), 2).unwrap().unwrap();
        let Address::Ip(address) = bound.addresses[0].clone() else { panic!("not an IP address") };
        assert_ne!(address.port(), 0);
        assert!(std::net::TcpStream::connect(address).is_err());
        let sockets = bound.listen().unwrap();
        assert_eq!(sockets.len(), 2);
        std::net::TcpStream::connect(address).unwrap();
        for worker in &sockets {
            let ListenSocket::Tcp(socket) = &worker[0] else { panic!("not TCP") };
            assert_eq!(socket.local_addr().unwrap(), address);
        }
    }

    #[test]
    fn an_address_in_use_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = bind(&Arc::new(listener("l", local(port))), 1).unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot bind 127.0.0.1:{port}: Address already in use")));
    }

    #[test]
    fn a_pipe_replaces_what_was_left_behind_and_has_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let address = Address::Pipe { path: path.clone(), mode: 0o600 };
        let sockets = bind(&Arc::new(listener("l", address)), 2).unwrap().unwrap().listen().unwrap();
        assert!(matches!(sockets[1][0], ListenSocket::Unix(_)));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn sockets_stay_while_their_addresses_and_options_do() {
        let a = listener("a", local(80));
        let mut b = listener("a", local(80));
        assert!(same_sockets(&a, &b));
        assert_eq!(conflict(&a, &b).unwrap().to_string(), "127.0.0.1:80");
        b.backlog = Some(1);
        assert!(!same_sockets(&a, &b));
        assert!(conflict(&a, &listener("c", local(81))).is_none());
        assert!(conflict(&listener("a", local(0)), &listener("b", local(0))).is_none());
    }
}
