//! PutObject, and the way a body takes into the cluster that parts share.

use bytes::Bytes;
use http::{Response, StatusCode};
use plinth_protocol::meta::{Command, Outcome, PutObject};
use plinth_protocol::object::{Body as Place, ChecksumAlgorithm, Etag, ObjectBody};
use plinth_protocol::stripe::Owner;

use std::time::Duration;

use super::{decided, put_checksum, put_etag, put_replayed, unexpected};
use crate::checksum::{BodyDigest, BodySums};
use crate::conditions;
use crate::error::S3Result;
use crate::gateway::Call;
use crate::journey::Stage;
use crate::payload::{Claims, OBJECT_BODY_BYTES_MAX, Payload};
use crate::reply::{self, Body};
use crate::store::{BodyWriter, Store};
use crate::stored;
use crate::token::{TokenScope, add_record};

/// Receives a body into the cluster: hashed and copied once, proved, then durable.
///
/// # Errors
/// Whatever is wrong with the body, before anything is made durable beyond garbage.
pub(super) async fn receive<S: Store>(
    call: &mut Call<'_, S>,
    owner: Owner,
    claims: &Claims,
    stored: ChecksumAlgorithm,
) -> S3Result<(BodyDigest, Place)> {
    let mut payload = call.payload(OBJECT_BODY_BYTES_MAX)?;
    let stalled_after = call.inner.config.patience.stalled_after;
    let mut writer = call.inner.store.write(owner, Some(payload.length()));
    let mut sums = BodySums::new(call.inner.hasher.body(payload.length()), Some(stored), claims.algorithm());
    let received: S3Result<()> = async {
        while let Some(piece) = next_piece(&mut payload, &mut writer, stalled_after).await? {
            sums.update(&piece).await;
            writer.write(&piece).await?;
        }
        Ok(())
    }
    .await;
    call.inner.metrics.received.inc_by(payload.received_bytes());
    call.journey.received(payload.received_bytes());
    call.journey.end(Stage::Body);
    received?;
    let (digest, md5) = sums.finish();
    claims.check(&digest, payload.trailers())?;
    let (md5, place) = if claims.have_md5() {
        let md5 = md5.finish().await;
        claims.check_md5(md5)?;
        (md5, writer.finish().await)
    } else {
        // Nobody compares it: the body may be hashed while its last bytes are on their way to the disks.
        md5.finish_beside(writer.finish()).await
    };
    call.journey.end(Stage::Durable);
    Ok((digest.with_md5(md5), place?))
}

/// Returns the next bytes of a body. While its sender is silent, what the body holds is given back where others wait.
async fn next_piece(
    payload: &mut Payload,
    writer: &mut impl BodyWriter,
    stalled_after: Duration,
) -> S3Result<Option<Bytes>> {
    loop {
        tokio::select! {
            biased;
            piece = payload.next() => return piece,
            () = tokio::time::sleep(stalled_after) => {}
        }
        payload.handle_stall();
        writer.handle_stall().await?;
    }
}

/// PutObject: the condition is decided by the commit that publishes the row.
pub(super) async fn put_object<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    let bucket = call.bucket()?.bucket;
    let key = call.head.key().to_owned();
    let expectation = conditions::write_expectation(call.head, false)?;
    let headers = stored::read(call.head)?;
    let claims = Claims::read(call.head, call.verified.presigned)?;
    let token = TokenScope::read(call.head, call.verified, call.operation, expectation.as_ref())?;
    let algorithm = claims.algorithm().unwrap_or(ChecksumAlgorithm::Crc64Nvme);
    let owner = Owner { bucket, key: key.clone(), upload: None, part: None, ordinal: 0, offset: 0 };
    let (digest, place) = receive(call, owner, &claims, algorithm).await?;

    let put = PutObject {
        bucket,
        key: key.clone(),
        size_bytes: digest.size_bytes,
        etag: Etag { md5: digest.md5, parts: None },
        checksum: digest.checksum,
        body: ObjectBody { headers, body: place },
        expectation,
    };
    // Where the bytes went differs from try to try; what they are does not.
    let token = token.map(|token| {
        token.complete(|hash| {
            add_record(hash, &put.etag);
            add_record(hash, &put.size_bytes);
            add_record(hash, &put.body.headers);
            if let Some(checksum) = &put.checksum {
                add_record(hash, checksum);
            }
            if let Some(expectation) = &put.expectation {
                add_record(hash, expectation);
            }
        })
    });
    let deadline = call.deadline();
    let outcome = call.inner.store.mutate(bucket, &key, Command::PutObject(put), token, deadline).await?;
    call.journey.end(Stage::Commit);
    let (outcome, replayed) = decided(outcome)?;
    let Outcome::Object(row) = outcome else { return Err(unexpected("Object")) };
    let mut response = reply::empty(StatusCode::OK);
    put_etag(response.headers_mut(), &row.etag);
    if let Some(checksum) = &row.checksum {
        put_checksum(response.headers_mut(), checksum);
    }
    put_replayed(&mut response, replayed);
    Ok(response)
}
