"""Graceful stops under load, one node after another: nobody should notice a rolling restart."""

import time

from faults import FaultTest
from load import Load

NODES = ["m1", "m2", "m3", "s1", "s2"]
ACKS_MIN = 30
# A leader gives leadership away before it stops listening: no election time-out is waited for.
STALL_SECONDS_MAX = 1.0


class RollingRestart(FaultTest):
    client = "rolling restart"

    def test_no_write_waits_for_an_election(self):
        with Load(self.cluster) as load:
            self.assertTrue(load.wait_for_acks(ACKS_MIN), f"no load: {load.problems()}")
            for name in NODES:
                node = self.cluster.node(name)
                stopping = time.monotonic()
                self.assertEqual(node.stop(), 0, f"{name} ends in good order")
                stopped = time.monotonic()
                self.assertTrue(load.wait_for_acks(ACKS_MIN), f"no load without {name}: {load.problems()}")
                stall = load.seconds_without_write(stopping, time.monotonic())
                print(f"    {name} stopped in {stopped - stopping:.2f} s: longest time without a write {stall:.2f} s", flush=True)
                self.assertLessEqual(stall, STALL_SECONDS_MAX, f"while {name} stopped")
                node.start()
                self.cluster.wait_ready([node])
            self.assertGreater(len(load.acks()), ACKS_MIN * len(NODES))
        self.assertHolds(load.problems())
        problems, count = load.check_everything()
        refused = sum(sum(client.refusals.values()) for client in load.clients)
        print(f"    {len(load.acks())} writes acknowledged, {refused} refused, {count} keys read back", flush=True)
        self.assertHolds(problems)
        self.done()
