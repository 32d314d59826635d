//! The socket of the admin port.
//!
//! Owns binding it, and a warning if strangers could reach it. Never accepts connections.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use outrigger_config::address::Address;
use outrigger_config::bootstrap::Admin as AdminConfig;
use outrigger_config::listener::{SocketOption, SocketOptionValue, SocketState};
use outrigger_sys::sockopt::{OptionValue, set_by_number};
use outrigger_sys::unix::unix_address;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

/// Why the admin port cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be listened on.
    #[error("admin: cannot listen on {address}")]
    Bind {
        /// As configured.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// A socket option cannot be set.
    #[error("admin: cannot set socket option {level}/{name} on {address}")]
    Option {
        /// As configured.
        address: Address,
        /// As configured.
        level: i32,
        /// As configured.
        name: i32,
        /// What the system said.
        source: io::Error,
    },
    /// The file that is to tell the address cannot be written.
    #[error("admin: cannot write its address to the file of --admin-address-path")]
    Announce(#[source] io::Error),
}

/// A listening socket.
pub(super) enum AdminSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Listens on the configured address; the address that it became.
pub(super) fn listen(config: &AdminConfig) -> Result<(AdminSocket, Address), AdminError> {
    let refused = |source| AdminError::Bind { address: config.address.clone(), source };
    let (domain, address) = match &config.address {
        Address::Ip(address) => (Domain::for_address(*address), SockAddr::from(*address)),
        Address::Pipe { path, .. } => (Domain::UNIX, pipe_address(path).map_err(refused)?),
        // Refused where it is read.
        Address::Internal(_) => return Err(refused(std::io::ErrorKind::Unsupported.into())),
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None).map_err(refused)?;
    set_options(&socket, config, SocketState::PreBind)?;
    if let Address::Ip(address) = config.address {
        socket.set_reuse_address(true).map_err(refused)?;
        warn_if_exposed(address);
    }
    socket.bind(&address).map_err(refused)?;
    if let Address::Pipe { path, mode } = &config.address
        && *mode != 0
        && !is_abstract(path)
    {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(*mode)).map_err(refused)?;
    }
    set_options(&socket, config, SocketState::Bound)?;
    socket.listen(1024).map_err(refused)?;
    set_options(&socket, config, SocketState::Listening)?;
    if let Address::Pipe { .. } = &config.address {
        let listener = UnixListener::from_std(socket.into()).map_err(refused)?;
        return Ok((AdminSocket::Unix(listener), config.address.clone()));
    }
    let listener = TcpListener::from_std(socket.into()).map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    Ok((AdminSocket::Tcp(listener), Address::Ip(bound)))
}

fn is_abstract(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().first() == Some(&b'@')
}

fn pipe_address(path: &Path) -> io::Result<SockAddr> {
    let text = path.to_str().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "path is not UTF-8"))?;
    // Checked here because what is too long would be cut off silently elsewhere.
    unix_address(text)?;
    if let Some(name) = text.strip_prefix('@') {
        return SockAddr::unix(format!("\0{name}"));
    }
    // What an earlier process left behind would be in the way.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => SockAddr::unix(path),
    }
}

fn set_options(socket: &Socket, config: &AdminConfig, now: SocketState) -> Result<(), AdminError> {
    for option in config.socket_options.iter().filter(|option| option.is_for(config.address.ip(), now)) {
        let SocketOption { level, name, value, state: _, is_ipv6: _ } = option;
        let value = match value {
            SocketOptionValue::Int(value) => OptionValue::Int(*value),
            SocketOptionValue::Bytes(bytes) => OptionValue::Bytes(bytes),
        };
        set_by_number(socket, *level, *name, value).map_err(|source| AdminError::Option {
            address: config.address.clone(),
            level: *level,
            name: *name,
            source,
        })?;
    }
    Ok(())
}

/// Whoever reaches the admin port can end the process and read its configuration.
fn warn_if_exposed(address: SocketAddr) {
    if !address.ip().is_loopback() {
        tracing::warn!(
            target: "admin",
            "the admin port {address} can be reached from other machines, and anybody who does so can stop this process \
             and read its configuration; bind it to 127.0.0.1 or to a Unix socket"
        );
    }
}
