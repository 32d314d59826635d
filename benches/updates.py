"""Scenarios about updates: the time from a change at its source until traffic follows it.

Owns the changes and the watching of their effect; proxies that do not speak xDS are left out.
"""

import contextlib
import socket
import threading
import time

import proxies as kinds
from machine import Process, http_exchange
from proxies import Job, Unsupported
from states import MANY_CLUSTERS, endpoints
from tables import RATIO

KINDS = {"rds": "a route", "cds": "a cluster", "eds": "the endpoints of a cluster"}
COLUMNS = [("ms to effect", "delay", "{:.1f}"), RATIO, ("proxy CPU ms", "cpu", "{:.0f}"),
           ("ERRORS", "errors_total", "{:.0f}")]
PATIENCE_SECONDS = 20


def xds(bench):
    """From `set` at a control plane (one delta ADS stream) to traffic following it, with 1,000 clusters"""
    if not bench.options.control_plane_mock:
        bench.note("xds", "all", "no control plane to drive them with (--control-plane-mock)")
        return
    columns = [*COLUMNS, ("of it in the source ms", "source", "{:.1f}")]
    measure_updates(bench, "xds", "by delta ADS", GrpcSource, columns)


def xds_file(bench):
    """From a moved-in xDS file to traffic following it, with 1,000 clusters"""
    measure_updates(bench, "xds-file", "by file", FileSource, COLUMNS)


def measure_updates(bench, scenario, how, source_type, columns):
    backend_a, upstreams = endpoints(bench)
    backend_b, others = endpoints(bench, tag="b")
    rounds = {kind: {} for kind in KINDS}
    for proxy in (p for p in bench.proxies if p.kind == "envoy"):
        with contextlib.ExitStack() as cleanup:
            try:
                source = source_type(bench, cleanup)
                job = Job(upstreams=upstreams, others=others, clusters=MANY_CLUSTERS, **source.job)
                process = bench.start(proxy, job, ready="answer", before=source.fill)
                cleanup.callback(process.stop)
                source.process = process
                for kind in KINDS:
                    # An even number: there and back again.
                    numbers = range(2 * (1 + bench.options.rounds))
                    rounds[kind][proxy.name] = [update(source, process, kind, number) for number in numbers]
            except (Unsupported, RuntimeError, OSError) as why:
                bench.note(scenario, proxy.name, why)
    backend_a.stop()
    backend_b.stop()
    for kind, what in KINDS.items():
        title = f"{what} among {MANY_CLUSTERS} changed, {how}"
        bench.publish(f"{scenario}/{kind}", title, rounds[kind], columns, cost="delay")


class FileSource:
    """Files that are watched; each change replaces one of them."""

    def __init__(self, bench, cleanup):
        self.job = {"dynamic": "files"}
        self.version = 0

    def fill(self, job, directory):
        """The proxy's configuration came with the first files."""

    def prepare(self, kind, changed, everything):
        """Writes the file beside its place, so that it is never seen half written; the move is the change."""
        self.version += 1
        path = self.process.dir / f"{kind}.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(kinds.discovery_response(kind, everything, self.version))
        return lambda: fresh.rename(path)

    def finish(self):
        return {}


class GrpcSource:
    """The control plane of this project, told what to serve through its HTTP port."""

    def __init__(self, bench, cleanup):
        log = bench.dir / f"control-plane-{time.monotonic_ns()}.log"
        argv = [bench.options.control_plane_mock, "serve", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"]
        mock = Process(argv, bench.load_core, log)
        cleanup.callback(mock.stop)
        addresses = self.wait_ready(mock)
        self.control = addresses["control"]
        self.job = {"dynamic": "grpc", "control_plane": addresses["xds"]}
        self.thread, self.took, self.failed = None, None, None

    @staticmethod
    def wait_ready(mock):
        for _ in range(1000):
            lines = [line.split() for line in mock.tail().splitlines()]
            found = {line[0]: line[1] for line in lines if len(line) == 2 and line[0] in ("xds", "control")}
            if len(found) == 2:
                return {name: (a.rpartition(":")[0], int(a.rpartition(":")[2])) for name, a in found.items()}
            if mock.child.poll() is not None:
                break
            time.sleep(0.01)
        raise RuntimeError(f"the control plane did not start: {mock.tail()}")

    def fill(self, job, directory):
        for kind, resources in kinds.dynamic_resources(job, directory).items():
            self.post(kinds.discovery_response(kind, resources, 0).encode())

    def post(self, body):
        with socket.create_connection(self.control, PATIENCE_SECONDS) as sock:
            status, _ = http_exchange(sock, "control", "POST", "/set", body)
        if status != 200:
            raise RuntimeError(f"the control plane refused a resource: status {status}")

    def prepare(self, kind, changed, everything):
        """Asks in another thread: the answer comes when the control plane has done its part of the work."""
        body = kinds.discovery_response(kind, changed, 0).encode()

        def ask():
            start = time.monotonic()
            try:
                self.post(body)
                self.took = time.monotonic() - start
            except (OSError, RuntimeError) as why:
                self.failed = why

        self.took = self.failed = None
        self.thread = threading.Thread(target=ask)
        return self.thread.start

    def finish(self):
        self.thread.join()
        if self.failed:
            raise RuntimeError(self.failed)
        return {"source": self.took * 1000}


def update(source, process, kind, number):
    """Sends one virtual host's traffic to the other backend, or back again.

    rds  virtual host 2 is routed to the last cluster
    cds  cluster 0's endpoints are replaced
    eds  cluster 1's endpoints are replaced
    Asks every half millisecond from the moment of the change.
    """
    job, directory = process.job, process.dir
    to_b = number % 2 == 0
    upstreams = job.others if to_b else job.upstreams
    if kind == "rds":
        host = kinds.host_name(2)
        changed = everything = [kinds.envoy_routes(job, lambda i: job.clusters - 1 if i == 2 and to_b else i)]
    elif kind == "cds":
        host = kinds.host_name(0)
        changed = [kinds.envoy_cluster(job, 0, upstreams)]
        everything = changed + kinds.dynamic_clusters(job, directory)[1:]
    else:
        host = kinds.host_name(1)
        changed = everything = [kinds.envoy_endpoints("cluster-1", upstreams)]
    change = source.prepare(kind, changed, everything)

    delay, errors, cpu = None, 0, process.cpu_seconds()
    with socket.create_connection(("127.0.0.1", process.port)) as sock:
        sock.settimeout(5)
        http_exchange(sock, host)
        start = time.monotonic()
        change()
        while delay is None and time.monotonic() - start < PATIENCE_SECONDS:
            status, headers = http_exchange(sock, host)
            errors += status != 200
            if headers.get(b"x-served-by") == (b"b" if to_b else b"a"):
                delay = time.monotonic() - start
            else:
                time.sleep(0.0005)
    extra = source.finish()
    # What follows the effect is part of its cost, too.
    time.sleep(0.5)
    return {"delay": delay and delay * 1000, "cpu": (process.cpu_seconds() - cpu) * 1000,
            "errors_total": errors + (delay is None), **extra}
