"""Certificates that end: renewal under load, nodes that are denied, a cluster that is dark already.

PLINTH_CERTIFICATE_SECONDS: how long certificates are valid in the test under load (24 unless told);
PLINTH_CERTIFICATE_LOAD_SECONDS: how long the load lasts (two renewals and a bit unless told).
"""

import json
import os
import pathlib
import subprocess
import time
import unittest
import urllib.error
import urllib.request

import wire
from cluster import Cluster, url_of
from faults import Under
from load import Load

LIFETIME = float(os.environ.get("PLINTH_CERTIFICATE_SECONDS", "24"))
# Renewal comes at 0.62 to 0.67 of a life, and once more after that.
LOAD_SECONDS = float(os.environ.get("PLINTH_CERTIFICATE_LOAD_SECONDS", str(LIFETIME * 1.6)))
# A denied node's connections end with the next look at the list, which comes with the map.
DENIED_WITHIN_SECONDS = 15
ACKS_MIN = 20


class CertificateTest(unittest.TestCase):
    """A test with a cluster of its own, of as few processes as show the matter."""

    def cluster_of(self, lifetime, **nodes):
        cluster = Cluster(Under.plinth, certificate_lifetime=lifetime, **nodes)
        self.failed = True
        self.addCleanup(lambda: cluster.close(failed=self.failed))
        return cluster

    def done(self):
        self.failed = False

    def until(self, what, seconds, holds):
        deadline = time.monotonic() + seconds
        while not holds():
            self.assertLess(time.monotonic(), deadline, f"not within {seconds} s: {what}")
            time.sleep(0.2)

    def renewals(self, node):
        return node.log.read_text(errors="replace").count('"certificate_taken"')


class Renewal(CertificateTest):
    client = "certificates renewed"

    def test_no_request_fails_while_every_certificate_is_renewed_twice(self):
        cluster = self.cluster_of(f"{LIFETIME:.0f}s", meta=3, storage=5)
        cluster.start(cluster.nodes)
        with Load(cluster, clients=4) as load:
            self.assertTrue(load.wait_for_acks(ACKS_MIN), f"no load: {load.problems()}")
            began = time.monotonic()
            while time.monotonic() < began + LOAD_SECONDS:
                self.assertTrue(load.wait_for_acks(1, seconds=10), f"writes stopped: {load.problems()}")
                time.sleep(0.5)
        for node in cluster.nodes:
            self.assertGreaterEqual(self.renewals(node), 2, f"{node.name} renewed too seldom:\n{node.log_tail()}")
            [ratio] = node.metric("plinth_certificate_life_ratio")
            self.assertLess(ratio, 1.0, node.name)
        refused = {reason: count for client in load.clients for reason, count in client.refusals.items()}
        unknown = [key for client in load.clients for key, state in client.keys.items() if state.maybe]
        problems, count = load.check_everything()
        print(f"    {len(load.acks())} writes over {LOAD_SECONDS:.0f} s, {count} keys, renewals a node "
              f"{[self.renewals(node) for node in cluster.nodes]}", flush=True)
        self.assertEqual((refused, unknown, load.problems(), problems), ({}, [], [], []))
        listed = [row for row in cluster.command("cert", "list")["items"] if row["state"] == "VALID"]
        self.assertEqual({row["owner"] for row in listed} - {"operator (of plinth init)"}, {n.name for n in cluster.nodes})
        self.done()


class Dark(CertificateTest):
    client = "certificates ended"

    def test_a_cluster_whose_certificates_have_ended_comes_back_by_reissue(self):
        cluster = self.cluster_of("16s", meta=1, storage=2)
        cluster.start(cluster.nodes)
        s3 = wire.S3(cluster.endpoint, cluster.access_key, cluster.secret_key)
        s3.make_bucket("dark")
        s3.put("dark", "key", b"kept" * 5000)
        for node in cluster.nodes:
            node.stop()
        time.sleep(17)
        meta, gateway = cluster.of_role("meta")[0], cluster.of_role("gateway")[0]
        checked = subprocess.run(
            [cluster.plinth, "config", "check", "--config", meta.config], capture_output=True, text=True, timeout=30,
        )
        self.assertNotEqual(checked.returncode, 0)
        self.assertIn("plinth cert reissue", checked.stderr)
        for node in cluster.nodes:
            node.start()
        self.until("the gateway says why it is not ready", 20, lambda: "certificate ended" in self.readiness(gateway))
        self.assertIn("certificate_ended", gateway.log.read_text(errors="replace"))
        folders = [word for node in cluster.nodes for word in ("--node", node.folder)]
        words = [cluster.plinth, "cert", "reissue", "--config", meta.config, "--days", "1", *map(str, folders)]
        reissued = subprocess.run([*words, "--output", "json"], capture_output=True, text=True, timeout=30)
        self.assertEqual(reissued.returncode, 0, reissued.stderr)
        self.assertEqual(len(json.loads(reissued.stdout)["items"]), len(cluster.nodes))
        # Nobody starts again: running nodes take the new certificates.
        cluster.wait_ready()
        self.assertEqual(s3.get("dark", "key"), b"kept" * 5000)
        s3.put("dark", "after", b"new")
        self.done()

    def readiness(self, node):
        try:
            with urllib.request.urlopen(url_of(node.health) + "/health/ready", timeout=2) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except (OSError, urllib.error.URLError):
            return ""


class Denied(CertificateTest):
    client = "denied nodes, revoked certificates"

    def test_a_denied_node_is_put_out_and_comes_back_and_a_revoked_operator_does_not(self):
        cluster = self.cluster_of("90d", meta=1, storage=3, gateway=2)
        cluster.start(cluster.nodes)
        s3 = wire.S3(cluster.endpoint, cluster.access_key, cluster.secret_key)
        s3.make_bucket("denied")
        s3.put("denied", "before", b"x" * 300_000)
        second = cluster.of_role("gateway")[1]
        other = wire.S3(second.endpoint, cluster.access_key, cluster.secret_key)
        other.put("denied", "other", b"y")

        cluster.command("node", "deny", "g2")
        self.until("the denied gateway is put out", DENIED_WITHIN_SECONDS, lambda: not second.is_ready())
        impatient = wire.S3(second.endpoint, cluster.access_key, cluster.secret_key, attempts=1)
        with self.assertRaises((wire.Refused, wire.Unknown)):
            impatient.get("denied", "other")
        s3.put("denied", "meanwhile", b"z" * 300_000)
        cluster.command("node", "undeny", "g2")
        cluster.wait_ready([second])
        self.assertEqual(other.get("denied", "meanwhile"), b"z" * 300_000)
        cluster.command("node", "deny", "m1", wanted=1)

        folder = cluster.folder / "mai"
        made = cluster.command("cert", "operator", "mai", "--dir", folder)
        owned = {row["serial"]: row for row in cluster.command("cert", "list")["items"]}
        self.assertEqual((owned[made["serial"]]["owner"], owned[made["serial"]]["state"]), ("operator mai", "VALID"))
        mine = next(row["serial"] for row in owned.values() if row["own"])
        cluster.command("cert", "revoke", mine, wanted=6)

        def as_mai():
            words = [cluster.plinth, "--profile", str(folder / "profile.toml"), "--output", "json", "bucket", "list"]
            return subprocess.run(words, capture_output=True, text=True, timeout=90)

        asked = as_mai()
        self.assertEqual(asked.returncode, 0, asked.stderr)
        cluster.command("cert", "revoke", made["serial"])
        deadline = time.monotonic() + DENIED_WITHIN_SECONDS
        while asked.returncode == 0 and time.monotonic() < deadline:
            asked = as_mai()
        self.assertNotEqual(asked.returncode, 0, f"the revoked operator is not refused: {asked.stdout}")
        self.done()

    def test_a_refused_join_leaves_its_token_good_and_a_withdrawn_one_admits_nobody(self):
        cluster = self.cluster_of("90d", meta=1, storage=1)
        cluster.start(cluster.nodes)
        token = cluster.command("cluster", "token", "create", "--roles", "storage")
        file = cluster.folder / "token"
        file.write_text(token["token"])

        def join(name, roles, folder, wanted):
            return cluster.command(
                "join", "--token-file", file, "--meta", token["meta"], "--roles", roles, "--name", name,
                "--data", cluster.folder / folder, "--listen", f"127.0.0.1:{cluster.free_port()}",
                "--health", f"127.0.0.1:{cluster.free_port()}", "--segment-mib", 64, wanted=wanted,
            )

        join("s1", "storage", "taken", 6)
        join("m2", "meta", "roles", 4)
        join("s2", "storage", "good", 0)
        [used] = cluster.command("cluster", "token", "list")["items"]
        self.assertEqual((used["id"], used["admitted"]), (token["id"], "s2"))
        join("s3", "storage", "again", 4)
        token = cluster.command("cluster", "token", "create", "--roles", "storage")
        file.write_text(token["token"])
        cluster.command("cluster", "token", "revoke", token["id"])
        join("s3", "storage", "withdrawn", 4)
        self.done()
