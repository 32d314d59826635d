#!/usr/bin/env python3
"""What active health checks cost: the CPU time of the thread that makes them, for many endpoints at an interval.

Usage: benches/health_checks.py [--proxy PATH] [--kind http|tcp] [--endpoints N] [--interval SECONDS] [--intervals N]
                                [--bound PERCENT]

The endpoints are addresses in 127.0.0.0/8 on one nginx with one worker; a check over HTTP keeps its connection, one over
TCP makes a new one each time. Prints the share of one core within each fifth of each interval, so that checks in bursts
show, and the mean without the first interval, in which all endpoints are checked for the first time. Fails if the mean is above
the bound, 15 % of one core unless given.
"""

import argparse
import json
import os
import pathlib
import resource
import signal
import subprocess
import tempfile
import time
import urllib.request

NGINX = """
daemon off; pid nginx.pid; error_log stderr error; worker_processes 1; worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 1h;
  client_body_temp_path .; proxy_temp_path .; fastcgi_temp_path .; uwsgi_temp_path .; scgi_temp_path .;
  server {{ listen 0.0.0.0:{port} backlog=8192; location / {{ return 200; }} }}
}}
"""


def bootstrap(arguments):
    def endpoint(index):
        address = f"127.{1 + index // 62500}.{index // 250 % 250}.{1 + index % 250}"
        return {"endpoint": {"address": {"socket_address": {"address": address, "port_value": arguments.port}}}}

    interval = f"{arguments.interval}s"
    kind = {"http": {"http_health_check": {"path": "/healthz"}}, "tcp": {"tcp_health_check": {}}}[arguments.kind]
    check = {"timeout": "5s", "interval": interval, "no_traffic_interval": interval,
             "unhealthy_threshold": 1, "healthy_threshold": 1, **kind}
    endpoints = [{"lb_endpoints": [endpoint(index) for index in range(arguments.endpoints)]}]
    cluster = {"name": "c", "type": "STATIC", "health_checks": [check],
               "load_assignment": {"cluster_name": "c", "endpoints": endpoints}}
    admin = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
    return {"admin": admin, "static_resources": {"clusters": [cluster]}}


def cpu_seconds(pid):
    """Of the main thread, which makes the checks."""
    fields = pathlib.Path(f"/proc/{pid}/task/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(pid, arguments):
    step = arguments.interval / 5
    means = []
    for _ in range(arguments.intervals + 1):
        shares = []
        for _ in range(5):
            began, used = time.monotonic(), cpu_seconds(pid)
            time.sleep(step)
            shares.append(100 * (cpu_seconds(pid) - used) / (time.monotonic() - began))
        print("  ".join(f"{share:5.1f} %" for share in shares), flush=True)
        means.append(sum(shares) / len(shares))
    mean = sum(means[1:]) / arguments.intervals
    print(f"mean of {arguments.intervals} intervals: {mean:.1f} % of one core, bound {arguments.bound:g} %")
    return mean <= arguments.bound


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--proxy", default=root / "target/release/outrigger")
    parser.add_argument("--kind", choices=["http", "tcp"], default="http")
    parser.add_argument("--endpoints", type=int, default=20_000)
    parser.add_argument("--interval", type=float, default=10)
    parser.add_argument("--intervals", type=int, default=3)
    parser.add_argument("--port", type=int, default=18081)
    parser.add_argument("--bound", type=float, default=15, metavar="PERCENT")
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # With less than a sixteenth of its connections free, nginx closes those that are kept.
    if arguments.kind == "http" and (most - 100) * 15 // 16 < arguments.endpoints + 100:
        parser.error(f"{most} open files are allowed, which is too few for {arguments.endpoints} connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as directory:
        there = pathlib.Path(directory)
        (there / "nginx.conf").write_text(NGINX.format(port=arguments.port, files=most, connections=most - 100))
        (there / "bootstrap.json").write_text(json.dumps(bootstrap(arguments)))
        nginx = subprocess.Popen(["nginx", "-p", directory, "-c", "nginx.conf"])
        time.sleep(0.5)
        proxy = subprocess.Popen([arguments.proxy, "-c", there / "bootstrap.json", "--concurrency", "1", "-l", "warning",
                                  "--admin-address-path", there / "admin"])
        try:
            kept = measure(proxy.pid, arguments)
            admin = (there / "admin").read_text().strip()
            with urllib.request.urlopen(f"http://{admin}/stats?filter=health_check%5C.(attempt|success|healthy)") as page:
                print(page.read().decode(), end="")
        finally:
            for process in (proxy, nginx):
                process.send_signal(signal.SIGTERM)
                process.wait()
    if not kept:
        raise SystemExit("the bound is not kept")


if __name__ == "__main__":
    main()
