"""An HTTP server that answers each request with its own name and what it was asked: server.py NAME HOST PORT."""

import http.server
import sys

name, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
SHOWN = ("host", "x-forwarded-client-cert", "x-forwarded-proto")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        shown = " ".join(f"{key}={value}" for key, value in self.headers.items() if key.lower() in SHOWN)
        body = f"{name} {self.path} {shown}\n".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer((host, port), Handler).serve_forever()
