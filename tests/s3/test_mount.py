"""s3fs-fuse: a bucket mounted as a folder, and what people do in folders."""

import os
import shutil
import signal
import subprocess
import time
import unittest

from suite import MIB, ClientTest, Server, require, sha256, tree, write_random

MOUNT_SECONDS_MAX = 20


class S3fs(ClientTest):
    client = "s3fs-fuse (Debian)"

    @classmethod
    def setUpClass(cls):
        if not os.path.exists("/dev/fuse"):
            raise unittest.SkipTest("no /dev/fuse here: nothing can be mounted")
        require(shutil.which("s3fs"), ["--version"], r"V1\.9")
        for program in ("fusermount3", "git", "tar", "sqlite3", "sed", "cp"):
            if shutil.which(program) is None:
                raise unittest.SkipTest(f"{program}: not installed")
        super().setUpClass()
        secret = cls.folder / "passwd"
        secret.write_text(f"{Server.access_key}:{Server.secret_key}\n")
        secret.chmod(0o600)
        cls.secret = secret

    def mount(self, bucket, name="mnt"):
        """Mounts a bucket; it is unmounted when the test ends."""
        folder = self.folder / f"{name}-{bucket}"
        folder.mkdir()
        log = open(self.folder / f"{name}-{bucket}.log", "w+b")
        command = [
            "s3fs", bucket, str(folder), "-f", "-o", f"passwd_file={self.secret}", "-o", f"url={Server.endpoint}",
            "-o", "use_path_request_style", "-o", "retries=1", "-o", f"endpoint={Server.region}", "-o", "dbglevel=err",
        ]
        process = subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + MOUNT_SECONDS_MAX
        while not os.path.ismount(folder):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                log.seek(0)
                text = log.read().decode(errors="replace")[-500:]
                if "fuse" in text and ("permitted" in text or "denied" in text):
                    self.skipTest(f"mounting is not permitted here: {text.strip().splitlines()[-1]}")
                self.fail(f"s3fs does not mount: {text}")
            time.sleep(0.05)
        self.addCleanup(self.unmount, folder, process, log)
        return folder

    def unmount(self, folder, process, log):
        if os.path.ismount(folder):
            subprocess.run(["fusermount3", "-u", "-z", str(folder)], capture_output=True, timeout=60)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        log.close()

    def remounted(self, bucket):
        """The same bucket through another mount, whose caches know nothing."""
        return self.mount(bucket, "again")

    def local_repository(self):
        folder = self.folder / "repository"
        if folder.exists():
            return folder
        git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
        self.program("git", "init", "--quiet", folder)
        for number in range(12):
            (folder / f"d{number % 3}").mkdir(exist_ok=True)
            write_random(folder / f"d{number % 3}/f{number}", 500 * number + 7)
            self.program("git", "add", "--all", folder=folder)
            self.program(*git, "commit", "--quiet", "-m", f"commit {number}", folder=folder)
        return folder

    def test_git_clone_of_a_local_repository(self):
        bucket, source = self.bucket("git"), self.local_repository()
        mounted = self.mount(bucket)
        self.program("git", "clone", "--quiet", "--no-hardlinks", source, mounted / "clone")
        again = self.remounted(bucket) / "clone"
        safe = ["git", "-c", f"safe.directory={again}"]
        self.program(*safe, "fsck", "--strict", folder=again)
        heads = [self.program("git", "-c", "safe.directory=*", "rev-parse", "HEAD", folder=where) for where in (source, again)]
        self.assertEqual(*heads)
        for name, digest in tree(source).items():
            if not name.startswith(".git"):
                self.assertEqual(sha256(again / name), digest, name)

    def test_tar_x_keeps_modes(self):
        # Times are set before tar closes a file, and s3fs 1.90 overwrites them then; `cp -p` sets them after.
        bucket = self.bucket("tar")
        source = self.folder / "source"
        for number in range(20):
            path = self.file(f"source/deep/{number % 4}/file {number}", 3_000 * number)
            os.chmod(path, 0o640 if number % 2 else 0o755)
        # s3fs keeps no mode of a bucket's own root: the archive holds a folder.
        self.program("tar", "cf", self.folder / "a.tar", "-C", self.folder, "source")
        self.program("tar", "xf", self.folder / "a.tar", "-C", self.mount(bucket))
        again = self.remounted(bucket) / "source"
        self.assertSameTree(source, again)
        for name in tree(source):
            self.assertEqual(os.stat(again / name).st_mode & 0o777, os.stat(source / name).st_mode & 0o777, name)

    def test_cp_p_and_a_large_file(self):
        bucket = self.bucket("cp")
        mounted = self.mount(bucket)
        for name, size in (("small", 10), ("empty", 0), ("large", 23 * MIB + 5)):
            path = self.file(name, size)
            os.utime(path, (1_500_000_000, 1_500_000_000))
            self.program("cp", "-p", path, mounted / name)
        again = self.remounted(bucket)
        for name in ("small", "empty", "large"):
            self.assertSameFile(self.folder / name, again / name)
            self.assertEqual(int(os.stat(again / name).st_mtime), 1_500_000_000)

    def test_sed_in_place(self):
        bucket = self.bucket("sed")
        mounted = self.mount(bucket)
        (mounted / "text").write_text("one\ntwo\nthree\n" * 1000)
        self.program("sed", "-i", "s/two/2/", mounted / "text")
        again = self.remounted(bucket)
        self.assertEqual((again / "text").read_text(), "one\n2\nthree\n" * 1000)
        self.assertEqual(os.listdir(again), ["text"], "the temporary file is gone")

    def test_a_sqlite_database(self):
        bucket = self.bucket("sqlite")
        mounted = self.mount(bucket)
        script = "CREATE TABLE t(id INTEGER PRIMARY KEY, word TEXT); BEGIN;"
        script += "".join(f"INSERT INTO t(word) VALUES('word {number}');" for number in range(2000)) + "COMMIT;"
        self.program("sqlite3", mounted / "data.db", script)
        self.program("sqlite3", mounted / "data.db", "UPDATE t SET word = 'changed' WHERE id % 2 = 0;")
        again = self.remounted(bucket) / "data.db"
        self.assertEqual(self.program("sqlite3", again, "PRAGMA integrity_check;").strip(), "ok")
        counted = self.program("sqlite3", again, "SELECT word = 'changed', count(*) FROM t GROUP BY 1;").split()
        self.assertEqual(counted, ["0|1000", "1|1000"])
