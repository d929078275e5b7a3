"""What both peers need: names of keys, times, segments, and frames that can be checked bit for bit."""

import datetime
import json
from dataclasses import dataclass

import numpy as np

TOPIC = "frameData"
CLIENT_HEARTBEAT_S = 10.0
CLIENT_HEARTBEAT_EXPIRY_S = 75


@dataclass(frozen=True)
class Segment:
    """Name, shape and type, as the registry holds them."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @staticmethod
    def parse(text: str) -> "Segment":
        """NAME:8x6:uint16"""
        name, shape, dtype = text.split(":")
        return Segment(name, tuple(int(axis) for axis in shape.split("x")), np.dtype(dtype))


def frame(number: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The frame of this number: its first eight bytes hold the number, every other byte follows from it. Among
    the floats are NaNs of every kind, so only bits can be compared."""
    size = int(np.prod(shape)) * dtype.itemsize
    assert size >= 8, "a frame must have room for its number"
    place = np.arange(size, dtype=np.uint64)
    data = ((place * 7 + (place >> 8) * 13 + number) & 0xFF).astype(np.uint8)
    data[:8] = np.frombuffer(number.to_bytes(8, "little"), dtype=np.uint8)
    return data.view(dtype).reshape(shape)


def number_of(data: bytes) -> int:
    """The number of the frame that these bytes are, if they are one."""
    return int.from_bytes(data[:8], "little")


def now() -> str:
    """A time as the registry holds it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat()


def age_s(text: str) -> float:
    """Seconds since a time of the registry, by this machine's clock."""
    return (datetime.datetime.now(datetime.timezone.utc) - datetime.datetime.fromisoformat(text)).total_seconds()


def say(**fields: object) -> None:
    """One line of JSON for whoever reads our output."""
    print(json.dumps(fields), flush=True)
