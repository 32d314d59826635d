"""The machine: processes on cores, ports, certificates, and single HTTP exchanges.

Owns everything that touches the system without measuring it. Never knows proxies or scenarios.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path


class Process:
    """A child on one core. Only ever signals processes it started itself."""

    running = []

    def __init__(self, argv, core, log):
        self.argv = argv
        self.log = log
        self.started = time.monotonic()
        with open(log, "ab") as out:
            self.child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}))
        Process.running.append(self)

    def pids(self):
        """This process and its descendants."""
        found, todo = [], [self.child.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    todo += map(int, children.read_text().split())
        return found

    def memory(self):
        """Resident bytes: of the first process all, of its children what they share with nobody."""
        total = 0
        for i, pid in enumerate(self.pids()):
            counted = ("Private_Clean:", "Private_Dirty:") if i else ("Rss:",)
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(counted):
                    total += int(line.split()[1]) * 1024
        return total

    def cpu_seconds(self):
        ticks = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def tail(self):
        return Path(self.log).read_text(errors="replace")[-2000:].strip()

    def stop(self):
        if self in Process.running:
            Process.running.remove(self)
        if self.child.poll() is None:
            pids = self.pids()
            self.child.terminate()
            try:
                self.child.wait(5)
            except subprocess.TimeoutExpired:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self.child.wait()

    @classmethod
    def stop_all(cls):
        for process in list(cls.running):
            process.stop()


def free_port():
    """Outside the ephemeral range, so that no outgoing connection takes it."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def softirq_thread(core):
    """The kernel thread that takes over network processing when there is much of it."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text().strip() == f"ksoftirqd/{core}":
                return comm.parent.name
    return None


def http_get(port, host="bench.local", timeout=2.0):
    """One request on a new connection: (status, headers) or None."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout) as sock:
            return http_exchange(sock, host)
    except OSError:
        return None


def http_exchange(sock, host="bench.local", method="GET", path="/b/100", body=b""):
    """One request on an open connection: (status, headers). Answers have a content-length or no body."""
    length = f"content-length: {len(body)}\r\n" if body else ""
    sock.sendall(f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n{length}\r\n".encode() + body)
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(sock)
    head, _, answer = data.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(answer) < int(headers.get(b"content-length", 0)):
        answer += _receive(sock)
    return int(head.split(b" ", 2)[1]), headers


def _receive(sock):
    more = sock.recv(65536)
    if not more:
        raise ConnectionError("closed in the middle of an answer")
    return more


def make_pki(pki):
    """A CA, and certificates for the server and for the client, all P-256."""
    if pki.exists():
        return
    pki.mkdir()

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=pki, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "30", "-subj", "/CN=bench CA",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    for who in ("server", "client"):
        (pki / "ext").write_text(
            "subjectAltName=DNS:bench.local,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n"
            f"extendedKeyUsage={who}Auth\n")
        openssl("req", *key, "-keyout", f"{who}.key", "-out", f"{who}.csr", "-subj", f"/CN=bench {who}")
        openssl("x509", "-req", "-in", f"{who}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "30", "-extfile", "ext", "-out", f"{who}.crt")
