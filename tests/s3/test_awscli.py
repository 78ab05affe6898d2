"""The AWS command line, both generations: PyPI's v1 with CRC trailers, Debian's v2 with Content-MD5 and no trailers."""

import json
import os

from suite import BIG_BYTES, PROGRAMS, SIZES, ClientTest, Server, require


# Modification time of files that are synchronised, in seconds since 1970.
A_WHILE_AGO = 1_700_000_000


class AwsTests:
    """Facts that hold for both; the subclasses name the program."""

    def aws(self, *words, ok=True):
        return self.program(self.path, "--endpoint-url", Server.endpoint, *words, ok=ok)

    def test_every_size_comes_back_identical(self):
        bucket = self.bucket("sizes")
        for size in [*SIZES, BIG_BYTES]:
            self.file(f"up/{size}", size)
        self.aws("s3", "cp", "--recursive", "--no-progress", self.folder / "up", f"s3://{bucket}/a")
        self.aws("s3", "cp", "--recursive", "--no-progress", f"s3://{bucket}/a", self.folder / "down")
        self.assertSameTree(self.folder / "up", self.folder / "down")

    def test_sync_brings_a_tree_there_and_back(self):
        bucket = self.bucket("sync")
        for index in range(40):
            path = self.file(f"tree/d{index % 4}/f {index}+&ü.bin", index * 501)
            # S3 shows whole seconds: a file written within the second of its upload would look newer than its object.
            os.utime(path, (A_WHILE_AGO, A_WHILE_AGO))
        up = self.aws("s3", "sync", "--no-progress", self.folder / "tree", f"s3://{bucket}/t")
        self.assertEqual(up.count("upload:"), 40)
        again = self.aws("s3", "sync", "--no-progress", self.folder / "tree", f"s3://{bucket}/t")
        self.assertEqual(again, "", "an equal tree is not sent again")
        self.aws("s3", "sync", "--no-progress", f"s3://{bucket}/t", self.folder / "back")
        self.assertSameTree(self.folder / "tree", self.folder / "back")

    def test_copies_stay_on_the_server(self):
        bucket, other = self.bucket("from"), self.bucket("to")
        source = self.file("original", 21 << 20)
        self.aws("s3", "cp", "--no-progress", source, f"s3://{bucket}/x")
        # Above the CLI's threshold of 8 MiB this is a multipart upload with UploadPartCopy.
        self.aws("s3", "cp", "--no-progress", f"s3://{bucket}/x", f"s3://{other}/y")
        self.aws("s3", "mv", "--no-progress", f"s3://{other}/y", f"s3://{other}/z")
        self.aws("s3", "cp", "--no-progress", f"s3://{other}/z", self.folder / "copy")
        self.assertSameFile(source, self.folder / "copy")
        self.assertEqual(self.aws("s3", "ls", f"s3://{other}/").split()[-1], "z")

    def test_listing_pages_and_folders(self):
        bucket = self.bucket("list")
        for index in range(12):
            self.file(f"many/a{index // 6}/{index:02}", 10)
        self.aws("s3", "cp", "--recursive", "--no-progress", self.folder / "many", f"s3://{bucket}/")
        page = json.loads(self.aws(
            "s3api", "list-objects-v2", "--bucket", bucket, "--page-size", "5", "--output", "json"))
        self.assertEqual([row["Key"] for row in page["Contents"]], [f"a{i // 6}/{i:02}" for i in range(12)])
        tops = json.loads(self.aws(
            "s3api", "list-objects-v2", "--bucket", bucket, "--delimiter", "/", "--output", "json"))
        self.assertEqual([row["Prefix"] for row in tops["CommonPrefixes"]], ["a0/", "a1/"])

    def test_ranges_heads_and_missing_keys(self):
        bucket = self.bucket("head")
        source = self.file("ranged", 300_000)
        self.aws("s3", "cp", "--no-progress", source, f"s3://{bucket}/r", "--metadata", "colour=blue")
        head = json.loads(self.aws("s3api", "head-object", "--bucket", bucket, "--key", "r", "--output", "json"))
        self.assertEqual((head["ContentLength"], head["Metadata"]), (300_000, {"colour": "blue"}))
        part = self.folder / "part"
        self.aws("s3api", "get-object", "--bucket", bucket, "--key", "r", "--range", "bytes=65000-131071", part)
        self.assertEqual(part.read_bytes(), source.read_bytes()[65000:131072])
        missing = self.aws("s3api", "get-object", "--bucket", bucket, "--key", "none", part, ok=False)
        self.assertNotEqual(missing.returncode, 0)
        self.assertIn("NoSuchKey", missing.stderr)

    def test_a_bucket_goes_with_all_its_objects(self):
        bucket = f"{self.bucket('made')}-2"
        self.aws("s3", "mb", f"s3://{bucket}")
        self.file("gone/a", 5)
        self.file("gone/b", 9_000_000)
        self.aws("s3", "cp", "--recursive", "--no-progress", self.folder / "gone", f"s3://{bucket}/")
        full = self.aws("s3", "rb", f"s3://{bucket}", ok=False)
        self.assertIn("BucketNotEmpty", full.stderr)
        self.aws("s3", "rm", "--recursive", f"s3://{bucket}/")
        self.aws("s3", "rb", f"s3://{bucket}")
        self.assertNotIn(bucket, self.aws("s3", "ls"))


class AwsCliOfPyPI(AwsTests, ClientTest):
    client = "awscli 1.46.3 (PyPI)"
    path = PROGRAMS / "aws"

    @classmethod
    def setUpClass(cls):
        require(cls.path, ["--version"], r"aws-cli/1\.46\.3")
        super().setUpClass()

    def test_checksums_are_stored_and_told(self):
        bucket = self.bucket("sums")
        source, target = self.file("summed", 100_001), self.folder / "summed-back"
        # CRC32C and CRC64NVME need the CLI's C library; test_boto3.py and the Rust SDK send those.
        for algorithm in ["CRC32", "SHA1", "SHA256"]:
            with self.subTest(algorithm=algorithm):
                put = self.aws("s3api", "put-object", "--bucket", bucket, "--key", algorithm, "--body", source,
                               "--checksum-algorithm", algorithm, "--output", "json")
                self.assertIn(f"Checksum{algorithm}", json.loads(put))
                self.aws("s3api", "get-object", "--bucket", bucket, "--key", algorithm, "--checksum-mode", "ENABLED", target)
                self.assertSameFile(source, target)


class AwsCliOfDebian(AwsTests, ClientTest):
    client = "awscli 2.9.19 (Debian)"
    path = "/usr/bin/aws"

    @classmethod
    def setUpClass(cls):
        require(cls.path, ["--version"], r"aws-cli/2\.9\.19")
        super().setUpClass()
