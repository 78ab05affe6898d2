"""Nodes whose addresses change: copied to other machines, moved one by one, started where another node is."""

import json
import pathlib
import re
import time

import wire
from cluster import Cluster, ClusterError
from suite import Server
from test_operator import OfOurOwn

WAIT_SECONDS_MAX = 60
CONTENT = bytes(range(256)) * 4096


def listen_of(node):
    """Where a node listens for other nodes, by its configuration."""
    return re.search(r'\[transport\]\nlisten = "([^"]+)"', pathlib.Path(node.config).read_text()).group(1)


def move(cluster, node, told=()):
    """Gives a node another node-to-node address; of the others only `told` (files) hear of it. Returns the new address."""
    old, new = listen_of(node), f"127.0.0.1:{cluster.free_port()}"
    for file in {str(node.config), *map(str, told)}:
        path = pathlib.Path(file)
        path.write_text(path.read_text().replace(f'{old}"', f'{new}"'))
    return new


def move_all(cluster):
    """As an operator does who copies all folders to other machines: every file names the new addresses."""
    files = [node.config for node in cluster.nodes] + [cluster.profile]
    return {node.name: move(cluster, node, files) for node in cluster.nodes}


class Moves(OfOurOwn):
    client = "moved nodes"

    def wait_for(self, what, probe):
        deadline, last = time.monotonic() + WAIT_SECONDS_MAX, None
        while True:
            try:
                last = probe()
                if last is True:
                    return
            except ClusterError as error:
                last = error
            self.assertLess(time.monotonic(), deadline, f"never happened: {what}; last: {last}")
            time.sleep(0.2)

    def is_known_at(self, cluster, addresses):
        nodes = {node["name"]: node for node in cluster.command("node", "list")["items"]}
        wrong = {name: nodes[name] for name, address in addresses.items()
                 if (nodes[name]["address"], nodes[name]["state"]) != (address, "UP")}
        return wrong or True

    def is_noted(self, cluster, node, address):
        registry = cluster.command("config", "check", "--config", node.config)["registry"]
        return address in json.dumps(registry.get("notes", [])) or registry

    def test_copied_configurations_form_a_cluster_and_move_again_with_their_data(self):
        cluster = Cluster(Server.plinth, meta=3, storage=3, gateway=1)
        addresses = move_all(cluster)
        with cluster:
            s3 = wire.S3(cluster.endpoint, cluster.access_key, cluster.secret_key)
            self.wait_for("every node at its first address", lambda: self.is_known_at(cluster, addresses))
            s3.make_bucket("moved")
            s3.put("moved", "k", CONTENT)
            for node in cluster.nodes:
                node.stop()
            addresses = move_all(cluster)
            cluster.start(cluster.nodes)
            self.wait_for("every node at its second address", lambda: self.is_known_at(cluster, addresses))
            self.assertEqual(s3.get("moved", "k"), CONTENT)
            s3.put("moved", "k2", CONTENT)
            status = cluster.command("status")
            self.assertEqual((status["voters_up"], status["storage_up"]), (3, 3), status)

    def test_nodes_that_move_alone_are_found_and_the_profile_follows_the_voters(self):
        with Cluster(Server.plinth, meta=3, storage=3, gateway=1) as cluster:
            s3 = wire.S3(cluster.endpoint, cluster.access_key, cluster.secret_key)
            s3.make_bucket("moved")
            s3.put("moved", "k", CONTENT)
            for name in ["s1", "m1", "m2", "m3"]:
                node = cluster.node(name)
                node.stop()
                address = move(cluster, node)
                # The voters that are left may be electing a leader.
                self.wait_for("the check tells the new address", lambda: self.is_noted(cluster, node, address))
                node.start()
                self.wait_for(f"{name} at {address}", lambda: self.is_known_at(cluster, {name: address}))
                cluster.wait_ready([node])
                self.wait_for("all voters", lambda: cluster.command("status")["voters_up"] == 3)
            s3.put("moved", "k2", CONTENT)
            # A gateway that knew only the old addresses at its founding finds the voters of now; so does an operator.
            gateway = cluster.node("g1")
            gateway.kill()
            cluster.start([gateway])
            self.assertEqual(s3.get("moved", "k2"), CONTENT)
            cluster.command("key", "list")

    def test_an_address_that_another_node_has_is_refused(self):
        with Cluster(Server.plinth, meta=1, storage=1, gateway=1) as cluster:
            taken = listen_of(cluster.node("m1"))
            token = cluster.command("cluster", "token", "create", "--roles", "storage")
            file = self.folder / "token"
            file.write_text(token["token"])

            def join(listen, wanted):
                return cluster.command(
                    "join", "--token-file", file, "--meta", token["meta"], "--roles", "storage", "--name", "s2",
                    "--data", self.folder / "s2", "--listen", listen, "--health", f"127.0.0.1:{cluster.free_port()}",
                    wanted=wanted,
                )

            refused = join(taken, 6)
            self.assertIn("m1", refused["message"])
            self.assertFalse((self.folder / "s2").exists(), "nothing is left of a refused node")
            # The token was not used up.
            join(f"127.0.0.1:{cluster.free_port()}", 0)
            # The same mistake in a configuration is found by its check.
            config = pathlib.Path(cluster.node("s1").config)
            text = config.read_text()
            config.write_text(text.replace(listen_of(cluster.node("s1")), taken))
            found = self.program(self.plinth, "config", "check", "--config", config, ok=False)
            self.assertEqual(found.returncode, 8, found.stderr)
            self.assertIn("is the address of m1", found.stderr)
            config.write_text(text)
