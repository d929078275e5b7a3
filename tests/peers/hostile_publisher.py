"""A publisher on the Python wire that wishes its subscribers ill.

Binds a port, waits until somebody subscribes, and then sends, in turn, a good frame of --segment, one evil message of
each kind, and a good frame again. Prints a line of JSON for each kind: its name, and the cause by which it is to be
refused. Then sends one that is too large to be taken, and good frames ten times a second until SIGTERM.
"""

import argparse
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import numpy as np
import zmq
from common import TOPIC, Segment, frame, say


class Command:
    """Pickles to a call of os.system: whoever loads it runs the command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


class Evaluated:
    """The same by eval."""

    def __init__(self, expression: str) -> None:
        self.expression = expression

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, (self.expression,)


def evil_messages(segment: Segment, trap: Path) -> list[tuple[str, str, list[bytes]]]:
    """Name, cause of the refusal, and the parts behind the topic."""
    good = frame(1, segment.shape, segment.dtype)
    whole = pickle.dumps(good, protocol=4)
    touch = f"touch {trap}"
    messages: list[tuple[str, str, list[bytes]]] = []
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        messages.append((f"os.system, protocol {protocol}", "pickle_global", [pickle.dumps(Command(touch), protocol)]))
    expression = f"open({str(trap)!r}, 'w')"
    messages += [
        ("eval", "pickle_global", [pickle.dumps(Evaluated(expression), 4)]),
        ("os.system within an array", "pickle_opcode", [pickle.dumps([good, Command(touch)], 4)]),
        ("text protocol", "pickle_global", [f"cos\nsystem\n(S'{touch}'\ntR.".encode()]),
        ("an array of objects", "pickle_type", [pickle.dumps(np.array([Command(touch)], dtype=object), 4)]),
        ("a record array", "pickle_type", [pickle.dumps(np.zeros(segment.shape, dtype=[("a", "u1")]), 4)]),
        ("cut short", "pickle_truncated", [whole[: len(whole) // 2]]),
        ("cut by one byte", "pickle_truncated", [whole[:-1]]),
        ("another shape", "other_shape", [pickle.dumps(good.reshape(-1)[:-1].copy(), 4)]),
        ("turned around", "other_shape", [pickle.dumps(good.T.copy(), 4)]),
        ("another type", "other_shape", [pickle.dumps(good.astype(np.uint8), 4)]),
        ("no array", "pickle_structure", [pickle.dumps(7, 4)]),
        ("nested", "pickle_too_complex", [b"\x80\x04)" + b"\x85" * 2000 + b"."]),
        ("a length of all memory", "pickle_truncated", [b"\x80\x05\x8e" + b"\xff" * 7 + b"\x7f."]),
        ("garbage", "pickle_opcode", [bytes(range(255, 0, -1))]),
        ("nothing", "pickle_truncated", [b""]),
        ("the topic alone", "bad_parts", []),
        ("three parts", "bad_parts", [whole, b"more"]),
        ("forty parts", "bad_parts", [b"x"] * 40),
    ]
    return messages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--segment", type=Segment.parse, required=True, metavar="NAME:8x6:uint16")
    parser.add_argument("--trap", type=Path, required=True, metavar="FILE", help="would be made by whoever is caught")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    segment: Segment = options.segment
    socket = zmq.Context().socket(zmq.XPUB)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(f"tcp://127.0.0.1:{options.port}")
    say(event="bound")
    socket.recv()  # a subscription

    def send(parts: list[bytes]) -> None:
        socket.send_multipart([TOPIC.encode(), *parts])
        time.sleep(0.01)  # one at a time: a mirror that is behind skips what it need not write

    number = 1
    send([pickle.dumps(frame(number, segment.shape, segment.dtype))])
    for name, cause, parts in evil_messages(segment, options.trap):
        send(parts)
        say(event="sent", name=name, cause=cause)
        number += 1
        send([pickle.dumps(frame(number, segment.shape, segment.dtype))])
    say(event="done", number=number)
    time.sleep(2)
    # Too large to be taken at all: the link is cut, and made again.
    socket.send_multipart([TOPIC.encode(), bytes(1 << 22)])
    say(event="oversized")
    while True:
        time.sleep(0.1)
        number += 1
        send([pickle.dumps(frame(number, segment.shape, segment.dtype))])


if __name__ == "__main__":
    main()
