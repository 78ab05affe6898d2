//! object_store: what DataFusion, Delta and others stand on.

use crate::{SIZES, Target, body};
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};
use std::sync::Arc;

/// Writers of the race, and how often each counts up.
const WRITERS: u64 = 4;
const STEPS: u64 = 10;

fn store(target: &Target) -> AmazonS3 {
    let builder = AmazonS3Builder::new()
        .with_endpoint(&target.endpoint)
        .with_allow_http(true)
        .with_region(&target.region)
        .with_bucket_name(&target.bucket)
        .with_access_key_id(&target.access_key)
        .with_secret_access_key(&target.secret_key)
        .with_conditional_put(S3ConditionalPut::ETagMatch);
    builder.build().expect("a full configuration")
}

async fn read(store: &AmazonS3, path: &Path) -> Bytes {
    store.get(path).await.expect("the object is there").bytes().await.expect("the whole body")
}

/// What is put comes back; a stream in parts too.
pub async fn sizes(target: &Target) {
    let store = store(target);
    for size in SIZES {
        let (path, bytes) = (Path::from(format!("s/{size}")), body(size as u64, size));
        store.put(&path, PutPayload::from(bytes.clone())).await.expect("a put");
        assert!(read(&store, &path).await == bytes, "{size} bytes came back changed");
    }
    let path = Path::from("parts");
    let mut upload = store.put_multipart(&path).await.expect("an upload begins");
    let parts = [body(1, 5 << 20), body(2, 5 << 20), body(3, 99)];
    for part in &parts {
        upload.put_part(PutPayload::from(part.clone())).await.expect("a part is stored");
    }
    upload.complete().await.expect("the upload completes");
    assert!(read(&store, &path).await == parts.concat());
}

/// Create only, update only what was read.
pub async fn conditions(target: &Target) {
    let (store, path) = (store(target), Path::from("c"));
    let put = |text: &'static str, mode: PutMode| {
        store.put_opts(&path, PutPayload::from_static(text.as_bytes()), mode.into())
    };
    let first = put("1", PutMode::Create).await.expect("nobody was first");
    let refused = put("2", PutMode::Create).await.expect_err("somebody was first");
    assert!(matches!(refused, Error::AlreadyExists { .. }), "{refused:?}");
    let seen = UpdateVersion { e_tag: first.e_tag, version: first.version };
    put("3", PutMode::Update(seen.clone())).await.expect("the version is the current one");
    let refused = put("4", PutMode::Update(seen)).await.expect_err("the version is an old one");
    assert!(matches!(refused, Error::Precondition { .. }), "{refused:?}");
    assert_eq!(read(&store, &path).await, "3");
}

/// Several writers count up one object by compare-and-set: no step is lost.
pub async fn race(target: &Target) {
    let (store, path) = (Arc::new(store(target)), Path::from("counter"));
    store.put(&path, PutPayload::from_static(b"0")).await.expect("a put");
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let (store, path) = (store.clone(), path.clone());
        writers.push(tokio::spawn(async move {
            let mut done = 0;
            while done < STEPS {
                let got = store.get(&path).await.expect("the object is there");
                let seen = UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
                let text = String::from_utf8(got.bytes().await.expect("the whole body").to_vec()).expect("a number");
                let next = text.parse::<u64>().expect("a number") + 1;
                match store.put_opts(&path, PutPayload::from(next.to_string()), PutMode::Update(seen).into()).await {
                    Ok(_) => done += 1,
                    Err(Error::Precondition { .. }) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        }));
    }
    for writer in writers {
        writer.await.expect("a writer ends well");
    }
    assert_eq!(read(&store, &path).await, (WRITERS * STEPS).to_string());
}

/// Folders, prefixes, ranges, copies and many deletes.
pub async fn listing(target: &Target) {
    let store = store(target);
    for index in 0..25 {
        let path = Path::from(format!("l/d{}/{index:02}", index % 3));
        store.put(&path, PutPayload::from(vec![index as u8; 100])).await.expect("a put");
    }
    let top = store.list_with_delimiter(Some(&Path::from("l"))).await.expect("a listing");
    assert_eq!(top.common_prefixes, ["l/d0", "l/d1", "l/d2"].map(Path::from));
    let found: Vec<_> = store.list(Some(&Path::from("l/d1"))).try_collect().await.expect("a listing");
    assert_eq!(found.len(), 8);
    assert!(found.iter().all(|meta| meta.size == 100));
    let part = store.get_range(&Path::from("l/d1/01"), 90..95).await.expect("a range");
    assert_eq!(part, [1u8; 5].as_slice());
    store.copy(&Path::from("l/d1/01"), &Path::from("copy")).await.expect("a copy");
    assert_eq!(read(&store, &Path::from("copy")).await.len(), 100);
    let all: Vec<Path> = store.list(None).map_ok(|meta| meta.location).try_collect().await.expect("a listing");
    assert_eq!(all.len(), 26);
    let paths = futures_util::stream::iter(all.into_iter().map(Ok));
    let gone: Vec<Path> = store.delete_stream(Box::pin(paths)).try_collect().await.expect("deletes");
    assert_eq!(gone.len(), 26);
    let rest: Vec<_> = store.list(None).try_collect::<Vec<_>>().await.expect("a listing");
    assert!(rest.is_empty());
}
