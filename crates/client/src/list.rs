//! Listings over all shards: each owns a range, so that they follow one another in order.

use crate::client::{Client, unexpected};
use plinth_protocol::map::ShardRecord;
use plinth_protocol::meta::{ListPage, ListQuery, Query, RefusalKind, Reply, UploadsPage, UploadsQuery};
use plinth_protocol::{BucketId, Failure, FailureKind, GroupId};
use std::time::Duration;
use tokio::time::Instant;

/// How long one page may take.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

impl Client {
    /// Returns a page of a bucket's keys and common prefixes in order, from as many shards as it
    /// takes. Fails with `NotFound` where a shard does not know the bucket.
    pub async fn list(&self, query: ListQuery) -> Result<ListPage, Failure> {
        let deadline = Instant::now() + LIST_TIMEOUT;
        let groups = self.groups_of(query.bucket, &query.prefix, query.after.as_deref());
        let mut whole = ListPage { entries: Vec::new(), prefixes: Vec::new(), more: false };
        let mut next = query;
        for (position, &group) in groups.iter().enumerate() {
            let page = match self.query(group, Query::List(next.clone()), deadline).await? {
                Reply::List(page) => page,
                Reply::Absent(kind) => return Err(absent(kind)),
                _ => return Err(unexpected("List")),
            };
            let shown = (page.entries.len() + page.prefixes.len()) as u32;
            if let Some((after, is_prefix)) = last_shown(&page) {
                next.after = Some(after);
                next.after_prefix = is_prefix;
            }
            if whole.entries.is_empty() && whole.prefixes.is_empty() {
                whole = page;
            } else {
                whole.entries.extend(page.entries);
                whole.prefixes.extend(page.prefixes);
                whole.more = page.more;
            }
            next.limit = next.limit.saturating_sub(shown);
            if whole.more {
                break;
            }
            if next.limit == 0 && position + 1 < groups.len() {
                // The next shard may or may not have more: one key decides.
                whole.more = self.has_more(&groups[position + 1..], &next, deadline).await?;
                break;
            }
        }
        Ok(whole)
    }

    async fn has_more(&self, groups: &[GroupId], next: &ListQuery, deadline: Instant) -> Result<bool, Failure> {
        for &group in groups {
            let probe = ListQuery { limit: 1, ..next.clone() };
            match self.query(group, Query::List(probe), deadline).await? {
                Reply::List(page) if page.entries.is_empty() && page.prefixes.is_empty() => {}
                Reply::List(_) => return Ok(true),
                Reply::Absent(kind) => return Err(absent(kind)),
                _ => return Err(unexpected("List")),
            }
        }
        Ok(false)
    }

    /// Returns a page of a bucket's open uploads by key, then upload id, from as many shards as it takes.
    pub async fn uploads(&self, query: UploadsQuery) -> Result<UploadsPage, Failure> {
        let deadline = Instant::now() + LIST_TIMEOUT;
        let groups = self.groups_of(query.bucket, &query.prefix, query.after_key.as_deref());
        let mut whole = UploadsPage { uploads: Vec::new(), prefixes: Vec::new(), more: false };
        let mut next = query;
        for (position, &group) in groups.iter().enumerate() {
            let page = match self.query(group, Query::Uploads(next.clone()), deadline).await? {
                Reply::Uploads(page) => page,
                Reply::Absent(kind) => return Err(absent(kind)),
                _ => return Err(unexpected("Uploads")),
            };
            let shown = (page.uploads.len() + page.prefixes.len()) as u32;
            // A prefix that the shard before has shown may go on in this one.
            let seen = page.prefixes.into_iter().filter(|prefix| !whole.prefixes.contains(prefix));
            let fresh: Vec<String> = seen.collect();
            whole.prefixes.extend(fresh);
            whole.uploads.extend(page.uploads);
            next.limit = next.limit.saturating_sub(shown);
            whole.more = page.more || (next.limit == 0 && position + 1 < groups.len());
            if whole.more {
                break;
            }
        }
        Ok(whole)
    }

    /// Returns the groups whose ranges meet the keys with a prefix from `after` on, in key order.
    fn groups_of(&self, bucket: BucketId, prefix: &str, after: Option<&str>) -> Vec<GroupId> {
        let map = self.map();
        let from = after.map_or(prefix, |after| after.max(prefix));
        let mut ranges: Vec<&ShardRecord> = map.shards.iter().collect();
        ranges.sort_by(|one, other| (one.start.bucket, &one.start.key).cmp(&(other.start.bucket, &other.start.key)));
        let meets = |position: usize| {
            let start = &ranges[position].start;
            let begins = start.bucket < bucket
                || (start.bucket == bucket && (start.key.as_str() <= prefix || start.key.starts_with(prefix)));
            let ends_before = ranges
                .get(position + 1)
                .is_some_and(|next| (next.start.bucket, next.start.key.as_str()) <= (bucket, from));
            begins && !ends_before
        };
        (0..ranges.len()).filter(|&position| meets(position)).map(|position| ranges[position].group).collect()
    }
}

/// Returns the greatest of what a page shows, and whether it is a common prefix.
fn last_shown(page: &ListPage) -> Option<(String, bool)> {
    let entry = page.entries.last().map(|(key, _)| (key.clone(), false));
    let prefix = page.prefixes.last().map(|prefix| (prefix.clone(), true));
    entry.max(prefix)
}

fn absent(kind: RefusalKind) -> Failure {
    Failure::new(FailureKind::NotFound, format!("{kind:?}"))
}
