"""What every client test shares: the server under test, buckets, files with known bytes, programs, and the runner."""

import hashlib
import json
import os
import pathlib
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

import wire

MIB = 1 << 20
# Full sizes (1 GiB) are for the release; the ordinary run stays within minutes.
FULL = os.environ.get("PLINTH_FULL") == "1"
BIG_BYTES = 1024 * MIB if FULL else 64 * MIB
# Everything around the limits inside the server: nothing, one byte, inline limit, a frame, a pack, a part, a stripe.
SIZES = [0, 1, 4096, 4097, 65492, 65536, 1 * MIB, 1 * MIB + 1, 5 * MIB, 13 * MIB + 7]
# Programs of PyPI packages lie beside the interpreter of the virtual environment.
PROGRAMS = pathlib.Path(sys.executable).parent
# Of a line in the table; the whole of it is printed at the end.
REASON_CHARACTERS_MAX = 240
PROGRAM_SECONDS_MAX = 900 if FULL else 180


class Server:
    """Where the S3 server under test is; filled in by the runner."""

    endpoint = None
    access_key = None
    secret_key = None
    region = "us-east-1"
    rust_clients = None
    # Only when the runner made the cluster itself.
    cluster = None
    plinth = None
    tls_endpoint = None
    tls_authority = None


class ClientTest(unittest.TestCase):
    """Facts about one client. `client` names it in the table; `version` is asked once, or explains why it is missing."""

    client = None

    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="plinth-client-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(cls.folder),
            "AWS_ACCESS_KEY_ID": Server.access_key,
            "AWS_SECRET_ACCESS_KEY": Server.secret_key,
            "AWS_DEFAULT_REGION": Server.region,
            "AWS_REGION": Server.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_PAGER": "",
            "NO_COLOR": "1",
        }

    def s3(self):
        return wire.S3(Server.endpoint, Server.access_key, Server.secret_key, Server.region)

    def bucket(self, word):
        """A new, empty bucket with a name of its own."""
        client = re.sub("[^a-z0-9]+", "", self.client.split()[0].lower())
        name = f"{word}-{client}-{random.randrange(1 << 32):08x}"
        self.s3().make_bucket(name)
        return name

    def file(self, name, size):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_random(path, size)
        return path

    def program(self, *command, ok=True, folder=None, more=None):
        """Runs a program; fails the test with its output when it ends badly. Returns its standard output."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words, env={**self.environment, **(more or {})}, cwd=folder or self.folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", timeout=PROGRAM_SECONDS_MAX,
        )
        if ok and done.returncode != 0:
            self.fail(f"{' '.join(words)}\nexit {done.returncode}\n{tail(done.stdout)}\n{tail(done.stderr)}")
        return done.stdout if ok else done

    def assertSameFile(self, expected, found):
        self.assertEqual(sha256(expected), sha256(found), f"{found} differs from {expected}")

    def assertSameTree(self, expected, found):
        self.assertEqual(tree(expected), tree(found))


def tail(text, characters=3000):
    return text.strip()[-characters:]


def write_random(path, size):
    rng = random.Random(f"{path.name} {size}")
    with open(path, "wb") as out:
        while size > 0:
            out.write(rng.randbytes(min(size, MIB)))
            size -= min(size, MIB)


def sha256(path):
    with open(path, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def tree(folder):
    """Every file below a folder with its SHA-256."""
    folder = pathlib.Path(folder)
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def require(path, words, wanted=None):
    """The version a program tells; skips the test when it is missing or another than the pinned one."""
    if path is None or not pathlib.Path(path).exists():
        raise unittest.SkipTest(f"{path or words}: not installed")
    told = subprocess.run([str(path), *words], capture_output=True, text=True, timeout=60)
    text = (told.stdout + told.stderr).strip()
    if wanted and not re.search(wanted, text):
        raise unittest.SkipTest(f"{path}: wanted version {wanted}, found {text.splitlines()[0] if text else 'none'}")
    return text.splitlines()[0] if text else ""


class Result(unittest.TextTestResult):
    """Prints a line for each test as it ends, and keeps rows for the table."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.rows = []
        self.began = time.monotonic()

    def startTest(self, test):
        self.began = time.monotonic()
        unittest.TestResult.startTest(self, test)

    def row(self, test, outcome, reason=""):
        seconds = time.monotonic() - self.began
        reason = reason[:REASON_CHARACTERS_MAX]
        # What went wrong for a whole class arrives as a holder: "setUpClass (test_rust.AwsSdkS3)".
        holder = getattr(test, "description", "").rstrip(")").split(".")[-1]
        client = getattr(test, "client", None) or holder or type(test).__name__
        name = getattr(test, "_testMethodName", "all its tests").removeprefix("test_").replace("_", " ")
        self.rows.append((client, name, outcome, seconds, reason))
        self.stream.writeln(f"  {outcome:4} {client}: {name} ({seconds:.1f} s){' – ' + reason if reason else ''}")
        self.stream.flush()

    def addSuccess(self, test):
        unittest.TestResult.addSuccess(self, test)
        self.row(test, "ok")

    def addSkip(self, test, reason):
        unittest.TestResult.addSkip(self, test, reason)
        self.row(test, "SKIP", reason)

    def addFailure(self, test, error):
        unittest.TestResult.addFailure(self, test, error)
        self.row(test, "FAIL", str(error[1]).splitlines()[0] if str(error[1]) else error[0].__name__)

    def addError(self, test, error):
        unittest.TestResult.addError(self, test, error)
        self.row(test, "FAIL", f"{error[0].__name__}: {(str(error[1]).splitlines() or [''])[0]}")

    def addSubTest(self, test, subtest, error):
        unittest.TestResult.addSubTest(self, test, subtest, error)
        if error is not None:
            self.row(test, "FAIL", f"{subtest._subDescription()}: {(str(error[1]).splitlines() or [''])[0]}")


def run(suites, totals=None, title="tests"):
    """Runs, prints the counts, writes them down, and returns the exit code. No test executed is a failure."""
    began = time.monotonic()
    runner = unittest.TextTestRunner(stream=sys.stdout, resultclass=Result, verbosity=0)
    result = runner.run(suites)
    outcomes = [row[2] for row in result.rows]
    passed, failed, skipped = outcomes.count("ok"), outcomes.count("FAIL"), outcomes.count("SKIP")
    print(f"{title}: {passed} passed, {failed} failed, {skipped} skipped in {time.monotonic() - began:.0f} s")
    if totals:
        path = pathlib.Path(totals)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"passed": passed, "failed": failed, "skipped": skipped}))
        path.with_suffix(".md").write_text(table(result.rows, title))
    return 0 if passed and not failed and result.wasSuccessful() else 1


def table(rows, title):
    lines = [f"# {title}, Python {platform.python_version()}", "", "| client | test | result | seconds | reason |"]
    lines.append("| --- | --- | --- | --: | --- |")
    lines += [f"| {client} | {name} | {outcome} | {seconds:.1f} | {reason} |" for client, name, outcome, seconds, reason in rows]
    return "\n".join(lines) + "\n"
