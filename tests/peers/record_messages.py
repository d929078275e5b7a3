"""Records the first message of Python's wire from a port, undecoded, into a file."""

import argparse
from pathlib import Path

import zmq
from common import TOPIC


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    socket = zmq.Context().socket(zmq.SUB)
    socket.setsockopt(zmq.RCVTIMEO, 20_000)
    socket.setsockopt(zmq.SUBSCRIBE, TOPIC.encode())
    socket.connect(f"tcp://127.0.0.1:{options.port}")
    topic, message = socket.recv_multipart()
    assert topic == TOPIC.encode()
    options.file.write_bytes(message)
    socket.context.destroy(linger=0)


if __name__ == "__main__":
    main()
