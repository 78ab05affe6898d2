//! DeleteObject and DeleteObjects.

use http::{Response, StatusCode};
use plinth_protocol::BucketId;
use plinth_protocol::meta::{ClientToken, Command, DeleteObject, Expectation, Outcome};
use plinth_protocol::object::KEY_BYTES_MAX;
use tokio::task::JoinSet;

use super::{check_version, decided, put_replayed, unexpected};
use crate::conditions;
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::{COMMIT_WAIT_MAX, Call};
use crate::journey::Stage;
use crate::payload::Claims;
use crate::reply::{self, Body};
use crate::store::Store;
use crate::support::{DELETE, check_document};
use crate::token::{TokenScope, add_record};
use crate::xml::{Element, Writer, XmlLimits, parse};

/// Most keys in one DeleteObjects.
const KEYS_MAX: usize = 1000;
/// Commits of one request in flight at a time.
const DELETES_AT_ONCE: usize = 64;

/// DeleteObject: a missing key is 204 too (D1).
pub(super) async fn delete_object<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    check_version(call)?;
    let bucket = call.bucket()?.bucket;
    let expectation = conditions::write_expectation(call.head, true)?;
    let token = TokenScope::read(call.head, call.verified, call.operation, expectation.as_ref())?;
    let token = token.map(|token| {
        token.complete(|hash| {
            if let Some(expectation) = &expectation {
                add_record(hash, expectation);
            }
        })
    });
    let outcome = delete(&call.inner.store, bucket, call.head.key(), expectation, token).await;
    call.journey.end(Stage::Commit);
    let replayed = outcome?;
    let mut response = reply::empty(StatusCode::NO_CONTENT);
    put_replayed(&mut response, replayed);
    Ok(response)
}

async fn delete<S: Store>(
    store: &S,
    bucket: BucketId,
    key: &str,
    expectation: Option<Expectation>,
    token: Option<ClientToken>,
) -> S3Result<bool> {
    let command = Command::DeleteObject(DeleteObject { bucket, key: key.to_owned(), expectation });
    let deadline = tokio::time::Instant::now() + COMMIT_WAIT_MAX;
    let outcome = store.mutate(bucket, key, command, token, deadline).await?;
    match decided(outcome)? {
        (Outcome::Deleted(_), replayed) => Ok(replayed),
        _ => Err(unexpected("Deleted")),
    }
}

/// One key of DeleteObjects.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Doomed {
    key: String,
    expectation: Option<Expectation>,
    /// `null`, where the client named it.
    version: Option<String>,
}

/// DeleteObjects: every key is decided for itself (C4, D2).
pub(super) async fn delete_objects<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    let bucket = call.bucket()?.bucket;
    let claims = Claims::read(call.head, call.verified.presigned)?;
    if !claims.prove_anything() {
        return Code::InvalidRequest.fail("Missing required header for this request: Content-MD5 OR x-amz-checksum-*");
    }
    let body = call.document(&claims, XmlLimits::LARGE).await?;
    let (doomed, is_quiet) = read_document(&body)?;
    let mut results: Vec<Option<S3Result<()>>> = doomed.iter().map(|_| None).collect();
    let mut running: JoinSet<(usize, S3Result<()>)> = JoinSet::new();
    for (at, one) in doomed.iter().enumerate() {
        while running.len() >= DELETES_AT_ONCE {
            take_result(&mut running, &mut results).await;
        }
        let (store, one) = (call.inner.store.clone(), one.clone());
        running.spawn(async move { (at, delete_one(&store, bucket, one).await) });
    }
    while !running.is_empty() {
        take_result(&mut running, &mut results).await;
    }
    call.journey.end(Stage::Commit);
    results.iter().flatten().flat_map(|result| result.as_ref().err()).for_each(|error| {
        error.tell(call.journey.request_id());
    });
    Ok(reply::xml(write_result(&doomed, results, is_quiet)))
}

async fn take_result(running: &mut JoinSet<(usize, S3Result<()>)>, results: &mut [Option<S3Result<()>>]) {
    // A task that panicked leaves its key without a result: that is reported as InternalError.
    if let Some(Ok((at, result))) = running.join_next().await {
        results[at] = Some(result);
    }
}

async fn delete_one<S: Store>(store: &S, bucket: BucketId, one: Doomed) -> S3Result<()> {
    if one.key.len() > KEY_BYTES_MAX {
        return Err(Code::KeyTooLongError.into());
    }
    if let Some(version) = one.version.as_deref().filter(|version| *version != "null") {
        return Err(S3Error::argument("VersionId", version, "Invalid version id specified"));
    }
    delete(store, bucket, &one.key, one.expectation, None).await.map(drop)
}

fn read_document(body: &[u8]) -> S3Result<(Vec<Doomed>, bool)> {
    let root = parse(body, XmlLimits::LARGE)?;
    check_document(&root, &DELETE)?;
    let is_quiet = match root.child_text("Quiet")?.map(str::trim) {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(Code::MalformedXML.into()),
    };
    let objects: Vec<&Element> = root.children.iter().filter(|child| child.name == "Object").collect();
    if objects.is_empty() || objects.len() > KEYS_MAX {
        return Err(Code::MalformedXML.into());
    }
    let doomed = objects.into_iter().map(|object| {
        let key = object.child_text("Key")?.filter(|key| !key.is_empty()).ok_or(Code::MalformedXML)?.to_owned();
        let expectation = object.child_text("ETag")?.map(conditions::matching).transpose()?;
        let version = object.child_text("VersionId")?.filter(|text| !text.is_empty()).map(str::to_owned);
        Ok(Doomed { key, expectation, version })
    });
    Ok((doomed.collect::<S3Result<Vec<_>>>()?, is_quiet))
}

fn write_result(doomed: &[Doomed], results: Vec<Option<S3Result<()>>>, is_quiet: bool) -> Writer {
    let mut xml = Writer::document(200 + doomed.len() * 80);
    xml.root("DeleteResult");
    for (one, result) in doomed.iter().zip(results) {
        let result = result.unwrap_or_else(|| Err(Code::InternalError.into()));
        match result {
            Ok(()) if is_quiet => {}
            Ok(()) => {
                xml.open("Deleted");
                xml.text("Key", &one.key);
                if let Some(version) = &one.version {
                    xml.text("VersionId", version);
                }
                xml.close("Deleted");
            }
            Err(error) => {
                xml.open("Error");
                xml.text("Key", &one.key);
                xml.text("Code", error.code().name());
                xml.text("Message", error.code().text());
                xml.close("Error");
            }
        }
    }
    xml.close("DeleteResult");
    xml
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn d2_more_than_a_thousand_keys_are_malformed() {
        let body = |count: usize| format!("<Delete>{}</Delete>", "<Object><Key>k</Key></Object>".repeat(count));
        assert_eq!(read_document(body(1000).as_bytes()).expect("allowed").0.len(), 1000);
        for count in [0, 1001] {
            assert_eq!(read_document(body(count).as_bytes()).expect_err("refused").code(), Code::MalformedXML);
        }
    }

    #[test]
    fn d3_keys_survive_xml_exactly() {
        let body = b"<Delete><Object><Key> a&#13;\n&amp; </Key></Object><Quiet>true</Quiet></Delete>";
        let (doomed, is_quiet) = read_document(body).expect("well-formed");
        assert_eq!(doomed[0].key, " a\r\n& ");
        assert!(is_quiet);
    }

    #[test]
    fn unknown_elements_are_refused_by_name() {
        let error =
            read_document(b"<Delete><Object><Key>k</Key><Size>1</Size></Object></Delete>").expect_err("refused");
        assert_eq!(error.code(), Code::NotImplemented);
        assert!(error.to_string().contains("Size"));
    }

    proptest! {
        #[test]
        fn any_document_is_read_or_refused_cleanly(noise in "(<Delete>|<Object>|<Key>|</Key>|</Object>|</Delete>|a|&amp;|&#13;|<Quiet>true</Quiet>){0,12}") {
            let _ = read_document(noise.as_bytes());
        }
    }
}
