//! What the gateway asks of the cluster: the client crate, or a double of it in tests.

use bytes::Bytes;
use plinth_client::{Client, ObjectReader, ObjectWriter};
use plinth_protocol::meta::{
    BucketsPage, BucketsQuery, ClientToken, Command, ListPage, ListQuery, ObjectView, Outcome, Query, Reply,
    UploadsPage, UploadsQuery,
};
use plinth_protocol::object::{Body, BucketRow};
use plinth_protocol::stripe::Owner;
use plinth_protocol::{BucketId, Failure, HybridTime};
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::Instant;

/// The namespace and the data, as one cluster offers them.
pub trait Store: Clone + Send + Sync + 'static {
    /// Takes an object's bytes.
    type Writer: BodyWriter;
    /// Yields an object's bytes.
    type Reader: BodyReader;

    /// Returns an active bucket, from memory where that is recent.
    fn bucket(&self, name: &str) -> impl Future<Output = Result<Option<Arc<BucketRow>>, Failure>> + Send;
    /// Returns an active bucket as it is now.
    fn bucket_now(&self, name: &str) -> impl Future<Output = Result<Option<Arc<BucketRow>>, Failure>> + Send;
    /// Returns a page of buckets in name order.
    fn buckets(&self, query: BucketsQuery) -> impl Future<Output = Result<BucketsPage, Failure>> + Send;
    /// Creates a bucket.
    fn create_bucket(
        &self,
        name: &str,
        owner: &str,
        location: Option<String>,
    ) -> impl Future<Output = Result<Outcome, Failure>> + Send;
    /// Deletes an empty bucket, if its name still belongs to this id.
    fn delete_bucket(&self, name: &str, bucket: BucketId) -> impl Future<Output = Result<Outcome, Failure>> + Send;
    /// Commits a mutation in the shard of a key.
    fn mutate(
        &self,
        bucket: BucketId,
        key: &str,
        command: Command,
        token: Option<ClientToken>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Outcome, Failure>> + Send;
    /// Asks the shard of a key.
    fn query(
        &self,
        bucket: BucketId,
        key: &str,
        query: Query,
        deadline: Instant,
    ) -> impl Future<Output = Result<Reply, Failure>> + Send;
    /// Returns a page of keys over all shards.
    fn list(&self, query: ListQuery) -> impl Future<Output = Result<ListPage, Failure>> + Send;
    /// Returns a page of open uploads over all shards.
    fn uploads(&self, query: UploadsQuery) -> impl Future<Output = Result<UploadsPage, Failure>> + Send;
    /// Starts an object or part.
    fn write(&self, owner: Owner, size_hint: Option<u64>) -> Self::Writer;
    /// Opens a range of an object.
    fn open(&self, bucket: BucketId, key: &str, view: &ObjectView, range: Range<u64>) -> Self::Reader;
    /// Draws 128 random bits.
    fn draw(&self) -> u128;
    /// Returns wall time.
    fn now(&self) -> HybridTime;
}

/// Takes an object's bytes in order.
pub trait BodyWriter: Send {
    /// Takes note that the sender is silent: memory that others wait for is given back.
    fn handle_stall(&mut self) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Ends the object; its bytes are durable then.
    fn finish(self) -> impl Future<Output = Result<Body, Failure>> + Send;
}

/// Yields an object's bytes in order, each verified.
pub trait BodyReader: Send + Unpin + 'static {
    /// Polls for the next bytes; nothing at the end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>>;
}

impl Store for Client {
    type Writer = ObjectWriter;
    type Reader = ObjectReader;

    async fn bucket(&self, name: &str) -> Result<Option<Arc<BucketRow>>, Failure> {
        Client::bucket(self, name).await
    }

    async fn bucket_now(&self, name: &str) -> Result<Option<Arc<BucketRow>>, Failure> {
        Client::bucket_now(self, name).await
    }

    async fn buckets(&self, query: BucketsQuery) -> Result<BucketsPage, Failure> {
        Client::buckets(self, query).await
    }

    async fn create_bucket(&self, name: &str, owner: &str, location: Option<String>) -> Result<Outcome, Failure> {
        Client::create_bucket(self, name, owner, location).await
    }

    async fn delete_bucket(&self, name: &str, bucket: BucketId) -> Result<Outcome, Failure> {
        Client::delete_bucket(self, name, bucket).await
    }

    async fn mutate(
        &self,
        bucket: BucketId,
        key: &str,
        command: Command,
        token: Option<ClientToken>,
        deadline: Instant,
    ) -> Result<Outcome, Failure> {
        Client::mutate(self, self.group_of(bucket, key), command, token, deadline).await
    }

    async fn query(&self, bucket: BucketId, key: &str, query: Query, deadline: Instant) -> Result<Reply, Failure> {
        Client::query(self, self.group_of(bucket, key), query, deadline).await
    }

    async fn list(&self, query: ListQuery) -> Result<ListPage, Failure> {
        Client::list(self, query).await
    }

    async fn uploads(&self, query: UploadsQuery) -> Result<UploadsPage, Failure> {
        Client::uploads(self, query).await
    }

    fn write(&self, owner: Owner, size_hint: Option<u64>) -> ObjectWriter {
        Client::write(self, owner, size_hint)
    }

    fn open(&self, bucket: BucketId, key: &str, view: &ObjectView, range: Range<u64>) -> ObjectReader {
        Client::open(self, bucket, key, view, range)
    }

    fn draw(&self) -> u128 {
        Client::draw(self)
    }

    fn now(&self) -> HybridTime {
        Client::now(self)
    }
}

impl BodyWriter for ObjectWriter {
    async fn handle_stall(&mut self) -> Result<(), Failure> {
        ObjectWriter::handle_stall(self).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        ObjectWriter::write(self, bytes).await
    }

    async fn finish(self) -> Result<Body, Failure> {
        ObjectWriter::finish(self).await
    }
}

impl BodyReader for ObjectReader {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        ObjectReader::poll_next(self, cx)
    }
}
