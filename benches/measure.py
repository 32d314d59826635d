"""Measuring: starting proxies for a job, loading them in turn, and what the figures of one load are.

Owns the rounds of a comparison. Never prints tables (see `tables`) and never chooses loads (see `loads`).
"""

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import proxies as kinds
import tables
from machine import Process, free_port, http_get, make_pki, softirq_thread
from proxies import Unsupported

UNSUPPORTED_EXIT = 64       # what a `simple` proxy exits with when it cannot do a job
RETRY_SECONDS = 45          # disturbed rounds are repeated only this far into a comparison


@dataclass
class Proxy:
    name: str
    kind: str
    binary: str

    @property
    def is_floor(self):
        """Not a proxy, only what a proxy cannot do without."""
        return self.kind in ("floor", "splice")

    def argv(self, job, directory):
        return kinds.KINDS[self.kind](self.binary, job, directory)


@dataclass
class Load:
    """One way of loading: arguments of loadgen, and how to print the outcome."""
    key: str
    title: str
    argv: list
    columns: list
    per: str = "request"        # the unit of work the CPU time is divided by


class Bench:
    def __init__(self, options, proxies):
        self.options = options
        self.proxies = proxies
        self.loadgen = str(options.loadgen)
        self.proxy_core, self.load_core = (int(c) for c in options.cores.split(","))
        self.dir = Path(tempfile.mkdtemp(prefix="bench-"))
        self.pki = self.dir / "pki"
        self.results = {}
        self.notes = []
        self.retry_until = 0.0
        self._count = 0

    # -- set-up

    def backend(self, service, tag="a", addresses=("127.0.0.1",)):
        """Starts a backend; returns it and its list of (host, port)."""
        port = free_port()
        argv = [self.loadgen, "backend", "--tag", tag]
        for address in addresses:
            argv += [f"--{service}", f"{address}:{port}"]
        if service == "mtls":
            make_pki(self.pki)
            argv += ["--backend-cert", str(self.pki / "server.crt"), "--backend-key", str(self.pki / "server.key"),
                     "--ca", str(self.pki / "ca.crt")]
        process = Process(argv, self.load_core, self.dir / f"backend-{service}.log")
        self.wait_listening(process, port)
        return process, [(a, port) for a in addresses]

    def start(self, proxy, job, ready="connect", before=None):
        """Starts a proxy for a job and waits until it listens (or answers 200). `before` sees the job as it is run."""
        self._count += 1
        directory = self.dir / f"{self._count}-{proxy.name}"
        directory.mkdir()
        if job.tls:
            make_pki(self.pki)
        job = replace(job, listen=free_port(), pki=self.pki)
        argv = proxy.argv(job, directory)
        if before:
            before(job, directory)
        process = Process(argv, self.proxy_core, directory / "output.log")
        process.port, process.dir, process.job = job.listen, directory, job
        try:
            if job.empty:
                time.sleep(1)
            elif ready == "connect":
                self.wait_listening(process, job.listen)
            else:
                process.answered = self.wait_answering(process, job)
            if process.child.poll() is not None:
                self._gave_up(process)
        except RuntimeError:
            process.stop()
            raise
        return process

    def _gave_up(self, process):
        process.stop()
        if process.child.returncode == UNSUPPORTED_EXIT:
            raise Unsupported("not supported")
        raise RuntimeError(f"exited with {process.child.returncode}: {process.tail()}")

    def wait_listening(self, process, port):
        for _ in range(3000):
            if process.child.poll() is not None:
                self._gave_up(process)
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.01)
        raise RuntimeError(f"does not listen: {process.tail()}")

    def wait_answering(self, process, job):
        """Seconds from exec until the first 200."""
        host = kinds.host_name(0) if job.clusters > 1 else "bench.local"
        while time.monotonic() - process.started < 60:
            if process.child.poll() is not None:
                self._gave_up(process)
            with contextlib.suppress(OSError):
                answer = http_get(job.listen, host)
                if answer and answer[0] == 200:
                    return time.monotonic() - process.started
            time.sleep(0.001)
        raise RuntimeError(f"never answered 200: {process.tail()}")

    # -- one measurement

    def run_load(self, argv, port, watch=()):
        words = [self.loadgen, *argv, "--target", f"127.0.0.1:{port}", "--max-seconds", str(self.options.max_seconds)]
        groups = {label: process.pids() for label, process in watch}
        groups["softirq"] = [softirq_thread(self.proxy_core)]
        groups["load_softirq"] = [softirq_thread(self.load_core)]
        for label, pids in groups.items():
            if all(pids):
                words += ["--watch", f"{label}={','.join(map(str, pids))}"]
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=self.options.max_seconds + 30,
            preexec_fn=lambda: os.sched_setaffinity(0, {self.load_core}))
        if done.returncode:
            raise RuntimeError(f"load generator: {done.stderr.strip()[-500:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def measure(self, load, port, backend, proxy_process):
        """Runs a load; again, at most twice, while others use the cores too."""
        watch = [(label, process) for label, process in (("backend", backend), ("proxy", proxy_process)) if process]
        best = None
        for attempt in range(1 + self.options.retries):
            if attempt and time.monotonic() > self.retry_until:
                break
            report = self.run_load(load.argv, port, watch)
            report.update(derive(report, load.per, self.proxy_core, self.load_core))
            if report["errors_total"]:
                return report           # never hidden behind a better one
            if best is None or report["foreign"] < best["foreign"]:
                best = report
            if best["foreign"] <= tables.NOISY:
                break
        return best

    # -- one comparison

    def compare(self, scenario, job, service, loads, check_tls=False):
        """All proxies, all rounds, all loads of one job. Prints and keeps the results.

        Without a `service` the load generator is the backend, too."""
        self.retry_until = time.monotonic() + RETRY_SECONDS
        with contextlib.ExitStack() as cleanup:
            if service:
                backend, job.upstreams = self.backend(service)
                cleanup.callback(backend.stop)
            else:
                backend, job.upstreams = None, [("127.0.0.1", free_port())]
                for load in loads:
                    load.argv = [*load.argv, "--h1", "127.0.0.1:%d" % job.upstreams[0][1]]
            lanes = []
            if not job.tls:
                lanes.append(("direct", None, job.upstreams[0][1]))
            for proxy in self.proxies:
                try:
                    process = self.start(proxy, job)
                    cleanup.callback(process.stop)
                    if check_tls:
                        self.check_tls(process.port, job.mutual)
                    lanes.append((proxy.name, process, process.port))
                except (Unsupported, RuntimeError, subprocess.TimeoutExpired) as why:
                    if not proxy.is_floor:
                        self.note(scenario, proxy.name, why)
            if not lanes:
                return
            rounds = {load.key: {name: [] for name, _, _ in lanes} for load in loads}
            for number in range(self.options.rounds):
                turn = number * 2 % len(lanes)
                for name, process, port in lanes[turn:] + lanes[:turn]:
                    for load in loads:
                        try:
                            rounds[load.key][name].append(self.measure(load, port, backend, process))
                        except (RuntimeError, subprocess.TimeoutExpired) as why:
                            self.note(scenario, name, why)
        for load in loads:
            self.publish(f"{scenario}/{load.key}", load.title, rounds[load.key], load.columns)

    def check_tls(self, port, mutual):
        """The generator does not verify certificates; openssl does, once."""
        words = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(self.pki / "ca.crt"),
                 "-verify_return_error", "-brief"]
        identity = ["-cert", str(self.pki / "client.crt"), "-key", str(self.pki / "client.key")]
        request = "GET /b/100 HTTP/1.1\r\nhost: bench.local\r\nconnection: close\r\n\r\n"

        def talk(extra):
            done = subprocess.run(words + extra, input=request, capture_output=True, text=True, timeout=10)
            return "TLSv1.3" in done.stderr and "Verification: OK" in done.stderr, done

        ok, done = talk(identity if mutual else [])
        if not ok:
            raise RuntimeError(f"TLS check failed: {done.stderr.strip()[-300:]}")
        if mutual and " 200 " in talk(["-ign_eof"])[1].stdout:
            raise RuntimeError("serves clients that show no certificate")

    # -- results

    def note(self, scenario, name, why):
        text = " ".join(str(why).split())[:400]
        if (scenario, name, text) not in self.notes:
            self.notes.append((scenario, name, text))
            print(f"  {scenario}: {name}: {text}", flush=True)

    def publish(self, key, title, rounds, columns, cost="cost"):
        """Prints the medians of the quiet rounds, with the ratios of `cost`, and keeps everything."""
        references = self.options.reference.split(",")
        medians = tables.medians(rounds, references, cost)
        tables.show(f"{key}: {title}", medians, columns, references)
        self.results[key] = {"title": title, "medians": medians, "rounds": rounds}


def derive(report, per, proxy_core, load_core):
    """The figures of one measurement, from what loadgen reported."""
    seconds, cpu, cores = report["seconds"], report["cpu"], report["cores"]

    def used(label):
        group = cpu.get(label, {})
        return group.get("running") or group.get("user", 0) + group.get("system", 0)

    amounts = {"request": report["requests"], "MB": report["bytes"] / 1e6, "GB": report["bytes"] / 1e9}
    work = amounts[per] or 1
    others = used("backend") + used("loadgen") + used("load_softirq")
    spent, ticks = used("proxy") + used("softirq"), cpu.get("proxy")
    if not ticks:               # no proxy: what the two ends of a connection take
        spent, ticks = (others, cpu["backend"]) if "backend" in cpu else (0, cpu["loadgen"])
    # CPU time others took on either core, or made the proxy wait for.
    foreign = max(cores[proxy_core]["busy"] - used("proxy") - used("softirq"), cores[load_core]["busy"] - others,
                  cpu.get("proxy", {}).get("waiting", 0), 0) / seconds
    out = {
        "rate": work / seconds,
        "cost": spent / work * 1e6 or None,                 # CPU microseconds per unit of work
        "kernel": ticks["system"] / max(ticks["user"] + ticks["system"], 0.01),
        "load_cost": others / work * 1e6,
        "busy": (used("proxy") + used("softirq")) / seconds,
        "load_busy": others / seconds,
        "foreign": foreign,
        "errors_total": sum(report["errors"].values()) + report["unfinished"],
    }
    for q, value in (report["latency_us"] or {}).items():
        out[q] = value
    for q, value in (report["window_us"] or {}).items():
        out[f"usual_{q}"] = value
    return out
