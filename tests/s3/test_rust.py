"""The Rust SDKs: aws-sdk-s3 and object_store, driven by the small program in rust/."""

import pathlib
import unittest

from suite import ClientTest, Server


class RustClients(ClientTest):
    """One test for each fact that the driver knows."""

    client = "rust"

    @classmethod
    def setUpClass(cls):
        if not Server.rust_clients or not pathlib.Path(Server.rust_clients).exists():
            raise unittest.SkipTest("the driver of the Rust SDKs is not built (make rust-clients)")
        super().setUpClass()

    def drive(self, client, fact):
        bucket = self.bucket("rust")
        self.program(Server.rust_clients, client, fact, "--endpoint", Server.endpoint, "--bucket", bucket)


class AwsSdkS3(RustClients):
    client = "aws-sdk-s3 (crate)"

    def test_every_size_comes_back_identical(self):
        self.drive("aws-sdk-s3", "sizes")

    def test_checksums_in_trailers(self):
        self.drive("aws-sdk-s3", "checksums")

    def test_parts_make_one_object(self):
        self.drive("aws-sdk-s3", "multipart")

    def test_conditions_decide_who_writes(self):
        self.drive("aws-sdk-s3", "conditions")


class ObjectStore(RustClients):
    client = "object_store (crate)"

    def test_every_size_comes_back_identical(self):
        self.drive("object-store", "sizes")

    def test_create_and_update_by_condition(self):
        self.drive("object-store", "conditions")

    def test_racing_updates_lose_nothing(self):
        self.drive("object-store", "race")

    def test_listing_ranges_and_deletes(self):
        self.drive("object-store", "listing")
