//! LIST against a naive list, and the statements L1 to L3.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn list(prefix: &str, delimiter: Option<&str>, after: Option<&str>, limit: u32) -> ListQuery {
    ListQuery {
        bucket: BUCKET,
        prefix: prefix.into(),
        delimiter: delimiter.map(str::to_owned),
        after: after.map(str::to_owned),
        after_prefix: false,
        limit,
    }
}

fn page<S: Store>(shard: &Replica<S>, query: ListQuery) -> (Vec<String>, Vec<String>, bool) {
    match shard.query(Query::List(query)) {
        Reply::List(page) => (page.entries.into_iter().map(|(key, _)| key).collect(), page.prefixes, page.more),
        other => panic!("{other:?}"),
    }
}

fn with_keys(keys: &[&str]) -> Replica<MemoryStore> {
    let mut shard = shard();
    shard.run(Command::OpenBucket(BucketId(BUCKET.0 + 1)));
    for key in keys {
        object_row(shard.run(Command::PutObject(put_inline(key, b"x"))));
    }
    let neighbour = PutObject { bucket: BucketId(BUCKET.0 + 1), ..put_inline("neighbour", b"x") };
    object_row(shard.run(Command::PutObject(neighbour)));
    shard
}

#[test]
fn l1_order_is_utf8_bytes_and_odd_keys_coexist() {
    let shard = with_keys(&["a//b", "a", "b", "a/b", "a/", "\u{e9}", "a\u{0}b", "\u{10ffff}", "Z"]);
    let (keys, _, more) = page(&shard, list("", None, None, 100));
    assert_eq!(keys, ["Z", "a", "a\u{0}b", "a/", "a//b", "a/b", "b", "\u{e9}", "\u{10ffff}"]);
    assert!(!more);
}

#[test]
fn l2_common_prefix_counts_once_and_is_seen_once_across_pages() {
    let shard = with_keys(&["a/1", "a/2", "a/3", "b", "c/1", "d--1", "d--2"]);
    assert_eq!(page(&shard, list("", Some("/"), None, 2)), (vec!["b".into()], vec!["a/".into()], true));
    let next = ListQuery { after_prefix: true, ..list("", Some("/"), Some("a/"), 1) };
    assert_eq!(page(&shard, next), (vec!["b".into()], vec![], true));
    assert_eq!(page(&shard, list("d", Some("--"), None, 9)), (vec![], vec!["d--".into()], false));
    // A page that ends with a prefix knows whether anything stands behind it.
    let last = ListQuery { after_prefix: true, ..list("", Some("/"), Some("c/"), 9) };
    assert_eq!(page(&shard, last).0, ["d--1", "d--2"]);
}

#[test]
fn l3_zero_keys_is_an_empty_whole_page_and_above_1000_counts_as_1000() {
    let keys: Vec<String> = (0..1100).map(|n| format!("{n:04}")).collect();
    let shard = with_keys(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(page(&shard, list("", None, None, 0)), (vec![], vec![], false));
    let (keys, _, more) = page(&shard, list("", None, None, 5000));
    assert_eq!((keys.len(), more), (1000, true));
    assert_eq!(page(&shard, list("", None, Some("1095"), 9)).0, ["1096", "1097", "1098", "1099"]);
}

#[test]
fn l6_unmatched_prefix_is_empty() {
    let shard = with_keys(&["a"]);
    assert_eq!(page(&shard, list("zzz", Some("/"), None, 9)), (vec![], vec![], false));
    assert_eq!(page(&shard, list("a", None, Some("b"), 9)), (vec![], vec![], false));
}

/// The list of s3.md as one would write it without caring for speed: entries and prefixes of one
/// page in one order.
fn naive(keys: &BTreeMap<String, ()>, query: &ListQuery) -> (Vec<String>, Vec<String>, bool) {
    let (mut entries, mut prefixes, mut more) = (Vec::new(), Vec::new(), false);
    for key in keys.keys().filter(|key| key.starts_with(&query.prefix)) {
        if let Some(after) = &query.after {
            let shown = key <= after || (query.after_prefix && key.starts_with(after.as_str()));
            if shown {
                continue;
            }
        }
        let delimiter = query.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty());
        let common = delimiter.and_then(|delimiter| {
            let found = key[query.prefix.len()..].find(delimiter)?;
            Some(key[..query.prefix.len() + found + delimiter.len()].to_owned())
        });
        if common.as_ref().is_some_and(|common| prefixes.last() == Some(common)) {
            continue;
        }
        if entries.len() + prefixes.len() == query.limit as usize {
            more = query.limit > 0;
            break;
        }
        match common {
            Some(common) => prefixes.push(common),
            None => entries.push(key.clone()),
        }
    }
    (entries, prefixes, more)
}

/// Keys from a small alphabet, so that prefixes and delimiters meet.
fn any_key() -> impl Strategy<Value = String> {
    let letter = prop_oneof![
        4 => Just("a"), 4 => Just("/"), 2 => Just("b"), 1 => Just("\u{0}"), 1 => Just("\u{e9}"), 1 => Just("\u{10ffff}"), 1 => Just("//")
    ];
    proptest::collection::vec(letter, 1..7).prop_map(|letters| letters.concat())
}

fn any_query() -> impl Strategy<Value = ListQuery> {
    let prefix = prop_oneof![2 => Just(String::new()), 3 => any_key()];
    let delimiter = prop_oneof![1 => Just(None), 3 => Just(Some("/".to_owned())), 1 => Just(Some("//".into())), 1 => Just(Some("a".into())), 1 => Just(Some(String::new()))];
    (prefix, delimiter, proptest::option::of(any_key()), any::<bool>(), 0u32..6).prop_map(
        |(prefix, delimiter, after, after_prefix, limit)| ListQuery {
            bucket: BUCKET,
            prefix,
            delimiter,
            after,
            after_prefix,
            limit,
        },
    )
}

/// Walks all pages as a gateway does.
fn walk(shard: &Replica<MemoryStore>, first: &ListQuery) -> Vec<String> {
    let mut query = first.clone();
    let mut lines = Vec::new();
    loop {
        let (entries, prefixes, more) = page(shard, query.clone());
        let (last_entry, last_prefix) = (entries.last().cloned(), prefixes.last().cloned());
        let mut shown: Vec<String> = entries.into_iter().chain(prefixes).collect();
        shown.sort();
        lines.extend(shown);
        if !more {
            return lines;
        }
        query.after_prefix = last_prefix > last_entry;
        query.after = last_prefix.max(last_entry);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn list_equals_the_naive_list(
        keys in proptest::collection::btree_set(any_key(), 0..40),
        queries in proptest::collection::vec(any_query(), 12),
    ) {
        let shard = with_keys(&keys.iter().map(String::as_str).collect::<Vec<_>>());
        let model: BTreeMap<String, ()> = keys.into_iter().map(|key| (key, ())).collect();
        for query in queries {
            prop_assert_eq!(page(&shard, query.clone()), naive(&model, &query), "{:?}", query);
            let whole = ListQuery { after: None, after_prefix: false, limit: query.limit.max(1), ..query };
            let (entries, prefixes, _) = naive(&model, &ListQuery { limit: 1000, ..whole.clone() });
            let mut lines: Vec<String> = entries.into_iter().chain(prefixes).collect();
            lines.sort();
            prop_assert_eq!(walk(&shard, &whole), lines, "{:?}", whole);
        }
    }
}
