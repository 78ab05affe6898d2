"""Drives real S3 clients against a cluster of separate processes.

    run.py --plinth PROGRAM [--rust-clients PROGRAM] [--totals FILE] [PATTERN ...]
    run.py --endpoint URL [PATTERN ...]        any S3 server; keys from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY

PATTERN: only tests whose name contains it. PLINTH_FULL=1: full sizes.
"""

import argparse
import contextlib
import os
import pathlib
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import suite  # noqa: E402
from cluster import Cluster  # noqa: E402


def speak_tls(cluster):
    """Gives the last gateway a certificate of its own; returns its address and the certificate's file."""
    node = cluster.of_role("gateway")[-1]
    certificate, key = cluster.folder / "s3-cert.pem", cluster.folder / "s3-key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )
    config = pathlib.Path(node.config)
    lines = f'[gateway]\ntls_certificate = "{certificate}"\ntls_private_key = "{key}"'
    text = config.read_text()
    assert text.count("[gateway]") == 1, f"{config} has one section for the gateway"
    config.write_text(text.replace("[gateway]", lines))
    return node.endpoint.replace("http://", "https://"), certificate


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
            # A second gateway speaks HTTPS: SDKs send trailers only there.
            cluster = Cluster(options.plinth, gateway=2)
            suite.Server.tls_endpoint, suite.Server.tls_authority = speak_tls(cluster)
            stack.enter_context(cluster)
            suite.Server.cluster, suite.Server.plinth = cluster, options.plinth
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
            cluster.keep = True
            for node in cluster.nodes:
                if not node.is_running():
                    print(f"{node.name} ended with {node.process.returncode}:\n{node.log_tail()}")
    return status


if __name__ == "__main__":
    sys.exit(main())
