"""Loads messages that a daoserver published, with any NumPy: needs no other package. Run with -W error.

Usage: load_messages.py DIRECTORY, whose files are NAME:6x8:uint16.pickle with frames as `frames.py` makes them.
"""

import pickle
import sys
from pathlib import Path

import numpy as np


def fault(path: Path) -> str:
    """What is wrong with the array in this file; nothing: it is whole."""
    _, shape, dtype = path.stem.split(":")
    array = pickle.loads(path.read_bytes())
    if type(array) is not np.ndarray:
        return f"it is a {type(array)}"
    if array.dtype != np.dtype(dtype) or not array.dtype.isnative:
        return f"its type is {array.dtype}"
    if array.shape != tuple(int(axis) for axis in shape.split("x")):
        return f"its shape is {array.shape}"
    if not (array.flags.c_contiguous and array.flags.writeable and array.flags.aligned):
        return f"its flags are {array.flags}"
    array[...] = array[...]  # no byte of it is read-only
    expected = path.with_suffix(".raw").read_bytes()
    return "" if pickle.loads(path.read_bytes()).tobytes() == expected else "its bytes are others"


def main() -> None:
    files = sorted(Path(sys.argv[1]).glob("*.pickle"))
    assert files, "no messages"
    faults = [(path.name, fault(path)) for path in files]
    wrong = [(name, why) for name, why in faults if why]
    print(f"Python {sys.version.split()[0]}, NumPy {np.__version__}: {len(files) - len(wrong)} of {len(files)}")
    for name, why in wrong:
        print(f"{name}: {why}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
