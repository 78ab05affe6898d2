"""Drives real S3 clients against a cluster of separate processes.

    run.py --plinth PROGRAM [--rust-clients PROGRAM] [--totals FILE] [PATTERN ...]
    run.py --endpoint URL [PATTERN ...]        any S3 server; keys from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY

PATTERN: only tests whose name contains it. PLINTH_FULL=1: full sizes.
"""

import argparse
import contextlib
import os
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import suite  # noqa: E402
from cluster import Cluster  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description="Real S3 clients against a real cluster")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--plinth", help="the program under test: a cluster of separate processes is made of it")
    where.add_argument("--endpoint", help="an S3 server that runs already")
    parser.add_argument("--rust-clients", help="the driver of the Rust SDKs")
    parser.add_argument("--totals", help="where to write the counts, as JSON")
    parser.add_argument("pattern", nargs="*", help="only tests whose name contains one of these")
    options = parser.parse_args()

    suite.Server.rust_clients = options.rust_clients
    with contextlib.ExitStack() as stack:
        if options.plinth:
            cluster = stack.enter_context(Cluster(options.plinth))
            suite.Server.endpoint = cluster.endpoint
            suite.Server.access_key, suite.Server.secret_key = cluster.access_key, cluster.secret_key
        else:
            suite.Server.endpoint = options.endpoint
            suite.Server.access_key = os.environ["AWS_ACCESS_KEY_ID"]
            suite.Server.secret_key = os.environ["AWS_SECRET_ACCESS_KEY"]
        loader = unittest.TestLoader()
        loader.testNamePatterns = [f"*{pattern}*" for pattern in options.pattern] or None
        tests = loader.discover(str(pathlib.Path(__file__).parent), pattern="test_*.py")
        status = suite.run(tests, options.totals, "S3 clients")
        if status and options.plinth:
            for node in cluster.nodes:
                if not node.is_running():
                    print(f"{node.name} ended with {node.process.returncode}:\n{node.log_tail()}")
    return status


if __name__ == "__main__":
    sys.exit(main())
