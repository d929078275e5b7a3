"""Stands in for the Python daemon of a machine that owns segments: registers them, answers requests, publishes.

Written from the contract of the registry and of the Python wire, with its faults: it reads requests by polling, puts
nothing but the plain fields into a record, clears nothing of an earlier run at its start, and publishes nothing until
somebody asks. A client that asks for a bidirectional stream is subscribed to, and what it sends becomes the newest frame,
which is published like any other, to that client too (not with --no-echo). There is no shared memory behind it: the frames are made here, numbered from 1, one for each period of
--rate and one for each signal USR1. Prints a line of JSON for whatever happens, and `written`, the number of frames of
each segment so far, four times a second.
"""

import argparse
import json
import pickle
import signal
import sys
import time
from types import FrameType

import redis
import zmq
from common import TOPIC, Segment, age_s, frame, now, number_of, say

NUDGE_S = 0.150
CLIENT_SILENT_S = 25.0


class Publisher:
    """One published segment."""

    def __init__(self, context: zmq.Context, segment: Segment, port: int, number: int) -> None:
        self.segment = segment
        self.port = port
        self.number = number  # of the newest frame
        self.nudge_at = 0.0
        self.socket = context.socket(zmq.PUB)
        self.socket.bind(f"tcp://*:{port}")

    def send(self) -> None:
        """Sends the newest frame."""
        self.socket.send_string(TOPIC, zmq.SNDMORE)
        self.socket.send_pyobj(frame(self.number, self.segment.shape, self.segment.dtype))


class Owner:
    """The daemon."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.host: str = options.hostname
        self.redis = redis.Redis(host="127.0.0.1", port=options.redis_port, decode_responses=True)
        self.context = zmq.Context()
        self.segments: dict[str, Segment] = {segment.name: segment for segment in options.segment}
        self.ports = {name: options.port + index for index, name in enumerate(self.segments)}
        self.publishers: dict[str, Publisher] = {}
        self.numbers = dict.fromkeys(self.segments, options.first)
        self.writers: dict[tuple[str, str], zmq.Socket] = {}
        self.taken = {"frames": 0, "bad": 0}

    def machine(self, field: str) -> str:
        return f"dao:machines:{self.host}:{field}"

    def entry(self, name: str, field: str) -> str:
        return f"dao:machines:{self.host}:shm:{name}:{field}"

    def register(self) -> None:
        self.redis.set(self.machine("ip"), self.options.ip)
        self.redis.set(self.machine("hostname"), self.host)
        self.redis.set(self.machine("role"), "minion")
        self.beat()
        for segment in self.segments.values():
            self.redis.set(self.entry(segment.name, "dimensions"), json.dumps(list(segment.shape)))
            self.redis.set(self.entry(segment.name, "dtype"), segment.dtype.name)
        say(event="registered", segments=list(self.segments))

    def deregister(self) -> None:
        for key in self.redis.scan_iter(f"dao:machines:{self.host}:*"):
            self.redis.delete(key)

    def beat(self) -> None:
        self.redis.set(self.machine("last_connect"), now())

    def records(self, name: str) -> list[dict[str, object]]:
        return json.loads(self.redis.get(self.entry(name, "connections")) or "[]")

    def answer_requests(self) -> None:
        for name, segment in self.segments.items():
            key = f"dao:connections:{self.host}:{name}"
            text = self.redis.get(key)
            if text is None:
                continue
            request = json.loads(text)
            client = request["client_hostname"]
            say(event="request", segment=name, client=client)
            if name not in self.publishers:
                self.publishers[name] = Publisher(self.context, segment, self.ports[name], self.numbers[name])
            publisher = self.publishers[name]
            publisher.nudge_at = time.monotonic() + NUDGE_S
            record = {
                "server_ip": self.options.ip,
                "port": publisher.port,
                "transport": "zmq",
                "client_hostname": client,
                "client_ip": request["client_ip"],
                "bidirectional": request["bidirectional"],
                "client_pub_port": request["client_pub_port"],
            }
            if request["bidirectional"]:
                self.subscribe(name, client, f"tcp://{request['client_ip']}:{request['client_pub_port']}")
            others = [other for other in self.records(name) if other["client_hostname"] != client]
            self.redis.set(self.entry(name, "connections"), json.dumps([*others, record]))
            self.redis.delete(key)

    def subscribe(self, name: str, client: str, address: str) -> None:
        if (name, client) in self.writers:
            self.writers.pop((name, client)).close(linger=0)
        socket = self.context.socket(zmq.SUB)
        socket.connect(address)
        socket.setsockopt(zmq.SUBSCRIBE, TOPIC.encode())
        self.writers[name, client] = socket
        say(event="subscribed", segment=name, client=client, address=address)

    def take_back(self) -> None:
        """What clients have written."""
        for (name, client), socket in self.writers.items():
            while socket.poll(0):
                socket.recv_string()
                array = pickle.loads(socket.recv())
                segment, data = self.segments[name], array.tobytes()
                number = number_of(data)
                good = array.dtype == segment.dtype and array.shape == segment.shape
                if not good or data != frame(number, segment.shape, segment.dtype).tobytes():
                    self.taken["bad"] += 1
                    continue
                self.taken["frames"] += 1
                self.numbers[name] = number
                say(event="taken", segment=name, client=client, number=number, **self.taken)
                if name in self.publishers:
                    self.publishers[name].number = number
                    if self.options.echo:
                        self.publishers[name].send()

    def evict(self) -> None:
        for name in list(self.publishers):
            kept = []
            for record in self.records(name):
                beat = self.redis.get(f"dao:heartbeats:{self.host}:{name}:{record['client_hostname']}")
                if beat is not None and age_s(str(beat)) <= CLIENT_SILENT_S:
                    kept.append(record)
                else:
                    say(event="evicted", segment=name, client=record["client_hostname"])
            if kept:
                self.redis.set(self.entry(name, "connections"), json.dumps(kept))
            else:
                self.redis.delete(self.entry(name, "connections"))
                self.publishers.pop(name).socket.close(linger=0)
                say(event="stopped", segment=name)

    def write_frame(self) -> None:
        """The next frame of every segment; whoever is published sends it."""
        for name in self.segments:
            self.numbers[name] += 1
            if name in self.publishers:
                self.publishers[name].number = self.numbers[name]
                self.publishers[name].send()

    def nudge(self) -> None:
        for publisher in self.publishers.values():
            if publisher.nudge_at and time.monotonic() >= publisher.nudge_at:
                publisher.nudge_at = 0.0
                publisher.send()
                say(event="nudge", segment=publisher.segment.name)

    def run(self) -> None:
        stop, steps = [], []

        def on_stop(_signal: int, _frame: FrameType | None) -> None:
            stop.append(True)

        def on_step(_signal: int, _frame: FrameType | None) -> None:
            steps.append(True)

        signal.signal(signal.SIGTERM, on_stop)
        signal.signal(signal.SIGUSR1, on_step)
        self.register()
        start = time.monotonic()
        due = {"requests": start, "beat": start + 30, "evict": start + self.options.check, "say": start}
        next_frame = start
        while not stop:
            clock = time.monotonic()
            if clock >= due["requests"]:
                due["requests"] = clock + self.options.poll
                self.answer_requests()
            if clock >= due["beat"]:
                due["beat"] = clock + 30
                self.beat()
            if clock >= due["evict"]:
                due["evict"] = clock + self.options.check
                self.evict()
            if clock >= due["say"]:
                due["say"] = clock + 0.25
                say(event="written", numbers=self.numbers)
            self.nudge()
            self.take_back()
            while steps:
                steps.pop()
                self.write_frame()
            if self.options.rate > 0 and clock >= next_frame:
                next_frame = max(next_frame + 1 / self.options.rate, clock)
                self.write_frame()
            time.sleep(0.001)
        self.deregister()
        self.context.destroy(linger=0)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis-port", type=int, required=True, metavar="PORT")
    parser.add_argument("--hostname", required=True, metavar="NAME", help="of this machine in the registry")
    parser.add_argument("--ip", default="127.0.0.1", help="address of this machine in the registry")
    parser.add_argument("--segment", type=Segment.parse, action="append", required=True, metavar="NAME:8x6:uint16",
                        help="a segment of this machine; repeatable")
    parser.add_argument("--port", type=int, required=True, help="of the first segment; the others follow")
    parser.add_argument("--rate", type=float, default=0.0, metavar="HZ", help="frames a second; 0: only at SIGUSR1")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="number of the first frame")
    parser.add_argument("--no-echo", dest="echo", action="store_false",
                        help="do not publish what a client wrote")
    parser.add_argument("--poll", type=float, default=2.0, metavar="S", help="looks for requests so often")
    parser.add_argument("--check", type=float, default=15.0, metavar="S", help="looks for silent clients so often")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    Owner(parse(sys.argv[1:])).run()
