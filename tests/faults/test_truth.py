"""What a small cluster says of itself while it is hurt: `status`, `node list`, `/health/ready` and the logs tell the truth
within seconds, and what they tell to do works when it is pasted.

One table: a row for each way to hurt a cluster. Each row gets a cluster of its own.
"""

import dataclasses
import os
import re
import shutil
import subprocess
import time
import typing

import wire
from cluster import Cluster
from faults import FaultTest, Under

TRUTH_SECONDS_MAX = 15.0
# A node that stops in good order says so; nobody waits for its silence.
GOODBYE_SECONDS_MAX = 3.0
# A look at a cluster without a majority, the start of the program included.
LOOK_SECONDS_MAX = 4.0
REMEDY_SECONDS_MAX = 60.0
MIB = 1 << 20
LARGE = bytes(range(256)) * (8 * MIB // 256)
BUCKET = "truth"


@dataclasses.dataclass
class Row:
    """A way to hurt a cluster, and what must be said then."""

    name: str
    hurt: typing.Callable
    health: str
    codes: set
    voters: tuple = (3, 1)  # That take part, and that may be lost more.
    works: tuple = (True, True)  # Reads, and writes of any size.
    stops: dict = dataclasses.field(default_factory=dict)  # Node: what would stop with it.
    states: dict = dataclasses.field(default_factory=dict)  # Node: its state in the list.
    ready: dict = dataclasses.field(default_factory=dict)  # Node: its mode.
    log: dict = dataclasses.field(default_factory=dict)  # Node: a pattern that its log has.
    remedy: tuple = ()  # Codes whose advice is carried out.
    finish: typing.Callable = None  # What the advice leaves to do.
    whole: str = "OK"  # Health afterwards.
    seconds: float = TRUTH_SECONDS_MAX
    shape: dict = dataclasses.field(default_factory=lambda: {"meta": 3, "storage": 5, "gateway": 1})


def of(*names, end="kill"):
    """Ends processes."""
    def hurt(test):
        for name in names:
            getattr(test.cluster.node(name), end)()
    return hurt


def roll_back_voter(test):
    """m3 comes back with the folder that it had before it took part in some writes."""
    node = test.cluster.node("m3")
    node.stop()
    image = test.cluster.folder / "m3.image"
    shutil.copytree(node.folder, image)
    node.start()
    test.cluster.wait_ready([node])
    for index in range(50):
        test.s3.put(BUCKET, f"later/{index}", b"after the image was taken")
    node.stop()
    shutil.rmtree(node.folder)
    shutil.copytree(image, node.folder)
    node.start()


def wipe_voter(test):
    node = test.cluster.node("m3")
    node.stop()
    shutil.rmtree(meta_folder(node))
    node.start()


def meta_folder(node):
    """Where a metadata node keeps log and databases."""
    return next(path for path in (node.folder / "meta", node.folder / "data" / "meta") if path.exists())


def join_in_place_of_m3(test):
    """The last of a replacement's steps, as the token's answer says: join, start, and make it a voter."""
    test.cluster.node("m3").stop()
    test.cluster.join("m4", "meta")
    test.cluster.command("raft", "add", "m4")


def wipe_disk(test):
    node = test.cluster.node("s1")
    node.stop()
    for path in (node.folder / "d0").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    node.start()


def wipe_disk_and_memory(test):
    """The same, and the node has forgotten that it had a disk: it makes a new one."""
    node = test.cluster.node("s1")
    node.stop()
    for path in (node.folder / "d0").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in node.folder.rglob("disks.toml"):
        path.unlink()
    node.start()


def wiped_disk_takes_no_groups(test):
    disks = {disk["name"]: disk for disk in test.cluster.command("disk", "list")["items"]}
    test.assertEqual(disks["s1/d0"]["state"], "DOWN", "a wiped disk is not up")
    down = disks["s1/d0"]["groups"]
    test.cluster.command("layout", "apply", "--skip-down")
    shares = {row["disk"]: row["open_groups"] for row in test.cluster.command("layout", "show")["disks"]}
    test.assertEqual(shares["s1/d0"], 0, f"the wiped disk is in new groups (before: {down})")
    test.assertGreater(shares["s1/d1"], 0, "the new disk is used")


def admit_voter_only(test):
    """A voter that was admitted and never started is to vote: refused, and nothing changes."""
    test.cluster.admit("m4", "meta")
    began = time.monotonic()
    done = subprocess.run(test.plinth("raft", "add", "m4"), capture_output=True, text=True, timeout=60)
    test.assertEqual(done.returncode, 6, done.stdout + done.stderr)
    test.assertLess(time.monotonic() - began, 10, "a node that does not answer is refused soon")
    test.assertRegex(done.stderr, r"m4 was not added: m\d does not reach it")
    groups = test.cluster.command("raft", "status")["items"]
    test.assertTrue(all("m4" not in group["voters"] + group["learners"] for group in groups), groups)


def start_and_add(test):
    node = test.cluster.node("m4")
    test.cluster.start([node])
    test.cluster.command("raft", "add", "m4")
    groups = test.cluster.command("raft", "status")["items"]
    test.assertTrue(all("m4" in group["voters"] for group in groups), groups)


def fill_disks(test):
    for index in range(200):
        try:
            test.s3.put(BUCKET, f"fill/{index}", LARGE)
        except (wire.Refused, wire.Unknown) as refused:
            print(f"    after {index} objects: {refused}", flush=True)
            return
    test.fail("the disks never got full")


def add_a_disk_to_each(test):
    for node in test.cluster.of_role("storage"):
        test.cluster.command("disk", "add", "--create", node.name, node.folder / "d1")
    test.cluster.command("layout", "apply", "--skip-down")


ALL = {"reads", "writes"}
NONE = set()
ROWS = [
    Row("nothing", lambda test: None, "OK", set(),
        stops={"m1": NONE, "s1": NONE, "g1": {"service"}}, ready={"g1": "read-write", "m1": "read-write", "s1": "read-write"}),
    Row("voter stopped", of("m3", end="stop"), "CRITICAL", {"M102", "M108"}, voters=(2, 0),
        stops={"m1": ALL, "m2": ALL, "s1": NONE}, states={"m3": "DOWN"}, ready={"m3": None, "g1": "read-write"},
        remedy=("M108",), seconds=GOODBYE_SECONDS_MAX),
    Row("voter killed", of("m3"), "CRITICAL", {"M102", "M108"}, voters=(2, 0),
        stops={"m1": ALL, "m2": ALL}, states={"m3": "SILENT|SUSPECT|DOWN"}, remedy=("M108",)),
    Row("voter rolled back", roll_back_voter, "CRITICAL", {"M102", "M110"}, voters=(2, 0),
        stops={"m1": ALL, "m2": ALL, "m3": NONE}, states={"m3": "REFUSED"}, ready={"m3": "none", "g1": "read-write"},
        log={"m3": r"refused.*plinth raft remove m3", "m1|m2": r"rolled back.*plinth raft remove m3"},
        remedy=("M110",), finish=join_in_place_of_m3),
    Row("voter wiped", wipe_voter, "CRITICAL", {"M102", "M110"}, voters=(2, 0),
        stops={"m1": ALL, "m2": ALL}, states={"m3": "REFUSED"}, ready={"m3": "none"},
        log={"m3": r"it was wiped.*plinth raft remove m3"}, remedy=("M110",), finish=join_in_place_of_m3),
    Row("voter never started", admit_voter_only, "OK", set(), stops={"m1": NONE}, finish=start_and_add, voters=(3, 1)),
    Row("storage node stopped", of("s1", end="stop"), "WARN", {"N201"},
        stops={"s2": {"writes"}, "s3": {"writes"}, "m1": NONE}, states={"s1": "DOWN"}, ready={"s1": None, "g1": "read-write"},
        remedy=("N201",), seconds=GOODBYE_SECONDS_MAX),
    Row("three storage nodes stopped", of("s1", "s2", "s3", end="stop"), "CRITICAL", {"S203", "D202"}, works=(True, False),
        ready={"g1": "read-only", "s4": "read-only"}, log={"g1": r"not ready.*S203|S203.*not ready"},
        remedy=("N201",), seconds=GOODBYE_SECONDS_MAX),
    Row("two storage nodes of five killed", of("s1", "s2"), "CRITICAL", {"S203"}, works=(True, False),
        stops={"s3": ALL, "s1": NONE}, ready={"g1": "read-only"}, log={"g1": r"S203"}, remedy=("N201",)),
    Row("disk wiped", wipe_disk, "WARN", {"D201", "S206"}, stops={"s2": {"writes"}}, states={"s1": "UP"},
        ready={"s1": "none", "g1": "read-write"}, log={"s1": r"plinth disk add s1"}, remedy=("D201",),
        finish=wiped_disk_takes_no_groups, whole="WARN"),
    Row("disk wiped and forgotten", wipe_disk_and_memory, "WARN", {"D201"}, stops={"s2": {"writes"}}, states={"s1": "UP"},
        log={"s1": r"disk is missing"}, finish=wiped_disk_takes_no_groups, whole="WARN"),
    Row("only gateway stopped", of("g1", end="stop"), "CRITICAL", {"G501"}, states={"g1": "DOWN"}, ready={"g1": None},
        remedy=("G501",), seconds=GOODBYE_SECONDS_MAX),
    Row("majority lost", of("m1", "m2"), "CRITICAL", {"M106", "M102", "M108"}, voters=(1, 0), works=(False, False),
        stops={"m3": ALL}, states={"m1": "SILENT", "m2": "SILENT"}, ready={"g1": "none", "m3": "none", "s1": "none"},
        log={"g1": r"S202", "m3": r"S202", "s1": r"S202"}, remedy=("M108",)),
    Row("majority silent", of("m1", "m2", end="pause"), "CRITICAL", {"M106"}, voters=(1, 0), works=(False, False),
        ready={"g1": "none"}, finish=lambda test: of("m1", "m2", end="resume")(test)),
    Row("disks full", fill_disks, "CRITICAL", {"S203", "D204"}, works=(True, False), ready={"g1": "read-only"},
        log={"g1": r"S203"}, finish=add_a_disk_to_each, whole="CRITICAL|WARN",
        shape={"meta": 1, "storage": 3, "gateway": 1, "options": ["--segment-mib", 64, "--capacity-mib", 640]}, voters=(1, 0)),
]


class Truth(FaultTest):
    client = "what a hurt cluster says of itself"

    def setUp(self):
        self.failed = True

    def test_every_wound_is_told_and_its_remedy_works(self):
        pattern = os.environ.get("PLINTH_ROW", "")
        for row in ROWS:
            if not re.search(pattern, row.name):
                continue
            with self.subTest(row.name):
                self.check(row)

    def check(self, row):
        with Cluster(Under.plinth, **row.shape) as self.cluster:
            self.s3 = wire.S3(self.cluster.endpoint, self.cluster.access_key, self.cluster.secret_key, attempts=2)
            self.s3.make_bucket(BUCKET)
            self.s3.put(BUCKET, "before", LARGE)
            self.wait_for(lambda: [] if self.look(row)["status"]["health"] == "OK" else ["not OK yet"], 30)
            self.logs = {node.name: node.log.stat().st_size for node in self.cluster.nodes}
            row.hurt(self)
            began = time.monotonic()
            self.wait_for(lambda: self.lies(row), row.seconds)
            told = time.monotonic() - began
            self.check_that_it_is_so(row)
            self.carry_out(row)
            began = time.monotonic()
            self.wait_for(lambda: self.not_whole(row), REMEDY_SECONDS_MAX)
            print(f"    {row.name}: told after {told:.1f} s, whole after {time.monotonic() - began:.1f} s", flush=True)

    def wait_for(self, problems, seconds):
        """Polls until nothing is wrong."""
        deadline = time.monotonic() + seconds
        while True:
            found = problems()
            if not found:
                return
            if time.monotonic() > deadline:
                self.fail(f"after {seconds} s: " + "\n".join(map(str, found)))
            time.sleep(0.1)

    def plinth(self, *words):
        return [self.cluster.plinth, "--profile", self.cluster.profile, *map(str, words)]

    def look(self, row):
        began = time.monotonic()
        facts = {"status": self.cluster.command("status"), "nodes": self.cluster.command("node", "list")["items"]}
        facts["seconds"] = time.monotonic() - began
        return facts

    def lies(self, row):
        """What is said and is not so."""
        facts, wrong = self.look(row), []
        status, nodes = facts["status"], {node["name"]: node for node in facts["nodes"]}

        def expect(what, found, wanted):
            if found != wanted:
                wrong.append(f"{what}: {found}, wanted {wanted}")

        codes = {reason["code"] for reason in status["reasons"]}
        expect("health", status["health"], row.health)
        if not row.codes <= codes or (not row.codes and codes):
            wrong.append(f"codes: {status['reasons']}, wanted {row.codes}")
        expect("voters", (status["voters_up"], status["can_lose"]), row.voters)
        expect("reads and writes", (status.get("reads"), status.get("writes")), row.works)
        expect("authoritative", status.get("authoritative"), row.works[0])
        for name, stops in row.stops.items():
            expect(f"what stops with {name} ({nodes[name]['reason']})", set(nodes[name].get("stops", ["unsaid"])), stops)
        for name, state in row.states.items():
            if nodes[name]["state"] not in state.split("|"):
                wrong.append(f"state of {name}: {nodes[name]['state']}, wanted {state}")
        for name, mode in row.ready.items():
            wrong += self.readiness_lies(self.cluster.node(name), mode)
        for names, pattern in row.log.items():
            if not any(re.search(pattern, self.new_log(name)) for name in names.split("|")):
                wrong.append(f"log of {names}: no {pattern}")
        # Two looks.
        if facts["seconds"] > 2 * LOOK_SECONDS_MAX:
            wrong.append(f"two looks took {facts['seconds']:.1f} s")
        return wrong

    def readiness_lies(self, node, mode):
        if mode is None:
            return [] if node.readiness() is None else [f"{node.name} answers"]
        wrong = []
        for asked, wanted in [(None, mode == "read-write"), ("write", mode == "read-write"), ("read", mode != "none")]:
            answer = node.readiness(asked)
            if answer is None or (answer[0] == 200) != wanted or answer[1]["mode"] != mode:
                wrong.append(f"readiness of {node.name} for {asked}: {answer}, wanted {mode}")
            elif mode != "read-write" and not answer[1]["reasons"]:
                wrong.append(f"readiness of {node.name} gives no reason")
        return wrong

    def new_log(self, name):
        with open(self.cluster.node(name).log, errors="replace") as log:
            log.seek(self.logs[name])
            return log.read()

    def check_that_it_is_so(self, row):
        """The verdict against the deed: what is said to work works, and what is said not to work does not."""
        reads, writes = row.works
        gateway = self.cluster.node("g1")
        if not gateway.is_running():
            return
        if writes:
            self.s3.put(BUCKET, "during", LARGE)
        else:
            with self.assertRaises((wire.Refused, wire.Unknown)):
                self.s3.put(BUCKET, "during", LARGE)
        if reads and "D202" not in row.codes and "S206" not in row.codes:
            self.assertEqual(self.s3.get(BUCKET, "before"), LARGE)

    def carry_out(self, row):
        reasons = self.look(row)["status"]["reasons"]
        for code in row.remedy:
            found = [reason for reason in reasons if reason["code"] == code]
            self.assertTrue(found, f"no {code} in {reasons}")
            for reason in found:
                self.paste(reason["next"])
        if row.finish:
            row.finish(self)

    def paste(self, text):
        """Does what `next` says: starts a node, or runs the line as it stands."""
        started = re.match(r"start (\w+)", text)
        if started:
            self.cluster.node(started.group(1)).start()
            return
        folder = os.path.dirname(self.cluster.plinth)
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PLINTH_PROFILE": self.cluster.profile}
        done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, f"{text}\n{done.stdout}{done.stderr}")

    def not_whole(self, row):
        status = self.cluster.command("status")
        wrong = []
        if not re.fullmatch(row.whole, status["health"]) or not (status["reads"] and status["writes"]):
            wrong.append(status)
        for node in self.cluster.nodes:
            if node.is_running() and not node.is_ready():
                wrong.append(f"{node.name} is not ready: {node.readiness()}")
        if not wrong:
            self.s3.put(BUCKET, "after", LARGE)
            if self.s3.get(BUCKET, "after") != LARGE:
                wrong.append("other bytes come back")
        return wrong
