"""Bad input gets an error of S3, never a 500, leaves no object behind, and ends no process."""

import base64
import hashlib
import http.client
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
    ("a chunk size beyond 64 bits", "PUT", "", chunked(), b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n", {}, ["InvalidRequest"]),
    ("a chunk size below nothing", "PUT", "", chunked(), b"-5\r\nhello\r\n0\r\n\r\n", {}, ["InvalidRequest"]),
    ("a chunk line without end", "PUT", "", chunked(), b"5" * 5000, {}, ["InvalidRequest"]),
    ("bytes behind the last chunk", "PUT", "", chunked(), f"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:{CRC_OF_HELLO}\r\n\r\nmore".encode(), {}, ["InvalidRequest"]),
    ("a trailer that was not announced", "PUT", "", chunked(), f"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:{CRC_OF_HELLO}\r\nx-amz-meta-a:1\r\n\r\n".encode(), {}, ["MalformedTrailerError"]),
    ("a trailer twice", "PUT", "", chunked(), b"5\r\nhello\r\n0\r\n" + 2 * f"x-amz-checksum-crc32:{CRC_OF_HELLO}\r\n".encode() + b"\r\n", {}, ["MalformedTrailerError"]),
    ("trailers without measure", "PUT", "", chunked(), b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:" + b"A" * 9000 + b"\r\n\r\n", {}, ["MalformedTrailerError"]),
    ("a trailer that is no checksum", "PUT", "", chunked(**{"x-amz-trailer": "x-amz-meta-a"}), b"5\r\nhello\r\n0\r\nx-amz-meta-a:1\r\n\r\n", {}, ["InvalidRequest"]),
    ("no decoded length", "PUT", "", CHUNKED, b"5\r\nhello\r\n0\r\n\r\n", {}, ["MissingContentLength"]),
    ("a decoded length that is no number", "PUT", "", chunked("0x5"), b"5\r\nhello\r\n0\r\n\r\n", {}, ["InvalidArgument"]),
    ("framing that is not announced", "PUT", "", {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": "5"}, b"5\r\nhello\r\n0\r\n\r\n", {}, ["InvalidRequest"]),
    ("a signed chunk without measure", "PUT", "", {**SIGNED_CHUNKS, "x-amz-decoded-content-length": str(1 << 30)}, f"20000000;chunk-signature={'0' * 64}\r\nhello".encode(), {}, ["InvalidChunkSizeError"]),
    ("a signed trailer without signature", "PUT", "", chunked(**{"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"}), b"5\r\nhello\r\n0\r\n\r\n", {}, ["InvalidRequest"]),
    ("metadata of 3 KiB", "PUT", "", {"x-amz-meta-a": "v" * 3072}, b"hello", {}, ["MetadataTooLarge"]),
    ("a header that nobody knows", "PUT", "", {"x-amz-brew": "tea"}, b"hello", {}, ["NotImplemented"]),
    ("somebody else's bucket is expected", "PUT", "", {"x-amz-expected-bucket-owner": "123456789012"}, b"hello", {}, ["AccessDenied"]),
    ("a grant", "PUT", "", {"x-amz-grant-read": "id=1"}, b"hello", {}, ["AccessControlListNotSupported"]),
    ("a condition that writes don't have", "PUT", "", {"if-modified-since": "Wed, 21 Oct 2015 07:28:00 GMT"}, b"hello", {}, ["NotImplemented"]),
    ("a checksum algorithm without its sum", "PUT", "", {"x-amz-sdk-checksum-algorithm": "CRC32"}, b"hello", {}, ["InvalidRequest"]),
    ("a checksum of another length", "PUT", "", {"x-amz-checksum-sha256": CRC_OF_HELLO}, b"hello", {}, ["InvalidRequest"]),
    ("a scope of another day", "PUT", "", {}, b"hello", {"authorization": "AWS4-HMAC-SHA256 Credential=x/20200101/us-east-1/s3/aws4_request,SignedHeaders=host,Signature=0"}, ["AuthorizationHeaderMalformed"]),
    ("a scope of another service", "PUT", "", {}, b"hello", {"authorization": "AWS4-HMAC-SHA256 Credential=x/20200101/us-east-1/ec2/aws4_request,SignedHeaders=host,Signature=0"}, ["AuthorizationHeaderMalformed"]),
    ("the old signature", "PUT", "", {}, b"hello", {"authorization": "AWS x:y"}, ["InvalidRequest"]),
    ("a token of nobody", "PUT", "", {"x-amz-security-token": "x"}, b"hello", {}, ["InvalidToken"]),
    ("a token with a space", "PUT", "", {"x-amz-client-token": "a b"}, b"hello", {}, ["InvalidArgument"]),
    ("part number 0", "PUT", "partNumber=0&uploadId=UPLOAD", {}, b"hello", {}, ["InvalidArgument"]),
    ("part number 10,001", "PUT", "partNumber=10001&uploadId=UPLOAD", {}, b"hello", {}, ["InvalidArgument"]),
    ("an upload that nobody began", "PUT", "partNumber=1&uploadId=none", {}, b"hello", {}, ["NoSuchUpload"]),
    ("Complete of an upload that nobody began", "POST", "uploadId=none", {}, b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>x</ETag></Part></CompleteMultipartUpload>", {}, ["NoSuchUpload"]),
    ("Complete is no XML", "POST", "uploadId=UPLOAD", {}, b"<<<", {}, ["MalformedXML"]),
    ("Complete names no part", "POST", "uploadId=UPLOAD", {}, b"<CompleteMultipartUpload></CompleteMultipartUpload>", {}, ["MalformedXML"]),
    ("Complete names a part that never came", "POST", "uploadId=UPLOAD", {}, b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>x</ETag></Part></CompleteMultipartUpload>", {}, ["InvalidPart"]),
    ("Complete has an element that nobody knows", "POST", "uploadId=UPLOAD", {}, b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>x</ETag><Tea/></Part></CompleteMultipartUpload>", {}, ["NotImplemented"]),
    ("Complete descends", "POST", "uploadId=UPLOAD", {}, b"<CompleteMultipartUpload>" + b"".join(b"<Part><PartNumber>%d</PartNumber><ETag>x</ETag></Part>" % n for n in (2, 1)) + b"</CompleteMultipartUpload>", {}, ["InvalidPartOrder"]),
    ("a copy of a key of 1,025 bytes", "PUT", "", {"x-amz-copy-source": "/b-b-b/" + "k" * 1025}, b"", {}, ["KeyTooLongError", "NoSuchBucket"]),
    ("a copy of nothing", "PUT", "", {"x-amz-copy-source": "/no-such-bucket-at-all/k"}, b"", {}, ["NoSuchBucket", "NoSuchKey"]),
    ("a copy source that cannot be read", "PUT", "", {"x-amz-copy-source": "%zz"}, b"", {}, ["InvalidArgument", "NoSuchBucket", "InvalidBucketName"]),
]

BUCKET_CASES = [
    ("DeleteObjects is no XML", "POST", "delete=", {}, b"<Delete><Object>", ["MalformedXML", "MissingContentMD5", "InvalidRequest"]),
    ("DeleteObjects is empty", "POST", "delete=", {}, b"<Delete></Delete>", ["MalformedXML", "MissingContentMD5", "InvalidRequest"]),
    ("XML with entities", "POST", "delete=", {}, b'<!DOCTYPE d [<!ENTITY a "x"><!ENTITY b "&a;&a;">]><Delete><Object><Key>&b;</Key></Object></Delete>', ["MalformedXML", "MissingContentMD5", "InvalidRequest"]),
    ("XML nested without end", "POST", "delete=", {}, b"<a>" * 20_000, ["MalformedXML"]),
    ("XML with a hundred thousand attributes", "POST", "delete=", {}, b"<Delete " + b"".join(b"xmlns:a%d='u' " % n for n in range(100_000)) + b"/>", ["MalformedXML"]),
    ("XML of more elements than any request has", "POST", "delete=", {}, b"<Delete>" + b"<Object/>" * 70_000 + b"</Delete>", ["MalformedXML"]),
    ("XML that is no UTF-8", "POST", "delete=", {}, b"<Delete><Object><Key>\xff\xfe</Key></Object></Delete>", ["MalformedXML"]),
    ("1,001 keys to delete", "POST", "delete=", {}, b"<Delete>" + b"<Object><Key>k</Key></Object>" * 1001 + b"</Delete>", ["MalformedXML"]),
    ("max-keys below nothing", "GET", "list-type=2&max-keys=-1", {}, b"", ["InvalidArgument"]),
    ("two subresources", "GET", "acl=&policy=", {}, b"", ["InvalidArgument"]),
    ("a location with a line end", "PUT", "", {}, b"<CreateBucketConfiguration><LocationConstraint>a&#10;b</LocationConstraint></CreateBucketConfiguration>", ["InvalidArgument"]),
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

    def raw(self, text, more=b"", ends=False):
        """Sends bytes as they are; returns all that comes until the server closes, which it must do."""
        host, port = self.s3().host.split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(text.encode() + more)
            if ends:
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := connection.recv(1 << 16):
                answer += piece
        return answer

    def test_heads_that_are_no_heads_get_an_error_and_an_end(self):
        bucket = self.bucket("bad")
        head = f"PUT /{bucket}/smuggled HTTP/1.1\r\nhost: {self.s3().host}\r\n"
        inner = f"GET /{bucket} HTTP/1.1\r\nhost: x\r\n\r\n"
        for wrong, text in [
            ("a length beside chunks", f"{head}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}"),
            ("chunks beside a length", f"{head}transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n{inner}"),
            ("two lengths", f"{head}content-length: 0\r\ncontent-length: {len(inner)}\r\n\r\n{inner}"),
            ("a length with a sign", f"{head}content-length: +{len(inner)}\r\n\r\n{inner}"),
            ("a coding that hides chunks", f"{head}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{inner}"),
            ("a coding with a space before its colon", f"{head}transfer-encoding : chunked\r\n\r\n0\r\n\r\n{inner}"),
            ("a folded header", f"{head}x-amz-meta-a: 1\r\n 2\r\n\r\n"),
            ("two hosts", f"{head}host: other\r\n\r\n"),
            ("a head of 64 KiB", f"{head}x-a: {'a' * 65536}\r\n\r\n"),
            ("a line of 64 KiB", f"GET /{'a' * 65536} HTTP/1.1\r\nhost: x\r\n\r\n"),
            ("a thousand headers", head + "a: b\r\n" * 1000 + "\r\n"),
            ("another protocol", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            ("no HTTP at all", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello there\r\n\r\n"),
        ]:
            with self.subTest(wrong):
                answer = self.raw(text)
                self.assertTrue(answer.startswith(b"HTTP/1.1 4"), answer[:200])
                self.assertEqual(answer.count(b"HTTP/1.1 "), 1, "what was smuggled was answered")
                self.assertIn(b"<Code>", answer)
                self.assertIn(b"x-amz-request-id", answer.lower())
        self.assertEqual(self.s3().keys(bucket), [])
        self.all_alive()

    def test_a_body_that_ends_early_leaves_no_object_and_no_hung_connection(self):
        bucket, s3 = self.bucket("bad"), self.s3()
        for size in [10, 100_000]:
            with self.subTest(size=size):
                path, now = f"/{bucket}/short", time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
                headers = {"host": s3.host, "x-amz-content-sha256": "UNSIGNED-PAYLOAD", "x-amz-date": now}
                headers["authorization"] = s3.authorization("PUT", path, "", headers, "UNSIGNED-PAYLOAD", now)
                lines = [f"PUT {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
                answer = self.raw("\r\n".join([*lines, f"content-length: {size + 1}", "", ""]), b"x" * size, ends=True)
                self.assertNotIn(b"HTTP/1.1 200", answer)
                self.assertIsNone(self.s3().get_or_none(bucket, "short"))
        self.all_alive()

    def test_links_that_are_not_right_are_refused(self):
        bucket, s3 = self.bucket("bad"), self.s3()
        path = f"/{bucket}/linked"
        good = s3.presigned("PUT", path)
        long_ago = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() - 3600))
        ahead = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + 3600))
        for wrong, method, target, codes in [
            ("it has expired", "PUT", s3.presigned("PUT", path, now=long_ago), ["AccessDenied"]),
            ("it is not yet valid", "PUT", s3.presigned("PUT", path, now=ahead), ["AccessDenied"]),
            ("it lives longer than a week", "PUT", s3.presigned("PUT", path, expires=604_801), ["AuthorizationQueryParametersError"]),
            ("it never lived", "PUT", s3.presigned("PUT", path, expires=0), ["AuthorizationQueryParametersError"]),
            ("it is for another method", "DELETE", good, ["SignatureDoesNotMatch"]),
            ("it is for another key", "PUT", good.replace("/linked?", "/other?"), ["SignatureDoesNotMatch"]),
            ("a parameter was added", "PUT", f"{good}&x-amz-meta-a=1", ["SignatureDoesNotMatch"]),
            ("its signature stands twice", "PUT", f"{good}&X-Amz-Signature=0", ["AuthorizationQueryParametersError", "SignatureDoesNotMatch"]),
            ("its life stands twice", "PUT", f"{good}&X-Amz-Expires=99", ["AuthorizationQueryParametersError", "SignatureDoesNotMatch"]),
            ("it has no signature", "PUT", good.split("&X-Amz-Signature")[0], ["AuthorizationQueryParametersError"]),
            ("its metadata is no header", "PUT", s3.presigned("PUT", path, **{"x-amz-meta-a": "b%0D%0Ac"}), ["InvalidArgument"]),
        ]:
            with self.subTest(wrong):
                host, port = s3.host.split(":")
                connection = http.client.HTTPConnection(host, int(port), timeout=10)
                self.addCleanup(connection.close)
                connection.request(method, target, body=b"hello")
                answer = connection.getresponse()
                content = answer.read()
                self.assertIn(wire.code_of(content), codes, content[:300])
        self.assertEqual(self.s3().keys(bucket), [])
        self.all_alive()

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
