"""Transparent interception: connections that know nothing of the proxy pass through it to where they wanted to go.

    unshare -n python3 interception.py PROXY      as root
    unshare -rn python3 interception.py PROXY     as anyone, where the system permits it

Everything happens in the network namespace that it is started in, which it changes: addresses on `lo`, NAT rules, one
outbound listener with the listener filters original_dst and http_inspector before an ORIGINAL_DST cluster. Root uses
deploy/interception/intercept, where connections of root go straight out and those of the clients here are another
user's. Without more than one user, the rules tell the clients by their source address.
"""

import http.client
import http.server
import json
import os
import pathlib
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

LIMIT = 60  # seconds that anything may take: far beyond what it takes, so that only what hangs reaches it
OUTBOUND = 15001
ADMIN = 15000
CLIENT_USER = 1337
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
CLIENT = {4: "192.0.2.1", 6: "2001:db8::1"}
# Two destinations of each family, with ports of their own: a proxy that mixed them up would be seen.
DESTINATIONS = {4: ("192.0.2.9", "192.0.2.10"), 6: ("2001:db8::9", "2001:db8::10")}
HTTP_PORTS = (8080, 8081)
ECHO_PORTS = (7000, 7001)
GREETING_PORT = 7100
CLOSED_PORT = 9
INTERCEPT = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "interception" / "intercept"

TYPES = "type.googleapis.com/envoy.extensions"
BOOTSTRAP = {
    "node": {"id": "interception", "cluster": "tests"},
    "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN}}},
    "static_resources": {
        "listeners": [
            {
                "name": "outbound",
                "traffic_direction": "OUTBOUND",
                "address": {"socket_address": {"address": "::", "port_value": OUTBOUND, "ipv4_compat": True}},
                # A client that waits for the server to speak first is not HTTP, which only time can tell.
                # It is long, so that a client that speaks is never too late, however busy the machine is.
                "listener_filters_timeout": "5s",
                "continue_on_listener_filters_timeout": True,
                "listener_filters": [
                    {
                        "name": "envoy.filters.listener.original_dst",
                        "typed_config": {"@type": f"{TYPES}.filters.listener.original_dst.v3.OriginalDst"},
                    },
                    {
                        "name": "envoy.filters.listener.http_inspector",
                        "typed_config": {"@type": f"{TYPES}.filters.listener.http_inspector.v3.HttpInspector"},
                    },
                ],
                "filter_chains": [
                    {
                        "name": "http",
                        "filter_chain_match": {"application_protocols": ["http/1.0", "http/1.1", "h2c"]},
                        "filters": [
                            {
                                "name": "envoy.filters.network.http_connection_manager",
                                "typed_config": {
                                    "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
                                    "stat_prefix": "outbound",
                                    "http_filters": [
                                        {
                                            "name": "envoy.filters.http.router",
                                            "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"},
                                        }
                                    ],
                                    "route_config": {
                                        "name": "any",
                                        "virtual_hosts": [
                                            {
                                                "name": "any",
                                                "domains": ["*"],
                                                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "original"}}],
                                            }
                                        ],
                                    },
                                },
                            }
                        ],
                    }
                ],
                "default_filter_chain": {
                    "name": "tcp",
                    "filters": [
                        {
                            "name": "envoy.filters.network.tcp_proxy",
                            "typed_config": {
                                "@type": f"{TYPES}.filters.network.tcp_proxy.v3.TcpProxy",
                                "stat_prefix": "outbound",
                                "cluster": "original",
                            },
                        }
                    ],
                },
            }
        ],
        "clusters": [
            {
                "name": "original",
                "type": "ORIGINAL_DST",
                "lb_policy": "CLUSTER_PROVIDED",
                "connect_timeout": "2s",
            }
        ],
    },
}
ACCESS_LOG_FORMAT = "%DOWNSTREAM_LOCAL_ADDRESS% %UPSTREAM_HOST% %BYTES_RECEIVED% %BYTES_SENT%\n"


def run(*command):
    subprocess.run(command, check=True)


def several_users():
    """Whether this namespace has the user that clients run as."""
    with open("/proc/self/uid_map", encoding="ascii") as lines:
        ranges = [[int(word) for word in line.split()] for line in lines]
    return any(first <= CLIENT_USER < first + count for first, _, count in ranges)


def set_up_network(users):
    run("ip", "link", "set", "lo", "up")
    for address in (CLIENT[4], *DESTINATIONS[4]):
        run("ip", "address", "add", f"{address}/32", "dev", "lo")
    for address in (CLIENT[6], *DESTINATIONS[6]):
        run("ip", "-6", "address", "add", f"{address}/128", "dev", "lo", "nodad")
    if users:
        run(str(INTERCEPT), "add", "--uid", "0", "--outbound-port", str(OUTBOUND), "--inbound-port", "0")
        return
    for command, family in (("iptables", 4), ("ip6tables", 6)):
        rule = ["-A", "OUTPUT", "-p", "tcp", "-s", CLIENT[family], "-j", "REDIRECT", "--to-ports", str(OUTBOUND)]
        # Other namespaces may share the lock of the tables.
        run(command, "-w", str(LIMIT), "-t", "nat", *rule)


def family_of(address):
    return 6 if ":" in address else 4


def text_of(address, port):
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Web(http.server.BaseHTTPRequestHandler):
    """Says who it is by the address that the connection came to."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(b"")

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["content-length"])))

    def answer(self, body):
        address, port = self.connection.getsockname()[:2]
        seen = {"at": text_of(address, port), "host": self.headers["host"], "path": self.path, "body": len(body)}
        text = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


class Echo(socketserver.BaseRequestHandler):
    """Says where it was reached, then returns what comes."""

    def handle(self):
        first = self.request.recv(65536)
        address, port = self.request.getsockname()[:2]
        self.request.sendall(f"{text_of(address, port)}\n".encode() + first)
        while data := self.request.recv(65536):
            self.request.sendall(data)


class Greeting(socketserver.BaseRequestHandler):
    """Speaks first."""

    def handle(self):
        address, port = self.request.getsockname()[:2]
        self.request.sendall(f"welcome to {text_of(address, port)}\n".encode())
        self.request.recv(1)


def serve(kind, handler, address, port):
    class Server(kind):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        allow_reuse_address = True
        daemon_threads = True
        request_queue_size = 64

    server = Server((address, port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def start_servers():
    for addresses in DESTINATIONS.values():
        for number, address in enumerate(addresses):
            serve(http.server.ThreadingHTTPServer, Web, address, HTTP_PORTS[number])
            serve(socketserver.ThreadingTCPServer, Echo, address, ECHO_PORTS[number])
            serve(socketserver.ThreadingTCPServer, Greeting, address, GREETING_PORT)


class Clients:
    """Connections that are redirected."""

    def __init__(self, users):
        self.users = users

    def connect(self, address, port):
        family = family_of(address)
        # The owner of a socket is who created it.
        if self.users:
            os.seteuid(CLIENT_USER)
        try:
            stream = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET)
        finally:
            if self.users:
                os.seteuid(0)
        stream.settimeout(LIMIT)
        if not self.users:
            stream.bind((CLIENT[family], 0))
        stream.connect((address, port))
        return stream

    def curl(self, address, *arguments):
        command = ["curl", "-sS", "-m", str(LIMIT), *arguments]
        if not self.users:
            command += ["--interface", CLIENT[family_of(address)]]
        user = CLIENT_USER if self.users else None
        done = subprocess.run(command, user=user, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise AssertionError(f"{command}: {done.returncode}: {done.stderr}")
        return done.stdout


def same(what, found, wanted):
    if found != wanted:
        raise AssertionError(f"{what}: {found!r} instead of {wanted!r}")


def read_to_end(stream):
    data = b""
    while more := stream.recv(65536):
        data += more
    return data


def check_tcp(clients, address, port):
    message = os.urandom(1 << 20)
    with clients.connect(address, port) as stream:
        sender = threading.Thread(target=lambda: (stream.sendall(message), stream.shutdown(socket.SHUT_WR)))
        sender.start()
        where, _, echoed = read_to_end(stream).partition(b"\n")
        sender.join()
    same("reached by TCP", where.decode(), text_of(address, port))
    same("the echo of 1 MiB is right", echoed == message, True)


def check_server_first(stream, address):
    with stream:
        same("greeting", stream.makefile().readline(), f"welcome to {text_of(address, GREETING_PORT)}\n")


def check_http(clients, address, port):
    connection = http.client.HTTPConnection(address, port, timeout=LIMIT)
    connection.sock = clients.connect(address, port)
    # Two requests on one connection, neither of which names the destination in its host.
    for method, path, body in (("GET", "/one?a=b", None), ("POST", "/two", b"x" * 100_000)):
        connection.request(method, path, body, {"Host": "some.name"})
        response = connection.getresponse()
        same("status", response.status, 200)
        same("server header", response.getheader("server"), "envoy")
        seen = json.loads(response.read())
        wanted = {"at": text_of(address, port), "host": "some.name", "path": path, "body": len(body or b"")}
        same("seen by the server", seen, wanted)
    connection.close()
    by_h2 = clients.curl(address, "--http2-prior-knowledge", f"http://{text_of(address, port)}/h2")
    same("seen by the server", json.loads(by_h2)["at"], text_of(address, port))


def check_closed(clients, address):
    with clients.connect(address, CLOSED_PORT) as stream:
        stream.sendall(b"\x00 this is not HTTP")
        try:
            same("from a port where nobody listens", read_to_end(stream), b"")
        except ConnectionResetError:
            pass
    status = clients.curl(address, "-o", "/dev/null", "-w", "%{http_code}", f"http://{text_of(address, CLOSED_PORT)}/")
    same("status of a destination where nobody listens", status, "503")


def check_not_redirected(address):
    """Whoever calls the listener itself has no original destination; above all the proxy does not call itself."""
    with socket.create_connection((address, OUTBOUND), timeout=LIMIT) as stream:
        stream.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        same("status without redirection", read_to_end(stream)[:12], b"HTTP/1.1 503")
    with socket.create_connection((address, OUTBOUND), timeout=LIMIT) as stream:
        stream.sendall(b"\x00 this is not HTTP")
        try:
            same("TCP without redirection", read_to_end(stream), b"")
        except ConnectionResetError:
            pass


def admin(path):
    with urllib.request.urlopen(f"http://127.0.0.1:{ADMIN}{path}", timeout=LIMIT) as page:
        return page.read().decode()


def wait_ready(proxy):
    deadline = time.monotonic() + LIMIT
    while True:
        if proxy.poll() is not None:
            raise AssertionError(f"the proxy ended: {proxy.returncode}")
        try:
            if admin("/ready").strip() == "LIVE":
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise AssertionError("the proxy is not ready")
        time.sleep(0.02)


def start_proxy(program, directory):
    logs = [
        {
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": f"{TYPES}.access_loggers.file.v3.FileAccessLog",
                "path": f"{directory}/access.log",
                "log_format": {"text_format_source": {"inline_string": ACCESS_LOG_FORMAT}},
            },
        }
    ]
    listener = BOOTSTRAP["static_resources"]["listeners"][0]
    for chain in (*listener["filter_chains"], listener["default_filter_chain"]):
        chain["filters"][0]["typed_config"]["access_log"] = logs
    bootstrap = pathlib.Path(directory) / "bootstrap.json"
    bootstrap.write_text(json.dumps(BOOTSTRAP), encoding="utf-8")
    command = [program, "-c", str(bootstrap), "--disable-hot-restart", "--concurrency", "2"]
    return subprocess.Popen([*command, "-l", "warning", "--file-flush-interval-msec", "50"])


def check_log(directory):
    """Every connection was logged with the destination that its client wanted, and went there."""
    wanted = {text_of(address, HTTP_PORTS[number]) for all in DESTINATIONS.values() for number, address in enumerate(all)}
    wanted |= {text_of(address, ECHO_PORTS[number]) for all in DESTINATIONS.values() for number, address in enumerate(all)}
    deadline = time.monotonic() + LIMIT
    while True:
        lines = [line.split() for line in (pathlib.Path(directory) / "access.log").read_text().splitlines()]
        logged = {line[0] for line in lines if line[0] == line[1]}
        if wanted <= logged:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"not in the access log: {wanted - logged}; it has {lines}")
        time.sleep(0.05)


def main():
    users = several_users()
    set_up_network(users)
    start_servers()
    clients = Clients(users)
    failed = []

    def check(name, call, *arguments):
        try:
            call(*arguments)
            print(f"{name}: good", flush=True)
        except Exception as error:  # each check says for itself what is wrong
            failed.append(name)
            print(f"{name}: {type(error).__name__}: {error}", flush=True)

    with tempfile.TemporaryDirectory() as directory:
        proxy = start_proxy(sys.argv[1], directory)
        try:
            wait_ready(proxy)
            # All at once, because each takes as long as the proxy waits for a client to speak.
            silent = {address: clients.connect(address, GREETING_PORT) for all in DESTINATIONS.values() for address in all}
            for family, addresses in DESTINATIONS.items():
                for number, address in enumerate(addresses):
                    check(f"TCP to {address}", check_tcp, clients, address, ECHO_PORTS[number])
                    check(f"server speaks first, {address}", check_server_first, silent[address], address)
                    check(f"HTTP to {address}", check_http, clients, address, HTTP_PORTS[number])
                check(f"nobody listens, IPv{family}", check_closed, clients, addresses[0])
                # Envoy calls itself then, for ever.
                if "envoy" not in sys.argv[1]:
                    check(f"not redirected, IPv{family}", check_not_redirected, LOOPBACK[family])
            check("access log", check_log, directory)
        finally:
            proxy.send_signal(signal.SIGTERM)
            try:
                proxy.wait(LIMIT)
            except subprocess.TimeoutExpired:
                proxy.kill()
    if failed:
        sys.exit("failed: " + ", ".join(failed))
    print("ok", flush=True)


if __name__ == "__main__":
    main()
