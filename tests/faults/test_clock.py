"""Wall clocks that are wrong: one voter's 20 minutes ahead under load with retries, a gateway's an hour."""

import email.utils
import http.client
import time
import urllib.error
import urllib.request

import wire
from cluster import url_of
from faults import FAULT_SECONDS, RESUME_SECONDS_MAX, FaultTest
from load import BUCKET, MIB, Load

MINUTES_20_MS = 20 * 60 * 1000
HOUR_MS = 60 * 60 * 1000
ACKS_MIN = 50
# A paused leader is given up after two seconds; requests that reached it are repeated elsewhere before it goes on.
PAUSE_SECONDS = 2.5
# How far the time of a new object may be from real time: the bound, and what a busy machine adds.
NEAR_SECONDS = 10
SHARD = 1
# More than sockets and read-ahead hold.
OBJECT_BYTES = 96 * MIB


class FastVoter(FaultTest):
    client = "one voter 20 minutes ahead"

    def leader(self, seconds=30):
        """The metadata node that leads the object shard."""
        deadline = time.monotonic() + seconds
        while True:
            names = {row["leader"] for row in self.cluster.command("raft", "status")["items"] if row["group"] == SHARD}
            if len(names) == 1 and names != {"-"}:
                return self.cluster.node(names.pop())
            self.assertLess(time.monotonic(), deadline, f"no leader of the shard: {names}")
            time.sleep(0.1)

    def make_lead(self, node):
        for _ in range(10):
            leader = self.leader()
            if leader is node:
                return
            leader.stop()
            leader.start()
            self.cluster.wait_ready([leader])
        self.fail(f"{node.name} does not come to lead")

    def assertNearRealTime(self, load, when):
        """A new object carries real time, whoever leads."""
        s3 = load.connect()
        s3.put(BUCKET, "stamp", when.encode())
        _, headers, _ = s3.request("GET", f"/{BUCKET}/stamp")
        stamped = email.utils.parsedate_to_datetime(headers["last-modified"]).timestamp()
        off = stamped - time.time()
        print(f"    {when}: stamped {off:+.1f} s from real time", flush=True)
        self.assertLess(abs(off), NEAR_SECONDS, when)
        s3.delete(BUCKET, "stamp")

    def test_nothing_is_lost_and_nothing_comes_back(self):
        fast = self.cluster.node("m2")
        with Load(self.cluster) as load:
            self.assertTrue(load.wait_for_acks(ACKS_MIN), f"no load: {load.problems()}")
            # Its clock goes wrong while the others run: they hold the time, also when it leads.
            fast.kill()
            fast.settings = {"PLINTH__TEST__CLOCK_OFFSET_MS": str(MINUTES_20_MS)}
            fast.start()
            self.cluster.wait_ready([fast])
            self.make_lead(fast)
            self.assertNearRealTime(load, "the fast one leads")
            for _ in range(2):
                leader = self.leader()
                leader.pause()
                time.sleep(PAUSE_SECONDS)
                leader.resume()
                self.assertTrue(load.wait_for_acks(ACKS_MIN), f"no load after {leader.name} paused: {load.problems()}")
                self.make_lead(fast)
            time.sleep(FAULT_SECONDS)
            # Nobody knows the time any more: the voters' clocks are all there is, and two of them are right.
            for node in self.cluster.of_role("meta"):
                node.kill()
            killed = time.monotonic()
            fast.start()
            for node in self.cluster.of_role("meta"):
                if node is not fast:
                    node.start()
            self.cluster.wait_ready(self.cluster.of_role("meta"))
            resumed = load.wait_for_write_since(killed, RESUME_SECONDS_MAX + 20)
            self.assertIsNotNone(resumed, "no write after all voters started again")
            self.make_lead(fast)
            self.assertNearRealTime(load, "all voters started again")
            self.assertTrue(load.wait_for_acks(ACKS_MIN), f"no load at the end: {load.problems()}")
            offset = max(fast.metric("plinth_clock_offset_seconds"))
            self.assertAlmostEqual(offset, MINUTES_20_MS / 1000, delta=NEAR_SECONDS, msg="the node tells its own error")
            self.assertLess(max(map(abs, self.cluster.node("m1").metric("plinth_clock_offset_seconds"))), NEAR_SECONDS)
            self.assertIn("clock_off", fast.log.read_text(errors="replace"))
        problems = [problem for problem in load.problems() if "could not be read" not in problem or "503" not in problem]
        self.assertHolds(problems)
        problems, count = load.check_everything()
        print(f"    {len(load.acks())} writes acknowledged, {count} keys read back", flush=True)
        self.assertHolds(problems)
        self.done()


class FastGateway(FaultTest):
    client = "a gateway an hour ahead"

    def test_it_calls_itself_not_ready_and_destroys_nothing(self):
        gateway = self.cluster.node("g1")
        s3 = wire.S3(self.cluster.endpoint, self.cluster.access_key, self.cluster.secret_key)
        s3.make_bucket(BUCKET)
        s3.put(BUCKET, "large", bytes(200_000))
        s3.delete(BUCKET, "large")
        gateway.stop()
        gateway.settings = {"PLINTH__TEST__CLOCK_OFFSET_MS": str(HOUR_MS)}
        gateway.start()
        deadline = time.monotonic() + 15
        while "S211" not in (answer := readiness(gateway)):
            self.assertLess(time.monotonic(), deadline, f"not told within 15 s: {answer}")
            time.sleep(0.1)
        self.assertFalse(gateway.is_ready())
        # Several rounds of its housekeeping, to which the deletion would seem an hour old.
        time.sleep(12)
        waiting = self.cluster.command("status")["deferred_deletes"]
        self.assertEqual(waiting, 1, "deleted data is kept by the cluster's time")
        gateway.stop()
        gateway.settings = {}
        gateway.start()
        self.cluster.wait_ready([gateway])
        self.done()


class SlowReader(FaultTest):
    client = "a GET of an object that is deleted meanwhile"

    def read_slowly(self, s3, key, seconds):
        """Reads an object that is deleted after its first MiB, in steps over so many seconds; returns its bytes."""
        content = bytes(OBJECT_BYTES)
        s3.put(BUCKET, key, content)
        with urllib.request.urlopen(self.url(s3, key), timeout=60) as answer:
            got = len(answer.read(MIB))
            s3.delete(BUCKET, key)
            steps = 2 * seconds
            for _ in range(steps):
                time.sleep(0.5)
                piece = answer.read(OBJECT_BYTES // (steps * 4))
                got += len(piece)
            try:
                while piece := answer.read(MIB):
                    got += len(piece)
            except (http.client.IncompleteRead, OSError) as error:
                print(f"    {key}: cut after {got} bytes: {error!r}", flush=True)
        return got

    def url(self, s3, key):
        return self.cluster.endpoint.rstrip("/") + s3.presigned("GET", f"/{BUCKET}/{key}")

    def test_it_reads_on_within_the_retention_and_says_when_it_is_cut(self):
        gateway = self.cluster.node("g1")
        s3 = wire.S3(self.cluster.endpoint, self.cluster.access_key, self.cluster.secret_key)
        s3.make_bucket(BUCKET)
        self.assertEqual(self.read_slowly(s3, "kept", 12), OBJECT_BYTES, "within the retention")
        self.assertNotIn("read_cut", gateway.log.read_text(errors="replace"))
        gateway.stop()
        gateway.settings = {"PLINTH__GATEWAY__DEFERRED_DELETE_SECONDS": "1"}
        gateway.start()
        self.cluster.wait_ready([gateway])
        s3 = wire.S3(self.cluster.endpoint, self.cluster.access_key, self.cluster.secret_key)
        self.assertLess(self.read_slowly(s3, "cut", 15), OBJECT_BYTES, "far beyond the retention")
        lines = [line for line in gateway.log.read_text(errors="replace").splitlines() if "read_cut" in line]
        self.assertTrue(lines and '"cut"' in lines[0], f"the log says which read was cut: {lines}")
        self.done()


def readiness(node):
    try:
        with urllib.request.urlopen(url_of(node.health) + "/health/ready", timeout=2) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()
    except OSError as error:
        return str(error)
