"""Shared-memory segments of other machines in one line of Python: a drop-in for the Python daemon's module.

    from daoServer import DaoServer
    server = DaoServer(redis_host="192.168.64.2")
    wfs = server.get_remote_shm("machineA", "wfs")      # a daoShm.shm, or a Segment where daoShm is not installed
    frame = wfs.get_data(check=True)                    # waits for the next frame

The work is done by the program `daoserver`, not by Python. If a daemon of this host name and Redis runs on this
machine, it is used; else a private one is started, which ends with this process, however that ends. Other programs of
this machine find the private one as they would find any daemon, and share it.

Needs Python 3.7 or newer and NumPy 1.16 or newer, on x86-64 Linux with glibc.
"""

import atexit
import collections
import ctypes
import datetime
import itertools
import json
import logging
import mmap
import os
import queue
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
import threading
import time
import weakref
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

__all__ = ["DaoServer", "Segment", "discover_redis"]

log = logging.getLogger("daoServer")

# ---------------------------------------------------------------------------------------------------------------------
# Segments

# Element types by the number that stands in a segment.
_DTYPES = {number: np.dtype(name) for number, name in enumerate(
    "uint8 int8 uint16 int16 uint32 int32 uint64 int64 float32 float64 complex64 complex128".split(), 1)}

# Generations of the format: bytes of a slot's metadata, and where slot 0 holds the ring's depth, if there is a ring.
# In the order in which a file is compared with them, since no file says its own.
_LAYOUTS = ((4296, None), (4304, 4296), (16400, 16392), (16448, 16392), (5344, None))
_GPU_BYTES, _GPU_MAGIC_AT = 16448, 16400
_KEYWORD_BYTES = 120
_DEPTH_MAX = 1 << 20
_SEMAPHORES = 10


# The metadata that all generations have, by the C library's names.
_Head = collections.namedtuple("_Head", (
    "name naxis size0 size1 size2 nelement atype creation_time last_access firstlong secondlong shared status logflag "
    "sem cnt0 cnt1 cnt2 write NBkw lastPos lastNb packetNb packetTotal"))
_HEAD = struct.Struct("<80s B3x 3I Q B7x d d q q B B B x H2x Q Q Q B x H I I I I 4x")
# Offsets into it. What lies between _SHAPE_AT and _SHAPE_END says what a frame is and when the segment was created;
# between _STAMP_AT and _STAMP_END are the time, the counters and the flag, all that a writer changes with a frame.
_SHAPE_AT, _SHAPE_END = 80, 120
_STAMP_AT, _ATIME_AT, _CNT0_AT, _WRITE_AT, _STAMP_END = 136, 136, 152, 176, 196

# A witness (see Segment._copy) compares frames up to so many bytes whole, and larger ones at so many places.
_WITNESS_BYTES, _WITNESS_PLACES, _WITNESS_PLACE_BYTES = 65536, 16, 4096
_ATTEMPTS = 4
# A frame that cannot be had for so long, seconds: its writer died in the middle, or the file is no segment any more.
_BUSY_S = 1.0
# Who waits without a time-out for frames of a file that is gone hears so after this, seconds. Less would be wrong
# for a mirror whose daemon is replaced.
_GONE_S = 10.0
# Shortest and longest sleep on a semaphore, seconds; they grow with the wait. Somebody else who waits on the same one
# may take our wake-up, and then this is how late we are. Without a semaphore, the sleep between two looks.
_SLICE_MIN_S, _SLICE_MAX_S, _POLL_S = 0.001, 0.01, 0.0005

# The C library twice: calls through _libc let other threads run meanwhile, calls through _libc_quick do not, which for
# a copy of microseconds saves waiting for the interpreter's lock after it.
_libc = ctypes.CDLL(None, use_errno=True)
_libc_quick = ctypes.PyDLL(None)
_pread = _libc_quick.pread
_pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)
_pread.restype = ctypes.c_ssize_t
_memcmp = _libc_quick.memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64)]


class _Semaphore:
    """A POSIX named semaphore beside a segment. Opened only, never created."""
    _BYTES = 32  # glibc's sem_t

    def __init__(self, name: str) -> None:
        self._handle = None
        # glibc maps the file without looking at its size, and a shorter one would kill the process at its first use.
        status = os.stat("/dev/shm/sem." + name)
        if not stat.S_ISREG(status.st_mode) or status.st_size < self._BYTES:
            raise OSError("/dev/shm/sem.%s is no semaphore" % name)
        _libc.sem_open.restype = ctypes.c_void_p
        handle = _libc.sem_open(("/" + name).encode(), 0)
        if not handle:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)
        self._handle = ctypes.c_void_p(handle)

    def wait(self, seconds: float) -> None:
        """Until it was posted, for at most so long, or until a signal came."""
        # The clock that is never set, where glibc (2.30 and newer) can wait by it.
        clockwait = getattr(_libc, "sem_clockwait", None)
        clock = time.CLOCK_MONOTONIC if clockwait else time.CLOCK_REALTIME
        until = time.clock_gettime(clock) + seconds
        timespec = _Timespec(int(until), int(until % 1 * 1e9))
        if clockwait:
            clockwait(self._handle, ctypes.c_int(clock), ctypes.byref(timespec))
        else:
            _libc.sem_timedwait(self._handle, ctypes.byref(timespec))

    def post(self) -> None:
        """As the C library does after a frame: a semaphore says that there is news, not how much."""
        value = ctypes.c_int()
        if _libc_quick.sem_getvalue(self._handle, ctypes.byref(value)) == 0 and value.value < 1:
            _libc_quick.sem_post(self._handle)

    def __del__(self) -> None:
        # Here, and not when the segment closes: another thread may be waiting.
        if self._handle is not None:
            _libc.sem_close(self._handle)


class _Changed(Exception):
    """The file is not the segment any more that was opened: open it again."""


class Segment:
    """A DAO segment of this machine, such as a mirror; for machines without daoShm, whose `shm` it follows.

    Reading is by system calls into the same memory that the writer has mapped, not by a mapping of our own: a file
    that is truncated meanwhile gives a short read instead of ending the process. `set_data` does map the file; if it is
    truncated in that very moment, SIGBUS ends the process, as it does with daoShm.

    If the file is replaced or created again, the new one is read from then on, and `shape` and `dtype` follow. If it is
    removed, the last frame stays readable.

    Objects may be shared between threads. Each object knows which frame it returned last, so threads that each want
    every frame need an object each.
    """

    path: str                   # the file
    shape: Tuple[int, ...]      # axes of a frame
    dtype: np.dtype             # type of its elements
    counter: int                # cnt0 of the frame returned last; before the first, of the newest at opening

    def __init__(self, path: str) -> None:
        """Opens the segment in this file. FileNotFoundError, PermissionError, or OSError if it is no segment."""
        self.path = os.fspath(path)
        self._lock = threading.RLock()
        self._fd = -1
        # Device, inode and size of what is open; zeros: open it again with the next look.
        self._identity = (0, 0, 0)
        self._gone_since = None  # type: Optional[float]
        self._memory = None  # type: Optional[mmap.mmap]
        self._semaphores = {}  # type: Dict[str, _Semaphore]
        self.counter = 0
        self._open()
        self.counter = self._newest()[1]

    # What the file is

    def _open(self) -> None:
        deadline = time.monotonic() + _BUSY_S
        while True:
            # Not to wait for the other end if it is a pipe.
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                self._examine(fd)
                break
            except OSError:
                os.close(fd)
                # It may be being created just now.
                if self._fd >= 0 or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._memory = None
        self._semaphores = {}
        self.counter = 0

    def _examine(self, fd: int) -> None:
        """Finds generation, shape and type. OSError that says what is wrong."""
        def bad(why: str) -> OSError:
            return OSError("%s is no DAO segment: %s" % (self.path, why))

        def pair(offset: int) -> Tuple[int, int]:
            data = os.pread(fd, 8, offset)
            return struct.unpack("<II", data) if len(data) == 8 else (0, 0)

        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise bad("it is no regular file")
        data = os.pread(fd, _HEAD.size, 0)
        if len(data) < _HEAD.size:
            raise bad("it has only %d bytes" % status.st_size)
        head = _Head._make(_HEAD.unpack(data))
        if not 1 <= head.naxis <= 3:
            raise bad("naxis is %d" % head.naxis)
        shape = (head.size0, head.size1, head.size2)[:head.naxis]
        dtype = _DTYPES.get(head.atype)
        if dtype is None:
            raise bad("atype is %d" % head.atype)
        elements = shape[0] * (shape[1] if head.naxis > 1 else 1) * (shape[2] if head.naxis > 2 else 1)
        if elements == 0 or elements != head.nelement:
            raise bad("a frame of %s cannot have %d elements" % (shape, head.nelement))
        frame_bytes = elements * dtype.itemsize
        rest = status.st_size - head.NBkw * _KEYWORD_BYTES
        for metadata_bytes, depth_at in _LAYOUTS:
            depth, last = (1, 0) if depth_at is None else pair(depth_at)
            if 1 <= depth <= _DEPTH_MAX and last < depth and rest == depth * (metadata_bytes + frame_bytes):
                break
        else:
            metadata_bytes, depth_at, depth = rest - frame_bytes, None, 1
            if metadata_bytes < _HEAD.size or metadata_bytes % 8:
                raise bad("%d bytes do not fit a frame of %s, %s" % (status.st_size, shape, dtype))
        if metadata_bytes == _GPU_BYTES and pair(_GPU_MAGIC_AT)[0]:
            raise OSError("%s has its pixels on a GPU, which cannot be read" % self.path)
        self.shape, self.dtype = shape, dtype
        self._identity = (status.st_dev, status.st_ino, status.st_size)
        self._shape_bytes = data[_SHAPE_AT:_SHAPE_END]
        self._frame_bytes, self._metadata_bytes = frame_bytes, metadata_bytes
        self._depth, self._depth_at = depth, depth_at
        self._witness = [(0, frame_bytes)]
        if frame_bytes > _WITNESS_BYTES:
            last_place = frame_bytes - _WITNESS_PLACE_BYTES
            places = [place * last_place // (_WITNESS_PLACES - 1) for place in range(_WITNESS_PLACES)]
            self._witness = [(place, _WITNESS_PLACE_BYTES) for place in places]

    def _follow(self) -> None:
        """Opens the file again if the path names another one now, or one of another size."""
        if self._fd < 0:
            raise ValueError("the segment %s was closed" % self.path)
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            if self._gone_since is None:
                self._gone_since = time.monotonic()
            return
        self._gone_since = None
        if (status.st_dev, status.st_ino, status.st_size) != self._identity:
            try:
                self._open()
            except OSError as error:
                # Half done, perhaps: what was open before is still good, and it is tried again with the next look.
                log.debug("%s", error)

    def _read(self, offset: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        if _pread(self._fd, buffer, size, offset) != size:
            raise _Changed
        return buffer.raw

    def _as_opened(self) -> bool:
        """Has the file the size, the shape and the creation time that it had when it was opened?"""
        return os.fstat(self._fd).st_size == self._identity[2] and \
            self._read(_SHAPE_AT, _SHAPE_END - _SHAPE_AT) == self._shape_bytes

    def _cnt0(self, slot: int) -> int:
        return struct.unpack("<Q", self._read(slot * self._metadata_bytes + _CNT0_AT, 8))[0]

    def _last_slot(self) -> int:
        """The slot that was written last, as the file says."""
        if self._depth_at is None:
            return 0
        depth, last = struct.unpack("<II", self._read(self._depth_at, 8))
        if depth != self._depth or last >= depth:
            raise _Changed
        return last

    def _newest(self) -> Tuple[int, int]:
        """Slot and counter of the newest finished frame; the counter is 0 while there is none."""
        slot = self._last_slot()
        counter = self._cnt0(slot)
        if self._depth > 1:
            # The writer names the slot before it counts: in between, the frame before is the newest.
            before = (slot - 1) % self._depth
            counter_before = self._cnt0(before)
            if counter < counter_before:
                return before, counter_before
        return slot, counter

    # Reading

    def _copy(self, slot: int, counter: int) -> Optional[np.ndarray]:
        """The frame with this counter out of its slot; None if it is not whole there.

        The format has no lock: the writer sets `write`, copies, clears `write`, and then stores time and counter. So a
        copy is whole if `write` was 0 and the stamp the same before and after it, and if a second look at the pixels
        (the witness) agrees: that one is for a writer that cleared `write` during our copy and was interrupted before
        it counted. Python has no fences; x86-64 keeps the order of loads, and of stores, that these checks need.
        """
        stamp_at = slot * self._metadata_bytes + _STAMP_AT
        stamp_bytes = _STAMP_END - _STAMP_AT
        stamp = self._read(stamp_at, stamp_bytes)
        if stamp[_WRITE_AT - _STAMP_AT] or struct.unpack_from("<Q", stamp, _CNT0_AT - _STAMP_AT)[0] != counter:
            return None
        frame = np.empty(self.shape, self.dtype)
        address = frame.ctypes.data
        data_at = self._depth * self._metadata_bytes + slot * self._frame_bytes
        if _pread(self._fd, address, self._frame_bytes, data_at) != self._frame_bytes:
            raise _Changed
        if self._read(stamp_at, stamp_bytes) != stamp:
            return None
        for place, size in self._witness:
            if _memcmp(address + place, self._read(data_at + place, size), size) != 0:
                return None
        if not self._as_opened():
            raise _Changed
        if self._depth > 1 and self._last_slot() == slot and self._newest()[0] != slot:
            return None  # the pixels of the next frame under the counter of the one a turn ago
        return frame if self._read(stamp_at, stamp_bytes) == stamp else None

    def _take(self, newest_only: bool) -> Optional[np.ndarray]:
        """One frame. None if there is none that was not returned yet, or if its writer is at it again and again."""
        with self._lock:
            for attempt in range(_ATTEMPTS):
                try:
                    self._follow()
                    slot, counter = self._newest()
                    if counter < self.counter:
                        self.counter = 0  # the source counts from the beginning again
                    if not newest_only:
                        if counter == self.counter:
                            return None
                        slot, counter = self._oldest_new(slot, counter, attempt)
                    frame = self._copy(slot, counter)
                    if frame is not None:
                        self.counter = counter
                        return frame
                except _Changed:
                    self._identity = (0, 0, 0)
        return None

    def _oldest_new(self, slot: int, counter: int, attempt: int) -> Tuple[int, int]:
        """Of a ring, slot and counter of the oldest frame that was not returned yet and is still there."""
        # The writer goes to the oldest slot next: with each attempt that failed, one more is given up.
        oldest = max(self.counter + 1, counter + 1 - max(self._depth - attempt, 1))
        oldest_slot = (slot - (counter - oldest)) % self._depth
        # A writer that does not count by ones: only the newest is certain.
        return (oldest_slot, oldest) if self._cnt0(oldest_slot) == oldest else (slot, counter)

    def get_data(self, check: bool = False, reform: bool = True, semNb: int = 0, timeout: float = 0,
                 spin: bool = False) -> Optional[np.ndarray]:
        """A copy of a whole frame, the caller's own.

        check    False: the newest frame, at once. True: waits for a frame newer than the one returned last, at the
                 first call newer than at opening. Of a ring, one after the other, none missed while the ring has it.
        reform   False: as one axis.
        semNb    the semaphore to wait on, 0 to 9. Programs that wait on the same one take each other's wake-ups; then
                 a frame comes late, by less than the wait so far and 10 ms. Without semaphores, it looks every half
                 millisecond.
        timeout  seconds; then None. 0: for ever.
        spin     True: looks again and again without sleeping. Costs a core.

        OSError if no whole frame can be had for a second (a writer that died in the middle), or if the file has been
        gone for ten seconds and there is no time-out. Ctrl-C ends the wait.
        """
        start = time.monotonic()
        end = start + timeout if timeout else float("inf")
        pause_s = _SLICE_MIN_S
        while True:
            frame = self._take(newest_only=not check)
            if frame is not None:
                return frame if reform else frame.reshape(-1)
            now = time.monotonic()
            if check:
                if now >= end:
                    return None
                if self._gone_since is not None and not timeout and now - self._gone_since > _GONE_S:
                    raise FileNotFoundError("The segment %s is gone." % self.path)
                if not spin:
                    self._sleep(semNb, min(pause_s, end - now))
                    pause_s = min(2 * pause_s, _SLICE_MAX_S)
            elif now - start > _BUSY_S:
                raise OSError("No whole frame in %s: its writer stopped in the middle of one." % self.path)
            else:
                time.sleep(_POLL_S / 10)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Every next frame, without end: get_data(check=True)."""
        while True:
            frame = self.get_data(check=True)
            if frame is not None:
                yield frame

    def _sleep(self, number: int, seconds: float) -> None:
        semaphore = self._semaphore("sem%02d" % number)
        if semaphore is None:
            time.sleep(min(seconds, _POLL_S))
        else:
            semaphore.wait(seconds)

    def _semaphore(self, which: str) -> Optional[_Semaphore]:
        with self._lock:
            if which not in self._semaphores:
                # The C library's name for it: up to the first dot, whatever the directory.
                name = "%s_%s" % (os.path.basename(self.path).split(".")[0], which)
                try:
                    self._semaphores[which] = _Semaphore(name)
                except (OSError, ValueError):
                    return None
            return self._semaphores[which]

    # Writing

    def set_data(self, data: Any) -> None:
        """Writes one frame, in the C library's order, and wakes who waits.

        The number of elements must be the segment's (ValueError); the shape need not. Elements are converted to the
        segment's type: integers if every value fits (else ValueError), floats to a narrower float, real to complex,
        integers to floats. Floats to integers and complex to real are refused (TypeError): round them yourself.
        PermissionError if the file cannot be written.
        """
        with self._lock:
            for _ in range(_ATTEMPTS):
                try:
                    self._follow()
                    self._put(self._converted(data))
                    break
                except _Changed:
                    self._identity = (0, 0, 0)
            else:
                raise OSError("%s is being created again: nothing was written." % self.path)
            for which in ["sem%02d" % number for number in range(_SEMAPHORES)] + ["semlog"]:
                semaphore = self._semaphore(which)
                if semaphore is not None:
                    semaphore.post()

    def _converted(self, data: Any) -> np.ndarray:
        given = np.asarray(data)
        if given.size * self.dtype.itemsize != self._frame_bytes:
            raise ValueError("%s has frames of %s, not of %s" % (self.path, self.shape, given.shape))
        integers = given.dtype.kind in "iub" and self.dtype.kind in "iu"
        if not integers and not np.can_cast(given.dtype, self.dtype, "same_kind"):
            raise TypeError("%s holds %s, to which %s is not converted" % (self.path, self.dtype, given.dtype))
        values = np.ascontiguousarray(given.astype(self.dtype))
        if integers and not (np.array_equal(values, given) and np.array_equal(values < 0, given < 0)):
            raise ValueError("%s holds %s, and some values do not fit" % (self.path, self.dtype))
        return values.reshape(-1)

    def _put(self, values: np.ndarray) -> None:
        if self._memory is None:
            fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
            try:
                status = os.fstat(fd)
                if (status.st_dev, status.st_ino, status.st_size) != self._identity:
                    raise _Changed
                self._memory = mmap.mmap(fd, status.st_size)
            finally:
                os.close(fd)
        if not self._as_opened():
            raise _Changed
        memory = self._memory
        # Whole words, so that no reader sees half a counter.
        words32 = memoryview(memory)[:len(memory) // 4 * 4].cast("I")
        words64 = memoryview(memory)[:len(memory) // 8 * 8].cast("Q")
        last = self._last_slot()
        slot = (last + 1) % self._depth
        block = slot * self._metadata_bytes
        data_at = self._depth * self._metadata_bytes + slot * self._frame_bytes
        pixels = np.frombuffer(memory, self.dtype, values.size, data_at)
        memory[block + _WRITE_AT] = 1
        pixels[:] = values
        memory[block + _WRITE_AT] = 0
        if self._depth_at is not None:
            words32[self._depth_at // 4 + 1] = slot
        words64[(block + _ATIME_AT) // 8] = time.time_ns()
        words64[(block + _CNT0_AT) // 8] = (words64[(last * self._metadata_bytes + _CNT0_AT) // 8] + 1) % (1 << 64)

    # What the newest frame says about itself

    def _newest_head(self) -> Tuple[_Head, int]:
        with self._lock:
            for _ in range(_ATTEMPTS):
                try:
                    self._follow()
                    slot = self._newest()[0]
                    return _Head._make(_HEAD.unpack(self._read(slot * self._metadata_bytes, _HEAD.size))), slot
                except _Changed:
                    self._identity = (0, 0, 0)
        raise OSError("%s is being created again." % self.path)

    def get_meta_data(self) -> Dict[str, Any]:
        """The newest frame's metadata, by the C library's names. Times in seconds or as those names say."""
        with self._lock:
            head, slot = self._newest_head()
            fields = head._asdict()
            fields["name"] = head.name.split(b"\0")[0]
            fields["size"] = [fields.pop("size%d" % axis) for axis in range(3)]
            first, second = fields.pop("firstlong"), fields.pop("secondlong")
            fields["atime"] = {"ts": {"tv_sec": first, "tv_nsec": second},
                               "tsfixed": {"firstlong": first, "secondlong": second}}
            words = ((self._depth_at or min(self._metadata_bytes, _LAYOUTS[0][0])) - _HEAD.size) // 8
            block = slot * self._metadata_bytes
            fields["lastNbArray"] = list(struct.unpack("<%dQ" % words, self._read(block + _HEAD.size, 8 * words)))
            fields["fifo_size"], fields["fifo_last_written"] = self._depth, self._last_slot()
            return dict(fields)

    def get_counter(self) -> int:
        """The newest frame's counter, cnt0."""
        return self._newest_head()[0].cnt0

    def get_frame_id(self) -> int:
        """The newest frame's id, cnt2, which its writer gave."""
        return self._newest_head()[0].cnt2

    def get_timestamp(self) -> datetime.datetime:
        """When the newest frame was written, in this machine's local time. (daoShm's is off by the change of the time
        zone's offset since 1970, if there was one.)"""
        nanoseconds = self._newest_head()[0].secondlong
        when = datetime.datetime.fromtimestamp(nanoseconds // 10**9)
        return when.replace(microsecond=nanoseconds // 1000 % 10**6)

    def close(self) -> None:
        """Closes the file. Frames that were returned stay. May be called again."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd, self._memory, self._semaphores = -1, None, {}

    def __enter__(self) -> "Segment":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)

    def __repr__(self) -> str:
        return "Segment(%r, shape=%r, dtype=%s)" % (self.path, self.shape, self.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# The daemon

_BINARY = "daoserver"
# Longest waits, seconds: to find or start a daemon; for an answer that needs no other machine; for an answer beyond the
# time that the caller allowed; for a private daemon to end.
_START_S, _ANSWER_S, _MARGIN_S, _END_S = 20.0, 30.0, 15.0, 5.0

_EXCEPTIONS = {error.__name__: error for error in (
    ConnectionError, KeyError, TimeoutError, NotImplementedError, PermissionError, ValueError, OSError,
    FileNotFoundError)}  # type: Dict[str, Callable[[str], Exception]]


class _LinkLost(Exception):
    """The daemon, or the connection to it, has ended. Never leaves this module."""


def _find_binary() -> str:
    """$DAOSERVER, beside this file, on the PATH, in the build folders of the repository."""
    named = os.environ.get("DAOSERVER")
    here = os.path.dirname(os.path.realpath(__file__))
    built = [os.path.join(os.path.dirname(here), *folder, _BINARY)
             for folder in (("target", "release"), ("target", "debug"), ("target-static",))]
    for path in [named] if named else [os.path.join(here, _BINARY), shutil.which(_BINARY)] + built:
        if path and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise FileNotFoundError("There is no program daoserver%s: build it with scripts/build-static, then put it beside "
                            "%s or on the PATH, or name it in the environment variable DAOSERVER."
                            % (" at $DAOSERVER, %s" % named if named else "", os.path.basename(__file__)))


class _Link:
    """One connection to a daemon: requests go out from any thread, a thread of its own brings the answers back by id.

    Over the Unix socket of a daemon, or over the pipes of a private one. These are its life line: it ends when they
    close, so also when this process is killed.
    """

    def __init__(self, on_lost: Callable[["_Link"], None], connection: Optional[socket.socket] = None,
                 process: Optional["subprocess.Popen[bytes]"] = None, folder: Optional[str] = None) -> None:
        self.process = process
        self._connection, self._folder, self._on_lost = connection, folder, on_lost
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        # By the ids of requests, where their answers go: the value, and the error or None.
        self._waiting = {}  # type: Dict[int, queue.SimpleQueue[Tuple[Any, Optional[Exception]]]]
        self._refusal = None  # type: Optional[Exception]
        self.lost = False
        self.closing = False
        _links.add(self)
        self._thread = threading.Thread(target=self._run, name="daoServer-link", daemon=True)
        self._thread.start()

    def request(self, op: str, timeout: float, **fields: Any) -> Any:
        """The answer. Raises the exception that the daemon names, TimeoutError, or _LinkLost."""
        answer, number = queue.SimpleQueue(), next(self._ids)  # type: Any, int
        line = json.dumps(dict(fields, id=number, op=op)).encode() + b"\n"
        with self._lock:
            if self.lost or self.closing:
                raise self._refusal or _LinkLost()
            self._waiting[number] = answer
            try:
                if self._connection is not None:
                    self._connection.sendall(line)
                else:
                    self.process.stdin.write(line)
            except OSError:
                pass  # the reading thread comes to the end, too
        try:
            value, error = answer.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError("daoserver did not answer '%s' within %g s." % (op, timeout)) from None
        finally:
            self._waiting.pop(number, None)
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        """Ends the connection, and with it the private daemon, which is waited for and at last killed."""
        with self._lock:
            self.closing = True
            self._hang_up()
        if self.process is not None:
            try:
                self.process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        if self._thread is not threading.current_thread():
            self._thread.join(_END_S)

    def abandon(self) -> None:
        """In a forked child: lets go of what belongs to the parent. No lock: its holder may not exist here."""
        self.lost = self.closing = True
        for stream in (self._connection,) if self.process is None else (self.process.stdin, self.process.stdout):
            stream.close()

    def _hang_up(self) -> None:
        try:
            if self._connection is not None:
                self._connection.shutdown(socket.SHUT_RDWR)
            else:
                self.process.stdin.close()
        except OSError:
            pass  # the other side was quicker

    def _run(self) -> None:
        rest = b""
        while True:
            try:
                data = self._connection.recv(65536) if self.process is None else self.process.stdout.read(65536)
            except OSError:
                data = b""
            if not data:
                break
            lines = (rest + data).split(b"\n")
            rest = lines.pop()
            for line in lines:
                self._on_line(line)
        with self._lock:
            self.lost = True
            self._hang_up()
            unanswered = list(self._waiting.values())
        if self.process is not None:
            try:
                self.process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(_END_S)
            self.process.stdout.close()
        else:
            self._connection.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        for answer in unanswered:
            answer.put((None, self._refusal or _LinkLost()))
        if not self.closing:
            self._on_lost(self)

    def _on_line(self, line: bytes) -> None:
        try:
            message = json.loads(line.decode())
            number, error = message.get("id"), message.get("error")
            if error is not None:
                error = _EXCEPTIONS.get(error["kind"], RuntimeError)(error["message"])
        except (ValueError, KeyError, AttributeError, TypeError):
            log.warning("daoserver wrote a line that is no answer: %r", line[:200])
            return
        if number is None:
            self._refusal = error  # a private daemon that cannot start says why, and ends
        answer = self._waiting.get(number)
        if answer is not None:
            answer.put((message.get("ok"), error))


def _addresses(host: str) -> List[str]:
    try:
        return [info[4][0] for info in socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)]
    except OSError:
        return [host]


def _is_ours(address: str) -> bool:
    """Is it an address of this machine? Only then can one bind to it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
            return True
        except OSError:
            return False


def _same_host(one: str, other: str) -> bool:
    """Are these two names or addresses of the same machine, as far as can be known here?"""
    ones, others = _addresses(one), _addresses(other)
    return bool(set(ones) & set(others)) or any(map(_is_ours, ones)) and any(map(_is_ours, others))


class DaoServer:
    """This machine's place in the cluster: lists the others, and gets their segments.

    Methods may be called from any thread, at the same time, and before `start`. If the daemon goes away meanwhile (it
    may be another program's), another is found or started, and it is asked again for every segment. After a fork, the
    child's copy holds nothing of the parent's, and connects by itself when it is used.

    What the methods raise: ConnectionError if Redis or the daemon cannot be reached, ValueError for a bad argument,
    TimeoutError if there is no answer, and what they name themselves.
    """

    def __init__(self, redis_host: str = "localhost", redis_port: int = 6379, role: Optional[str] = None,
                 heartbeat_interval: float = 30.0, base_pub_port: int = 5560, *, shm_dir: str = "/tmp",
                 hostname: Optional[str] = None, control: Optional[str] = None, advertise_ip: Optional[str] = None,
                 bind: Optional[str] = None, redis_username: Optional[str] = None, redis_password: Optional[str] = None,
                 read_only: bool = False, allow: Sequence[str] = (), log_level: str = "warn") -> None:
        """Finds the daemon of this machine or starts a private one. The arguments are the daemon's flags of the same
        names; of a daemon that runs already, its own count. Seconds between heartbeats, first port for publishers.

        ConnectionError if Redis is unreachable, FileNotFoundError if the program daoserver is not found, OSError if it
        cannot start.
        """
        if role not in (None, "master", "minion"):
            raise ValueError("role is 'master', 'minion' or None, not %r" % (role,))
        self.hostname = hostname or socket.gethostname()
        self._redis = (redis_host, int(redis_port))
        shm_dir = os.path.abspath(shm_dir)
        self._control = os.path.abspath(control or os.path.join(shm_dir, ".daoserver-%s.sock" % self.hostname))
        self._flags = ["--redis-host", redis_host, "--redis-port", str(int(redis_port)), "--hostname", self.hostname,
                       "--heartbeat-interval", str(heartbeat_interval), "--base-pub-port", str(base_pub_port),
                       "--shm-dir", shm_dir, "--log-level", log_level]
        for flag, value in (("--role", role), ("--advertise-ip", advertise_ip), ("--bind", bind),
                            ("--redis-username", redis_username)):
            self._flags += [flag, value] if value else []
        self._flags += ["--read-only"] if read_only else []
        for cidr in allow:
            self._flags += ["--allow", cidr]
        self._password = redis_password
        self._link = None  # type: Optional[_Link]
        self._forget()
        _servers.add(self)
        # A daemon that runs beside us may have lost Redis: then this raises.
        self.list_machines()

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._started = False
        # Segments that were asked for and not released: are they bidirectional?
        self._leases = {}  # type: Dict[Tuple[str, str], bool]

    # The way to the daemon

    def _connected(self) -> _Link:
        with self._lock:
            if self._link is None or self._link.lost:
                self._link = self._connect()
            return self._link

    def _connect(self) -> _Link:
        refused = None  # type: Optional[float]
        while True:
            link, control = self._join()
            if link is not None:
                return link
            try:
                return self._spawn(control)
            except OSError as error:
                # Another program was quicker, and its daemon answers in a moment; or a daemon is just ending.
                patience_s = (_START_S if "is held by" in str(error) else
                              _END_S if "Another daemon of this machine" in str(error) else 0)
                # From the first refusal on: on a busy machine that alone may take its time.
                refused = refused or time.monotonic()
                if time.monotonic() - refused > patience_s or not patience_s:
                    raise
            time.sleep(0.1)

    def _join(self) -> Tuple[Optional[_Link], Optional[str]]:
        """The daemon that runs on this machine, if it is ours to use; else the control socket for one of our own."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_END_S)
            connection.connect(self._control)
            connection.settimeout(None)
        except PermissionError:
            connection.close()
            raise PermissionError("The daemon at %s belongs to another user." % self._control) from None
        except OSError:
            connection.close()
            return None, self._control  # nobody there; if it is worse than that, starting one says so
        link = _Link(self._restore, connection=connection)
        try:
            about = link.request("ping", _END_S)
        except _LinkLost:
            return None, self._control
        except Exception:
            link.close()
            raise
        if about["hostname"] == self.hostname and about["redis_port"] == self._redis[1] and \
                _same_host(about["redis_host"], self._redis[0]):
            return link, None
        link.close()
        return None, None

    def _spawn(self, control: Optional[str]) -> _Link:
        """Starts a private daemon: with a control socket where others find it, or, if a daemon of another cluster has
        that one, in a folder of its own."""
        folder = None if control else tempfile.mkdtemp(prefix="daoserver-")
        command = [_find_binary(), "--stdio", "--control", control or os.path.join(str(folder), "control.sock")]
        environment = dict(os.environ)
        if self._password is not None:
            environment["REDISCLI_AUTH"] = self._password
        try:
            # In a session of its own: Ctrl-C at the terminal is for us. Unbuffered: a fork finds no lock held.
            process = subprocess.Popen(command + self._flags, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
                                       env=environment, start_new_session=True)
        except OSError:
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        link = _Link(self._restore, process=process, folder=folder)
        try:
            link.request("ping", _START_S)
        except _LinkLost:
            raise OSError("daoserver ended at its start, with exit code %s." % process.returncode) from None
        except BaseException:
            link.close()
            raise
        return link

    def _call(self, op: str, timeout: float = _ANSWER_S, **fields: Any) -> Any:
        """Asks the daemon, and again if it goes away before it answers: every request may be repeated."""
        for _ in range(3):
            link = self._connected()
            try:
                return link.request(op, timeout, **fields)
            except _LinkLost:
                if link.closing:
                    raise ConnectionError("The server was stopped before it answered '%s'." % op) from None
        raise ConnectionError("daoserver ended three times before it answered '%s'." % op)

    def _restore(self, lost: _Link) -> None:
        """On the thread of a link that was lost: until all is as it was, or nobody wants it any more."""
        with self._lock:
            if self._link is not lost:
                return
        pause_s = 0.1
        while (self._started or self._leases) and not self._restored():
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 5.0)

    def _restored(self) -> bool:
        complete = True
        try:
            with self._lock:
                if not (self._started or self._leases):
                    return True  # stopped meanwhile
                link = self._connected()
            if self._started:
                link.request("start", _ANSWER_S)
            for (hostname, name), bidirectional in list(self._leases.items()):
                try:
                    self._lease(link, hostname, name, bidirectional, "zmq", _ANSWER_S)
                    if (hostname, name) not in self._leases:  # released meanwhile
                        link.request("release_remote_shm", _ANSWER_S, hostname=hostname, shm=name)
                except _LinkLost:
                    raise
                except Exception as error:
                    log.warning("The segment '%s' of '%s' is not back yet: %s", name, hostname, error)
                    complete = False
        except _LinkLost:
            return True  # the thread of that link goes on
        except Exception as error:
            log.warning("There is no daemon yet: %s", error)
            return False
        return complete

    @staticmethod
    def _lease(link: _Link, hostname: str, name: str, bidirectional: bool, transport: str, timeout: float) -> Any:
        return link.request("get_remote_shm", timeout + _MARGIN_S, hostname=hostname, shm=name, lease=True,
                            bidirectional=bool(bidirectional), transport=transport, timeout_s=timeout)

    # What the Python daemon's class has

    def start(self) -> None:
        """Registers this machine and publishes its segments to those who ask. Blocks until `stop`, or Ctrl-C, which
        stops; so call it in a thread."""
        self._ended.clear()
        self._started = True
        try:
            self._call("start")
            while not self._ended.wait(1.0):
                pass
        except KeyboardInterrupt:
            self.stop()
        except BaseException:
            if self._started:
                self._started = False
                raise
            # else it was stopped while it started

    def stop(self) -> None:
        """Ends what this object holds: its streams, and its private daemon with this machine's registration. Of a
        daemon that others started, only our streams end. The object may be used, or started, again."""
        with self._lock:
            link, self._link = self._link, None
            self._started = False
            self._leases.clear()
            self._ended.set()
        if link is None or link.lost:
            return
        if link.process is not None:
            try:
                link.request("stop", _END_S)
            except Exception as error:
                log.debug("stop: %s", error)
        link.close()

    def list_machines(self) -> List[Dict[str, Any]]:
        """All registered machines: dictionaries with hostname, ip, role, last_connect (ISO 8601, UTC) and
        shm_segments, a list of names."""
        return self._call("list_machines")

    def get_remote_shm(self, hostname: str, shm_name: str, bidirectional: bool = False, transport: str = "zmq",
                       timeout: float = 30.0) -> Any:
        """A segment of another machine, mirrored here: a daoShm.shm of the mirror, or a Segment if there is no daoShm.

        bidirectional: what is written into it goes to the owner, too. timeout: seconds, for the owner to publish it. It
        is mirrored until release_remote_shm, stop, or the end of this process. Asked for again, it is the same mirror.

        KeyError: no such machine or segment. TimeoutError: its owner does not publish it. NotImplementedError: a
        transport other than "zmq". PermissionError: bidirectional, but its owner is read-only.
        """
        key, held = (hostname, shm_name), self._leases.get((hostname, shm_name))
        # Before the answer, so that it is not forgotten if the daemon goes away just after it.
        self._leases[key] = bool(bidirectional or held)
        try:
            answer = self._call("get_remote_shm", timeout + _MARGIN_S, hostname=hostname, shm=shm_name, lease=True,
                                bidirectional=bool(bidirectional), transport=transport, timeout_s=timeout)
        except BaseException:
            if held is None:
                self._leases.pop(key, None)
            else:
                self._leases[key] = held
            raise
        return _reader()(answer["path"])

    def release_remote_shm(self, hostname: str, shm_name: str) -> None:
        """Ends a mirror, unless other programs hold it as well. KeyError if there is none."""
        self._leases.pop((hostname, shm_name), None)
        self._call("release_remote_shm", hostname=hostname, shm=shm_name)

    def register_machine(self) -> Dict[str, Any]:
        """Writes this machine into Redis, as `start` does. Gives its hostname, ip and role."""
        return self._call("register_machine")

    def deregister_machine(self, hostname: Optional[str] = None) -> Dict[str, Any]:
        """Removes a machine from Redis: this one, or on the master any. PermissionError on a minion."""
        return self._call("deregister_machine", **({"hostname": hostname} if hostname else {}))

    def cleanup_stale_machines(self, ttl_seconds: float = 120) -> List[str]:
        """On the master: removes machines that have been silent for so long. Gives their names. PermissionError on a
        minion."""
        return self._call("cleanup_stale_machines", ttl_seconds=ttl_seconds)["removed"]

    def status(self) -> Dict[str, Any]:
        """What the daemon publishes and mirrors, with rates and losses: `daoserver status --json`."""
        return self._call("status")

    @staticmethod
    def discover(port: int = 6379, timeout: float = 0.3, max_workers: int = 64) -> List[Dict[str, Any]]:
        """See discover_redis."""
        return discover_redis(port, timeout, max_workers)

    def __enter__(self) -> "DaoServer":
        """Registers this machine, as `start` does, without blocking; the end of the block stops."""
        self._started = True
        self._call("start")
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()


def discover_redis(port: int = 6379, timeout: float = 0.3, max_workers: int = 64) -> List[Dict[str, Any]]:
    """Looks for Redis servers at every address of the local /24 subnets: dictionaries with host, port, dao (is it one
    of a cluster?) and machines (their names). timeout: seconds for one address; max_workers: addresses tried at the
    same time, at most 256. Needs no daemon."""
    command = [_find_binary(), "discover", "--json", "--port", str(int(port)), "--timeout", str(float(timeout)),
               "--workers", str(min(int(max_workers), 256))]
    # Each address may take some steps of `timeout`, on a handful of subnets.
    limit_s = 60 + 20 * 256 * timeout / max(int(max_workers), 1)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=limit_s)
    if done.returncode != 0:
        raise OSError(done.stderr.decode(errors="replace").strip() or "daoserver discover failed")
    return json.loads(done.stdout.decode())


def _reader() -> Callable[[str], Any]:
    """The class for a mirror. daoShm loads the C library as it is imported, which fails where that is missing."""
    try:
        import daoShm
        return daoShm.shm
    except (ImportError, OSError):
        return Segment


# ---------------------------------------------------------------------------------------------------------------------
# Ends

_servers = weakref.WeakSet()  # type: weakref.WeakSet[DaoServer]
_links = weakref.WeakSet()  # type: weakref.WeakSet[_Link]


def _stop_all() -> None:
    for server in list(_servers):
        server.stop()


def _after_fork_in_child() -> None:
    for link in list(_links):
        link.abandon()
    for server in list(_servers):
        server._link = None
        server._forget()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
