"""What each kind of proxy is told: one Job becomes a configuration and a command line.

Owns the configurations. Never starts anything.

Each kind is a function `(binary, job, directory) -> argv` that writes its
configuration into `directory`. A proxy that cannot do a job raises Unsupported.

envoy    the Envoy command line and bootstrap; also for anything compatible
haproxy  HAProxy 2.4 or later
nginx    nginx with the stream and grpc modules
simple   a program with flags instead of a configuration file:
           --listen ADDR --upstream ADDR --mode http1|http2|tcp
           [--tls-cert F --tls-key F [--client-ca F]]
           [--upstream-ca F --upstream-cert F --upstream-key F]
         that exits with status 64 when it does not support a combination
floor    the relay in loadgen: the system calls of a proxy and nothing else
splice   the same relay, moving bytes with splice(2)
"""

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path


# What the line for a request says, in the words of each kind.
LOGGED = {
    "start_time": ("%START_TIME%", "%[date,utime(%Y-%m-%dT%H:%M:%SZ)]", "$time_iso8601"),
    "method": ("%REQ(:METHOD)%", "%HM", "$request_method"),
    "path": ("%REQ(:PATH)%", "%HU", "$request_uri"),
    "protocol": ("%PROTOCOL%", "%HV", "$server_protocol"),
    "response_code": ("%RESPONSE_CODE%", "%ST", "$status"),
    "response_flags": ("%RESPONSE_FLAGS%", "%ts", "-"),
    "bytes_received": ("%BYTES_RECEIVED%", "%U", "$request_length"),
    "bytes_sent": ("%BYTES_SENT%", "%B", "$body_bytes_sent"),
    "duration": ("%DURATION%", "%Ta", "$request_time"),
    "authority": ("%REQ(:AUTHORITY)%", "%[capture.req.hdr(0)]", "$host"),
    "user_agent": ("%REQ(USER-AGENT)%", "%[capture.req.hdr(1)]", "$http_user_agent"),
    "upstream_host": ("%UPSTREAM_HOST%", "%si:%sp", "$upstream_addr"),
    "upstream_cluster": ("%UPSTREAM_CLUSTER%", "%b", "$proxy_host"),
    "downstream_remote_address": ("%DOWNSTREAM_REMOTE_ADDRESS%", "%ci:%cp", "$remote_addr:$remote_port"),
}


class Unsupported(Exception):
    pass


@dataclass
class Job:
    mode: str = "http1"                 # http1, http2 (h2c on both sides), tcp
    listen: int = 0
    upstreams: list = field(default_factory=list)   # (host, port) of the backend
    tls: bool = False                   # TLS 1.3 towards the client
    mutual: bool = False                # client certificates, on both sides
    pki: Path = None
    clusters: int = 1                   # clusters, each with its own host and route
    empty: bool = False                 # no listeners, routes or clusters at all
    idle_filters: bool = False          # envoy only: ten HTTP filters that have nothing to do
    logged: bool = False                # one line of JSON for each request, into a file
    traced: bool = False                # one of a hundred requests, by OTLP over HTTP to the backend
    dynamic: str = ""                   # envoy only: everything by xDS, from "files" that are watched or by "grpc"
    control_plane: tuple = ()           # dynamic by grpc only: its (host, port)
    others: list = field(default_factory=list)      # dynamic only: the upstreams of the last cluster


def host_name(i):
    """The virtual host of cluster i; with one cluster any host will do."""
    return f"svc-{i}.bench.local"


# ---------------------------------------------------------------- envoy

def _typed(name, type_name, **fields):
    return {"name": name, "typed_config": {"@type": f"type.googleapis.com/{type_name}", **fields}}


def _socket_address(host, port):
    return {"socket_address": {"address": host, "port_value": port}}


def _file(path):
    return {"filename": str(path)}


def envoy_endpoints(name, upstreams):
    return {
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _socket_address(*u)}} for u in upstreams]}],
    }


def envoy_cluster(job, i, upstreams=None):
    cluster = {
        "name": f"cluster-{i}",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": envoy_endpoints(f"cluster-{i}", upstreams or job.upstreams),
    }
    if job.mode == "http2":
        options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        cluster["typed_extension_protocol_options"] = {options: {
            "@type": f"type.googleapis.com/{options}", "explicit_http_config": {"http2_protocol_options": {}}}}
    if job.mutual:
        cluster["transport_socket"] = _typed(
            "envoy.transport_sockets.tls", "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            sni="bench.local",
            common_tls_context=_envoy_tls(job, "client", verify=True))
    return cluster


def _envoy_tls(job, who, verify):
    context = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{
            "certificate_chain": _file(job.pki / f"{who}.crt"), "private_key": _file(job.pki / f"{who}.key")}],
    }
    if verify:
        context["validation_context"] = {"trusted_ca": _file(job.pki / "ca.crt")}
    return context


def envoy_routes(job, target=lambda i: i):
    """One virtual host per cluster, as in a mesh; `target` may redirect some."""
    return {"name": "routes", "virtual_hosts": [{
        "name": f"vhost-{i}",
        "domains": ["*"] if job.clusters == 1 else [host_name(i)],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": f"cluster-{target(i)}"}}],
    } for i in range(job.clusters)]}


def _idle_filters():
    """Ten that a plain GET passes by. Tests send requests through the same ones."""
    absent = {"header": "x-absent", "on_header_present": {"key": "k"}}
    return [_typed(f"filter-{i}", f"envoy.extensions.filters.http.{message}", **fields)
            for i, (message, fields) in enumerate([
                ("cors.v3.Cors", {}),
                ("csrf.v3.CsrfPolicy", {"filter_enabled": {"default_value": {"numerator": 100}}}),
                ("fault.v3.HTTPFault", {}),
                ("rbac.v3.RBAC", {}),
                ("jwt_authn.v3.JwtAuthentication", {}),
                ("header_to_metadata.v3.Config", {"request_rules": [absent]}),
                ("local_ratelimit.v3.LocalRateLimit", {"stat_prefix": "idle"}),
                ("grpc_web.v3.GrpcWeb", {}),
                ("grpc_http1_bridge.v3.Config", {}),
                ("bandwidth_limit.v3.BandwidthLimit", {"stat_prefix": "idle"}),
            ])]


def _envoy_tracing():
    """All requests are asked about, one of a hundred is traced."""
    uri = {"uri": "http://collector/v1/traces", "cluster": "collector", "timeout": "5s"}
    return {"random_sampling": {"value": 1}, "provider": _typed(
        "envoy.tracers.opentelemetry", "envoy.config.trace.v3.OpenTelemetryConfig",
        service_name="bench", http_service={"http_uri": uri})}


def _envoy_log(directory):
    return _typed(
        "envoy.access_loggers.file", "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        path=str(directory / "access.log"),
        log_format={"json_format": {name: operator for name, (operator, _, _) in LOGGED.items()}})


def envoy_listener(job, rds=None, directory=None):
    if job.mode == "tcp":
        network_filter = _typed(
            "envoy.filters.network.tcp_proxy", "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            stat_prefix="tcp", cluster="cluster-0")
    else:
        discovered = {"rds": {"config_source": rds, "route_config_name": "routes"}}
        routes = discovered if rds else {"route_config": envoy_routes(job)}
        network_filter = _typed(
            "envoy.filters.network.http_connection_manager",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix="http", codec_type="HTTP2" if job.mode == "http2" else "HTTP1", **routes,
            **({"access_log": [_envoy_log(directory)]} if job.logged else {}),
            **({"tracing": _envoy_tracing()} if job.traced else {}),
            http_filters=(_idle_filters() if job.idle_filters else []) + [
                _typed("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router")])
    chain = {"filters": [network_filter]}
    if job.tls:
        chain["transport_socket"] = _typed(
            "envoy.transport_sockets.tls", "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            require_client_certificate=job.mutual,
            common_tls_context=_envoy_tls(job, "server", verify=job.mutual))
    return {"name": "front", "address": _socket_address("127.0.0.1", job.listen), "filter_chains": [chain]}


TYPES = {
    "lds": "envoy.config.listener.v3.Listener",
    "rds": "envoy.config.route.v3.RouteConfiguration",
    "cds": "envoy.config.cluster.v3.Cluster",
    "eds": "envoy.config.endpoint.v3.ClusterLoadAssignment",
}


def discovery_response(kind, resources, version):
    """A discovery response as JSON: what a watched file holds and what the control plane is sent."""
    url = f"type.googleapis.com/{TYPES[kind]}"
    return json.dumps({"version_info": str(version), "resources": [{"@type": url, **r} for r in resources]})


def config_source(job, directory, kind):
    """Where resources of a kind come from."""
    if job.dynamic == "grpc":
        return {"ads": {}, "resource_api_version": "V3"}
    return {"path_config_source": {"path": str(directory / f"{kind}.json")}, "resource_api_version": "V3"}


def dynamic_resources(job, directory):
    """All resources of a dynamic job, by kind."""
    return {
        "eds": [envoy_endpoints("cluster-1", job.upstreams)],
        "cds": dynamic_clusters(job, directory),
        "rds": [envoy_routes(job)],
        "lds": [envoy_listener(job, config_source(job, directory, "rds"))],
    }


def dynamic_clusters(job, directory):
    """The clusters of a dynamic job: the second one's endpoints come by EDS, the last one has the other upstreams,
    and all others are alike."""
    clusters = [envoy_cluster(job, i) for i in range(job.clusters)]
    clusters[1]["type"] = "EDS"
    clusters[1]["eds_cluster_config"] = {"eds_config": config_source(job, directory, "eds")}
    del clusters[1]["load_assignment"]
    clusters[-1] = envoy_cluster(job, job.clusters - 1, job.others)
    return clusters


def _control_plane_cluster(address):
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "name": "xds",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": envoy_endpoints("xds", [address]),
        "typed_extension_protocol_options": {options: {
            "@type": f"type.googleapis.com/{options}", "explicit_http_config": {"http2_protocol_options": {}}}},
    }


def envoy(binary, job, directory):
    bootstrap = {"node": {"id": "bench", "cluster": "bench"}, "static_resources": {}}
    if job.dynamic:
        bootstrap["dynamic_resources"] = {
            "lds_config": config_source(job, directory, "lds"), "cds_config": config_source(job, directory, "cds")}
    if job.dynamic == "grpc":
        bootstrap["static_resources"] = {"clusters": [_control_plane_cluster(job.control_plane)]}
        bootstrap["dynamic_resources"]["ads_config"] = {
            "api_type": "DELTA_GRPC", "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]}
    elif job.dynamic:
        for kind, resources in dynamic_resources(job, directory).items():
            (directory / f"{kind}.json").write_text(discovery_response(kind, resources, 0))
    elif not job.empty:
        bootstrap["static_resources"] = {
            "listeners": [envoy_listener(job, directory=directory)],
            "clusters": [envoy_cluster(job, i) for i in range(job.clusters)],
        }
        if job.traced:
            collector = {"name": "collector", "type": "STATIC", "connect_timeout": "5s",
                         "load_assignment": envoy_endpoints("collector", job.upstreams)}
            bootstrap["static_resources"]["clusters"].append(collector)
    # JSON is YAML, and one name serves implementations that read either.
    path = directory / "bootstrap.json"
    path.write_text(json.dumps(bootstrap))
    return [binary, "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]


# ---------------------------------------------------------------- haproxy

def haproxy(binary, job, directory):
    if job.dynamic:
        raise Unsupported("no xDS")
    if job.traced:
        raise Unsupported("no OpenTelemetry")
    text = ["global", "  nbthread 1", "  maxconn 11000", "  no strict-limits",
            "  ssl-default-bind-options ssl-min-ver TLSv1.3", "  ssl-default-server-options ssl-min-ver TLSv1.3",
            "defaults", f"  mode {'tcp' if job.mode == 'tcp' else 'http'}",
            "  timeout connect 5s", "  timeout client 1h", "  timeout server 1h", "  maxconn 11000"]
    if job.mode == "tcp":
        text += ["  option splice-auto"]
    else:
        text += ["  http-reuse always"]
    proto = " proto h2" if job.mode == "http2" else ""
    front, back = proto, proto
    if job.tls:
        pem = directory / "server.pem"
        pem.write_text((job.pki / "server.crt").read_text() + (job.pki / "server.key").read_text())
        front += f" ssl crt {pem}"
    if job.mutual:
        pem = directory / "client.pem"
        pem.write_text((job.pki / "client.crt").read_text() + (job.pki / "client.key").read_text())
        front += f" ca-file {job.pki}/ca.crt verify required"
        back += f" ssl crt {pem} ca-file {job.pki}/ca.crt verify required sni str(bench.local)"
    if job.empty:
        # It refuses to start without a single listener: one nobody uses.
        text += ["frontend none", f"  bind {directory}/none.sock"]
    else:
        text += ["frontend front", f"  bind 127.0.0.1:{job.listen}{front}"]
        if job.logged:
            # It writes no files; its output goes into one.
            line = ",".join(f'"{name}":"{variable}"' for name, (_, variable, _) in LOGGED.items())
            text += ["  log stdout format raw daemon", "  capture request header host len 64",
                     "  capture request header user-agent len 64", f"  log-format '{{{line}}}'"]
        if job.clusters > 1:
            hosts = directory / "hosts.map"
            hosts.write_text("".join(f"{host_name(i)} cluster-{i}\n" for i in range(job.clusters)))
            text += [f"  use_backend %[req.hdr(host),lower,map({hosts})]"]
        else:
            text += ["  default_backend cluster-0"]
        for i in range(job.clusters):
            text += [f"backend cluster-{i}"]
            text += [f"  server s{n} {host}:{port}{back}" for n, (host, port) in enumerate(job.upstreams)]
    path = directory / "haproxy.cfg"
    path.write_text("\n".join(text) + "\n")
    return [binary, "-db", "-f", str(path)]


# ---------------------------------------------------------------- nginx

_NGINX = """\
{modules}
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {dir}/nginx.pid;
error_log {dir}/error.log error;
events {{ worker_connections 12000; }}
{body}
"""

_NGINX_HTTP = """\
http {{
  {log}
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  server_names_hash_max_size 65536;
  server_names_hash_bucket_size 128;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_set_header Host $host;
  proxy_buffers 32 16k;
  proxy_max_temp_file_size 0;
{servers}
}}
"""


def _stream_module(binary):
    """Loads the stream module where it is built as a separate file."""
    built = subprocess.run([binary, "-V"], capture_output=True, text=True).stderr.split()
    folder = next((word.split("=", 1)[1] for word in built if word.startswith("--modules-path=")), "")
    module = Path(folder, "ngx_stream_module.so")
    if "--with-stream=dynamic" in built and not module.exists():
        raise Unsupported("no stream module (Debian package libnginx-mod-stream)")
    return f"load_module {module};" if module.exists() else ""


def _nginx_log(job, directory):
    if not job.logged:
        return "access_log off;"
    line = ",".join(f'"{name}":"{variable}"' for name, (_, _, variable) in LOGGED.items())
    return (f"log_format json escape=json '{{{line}}}';\n"
            f"  access_log {directory}/access.log json buffer=64k flush=1s;")


def nginx(binary, job, directory):
    if job.dynamic:
        raise Unsupported("no xDS")
    if job.traced:
        raise Unsupported("no OpenTelemetry")
    modules, body = "", ""
    if job.mode == "tcp":
        modules = _stream_module(binary)
        servers = "".join(f"server {host}:{port};" for host, port in job.upstreams)
        body = (f"stream {{ upstream up {{ {servers} }}\n"
                f"  server {{ listen 127.0.0.1:{job.listen}; proxy_pass up; proxy_buffer_size 64k; }} }}")
    else:
        listen = f"listen 127.0.0.1:{job.listen}"
        tls = upstream_tls = ""
        scheme = "http"
        if job.mode == "http2":
            listen += " http2"
        if job.tls:
            listen += " ssl"
            tls = (f"ssl_certificate {job.pki}/server.crt; ssl_certificate_key {job.pki}/server.key;"
                   " ssl_protocols TLSv1.3;")
        if job.mutual:
            tls += f" ssl_client_certificate {job.pki}/ca.crt; ssl_verify_client on;"
            scheme = "https"
            upstream_tls = (f"proxy_ssl_certificate {job.pki}/client.crt;"
                            f" proxy_ssl_certificate_key {job.pki}/client.key;"
                            f" proxy_ssl_trusted_certificate {job.pki}/ca.crt; proxy_ssl_verify on;"
                            " proxy_ssl_name bench.local; proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.3;")
        lines = []
        if not job.empty:
            for i in range(job.clusters):
                endpoints = " ".join(f"server {host}:{port};" for host, port in job.upstreams)
                pool = 1024 if job.clusters == 1 else 16
                lines.append(f"  upstream cluster-{i} {{ {endpoints} keepalive {pool};"
                             " keepalive_requests 1000000000; keepalive_timeout 1h; }")
                # It speaks HTTP/2 to an upstream only through its gRPC module.
                speak, scheme = ("grpc_pass", "grpc") if job.mode == "http2" else ("proxy_pass", scheme)
                forward = f"{speak} {scheme}://cluster-{i};"
                name = f"server_name {host_name(i)};" if job.clusters > 1 else ""
                lines.append(f"  server {{ {listen}; {name} {tls} location / {{ {forward} {upstream_tls} }} }}")
        body = _NGINX_HTTP.format(dir=directory, servers="\n".join(lines), log=_nginx_log(job, directory))
    path = directory / "nginx.conf"
    path.write_text(_NGINX.format(modules=modules, dir=directory, body=body))
    return [binary, "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(path)]


# ---------------------------------------------------------------- others

def _one_upstream(job):
    if job.empty or job.dynamic or job.clusters > 1:
        raise Unsupported("one upstream only")
    host, port = job.upstreams[0]
    return f"{host}:{port}"


def simple(binary, job, directory):
    argv = [binary, "--listen", f"127.0.0.1:{job.listen}", "--upstream", _one_upstream(job), "--mode", job.mode]
    if job.tls:
        argv += ["--tls-cert", str(job.pki / "server.crt"), "--tls-key", str(job.pki / "server.key")]
    if job.mutual:
        argv += ["--client-ca", str(job.pki / "ca.crt"), "--upstream-ca", str(job.pki / "ca.crt"),
                 "--upstream-cert", str(job.pki / "client.crt"), "--upstream-key", str(job.pki / "client.key")]
    return argv


def floor(binary, job, directory, *flags):
    if job.tls:
        raise Unsupported("does not speak TLS")
    return [binary, "relay", "--listen", f"127.0.0.1:{job.listen}", "--upstream", _one_upstream(job), *flags]


def splice(binary, job, directory):
    if job.mode != "tcp":
        raise Unsupported("for TCP only")
    return floor(binary, job, directory, "--splice")


def _without_filters(kind):
    def tell(binary, job, directory):
        if job.idle_filters:
            raise Unsupported("has no such filters")
        if job.logged and kind in (simple, floor, splice):
            raise Unsupported("has no access log")
        return kind(binary, job, directory)
    return tell


KINDS = {"envoy": envoy, **{name: _without_filters(kind) for name, kind in {
    "haproxy": haproxy, "nginx": nginx, "simple": simple, "floor": floor, "splice": splice}.items()}}
