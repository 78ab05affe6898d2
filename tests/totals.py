"""Adds up what the stages of `make test` counted, and prints one line that a machine can read.

Usage: totals.py FOLDER. The folder holds rust.log (output of cargo test), clients.json and faults.json.
Exit code 1 when a stage left nothing behind or counted a failure: silence is not success.
"""

import json
import pathlib
import re
import sys

RUST_LINE = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", re.MULTILINE)


def rust_counts(path):
    """Sums the result lines of cargo test; a crate that failed to compile leaves none and stops the stage itself."""
    lines = RUST_LINE.findall(path.read_text(errors="replace"))
    return tuple(sum(int(line[i]) for line in lines) for i in range(3))


def json_counts(path):
    counts = json.loads(path.read_text())
    return counts["passed"], counts["failed"], counts["skipped"]


def main():
    folder = pathlib.Path(sys.argv[1])
    total = [0, 0, 0]
    complete = True
    for name, read in [("rust.log", rust_counts), ("clients.json", json_counts), ("faults.json", json_counts)]:
        path = folder / name
        if not path.exists():
            print(f"  {name:14} did not run")
            complete = False
            continue
        counts = read(path)
        complete &= counts[0] > 0
        print(f"  {name:14} {counts[0]} passed, {counts[1]} failed, {counts[2]} skipped or ignored")
        total = [a + b for a, b in zip(total, counts)]
    print(f"{total[0]} passed, {total[1]} failed, {total[2]} skipped")
    return 0 if complete and total[1] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
