"""Makes and checks the numbered frames of the peers, for segments that daoserver writes and mirrors."""

import argparse
import subprocess
import sys
from pathlib import Path

from common import Segment, frame, number_of, say


def make(options: argparse.Namespace) -> None:
    """Writes FILE with frames one after the other, for each segment: DIRECTORY/NAME.raw."""
    for segment in options.segments:
        numbers = range(options.first, options.first + options.count)
        frames = [frame(number, segment.shape, segment.dtype).tobytes() for number in numbers]
        (Path(options.directory) / f"{segment.name}.raw").write_bytes(b"".join(frames))


def check(options: argparse.Namespace) -> None:
    """Reads every mirror by daoserver's own command, and exits with 1 if one holds anything but the frame wanted."""
    wrong = 0
    for segment in options.segments:
        path = Path(options.directory) / f"{options.prefix}{segment.name}.im.shm"
        command = [options.daoserver, "shm", "read", str(path), "--raw"]
        data = subprocess.run(command, check=True, capture_output=True).stdout
        number = number_of(data)
        expected = frame(number, segment.shape, segment.dtype).tobytes()
        if data != expected or options.number not in (None, number):
            wrong += 1
            say(segment=segment.name, number=number, bytes=len(data), same=data == expected)
    sys.exit(1 if wrong else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, function in (("make", make), ("check", check)):
        command = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        command.set_defaults(function=function)
        command.add_argument("directory")
        command.add_argument("segments", nargs="+", type=Segment.parse, metavar="NAME:8x6:uint16")
        if function is make:
            command.add_argument("--first", type=int, default=1, metavar="N", help="number of the first frame")
            command.add_argument("--count", type=int, default=1, metavar="N", help="frames a file")
        else:
            command.add_argument("--daoserver", required=True, metavar="PATH", help="the binary")
            command.add_argument("--prefix", default="", help="of the files' names: remote_<host>_")
            command.add_argument("--number", type=int, metavar="N", help="of the frame that is wanted; any without")
    options = parser.parse_args()
    options.function(options)


assert sys.byteorder == "little", "the segments of DAO are little-endian"
if __name__ == "__main__":
    main()
