"""Scenarios about what a proxy takes while it does nothing: memory, idle connections, the time to start.

Owns how resident memory and start-up are looked at. Load comes from `measure`.
"""

import contextlib
import json
import os
import subprocess
import time
from dataclasses import replace

from proxies import Job, Unsupported
from tables import RATIO

MANY_CLUSTERS = 1000
IDLE_CONNECTIONS = 10_000
MB = 1 << 20


def real_proxies(bench):
    return [proxy for proxy in bench.proxies if not proxy.is_floor]


def endpoints(bench, tag="a"):
    """A backend under ten addresses, for clusters of ten endpoints."""
    return bench.backend("h1", tag, addresses=[f"127.0.0.{n}" for n in range(1, 11)])


def memory(bench):
    """Resident memory: empty, and with 1,000 clusters x 10 endpoints and their routes"""
    rows = {}
    backend, upstreams = endpoints(bench)
    states = {"empty": (Job(empty=True), "connect"),
              "clusters": (Job(upstreams=upstreams, clusters=MANY_CLUSTERS), "answer")}
    for proxy in real_proxies(bench):
        row = rows[proxy.name] = {}
        for key, (job, ready) in states.items():
            try:
                process = bench.start(proxy, job, ready)
                time.sleep(1)
                row[key] = process.memory()
                row[f"{key}_mb"] = row[key] / MB
                process.stop()
            except (Unsupported, RuntimeError) as why:
                bench.note("memory", proxy.name, why)
        if "clusters" in row and "empty" in row:
            row["per_cluster"] = (row["clusters"] - row["empty"]) / MANY_CLUSTERS / 1024
    backend.stop()
    rounds = {name: [row] for name, row in rows.items() if row}
    bench.publish("memory/empty", "no listeners, no clusters", rows_with(rounds, "empty"),
                  [("resident MB", "empty_mb", "{:.1f}"), RATIO], cost="empty")
    bench.publish("memory/clusters", f"{MANY_CLUSTERS} clusters x 10 endpoints, each with its route",
                  rows_with(rounds, "clusters"),
                  [("resident MB", "clusters_mb", "{:.1f}"), RATIO, ("KB/cluster", "per_cluster", "{:.1f}")],
                  cost="clusters")


def rows_with(rounds, key):
    return {name: samples for name, samples in rounds.items() if key in samples[0]}


def idle_conn(bench):
    """Resident memory per idle client connection, of 10,000 HTTP/1.1 connections with one request each behind them"""
    idle(bench, "idle-conn", f"{IDLE_CONNECTIONS:,} idle connections", Job(), [])


def idle_tls(bench):
    """The same behind TLS 1.3"""
    idle(bench, "idle-tls", f"{IDLE_CONNECTIONS:,} idle TLS connections", Job(tls=True), ["--tls"])


def idle(bench, scenario, title, job, flags):
    rows = {}
    backend, upstreams = bench.backend("h1")
    for proxy in real_proxies(bench):
        with contextlib.ExitStack() as cleanup:
            try:
                ready = "connect" if job.tls else "answer"
                process = bench.start(proxy, replace(job, upstreams=upstreams), ready=ready)
                cleanup.callback(process.stop)
                rows[proxy.name] = [hold_idle(bench, process, flags)]
            except (Unsupported, RuntimeError) as why:
                bench.note(scenario, proxy.name, why)
    backend.stop()
    bench.publish(scenario, title, rows, [
        ("bytes/connection", "per_connection", "{:,.0f}"), RATIO, ("before MB", "before_mb", "{:.1f}"),
        ("with them MB", "after_mb", "{:.1f}"), ("held", "alive", "{:,.0f}"), ("ERRORS", "errors_total", "{:.0f}"),
    ], cost="per_connection")


def hold_idle(bench, process, flags):
    # So that what it keeps after some work is not counted as the connections'.
    bench.run_load(["h1", "--requests", "5000", *flags], process.port)
    time.sleep(1)
    before = process.memory()
    holder = subprocess.Popen(
        [bench.loadgen, "idle", "--target", f"127.0.0.1:{process.port}", "--connections", str(IDLE_CONNECTIONS),
         *flags],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {bench.load_core}))
    try:
        report = json.loads(holder.stdout.readline() or "null")
        if report is None:
            raise RuntimeError(f"the load generator gave up ({holder.wait()})")
        time.sleep(1)
        after = process.memory()
        holder.stdin.close()
        alive = json.loads(holder.stdout.readline())["alive"]
    finally:
        if not holder.stdin.closed:
            holder.stdin.close()
        holder.wait(30)
    return {
        "before": before, "after": after, "before_mb": before / MB, "after_mb": after / MB, "alive": alive,
        "per_connection": (after - before) / max(alive, 1),
        "errors_total": sum(report["errors"].values()) + IDLE_CONNECTIONS - alive,
    }


def startup(bench):
    """Time from exec to the first 200, with 1 and with 1,000 clusters, and the size of the binary"""
    backend, upstreams = endpoints(bench)
    jobs = {"one": Job(upstreams=upstreams[:1]), "many": Job(upstreams=upstreams, clusters=MANY_CLUSTERS)}
    rounds = {key: {proxy.name: [] for proxy in real_proxies(bench)} for key in jobs}
    for number in range(max(5, bench.options.rounds)):
        for proxy in real_proxies(bench):
            for key, job in jobs.items():
                if key == "many" and number >= 3:
                    continue
                try:
                    process = bench.start(proxy, job, ready="answer")
                    size = os.stat(f"/proc/{process.child.pid}/exe").st_size / 1e6
                    rounds[key][proxy.name].append({"answered": process.answered * 1000, "size": size})
                    process.stop()
                except (Unsupported, RuntimeError) as why:
                    bench.note("startup", proxy.name, why)
    backend.stop()
    columns = [("first 200 ms", "answered", "{:.1f}"), RATIO]
    bench.publish("startup/small", "exec to first 200, one cluster", rounds["one"],
                  [*columns, ("binary MB", "size", "{:.1f}")], cost="answered")
    bench.publish("startup/clusters", f"exec to first 200, {MANY_CLUSTERS} clusters x 10 endpoints", rounds["many"],
                  columns, cost="answered")
