"""S3 over TLS: here, and only here, SDKs send their checksums in trailers of a chunked body."""

import io
import random
import unittest

from suite import BIG_BYTES, FULL, MIB, PROGRAMS, SIZES, ClientTest, Server, require


class OverTls(ClientTest):
    """What both kinds of client need."""

    @classmethod
    def setUpClass(cls):
        if Server.tls_endpoint is None:
            raise unittest.SkipTest("no S3 endpoint with TLS: the runner did not make the cluster")
        super().setUpClass()

    def there_and_back(self, path):
        bucket = self.bucket("tls")
        for size in [*SIZES, BIG_BYTES if FULL else 20 * MIB]:
            self.file(f"up/{size}", size)
        aws = [path, "--endpoint-url", Server.tls_endpoint, "--ca-bundle", Server.tls_authority, "s3", "cp", "--recursive"]
        self.program(*aws, "--no-progress", self.folder / "up", f"s3://{bucket}/a")
        self.program(*aws, "--no-progress", f"s3://{bucket}/a", self.folder / "down")
        self.assertSameTree(self.folder / "up", self.folder / "down")


class AwsCliOfPyPIOverTls(OverTls):
    client = "awscli 1.46.3 (PyPI), TLS"

    def test_every_size_comes_back_identical(self):
        require(PROGRAMS / "aws", ["--version"], r"aws-cli/1\.46\.3")
        self.there_and_back(PROGRAMS / "aws")


class AwsCliOfDebianOverTls(OverTls):
    client = "awscli 2.9.19 (Debian), TLS"

    def test_every_size_comes_back_identical(self):
        require("/usr/bin/aws", ["--version"], r"aws-cli/2\.9\.19")
        self.there_and_back("/usr/bin/aws")


class Boto3OverTls(OverTls):
    client = "boto3 1.44.5, TLS"

    def test_trailers_are_verified_stored_and_told(self):
        import boto3

        bucket, seen = self.bucket("tls"), []
        api = boto3.client(
            "s3", endpoint_url=Server.tls_endpoint, verify=str(Server.tls_authority), region_name=Server.region,
            aws_access_key_id=Server.access_key, aws_secret_access_key=Server.secret_key,
        )
        api.meta.events.register("before-send.s3.PutObject", lambda request, **_: seen.append(dict(request.headers)))
        for size in SIZES:
            content = random.Random(size).randbytes(size)
            for algorithm in ["CRC32", "SHA1", "SHA256"]:
                put = api.put_object(Bucket=bucket, Key=algorithm, Body=io.BytesIO(content), ChecksumAlgorithm=algorithm)
                got = api.get_object(Bucket=bucket, Key=algorithm, ChecksumMode="ENABLED")
                self.assertEqual(got[f"Checksum{algorithm}"], put[f"Checksum{algorithm}"])
                self.assertEqual(got["Body"].read(), content)
        trailers = [headers for headers in seen if "x-amz-trailer" in {name.lower() for name in headers}]
        self.assertTrue(trailers, "boto3 sent no trailer: this test tests nothing")
