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
import ctypes
import datetime
import itertools
import json
import logging
import mmap
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

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
_HEAD_BYTES = 200
_KEYWORD_BYTES = 120
_DEPTH_MAX = 1 << 20
_SEMAPHORES = 10


class _Head(NamedTuple):
    """The metadata that all generations have, by the C library's names."""
    name: bytes
    naxis: int
    size0: int
    size1: int
    size2: int
    nelement: int
    atype: int
    creation_time: float
    last_access: float
    firstlong: int
    secondlong: int
    shared: int
    status: int
    logflag: int
    sem: int
    cnt0: int
    cnt1: int
    cnt2: int
    write: int
    NBkw: int
    lastPos: int
    lastNb: int
    packetNb: int
    packetTotal: int


_HEAD = struct.Struct("<80s B3x 3I Q B7x d d q q B B B x H2x Q Q Q B x H I I I I 4x")
assert _HEAD.size == _HEAD_BYTES
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
# Shortest and longest sleep on a semaphore, seconds: somebody else who waits on the same one may take our wake-up, and
# then this is how late we are. Without a semaphore, the sleep between two looks.
_SLICE_MIN_S, _SLICE_MAX_S, _POLL_S = 0.002, 0.1, 0.0005

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
        data = os.pread(fd, _HEAD_BYTES, 0)
        if len(data) < _HEAD_BYTES:
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
            if metadata_bytes < _HEAD_BYTES or metadata_bytes % 8:
                raise bad("%d bytes do not fit a frame of %s, %s" % (status.st_size, shape, dtype))
        if metadata_bytes == _GPU_BYTES and pair(_GPU_MAGIC_AT)[0]:
            raise OSError("%s has its pixels on a GPU, which cannot be read" % self.path)
        self.shape, self.dtype = shape, dtype
        self._identity = (status.st_dev, status.st_ino, status.st_size)
        self._shape_bytes = data[_SHAPE_AT:_SHAPE_END]
        self._frame_bytes, self._metadata_bytes, self._depth, self._depth_at = frame_bytes, metadata_bytes, depth, depth_at
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
        if self._read(_SHAPE_AT, _SHAPE_END - _SHAPE_AT) != self._shape_bytes:
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
                    self._identity = (0, 0, 0)  # so that _follow opens it again
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
        semNb    the semaphore to wait on, 0 to 9. Programs that wait on the same one take each other's wake-ups; we
                 then come up to 2 ms late at high rates. Without semaphores, it looks every half millisecond.
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
        values = np.ascontiguousarray(given, self.dtype) if not integers else np.ascontiguousarray(given.astype(self.dtype))
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
        if os.fstat(self._fd).st_size != self._identity[2] or \
                self._read(_SHAPE_AT, _SHAPE_END - _SHAPE_AT) != self._shape_bytes:
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
        words64[(block + _ATIME_AT) // 8] = int(time.time() * 1e9)
        words64[(block + _CNT0_AT) // 8] = (words64[(last * self._metadata_bytes + _CNT0_AT) // 8] + 1) % (1 << 64)

    # What the newest frame says about itself

    def _newest_head(self) -> Tuple[_Head, int]:
        with self._lock:
            for _ in range(_ATTEMPTS):
                try:
                    self._follow()
                    slot = self._newest()[0]
                    return _Head._make(_HEAD.unpack(self._read(slot * self._metadata_bytes, _HEAD_BYTES))), slot
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
            words = ((self._depth_at or min(self._metadata_bytes, _LAYOUTS[0][0])) - _HEAD_BYTES) // 8
            block = slot * self._metadata_bytes
            fields["lastNbArray"] = list(struct.unpack("<%dQ" % words, self._read(block + _HEAD_BYTES, 8 * words)))
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
