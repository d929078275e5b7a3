"""Peers that wish a daoserver ill, on its ports and at the ports that it connects to. Standard library, but for the ZMQ
publisher. Prints lines of JSON; ends by itself, or with SIGTERM.

    hostile_peers.py crowd --port P --number N --seconds S [--says HEX]    N connections, opened and held; nobody reads
    hostile_peers.py guests --port P --number N --seconds S --ip A         the same from this address: each greets, subscribes
                                                                           to nothing, and gives signs of life
    hostile_peers.py flood --port P --seconds S --says HEX [--first HEX]   says it again and again, as fast as it goes, on
                                                                           new connections whenever one ends
    hostile_peers.py publisher --port P --boot HEX                         over TCP: for each connection another fault, then
                                                                           good frames of 16x16 uint16
    hostile_peers.py zmq_publisher --port P --boot HEX                     the same over ZMQ, one message after the other
"""

import argparse
import resource
import selectors
import signal
import socket
import struct
import sys
import time

from common import say

PIXELS = bytes(range(256)) * 2
TRAILER_KEY = int.from_bytes(b"DAOfDAOf", "little")
# ZMTP 3.0, no security: greeting, READY of a SUB; behind it SUBSCRIBE, to everything.
ZMTP = (
    b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    + b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB"
)
PING, PONG = b"\x04PING", b"\x04\x05\x04PONG"
SUBSCRIBE = b"\x00\x01\x01"


def header(boot: int, seq: int, *, shape: tuple[int, ...] = (16, 16), length: int = 512, offset: int = 128, atype: int = 3) -> bytes:
    axes = (*shape, 0, 0)[:3]
    start = struct.pack("<4sHBBBBH3I", b"DAOf", 1, 1, 0, atype, len(shape), 0, *axes)
    words = struct.pack("<5Q3q3Q", boot, seq, seq, 0, 0, 0, 0, 0, 0, 0, 0)
    return start + words + struct.pack("<IIQ", offset, 0, length)


def message(boot: int, seq: int, **fields: object) -> bytes:
    return header(boot, seq, **fields) + PIXELS + struct.pack("<Q", seq ^ TRAILER_KEY)


def connect(port: int, ip: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=2, source_address=(ip, 0))


def crowd(options: argparse.Namespace) -> None:
    held, refused = [], 0
    end = time.monotonic() + options.seconds
    for _ in range(options.number):
        try:
            peer = connect(options.port)
            peer.sendall(options.says)
            held.append(peer)
        except OSError:
            refused += 1
    time.sleep(0.5)
    for peer in held if options.says == ZMTP else []:
        try:
            peer.sendall(SUBSCRIBE)
        except OSError:
            refused += 1
    say(event="held", number=len(held), refused=refused)
    time.sleep(max(0.0, end - time.monotonic()))
    say(event="done")


def guests(options: argparse.Namespace) -> None:
    known = selectors.DefaultSelector()
    end = time.monotonic() + options.seconds
    for _ in range(options.number):
        peer = connect(options.port, options.ip)
        peer.sendall(ZMTP)
        known.register(peer, selectors.EVENT_READ)
    say(event="connected")
    try:
        while time.monotonic() < end:
            for key, _ in known.select(timeout=0.1):
                try:
                    heard = key.fileobj.recv(4096)
                    key.fileobj.sendall(PONG * heard.count(PING))
                except OSError:
                    heard = b""
                if not heard:
                    known.unregister(key.fileobj)
                    key.fileobj.close()
    finally:  # SIGTERM, too
        say(event="done", left=len(known.get_map()))


def flood(options: argparse.Namespace) -> None:
    connections = sent = 0
    end = time.monotonic() + options.seconds
    block = options.says * (65536 // len(options.says))
    while time.monotonic() < end:
        try:
            with connect(options.port) as peer:
                connections += 1
                peer.settimeout(0.5)
                peer.sendall(options.first)
                time.sleep(0.02)
                while time.monotonic() < end:
                    sent += peer.send(block)
        except OSError:
            time.sleep(0.01)
    say(event="done", connections=connections, bytes=sent)


def faults(boot: int) -> list[tuple[str, list[bytes], float]]:
    """Name, the pieces that are sent, and the pause behind each."""
    whole = message(boot, 1)
    return [
        ("another shape", [message(boot, 1, shape=(8, 32))], 0),
        ("another type", [message(boot, 1, atype=4)], 0),
        ("four axes", [whole[:9] + b"\x04" + whole[10:]], 0),
        ("another publisher", [message(boot ^ 1, 1)], 0),
        ("a length that is none", [message(boot, 1, length=511)], 0),
        ("a huge length", [header(boot, 1, length=2**64 - 1)], 0),
        ("huge axes", [header(boot, 1, shape=(2**32 - 1,) * 3, length=2**63)], 0),
        ("an offset far away", [message(boot, 1, offset=2**32 - 1)], 0),
        ("no end", [whole[:-8]] + [b"\xa5" * 65536] * 200, 0),
        ("garbage", [b"\xff" * 4096], 0),
        ("nothing", [], 0),
        ("half a message, and silence", [whole[:300]], 8),
        ("a byte at a time", [bytes([byte]) for byte in whole[:120]], 0.06),
    ]


def publisher(options: argparse.Namespace) -> None:
    server = socket.create_server(("127.0.0.1", options.port), backlog=64)
    say(event="bound")
    for name, pieces, pause in faults(options.boot):
        peer, _ = server.accept()
        try:
            peer.recv(16)
            for piece in pieces:
                peer.sendall(piece)
                time.sleep(pause)
        except OSError:
            pass
        say(event="sent", name=name)
        # The mirror hangs up when it has looked; from one who says nothing it need not.
        peer.settimeout(1)
        try:
            while peer.recv(4096):
                pass
        except OSError:
            pass
        peer.close()
    say(event="done")
    seq = 100
    while True:
        peer, _ = server.accept()
        try:
            while True:
                seq += 1
                peer.sendall(message(options.boot, seq))
                time.sleep(0.05)
        except OSError:
            pass


def zmq_publisher(options: argparse.Namespace) -> None:
    import zmq

    server = zmq.Context().socket(zmq.XPUB)
    server.setsockopt(zmq.LINGER, 0)
    server.bind(f"tcp://127.0.0.1:{options.port}")
    say(event="bound")
    server.recv()  # a subscription
    for name, pieces, _ in faults(options.boot):
        server.send_multipart([b"daoFrame1", b"".join(pieces)[:640]])
        say(event="sent", name=name)
        time.sleep(0.02)
    server.send_multipart([b"daoFrame1"])
    server.send_multipart([b"daoFrame1", *[b"x"] * 50])
    say(event="done")
    seq = 100
    while True:
        seq += 1
        server.send_multipart([b"daoFrame1", message(options.boot, seq)[:-8]])
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["crowd", "guests", "flood", "publisher", "zmq_publisher"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--number", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--boot", type=lambda text: int(text, 16), default=0)
    parser.add_argument("--ip", default="127.0.0.1")
    hexadecimal = lambda text: ZMTP if text == "zmtp" else bytes.fromhex(text)  # noqa: E731
    parser.add_argument("--says", type=hexadecimal, default=b"", metavar="HEX|zmtp")
    parser.add_argument("--first", type=hexadecimal, default=b"", metavar="HEX|zmtp")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    options.number = min(options.number, most - 64)
    globals()[options.what](options)


if __name__ == "__main__":
    main()
