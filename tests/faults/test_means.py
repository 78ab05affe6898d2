"""Proof of means: the data path of a storage process is io_uring with O_DIRECT, and nothing else."""

import os
import pathlib
import re
import shutil
import subprocess
import time
import unittest

from faults import FaultTest
from load import MIB, Load

TRACED = "io_uring_enter,write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,sync_file_range,syncfs,sync,msync"
TRACE_SECONDS = 4
# One line of strace -f -y: "1234 write(5</path/of/file>, ...".
CALL = re.compile(r"^\d+\s+(?:<\.\.\. )?(\w+)(?:\((?:\d+<([^>]*)>)?)?")
# Files of data, not of words: segments and superblocks are at least this large.
DATA_BYTES_MIN = MIB


class Means(FaultTest):
    client = "proof of means (strace)"

    def test_data_goes_through_the_ring_with_o_direct(self):
        if shutil.which("strace") is None:
            self.failed = False
            raise unittest.SkipTest("strace: not installed")
        node = self.cluster.node("s1")
        trace = self.cluster.folder / "s1.strace"
        with Load(self.cluster) as load:
            self.assertTrue(load.wait_for_acks(20), f"no load: {load.problems()}")
            tracer = subprocess.Popen(
                ["strace", "-f", "-y", "-e", f"trace={TRACED}", "-o", str(trace), "-p", str(node.pid)],
                stderr=subprocess.PIPE, text=True,
            )
            time.sleep(TRACE_SECONDS)
            data = data_files(node)
            tracer.terminate()
            message = tracer.communicate(timeout=20)[1]
            if "Operation not permitted" in message:
                self.failed = False
                raise unittest.SkipTest(f"strace may not attach here: {message.strip()}")
            self.assertTrue(load.wait_for_acks(20), "writes go on after the trace")
        self.assertHolds(load.problems())

        calls = [CALL.match(line) for line in trace.read_text(errors="replace").splitlines()]
        calls = [(call.group(1), call.group(2) or "") for call in calls if call]
        ring = sum(name == "io_uring_enter" for name, _ in calls)
        self.assertGreater(ring, 100, "a storage process under load enters its ring all the time")
        inside = str(node.folder)
        outside_ring = sorted({f"{name} on {path}" for name, path in calls if name != "io_uring_enter" and path.startswith(inside)})
        self.assertEqual(outside_ring, [], "writes and syncs on the node's files outside the ring")
        self.assertEqual([name for name, _ in calls if name in ("sync", "syncfs", "msync")], [])
        self.assertTrue(data, "the storage process has its data files open")
        buffered = [path for path, flags in data.items() if not flags & os.O_DIRECT]
        self.assertEqual(buffered, [], "data files opened without O_DIRECT")
        print(f"    io_uring_enter {ring} times in {TRACE_SECONDS} s, {len(data)} data files, all O_DIRECT", flush=True)
        self.done()


def data_files(node):
    """Large regular files of the node's folder that the process has open, with their flags."""
    found = {}
    descriptors = pathlib.Path(f"/proc/{node.pid}/fd")
    for descriptor in descriptors.iterdir():
        try:
            path = pathlib.Path(os.readlink(descriptor))
            information = pathlib.Path(f"/proc/{node.pid}/fdinfo/{descriptor.name}").read_text()
            large = path.is_file() and path.stat().st_size >= DATA_BYTES_MIN
        except OSError:
            continue  # Closed between the listing and the look.
        if large and node.folder in path.parents:
            found[str(path)] = int(re.search(r"^flags:\s+(\d+)", information, re.MULTILINE).group(1), 8)
    return found
