//! The operations, one function each, in files by area.

mod attributes;
mod bucket;
mod copy;
mod delete;
mod get;
mod list;
mod multipart;
mod put;
mod uploads;

use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use plinth_protocol::meta::{ObjectQuery, ObjectView, Outcome, Query, Reply};
use plinth_protocol::object::{Checksum, Etag};
use plinth_protocol::{Failure, FailureKind};

use crate::checksum;
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::Call;
use crate::reply::Body;
use crate::store::Store;
use crate::support::Operation;

/// Answers a request that has been routed, proved and checked.
pub(crate) async fn answer<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    match call.operation {
        Operation::PutObject => put::put_object(call).await,
        Operation::UploadPart => multipart::upload_part(call).await,
        Operation::DeleteObjects => delete::delete_objects(call).await,
        Operation::CompleteMultipartUpload => multipart::complete(call).await,
        Operation::CreateBucket => bucket::create(call).await,
        _ => {
            // The others have no use for a body.
            call.no_body().await?;
            answer_bodiless(call).await
        }
    }
}

async fn answer_bodiless<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    match call.operation {
        Operation::GetObject | Operation::HeadObject => get::get_object(call).await,
        Operation::DeleteObject => delete::delete_object(call).await,
        Operation::CopyObject => copy::copy_object(call).await,
        Operation::UploadPartCopy => copy::upload_part_copy(call).await,
        Operation::ListObjectsV2 => list::list_v2(call).await,
        Operation::ListObjects => list::list_v1(call).await,
        Operation::ListBuckets => bucket::list(call).await,
        Operation::HeadBucket => bucket::head(call),
        Operation::DeleteBucket => bucket::delete(call).await,
        Operation::GetBucketLocation => bucket::location(call),
        Operation::GetBucketVersioning => bucket::versioning(call),
        Operation::GetBucketAcl => bucket::acl(call),
        Operation::GetBucketAccelerateConfiguration => bucket::accelerate(call),
        Operation::GetBucketConfiguration => bucket::configuration(call),
        Operation::GetObjectAcl => attributes::acl(call).await,
        Operation::GetObjectTagging => attributes::tagging(call).await,
        Operation::GetObjectAttributes => attributes::attributes(call).await,
        Operation::CreateMultipartUpload => multipart::create(call).await,
        Operation::AbortMultipartUpload => multipart::abort(call).await,
        Operation::ListParts => uploads::list_parts(call).await,
        Operation::ListMultipartUploads => uploads::list_uploads(call).await,
        Operation::PutObject
        | Operation::UploadPart
        | Operation::DeleteObjects
        | Operation::CompleteMultipartUpload
        | Operation::CreateBucket => Err(Code::InternalError.into()),
    }
}

/// Writes an ETag in quotes.
fn etag_value(etag: &Etag) -> HeaderValue {
    HeaderValue::try_from(format!("\"{etag}\"")).expect("digits in quotes are a valid header value")
}

fn put_etag(headers: &mut HeaderMap, etag: &Etag) {
    headers.insert(header::ETAG, etag_value(etag));
}

/// Puts a checksum and its type into a response.
fn put_checksum(headers: &mut HeaderMap, checksum: &Checksum) {
    let name = HeaderName::from_static(checksum::header_name(checksum.algorithm));
    let value = HeaderValue::try_from(checksum::show(checksum)).expect("base64 is a valid header value");
    headers.insert(name, value);
    headers.insert("x-amz-checksum-type", HeaderValue::from_static(checksum::kind_name(checksum.kind)));
}

/// The answer that a decided outcome allows: the outcome itself, or what it refuses. Whether it is
/// the first answer given again comes with it.
fn decided(outcome: Outcome) -> S3Result<(Outcome, bool)> {
    match outcome {
        Outcome::Replayed(first) => match *first {
            Outcome::Refused(refusal) => Err(S3Error::from(refusal)
                .header(HeaderName::from_static("x-plinth-replayed"), HeaderValue::from_static("true"))),
            first => Ok((first, true)),
        },
        Outcome::Refused(refusal) => Err(refusal.into()),
        outcome => Ok((outcome, false)),
    }
}

fn put_replayed(response: &mut Response<Body>, replayed: bool) {
    if replayed {
        response.headers_mut().insert("x-plinth-replayed", HeaderValue::from_static("true"));
    }
}

/// Makes the error for an answer that is not of the kind asked for.
fn unexpected(what: &str) -> S3Error {
    Failure::new(FailureKind::Internal, format!("unexpected answer: {what}")).into()
}

/// Reads an object's row, and with `body` where its bytes are.
async fn object_view<S: Store>(call: &mut Call<'_, S>, body: bool) -> S3Result<ObjectView> {
    check_version(call)?;
    let bucket = call.bucket()?.bucket;
    let query = Query::Object(ObjectQuery { bucket, key: call.head.key().to_owned(), body });
    let reply = call.inner.store.query(bucket, call.head.key(), query, call.deadline()).await?;
    call.journey.end(crate::journey::Stage::Row);
    match reply {
        Reply::Object(view) => Ok(view),
        Reply::Absent(kind) => Err(kind.into()),
        _ => Err(unexpected("Object")),
    }
}

/// Checks a version id: without versioning there is only the version called `null`.
fn check_version<S: Store>(call: &Call<'_, S>) -> S3Result<()> {
    match call.head.query.get("versionId") {
        None | Some("null") => Ok(()),
        Some(other) => Err(S3Error::argument("versionId", other, "Invalid version id specified")),
    }
}
