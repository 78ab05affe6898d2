"""Warehouses: DuckDB, Arrow, Polars and Delta Lake keep tables in the store and read them back."""

import concurrent.futures
import importlib.util
import multiprocessing
import pathlib
import unittest
import urllib.parse

from suite import FULL, MIB, ClientTest, Server

# Rows of the partitioned table. A row takes about 44 bytes of Parquet, as most of it cannot be compressed.
DUCKDB_ROWS = 25_000_000 if FULL else 1_200_000
DUCKDB_BYTES_MIN = 1024 * MIB if FULL else 48 * MIB
PARTITIONS = 8
WRITERS = 4
COMMITS = 5


def package(name, wanted):
    """The version of an installed Python package; skips when it is missing or another."""
    if importlib.util.find_spec(name) is None:
        raise unittest.SkipTest(f"{name}: not installed")
    version = importlib.import_module(name).__version__
    if version != wanted:
        raise unittest.SkipTest(f"{name}: wanted {wanted}, found {version}")


class DuckDb(ClientTest):
    client = "DuckDB 1.5.5 + httpfs 1.5.5"

    @classmethod
    def setUpClass(cls):
        package("duckdb", "1.5.5")
        if importlib.util.find_spec("duckdb_extension_httpfs") is None:
            raise unittest.SkipTest("duckdb-extension-httpfs: not installed")
        super().setUpClass()

    def connect(self):
        import duckdb
        import duckdb_extension_httpfs

        extension = next(pathlib.Path(duckdb_extension_httpfs.__file__).parent.rglob("httpfs.duckdb_extension"))
        database = duckdb.connect(config={"memory_limit": "3GB", "threads": 2, "temp_directory": str(self.folder / "spilled")})
        database.execute(f"LOAD '{extension}'")
        server = urllib.parse.urlsplit(Server.endpoint)
        database.execute(
            f"CREATE SECRET (TYPE s3, KEY_ID '{Server.access_key}', SECRET '{Server.secret_key}', REGION '{Server.region}',"
            f" ENDPOINT '{server.netloc}', URL_STYLE 'path', USE_SSL {str(server.scheme == 'https').lower()})"
        )
        return database

    def test_a_partitioned_table_is_written_and_queried(self):
        bucket, database = self.bucket("duckdb"), self.connect()
        database.execute(
            f"CREATE TABLE orders AS SELECT i AS id, i % {PARTITIONS} AS day, hash(i) AS customer,"
            f" sha256(i::VARCHAR)[:32] AS note, (i % 1000) / 100 AS price FROM range({DUCKDB_ROWS}) t(i)"
        )
        database.execute(f"COPY orders TO 's3://{bucket}/orders' (FORMAT parquet, PARTITION_BY (day), ROW_GROUP_SIZE 100000)")
        stored = f"read_parquet('s3://{bucket}/orders/*/*.parquet', hive_partitioning = true)"
        question = "SELECT count(*), sum(id), bit_xor(customer), min(note), max(note), sum(price)::DECIMAL(18, 2) FROM"
        self.assertEqual(database.sql(f"{question} {stored}").fetchone(), database.sql(f"{question} orders").fetchone())
        one = f"{question} {{}} WHERE day = 3 AND id BETWEEN 1000 AND 90000"
        self.assertEqual(database.sql(one.format(stored)).fetchone(), database.sql(one.format("orders")).fetchone())
        s3 = self.s3()
        keys = s3.keys(bucket, "orders/")
        self.assertEqual({key.split("/")[1] for key in keys}, {f"day={day}" for day in range(PARTITIONS)})
        size = sum(int(s3.request("HEAD", f"/{bucket}/{key}")[1]["content-length"]) for key in keys)
        self.assertGreaterEqual(size, DUCKDB_BYTES_MIN)

    def test_a_csv_goes_there_and_back(self):
        bucket, database = self.bucket("duckdb"), self.connect()
        database.execute(f"COPY (SELECT i, i * i AS j FROM range(1000) t(i)) TO 's3://{bucket}/a b/squares.csv' (HEADER)")
        self.assertEqual(database.sql(f"SELECT sum(j) FROM 's3://{bucket}/a b/*.csv'").fetchone(), (332_833_500,))


class Arrow(ClientTest):
    client = "pyarrow 26.0.1"

    @classmethod
    def setUpClass(cls):
        package("pyarrow", "26.0.1")
        super().setUpClass()

    def test_a_dataset_comes_back_equal(self):
        import pyarrow
        import pyarrow.dataset
        from pyarrow import fs

        bucket = self.bucket("arrow")
        server = urllib.parse.urlsplit(Server.endpoint)
        store = fs.S3FileSystem(
            access_key=Server.access_key, secret_key=Server.secret_key, region=Server.region,
            endpoint_override=server.netloc, scheme=server.scheme,
        )
        rows = 300_000
        table = pyarrow.table({"id": range(rows), "part": [i % 3 for i in range(rows)], "text": [f"row {i}" for i in range(rows)]})
        layout = pyarrow.dataset.partitioning(pyarrow.schema([("part", pyarrow.int64())]), flavor="hive")
        pyarrow.dataset.write_dataset(table, f"{bucket}/t", format="parquet", filesystem=store, partitioning=layout)
        stored = pyarrow.dataset.dataset(f"{bucket}/t", format="parquet", filesystem=store, partitioning=layout)
        found = stored.to_table().select(table.column_names).sort_by("id")
        self.assertTrue(found.equals(table.sort_by("id")))
        infos = store.get_file_info(fs.FileSelector(f"{bucket}/t", recursive=True))
        self.assertEqual(sum(info.is_file for info in infos), 3)
        with store.open_output_stream(f"{bucket}/stream") as stream:
            for index in range(12):
                stream.write(bytes([index]) * MIB)
        with store.open_input_file(f"{bucket}/stream") as file:
            self.assertEqual(file.size(), 12 * MIB)
            self.assertEqual(file.read_at(4, 5 * MIB - 2), b"\x04\x04\x05\x05")
        store.delete_dir(f"{bucket}/t")
        self.assertEqual(self.s3().keys(bucket, "t/"), [])


class Polars(ClientTest):
    client = "polars 2.1.0"

    @classmethod
    def setUpClass(cls):
        package("polars", "2.1.0")
        super().setUpClass()

    def test_a_lazy_scan_reads_what_was_written(self):
        import polars

        bucket = self.bucket("polars")
        options = store_options()
        frame = polars.DataFrame({"id": range(200_000), "group": [i % 11 for i in range(200_000)]})
        for part in range(4):
            frame.slice(part * 50_000, 50_000).write_parquet(f"s3://{bucket}/p/{part}.parquet", storage_options=options)
        scan = polars.scan_parquet(f"s3://{bucket}/p/*.parquet", storage_options=options)
        found = scan.filter(polars.col("group") == 4).select(polars.col("id").sum()).collect().item()
        self.assertEqual(found, sum(i for i in range(200_000) if i % 11 == 4))


class DeltaLake(ClientTest):
    client = "deltalake 1.6.6"

    @classmethod
    def setUpClass(cls):
        package("deltalake", "1.6.6")
        super().setUpClass()

    def test_no_concurrent_commit_is_lost(self):
        import deltalake

        bucket = self.bucket("delta")
        table = f"s3://{bucket}/table"
        options = store_options()
        append(table, options, [-1], 1)
        # Processes, not threads: each writer is a client of its own, as in a warehouse.
        with concurrent.futures.ProcessPoolExecutor(WRITERS, multiprocessing.get_context("spawn")) as pool:
            values = [range(writer * 1000, writer * 1000 + COMMITS) for writer in range(WRITERS)]
            done = list(pool.map(append, [table] * WRITERS, [options] * WRITERS, values, [COMMITS] * WRITERS))
        self.assertEqual(done, [COMMITS] * WRITERS)
        stored = deltalake.DeltaTable(table, storage_options=options)
        self.assertEqual(stored.version(), WRITERS * COMMITS)
        found = sorted(int(value) for value in column(stored, "value"))
        self.assertEqual(found, sorted([-1, *(value for values in values for value in values)]))


def store_options():
    return {
        "AWS_ENDPOINT_URL": Server.endpoint, "AWS_ACCESS_KEY_ID": Server.access_key,
        "AWS_SECRET_ACCESS_KEY": Server.secret_key, "AWS_REGION": Server.region, "AWS_ALLOW_HTTP": "true",
        "aws_conditional_put": "etag",
    }


def append(table, options, values, commits):
    """Appends one value a commit; the library itself tries again when another writer was first."""
    import deltalake
    import pyarrow

    for value in list(values)[:commits]:
        row = pyarrow.table({"value": pyarrow.array([value], pyarrow.int64())})
        deltalake.write_deltalake(
            table, row, mode="append", storage_options=options,
            commit_properties=deltalake.CommitProperties(max_commit_retries=100),
        )
    return commits


def column(table, name):
    import pyarrow

    return pyarrow.table(table.to_pyarrow_dataset().to_table())[name].to_pylist()
