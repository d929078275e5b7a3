"""The segment class of scripts/daoServer.py, against the C library's files and against `daoserver shm`.

Needs DAOSERVER, the program; TEST_DIR, an empty folder; TEST_TAG, which begins every segment's name.
"""

import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import threading
import time
import unittest

import numpy as np

TOP = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "scripts"))
import daoServer  # noqa: E402
from daoServer import Segment  # noqa: E402

GOLDEN = TOP / "tests" / "golden" / "shm"
DIR = pathlib.Path(os.environ["TEST_DIR"])
TAG = os.environ["TEST_TAG"]
DTYPES = "uint8 int8 uint16 int16 uint32 int32 uint64 int64 float32 float64 complex64 complex128".split()
numbers = np.random.RandomState(5)


def shm(command, *arguments, **options):
    """`daoserver shm COMMAND ARGUMENTS`; gives what it prints, bytes."""
    line = [os.environ["DAOSERVER"], "shm", command] + [str(a) for a in arguments] + ["--shm-dir", str(DIR)]
    return subprocess.run(line, check=True, stdout=subprocess.PIPE, timeout=30, **options).stdout


def values(name):
    """The newest frame's elements, as the program prints them."""
    return [float(word) for line in shm("read", name).decode().splitlines() if line[0] != "#" for word in line.split()]


class Case(unittest.TestCase):
    def setUp(self):
        self.made = set()

    def tearDown(self):
        for name in self.made:
            if file_of(name).exists():
                shm("rm", name)

    def create(self, name, shape="4x3", dtype="float32", *arguments):
        shm("create", TAG + name, "--shape", shape, "--dtype", dtype, *arguments)
        self.made.add(TAG + name)
        return TAG + name

    def eventually(self, true, seconds=10):
        end = time.monotonic() + seconds
        while not true():
            self.assertLess(time.monotonic(), end, "it did not happen")
            time.sleep(0.01)


def file_of(name):
    return DIR / (name + ".im.shm")


def patch(path, offset, data):
    with open(str(path), "r+b") as file:
        file.seek(offset)
        file.write(data)


def random_frame(shape, dtype):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(numbers.bytes(size), dtype).reshape(shape)


class Golden(Case):
    def test_every_file_of_the_library_reads_as_its_manifest_says(self):
        seen = 0
        for manifest in sorted(GOLDEN.glob("manifest-*.json")):
            for entry in json.loads(manifest.read_text()):
                with self.subTest(entry["file"]), Segment(str(GOLDEN / entry["file"])) as segment:
                    self.assertEqual(segment.shape, tuple(entry["shape"]))
                    self.assertEqual(segment.dtype, np.dtype(entry["dtype"]))
                    frame = segment.get_data()
                    self.assertEqual(frame.tobytes().hex(), entry["newest_frame_hex"])
                    self.assertEqual((frame.shape, frame.dtype), (segment.shape, segment.dtype))
                    meta = segment.get_meta_data()
                    self.assertEqual(segment.get_counter(), entry["cnt0"])
                    self.assertEqual(meta["name"].decode(), entry["name"])
                    self.assertEqual(meta["atime"]["tsfixed"]["secondlong"], entry["atime_ns"])
                    self.assertEqual(meta["fifo_size"], entry["depth"])
                    self.assertEqual(meta["fifo_last_written"], entry["last_written"])
                    self.assertEqual(meta["NBkw"], len(entry["keywords"]))
                    self.assertEqual(len(meta["lastNbArray"]), 512)
                    self.assertAlmostEqual(segment.get_timestamp().timestamp(), entry["atime_ns"] / 1e9, places=5)
                    seen += 1
        self.assertGreater(seen, 30)

    def test_generations_of_which_there_is_no_golden(self):
        classic = bytearray((GOLDEN / "classic-float32_6x4.im.shm").read_bytes())
        wanted = Segment(str(GOLDEN / "classic-float32_6x4.im.shm")).get_data()
        for name, metadata_bytes, extra in (("registry", 5344, {}), ("wide", 16400, {16392: 1}),
                                            ("gpu", 16448, {16392: 1}), ("later", 9000, {}), ("bare", 200, {})):
            with self.subTest(name):
                metadata = classic[:4296].ljust(metadata_bytes, b"\0")[:metadata_bytes]
                for offset, value in extra.items():
                    struct.pack_into("<I", metadata, offset, value)
                path = DIR / (TAG + name + ".im.shm")
                path.write_bytes(bytes(metadata + classic[4296:]))
                with Segment(str(path)) as segment:
                    np.testing.assert_array_equal(segment.get_data(), wanted)
                    self.assertEqual(segment.get_meta_data()["cnt0"], 1)
                    segment.set_data(wanted + 1)
                    np.testing.assert_array_equal(segment.get_data(), wanted + 1)
                if name == "gpu":
                    patch(path, 16400, struct.pack("<I", 7))
                    with self.assertRaisesRegex(OSError, "GPU"):
                        Segment(str(path))


class WithTheProgram(Case):
    def test_every_type_with_one_to_three_axes_both_ways(self):
        for dtype in DTYPES:
            for shape in ((140,), (6, 8), (2, 3, 5)):
                with self.subTest("%s %s" % (dtype, shape)):
                    name = self.create("types", "x".join(map(str, shape)), dtype)
                    with Segment(str(file_of(name))) as segment:
                        frame = random_frame(shape, dtype)
                        shm("write", name, "--raw", "-", "--count", 1, input=frame.tobytes())
                        got = segment.get_data(check=True, timeout=5)
                        self.assertEqual((got.shape, got.dtype), (shape, np.dtype(dtype)))
                        self.assertEqual(got.tobytes(), frame.tobytes())
                        self.assertEqual(segment.get_data(reform=False).shape, (frame.size,))
                        frame = random_frame(shape, dtype)
                        segment.set_data(frame)
                        self.assertEqual(shm("read", name, "--raw"), frame.tobytes())
                        info = json.loads(shm("info", name, "--json").decode())
                        self.assertEqual((info["counter"], segment.get_counter()), (2, 2))

    def test_every_layout(self):
        for layout in ("classic", "fifo", "wide"):
            with self.subTest(layout):
                name = self.create("layout", "5", "int16", "--layout", layout, "--keywords", 3)
                with Segment(str(file_of(name))) as segment:
                    segment.set_data([1, 2, 3, 4, 5])
                    self.assertEqual(values(name), [1, 2, 3, 4, 5])
                    self.assertEqual(segment.get_meta_data()["NBkw"], 3)

    def test_a_ring_gives_every_frame_in_order_and_the_newest_when_asked(self):
        name = self.create("ring", "4", "uint32", "--depth", 6)
        with Segment(str(file_of(name))) as segment:
            shm("write", name, "--count", 3)
            self.assertEqual([segment.get_data(check=True)[0] for _ in range(3)], [1, 2, 3])
            self.assertIsNone(segment.get_data(check=True, timeout=0.01))
            shm("write", name, "--count", 20)
            self.assertEqual([segment.get_data(check=True)[0] for _ in range(6)], list(range(18, 24)))
            shm("write", name, "--count", 4)
            self.assertEqual(segment.get_data()[0], 27)
            self.assertIsNone(segment.get_data(check=True, timeout=0.01))
            for value in range(100, 108):
                segment.set_data([value] * 4)
            self.assertEqual([segment.get_data(check=True)[0] for _ in range(6)], list(range(102, 108)))
            self.assertEqual(values(name), [107] * 4)

    def test_frames_are_whole_while_they_are_written_at_full_speed(self):
        for depth in (1, 3):
            name = self.create("torn", "200x200", "uint32", "--depth", depth)
            writer = subprocess.Popen([os.environ["DAOSERVER"], "shm", "write", name, "--shm-dir", str(DIR),
                                       "--rate", "20000", "--count", "20000"])
            with Segment(str(file_of(name))) as segment:
                seen = []
                while writer.poll() is None:
                    frame = segment.get_data(check=True, timeout=1)
                    if frame is not None:
                        self.assertEqual(frame.min(), frame.max())
                        # With one slot a frame may come under its predecessor's counter (see _copy).
                        self.assertIn(int(frame[0, 0]) - segment.counter, (0, 1) if depth == 1 else (0,))
                        seen.append(segment.counter)
                self.assertGreater(len(seen), 100)
                self.assertEqual(seen, sorted(set(seen)))


class Waiting(Case):
    def test_time_out_gives_none_and_a_frame_wakes(self):
        name = self.create("wait")
        for options in ({}, {"semNb": 7}, {"spin": True}):
            with self.subTest(str(options)), Segment(str(file_of(name))) as segment:
                begun = time.monotonic()
                self.assertIsNone(segment.get_data(check=True, timeout=0.2, **options))
                self.assertGreaterEqual(time.monotonic() - begun, 0.2)
                timer = threading.Timer(0.1, shm, ("write", name, "--count", 1, "--fill", 3))
                timer.start()
                np.testing.assert_array_equal(segment.get_data(check=True, **options), np.full((4, 3), 3))
                timer.join()

    def test_a_frame_that_came_since_opening_or_the_last_call_is_not_waited_for(self):
        name = self.create("since")
        with Segment(str(file_of(name))) as segment:
            shm("write", name, "--count", 2)
            self.assertEqual(segment.get_data(check=True, timeout=5)[0, 0], 2)
            shm("write", name, "--count", 1)
            self.assertEqual(segment.get_data(check=True, timeout=5)[0, 0], 3)

    def test_two_who_wait_on_one_semaphore_both_get_every_frame(self):
        name = self.create("two", "4x3", "float32", "--depth", 32)
        got = {}

        def follow(number):
            with Segment(str(file_of(name))) as segment:
                got[number] = []
                while not got[number] or got[number][-1] < 20:
                    got[number].append(segment.get_data(check=True)[0, 0])

        threads = [threading.Thread(target=follow, args=(number,), daemon=True) for number in range(2)]
        for thread in threads:
            thread.start()
        self.eventually(lambda: len(got) == 2)
        shm("write", name, "--count", 20, "--rate", 40)
        for thread in threads:
            thread.join(10)
        self.assertEqual(got, {0: list(range(1, 21)), 1: list(range(1, 21))})

    def test_without_semaphores_and_with_one_that_is_too_short(self):
        name = self.create("bare")
        for semaphore in pathlib.Path("/dev/shm").glob("sem.%s_*" % name):
            semaphore.unlink()
        short = pathlib.Path("/dev/shm/sem.%s_sem03" % name)
        short.write_bytes(b"short")
        with Segment(str(file_of(name))) as segment:
            for number in (0, 3):
                timer = threading.Timer(0.1, shm, ("write", name, "--count", 1))
                timer.start()
                self.assertIsNotNone(segment.get_data(check=True, semNb=number, timeout=5))
                timer.join()
            segment.set_data(np.zeros((4, 3)))
        self.assertEqual(list(pathlib.Path("/dev/shm").glob("sem.%s_*" % name)), [short])

    def test_set_data_wakes_and_posts_no_semaphore_beyond_one(self):
        name = self.create("post")
        with Segment(str(file_of(name))) as segment:
            for _ in range(3):
                segment.set_data(np.ones((4, 3)))
            for number in range(10):
                value = pathlib.Path("/dev/shm/sem.%s_sem%02d" % (name, number)).read_bytes()[0]
                self.assertEqual(value, 1)
            self.assertEqual(pathlib.Path("/dev/shm/sem.%s_semlog" % name).read_bytes()[0], 1)

    def test_control_c_ends_a_wait(self):
        name = self.create("interrupt")
        for options in ("", ", spin=True"):
            program = ("import sys; sys.path.insert(0, %r)\nfrom daoServer import Segment\ns = Segment(%r)\n"
                       "print('waits', flush=True)\ns.get_data(check=True%s)" % (
                           str(TOP / "scripts"), str(file_of(name)), options))
            pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            with subprocess.Popen([sys.executable, "-c", program], **pipes) as waiter:
                self.assertEqual(waiter.stdout.readline(), b"waits\n")
                waiter.send_signal(signal.SIGINT)
                self.assertIn(b"KeyboardInterrupt", waiter.communicate(timeout=10)[1])

    def test_iteration_and_threads(self):
        name = self.create("iterate", "4", "uint16", "--depth", 8)
        with Segment(str(file_of(name))) as segment:
            writer = threading.Thread(target=lambda: [segment.set_data([n] * 4) for n in range(5)])
            frames = iter(segment)
            writer.start()
            self.assertEqual([int(next(frames)[0]) for _ in range(5)], [0, 1, 2, 3, 4])
            writer.join()


class Trouble(Case):
    def test_what_is_no_segment_is_refused_with_a_sentence(self):
        def refused(name, content, sentence):
            path = DIR / (TAG + name)
            if content is not None:
                path.write_bytes(content)
            with self.subTest(name), self.assertRaisesRegex(OSError, sentence):
                Segment(str(path))
        good = (GOLDEN / "classic-int16_6x4.im.shm").read_bytes()
        with self.assertRaises(FileNotFoundError):
            Segment(str(DIR / "nothing"))
        refused("empty", b"", "only 0 bytes")
        refused("zeros", bytes(5000), "naxis is 0")
        refused("garbage", b"\xff" * 5000, "naxis is 255")
        refused("short", good[:-1], "bytes do not fit")
        refused("type", good[:104] + b"\x0d" + good[105:], "atype is 13")
        refused("elements", good[:96] + b"\x19" + good[97:], "cannot have 25 elements")
        os.mkdir(str(DIR / (TAG + "folder")))
        refused("folder", None, "no regular file")
        os.mkfifo(str(DIR / (TAG + "pipe")))
        refused("pipe", None, "no regular file")

    def test_a_file_that_is_replaced_is_followed(self):
        name = self.create("replaced")
        with Segment(str(file_of(name))) as segment:
            shm("write", name, "--count", 5)
            self.assertEqual(segment.get_data()[0, 0], 5)
            self.create("replaced", "7", "int16")
            shm("write", name, "--count", 1)
            np.testing.assert_array_equal(segment.get_data(check=True, timeout=5), np.ones(7))
            self.assertEqual((segment.shape, segment.dtype), ((7,), np.dtype("int16")))
            segment.set_data(range(7))
            self.assertEqual(values(name), list(range(7)))

    def test_a_file_that_is_removed_keeps_its_last_frame(self):
        name = self.create("removed")
        before, daoServer._GONE_S = daoServer._GONE_S, 0.3
        self.addCleanup(setattr, daoServer, "_GONE_S", before)
        with Segment(str(file_of(name))) as segment:
            shm("write", name, "--count", 5)
            shm("rm", name)
            self.assertEqual(segment.get_data(check=True)[0, 0], 5)
            self.assertEqual(segment.get_data()[0, 0], 5)
            self.assertIsNone(segment.get_data(check=True, timeout=0.5))
            with self.assertRaisesRegex(FileNotFoundError, "is gone"):
                segment.get_data(check=True)
            self.create("removed", "4x3", "float32")
            shm("write", name, "--count", 1)
            self.assertEqual(segment.get_data(check=True)[0, 0], 1)

    def test_a_file_that_is_truncated_and_made_again_in_place_kills_nobody(self):
        name = self.create("truncated", "64x64", "uint16")
        path = file_of(name)
        shm("write", name, "--count", 1)
        whole = path.read_bytes()
        stop = threading.Event()
        frames = []

        def follow(segment, **options):
            with segment:
                while not stop.is_set():
                    try:
                        frames.append(segment.get_data(check=True, timeout=0.05, **options))
                        segment.get_data()
                        segment.get_counter()
                    except OSError:
                        pass  # not whole for a second

        threads = [threading.Thread(target=follow, args=(Segment(str(path)),), kwargs=options)
                   for options in ({}, {"spin": True})]
        for thread in threads:
            thread.start()
        for turn in range(300):
            # As the library does: the same inode, first empty, then as long as it will be, then filled. The shape
            # changes there and back.
            content = whole if turn % 2 else whole[:84] + struct.pack("<II", 32, 128) + whole[92:]
            with open(str(path), "r+b", buffering=0) as file:
                file.truncate(0)
                file.truncate(len(content))
                os.pwrite(file.fileno(), content[200:], 200)
                os.pwrite(file.fileno(), content[:200], 0)
        time.sleep(0.1)
        stop.set()
        for thread in threads:
            thread.join(10)
            self.assertFalse(thread.is_alive())
        self.assertTrue(any(frame is not None for frame in frames))
        self.assertTrue(all((frame == 1).all() for frame in frames if frame is not None))

    def test_a_writer_that_died_in_the_middle(self):
        name = self.create("died")
        with Segment(str(file_of(name))) as segment:
            patch(file_of(name), 176, b"\1")
            with self.assertRaisesRegex(OSError, "stopped in the middle"):
                segment.get_data()
            self.assertIsNone(segment.get_data(check=True, timeout=0.1))
            segment.set_data(np.ones((4, 3)))
            self.assertEqual(segment.get_data()[0, 0], 1)

    def test_a_source_that_counts_from_the_beginning_again(self):
        name = self.create("again")
        with Segment(str(file_of(name))) as segment:
            shm("write", name, "--count", 5)
            self.assertEqual(segment.get_data()[0, 0], 5)
            patch(file_of(name), 152, struct.pack("<Q", 0))
            shm("write", name, "--count", 1, "--fill", 9)
            self.assertEqual(segment.get_data(check=True, timeout=5)[0, 0], 9)

    def test_frames_are_the_callers_own(self):
        name = self.create("own")
        with Segment(str(file_of(name))) as segment:
            shm("write", name, "--count", 1)
            frame = segment.get_data()
            frame[:] = 77
            shm("write", name, "--count", 1)
            self.assertEqual((frame[0, 0], segment.get_data()[0, 0]), (77, 2))
        self.assertEqual(frame[0, 0], 77)
        segment.close()
        with self.assertRaisesRegex(ValueError, "closed"):
            segment.get_data()

    def test_what_set_data_takes_and_refuses(self):
        floats = Segment(str(file_of(self.create("floats", "4", "float32"))))
        bytes_ = Segment(str(file_of(self.create("bytes", "2x2", "uint8"))))
        floats.set_data(np.ones(4) * 0.01)
        np.testing.assert_array_equal(floats.get_data(), np.full(4, 0.01, np.float32))
        floats.set_data(np.arange(8)[::2].reshape(2, 2))
        np.testing.assert_array_equal(floats.get_data(), [0, 2, 4, 6])
        bytes_.set_data([[0, 255], [True, 3]])
        np.testing.assert_array_equal(bytes_.get_data(), [[0, 255], [1, 3]])
        for segment, data, error in ((floats, np.ones(5), ValueError), (floats, 1.0, ValueError),
                                     (floats, np.ones(4) * 1j, TypeError), (bytes_, np.ones(4), TypeError),
                                     (bytes_, [0, 256, 0, 0], ValueError), (bytes_, [0, -1, 0, 0], ValueError)):
            counter = segment.get_counter()
            with self.assertRaises(error):
                segment.set_data(data)
            self.assertEqual(segment.get_counter(), counter)
        uint64 = Segment(str(file_of(self.create("wide", "1", "uint64"))))
        with self.assertRaises(ValueError):
            uint64.set_data([-1])
        uint64.set_data(np.array([2**64 - 1], np.uint64))
        self.assertEqual(int(uint64.get_data()[0]), 2**64 - 1)

    @unittest.skipIf(os.geteuid() == 0, "root may write everything")
    def test_a_file_that_cannot_be_written(self):
        name = self.create("locked")
        os.chmod(str(file_of(name)), 0o400)
        with Segment(str(file_of(name))) as segment, self.assertRaises(PermissionError):
            segment.set_data(np.zeros((4, 3)))


if __name__ == "__main__":
    unittest.main(verbosity=1)
