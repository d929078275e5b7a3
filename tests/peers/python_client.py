"""Stands in for Python clients: finds an owner through the registry, subscribes, and checks every frame.

Written from the contract. It reads `connections`; only if that is empty it writes a request and looks again every
half second. It uses the first record alone, and of it the port; the address is that of the owner's machine. It
rewrites its heartbeats every 10 s. Prints lines of JSON: `connected`, `first` (with the time since the subscription),
`bad` (the first few), `progress` ten times a second while something changes, and `end`. With --write-back it asks for
a bidirectional stream, and publishes a frame of its own at each signal USR1, the next after the newest it knows.
`frames` counts all, `bad` those that are not what was written, `missing` the numbers that never came, `repeated`
those that came again, `restarts` those that went back.
"""

import argparse
import json
import os
import pickle
import signal
import sys
import time
from types import FrameType

import numpy as np
import redis
import zmq
from common import CLIENT_HEARTBEAT_EXPIRY_S, CLIENT_HEARTBEAT_S, TOPIC, Segment, frame, now, number_of, say


class Stream:
    """One segment of the owner, and what came of it."""

    def __init__(self, segment: Segment, check: str, echo: bool) -> None:
        self.segment = segment
        self.echo = echo
        self.check = check
        self.socket: zmq.Socket | None = None
        self.subscribed_at = 0.0
        self.frames = self.bad = self.missing = self.repeated = self.restarts = 0
        self.number = -1  # of the newest frame
        self.back: zmq.Socket | None = None
        self.sent = self.echoed = 0

    def bind(self, context: zmq.Context, port: int) -> None:
        """Where our own frames go out."""
        self.back = context.socket(zmq.PUB)
        self.back.bind(f"tcp://*:{port}")

    def write(self, number: int) -> None:
        """A program of this machine writes into the mirror, and that goes back."""
        assert self.back is not None
        self.number = max(self.number, number)
        self.back.send_string(TOPIC, zmq.SNDMORE)
        self.back.send_pyobj(frame(number, self.segment.shape, self.segment.dtype))

    def connect(self, context: zmq.Context, ip: str, port: int) -> None:
        """In the order of the Python client: an option that is set after connect has no effect on the pipe."""
        self.socket = context.socket(zmq.SUB)
        self.subscribed_at = time.monotonic()
        self.socket.connect(f"tcp://{ip}:{port}")
        self.socket.setsockopt(zmq.SUBSCRIBE, TOPIC.encode())
        self.socket.setsockopt(zmq.CONFLATE, 1)
        self.socket.setsockopt(zmq.RCVTIMEO, 100)

    def fault(self, array: object) -> str:
        """What is wrong with an array; nothing: it is bit for bit what was written."""
        segment = self.segment
        if not isinstance(array, np.ndarray):
            return f"it is a {type(array).__name__}"
        if array.dtype != segment.dtype or not array.dtype.isnative:
            return f"its type is {array.dtype.str}"
        if array.shape != segment.shape:
            return f"its shape is {array.shape}"
        if not array.flags.c_contiguous or not array.flags.writeable or not array.flags.aligned:
            return f"its flags are {array.flags}"
        data = array.tobytes()
        if self.check == "pattern" and data != frame(number_of(data), segment.shape, segment.dtype).tobytes():
            return "its bytes are not those of a frame"
        if self.check == "counter" and not (array == array.flat[0]).all():
            return "it holds more than one number"
        return ""

    def take(self) -> None:
        """Receives one message."""
        assert self.socket is not None
        topic = self.socket.recv_string()
        data = self.socket.recv()
        if self.frames == 0:
            say(event="first", segment=self.segment.name, ms=round(1e3 * (time.monotonic() - self.subscribed_at), 1))
        self.frames += 1
        if self.check == "count":
            return
        array = pickle.loads(data)
        why = self.fault(array) or ("" if topic == TOPIC else f"its topic is {topic}")
        if why:
            self.bad += 1
            if self.bad <= 3:
                say(event="bad", segment=self.segment.name, why=why)
            return
        number = number_of(array.tobytes()) if self.check == "pattern" else int(array.flat[0].real)
        self.count(number)
        if self.echo:
            self.echoed += 1
            self.write(number)

    def count(self, number: int) -> None:
        """Books the number of a good frame."""
        if self.number >= 0:
            self.repeated += number == self.number
            self.restarts += number < self.number
            self.missing += max(number - self.number - 1, 0)
        self.number = number

    def facts(self) -> dict[str, object]:
        names = ("frames", "bad", "missing", "repeated", "restarts", "number", "sent", "echoed")
        return {"segment": self.segment.name} | {name: getattr(self, name) for name in names}


class Client:
    """The program."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.redis = redis.Redis(host="127.0.0.1", port=options.redis_port, decode_responses=True)
        self.context = zmq.Context()
        self.streams = [Stream(segment, options.check, options.echo) for segment in options.segment]
        self.ports = {}
        if options.write_back:
            for index, stream in enumerate(self.streams):
                self.ports[stream.segment.name] = options.write_back + index
                stream.bind(self.context, options.write_back + index)
        self.steps = 0
        self.stop = False
        self.next_beat = 0.0
        self.next_look = 0.0

    def beat(self) -> None:
        for stream in self.streams:
            self.redis.set(self.heartbeat(stream), now(), ex=CLIENT_HEARTBEAT_EXPIRY_S)

    def heartbeat(self, stream: Stream) -> str:
        return f"dao:heartbeats:{self.options.owner}:{stream.segment.name}:{self.options.hostname}"

    def look(self, stream: Stream) -> None:
        """Looks for a record; asks if there is none."""
        owner, name = self.options.owner, stream.segment.name
        records = json.loads(self.redis.get(f"dao:machines:{owner}:shm:{name}:connections") or "[]")
        if records:
            record = records[0]
            if record["transport"] != "zmq":
                raise NotImplementedError(f"{record['transport']} connector not implemented.")
            ip = self.redis.get(f"dao:machines:{owner}:ip")
            if ip is None:
                raise KeyError(f"no machine {owner}")
            stream.connect(self.context, str(ip), record["port"])
            say(event="connected", segment=name, port=record["port"], record_of=record["client_hostname"])
        elif self.options.ask:
            request = {
                "client_ip": self.options.ip,
                "client_hostname": self.options.hostname,
                "transport": "zmq",
                "bidirectional": name in self.ports,
                "client_pub_port": self.ports.get(name),
            }
            request |= json.loads(self.options.extra)
            self.redis.set(f"dao:connections:{owner}:{name}", json.dumps(request))

    def run(self) -> None:
        def on_stop(_signal: int, _frame: FrameType | None) -> None:
            self.stop = True

        def on_step(_signal: int, _frame: FrameType | None) -> None:
            self.steps += 1

        signal.signal(signal.SIGTERM, on_stop)
        signal.signal(signal.SIGUSR1, on_step)
        poller = zmq.Poller()
        end = time.monotonic() + self.options.seconds
        next_word = 0.0
        said: dict[str, dict[str, object]] = {}
        while not self.stop and time.monotonic() < end:
            clock = time.monotonic()
            if clock >= self.next_beat:
                self.next_beat = clock + CLIENT_HEARTBEAT_S
                self.beat()
            waiting = [stream for stream in self.streams if stream.socket is None]
            if waiting and clock >= self.next_look:
                self.next_look = clock + 0.5
                for stream in waiting:
                    self.look(stream)
                    if stream.socket is not None:
                        poller.register(stream.socket, zmq.POLLIN)
            ready = dict(poller.poll(100))
            for stream in self.streams:
                if stream.socket in ready:
                    stream.take()
            while self.steps > 0:
                self.steps -= 1
                for stream in self.streams:
                    stream.sent += 1
                    stream.write(stream.number + 1)
            if time.monotonic() >= next_word:
                next_word = time.monotonic() + 0.1
                facts = {stream.segment.name: stream.facts() for stream in self.streams}
                for name in facts:
                    if facts[name] != said.get(name):
                        say(event="progress", **facts[name])
                said = facts
            if 0 < self.options.die_after <= min(stream.frames for stream in self.streams):
                os._exit(0)  # no clean-up of any kind
        for stream in self.streams:
            say(event="end", **stream.facts())
            self.redis.delete(self.heartbeat(stream))
        self.context.destroy(linger=0)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis-port", type=int, required=True, metavar="PORT")
    parser.add_argument("--hostname", required=True, metavar="NAME", help="of this machine")
    parser.add_argument("--ip", default="127.0.0.1", help="of this machine")
    parser.add_argument("--owner", required=True, metavar="NAME", help="host name of the segments' owner")
    parser.add_argument("--segment", type=Segment.parse, action="append", required=True, metavar="NAME:8x6:uint16",
                        help="a segment of the owner, with the shape and type that are to be checked; repeatable")
    parser.add_argument("--check", choices=("pattern", "counter", "type", "count"), default="pattern",
                        help="pattern: as the peers write; counter: every element is the frame's number; "
                             "type: type, shape and flags alone; count: do not even unpickle")
    parser.add_argument("--no-ask", dest="ask", action="store_false", help="never write a request")
    parser.add_argument("--extra", default="{}", metavar="JSON", help="fields to add to the request")
    parser.add_argument("--write-back", type=int, default=0, metavar="PORT",
                        help="ask for bidirectional streams; own frames go out here, those of the second segment one port on")
    parser.add_argument("--echo", action="store_true",
                        help="with --write-back: whatever comes goes back, too, as from a peer that cannot tell")
    parser.add_argument("--die-after", type=int, default=0, metavar="N", help="die silently after N frames of each")
    parser.add_argument("--seconds", type=float, default=600.0, metavar="S", help="end after this time at the latest")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    Client(parse(sys.argv[1:])).run()
