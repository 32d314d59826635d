"""gRPC calls of every kind by grpcio, from a server through a proxy to a client, both in this process.

    grpc_streams.py             prints `port N` of the server, reads the target `host:port` from stdin, calls, says `ok`
    grpc_streams.py --direct    calls without a proxy, which checks this program

Needs grpcio only: the methods take and give bytes. The proxy is expected to send `/dead.` to a cluster whose endpoint
refuses connections, to have no route for `/absent.`, and to send everything else to the server.
"""

import queue
import sys
import threading
import time
from concurrent import futures

import grpc

LIMIT = 60  # seconds that anything may take: far beyond what it takes, so that only what hangs reaches it
# Seconds of the deadline under test: long enough for one message to go there and back on a busy machine.
DEADLINE = 5
# Seconds by which times may differ that were measured by several clocks and told in whole milliseconds.
ROUNDING = 0.05
MEBIBYTE = 1 << 20
BIG = 4 * MEBIBYTE
SERVICE = "interop.Streams"
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Server:
    """The service; `ended` gets the name of each call whose end the server was told of before it answered."""

    def __init__(self):
        self.ended = queue.Queue()

    def unary(self, request, context):
        sent = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-initial", "first"),))
        context.set_trailing_metadata(
            (
                ("x-trailing", "last"),
                ("x-trailing-bin", bytes(range(256))),
                ("x-saw", sent.get("x-ascii", "")),
                ("x-saw-bin", sent.get("x-binary-bin", b"")),
                ("x-saw-te", sent.get("te", "")),
            )
        )
        return request

    def gather(self, requests, context):
        messages = list(requests)
        context.set_trailing_metadata((("x-count", str(len(messages))),))
        return b"".join(messages)

    def spread(self, request, context):
        count, size = (int(word) for word in request.split())
        for number in range(count):
            yield number.to_bytes(4, "big") * (size // 4)
        context.set_trailing_metadata((("x-count", str(count)),))

    def talk(self, requests, context):
        for message in requests:
            if message == b"enough":
                context.set_trailing_metadata((("x-ended-by", "server"),))
                return
            yield b"re: " + message

    def fail(self, request, context):
        context.set_trailing_metadata((("x-trailing", "with an error"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not so: 100% \u00e4\u6f22\nsecond line")

    def fail_late(self, request, context):
        yield b"one"
        yield b"two"
        context.abort(grpc.StatusCode.DATA_LOSS, "lost after two")

    def hang(self, requests, context):
        over = threading.Event()
        answered = threading.Event()

        # It is told here and nowhere else: what follows a `yield` is not run for a call that ended meanwhile.
        def told():
            over.set()
            if not answered.is_set():
                self.ended.put("hang")

        context.add_callback(told)
        for message in requests:
            remaining = context.time_remaining()
            yield b"none" if remaining is None else b"%.3f" % remaining
            break
        if not over.wait(LIMIT):
            answered.set()

    def start(self):
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), options=OPTIONS)
        methods = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Gather": grpc.stream_unary_rpc_method_handler(self.gather),
            "Spread": grpc.unary_stream_rpc_method_handler(self.spread),
            "Talk": grpc.stream_stream_rpc_method_handler(self.talk),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "FailLate": grpc.unary_stream_rpc_method_handler(self.fail_late),
            "Hang": grpc.stream_stream_rpc_method_handler(self.hang),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return server, port


class Outbox:
    """Requests of a call, handed over one at a time."""

    def __init__(self):
        self.messages = queue.Queue()

    def send(self, message):
        self.messages.put(message)

    def close(self):
        self.messages.put(None)

    def __iter__(self):
        return self

    def __next__(self):
        message = self.messages.get()
        if message is None:
            raise StopIteration
        return message


def path(method):
    return f"/{SERVICE}/{method}"


def same(what, found, wanted):
    if found != wanted:
        short = [repr(value)[:200] for value in (found, wanted)]
        raise AssertionError(f"{what}: {short[0]} instead of {short[1]}")


def error_of(call):
    """The error that a call ends with."""
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call succeeded")


class Checks:
    """One method for each kind of call; each is run for itself and by its name."""

    def __init__(self, channel, server):
        self.channel = channel
        self.server = server

    def unary(self):
        metadata = (("x-ascii", "plain text"), ("x-binary-bin", b"\x00\xff\x80"))
        response, call = self.channel.unary_unary(path("Unary")).with_call(b"hello", metadata=metadata, timeout=LIMIT)
        same("response", response, b"hello")
        same("code", call.code(), grpc.StatusCode.OK)
        same("initial metadata", dict(call.initial_metadata()).get("x-initial"), "first")
        trailing = dict(call.trailing_metadata())
        same("trailing metadata", trailing.get("x-trailing"), "last")
        same("binary trailing metadata", trailing.get("x-trailing-bin"), bytes(range(256)))
        same("metadata seen by the server", trailing.get("x-saw"), "plain text")
        same("binary metadata seen by the server", trailing.get("x-saw-bin"), b"\x00\xff\x80")

    def unary_with_an_empty_message(self):
        same("response", self.channel.unary_unary(path("Unary"))(b"", timeout=LIMIT), b"")

    def unary_of_4_mib(self):
        message = bytes(range(256)) * (BIG // 256)
        same("response", self.channel.unary_unary(path("Unary"))(message, timeout=LIMIT), message)

    def client_streaming(self):
        messages = [b"message %d;" % number for number in range(200)]
        response, call = self.channel.stream_unary(path("Gather")).with_call(iter(messages), timeout=LIMIT)
        same("response", response, b"".join(messages))
        same("count", dict(call.trailing_metadata()).get("x-count"), "200")

    def client_streaming_of_nothing(self):
        same("response", self.channel.stream_unary(path("Gather"))(iter([]), timeout=LIMIT), b"")

    def client_streaming_of_4_mib_messages(self):
        messages = [bytes([number]) * BIG for number in range(4)]
        response = self.channel.stream_unary(path("Gather"))(iter(messages), timeout=LIMIT)
        same("response", response, b"".join(messages))

    def server_streaming(self):
        call = self.channel.unary_stream(path("Spread"))(b"200 4", timeout=LIMIT)
        same("responses", list(call), [number.to_bytes(4, "big") for number in range(200)])
        same("count", dict(call.trailing_metadata()).get("x-count"), "200")

    def server_streaming_of_nothing(self):
        same("responses", list(self.channel.unary_stream(path("Spread"))(b"0 4", timeout=LIMIT)), [])

    def server_streaming_to_a_slow_reader(self):
        call = self.channel.unary_stream(path("Spread"))(b"64 262144", timeout=LIMIT)
        for number in range(64):
            message = next(call)
            same("response", message, number.to_bytes(4, "big") * 65536)
            if number % 8 == 0:
                time.sleep(0.02)
        same("the rest", list(call), [])

    def server_streaming_of_4_mib_messages(self):
        call = self.channel.unary_stream(path("Spread"))(b"4 %d" % BIG, timeout=LIMIT)
        same("sizes", [len(message) for message in call], [BIG] * 4)

    def bidirectional_in_lockstep(self):
        outbox = Outbox()
        call = self.channel.stream_stream(path("Talk"))(outbox, timeout=LIMIT)
        for number in range(200):
            # Nothing more is sent before the answer is here, so a proxy that gathers would wait for ever.
            outbox.send(b"%d" % number)
            same("response", next(call), b"re: %d" % number)
        outbox.close()
        same("the rest", list(call), [])
        same("code", call.code(), grpc.StatusCode.OK)

    def bidirectional_at_full_speed(self):
        messages = [bytes([number]) * 65536 for number in range(128)]
        call = self.channel.stream_stream(path("Talk"))(iter(messages), timeout=LIMIT)
        same("responses", list(call), [b"re: " + message for message in messages])

    def bidirectional_ended_by_the_server(self):
        outbox = Outbox()
        call = self.channel.stream_stream(path("Talk"))(outbox, timeout=LIMIT)
        outbox.send(b"one")
        same("response", next(call), b"re: one")
        outbox.send(b"enough")
        same("the rest", list(call), [])
        same("code", call.code(), grpc.StatusCode.OK)
        same("trailing metadata", dict(call.trailing_metadata()).get("x-ended-by"), "server")
        outbox.close()

    def status_without_a_message(self):
        error = error_of(lambda: self.channel.unary_unary(path("Fail"))(b"x", timeout=LIMIT))
        same("code", error.code(), grpc.StatusCode.FAILED_PRECONDITION)
        same("details", error.details(), "not so: 100% \u00e4\u6f22\nsecond line")
        same("trailing metadata", dict(error.trailing_metadata()).get("x-trailing"), "with an error")

    def status_after_messages(self):
        call = self.channel.unary_stream(path("FailLate"))(b"x", timeout=LIMIT)
        same("responses", [next(call), next(call)], [b"one", b"two"])
        error = error_of(lambda: next(call))
        same("code", error.code(), grpc.StatusCode.DATA_LOSS)
        same("details", error.details(), "lost after two")

    def unknown_method(self):
        error = error_of(lambda: self.channel.unary_unary(path("Nothing"))(b"x", timeout=LIMIT))
        same("code", error.code(), grpc.StatusCode.UNIMPLEMENTED)

    def deadline(self):
        outbox = Outbox()
        began = time.monotonic()
        call = self.channel.stream_stream(path("Hang"))(outbox, timeout=DEADLINE)
        outbox.send(b"x")
        remaining = float(next(call))
        if not 0 < remaining <= DEADLINE + ROUNDING:
            raise AssertionError(f"the server was given {remaining} s of {DEADLINE} s")
        error = error_of(lambda: next(call))
        same("code", error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        took = time.monotonic() - began
        if took < DEADLINE - ROUNDING:
            raise AssertionError(f"{DEADLINE} s took {took} s")
        same("the server is told", self.server.ended.get(timeout=LIMIT), "hang")
        outbox.close()

    def cancellation(self):
        outbox = Outbox()
        call = self.channel.stream_stream(path("Hang"))(outbox, timeout=LIMIT)
        outbox.send(b"x")
        next(call)
        call.cancel()
        same("the server is told", self.server.ended.get(timeout=LIMIT / 2), "hang")
        same("code", call.code(), grpc.StatusCode.CANCELLED)
        outbox.close()

    def calls_side_by_side(self):
        unary = self.channel.unary_unary(path("Unary"))
        calls = [unary.future(b"%d" % number, timeout=LIMIT) for number in range(500)]
        same("responses", [call.result() for call in calls], [b"%d" % number for number in range(500)])

    def refused_upstream(self):
        error = error_of(lambda: self.channel.unary_unary("/dead.Service/Call")(b"x", timeout=LIMIT))
        same("code", error.code(), grpc.StatusCode.UNAVAILABLE)

    def no_route(self):
        error = error_of(lambda: self.channel.unary_unary("/absent.Service/Call")(b"x", timeout=LIMIT))
        same("code", error.code(), grpc.StatusCode.UNIMPLEMENTED)


def main():
    service = Server()
    server, port = service.start()
    direct = "--direct" in sys.argv[1:]
    print(f"port {port}", flush=True)
    target = f"127.0.0.1:{port}" if direct else sys.stdin.readline().strip()
    failed = []
    with grpc.insecure_channel(target, options=OPTIONS) as channel:
        grpc.channel_ready_future(channel).result(timeout=LIMIT)
        checks = Checks(channel, service)
        for name in [name for name in vars(Checks) if not name.startswith("_")]:
            if direct and name in ("refused_upstream", "no_route"):
                continue
            try:
                getattr(checks, name)()
                print(f"{name}: good", flush=True)
            except Exception as error:  # each check says for itself what is wrong
                failed.append(name)
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
    server.stop(None)
    if failed:
        sys.exit("failed: " + ", ".join(failed))
    print("ok", flush=True)


if __name__ == "__main__":
    main()
