"""The class DaoServer of scripts/daoServer.py, beside a daemon `alpha` that has the segments <tag>wfs, which is
written, and <tag>dm.

Needs DAOSERVER, the program; TEST_DIR, a folder, with alpha's segments in its folder `alpha`; TEST_TAG, which begins
every segment's name; TEST_REDIS, host:port.
"""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
from unittest import mock

import numpy as np

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
from daoServer import DaoServer, Segment  # noqa: E402

DIR = pathlib.Path(os.environ["TEST_DIR"])
TAG = os.environ["TEST_TAG"]
WFS, DM = TAG + "wfs", TAG + "dm"
REDIS_HOST, REDIS_PORT = os.environ["TEST_REDIS"].split(":")

# What every other program here begins with. What it prints is read line by line.
PROGRAM = """
import os, signal, sys, threading, time
sys.path.insert(0, %r)
from daoServer import DaoServer, Segment
def say(*words): print(*words, flush=True)
name, folder, port, wfs = sys.argv[1:5]
def server(**options):
    return DaoServer(%r, %s, hostname=name, shm_dir=folder, base_pub_port=int(port), advertise_ip="127.0.0.1",
                     log_level="error", **options)
""" % (str(SCRIPTS), REDIS_HOST, REDIS_PORT)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def redis(*words):
    """One command to Redis, as text in its protocol; gives what comes back, raw."""
    with socket.create_connection((REDIS_HOST, int(REDIS_PORT)), 5) as connection:
        connection.sendall(b"*%d\r\n" % len(words))
        for word in words:
            connection.sendall(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()))
        return connection.recv(65536)


def alive(pid):
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Case(unittest.TestCase):
    def setUp(self):
        self.name = self.id().rsplit(".", 1)[1][-20:].strip("_").replace("_", "-")
        self.folder = DIR / self.name
        self.folder.mkdir()
        self.cleanups = contextlib.ExitStack()
        self.addCleanup(self.cleanups.close)

    def server(self, **options):
        arguments = dict(redis_host=REDIS_HOST, redis_port=int(REDIS_PORT), hostname=self.name, role="minion",
                         shm_dir=str(self.folder), base_pub_port=free_port(), advertise_ip="127.0.0.1",
                         log_level="error")
        arguments.update(options)
        server = DaoServer(**arguments)
        self.cleanups.callback(server.stop)
        return server

    def program(self, text, *arguments):
        """Another Python program, with PROGRAM before its text."""
        line = [sys.executable, "-c", PROGRAM + text, self.name, str(self.folder), str(free_port()), WFS]
        process = subprocess.Popen(line + list(arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.cleanups.callback(self.end, process)
        return process

    @staticmethod
    def end(process):
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()

    def daemon(self, *flags, **options):
        """An ordinary daemon of this test's name."""
        line = [os.environ["DAOSERVER"], "--redis-host", REDIS_HOST,
                "--redis-port", str(options.get("port", REDIS_PORT)), "--hostname", self.name,
                "--shm-dir", str(self.folder), "--base-pub-port", str(free_port()), "--advertise-ip", "127.0.0.1",
                "--log-level", "error"] + list(flags)
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.cleanups.callback(self.end_daemon, process)
        while True:
            said = process.stderr.readline()
            self.assertTrue(said, "the daemon does not start")
            if said.startswith(b"daoserver running"):
                return process

    @staticmethod
    def end_daemon(process):
        process.terminate()
        process.wait(10)
        process.stdout.close()
        process.stderr.close()

    def eventually(self, true, seconds=15):
        end = time.monotonic() + seconds
        while not true():
            self.assertLess(time.monotonic(), end, "it did not happen")
            time.sleep(0.05)

    def registered(self):
        return b"-1" not in redis("GET", "dao:machines:%s:hostname" % self.name)[:3]

    def mirrors(self):
        """What a mirror leaves: files, and semaphores of the host."""
        semaphores = pathlib.Path("/dev/shm").glob("sem.remote_alpha_%s*" % TAG)
        return sorted(path.name for path in list(self.folder.glob("remote_*")) + list(semaphores))

    def flows(self, segment):
        for _ in range(5):
            self.assertIsNotNone(segment.get_data(check=True, timeout=10))


class Alone(Case):
    """With a private daemon."""

    def test_start_in_a_thread_and_at_once_a_stream(self):
        server = self.server()
        thread = threading.Thread(target=server.start, daemon=True)
        thread.start()
        segment = server.get_remote_shm("alpha", WFS)
        self.assertEqual(segment.path, str(self.folder / ("remote_alpha_%s.im.shm" % WFS)))
        self.assertEqual((segment.shape, segment.dtype), ((8, 8), np.dtype("uint32")))
        self.flows(segment)
        self.eventually(self.registered)
        machine = [m for m in server.list_machines() if m["hostname"] == self.name][0]
        self.assertEqual((machine["role"], machine["ip"]), ("minion", "127.0.0.1"))
        self.assertIsInstance(machine["shm_segments"], list)
        self.assertTrue(thread.is_alive())
        process = server._link.process
        server.stop()
        thread.join(10)
        self.assertFalse(thread.is_alive() or alive(process.pid) or self.registered())
        self.assertEqual(self.mirrors(), [])

    def test_before_start_and_after_stop(self):
        server = self.server()
        self.assertIn("alpha", [m["hostname"] for m in server.list_machines()])
        self.assertFalse(self.registered())
        self.flows(server.get_remote_shm("alpha", WFS))
        server.stop()
        self.assertEqual(self.mirrors(), [])
        server.stop()
        self.assertIn("alpha", [m["hostname"] for m in server.list_machines()])
        self.flows(server.get_remote_shm("alpha", WFS))
        thread = threading.Thread(target=server.start, daemon=True)
        thread.start()
        self.eventually(self.registered)
        server.stop()
        thread.join(10)
        self.assertFalse(thread.is_alive())

    def test_context_manager(self):
        with self.server() as server:
            self.assertTrue(self.registered())
            self.flows(server.get_remote_shm("alpha", WFS))
            status = server.status()
            self.assertEqual([(m["hostname"], m["shm"]) for m in status["mirrors"]], [("alpha", WFS)])
        self.assertFalse(self.registered())
        self.assertEqual(self.mirrors(), [])

    def test_threads_ask_at_the_same_time(self):
        server = self.server()
        done = []

        def ask(number):
            if number % 4 == 0:
                self.assertIn("alpha", [m["hostname"] for m in server.list_machines()])
            elif number % 4 == 1:
                server.status()
            else:
                self.flows(server.get_remote_shm("alpha", WFS))
            done.append(number)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        self.assertEqual(sorted(done), list(range(16)))

    def test_release(self):
        server = self.server()
        one, two = server.get_remote_shm("alpha", WFS), server.get_remote_shm("alpha", DM)
        self.assertEqual(server.get_remote_shm("alpha", WFS).path, one.path)
        server.release_remote_shm("alpha", WFS)
        self.assertFalse(os.path.exists(one.path))
        self.assertTrue(os.path.exists(two.path))
        self.assertIsNotNone(one.get_data())
        with self.assertRaises(KeyError):
            server.release_remote_shm("alpha", WFS)
        self.flows(server.get_remote_shm("alpha", WFS))
        self.assertIsNone(two.get_data(check=True, timeout=0.01))

    def test_errors(self):
        server = self.server()
        with self.assertRaisesRegex(KeyError, "No machine 'nobody' registered in Redis."):
            server.get_remote_shm("nobody", WFS)
        with self.assertRaisesRegex(KeyError, "No SHM 'nothing' registered for host 'alpha'."):
            server.get_remote_shm("alpha", "nothing")
        with self.assertRaisesRegex(NotImplementedError, "rdma connector not implemented."):
            server.get_remote_shm("alpha", WFS, transport="rdma")
        for field, value in (("hostname", "silent"), ("ip", "127.0.0.1"), ("role", "minion"),
                             ("shm:s:dimensions", "[4]"), ("shm:s:dtype", "int16")):
            redis("SET", "dao:machines:silent:" + field, value)
            self.cleanups.callback(redis, "DEL", "dao:machines:silent:" + field)
        sentence = "Remote server 'silent' did not start publishing SHM 's' within 0.5 s."
        with self.assertRaisesRegex(TimeoutError, sentence):
            server.get_remote_shm("silent", "s", timeout=0.5)
        server.register_machine()
        self.assertTrue(self.registered())
        with self.assertRaisesRegex(PermissionError, "Only master may deregister other machines."):
            server.deregister_machine("alpha")
        with self.assertRaises(PermissionError):
            server.cleanup_stale_machines(ttl_seconds=10)
        server.deregister_machine()
        with self.assertRaises(ValueError):
            self.server(role="king")
        # Nothing of what failed is held.
        self.assertEqual((server._leases, self.mirrors()), ({}, []))

    def test_the_master_may_deregister_others(self):
        # Of another cluster, since this one has its master.
        other = self.other_redis()
        with self.server(role="master", redis_port=other) as server:
            self.assertEqual(server.register_machine()["role"], "master")
            folder = tempfile.mkdtemp(dir=str(DIR))
            with self.server(role="minion", redis_port=other, hostname="second", shm_dir=folder):
                server.deregister_machine("second")
            self.assertEqual(server.cleanup_stale_machines(ttl_seconds=120), [])

    def other_redis(self, *flags):
        port = free_port()
        process = subprocess.Popen(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir",
                                    str(self.folder)] + list(flags), stdout=subprocess.PIPE)
        self.cleanups.callback(self.end, process)
        while True:
            said = process.stdout.readline()
            self.assertTrue(said, "Redis does not start")
            if b"Ready to accept" in said:
                return port

    def test_redis_is_unreachable(self):
        port = free_port()
        with self.assertRaisesRegex(ConnectionError, "Cannot connect to Redis at 127.0.0.1:%d" % port):
            self.server(redis_port=port)
        self.assertEqual(list(self.folder.glob(".daoserver-*.sock")), [])

    def test_there_is_no_program(self):
        with mock.patch.dict(os.environ, DAOSERVER="/nowhere/daoserver"):
            with self.assertRaisesRegex(FileNotFoundError, "scripts/build-static"):
                self.server()

    def test_a_password_stands_on_no_command_line(self):
        port = self.other_redis("--requirepass", "hush")
        with self.assertRaisesRegex(ConnectionError, "assword"):
            self.server(redis_port=port, redis_password="wrong")
        server = self.server(redis_port=port, redis_password="hush")
        self.assertEqual(server.list_machines(), [])
        command = pathlib.Path("/proc/%d/cmdline" % server._link.process.pid).read_bytes()
        self.assertNotIn(b"hush", command)

    def test_the_class_of_a_mirror_is_daoshms_where_that_is_installed(self):
        server = self.server()
        with mock.patch.dict(sys.modules, daoShm=types.SimpleNamespace(shm=lambda path: ("daoShm", path))):
            self.assertEqual(server.get_remote_shm("alpha", DM)[0], "daoShm")
        with mock.patch.dict(sys.modules, daoShm=None):
            self.assertIsInstance(server.get_remote_shm("alpha", DM), Segment)

    def test_the_thread_that_made_it_may_end(self):
        made = []
        thread = threading.Thread(target=lambda: made.append(self.server()))
        thread.start()
        thread.join()
        segment = made[0].get_remote_shm("alpha", WFS)
        pid = made[0]._link.process.pid
        self.flows(segment)
        self.assertEqual((made[0]._link.process.pid, alive(pid)), (pid, True))

    def test_write_back(self):
        server = self.server()
        dm = server.get_remote_shm("alpha", DM, bidirectional=True)
        with Segment(str(DIR / "alpha" / (DM + ".im.shm"))) as owner:
            values = (np.float32(0.01) * np.float32(number) for number in range(1, 1000))

            def arrives(seconds):
                """Does a frame of a value of its own come to the owner?"""
                value = next(values)
                dm.set_data(np.ones(140, dtype=np.float32) * value)
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    frame = owner.get_data(check=True, timeout=0.1)
                    if frame is not None and (frame == value).all():
                        return True
                return False

            # The way back is there a moment after the mirror; from then on, each frame arrives.
            self.eventually(lambda: arrives(0.3))
            for _ in range(5):
                self.assertTrue(arrives(10))


class Ends(Case):
    """How a private daemon ends, and with it what it left."""

    def ended(self, pid):
        self.eventually(lambda: not alive(pid))
        self.eventually(lambda: not self.registered())
        self.eventually(lambda: self.mirrors() == [])

    def test_python_is_killed_while_its_child_lives_on(self):
        program = self.program("""
s = server()
threading.Thread(target=s.start, daemon=True).start()
frame = s.get_remote_shm("alpha", wfs).get_data(check=True)
child = os.fork()
if child == 0:
    time.sleep(1000)
say(s._link.process.pid, child)
s.list_machines()
time.sleep(1000)
""")
        pid, child = map(int, program.stdout.readline().split())
        self.cleanups.callback(os.kill, child, signal.SIGKILL)
        self.eventually(self.registered)
        program.kill()
        program.wait()
        self.ended(pid)
        self.assertTrue(alive(child))

    def test_python_ends_in_order_without_stop(self):
        program = self.program("""
s = server()
threading.Thread(target=s.start, daemon=True).start()
s.get_remote_shm("alpha", wfs).get_data(check=True)
say(s._link.process.pid)
""")
        pid = int(program.stdout.readline())
        self.assertEqual(program.wait(20), 0)
        self.assertFalse(alive(pid))
        self.ended(pid)

    def test_control_c_ends_start(self):
        program = self.program("""
s = server()
say(s._link.process.pid)
s.start()
say("stopped")
""")
        pid = int(program.stdout.readline())
        self.eventually(self.registered)
        program.send_signal(signal.SIGINT)
        self.assertEqual(program.stdout.readline(), b"stopped\n")
        self.assertEqual(program.wait(20), 0)
        self.ended(pid)

    def test_a_forked_child_connects_by_itself(self):
        server = self.server()
        segment = server.get_remote_shm("alpha", WFS)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                ok = server._link is None and server.list_machines() and server.get_remote_shm("alpha", DM)
                server.stop()
                code = 0 if ok else 2
            finally:
                os._exit(code)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.flows(segment)
        self.eventually(lambda: not any(DM in name for name in self.mirrors()))


class Beside(Case):
    """With a daemon that somebody else started."""

    def test_it_keeps_its_registration_and_its_streams(self):
        daemon = self.daemon()
        get = [os.environ["DAOSERVER"], "get", "alpha", DM, "--shm-dir", str(self.folder), "--hostname", self.name]
        subprocess.run(get, check=True, stdout=subprocess.PIPE)
        # By another name of the same host.
        server = self.server(redis_host="localhost" if REDIS_HOST == "127.0.0.1" else REDIS_HOST)
        self.assertIsNone(server._link.process)
        thread = threading.Thread(target=server.start)
        thread.start()
        self.flows(server.get_remote_shm("alpha", WFS))
        server.get_remote_shm("alpha", DM)
        server.stop()
        thread.join(10)
        self.eventually(lambda: not any(WFS in name for name in self.mirrors()))
        self.assertTrue(any(DM in name for name in self.mirrors()))
        self.assertTrue(self.registered())
        self.assertIsNone(daemon.poll())

    def test_one_of_another_cluster_is_left_alone(self):
        other = Alone.other_redis(self)
        daemon = self.daemon(port=other)
        server = self.server()
        folder = pathlib.Path(server._link._folder)
        self.assertTrue((folder / "control.sock").exists())
        self.flows(server.get_remote_shm("alpha", WFS))
        server.stop()
        self.assertFalse(folder.exists())
        self.assertIsNone(daemon.poll())

    def test_it_goes_away(self):
        daemon = self.daemon()
        server = self.server()
        threading.Thread(target=server.start, daemon=True).start()
        segment = server.get_remote_shm("alpha", WFS)
        self.eventually(self.registered)
        daemon.kill()
        daemon.wait()
        self.eventually(lambda: server._link.process is not None)
        self.flows(segment)
        self.eventually(self.registered)
        self.assertEqual([m["shm"] for m in server.status()["mirrors"]], [WFS])

    def test_two_programs_share_one_and_the_first_ends(self):
        for how in ("stop", "kill"):
            with self.subTest(how):
                program = self.program("""
s = server()
say(s._link.process is not None)
s.get_remote_shm("alpha", wfs)
say("has it")
sys.stdin.readline() if sys.argv[5] == "stop" else time.sleep(1000)
""", how)
                self.assertEqual(program.stdout.readline(), b"True\n")
                self.assertEqual(program.stdout.readline(), b"has it\n")
                server = self.server()
                self.assertIsNone(server._link.process)
                segment = server.get_remote_shm("alpha", WFS)
                self.flows(segment)
                if how == "kill":
                    program.kill()
                else:
                    program.stdin.close()
                program.wait(20)
                self.eventually(lambda: server._link.process is not None)
                self.flows(segment)
                # The mirror outlives this: for ten seconds its daemon keeps what the first program may ask for again.
                server.stop()

    def test_programs_that_start_at_the_same_time_share_one(self):
        programs = [self.program("""
s = server()
segment = s.get_remote_shm("alpha", wfs)
say(s._link.process is not None, segment.get_data(check=True, timeout=10) is not None)
time.sleep(1000)
""") for _ in range(4)]
        said = sorted(program.stdout.readline() for program in programs)
        self.assertEqual(said, [b"False True\n"] * 3 + [b"True True\n"])


if __name__ == "__main__":
    unittest.main(verbosity=1)
