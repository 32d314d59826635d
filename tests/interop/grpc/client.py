"""gRPC calls through a proxy, with grpcio on both ends.

Usage: client.py server            prints the port it listens on, serves until stdin ends
       client.py client <address>  makes every kind of call and prints OK

Messages are plain bytes: no generated code is needed to see whether streams work.
"""

import sys
import threading
import time
from concurrent import futures

import grpc

SERVICE = "outrigger.tests.Echo"
RAW = lambda message: message  # noqa: E731
LONG = 30


class Echo(grpc.GenericRpcHandler):
    """Serves the five methods that the client calls, on bytes."""

    def service(self, details):
        handlers = {
            f"/{SERVICE}/Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            f"/{SERVICE}/ClientStream": grpc.stream_unary_rpc_method_handler(self.client_stream),
            f"/{SERVICE}/ServerStream": grpc.unary_stream_rpc_method_handler(self.server_stream),
            f"/{SERVICE}/Bidi": grpc.stream_stream_rpc_method_handler(self.bidi),
            f"/{SERVICE}/Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            f"/{SERVICE}/Hang": grpc.unary_unary_rpc_method_handler(self.hang),
            f"/{SERVICE}/Cancelled": grpc.unary_unary_rpc_method_handler(self.cancelled),
        }
        return handlers.get(details.method)

    def __init__(self):
        self.cancellations = threading.Semaphore(0)

    def unary(self, request, context):
        context.send_initial_metadata((("x-initial", "from-server"),))
        context.set_trailing_metadata((("x-trailing", "at-the-end"), ("x-raw-bin", b"\x00\xff")))
        seen = dict(context.invocation_metadata())
        return request + b"|" + seen.get("x-client", "").encode()

    def client_stream(self, requests, context):
        return b",".join(requests)

    def server_stream(self, request, context):
        for number in range(int(request)):
            yield b"%d" % number

    def bidi(self, requests, context):
        for request in requests:
            yield request[::-1]

    def fail(self, request, context):
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: 100% sure, \u00e4\u00f6")

    def hang(self, request, context):
        gone = threading.Event()
        context.add_callback(lambda: (self.cancellations.release(), gone.set()))
        gone.wait(LONG)
        return b"too late"

    def cancelled(self, request, context):
        """Answers once one hanging call has been given up."""
        return b"yes" if self.cancellations.acquire(timeout=LONG) else b"no"


def serve():
    server = grpc.server(futures.ThreadPoolExecutor(32), handlers=[Echo()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(None)


def expect_error(call, code):
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()} {error.details()}, expected {code}"
        return error
    raise AssertionError(f"no error, expected {code}")


def client(address):
    channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", 64 << 20)])
    unary = channel.unary_unary(f"/{SERVICE}/Unary", RAW, RAW)
    response, call = unary.with_call(b"hello", metadata=(("x-client", "python"),), timeout=LONG)
    assert response == b"hello|python", response
    assert dict(call.initial_metadata())["x-initial"] == "from-server", call.initial_metadata()
    trailing = dict(call.trailing_metadata())
    assert trailing["x-trailing"] == "at-the-end" and trailing["x-raw-bin"] == b"\x00\xff", trailing

    big = bytes(range(256)) * (3 << 12)
    assert unary(big, timeout=LONG) == big + b"|"

    stream = channel.stream_unary(f"/{SERVICE}/ClientStream", RAW, RAW)
    words = [b"%d" % number for number in range(500)]
    assert stream(iter(words), timeout=LONG) == b",".join(words)

    stream = channel.unary_stream(f"/{SERVICE}/ServerStream", RAW, RAW)
    assert list(stream(b"500", timeout=LONG)) == words

    # Each answer is awaited before the next question: nothing may sit in a buffer.
    answers = []
    answered = threading.Semaphore(1)

    def questions():
        for word in words:
            assert answered.acquire(timeout=LONG)
            yield word

    for answer in channel.stream_stream(f"/{SERVICE}/Bidi", RAW, RAW)(questions(), timeout=LONG):
        answers.append(answer)
        answered.release()
    assert answers == [word[::-1] for word in words]

    fail = channel.unary_unary(f"/{SERVICE}/Fail", RAW, RAW)
    error = expect_error(lambda: fail(b"", timeout=LONG), grpc.StatusCode.FAILED_PRECONDITION)
    assert error.details() == "not today: 100% sure, \u00e4\u00f6", error.details()
    missing = channel.unary_unary(f"/{SERVICE}/Missing", RAW, RAW)
    expect_error(lambda: missing(b"", timeout=LONG), grpc.StatusCode.UNIMPLEMENTED)

    hang = channel.unary_unary(f"/{SERVICE}/Hang", RAW, RAW)
    cancelled = channel.unary_unary(f"/{SERVICE}/Cancelled", RAW, RAW)
    began = time.monotonic()
    expect_error(lambda: hang(b"", timeout=0.3), grpc.StatusCode.DEADLINE_EXCEEDED)
    assert time.monotonic() - began < 5
    assert cancelled(b"", timeout=LONG) == b"yes", "the deadline did not reach the server"

    call = hang.future(b"", timeout=LONG)
    unary(b"after it", timeout=LONG)
    call.cancel()
    assert call.code() == grpc.StatusCode.CANCELLED
    assert cancelled(b"", timeout=LONG) == b"yes", "the cancellation did not reach the server"

    with futures.ThreadPoolExecutor(16) as pool:
        sent = [b"%d" % number for number in range(300)]
        assert list(pool.map(lambda word: unary(word, timeout=LONG), sent)) == [word + b"|" for word in sent]
    print("OK", flush=True)


if __name__ == "__main__":
    serve() if sys.argv[1] == "server" else client(sys.argv[2])
