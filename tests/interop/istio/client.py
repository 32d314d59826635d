"""One request over TLS with a choice of ALPN names: client.py HOST PORT CERTIFICATES ALPN,... PATH [certificate]."""

import socket
import ssl
import sys

host, port, certificates, protocols, path = sys.argv[1], int(sys.argv[2]), *sys.argv[3:6]
context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
# The server is known by its SPIFFE name, which this module does not check.
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
if len(sys.argv) > 6:
    context.load_cert_chain(f"{certificates}/cert-chain.pem", f"{certificates}/key.pem")
context.set_alpn_protocols(protocols.split(","))
try:
    with context.wrap_socket(socket.create_connection((host, port), timeout=20), server_hostname="app") as stream:
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := stream.recv(65536):
            answer += part
    head, _, body = answer.decode().partition("\r\n\r\n")
    print(head.split(" ")[1], body.strip())
except (OSError, IndexError) as error:
    print("ended:", str(error).replace("_", " "))
