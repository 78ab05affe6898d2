//! Buckets: create, find, describe, delete.

use http::{HeaderValue, Response, StatusCode, header};
use plinth_protocol::meta::{BucketsQuery, Outcome};
use plinth_protocol::object::BucketState;

use super::{decided, unexpected};
use crate::dates::Seconds;
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::Call;
use crate::head::is_bucket_name;
use crate::journey::Stage;
use crate::payload::Claims;
use crate::reply::{self, Body};
use crate::store::Store;
use crate::support::{CREATE_BUCKET, check_document};
use crate::xml::{UrlEncoded, Writer, XmlLimits, parse};

/// Most buckets in one page of ListBuckets.
const BUCKETS_MAX: u64 = 10_000;
/// Longest name of a region.
const LOCATION_CHARACTERS_MAX: usize = 64;
/// Rows asked of the system group at a time.
const BUCKETS_AT_ONCE: u32 = 1_000;

/// CreateBucket: any location, or none (B1).
pub(super) async fn create<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    let name = call.head.bucket().to_owned();
    if !is_bucket_name(&name) {
        return Err(S3Error::from(Code::InvalidBucketName).element("BucketName", name));
    }
    let location = match call.head.content_length() {
        None | Some(0) if !call.head.is_transfer_chunked() => {
            call.no_body().await?;
            None
        }
        _ => {
            let claims = Claims::read(call.head, call.verified.presigned)?;
            let body = call.document(&claims, XmlLimits::SMALL).await?;
            location_constraint(&body)?
        }
    };
    let owner = call.verified.credential.account.clone();
    let outcome = call.inner.store.create_bucket(&name, &owner, location).await?;
    call.journey.end(Stage::Commit);
    decided(outcome)?;
    let mut response = reply::empty(StatusCode::OK);
    let location = HeaderValue::try_from(format!("/{name}")).map_err(|_| S3Error::from(Code::InvalidBucketName))?;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

fn location_constraint(body: &[u8]) -> S3Result<Option<String>> {
    if body.is_empty() {
        return Ok(None);
    }
    let root = parse(body, XmlLimits::SMALL)?;
    check_document(&root, &CREATE_BUCKET)?;
    let location = root.child_text("LocationConstraint")?.map(str::trim).filter(|text| !text.is_empty());
    let is_region = |text: &str| {
        text.len() <= LOCATION_CHARACTERS_MAX && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if let Some(text) = location.filter(|text| !is_region(text)) {
        let shown: String = text.chars().take(LOCATION_CHARACTERS_MAX).collect();
        return Err(S3Error::argument("LocationConstraint", &shown, "The location is no name of a region."));
    }
    Ok(location.map(str::to_owned))
}

/// HeadBucket.
pub(super) fn head<S: Store>(call: &Call<'_, S>) -> S3Result<Response<Body>> {
    let bucket = call.bucket()?;
    let mut response = reply::empty(StatusCode::OK);
    let region = bucket.location.as_deref().unwrap_or(&call.inner.config.region);
    if let Ok(region) = HeaderValue::try_from(region) {
        response.headers_mut().insert("x-amz-bucket-region", region);
    }
    response.headers_mut().insert("x-amz-access-point-alias", HeaderValue::from_static("false"));
    Ok(response)
}

/// DeleteBucket (B3).
pub(super) async fn delete<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    // By its id: what was authorised is deleted, not what has the name by then.
    let bucket = call.bucket()?;
    let outcome = call.inner.store.delete_bucket(&bucket.name, bucket.bucket).await?;
    call.journey.end(Stage::Commit);
    match decided(outcome)? {
        (Outcome::Done, _) => Ok(reply::empty(StatusCode::NO_CONTENT)),
        _ => Err(unexpected("Done")),
    }
}

/// GetBucketLocation: `us-east-1` shows as empty (B1).
pub(super) fn location<S: Store>(call: &Call<'_, S>) -> S3Result<Response<Body>> {
    let bucket = call.bucket()?;
    let region = bucket.location.as_deref().unwrap_or(&call.inner.config.region);
    let mut xml = Writer::document(200);
    xml.root("LocationConstraint");
    if region != "us-east-1" {
        xml.chars(region);
    }
    xml.close("LocationConstraint");
    Ok(reply::xml(xml))
}

/// GetBucketVersioning: never enabled, truthfully.
pub(super) fn versioning<S: Store>(call: &Call<'_, S>) -> S3Result<Response<Body>> {
    call.bucket()?;
    let mut xml = Writer::document(160);
    xml.root("VersioningConfiguration");
    xml.close("VersioningConfiguration");
    Ok(reply::xml(xml))
}

/// GetBucketAccelerateConfiguration: empty.
pub(super) fn accelerate<S: Store>(call: &Call<'_, S>) -> S3Result<Response<Body>> {
    call.bucket()?;
    let mut xml = Writer::document(160);
    xml.root("AccelerateConfiguration");
    xml.close("AccelerateConfiguration");
    Ok(reply::xml(xml))
}

/// Analytics, metrics, intelligent tiering: the list is empty, one of them does not exist.
pub(super) fn configuration<S: Store>(call: &Call<'_, S>) -> S3Result<Response<Body>> {
    call.bucket()?;
    if call.head.query.has("id") {
        return Err(Code::NoSuchConfiguration.into());
    }
    let root = match () {
        () if call.head.query.has("analytics") => "ListBucketAnalyticsConfigurationsResult",
        () if call.head.query.has("metrics") => "ListMetricsConfigurationsResult",
        () => "ListBucketIntelligentTieringConfigurationsOutput",
    };
    let mut xml = Writer::document(200);
    xml.root(root);
    xml.flag("IsTruncated", false);
    xml.close(root);
    Ok(reply::xml(xml))
}

/// GetBucketAcl: the owner has full control, as `BucketOwnerEnforced` means.
pub(super) fn acl<S: Store>(call: &Call<'_, S>) -> S3Result<Response<Body>> {
    let bucket = call.bucket()?;
    Ok(reply::xml(owner_only(&bucket.owner)))
}

/// Writes the one access control list that exists.
pub(super) fn owner_only(owner: &str) -> Writer {
    let mut xml = Writer::document(600);
    xml.root("AccessControlPolicy");
    xml.owner(owner);
    xml.open("AccessControlList");
    xml.open("Grant");
    xml.open_with("Grantee", "xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"CanonicalUser\"");
    xml.text("ID", owner);
    xml.text("DisplayName", owner);
    xml.close("Grantee");
    xml.text("Permission", "FULL_CONTROL");
    xml.close("Grant");
    xml.close("AccessControlList");
    xml.close("AccessControlPolicy");
    xml
}

/// ListBuckets: the caller's own, by name.
pub(super) async fn list<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    let account = call.verified.credential.account.clone();
    let query = &call.head.query;
    let most = query.number("max-buckets", 1, BUCKETS_MAX)?.unwrap_or(BUCKETS_MAX) as usize;
    let prefix = query.get("prefix").unwrap_or_default().to_owned();
    let mut after =
        query.get("continuation-token").map(super::list::decode_token).transpose()?.map(|place| place.after);
    let region = query.get("bucket-region").map(str::to_owned);
    let mut found = Vec::new();
    loop {
        let ask = BucketsQuery {
            prefix: prefix.clone(),
            after: after.clone(),
            limit: BUCKETS_AT_ONCE,
            account: Some(account.to_string()),
        };
        let page = call.inner.store.buckets(ask).await?;
        after = page.buckets.last().map(|row| row.name.clone());
        // A database of an older version does not know whose buckets are whose.
        let own = page.buckets.into_iter().filter(|row| *row.owner == *account && row.state == BucketState::Active);
        let here = |location: Option<&str>| {
            region.as_deref().is_none_or(|region| location.unwrap_or(&call.inner.config.region) == region)
        };
        found.extend(own.filter(|row| here(row.location.as_deref())));
        if !page.more || found.len() > most {
            break;
        }
    }
    call.journey.end(Stage::Row);
    let more = found.len() > most;
    found.truncate(most);
    let mut xml = Writer::document(300 + found.len() * 160);
    xml.root("ListAllMyBucketsResult");
    xml.owner(&account);
    xml.open("Buckets");
    for row in &found {
        xml.open("Bucket");
        xml.name("Name", &row.name, UrlEncoded::No);
        xml.plain("CreationDate", &Seconds::from_millis(row.created.millis()).xml());
        xml.text("BucketRegion", row.location.as_deref().unwrap_or(&call.inner.config.region));
        xml.close("Bucket");
    }
    xml.close("Buckets");
    if let Some(last) = found.last().filter(|_| more) {
        xml.text("ContinuationToken", &super::list::encode_token(&last.name, false));
    }
    if !prefix.is_empty() {
        xml.text("Prefix", &prefix);
    }
    xml.close("ListAllMyBucketsResult");
    Ok(reply::xml(xml))
}
