"""Scenarios that load proxies: how much CPU time a request, a connection or a gigabyte takes.

Owns what is sent. How it is measured is for `measure`.
"""

from measure import Load
from proxies import Job
from tables import PACED, SATURATED, transfer

CONNECTIONS = 64            # of the HTTP/1.1 scenarios


def amount(bench, n):
    return str(max(1000, int(n * bench.options.scale)))


def h1(bench):
    """HTTP/1.1 keep-alive, 100-byte answers, saturated"""
    bench.compare("h1", Job(), "h1", [
        Load("saturated", f"{CONNECTIONS} connections, closed loop",
             ["h1", "--connections", str(CONNECTIONS), "--requests", amount(bench, 80_000),
              "--warmup", "5000"], SATURATED),
    ])


def h1_filters(bench):
    """The same through ten HTTP filters that have nothing to do: what they cost is the difference to h1"""
    bench.compare("h1-filters", Job(idle_filters=True), "h1", [
        Load("saturated", f"{CONNECTIONS} connections, closed loop",
             ["h1", "--connections", str(CONNECTIONS), "--requests", amount(bench, 80_000),
              "--warmup", "5000"], SATURATED),
    ])


def h1_observed(bench):
    """The same with stats; with a JSON access log, too; and with one of a hundred requests traced: three jobs in one run"""
    for title, job in (("stats", Job()), ("log", Job(logged=True)), ("trace", Job(logged=True, traced=True))):
        bench.compare(f"h1-observed-{title}", job, "h1", [
            Load("saturated", f"{CONNECTIONS} connections, closed loop",
                 ["h1", "--connections", str(CONNECTIONS), "--requests", amount(bench, 80_000),
                  "--warmup", "5000"], SATURATED),
        ])


def h1_paced(bench):
    """HTTP/1.1 keep-alive, 100-byte answers, at 5,000 requests per second: latency"""
    bench.compare("h1-paced", Job(), None, [
        Load("paced", f"{CONNECTIONS} connections, 5,000 requests/s, open loop",
             ["h1", "--connections", str(CONNECTIONS), "--rate", "5000", "--requests", amount(bench, 10_000),
              "--warmup", "1000"], PACED),
    ])


def h1_large(bench):
    """HTTP/1.1 keep-alive, 64 KiB answers"""
    bench.compare("h1-large", Job(), "h1", [
        Load("saturated", f"{CONNECTIONS} connections, closed loop",
             ["h1", "--connections", str(CONNECTIONS), "--body", "65536", "--requests", amount(bench, 20_000),
              "--warmup", "2000"], transfer("MB"), per="MB"),
    ])


def h2(bench):
    """HTTP/2 prior knowledge on both sides, GET with 1 KiB answers, 10 connections x 32 streams"""
    bench.compare("h2", Job(mode="http2"), "h2", [
        Load("saturated", "10 x 32 streams, closed loop",
             ["h2", "--requests", amount(bench, 150_000), "--warmup", "5000"], SATURATED),
    ])


def grpc(bench):
    """gRPC unary echo of 1 KiB with trailers, h2c on both sides, 10 connections x 32 streams"""
    bench.compare("grpc", Job(mode="http2"), "grpc", [
        Load("saturated", "10 x 32 streams, closed loop",
             ["h2", "--grpc", "--requests", amount(bench, 100_000), "--warmup", "5000"], SATURATED),
    ])


def tls(bench):
    """TLS 1.3 (ECDSA P-256, X25519, AES-128-GCM) in front, HTTP/1.1 keep-alive, 100-byte answers"""
    bench.compare("tls", Job(tls=True), "h1", [
        Load("saturated", f"{CONNECTIONS} connections, closed loop",
             ["h1", "--tls", "--connections", str(CONNECTIONS), "--requests", amount(bench, 60_000),
              "--warmup", "5000"], SATURATED),
    ], check_tls=True)


def tls_handshake(bench):
    """TLS 1.3 full handshakes: a new connection for every request"""
    bench.compare("tls-handshake", Job(tls=True), "h1", [
        Load("saturated", "32 at a time, closed loop",
             ["h1", "--tls", "--new-connections", "--connections", "32", "--requests", amount(bench, 5_000),
              "--warmup", "300"], SATURATED),
    ], check_tls=True)


def tls_resume(bench):
    """TLS 1.3 handshakes that take up a session again: a new connection for every request"""
    bench.compare("tls-resume", Job(tls=True), "h1", [
        Load("saturated", "32 at a time, closed loop",
             ["h1", "--tls", "--resume", "--new-connections", "--connections", "32",
              "--requests", amount(bench, 8_000), "--warmup", "300"], SATURATED),
    ], check_tls=True)


def mtls(bench):
    """Mutual TLS on both sides, HTTP/1.1: keep-alive, and a new connection for every request"""
    identity = lambda: ["--tls", "--cert", str(bench.pki / "client.crt"), "--key", str(bench.pki / "client.key")]
    bench.compare("mtls", Job(tls=True, mutual=True), "mtls", [
        Load("saturated", f"{CONNECTIONS} connections, closed loop",
             ["h1", *identity(), "--connections", str(CONNECTIONS), "--requests", amount(bench, 40_000),
              "--warmup", "4000"], SATURATED),
        Load("handshake", "new client connections, 32 at a time",
             ["h1", *identity(), "--new-connections", "--connections", "32", "--requests", amount(bench, 2_500),
              "--warmup", "200"], SATURATED),
    ], check_tls=True)


def tcp(bench):
    """TCP: bulk download through 4 connections"""
    volume = str(int((4 << 30) * bench.options.scale))
    bench.compare("tcp", Job(mode="tcp"), "source", [
        Load("bulk", "4 connections", ["bulk", "--connections", "4", "--bytes", volume], transfer("GB"), per="GB"),
    ])


def tcp_connect(bench):
    """TCP: new connections, 64 bytes each way"""
    bench.compare("tcp-connect", Job(mode="tcp"), "oneshot", [
        Load("short", "32 at a time, closed loop",
             ["short", "--connections", "32", "--requests", amount(bench, 20_000), "--warmup", "1000"], SATURATED),
    ])
