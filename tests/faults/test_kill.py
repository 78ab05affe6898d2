"""kill -9 under load: one process of each role in turn, a leader again and again, two storage nodes, everything at once."""

import os
import statistics
import time

import wire
from faults import FAULT_SECONDS, RESUME_SECONDS_MAX, FaultTest
from load import BUCKET, MIB, Load, body, digest

# All three metadata nodes in turn: whichever leads is hit while it leads.
VICTIMS = ["m1", "m2", "m3", "s1", "s4", "g1"]
PAIRS = [("s1", "s2"), ("s3", "s4"), ("s5", "s6")]
# Objects of this size are erasure-coded over storage nodes.
STRIPE_BYTES_MIN = 65_000
# How often the leader of the objects is killed, and the median time until a write succeeds again.
LEADER_KILLS = int(os.environ.get("PLINTH_LEADER_KILLS", "5"))
FAILOVER_SECONDS_MEDIAN_MAX = 1.5
# The group of a new cluster's objects.
SHARD = 1
# Writes acknowledged before a fault begins: a run without load proves nothing.
ACKS_MIN = 50


class KillOne(FaultTest):
    client = "kill -9 of one process"

    def test_nothing_acknowledged_is_lost_and_writes_resume(self):
        with Load(self.cluster) as load:
            self.assertTrue(load.wait_for_acks(ACKS_MIN), f"no load: {load.problems()}")
            began = time.monotonic()
            for name in VICTIMS:
                self.assertTrue(load.wait_for_acks(ACKS_MIN), f"no load before {name} dies: {load.problems()}")
                node = self.cluster.node(name)
                killed = time.monotonic()
                node.kill()
                if node.role == "gateway":
                    # There is only one: what counts is how soon its supervisor has it back.
                    node.start()
                # Small objects live in the metadata: only a large one shows that stripes find their quorum.
                size_min = STRIPE_BYTES_MIN if node.role == "storage" else 0
                seconds = load.wait_for_write_since(killed, RESUME_SECONDS_MAX + 5, size_min)
                print(f"    {name} killed: writes go on after {seconds or -1:.2f} s", flush=True)
                self.assertIsNotNone(seconds, f"no write at all after kill -9 of {name}")
                self.assertLessEqual(seconds, RESUME_SECONDS_MAX, f"after kill -9 of {name}")
                time.sleep(max(0, killed + FAULT_SECONDS - time.monotonic()))
                if not node.is_running():
                    node.start()
                self.cluster.wait_ready([node])
            self.assertTrue(load.wait_for_acks(ACKS_MIN), f"no load after the last fault: {load.problems()}")
            longest = load.seconds_without_write(began, time.monotonic())
            self.assertLessEqual(longest, RESUME_SECONDS_MAX, "the longest time without a write in the whole run")
        self.assertHolds(load.problems())
        problems, count = load.check_everything()
        reads = sum(client.reads for client in load.clients)
        print(f"    {len(load.acks())} writes acknowledged, {reads} reads checked, {count} keys read back", flush=True)
        self.assertHolds(problems)
        self.done()


class KillLeader(FaultTest):
    client = "kill -9 of the objects' leader, several times"

    def test_the_next_write_succeeds_within_the_bound_at_the_median(self):
        with Load(self.cluster) as load:
            seconds = [self.kill_leader(load) for _ in range(LEADER_KILLS)]
        median = statistics.median(seconds)
        print(f"    writes go on after {median:.2f} s at the median of {' '.join(f'{s:.2f}' for s in sorted(seconds))}", flush=True)
        self.assertLessEqual(median, FAILOVER_SECONDS_MEDIAN_MAX)
        self.assertHolds(load.problems())
        problems, _ = load.check_everything()
        self.assertHolds(problems)
        self.done()

    def kill_leader(self, load):
        self.assertTrue(load.wait_for_acks(ACKS_MIN), f"no load before the leader dies: {load.problems()}")
        groups = self.cluster.command("raft", "status")["items"]
        leader = self.cluster.node(next(group["leader"] for group in groups if group["group"] == SHARD))
        killed = time.monotonic()
        leader.kill()
        resumed = load.wait_for_write_since(killed, RESUME_SECONDS_MAX + 5)
        self.assertIsNotNone(resumed, f"no write at all after kill -9 of {leader.name}")
        leader.start()
        self.cluster.wait_ready([leader])
        return resumed


class TwoDead(FaultTest):
    client = "two of six storage nodes dead"

    def test_every_object_still_reads(self):
        s3 = wire.S3(self.cluster.endpoint, self.cluster.access_key, self.cluster.secret_key)
        s3.make_bucket(BUCKET)
        sizes = [0, 1, 4096, 4097, 65_492, 200_000, MIB, 3 * MIB + 1, 9 * MIB] * 4
        objects = {f"o/{index:03}": body("two", index, size) for index, size in enumerate(sizes)}
        for key, content in objects.items():
            s3.put(BUCKET, key, content)
        self.wait_until_whole()
        for pair in PAIRS:
            nodes = [self.cluster.node(name) for name in pair]
            for node in nodes:
                node.kill()
            for key, content in objects.items():
                found = s3.get(BUCKET, key)
                self.assertEqual(digest(found), digest(content), f"{key} with {pair} dead")
                if len(content) > MIB:
                    part = s3.get(BUCKET, key, headers={"range": "bytes=1000000-1048599"})
                    self.assertEqual(part, content[1000000:1048600], f"a range of {key} with {pair} dead")
            self.assertEqual(s3.keys(BUCKET), sorted(objects))
            self.cluster.start(nodes)
        self.done()

    def wait_until_whole(self, seconds=60):
        """A write may be acknowledged with one fragment owed; two losses are survived once it is filled in."""
        deadline = time.monotonic() + seconds
        while self.cluster.command("status")["owed_stripes"] > 0:
            self.assertLess(time.monotonic(), deadline, "owed fragments were not filled in")
            time.sleep(0.1)


class KillAll(FaultTest):
    client = "kill -9 of all processes"

    def test_everything_acknowledged_reads_back_and_nothing_is_half_there(self):
        load = Load(self.cluster)
        with load:
            self.assertTrue(load.wait_for_acks(ACKS_MIN), f"no load: {load.problems()}")
            time.sleep(FAULT_SECONDS)
            self.cluster.kill_all()
            # Clients in the middle of a request learn only now that nobody answers.
            load.ends.set()
        self.cluster.start(self.cluster.nodes)
        # Reads that failed because everything was dead are no broken promise; wrong bytes are.
        self.assertHolds([problem for problem in load.problems() if "could not be read" not in problem])
        problems, count = load.check_everything()
        unknown = sum(bool(state.maybe) for client in load.clients for state in client.keys.values())
        print(f"    {len(load.acks())} writes acknowledged, {unknown} unknown, {count} keys read back", flush=True)
        self.assertHolds(problems)
        s3 = load.connect()
        s3.put(BUCKET, "after", b"the cluster takes writes again")
        self.assertEqual(s3.get(BUCKET, "after"), b"the cluster takes writes again")
        self.done()
