"""Asks a proxy for its status as an xDS client, by grpcio: once by FetchClientStatus and twice on one StreamClientStatus.

    client_status.py HOST:PORT REQUEST...     requests and answers are messages in hexadecimal digits
"""

import sys

import grpc

SERVICE = "/envoy.service.status.v3.ClientStatusDiscoveryService/"
LIMIT = 20  # seconds for each call
LONGEST = 64 * 1024 * 1024


def main():
    target, requests = sys.argv[1], [bytes.fromhex(request) for request in sys.argv[2:]]
    options = [("grpc.max_receive_message_length", LONGEST)]
    with grpc.insecure_channel(target, options=options) as channel:
        fetch = channel.unary_unary(SERVICE + "FetchClientStatus")
        for request in requests:
            try:
                print("fetched", fetch(request, timeout=LIMIT).hex())
            except grpc.RpcError as error:
                print("refused", error.code().name, error.details())
        stream = channel.stream_stream(SERVICE + "StreamClientStatus")
        for answer in stream(iter([b"", b""]), timeout=LIMIT):
            print("streamed", answer.hex())
        try:
            channel.unary_unary(SERVICE + "NoSuchMethod")(b"", timeout=LIMIT)
        except grpc.RpcError as error:
            print("refused", error.code().name, error.details())


main()
