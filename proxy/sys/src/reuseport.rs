//! Choosing the accepting socket by CPU (`SO_ATTACH_REUSEPORT_CBPF`).
//!
//! Owns the small classic-BPF program that hands a new connection to the listening socket whose worker runs on the CPU
//! that received it. Never decides whether that is wise: where few CPUs serve the network card, it starves workers.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::affinity::CpuId;

/// Steers new connections of the SO_REUSEPORT group that `socket` belongs to.
///
/// `cpus[i]` is the CPU of the worker whose socket joined the group (`listen`, or `bind` for UDP) as number `i`.
/// Connections that arrive on another CPU are spread by the kernel's hash as before. Attaching again replaces the
/// program. Fails with `InvalidInput` for more CPUs than a BPF program has room for (2047).
pub fn steer_by_cpu(socket: impl AsFd, cpus: &[CpuId]) -> io::Result<()> {
    let mut program = steering_program(cpus);
    let Some(len) = u16::try_from(program.len()).ok().filter(|len| *len <= MOST_INSTRUCTIONS) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("cannot steer to {} CPUs", cpus.len())));
    };
    let descriptor = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies `descriptor` and the `len` instructions it points to, all of which live until after
    // the call, and writes to neither.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_ATTACH_REUSEPORT_CBPF,
            (&raw const descriptor).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    crate::check(answer).map(drop)
}

/// `A = cpu; if A == cpus[0] return 0; if A == cpus[1] return 1; ...; return none`
fn steering_program(cpus: &[CpuId]) -> Vec<libc::sock_filter> {
    let mut program = vec![instruction(LOAD_WORD, 0, (libc::SKF_AD_OFF + libc::SKF_AD_CPU) as u32)];
    for (socket, CpuId(cpu)) in (0u32..).zip(cpus) {
        program.push(instruction(SKIP_ONE_UNLESS_EQUAL, 1, *cpu));
        program.push(instruction(RETURN, 0, socket));
    }
    program.push(instruction(RETURN, 0, NO_SOCKET));
    program
}

fn instruction(code: u32, jump_if_false: u8, operand: u32) -> libc::sock_filter {
    // The codes below are all under 0x100.
    libc::sock_filter { code: code as u16, jt: 0, jf: jump_if_false, k: operand }
}

const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const SKIP_ONE_UNLESS_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
/// Beyond every group, which makes the kernel fall back to its hash.
const NO_SOCKET: u32 = u32::MAX;
/// `BPF_MAXINSNS`.
const MOST_INSTRUCTIONS: u16 = 4096;
/// `asm-generic/socket.h`; not in the libc crate for every target.
pub(crate) const SO_ATTACH_REUSEPORT_CBPF: libc::c_int = 51;

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::affinity::allowed_cpus;

    fn listener(address: SocketAddr) -> TcpListener {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(128).unwrap();
        socket.into()
    }

    fn accepted(listener: &TcpListener) -> usize {
        std::iter::from_fn(|| listener.accept().ok()).count()
    }

    #[test]
    fn connections_go_to_the_socket_of_the_cpu_they_arrive_on() {
        let first = listener(([127, 0, 0, 1], 0).into());
        let address = first.local_addr().unwrap();
        let second = listener(address);
        // Socket 0 gets a CPU that does not exist, socket 1 the one this thread connects from: over loopback the
        // connection arrives where it was made.
        let here = *allowed_cpus().unwrap().first().unwrap();
        steer_by_cpu(&first, &[CpuId(60_000), here]).unwrap();
        let clients = std::thread::spawn(move || {
            crate::affinity::bind_current_thread(&[here].into()).unwrap();
            (0..16).map(|_| TcpStream::connect(address).unwrap()).collect::<Vec<_>>()
        })
        .join()
        .unwrap();
        assert_eq!((accepted(&first), accepted(&second)), (0, clients.len()));
    }

    #[test]
    fn an_unknown_cpu_falls_back_to_the_hash_of_the_kernel() {
        let only = listener(([127, 0, 0, 1], 0).into());
        steer_by_cpu(&only, &[CpuId(60_000)]).unwrap();
        let _client = TcpStream::connect(only.local_addr().unwrap()).unwrap();
        assert_eq!(accepted(&only), 1);
    }

    #[test]
    fn too_many_cpus_are_refused() {
        let only = listener(([127, 0, 0, 1], 0).into());
        let cpus: Vec<_> = (0..2048).map(CpuId).collect();
        assert_eq!(steer_by_cpu(&only, &cpus).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        steer_by_cpu(&only, &cpus[..2047]).unwrap();
    }
}
