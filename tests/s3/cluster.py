"""A real cluster of separate processes on this machine: 3 metadata nodes, 6 storage nodes, 1 gateway, TLS between them.

`plinth init cluster` writes the configuration, keys and certificates of all nodes; each node is one `plinth server`.
Nodes can be killed, stopped, paused and started one by one; leaving the `with` block ends them and removes their folder
(kept when PLINTH_KEEP is set or when the block ended with an error).
"""

import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

READY_SECONDS_MAX = 60
STOP_SECONDS_MAX = 20
# Small segments: founding a cluster writes them, and these clusters live for minutes.
SEGMENT_MIB = 64
# Ports of one cluster: every node has a few (peers, S3, health).
PORTS_MAX = 60


class ClusterError(Exception):
    """The cluster cannot be founded, started or reached."""


class Node:
    """One process of the cluster."""

    def __init__(self, plinth, folder, facts):
        self.plinth = plinth
        self.name = facts["name"]
        self.config = facts["config"]
        self.health = facts["health"]
        self.endpoint = facts.get("s3")
        self.folder = pathlib.Path(self.config).parent
        self.log = folder / f"{self.name}.log"
        self.process = None
        # Settings on top of the configuration file, from the next start on: PLINTH__SECTION__KEY.
        self.settings = {}

    @property
    def role(self):
        return {"m": "meta", "s": "storage", "g": "gateway", "n": "all"}[self.name[0]]

    @property
    def pid(self):
        return self.process.pid

    def start(self):
        assert not self.is_running(), f"{self.name} runs already"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [self.plinth, "server", "--config", self.config],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **self.settings},
            )

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        """kill -9: the process gets no chance to tidy up."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """A graceful stop; kills, and complains, when it takes too long."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ClusterError(f"{self.name} did not stop within {STOP_SECONDS_MAX} s of SIGTERM") from None

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def is_ready(self):
        try:
            with urllib.request.urlopen(url_of(self.health) + "/health/ready", timeout=2) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def readiness(self, mode=None):
        """Status and page of the node's readiness; None where the node does not answer."""
        query = f"?mode={mode}" if mode else ""
        try:
            with urllib.request.urlopen(url_of(self.health) + "/health/ready" + query, timeout=2) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        except (OSError, urllib.error.URLError):
            return None

    def metric(self, name):
        """The values of a metric, one for each set of labels; none when the node does not export it."""
        try:
            with urllib.request.urlopen(url_of(self.health) + "/metrics", timeout=2) as answer:
                text = answer.read().decode()
        except (OSError, urllib.error.URLError):
            return []
        rows = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
        return [float(row.rsplit(" ", 1)[1]) for row in rows]

    def log_tail(self, lines=15):
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"


class Cluster:
    """All nodes, and how to reach them."""

    def __init__(self, plinth, meta=3, storage=6, gateway=1, single=False, options=(), certificate_lifetime=None):
        self.plinth = str(pathlib.Path(plinth).resolve())
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="plinth-cluster-"))
        self.base_port = free_ports()
        self.ports_given = 0
        self.keep = bool(os.environ.get("PLINTH_KEEP"))
        if single:
            arguments = ["single", "--data", self.folder / "nodes" / "n1", "--port", self.base_port]
        else:
            arguments = ["cluster", "--dir", self.folder / "nodes", "--base-port", self.base_port]
            arguments += ["--meta", meta, "--storage", storage, "--gateway", gateway]
            arguments += options or ["--segment-mib", SEGMENT_MIB]
        if certificate_lifetime:
            arguments += ["--certificate-lifetime", certificate_lifetime]
        command = [self.plinth, "init", *arguments, "--output", "json"]
        founded = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
        if founded.returncode != 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise ClusterError(f"plinth init: exit {founded.returncode}: {founded.stderr.strip()}")
        facts = json.loads(founded.stdout)
        self.endpoint = facts["s3"]
        self.access_key = facts["access_key"]
        self.secret_key = facts["secret_key"]
        self.profile = facts.get("profile", "")
        self.nodes = [Node(self.plinth, self.folder, node) for node in facts["nodes"]]

    def __enter__(self):
        try:
            self.start(self.nodes)
        except BaseException:
            self.close(failed=True)
            raise
        return self

    def __exit__(self, kind, error, trace):
        self.close(failed=kind is not None)

    def node(self, name):
        return next(node for node in self.nodes if node.name == name)

    def of_role(self, role):
        return [node for node in self.nodes if node.role == role]

    def start(self, nodes):
        """Starts nodes all at once and waits until they say that they are ready."""
        for node in nodes:
            node.start()
        self.wait_ready(nodes)

    def wait_ready(self, nodes=None, seconds=READY_SECONDS_MAX):
        deadline = time.monotonic() + seconds
        for node in nodes or self.nodes:
            while not node.is_ready():
                if not node.is_running():
                    raise ClusterError(f"{node.name} ended with {node.process.returncode}:\n{node.log_tail()}")
                if time.monotonic() > deadline:
                    raise ClusterError(f"{node.name} is not ready after {seconds} s:\n{node.log_tail()}")
                time.sleep(0.05)

    def command(self, *words, wanted=0):
        """Runs an operator's command and returns its JSON; any other exit code than `wanted` is an error."""
        command = [self.plinth, "--profile", self.profile, "--output", "json", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode != wanted:
            raise ClusterError(f"plinth {' '.join(map(str, words))}: exit {done.returncode}, wanted {wanted}: {done.stderr}")
        return json.loads(done.stdout if wanted in (0, 8) else done.stderr)

    def free_port(self):
        """A port of this cluster's range that no node has; handed out from its end."""
        self.ports_given += 1
        return self.base_port + PORTS_MAX - self.ports_given

    def join(self, name, *roles):
        """Makes a new node of the running cluster: token, `plinth join`, start, ready."""
        node = self.admit(name, *roles)
        self.start([node])
        return node

    def admit(self, name, *roles):
        """Token and `plinth join` of a new node, which is not started."""
        token = self.command("cluster", "token", "create", "--roles", ",".join(roles))
        file = self.folder / f"{name}.token"
        file.write_text(token["token"])
        health = f"127.0.0.1:{self.free_port()}"
        joined = self.command(
            "join", "--token-file", file, "--meta", token["meta"], "--roles", ",".join(roles), "--name", name,
            "--data", self.folder / "nodes" / name, "--listen", f"127.0.0.1:{self.free_port()}", "--health", health,
            "--segment-mib", SEGMENT_MIB,
        )
        node = Node(self.plinth, self.folder, {"name": name, "config": joined["config"], "health": f"http://{health}"})
        self.nodes.append(node)
        return node

    def kill_all(self):
        """kill -9 of every process, as close to one moment as a loop can be."""
        running = [node for node in self.nodes if node.is_running()]
        for node in running:
            os.kill(node.pid, signal.SIGKILL)
        for node in running:
            node.process.wait()

    def close(self, failed=False):
        for node in self.nodes:
            if node.is_running():
                node.resume()
                node.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS_MAX
        for node in self.nodes:
            if node.process is None:
                continue
            try:
                node.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                node.kill()
        if failed or self.keep:
            print(f"The cluster's folder and logs are kept: {self.folder}", file=sys.stderr)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


def url_of(address):
    return address.rstrip("/") if address.startswith("http") else "http://" + address


def free_ports():
    """The first of PORTS_MAX ports that nobody uses, below those that the kernel gives to clients."""
    for _ in range(100):
        base = random.randrange(11000, 30000, 100)
        if all(is_free(port) for port in range(base, base + PORTS_MAX)):
            return base
    raise ClusterError("no free range of ports found")


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return True
        except OSError:
            return False
