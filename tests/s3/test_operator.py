"""The operator's side: the demo and its lines to paste, commands with JSON and exit codes, health and metrics."""

import json
import os
import pathlib
import re
import signal
import subprocess
import time
import unittest
import urllib.request

import wire
from cluster import Cluster, ClusterError, url_of
from suite import PROGRAMS, ClientTest, Server

PROJECT = pathlib.Path(__file__).resolve().parents[2]
DEMO_SECONDS_MAX = 60


class OfOurOwn(ClientTest):
    """Needs the program itself, not only an S3 server."""

    @classmethod
    def setUpClass(cls):
        if Server.plinth is None:
            raise unittest.SkipTest("only an S3 endpoint was given, no plinth program")
        super().setUpClass()
        cls.plinth = str(pathlib.Path(Server.plinth).resolve())


class Demo(OfOurOwn):
    client = "plinth demo"

    def test_it_proves_itself_and_exits_0(self):
        text = self.program(self.plinth, "demo", "--exit-after-selftest")
        self.assertEqual(text.count("✔"), 5, text)

    def test_the_pasted_lines_work_as_they_stand(self):
        environment = {**self.environment, "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
        # Only what a person has who pastes: no credentials from elsewhere.
        environment = {name: value for name, value in environment.items() if not name.startswith("AWS_")}
        demo = subprocess.Popen(
            [self.plinth, "demo"], env=environment, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )
        self.addCleanup(demo.kill)
        lines = []
        for line in demo.stdout:
            lines.append(line.rstrip("\n"))
            if "Break it:" in line:
                break
        start = next((index for index, line in enumerate(lines) if line.strip() == "Paste:"), None)
        self.assertIsNotNone(start, "\n".join(lines))
        pasted = [line.strip() for line in lines[start + 1:-1]]
        self.assertTrue(any("s3 cp README.md" in line for line in pasted), pasted)
        broken = lines[-1].split("Break it:")[1].strip()
        bucket = re.search(r"s3://\S+", " ".join(pasted)).group(0)
        listing = re.search(r"(aws .*?) s3 cp", " ".join(pasted)).group(1) + f" s3 ls {bucket}"
        script = "\n".join(["set -e", *pasted, listing, broken, *pasted[-1:], listing])
        done = subprocess.run(
            ["bash", "-c", script], env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=DEMO_SECONDS_MAX,
        )
        self.assertEqual(done.returncode, 0, f"{script}\n{done.stdout}\n{done.stderr}")
        self.assertEqual(done.stdout.count("README.md\n"), 2, done.stdout)
        demo.send_signal(signal.SIGTERM)
        self.assertEqual(demo.wait(30), 0, "SIGTERM ends a demo gracefully")


class Commands(OfOurOwn):
    client = "operator's commands"

    def run_plinth(self, *words):
        return self.program(self.plinth, *words, ok=False)

    def test_lists_show_the_cluster_as_it_is(self):
        cluster = Server.cluster
        nodes = cluster.command("node", "list")["items"]
        self.assertEqual({node["name"] for node in nodes}, {node.name for node in cluster.nodes})
        self.assertEqual({node["state"] for node in nodes}, {"UP"})
        disks = cluster.command("disk", "list")["items"]
        self.assertEqual(len(disks), len(cluster.of_role("storage")))
        bucket = self.bucket("listed")
        self.s3().put(bucket, "k", b"12345")
        row = next(row for row in cluster.command("bucket", "list")["items"] if row["name"] == bucket)
        self.assertEqual(row["name"], bucket)
        status = cluster.command("status")
        self.assertEqual((status["voters_up"], status["storage_up"], status["code"]), (3, 6, "3+2"))

    def test_keys_are_created_shown_once_and_revoked(self):
        cluster = Server.cluster
        fresh = cluster.command("key", "create", "--description", "for a test")
        bucket = self.bucket("key")
        s3 = wire.S3(Server.endpoint, fresh["access_key"], fresh["secret_key"])
        s3.put(bucket, "mine", b"x")
        listed = cluster.command("key", "list")
        self.assertIn(fresh["access_key"], [row["access_key"] for row in listed["items"]])
        self.assertNotIn(fresh["secret_key"], json.dumps(listed), "a secret is shown once")
        cluster.command("key", "revoke", fresh["access_key"])
        deadline = time.monotonic() + 10
        while True:
            try:
                s3.get(bucket, "mine")
            except wire.Refused as refused:
                self.assertEqual((refused.status, refused.code), (403, "InvalidAccessKeyId"))
                break
            self.assertLess(time.monotonic(), deadline, "a revoked key still reads after 10 s")
            time.sleep(0.1)

    def test_exit_codes_are_an_interface(self):
        self.assertEqual(self.run_plinth("version").returncode, 0)
        self.assertEqual(json.loads(self.program(self.plinth, "--output", "json", "version"))["apiVersion"], "plinth/v1")
        self.assertEqual(self.run_plinth("no-such-command").returncode, 2)
        self.assertEqual(self.run_plinth("status", "--no-such-flag").returncode, 2)
        with self.assertRaisesRegex(ClusterError, "exit 5"):
            Server.cluster.command("key", "revoke", "PLKDOESNOTEXIST00000")

    def test_an_unknown_key_is_refused_with_line_and_nearest(self):
        config = pathlib.Path(Server.cluster.node("g1").config)
        text = config.read_text()
        self.assertEqual(self.run_plinth("config", "check", "--config", config).returncode, 0)
        wrong = self.folder / "wrong.toml"
        wrong.write_text(text.replace("[gateway]", '[gateway]\nregoin = "us-east-1"'))
        line = wrong.read_text().splitlines().index('regoin = "us-east-1"') + 1
        for words in [("config", "check"), ("server",)]:
            done = self.run_plinth(*words, "--config", wrong)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(f"wrong.toml:{line}", done.stderr)
            self.assertIn("region", done.stderr)

    def test_health_and_metrics_answer_without_login(self):
        for node in Server.cluster.nodes:
            for path in ["/health/live", "/health/ready", "/metrics"]:
                with urllib.request.urlopen(url_of(node.health) + path, timeout=5) as answer:
                    self.assertEqual(answer.status, 200, f"{node.name} {path}")
                    content = answer.read().decode()
            self.assertIn("plinth_build_info", content, node.name)
            names = [line.split()[2] for line in content.splitlines() if line.startswith("# TYPE")]
            self.assertTrue(all(name.startswith("plinth_") for name in names), names)


class Growth(OfOurOwn):
    client = "growth in place"

    def test_nodes_disks_and_voters_are_added_and_used(self):
        with Cluster(Server.plinth, meta=3, storage=6, gateway=1) as cluster:
            s3 = wire.S3(cluster.endpoint, cluster.access_key, cluster.secret_key)
            s3.make_bucket("growth")
            content = bytes(range(256)) * 8192
            for index in range(8):
                s3.put("growth", f"before/{index}", content)
            cluster.join("s7", "storage")
            cluster.command("disk", "add", "s1", cluster.folder / "nodes" / "s1" / "extra")
            self.wait_for_disks(cluster, 8)
            cluster.command("layout", "apply")
            shares = cluster.command("layout", "show")["disks"]
            self.assertEqual(len({row["disk"] for row in shares}), 8, f"eight disks, eight names: {shares}")
            self.assertTrue(all(row["open_groups"] > 0 for row in shares), f"a disk is in no group: {shares}")
            cluster.join("m4", "meta")
            cluster.command("raft", "add", "m4")
            after = self.write_until_used(cluster, s3, content)
            # Four voters bear one loss; the new one must carry its weight when an old one is gone.
            cluster.command("raft", "remove", "m1")
            cluster.node("m1").kill()
            for prefix, count in [("before", 8), ("after", after)]:
                for index in range(count):
                    self.assertEqual(s3.get("growth", f"{prefix}/{index}"), content)
            s3.put("growth", "last", b"written with the new voter")

    def wait_for_disks(self, cluster, count):
        """A storage node tells the cluster of its disks with its next heartbeat."""
        deadline = time.monotonic() + 30
        while len([disk for disk in cluster.command("disk", "list")["items"] if disk["state"] == "UP"]) < count:
            self.assertLess(time.monotonic(), deadline, f"no {count} disks: {cluster.command('disk', 'list')}")
            time.sleep(0.2)

    def write_until_used(self, cluster, s3, content):
        """Writes until every disk holds something; returns how many objects that took. Gateways learn of a new
        placement within seconds."""
        deadline, count = time.monotonic() + 30, 0
        while True:
            s3.put("growth", f"after/{count}", content)
            count += 1
            used = {node.name: node.metric("plinth_disk_used_bytes") for node in cluster.of_role("storage")}
            self.assertEqual((len(used["s1"]), len(used["s7"])), (2, 1), used)
            if all(value > 0 for values in used.values() for value in values):
                return count
            self.assertLess(time.monotonic(), deadline, f"after {count} objects a disk holds nothing: {used}")
