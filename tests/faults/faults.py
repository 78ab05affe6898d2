"""What every fault test shares: the program under test, durations, and a cluster under load."""

import os
import unittest

from cluster import Cluster

# Seconds that each fault lasts; the ordinary run is short, `make chaos` takes longer ones.
FAULT_SECONDS = float(os.environ.get("PLINTH_FAULT_SECONDS", "4"))
# Writes must go on within this time after a process died.
RESUME_SECONDS_MAX = 5.0


class Under:
    """The program under test; filled in by the runner."""

    plinth = None


class FaultTest(unittest.TestCase):
    """A test with a cluster of its own."""

    client = None

    def setUp(self):
        self.cluster = Cluster(Under.plinth)
        self.failed = True
        self.addCleanup(lambda: self.cluster.close(failed=self.failed))
        self.cluster.start(self.cluster.nodes)

    def done(self):
        """Said at the end of a test: nothing failed, so the cluster's folder need not be kept."""
        self.failed = False

    def assertHolds(self, problems):
        shown = "\n".join(problems[:10])
        self.assertEqual(len(problems), 0, f"{len(problems)} promises broken:\n{shown}")
