"""Sends traffic, changes the weights of the route while it flows, and shows where the traffic goes.

Owns the weights, the requests and the verdict; programs are started by `deploy/demo`.
"""

import argparse
import http.client
import os
import string
import sys
import time

WEIGHTS = [(100, 0), (50, 50), (0, 100)]
PHASE_SECONDS = 4
LINE_SECONDS = 0.5
PAUSE_SECONDS = 0.002
# Of a share of 50 percent over the thousand requests of half a phase.
TOLERANCE_PERCENT = 10
BAR_WIDTH = 40


class Traffic:
    """One keep-alive connection, and what its requests met."""

    def __init__(self, port):
        self.port = port
        self.connection = None
        self.failures = 0

    def request(self):
        """The version that answered, or None."""
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            self.connection.request("GET", "/", headers={"host": "demo.example"})
            response = self.connection.getresponse()
            body = response.read().decode().strip()
            if response.status == 200 and body in ("v1", "v2"):
                return body
            print(f"  unexpected answer {response.status}: {body}", flush=True)
        except (OSError, http.client.HTTPException) as why:
            print(f"  no answer: {why!r}", flush=True)
            self.connection.close()
            self.connection = None
        self.failures += 1
        return None


def write_routes(template, path, weights):
    """Puts the weights in place at once: the file is written aside and renamed."""
    values = {"V1_WEIGHT": weights[0], "V2_WEIGHT": weights[1]}
    aside = os.path.join(os.path.dirname(path), ".routes.new")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(string.Template(template).substitute(values))
    os.replace(aside, path)


def show(weights, counts, failures):
    total = sum(counts.values()) or 1
    share = counts["v1"] / total
    bar = ("1" * round(share * BAR_WIDTH)).ljust(BAR_WIDTH, "2")
    print(f"  weights {weights[0]:3}/{weights[1]:<3}  {bar}  v1 {100 * share:5.1f} %  v2 {100 - 100 * share:5.1f} %"
          f"  failed {failures}", flush=True)


def run_phase(traffic, weights):
    """Sends requests for a while; the counts of the second half, when the change must have arrived."""
    settled = {"v1": 0, "v2": 0}
    line = dict(settled)
    start = time.monotonic()
    next_line = start + LINE_SECONDS
    while (now := time.monotonic()) < start + PHASE_SECONDS:
        version = traffic.request()
        if version:
            line[version] += 1
            if now > start + PHASE_SECONDS / 2:
                settled[version] += 1
        if now > next_line:
            show(weights, line, traffic.failures)
            line = dict.fromkeys(line, 0)
            next_line += LINE_SECONDS
        time.sleep(PAUSE_SECONDS)
    show(weights, line, traffic.failures)
    return settled


def follows(weights, counts):
    """Whether the answers are spread as the weights say; a weight of 0 or 100 holds exactly."""
    total = sum(counts.values())
    if total == 0:
        return False
    percent = 100 * counts["v1"] / total
    return percent == weights[0] if weights[0] in (0, 100) else abs(percent - weights[0]) <= TOLERANCE_PERCENT


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url-port", type=int, required=True)
    parser.add_argument("--template", required=True)
    parser.add_argument("--routes", required=True)
    parser.add_argument("--once", action="store_true")
    options = parser.parse_args()
    with open(options.template, encoding="utf-8") as file:
        template = file.read()
    traffic = Traffic(options.url_port)
    good = True
    while True:
        for weights in WEIGHTS:
            write_routes(template, options.routes, weights)
            counts = run_phase(traffic, weights)
            if not follows(weights, counts):
                good = False
                print(f"  weights {weights} were not followed: {counts}", flush=True)
        if options.once:
            return 0 if good and traffic.failures == 0 else 1
        WEIGHTS.reverse()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
