"""What operators do on purpose and by mistake, and what they are told."""

import hashlib
import json
import time
import urllib.request

import wire
from cluster import Cluster, ClusterError, url_of
from suite import Server
from test_operator import OfOurOwn

WAIT_SECONDS_MAX = 60


def log_lines(node):
    """The JSON lines of a node's log."""
    lines = []
    for line in node.log.read_text(errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            lines.append({"msg": line})
    return lines


class Layout(OfOurOwn):
    client = "placement groups"

    def test_apply_changes_nothing_unasked(self):
        with Cluster(Server.plinth, meta=1, storage=5, gateway=1) as cluster:
            before = self.shares(cluster)
            for _ in range(2):
                done = cluster.command("layout", "apply")
                self.assertEqual((done["changed"], done["groups_added"], done["code"]), (False, 0, "3+2"), done)
            self.assertEqual(self.shares(cluster), before)
            cluster.node("s5").kill()
            deadline = time.monotonic() + WAIT_SECONDS_MAX
            while self.state(cluster, "s5") not in ("SUSPECT", "DOWN"):
                self.assertLess(time.monotonic(), deadline, "a dead node is not told as such")
                time.sleep(0.2)
            done = cluster.command("layout", "apply")
            self.assertEqual((done["changed"], done["code"], done["down_and_kept"]), (False, "3+2", ["s5/d0"]), done)
            refused = cluster.command("layout", "apply", "--skip-down", wanted=6)
            remedy = refused["message"].split("with another code: ")[1].split(". Nothing")[0].split()
            self.assertEqual(remedy[0], "plinth")
            tried = cluster.command(*remedy[1:], "--dry-run")
            self.assertEqual((tried["changed"], tried["dry_run"], tried["code"]), (True, True, "2+2"), tried)
            self.assertEqual(cluster.command("layout", "show")["code"], "3+2")
            done = cluster.command(*remedy[1:])
            self.assertEqual((done["changed"], done["code"], done["left_out"]), (True, "2+2", ["s5/d0"]), done)
            s3 = wire.S3(cluster.endpoint, cluster.access_key, cluster.secret_key)
            s3.make_bucket("four")
            s3.put("four", "k", bytes(8 << 20))


    def state(self, cluster, name):
        return next(row for row in cluster.command("node", "list")["items"] if row["name"] == name)["state"]

    def shares(self, cluster):
        """The placement groups, without the epoch: disks report their figures meanwhile."""
        shown = cluster.command("layout", "show")
        return {name: shown[name] for name in ("code", "open", "closed", "disks")}


class Mistakes(OfOurOwn):
    client = "operator's mistakes"

    def refused(self, *words, code):
        done = self.program(self.plinth, *words, ok=False)
        self.assertEqual(done.returncode, code, f"{words}: {done.stdout}{done.stderr}")
        return done.stderr

    def test_usage_errors_are_json_where_json_is_asked_for(self):
        for words in [("--output", "json", "no-such-command"), ("status", "--output=json", "--nonsense"), ("--output", "json")]:
            error = json.loads(self.refused(*words, code=2))
            self.assertEqual((error["kind"], error["exit"]), ("Error", 2), error)
        self.assertTrue(self.refused("no-such-command", code=2).startswith("error:"))

    def test_config_check_tells_a_wrong_configuration_from_wrong_files(self):
        self.program(self.plinth, "init", "single", "--data", self.folder / "one", "--host", "localhost", "--port", 31100)
        config = self.folder / "one" / "plinth.toml"
        self.assertIn('"127.0.0.1:31100"', config.read_text())
        self.assertIn("does not answer", self.program(self.plinth, "config", "check", "--config", config))
        text = config.read_text()
        config.write_text(text.replace('listen = "127.0.0.1:31100"', 'listen = "nonsense"'))
        self.refused("config", "check", "--config", config, code=2)
        config.write_text(text)
        (self.folder / "one" / "wrapping.key").unlink()
        self.refused("config", "check", "--config", config, code=8)

    def test_mistyped_folders_are_not_made_and_foreign_ones_not_used(self):
        cluster = Server.cluster
        typo, dirty = self.folder / "mnt" / "dsik", self.folder / "dirty"
        with self.assertRaisesRegex(ClusterError, "exit 5.*--create"):
            cluster.command("disk", "add", "s1", typo)
        self.assertFalse(typo.exists())
        dirty.mkdir()
        (dirty / "holiday.jpg").write_text("x")
        with self.assertRaisesRegex(ClusterError, "exit 6.*holds no Plinth disk"):
            cluster.command("disk", "add", "s1", dirty)
        self.assertIn("--create", self.refused("init", "single", "--data", self.folder / "two", "--disk", typo, code=5))
        self.assertFalse((self.folder / "two").exists())

    def test_the_printed_join_line_is_whole_and_a_mistake_costs_no_token(self):
        cluster = Server.cluster
        for roles, flag in [("gateway", "--s3"), ("storage", "--disk"), ("meta,gateway", "--s3")]:
            line = cluster.command("cluster", "token", "create", "--roles", roles)["join"]
            for word in ["--token-file", "--meta", f"--roles {roles}", "--name", "--data", "--listen", "--health", flag]:
                self.assertIn(word, line)
        token = cluster.command("cluster", "token", "create", "--roles", "gateway,storage")
        file = self.folder / "token"
        file.write_text(token["token"])
        base = ["join", "--token-file", file, "--meta", token["meta"], "--name", "x9", "--data", self.folder / "x9",
                "--listen", "127.0.0.1:9", "--health", "127.0.0.1:10"]
        self.assertIn("--s3", self.refused(*base, "--roles", "gateway", code=2))
        self.refused(*base, "--roles", "storage", "--disk", self.folder / "nowhere", code=5)
        self.assertFalse((self.folder / "x9").exists())

    def test_request_lines_say_who_asked_for_what(self):
        bucket = self.bucket("logged")
        self.s3().put(bucket, "some/key", b"x")
        hashed = hashlib.sha256(b"some/key").hexdigest()[:16]
        gateway = next(node for node in Server.cluster.nodes if node.endpoint == Server.endpoint)
        lines = [line for line in log_lines(gateway) if line.get("event") == "s3_request" and line.get("bucket") == bucket]
        line = next(line for line in lines if line["key"] == hashed)
        self.assertEqual((line["source"], line["access_key"]), ("127.0.0.1", Server.access_key))
        self.assertNotIn("some/key", gateway.log.read_text(), "object keys are hashed unless told otherwise")


class Logs(OfOurOwn):
    client = "logs"

    def test_a_voter_that_is_down_fills_no_log(self):
        with Cluster(Server.plinth, meta=3, storage=1, gateway=1) as cluster:
            time.sleep(3)
            cluster.node("m3").kill()
            before = {node.name: len(log_lines(node)) for node in cluster.nodes}
            time.sleep(12)
            for node in cluster.nodes:
                if node.name == "m3":
                    continue
                told = [line for line in log_lines(node)[before[node.name]:] if not str(line.get("event", "")).startswith("s3_")]
                self.assertLess(len(told), 40, f"{node.name}: {json.dumps(told[:50], indent=1)}")
                for line in told:
                    self.assertNotRegex(json.dumps(line), r"Some\(n[0-9]+\)")


class Full(OfOurOwn):
    client = "full disks"

    def test_a_disk_is_told_of_before_it_takes_no_more(self):
        # Sixteen segments, five of which are kept free: writes stop at two thirds.
        with Cluster(Server.plinth, meta=1, storage=1, gateway=1, options=["--segment-mib", 64, "--capacity-mib", 1024]) as cluster:
            s3 = wire.S3(cluster.endpoint, cluster.access_key, cluster.secret_key)
            s3.make_bucket("full")
            disk = cluster.command("disk", "list")["items"][0]
            stop, size = disk["write_stop_bytes"], disk["size_bytes"]
            self.assertLess(stop, size * 70 // 100, disk)
            written, block = 0, bytes(8 << 20)
            while written < stop - size * 4 // 100:
                s3.put("full", f"k{written}", block)
                written += len(block)
            reason = self.wait_for(cluster, "D203")
            self.assertIn("writes stop at", reason["text"])
            self.wait_for_metric(cluster, "D203")
            with self.assertRaises(wire.Refused) as refused:
                while written < size:
                    s3.put("full", f"k{written}", block)
                    written += len(block)
            self.assertEqual(refused.exception.status, 507)
            self.assertLess(abs(written - stop), size * 4 // 100, "where it was said to stop")

    def wait_for(self, cluster, code):
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while True:
            reasons = cluster.command("status")["reasons"]
            found = [reason for reason in reasons if reason["code"] == code]
            if found:
                return found[0]
            self.assertLess(time.monotonic(), deadline, f"no {code}: {reasons}")
            time.sleep(0.5)

    def wait_for_metric(self, cluster, code):
        """The leader's metrics follow its own look at the cluster, every few seconds."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not any(f'"{code}"' in line for line in self.failing(cluster)):
            self.assertLess(time.monotonic(), deadline, f"no {code}: {self.failing(cluster)}")
            time.sleep(0.5)

    def failing(self, cluster):
        """The checks that the leader's metrics show as failing."""
        with urllib.request.urlopen(url_of(cluster.node("m1").health) + "/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return [line for line in lines if line.startswith("plinth_health_check") and line.endswith(" 1")]
