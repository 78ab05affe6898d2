"""Faults against a cluster of separate processes.

    run.py --plinth PROGRAM [--totals FILE] [PATTERN ...]

PATTERN: only tests whose name contains it. PLINTH_FAULT_SECONDS: how long each fault lasts (4 unless told).
"""

import argparse
import pathlib
import sys
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "s3")]

import suite  # noqa: E402
from faults import Under  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description="Faults against a real cluster")
    parser.add_argument("--plinth", required=True, help="the program under test")
    parser.add_argument("--totals", help="where to write the counts, as JSON")
    parser.add_argument("pattern", nargs="*", help="only tests whose name contains one of these")
    options = parser.parse_args()
    Under.plinth = options.plinth
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{pattern}*" for pattern in options.pattern] or None
    tests = loader.discover(str(HERE), pattern="test_*.py", top_level_dir=str(HERE))
    return suite.run(tests, options.totals, "Faults")


if __name__ == "__main__":
    sys.exit(main())
