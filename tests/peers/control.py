#!/usr/bin/env python3
"""Talks to daemons in the control protocol: control.py SITUATION [ARGUMENTS]. Ends with 0 if all was as it should be.

Standard library only. SITUATION is a function of this file; what it needs comes as arguments.
"""
import json
import os
import random
import select
import socket
import subprocess
import sys
import time

PATIENCE_S = 20


class Peer:
    """One connection, or the daemon at our end of two pipes."""

    def __init__(self, path=None, process=None):
        self.process = process
        if path:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE_S)
            self.socket.connect(path)
            self.read_fd, self.write = self.socket.fileno(), self.socket.sendall
        else:
            self.read_fd, self.write = process.stdout.fileno(), self._write_pipe
        self.rest = b""

    def _write_pipe(self, data):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def line(self, patience_s=PATIENCE_S):
        """The next line without its end; None: the other side has ended."""
        deadline = time.monotonic() + patience_s
        while b"\n" not in self.rest:
            left = deadline - time.monotonic()
            assert left > 0, "no answer in time"
            if select.select([self.read_fd], [], [], left)[0]:
                try:
                    got = os.read(self.read_fd, 65536)
                except ConnectionResetError:
                    return None
                if not got:
                    return None
                self.rest += got
        line, self.rest = self.rest.split(b"\n", 1)
        return line

    def send(self, **request):
        self.write(json.dumps(request).encode() + b"\n")

    def answer(self):
        line = self.line()
        assert line is not None, "the connection has ended"
        return json.loads(line)

    def ask(self, op, **fields):
        """The answer's `ok`; an error is raised with its kind in front."""
        self.send(id=op, op=op, **fields)
        answer = self.answer()
        assert answer["id"] == op, answer
        if "error" in answer:
            raise RuntimeError(answer["error"]["kind"] + ": " + answer["error"]["message"])
        return answer["ok"]

    def get(self, hostname, shm, **fields):
        return self.ask("get_remote_shm", hostname=hostname, shm=shm, **fields)["path"]

    def release(self, hostname, shm):
        return self.ask("release_remote_shm", hostname=hostname, shm=shm)["held_by"]

    def close(self):
        self.socket.close()


def eventually(condition, what):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "not in time: " + what
        time.sleep(0.01)


def raises(kind, call, *arguments, **fields):
    try:
        call(*arguments, **fields)
    except RuntimeError as error:
        assert str(error).startswith(kind + ": "), error
        return str(error)
    raise AssertionError("no " + kind)


def exists(path):
    return os.path.exists(path)


def every_op(control, owner, shm):
    """What each answers."""
    peer = Peer(control)
    ping = peer.ask("ping")
    assert {"hostname", "pid", "version", "redis_host", "redis_port", "shm_dir", "control", "registered"} <= set(ping)
    assert ping["control"] == control and ping["registered"] is True
    assert peer.ask("start") == peer.ask("register_machine")
    machines = peer.ask("list_machines")
    assert shm in [m for m in machines if m["hostname"] == owner][0]["shm_segments"]
    got = peer.ask("get_remote_shm", hostname=owner, shm=shm, lease=True)
    assert {"path", "hostname", "shm", "shape", "dtype", "transport", "frames"} <= set(got)
    assert exists(got["path"])
    mirror = [m for m in peer.ask("status")["mirrors"] if m["shm"] == shm][0]
    assert (mirror["kept"], mirror["leases"]) == (False, 1), mirror
    assert peer.release(owner, shm) == 0 and not exists(got["path"])
    raises("KeyError", peer.release, owner, shm)
    raises("KeyError", peer.get, "nohost", shm)
    raises("KeyError", peer.get, owner, "nosuch")
    raises("ValueError", peer.get, "no/host", shm)
    assert "rdma connector not implemented." in raises("NotImplementedError", peer.get, owner, shm, transport="rdma")
    raises("PermissionError", peer.ask, "deregister_machine", hostname=owner)
    raises("PermissionError", peer.ask, "cleanup_stale_machines", ttl_seconds=1)
    raises("ValueError", peer.ask, "discover", port=0)
    raises("ValueError", peer.ask, "fly")


def pipelined(control, owner, shm, stopped):
    """A stream whose owner does not answer holds up nothing else of its connection, nor another connection."""
    peer, other = Peer(control), Peer(control)
    peer.send(id=["slow"], op="get_remote_shm", hostname=stopped, shm=shm, timeout_s=4)
    peer.send(id="behind it", op="release_remote_shm", hostname=stopped, shm=shm)
    for number in range(50):
        peer.send(id=number, op="ping")
    peer.send(id="fast", op="get_remote_shm", hostname=owner, shm=shm, lease=True)
    assert [peer.answer()["id"] for _ in range(50)] == list(range(50))
    answers = [peer.answer() for _ in range(3)]
    assert [answer["id"] for answer in answers] == ["fast", ["slow"], "behind it"], answers
    assert "did not start publishing" in answers[1]["error"]["message"]
    assert answers[2]["error"]["kind"] == "KeyError"
    other.ask("ping")
    # In the order of asking, for one stream.
    for _ in range(5):
        peer.send(id="get", op="get_remote_shm", hostname=owner, shm=shm, lease=True)
        peer.send(id="release", op="release_remote_shm", hostname=owner, shm=shm)
    answers = [peer.answer() for _ in range(10)]
    assert [answer["id"] for answer in answers] == ["get", "release"] * 5
    assert all("ok" in answer for answer in answers), answers
    # More than a connection may have at once: each is answered.
    for number in range(200):
        peer.send(id=number, op="get_remote_shm", hostname=owner, shm="no%d" % number)
    assert sorted(peer.answer()["id"] for _ in range(200)) == list(range(200))


def one_way_out(control, owner, shm):
    """Whoever stops sending gets what he has asked for: `printf ... | nc -U` works."""
    peer = Peer(control)
    peer.send(id=1, op="get_remote_shm", hostname=owner, shm=shm, lease=True)
    peer.socket.shutdown(socket.SHUT_WR)
    path = peer.answer()["ok"]["path"]
    assert peer.line() is None
    eventually(lambda: not exists(path), "the lease has ended with the connection")


def leases(control, owner, shm):
    """A leased mirror ends with its last holder; one that was asked for to stay, stays."""
    first, second, command = Peer(control), Peer(control), Peer(control)
    path = first.get(owner, shm, lease=True)
    assert first.get(owner, shm, lease=True) == path, "one hold, however often it is asked for"
    inode = os.stat(path).st_ino
    assert second.get(owner, shm, lease=True) == path
    first.close()
    eventually(lambda: command.ask("status")["mirrors"][0]["leases"] == 1, "the first lease has ended")
    assert command.release(owner, shm) == 1, "another's lease is not the command's to end"
    assert os.stat(path).st_ino == inode
    second.close()
    eventually(lambda: not exists(path), "the second as well")
    assert command.ask("status")["mirrors"] == []
    holder = Peer(control)
    command.get(owner, shm)
    holder.get(owner, shm, lease=True)
    holder.close()
    eventually(lambda: command.ask("status")["mirrors"][0]["leases"] == 0, "only the command holds it")
    assert exists(path) and command.ask("status")["mirrors"][0]["kept"]
    command.close()
    command = Peer(control)
    assert exists(path), "it does not end with the command's connection"
    assert command.release(owner, shm) == 0 and not exists(path)


def gone_while_waiting(control, stopped, shm):
    """Who hangs up while his stream is waited for leaves nothing behind."""
    peer, other = Peer(control), Peer(control)
    peer.send(id=1, op="get_remote_shm", hostname=stopped, shm=shm, lease=True, timeout_s=30)
    eventually(lambda: len(other.ask("status")["mirrors"]) == 1, "it is waited for")
    peer.close()
    eventually(lambda: other.ask("status")["mirrors"] == [], "it is given up")


def malformed(control):
    """Each bad line is answered with what is wrong and where, and the connection lives; a line without end ends it."""
    peer = Peer(control)
    for line, wanted in [
        (b'{"id": 1,, "op": "ping"}', "column 10"),
        (b"[1, 2", "column 5"),
        (b"\xff\xfe", "column 1"),
        (b'"ping"', "must be a JSON object"),
        (b'{"id": 7}', "'op' is missing"),
        (b'{"op": "get_remote_shm", "hostname": "a", "shm": []}', "'shm'"),
        (b"[" * 100000, "recursion"),
    ]:
        peer.write(line + b"\n")
        answer = peer.answer()
        assert answer["error"]["kind"] == "ValueError" and wanted in answer["error"]["message"], (line[:60], answer)
    peer.write(b"\n \r\n")
    assert peer.ask("ping")
    # A line may be as long as a megabyte, whatever is in it, and come in pieces.
    peer.write(b'{"op": "ping", "x": "' + b"x" * 1_000_000)
    peer.write(b'"}\n')
    assert "ok" in peer.answer()
    try:
        peer.write(b"x" * (3 << 20))
    except (BrokenPipeError, ConnectionResetError):
        pass
    answer = peer.answer()
    assert answer["error"]["kind"] == "ValueError" and "longer than 1048576 bytes" in answer["error"]["message"], answer
    assert peer.line() is None
    assert Peer(control).ask("ping")


def mutated(control, owner, shm, seed, rounds):
    """Requests with bytes changed, cut and doubled: each line gets one answer, or the connection ends, and the daemon lives."""
    chance = random.Random(int(seed))
    ops = ["ping", "status", "list_machines", "get_remote_shm", "release_remote_shm", "cleanup_stale_machines"]
    peer, sent = Peer(control), 0
    for _ in range(int(rounds)):
        request = {"id": chance.choice([0, None, "x", [1], {"a": 1}]), "op": chance.choice(ops), "hostname": owner, "shm": shm}
        request.update(lease=chance.choice([True, None]), timeout_s=0.2, ttl_seconds=1e6)
        line = bytearray(json.dumps(request).encode())
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(line))
            what = chance.randrange(4)
            if what == 0:
                line[at] = chance.choice(b"\x00\x01{}[]\",:\\\xff 0-9eE" + bytes([chance.randrange(256)]))
            elif what == 1:
                del line[at : at + chance.randrange(1, 9)]
            elif what == 2:
                line[at:at] = line[at : at + chance.randrange(1, 40)]
            else:
                line[at:at] = chance.choice([b"1e999", b"-", b"18446744073709551616", b"\\ud800", b"null", b"{" * 200])
        line = bytes(line).replace(b"\n", b" ")
        peer.write(line + b"\n")
        sent += 1
        if line.strip():
            answer = peer.answer()
            assert set(answer) in ({"id", "ok"}, {"id", "error"}), answer
            if "error" in answer:
                assert answer["error"]["kind"] in (
                    "KeyError TimeoutError ValueError PermissionError NotImplementedError OSError".split()
                ), answer
    assert Peer(control).ask("ping")
    print(sent, "lines")


def start(binary, arguments, **more):
    return subprocess.Popen([binary, "--stdio", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **more)


def stdio(binary, owner, shm, *arguments):
    """Nothing is registered before `start`; after `stop` nothing is; it all begins anew; standard input ends it."""
    process = start(binary, arguments)
    peer = Peer(process=process)
    me = peer.ask("ping")
    hosts = lambda: [machine["hostname"] for machine in peer.ask("list_machines")]
    assert me["registered"] is False and me["hostname"] not in hosts() and owner in hosts()
    path = peer.get(owner, shm, lease=True)
    assert exists(path) and me["hostname"] not in hosts(), "a stream needs no registration of its own"
    for _ in range(2):
        path = peer.get(owner, shm, lease=True)
        assert peer.ask("start")["hostname"] == me["hostname"]
        assert me["hostname"] in hosts() and peer.ask("ping")["registered"]
        peer.ask("stop")
        assert not exists(path), "its mirrors end with it"
        raises("OSError", peer.ask, "ping")
        peer.ask("start")
    kept = peer.get(owner, shm)
    leased = Peer(me["control"]).get(owner, shm, lease=True)
    assert kept == leased, "others may use it, too"
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 0
    assert exists(kept) and not exists(me["control"])
    process = start(binary, arguments)
    peer = Peer(process=process)
    assert me["hostname"] not in hosts()
    assert peer.release(owner, shm) == 0 and not exists(kept), "a mirror that was to stay is remembered"
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 0


def stdio_pipe(binary, owner, shm, *arguments):
    """`printf ... | daoserver --stdio` answers all of it, a stream that takes a while too, before it ends."""
    lines = [{"id": 1, "op": "get_remote_shm", "hostname": owner, "shm": shm}, {"id": 2, "op": "ping"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run([binary, "--stdio", *arguments], input=text.encode(), stdout=subprocess.PIPE, timeout=PATIENCE_S)
    answers = {answer["id"]: answer for answer in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0 and set(answers) == {1, 2} and all("ok" in answer for answer in answers.values()), answers
    process = start(binary, arguments)
    assert Peer(process=process).release(owner, shm) == 0
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 0


def stdio_orphan(binary, *arguments):
    """The parent is killed while somebody else still holds the daemon's standard input open: it ends all the same."""
    ours, theirs = os.pipe()
    report_read, report_write = os.pipe()
    parent = os.fork()
    if parent == 0:
        process = subprocess.Popen([binary, "--stdio", *arguments], stdin=ours, stdout=subprocess.PIPE)
        os.write(theirs, b'{"id": 1, "op": "start"}\n')
        assert b"ok" in process.stdout.readline()
        os.write(report_write, b"%d\n" % process.pid)
        time.sleep(1000)
    daemon = int(os.read(report_read, 100))
    os.kill(parent, 9)
    os.waitpid(parent, 0)
    eventually(lambda: not exists("/proc/%d" % daemon) or b"Z" in open("/proc/%d/stat" % daemon, "rb").read().split(), "it has ended")
    os.close(theirs)


def stdio_refused(binary, kind, words, *arguments):
    """A daemon that cannot start says so where whoever started it reads."""
    process = start(binary, arguments, stderr=subprocess.PIPE)
    answer = json.loads(process.stdout.readline())
    assert answer["id"] is None and answer["error"]["kind"] == kind and words in answer["error"]["message"], answer
    assert process.wait(PATIENCE_S) != 0
    assert words.encode() in process.stderr.read()


def restarted(control, owner, shm, report):
    """Holds a lease over the restart of its daemon, which the scenario does: asks its successor, and the file stays."""
    peer = Peer(control)
    path = peer.get(owner, shm, lease=True)
    inode = os.stat(path).st_ino
    open(report, "w").write("held")
    while peer.line(60) is not None:
        pass
    deadline = time.monotonic() + PATIENCE_S
    while True:
        # The first to be met may still be the old one, which answers nobody.
        try:
            peer = Peer(control)
            again = peer.get(owner, shm, lease=True)
            break
        except (OSError, AssertionError):
            assert time.monotonic() < deadline, "no successor"
            time.sleep(0.02)
    assert again == path and os.stat(path).st_ino == inode
    eventually(lambda: os.read(os.open(report, os.O_RDONLY), 9) == b"go on", "told to go on")
    assert os.stat(path).st_ino == inode
    peer.close()
    eventually(lambda: not exists(path), "the lease has ended")


def stop(control):
    """Over the socket it is answered at once, and the connection ends with the daemon."""
    peer = Peer(control)
    assert peer.ask("stop") == {}
    assert peer.line() is None
    eventually(lambda: not exists(control), "its socket is gone")


def spellings(control, owner, shm):
    """One stream under two names is still one: what is asked of it is done in turn."""
    peer = Peer(control)
    for _ in range(5):
        peer.send(id="get", op="get_remote_shm", hostname=owner, shm="/" + shm, lease=True)
        peer.send(id="release", op="release_remote_shm", hostname=owner, shm=shm)
    answers = [peer.answer() for _ in range(10)]
    assert [answer["id"] for answer in answers] == ["get", "release"] * 5 and all("ok" in a for a in answers), answers


def long_id(control):
    """An id is kept until the answer, so it has a limit."""
    peer = Peer(control)
    peer.send(id="x" * 5000, op="ping")
    answer = peer.answer()
    assert answer["id"] is None and "An id has at most" in answer["error"]["message"], answer
    assert peer.ask("ping")


def vain_upgrade(control, owner, shm):
    """The owner is stopped: nobody can be let write, and those who only read have their mirror all the same."""
    peer = Peer(control)
    path = peer.get(owner, shm)
    raises("TimeoutError", peer.get, owner, shm, bidirectional=True, timeout_s=1)
    assert peer.get(owner, shm, timeout_s=1) == path
    memory = json.load(open(control + ".memory"))
    assert [mirror["bidirectional"] for mirror in memory["mirrors"]] == [False], memory
    assert peer.release(owner, shm) == 0


def unread(binary, signal, *arguments):
    """A daemon whose answers nobody reads ends all the same."""
    process = start(binary, arguments)
    os.set_blocking(process.stdin.fileno(), False)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        try:
            os.write(process.stdin.fileno(), b'{"op": "status"}\n' * 100)
        except BlockingIOError:
            time.sleep(0.05)
    process.send_signal(int(signal))
    assert process.wait(PATIENCE_S) == 0


def no_stderr(binary, *arguments):
    """Standard error is a pipe that nobody reads any more: no reason to die."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = start(binary, arguments, stderr=write_end)
    os.close(write_end)
    peer = Peer(process=process)
    assert peer.ask("start") and peer.ask("ping")["registered"]
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 0


def flood_then_signal(binary, signal, *arguments):
    """A signal while a lot of requests is waiting, a start among them: it is the signal that counts."""
    for _ in range(5):
        process = start(binary, arguments)
        assert Peer(process=process).ask("ping")
        os.write(process.stdin.fileno(), b'{"op": "list_machines"}\n' * 60 + b'{"op": "start"}\n' * 5)
        process.send_signal(int(signal))
        assert process.wait(PATIENCE_S) == 0


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
