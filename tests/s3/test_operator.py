"""The operator's side: the demo and its lines to paste, commands with JSON and exit codes, health and metrics."""

import json
import os
import pathlib
import re
import shutil
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

    def test_a_kept_demo_is_started_again_with_its_data(self):
        folder = self.folder / "kept"
        first = json.loads(self.program(self.plinth, "--output", "json", "demo", "--keep", folder, "--exit-after-selftest"))
        again = subprocess.Popen(
            [self.plinth, "--output", "json", "demo", "--keep", folder], env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, text=True,
        )
        self.addCleanup(again.kill)
        second = json.loads(again.stdout.readline())
        self.assertEqual(second["s3"], first["s3"])
        self.assertNotEqual(second["access_key"], first["access_key"], "secrets are shown once")
        for keys in (first, second):
            s3 = wire.S3(keys["s3"], keys["access_key"], keys["secret_key"])
            self.assertEqual(len(s3.get("demo", "selftest/first")), 8 << 20)
        again.send_signal(signal.SIGTERM)
        self.assertEqual(again.wait(30), 0)
        # A cluster of real nodes is not taken for a demo.
        real = self.folder / "real"
        self.program(self.plinth, "init", "cluster", "--dir", real, "--name", "demo", "--base-port", 31000)
        refused = self.program(self.plinth, "demo", "--keep", real, ok=False)
        self.assertEqual(refused.returncode, 6, refused.stderr)

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


    def test_stopped_nodes_start_again_without_a_majority(self):
        # A folder of its own for the demo's profile: another demo may run on this machine.
        environment = {**self.environment, "XDG_RUNTIME_DIR": str(self.folder)}
        demo = subprocess.Popen(
            [self.plinth, "--output", "json", "demo"], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )
        self.addCleanup(demo.kill)
        self.assertIn("selftest", json.loads(demo.stdout.readline()))

        def asked(*words):
            began = time.monotonic()
            words = [self.plinth, "--demo", "--output", "json", *words]
            done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
            return done.returncode, json.loads(done.stdout or done.stderr), time.monotonic() - began

        # A graceful stop is known at once.
        self.assertEqual(asked("node", "stop", "s1")[0], 0)
        status = asked("status")[1]
        self.assertEqual((status["health"], status["storage_up"]), ("WARN", 5), status["reasons"])
        self.assertEqual(status["reasons"][0]["next"], "plinth --demo node start s1")
        for name in ("m1", "m2"):
            self.assertEqual(asked("node", "stop", name)[0], 0)
        code, status, seconds = asked("status")
        self.assertEqual((code, status["health"], status["authoritative"]), (0, "CRITICAL", False), status)
        self.assertLess(seconds, 4)
        code, refused, seconds = asked("key", "list")
        self.assertEqual((code, refused["code"]), (3, "E1014"), refused)
        self.assertLess(seconds, 4)
        for name in ("m1", "m2", "s1"):
            code, answer, _ = asked("node", "start", name)
            self.assertEqual(code, 0, answer)
        deadline = time.monotonic() + 20
        while asked("status")[1]["health"] != "OK":
            self.assertLess(time.monotonic(), deadline, asked("status")[1])
        demo.send_signal(signal.SIGTERM)
        self.assertEqual(demo.wait(30), 0)


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
        fresh = cluster.command("key", "create", "--account", "root", "--description", "for a test")
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
        # Nobody there: 3. The state is another one: 6. A check found a problem: 8.
        nowhere = {**self.environment, "XDG_RUNTIME_DIR": str(self.folder)}
        asked = subprocess.run([self.plinth, "--demo", "status"], env=nowhere, capture_output=True, text=True, timeout=60)
        self.assertEqual(asked.returncode, 3, asked.stderr)
        node = Server.cluster.node("s1")
        self.assertEqual(self.run_plinth("init", "single", "--data", node.folder).returncode, 6)
        copy = self.folder / "copied"
        shutil.copytree(node.folder, copy, ignore=shutil.ignore_patterns("d0", "data"))
        (copy / "d0").mkdir()
        self.assertEqual(self.run_plinth("config", "check", "--config", copy / "plinth.toml").returncode, 0)
        (copy / "node.key").chmod(0o644)
        self.assertEqual(self.run_plinth("config", "check", "--config", copy / "plinth.toml").returncode, 8)
        # Errors are JSON too where JSON is asked for.
        refused = self.run_plinth("--output", "json", "server", "--config", copy / "plinth.toml")
        self.assertEqual((refused.returncode, json.loads(refused.stderr)["code"]), (2, "E2004"))

    def test_a_token_admits_only_for_its_roles_and_is_not_guessed(self):
        cluster = Server.cluster
        token = cluster.command("cluster", "token", "create", "--roles", "storage")
        file = self.folder / "token"
        file.write_text(token["token"])

        def join(name, role, data, address="127.0.0.1:9"):
            return self.run_plinth(
                "join", "--token-file", file, "--meta", token["meta"], "--roles", role, "--name", name,
                "--data", self.folder / data, "--listen", address, "--health", "127.0.0.1:9",
                *(["--s3", "127.0.0.1:10"] if role == "gateway" else []),
            )

        self.assertEqual(join("odd", "gateway", "odd").returncode, 4, "a token for storage admits no gateway")
        self.assertFalse((self.folder / "odd").exists(), "nothing is left of a refused node")
        file.write_text("plj1.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA." + token["token"].rsplit(".", 1)[1])
        self.assertEqual(join("odd", "storage", "odd").returncode, 4, "a made-up token")
        file.write_text(token["token"].rsplit(".", 1)[0] + "." + "A" * 43)
        self.assertEqual(join("odd", "storage", "odd").returncode, 3, "a token of another cluster's CA reaches nobody")
        self.assertNotIn("odd", [node["name"] for node in cluster.command("node", "list")["items"]])

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
            self.assertTrue(all(name.startswith(("plinth_", "process_")) for name in names), names)


def metric_lines(text):
    """The names of a page of metrics with their types."""
    return {line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")}


class Metrics(OfOurOwn):
    client = "metrics"

    # What a cluster that serves must export, by the table in the operators' documentation, and on which nodes.
    EVERYWHERE = """build_info node_ready health_check rpc_duration_seconds rpc_connections_total rpc_bytes_total
        certificate_expiry_timestamp_seconds certificate_life_ratio fragment_reads_total""".split()
    OF_ROLE = {
        "gateway": "s3_received_bytes_total s3_sent_bytes_total s3_in_flight_requests s3_in_flight_bytes".split(),
        "meta": """raft_groups raft_leader_changes_total raft_failed_proposals_total raft_commit_duration_seconds
            meta_database_bytes meta_free_bytes""".split(),
        "storage": """journal_sync_duration_seconds journal_batch_records disk_state disk_size_bytes disk_used_bytes
            disk_operation_duration_seconds disk_errors_total disk_info disk_write_stop_bytes""".split(),
    }
    # There once something has been asked.
    OF_THE_GATEWAY_IN_USE = "s3_requests_total s3_request_duration_seconds s3_first_byte_seconds".split()
    OF_THE_LEADER = """raft_peer_lag_seconds cluster_health node_state pool_usable_bytes pool_used_bytes fill_in_fragments
        gc_pending_stripes bucket_objects bucket_bytes""".split()

    def page(self, node):
        with urllib.request.urlopen(url_of(node.health) + "/metrics", timeout=5) as answer:
            return answer.read().decode()

    def test_every_node_exports_what_the_documentation_names(self):
        self.s3().put(self.bucket("measured"), "k", b"12345")
        for node in Server.cluster.nodes:
            names = metric_lines(self.page(node))
            wanted = self.EVERYWHERE + self.OF_ROLE[node.role]
            if node.endpoint == Server.endpoint:
                wanted = wanted + self.OF_THE_GATEWAY_IN_USE
            missing = {f"plinth_{name}" for name in wanted} - names.keys()
            self.assertEqual(missing, set(), node.name)
            for name, kind in names.items():
                self.assertTrue(name.startswith(("plinth_", "process_")), name)
                self.assertEqual(name.endswith("_total"), kind == "counter", f"{name} is a {kind}")

    def test_the_leader_exports_the_whole_cluster(self):
        wanted = {f"plinth_{name}" for name in self.OF_THE_LEADER}
        deadline = time.monotonic() + 30
        while True:
            pages = [self.page(node) for node in Server.cluster.of_role("meta")]
            leading = [page for page in pages if "plinth_node_state" in metric_lines(page)]
            if leading and wanted <= metric_lines(leading[0]).keys():
                break
            found = [sorted(wanted - metric_lines(page).keys()) for page in pages]
            self.assertLess(time.monotonic(), deadline, f"missing: {found}")
            time.sleep(0.2)
        # Every code that `status` may show can be alerted on before it has been seen.
        for code in "M101 M102 M103 M104 M105 M106 M107 N201 D201 D202 D203 D204 R301 L401 G501 S203".split():
            self.assertRegex(leading[0], f'plinth_health_check{{code="{code}",severity="(warning|critical)"}} [01]')
        self.assertIn('plinth_cluster_health{state="ok"} 1', leading[0])
        self.assertIn("process_resident_memory_bytes ", leading[0])
        storage = self.page(Server.cluster.node("s1"))
        self.assertIn('plinth_disk_state{disk="s1/d0",state="up"} 1', storage)
        up = [line for line in leading[0].splitlines() if line.startswith("plinth_node_state") and line.endswith(" 1")]
        self.assertEqual(len(up), len(Server.cluster.nodes), up)

    def test_prometheus_own_linter_finds_nothing(self):
        if shutil.which("promtool") is None:
            self.skipTest("promtool: not installed (Debian's package prometheus)")
        for node in Server.cluster.nodes:
            checked = subprocess.run(
                ["promtool", "check", "metrics"], input=self.page(node), capture_output=True, text=True, timeout=30,
            )
            self.assertEqual((checked.returncode, checked.stderr), (0, ""), f"{node.name}: {checked.stdout}")

    def test_the_text_format_holds(self):
        """A strict reader of the exposition format: types before samples, numbers, cumulative buckets."""
        for node in Server.cluster.nodes:
            kinds, last = {}, {}
            for line in self.page(node).splitlines():
                if line.startswith("# TYPE"):
                    _, _, name, kind = line.split()
                    self.assertNotIn(name, kinds, f"{node.name}: {name} is declared twice")
                    kinds[name] = kind
                elif not line.startswith("#"):
                    sample = re.fullmatch(r'([a-z_0-9]+)(\{(?:[a-z_]+="(?:[^"\\]|\\.)*",?)*\})? (\S+)', line)
                    self.assertIsNotNone(sample, f"{node.name}: {line}")
                    name, labels, value = sample.group(1), sample.group(2) or "", float(sample.group(3))
                    family = re.sub(r"_(bucket|sum|count)$", "", name) if name not in kinds else name
                    self.assertIn(family, kinds, f"{node.name}: {line}")
                    if name.endswith("_bucket"):
                        series = name + re.sub(r'le="[^"]*",?', "", labels)
                        self.assertGreaterEqual(value, last.get(series, 0), f"{node.name}: {line}")
                        last[series] = value


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
            self.assert_token_is_used_up(cluster)
            cluster.command("disk", "add", "--create", "s1", cluster.folder / "nodes" / "s1" / "extra")
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

    def assert_token_is_used_up(self, cluster):
        again = self.program(
            self.plinth, "join", "--token-file", cluster.folder / "s7.token", "--roles", "storage", "--name", "s8",
            "--meta", cluster.command("cluster", "token", "create", "--roles", "storage")["meta"],
            "--data", self.folder / "s8", "--listen", "127.0.0.1:9", "--health", "127.0.0.1:9", ok=False,
        )
        self.assertEqual(again.returncode, 4, again.stderr)

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

    def test_a_disk_that_was_added_is_there_after_a_restart(self):
        with Cluster(Server.plinth, meta=1, storage=3, gateway=1) as cluster:
            s3 = wire.S3(cluster.endpoint, cluster.access_key, cluster.secret_key)
            s3.make_bucket("disks")
            content = bytes(range(256)) * 8192
            node = cluster.node("s1")
            told = cluster.command("disk", "add", "--create", "s1", node.folder / "extra")
            self.assertIn("registered", told["message"])
            # Registered before the command returns: it is planned for at once.
            cluster.command("layout", "apply")
            shares = {row["disk"]: row["open_groups"] for row in cluster.command("layout", "show")["disks"]}
            self.assertEqual((len(shares), min(shares.values()) > 0), (4, True), shares)
            for index in range(20):
                s3.put("disks", f"o/{index}", content)
            node.kill()
            node.start()
            cluster.wait_ready([node])
            self.assertEqual(len(node.metric("plinth_disk_used_bytes")), 2, "both disks serve again")
            deadline = time.monotonic() + 60
            while cluster.command("status")["owed_stripes"] > 0:
                self.assertLess(time.monotonic(), deadline, "owed fragments were not filled in")
                time.sleep(0.1)
            for other in cluster.of_role("storage")[1:]:
                other.kill()
            # Now everything comes from the node with the added disk, or is rebuilt from it.
            for index in range(20):
                self.assertEqual(s3.get("disks", f"o/{index}"), content)
            with self.assertRaisesRegex(ClusterError, "exit 6"):
                cluster.command("disk", "add", "--create", "s1", node.folder / "extra")
            with self.assertRaisesRegex(ClusterError, "exit 5"):
                cluster.command("disk", "add", "s9", "/nowhere")
            with self.assertRaisesRegex(ClusterError, "exit 2"):
                cluster.command("disk", "add", "s1", "relative/path")


class GrowthOfOne(OfOurOwn):
    client = "growth of a single node"

    def test_one_node_becomes_a_cluster_that_no_longer_needs_it_to_vote(self):
        with Cluster(Server.plinth, single=True) as cluster:
            s3 = wire.S3(cluster.endpoint, cluster.access_key, cluster.secret_key)
            s3.make_bucket("growth")
            content = bytes(range(256)) * 8192
            s3.put("growth", "one", content)
            first = cluster.node("n1")
            for end in (first.kill, first.stop):
                end()
                cluster.start([first])
                self.assertEqual(s3.get("growth", "one"), content)
            self.assertEqual(cluster.command("status")["code"], "1+0")

            for name in ("s2", "s3"):
                cluster.join(name, "storage")
            self.wait_for_disks(cluster, 3)
            cluster.command("layout", "apply")
            self.assertEqual(cluster.command("status")["code"], "1+2")
            self.assertEqual(s3.get("growth", "one"), content, "written as 1+0")
            s3.put("growth", "three", content)

            for name in ("m2", "m3"):
                cluster.join(name, "meta")
                cluster.command("raft", "add", name)
            s3.put("growth", "voters", content)
            # The founder leads, or may lead: it gives leadership away first.
            cluster.command("raft", "remove", "n1")
            self.assertEqual(cluster.command("status")["voters"], 2)
            # It still is a gateway and a storage node, and finds the new voters although its configuration does not name them.
            first.kill()
            cluster.start([first])
            for key in ("one", "three", "voters"):
                self.assertEqual(s3.get("growth", key), content, key)
            s3.put("growth", "last", content)

    def wait_for_disks(self, cluster, count):
        deadline = time.monotonic() + 30
        while len([disk for disk in cluster.command("disk", "list")["items"] if disk["state"] == "UP"]) < count:
            self.assertLess(time.monotonic(), deadline, f"no {count} disks: {cluster.command('disk', 'list')}")
            time.sleep(0.2)
