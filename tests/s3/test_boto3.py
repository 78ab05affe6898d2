"""boto3: the API as most programs use it."""

import base64
import concurrent.futures
import hashlib
import io
import random
import unittest
import urllib.error
import urllib.request
import zlib

from suite import BIG_BYTES, MIB, SIZES, ClientTest, Server

try:
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config
    from botocore.exceptions import ClientError
except ImportError:
    boto3 = None

# Keys that clients got wrong before: encoding, XML, ordering, things that look like paths or queries.
ODD_KEYS = ["a b", "a+b", "ü/日本", "a&b<c>\"'", "q?x=1", "p%41", "trail/", "//double", "dot/./x", "dot/../y", "#hash", "~t", "a\nb"]


def crc(body, bits, polynomial):
    """A reflected CRC with all ones before and after; CRC-32C and CRC-64/NVME are of this kind."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (polynomial if byte & 1 else 0)
        table.append(byte)
    ones = (1 << bits) - 1
    value = ones
    for byte in body:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value ^ ones


def spoiled(link):
    """The same link with another first digit in its signature."""
    before, after = link.split("X-Amz-Signature=")
    return f"{before}X-Amz-Signature={'1' if after[0] == '0' else '0'}{after[1:]}"


class Boto3(ClientTest):
    client = "boto3 1.44.5"

    @classmethod
    def setUpClass(cls):
        if boto3 is None:
            raise unittest.SkipTest("boto3: not installed")
        if boto3.__version__ != "1.44.5":
            raise unittest.SkipTest(f"boto3: wanted 1.44.5, found {boto3.__version__}")
        super().setUpClass()
        cls.client_of = lambda self=None, **options: boto3.client(
            "s3", endpoint_url=Server.endpoint, region_name=Server.region,
            aws_access_key_id=Server.access_key, aws_secret_access_key=Server.secret_key,
            config=Config(s3={"addressing_style": "path"}, retries={"mode": "standard", "max_attempts": 3}, **options),
        )
        cls.api = cls.client_of()
        # Presigning defaults to the old signature in some regions.
        cls.signer = cls.client_of(signature_version="s3v4")

    def refused(self, code, call, **arguments):
        with self.assertRaises(ClientError) as caught:
            call(**arguments)
        self.assertEqual(caught.exception.response["Error"]["Code"], code)

    def body(self, size, seed=0):
        return random.Random(f"{seed} {size}").randbytes(size)

    def test_every_size_comes_back_identical(self):
        bucket = self.bucket("sizes")
        for size in SIZES:
            with self.subTest(size=size):
                body = self.body(size)
                put = self.api.put_object(Bucket=bucket, Key=str(size), Body=body)
                self.assertEqual(put["ETag"], f'"{hashlib.md5(body).hexdigest()}"')
                got = self.api.get_object(Bucket=bucket, Key=str(size))
                self.assertEqual((got["ContentLength"], got["ETag"]), (size, put["ETag"]))
                self.assertEqual(hashlib.sha256(got["Body"].read()).digest(), hashlib.sha256(body).digest())

    def test_parallel_parts_make_one_object(self):
        bucket = self.bucket("parts")
        source, target = self.file("big", BIG_BYTES), self.folder / "big-back"
        transfer = TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=8 * MIB, max_concurrency=4)
        self.api.upload_file(str(source), bucket, "big", Config=transfer)
        head = self.api.head_object(Bucket=bucket, Key="big")
        self.assertEqual(head["ContentLength"], BIG_BYTES)
        self.assertTrue(head["ETag"].endswith(f'-{BIG_BYTES // (8 * MIB)}"'))
        self.api.download_file(bucket, "big", str(target), Config=transfer)
        self.assertSameFile(source, target)
        part = self.api.get_object(Bucket=bucket, Key="big", PartNumber=2)
        self.assertEqual((part["ContentLength"], part["PartsCount"]), (8 * MIB, BIG_BYTES // (8 * MIB)))

    def test_an_upload_is_invisible_until_complete_and_gone_when_aborted(self):
        bucket = self.bucket("upload")
        upload = self.api.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
        etag = self.api.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=1, Body=self.body(6 * MIB))["ETag"]
        self.refused("404", self.api.head_object, Bucket=bucket, Key="k")
        listed = self.api.list_parts(Bucket=bucket, Key="k", UploadId=upload)["Parts"]
        self.assertEqual([(row["PartNumber"], row["Size"], row["ETag"]) for row in listed], [(1, 6 * MIB, etag)])
        uploads = self.api.list_multipart_uploads(Bucket=bucket)["Uploads"]
        self.assertEqual([row["UploadId"] for row in uploads], [upload])
        self.api.abort_multipart_upload(Bucket=bucket, Key="k", UploadId=upload)
        self.refused("NoSuchUpload", self.api.upload_part, Bucket=bucket, Key="k", UploadId=upload, PartNumber=1, Body=b"x")
        self.assertNotIn("Uploads", self.api.list_multipart_uploads(Bucket=bucket))

    def test_conditions_decide_who_writes(self):
        bucket = self.bucket("if")
        first = self.api.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")["ETag"]
        self.refused("PreconditionFailed", self.api.put_object, Bucket=bucket, Key="k", Body=b"2", IfNoneMatch="*")
        second = self.api.put_object(Bucket=bucket, Key="k", Body=b"3", IfMatch=first)["ETag"]
        self.refused("PreconditionFailed", self.api.put_object, Bucket=bucket, Key="k", Body=b"4", IfMatch=first)
        self.refused("PreconditionFailed", self.api.get_object, Bucket=bucket, Key="k", IfMatch=first)
        self.refused("304", self.api.get_object, Bucket=bucket, Key="k", IfNoneMatch=second)
        self.assertEqual(self.api.get_object(Bucket=bucket, Key="k")["Body"].read(), b"3")

    def test_one_of_many_racing_creators_wins(self):
        bucket = self.bucket("race")

        def create(number):
            try:
                self.client_of().put_object(Bucket=bucket, Key="one", Body=str(number).encode(), IfNoneMatch="*")
                return number
            except ClientError as error:
                self.assertIn(error.response["Error"]["Code"], ("PreconditionFailed", "ConditionalRequestConflict"))
                return None

        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            winners = [number for number in pool.map(create, range(12)) if number is not None]
        self.assertEqual(len(winners), 1)
        self.assertEqual(self.api.get_object(Bucket=bucket, Key="one")["Body"].read(), str(winners[0]).encode())

    def test_presigned_links_work_without_credentials(self):
        bucket = self.bucket("link")
        body = self.body(70_000)
        put = self.signer.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "a b"}, ExpiresIn=60)
        request = urllib.request.Request(put, data=body, method="PUT")
        with urllib.request.urlopen(request, timeout=30) as answer:
            self.assertEqual(answer.status, 200)
        get = self.signer.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "a b"}, ExpiresIn=60)
        with urllib.request.urlopen(get, timeout=30) as answer:
            self.assertEqual(answer.read(), body)
        with self.assertRaises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(spoiled(get), timeout=30)
        self.assertEqual(caught.exception.code, 403)

    def test_ranges_are_exact(self):
        bucket = self.bucket("range")
        body = self.body(3 * MIB + 17)
        self.api.put_object(Bucket=bucket, Key="k", Body=body)
        size = len(body)
        for first, last in [(0, 0), (65_491, 65_492), (1 * MIB - 1, 2 * MIB), (size - 1, size + 100), (0, size - 1)]:
            got = self.api.get_object(Bucket=bucket, Key="k", Range=f"bytes={first}-{last}")
            end = min(last, size - 1)
            self.assertEqual(got["ContentRange"], f"bytes {first}-{end}/{size}")
            self.assertEqual(got["Body"].read(), body[first:end + 1])
        self.assertEqual(self.api.get_object(Bucket=bucket, Key="k", Range="bytes=-5")["Body"].read(), body[-5:])
        self.refused("InvalidRange", self.api.get_object, Bucket=bucket, Key="k", Range=f"bytes={size}-")

    def test_odd_keys_are_kept_as_they_are(self):
        bucket = self.bucket("odd")
        for key in ODD_KEYS:
            with self.subTest(key=key):
                self.api.put_object(Bucket=bucket, Key=key, Body=key.encode())
                self.assertEqual(self.api.get_object(Bucket=bucket, Key=key)["Body"].read(), key.encode())
        listed = [row["Key"] for row in self.api.list_objects_v2(Bucket=bucket)["Contents"]]
        self.assertEqual(listed, sorted(ODD_KEYS, key=str.encode))
        gone = self.api.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in ODD_KEYS]})
        self.assertEqual(sorted(row["Key"] for row in gone["Deleted"]), sorted(ODD_KEYS))
        self.assertEqual(self.api.list_objects_v2(Bucket=bucket)["KeyCount"], 0)

    def test_listing_has_every_finished_write_once(self):
        bucket = self.bucket("list")
        keys = [f"d{index % 7}/{index:04}" for index in range(1203)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: self.api.put_object(Bucket=bucket, Key=key, Body=b""), keys))
        for operation in ["list_objects_v2", "list_objects"]:
            pages = self.api.get_paginator(operation).paginate(Bucket=bucket, PaginationConfig={"PageSize": 250})
            found = [row["Key"] for page in pages for row in page.get("Contents", [])]
            self.assertEqual(found, sorted(keys), operation)
        folders = self.api.list_objects_v2(Bucket=bucket, Delimiter="/")
        self.assertEqual([row["Prefix"] for row in folders["CommonPrefixes"]], [f"d{index}/" for index in range(7)])
        rest = self.api.list_objects_v2(Bucket=bucket, StartAfter="d6/1100", MaxKeys=2)
        self.assertEqual([row["Key"] for row in rest["Contents"]], [key for key in sorted(keys) if key > "d6/1100"][:2])

    def test_checksums_are_kept_and_wrong_ones_refused(self):
        bucket = self.bucket("sum")
        body = self.body(200_000)
        raw = {
            "CRC32": zlib.crc32(body).to_bytes(4, "big"),
            "CRC32C": crc(body, 32, 0x82F63B78).to_bytes(4, "big"),
            "CRC64NVME": crc(body, 64, 0x9A6C9329AC4BC9B5).to_bytes(8, "big"),
            "SHA1": hashlib.sha1(body).digest(),
            "SHA256": hashlib.sha256(body).digest(),
        }
        sums = {name: base64.b64encode(value).decode() for name, value in raw.items()}
        for name, value in sums.items():
            self.api.put_object(Bucket=bucket, Key=name, Body=body, **{f"Checksum{name}": value})
            head = self.api.head_object(Bucket=bucket, Key=name, ChecksumMode="ENABLED")
            self.assertEqual(head[f"Checksum{name}"], value)
            wrong = base64.b64encode(bytes(len(base64.b64decode(value)))).decode()
            self.refused("BadDigest", self.api.put_object, Bucket=bucket, Key="bad", Body=body, **{f"Checksum{name}": wrong})
        self.refused("BadDigest", self.api.put_object, Bucket=bucket, Key="bad", Body=body,
                     ContentMD5=base64.b64encode(hashlib.md5(b"other").digest()).decode())
        self.refused("404", self.api.head_object, Bucket=bucket, Key="bad")
        facts = self.api.get_object_attributes(Bucket=bucket, Key="SHA256", ObjectAttributes=["Checksum", "ObjectSize", "ETag"])
        self.assertEqual((facts["ObjectSize"], facts["Checksum"]["ChecksumSHA256"]), (200_000, sums["SHA256"]))

    def test_the_checksums_of_this_file_are_right(self):
        self.assertEqual(crc(b"123456789", 32, 0x82F63B78), 0xE3069283)
        self.assertEqual(crc(b"123456789", 64, 0x9A6C9329AC4BC9B5), 0xAE8B14860A799888)

    def test_copies_keep_or_replace_metadata(self):
        bucket = self.bucket("copy")
        body = self.body(2 * MIB)
        self.api.put_object(Bucket=bucket, Key="a", Body=body, Metadata={"x": "1"}, ContentType="text/plain")
        self.api.copy_object(Bucket=bucket, Key="b", CopySource={"Bucket": bucket, "Key": "a"})
        self.api.copy_object(Bucket=bucket, Key="a", CopySource={"Bucket": bucket, "Key": "a"},
                             Metadata={"x": "2"}, MetadataDirective="REPLACE")
        kept, replaced = (self.api.get_object(Bucket=bucket, Key=key) for key in "ba")
        self.assertEqual((kept["Metadata"], kept["ContentType"], kept["Body"].read()), ({"x": "1"}, "text/plain", body))
        self.assertEqual((replaced["Metadata"], replaced["Body"].read()), ({"x": "2"}, body))
        upload = self.api.create_multipart_upload(Bucket=bucket, Key="c")["UploadId"]
        part = self.api.upload_part_copy(Bucket=bucket, Key="c", UploadId=upload, PartNumber=1,
                                         CopySource={"Bucket": bucket, "Key": "b"}, CopySourceRange="bytes=100-1048675")
        rows = [{"PartNumber": 1, "ETag": part["CopyPartResult"]["ETag"]}]
        self.api.complete_multipart_upload(Bucket=bucket, Key="c", UploadId=upload, MultipartUpload={"Parts": rows})
        self.assertEqual(self.api.get_object(Bucket=bucket, Key="c")["Body"].read(), body[100:1048676])

    def test_streams_of_unknown_length_are_stored_whole(self):
        bucket = self.bucket("stream")
        body = self.body(17 * MIB + 3)
        self.api.upload_fileobj(io.BytesIO(body), bucket, "s", Config=TransferConfig(max_concurrency=3))
        found = io.BytesIO()
        self.api.download_fileobj(bucket, "s", found)
        self.assertEqual(hashlib.sha256(found.getvalue()).digest(), hashlib.sha256(body).digest())

    def test_errors_have_their_names(self):
        bucket = self.bucket("errors")
        self.refused("NoSuchBucket", self.api.list_objects_v2, Bucket=f"{bucket}-none")
        self.refused("NoSuchKey", self.api.get_object, Bucket=bucket, Key="none")
        self.refused("404", self.api.head_object, Bucket=bucket, Key="none")
        self.refused("404", self.api.head_bucket, Bucket=f"{bucket}-none")
        self.api.put_object(Bucket=bucket, Key="k", Body=b"")
        self.refused("BucketNotEmpty", self.api.delete_bucket, Bucket=bucket)
        stranger = boto3.client("s3", endpoint_url=Server.endpoint, region_name=Server.region,
                                aws_access_key_id="PLKNOBODY", aws_secret_access_key="x")
        self.refused("InvalidAccessKeyId", stranger.list_buckets)
        liar = boto3.client("s3", endpoint_url=Server.endpoint, region_name=Server.region,
                            aws_access_key_id=Server.access_key, aws_secret_access_key="wrong")
        self.refused("SignatureDoesNotMatch", liar.list_buckets)
