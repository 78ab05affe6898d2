"""Bad input gets an error of S3, never a 500, leaves no object behind, and ends no process."""

import base64
import hashlib
import socket
import time
import zlib

import wire
from suite import ClientTest, Server

DIGEST_OF_OTHER = hashlib.sha256(b"other").hexdigest()
TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
CHUNKED = {"content-encoding": "aws-chunked", "x-amz-content-sha256": TRAILER, "x-amz-trailer": "x-amz-checksum-crc32"}
CRC_OF_HELLO = base64.b64encode(zlib.crc32(b"hello").to_bytes(4, "big")).decode()
SIGNED_CHUNKS = {"content-encoding": "aws-chunked", "x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"}


def chunked(length=5, **more):
    return {**CHUNKED, "x-amz-decoded-content-length": str(length), **more}


# What is wrong, method, query, signed headers, body, unsigned headers, the codes that are right.
OBJECT_CASES = [
    ("the body is not what was signed", "PUT", "", {"x-amz-content-sha256": DIGEST_OF_OTHER}, b"hello", {}, ["XAmzContentSHA256Mismatch"]),
    ("the payload hash is no hash", "PUT", "", {"x-amz-content-sha256": "zz"}, b"hello", {}, ["InvalidArgument", "InvalidRequest"]),
    ("Content-MD5 is another body's", "PUT", "", {"content-md5": base64.b64encode(hashlib.md5(b"other").digest()).decode()}, b"hello", {}, ["BadDigest"]),
    ("Content-MD5 cannot be read", "PUT", "", {"content-md5": "%%%"}, b"hello", {}, ["InvalidDigest"]),
    ("a checksum is another body's", "PUT", "", {"x-amz-checksum-crc32": "AAAAAA=="}, b"hello", {}, ["BadDigest"]),
    ("two checksums", "PUT", "", {"x-amz-checksum-crc32": CRC_OF_HELLO, "x-amz-checksum-crc32c": "AAAAAA=="}, b"hello", {}, ["InvalidRequest"]),
    ("a header was added behind the signature", "PUT", "", {}, b"hello", {"x-amz-meta-a": "1"}, ["AccessDenied"]),
    ("the signature is cut", "PUT", "", {}, b"hello", {"authorization": "AWS4-HMAC-SHA256 Credential=x"}, ["AuthorizationHeaderMalformed", "InvalidAccessKeyId"]),
    ("no signature at all", "PUT", "", {}, b"hello", {"authorization": ""}, ["AccessDenied", "AuthorizationHeaderMalformed", "InvalidArgument", "InvalidRequest"]),
    ("the request is a day old", "PUT", "", {"x-amz-date": "20200101T000000Z"}, b"hello", {}, ["RequestTimeTooSkewed", "AccessDenied"]),
    ("an encryption that is not there", "PUT", "", {"x-amz-server-side-encryption": "aws:kms"}, b"hello", {}, ["NotImplemented"]),
    ("a lock that is not there", "PUT", "", {"x-amz-object-lock-mode": "COMPLIANCE", "x-amz-object-lock-retain-until-date": "2999-01-01T00:00:00Z"}, b"hello", {}, ["NotImplemented", "InvalidRequest"]),
    ("a chunk size is no number", "PUT", "", chunked(), b"zz\r\nhello\r\n0\r\n\r\n", {}, ["IncompleteBody", "InvalidRequest", "InvalidChunkSizeError"]),
    ("a chunk is longer than told", "PUT", "", chunked(), f"3\r\nhello\r\n0\r\nx-amz-checksum-crc32:{CRC_OF_HELLO}\r\n\r\n".encode(), {}, ["IncompleteBody", "InvalidRequest", "InvalidChunkSizeError"]),
    ("the last chunk is missing", "PUT", "", chunked(), b"5\r\nhello\r\n", {}, ["IncompleteBody", "InvalidRequest", "MalformedTrailerError"]),
    ("the decoded length is another", "PUT", "", chunked(6), f"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:{CRC_OF_HELLO}\r\n\r\n".encode(), {}, ["IncompleteBody", "InvalidRequest"]),
    ("the trailer's checksum is wrong", "PUT", "", chunked(), b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n", {}, ["BadDigest"]),
    ("the announced trailer does not come", "PUT", "", chunked(), b"5\r\nhello\r\n0\r\n\r\n", {}, ["MalformedTrailerError", "InvalidRequest"]),
    ("the trailer is garbage", "PUT", "", chunked(), b"5\r\nhello\r\n0\r\n:::\xff\r\n\r\n", {}, ["MalformedTrailerError", "InvalidRequest", "IncompleteBody"]),
    ("a chunk's signature is wrong", "PUT", "", {**SIGNED_CHUNKS, "x-amz-decoded-content-length": "5"}, f"5;chunk-signature={'0' * 64}\r\nhello\r\n0;chunk-signature={'0' * 64}\r\n\r\n".encode(), {}, ["SignatureDoesNotMatch"]),
    ("a chunk has no signature", "PUT", "", {**SIGNED_CHUNKS, "x-amz-decoded-content-length": "5"}, b"5\r\nhello\r\n0\r\n\r\n", {}, ["SignatureDoesNotMatch", "IncompleteBody", "InvalidRequest", "InvalidChunkSizeError"]),
    ("part number 0", "PUT", "partNumber=0&uploadId=UPLOAD", {}, b"hello", {}, ["InvalidArgument"]),
    ("part number 10,001", "PUT", "partNumber=10001&uploadId=UPLOAD", {}, b"hello", {}, ["InvalidArgument"]),
    ("an upload that nobody began", "PUT", "partNumber=1&uploadId=none", {}, b"hello", {}, ["NoSuchUpload"]),
    ("Complete of an upload that nobody began", "POST", "uploadId=none", {}, b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>x</ETag></Part></CompleteMultipartUpload>", {}, ["NoSuchUpload"]),
    ("Complete is no XML", "POST", "uploadId=UPLOAD", {}, b"<<<", {}, ["MalformedXML"]),
    ("a copy of nothing", "PUT", "", {"x-amz-copy-source": "/no-such-bucket-at-all/k"}, b"", {}, ["NoSuchBucket", "NoSuchKey"]),
    ("a copy source that cannot be read", "PUT", "", {"x-amz-copy-source": "%zz"}, b"", {}, ["InvalidArgument", "NoSuchBucket", "InvalidBucketName"]),
]

BUCKET_CASES = [
    ("DeleteObjects is no XML", "POST", "delete=", {}, b"<Delete><Object>", ["MalformedXML", "MissingContentMD5", "InvalidRequest"]),
    ("DeleteObjects is empty", "POST", "delete=", {}, b"<Delete></Delete>", ["MalformedXML", "MissingContentMD5", "InvalidRequest"]),
    ("XML with entities", "POST", "delete=", {}, b'<!DOCTYPE d [<!ENTITY a "x"><!ENTITY b "&a;&a;">]><Delete><Object><Key>&b;</Key></Object></Delete>', ["MalformedXML", "MissingContentMD5", "InvalidRequest"]),
    ("max-keys is no number", "GET", "list-type=2&max-keys=many", {}, b"", ["InvalidArgument"]),
    ("a continuation token of nobody", "GET", "continuation-token=%21%21&list-type=2", {}, b"", ["InvalidArgument"]),
    ("an encoding that does not exist", "GET", "encoding-type=rot13&list-type=2", {}, b"", ["InvalidArgument"]),
    ("a subresource that is not there", "PUT", "replication=", {}, b"<x/>", ["NotImplemented"]),
]


class BadInput(ClientTest):
    client = "bad input"

    def test_objects_are_refused_and_not_left(self):
        bucket, s3 = self.bucket("bad"), self.s3()
        for index, (wrong, method, query, headers, body, unsigned, codes) in enumerate(OBJECT_CASES):
            with self.subTest(wrong):
                path = f"/{bucket}/o{index}"
                if "UPLOAD" in query:
                    begun = s3.request("POST", path, {"uploads": ""})[2]
                    query = query.replace("UPLOAD", wire.find(begun, "UploadId"))
                if body and headers.get("content-md5"):
                    headers = {**headers, "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
                self.refused(s3, method, path, query, body, headers, unsigned, codes)
                self.assertIsNone(self.s3().get_or_none(bucket, f"o{index}"), "an object was left behind")
        self.all_alive()

    def test_buckets_answer_with_a_name_for_the_error(self):
        bucket, s3 = self.bucket("bad"), self.s3()
        for wrong, method, query, headers, body, codes in BUCKET_CASES:
            with self.subTest(wrong):
                if body:
                    headers = {**headers, "content-md5": base64.b64encode(hashlib.md5(body).digest()).decode()}
                self.refused(s3, method, f"/{bucket}", query, body, headers, {}, codes)
        for name, codes in [("UPPER", ["InvalidBucketName"]), ("a", ["InvalidBucketName"]), ("a..b", ["InvalidBucketName"])]:
            with self.subTest(name):
                self.refused(s3, "PUT", f"/{name}", "", b"", {}, {}, codes)
        with self.subTest("a key of 1,025 bytes"):
            self.refused(s3, "PUT", f"/{bucket}/{'k' * 1025}", "", b"x", {}, {}, ["KeyTooLongError"])
        with self.subTest("a method that does not exist"):
            self.refused(s3, "BREW", f"/{bucket}", "", b"", {}, {}, ["MethodNotAllowed"])
        self.all_alive()

    def test_who_waits_in_vain_for_100_gets_a_new_connection(self):
        # botocore of awscli sends Expect with empty bodies too. Without 100 it keeps what it read of the answer
        # for the next answer on the same connection, and hangs: the connection must end there.
        bucket, s3 = self.bucket("bad"), self.s3()
        path, now = f"/{bucket}/empty", time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        headers = {"host": s3.host, "x-amz-content-sha256": wire.EMPTY_SHA256, "x-amz-date": now}
        headers["authorization"] = s3.authorization("PUT", path, "", headers, wire.EMPTY_SHA256, now)
        lines = [f"PUT {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        host, port = s3.host.split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall("\r\n".join([*lines, "content-length: 0", "expect: 100-continue", "", ""]).encode())
            answer = b""
            while b" 200 " not in answer or not answer.endswith(b"\r\n\r\n"):
                piece = connection.recv(4096)
                self.assertTrue(piece, f"the connection ended early: {answer!r}")
                answer += piece
        told = answer.lower()
        self.assertTrue(told.startswith(b"http/1.1 100") or b"connection: close" in told, answer)

    def refused(self, s3, method, path, query, body, headers, unsigned, codes):
        try:
            status, _, answer = s3.once(method, path, query, body, headers, unsigned)
        finally:
            s3.close()
        code = wire.code_of(answer)
        self.assertIn(code, codes, f"{status} {answer[:300]!r}")
        self.assertTrue(400 <= status < 500 or status == 501, f"{status} {code}")

    def all_alive(self):
        for node in Server.cluster.nodes if Server.cluster else []:
            self.assertTrue(node.is_running(), f"{node.name} ended: {node.log_tail()}")
