"""Counts frames: `rate.py FILE [spin=yes]` follows the segment in this file with get_data(check=True) until none has
come for two seconds, and prints JSON: frames seen, and why others were not.

Every element of a frame is its number, as `daoserver shm write` without --fill writes it.
"""

import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
from daoServer import Segment  # noqa: E402

options = dict(option.split("=") for option in sys.argv[2:])
spin = options.get("spin") == "yes"
numbers, whole, asked = [], True, []
with Segment(sys.argv[1]) as segment:
    counters, returned = [segment.counter], [time.monotonic()]
    print("ready", file=sys.stderr, flush=True)
    while True:
        asked.append(time.monotonic())
        frame = segment.get_data(check=True, timeout=2 if numbers else 20, spin=spin)
        if frame is None:
            break
        returned.append(time.monotonic())
        numbers.append(int(frame.flat[0]))
        counters.append(segment.counter)
        whole = whole and bool((frame == frame.flat[0]).all())
    written = segment.get_counter() - counters[0]

# Each hole: how many frames were overwritten before we had them, and the milliseconds between the frames around it. A
# mirror's daemon that was late writes several frames at once, so there a hole may be short.
holes = [(counters[i] - counters[i - 1] - 1, 1e3 * (returned[i] - returned[i - 1]))
         for i in range(1, len(counters)) if counters[i] != counters[i - 1] + 1]
print(json.dumps({
    "seen": len(set(counters)) - 1,         # frames of this segment that were returned
    "written": written,                     # frames that were written into it meanwhile
    "source": [numbers[0], numbers[-1], len(set(numbers))],     # first, last, how many: of its source
    "whole": whole,
    "missed": sum(missed for missed, _ in holes),
    "holes": len(holes),
    "hole_ms": [round(length, 1) for _, length in sorted(holes, reverse=True)[:8]],
    "own_ms_max": round(1e3 * max(b - a for a, b in zip(returned[1:], asked[1:])), 2),
}))
