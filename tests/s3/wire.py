"""S3 by the standard library alone: SigV4 in the header, kept connections, retries as SDKs do them.

Light, so that the load leaves the machine to the servers, and honest about outcomes: a request whose answer never came
is *unknown*, neither done nor failed.
"""

import datetime
import hashlib
import hmac
import http.client
import random
import time
import urllib.parse
import xml.etree.ElementTree as xml

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
# As botocore's standard mode has it, a little longer: SDKs for data work raise it to 5 or more.
ATTEMPTS_MAX = 6
BACKOFF_SECONDS_MAX = 2.0
REQUEST_SECONDS_MAX = 15
RETRIED_STATUS = {408, 429, 500, 502, 503, 504}


class Refused(Exception):
    """S3 answered with an error that is not worth a retry, or still answered so at the last attempt."""

    def __init__(self, status, code):
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code


class Unknown(Exception):
    """No answer came in all attempts: the request may have taken effect, or may still do."""


class S3:
    """One client with one connection; not for several threads at a time."""

    def __init__(self, endpoint, access_key, secret_key, region="us-east-1", attempts=ATTEMPTS_MAX):
        self.host = urllib.parse.urlsplit(endpoint).netloc
        self.access_key = access_key
        self.secret_key = secret_key
        self.region = region
        self.attempts = attempts
        self.connection = None
        self.retries = 0

    def request(self, method, path, query=None, body=b"", headers=None):
        """Returns status 2xx, headers and body, or raises. `path` is raw; `query` a dictionary."""
        path = urllib.parse.quote(path, safe="/-._~")
        query = "&".join(
            f"{urllib.parse.quote(name, safe='-._~')}={urllib.parse.quote(str(value), safe='-._~')}"
            for name, value in sorted((query or {}).items())
        )
        last = None
        # Once an attempt ended without answer, a later refusal does not undo what it may have done.
        uncertain = False
        for attempt in range(self.attempts):
            if attempt:
                self.retries += 1
                time.sleep(random.uniform(0.5, 1) * min(BACKOFF_SECONDS_MAX, 0.1 * 2**attempt))
            try:
                status, answer_headers, answer = self.once(method, path, query, body, headers or {})
            except (OSError, http.client.HTTPException) as error:
                self.close()
                uncertain |= not isinstance(error, ConnectionRefusedError)
                last = Unknown(f"{method} {path}: {error!r}")
                continue
            if 200 <= status < 300:
                return status, answer_headers, answer
            last = Refused(status, code_of(answer))
            if status not in RETRIED_STATUS:
                break
            uncertain |= status >= 500
        if uncertain and isinstance(last, Refused) and method not in ("GET", "HEAD"):
            raise Unknown(f"{method} {path}: {last} after an attempt without answer")
        raise last

    def once(self, method, path, query, body, headers, unsigned=()):
        """One attempt. `path` and `query` are encoded; `unsigned` headers are added, or put in place, behind the signature."""
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        payload = headers.get("x-amz-content-sha256") or ("UNSIGNED-PAYLOAD" if body else EMPTY_SHA256)
        now = headers.get("x-amz-date", now)
        signed = {"host": self.host, "x-amz-content-sha256": payload, "x-amz-date": now}
        signed.update({name.lower(): value for name, value in headers.items()})
        signed["authorization"] = self.authorization(method, path, query, signed, payload, now)
        signed.update(unsigned)
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.host, timeout=REQUEST_SECONDS_MAX)
        target = f"{path}?{query}" if query else path
        self.connection.request(method, target, body=body if body or method in ("PUT", "POST") else None, headers=signed)
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.headers.get("connection", "").lower() == "close":
            self.close()
        return answer.status, answer.headers, content

    def presigned(self, method, path, expires=60, now=None, **query):
        """The target of a link: path and signed query. `query` is encoded already."""
        now = now or datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        credential = urllib.parse.quote(f"{self.access_key}/{self.scope(now)}", safe="")
        query.update({
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Credential": credential, "X-Amz-Date": now,
            "X-Amz-Expires": expires, "X-Amz-SignedHeaders": "host",
        })
        text = "&".join(f"{name}={value}" for name, value in sorted(query.items()))
        signature = self.signature(method, path, text, {"host": self.host}, "UNSIGNED-PAYLOAD", now)
        return f"{path}?{text}&X-Amz-Signature={signature}"

    def scope(self, now):
        return f"{now[:8]}/{self.region}/s3/aws4_request"

    def authorization(self, method, path, query, headers, payload, now):
        signature = self.signature(method, path, query, headers, payload, now)
        credential, names = f"{self.access_key}/{self.scope(now)}", ";".join(sorted(headers))
        return f"AWS4-HMAC-SHA256 Credential={credential},SignedHeaders={names},Signature={signature}"

    def signature(self, method, path, query, headers, payload, now):
        names = sorted(headers)
        lines = [method, path, query, *(f"{name}:{headers[name].strip()}" for name in names), "", ";".join(names), payload]
        scope = self.scope(now)
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        key = ("AWS4" + self.secret_key).encode()
        for word in scope.split("/"):
            key = hmac.digest(key, word.encode(), "sha256")
        return hmac.digest(key, f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest}".encode(), "sha256").hex()

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    # The few operations that load and checks need.

    def make_bucket(self, bucket):
        try:
            self.request("PUT", f"/{bucket}")
        except Refused as refused:
            if refused.code != "BucketAlreadyOwnedByYou":
                raise

    def put(self, bucket, key, body, headers=None):
        return self.request("PUT", f"/{bucket}/{key}", body=body, headers=headers)[1]

    def get(self, bucket, key, headers=None):
        return self.request("GET", f"/{bucket}/{key}", headers=headers)[2]

    def get_or_none(self, bucket, key):
        """The bytes, or None when there is no such object."""
        try:
            return self.get(bucket, key)
        except Refused as refused:
            if refused.status == 404 and refused.code in ("NoSuchKey", ""):
                return None
            raise

    def delete(self, bucket, key):
        self.request("DELETE", f"/{bucket}/{key}")

    def put_parts(self, bucket, key, parts):
        path = f"/{bucket}/{key}"
        upload = find(self.request("POST", path, {"uploads": ""})[2], "UploadId")
        rows = []
        for number, part in enumerate(parts, start=1):
            _, headers, _ = self.request("PUT", path, {"partNumber": number, "uploadId": upload}, part)
            rows.append(f"<Part><PartNumber>{number}</PartNumber><ETag>{headers['etag']}</ETag></Part>")
        document = f"<CompleteMultipartUpload>{''.join(rows)}</CompleteMultipartUpload>".encode()
        answer = self.request("POST", path, {"uploadId": upload}, document)[2]
        if find(answer, "ETag") is None:
            raise Refused(200, code_of(answer))

    def keys(self, bucket, prefix=""):
        """All keys of a bucket, page by page."""
        found, token = [], None
        while True:
            query = {"list-type": "2", "prefix": prefix}
            if token:
                query["continuation-token"] = token
            page = self.request("GET", f"/{bucket}", query)[2]
            found += [element.text for element in xml.fromstring(page).iter() if element.tag.endswith("}Key") or element.tag == "Key"]
            token = find(page, "NextContinuationToken")
            if not token:
                return found


def find(document, name):
    """The text of the first element called `name`, whatever its namespace; None when there is none."""
    try:
        elements = xml.fromstring(document).iter()
    except xml.ParseError:
        return None
    return next((element.text for element in elements if element.tag.split("}")[-1] == name), None)


def code_of(document):
    return find(document, "Code") or ""
