//! The system group's directory: buckets by name, access keys, join tokens.
//!
//! A bucket lives in two places: its name here, its openness in the shards. Creating goes Opening
//! → (shards open) → Active, deleting Active → Closing → (shards close) → gone; whoever finds a
//! bucket on the way may carry on, since every step may be repeated.

use super::rows::{BucketName, BucketsByAccount, Kept};
use super::store::{Family, KeyRange, View};
use super::work::{Decided, Work, decided, refusal, refuse};
use super::{StateError, keys, rows};
use plinth_protocol::BucketId;
use plinth_protocol::meta::{AccessKeyRow, ConsumeJoinToken, CreateBucket, JoinTokenRow, Outcome, RefusalKind};
use plinth_protocol::object::{BucketRow, BucketState};

/// Most expired join tokens removed by one command.
const TOKENS_AT_ONCE: usize = 100;

/// Most buckets that one command enters into the list by account, where an older version left it incomplete.
const BUCKETS_ENTERED_AT_ONCE: usize = 500;

impl<V: View> Work<'_, V> {
    pub(super) fn create_bucket(&mut self, create: &CreateBucket) -> Result<Outcome, StateError> {
        let key = keys::bucket_name(&create.name);
        if let Some(known) = self.read::<BucketRow>(Family::Registry, &key)? {
            return Ok(match (known.owner == create.owner, known.state) {
                // The creator's gateway died on the way, or another one of the same owner's is at it.
                (true, BucketState::Opening) => Outcome::Bucket(known),
                (true, _) => refuse(RefusalKind::BucketOwnedByYou, "the bucket is yours already"),
                (false, _) => refuse(RefusalKind::BucketExists, "the name is taken"),
            });
        }
        if self.get(Family::Registry, &keys::bucket_id(create.bucket))?.is_some() {
            return Ok(refuse(RefusalKind::AlreadyExists, "the bucket id is taken"));
        }
        let row = BucketRow {
            bucket: create.bucket,
            name: create.name.clone(),
            created: self.now,
            state: BucketState::Opening,
            owner: create.owner.clone(),
            location: create.location.clone(),
        };
        self.put(Family::Registry, key, &row);
        let name = BucketName { name: create.name.clone() };
        self.put(Family::Registry, keys::bucket_id(create.bucket), &name);
        self.put(Family::Registry, keys::bucket_of_account(&create.owner, &create.name), &name);
        self.enter_buckets_by_account()?;
        Ok(Outcome::Bucket(row))
    }

    /// Enters some more buckets into the list by account, until those that an older version made are in it.
    fn enter_buckets_by_account(&mut self) -> Result<(), StateError> {
        let place = keys::buckets_by_account();
        let progress: Option<BucketsByAccount> = self.read(Family::Registry, &place)?;
        let mut progress = progress.unwrap_or(BucketsByAccount { through: None, complete: false });
        if progress.complete {
            return Ok(());
        }
        let mut range = KeyRange::of_prefix(&keys::bucket_name(""));
        if let Some(through) = &progress.through {
            range.start = [&keys::bucket_name(through)[..], &[0]].concat();
        }
        let rows = self.scan(Family::Registry, &range, BUCKETS_ENTERED_AT_ONCE)?;
        progress.complete = rows.len() < BUCKETS_ENTERED_AT_ONCE;
        for (_, row) in rows {
            let row: BucketRow = rows::decode(Family::Registry, &row)?;
            let place = keys::bucket_of_account(&row.owner, &row.name);
            self.put(Family::Registry, place, &BucketName { name: row.name.clone() });
            progress.through = Some(row.name);
        }
        if progress.complete {
            progress.through = None;
        }
        self.put(Family::Registry, place, &progress);
        Ok(())
    }

    fn bucket_row(&self, bucket: BucketId) -> Decided<Kept<BucketRow>> {
        let absent = || refusal(RefusalKind::NoSuchBucket, format!("there is no bucket {bucket}"));
        let Some(name) = self.read::<BucketName>(Family::Registry, &keys::bucket_id(bucket))? else {
            return Ok(Err(absent()));
        };
        let row = self.read_kept(Family::Registry, &keys::bucket_name(&name.name))?;
        Ok(row.ok_or_else(absent))
    }

    fn set_bucket_state(&mut self, mut row: Kept<BucketRow>, state: BucketState) -> Outcome {
        if row.record.state != state {
            row.record.state = state;
            self.batch.put(Family::Registry, keys::bucket_name(&row.record.name), row.encode());
        }
        Outcome::Bucket(row.record)
    }

    pub(super) fn activate_bucket(&mut self, bucket: BucketId) -> Result<Outcome, StateError> {
        let row = decided!(self.bucket_row(bucket));
        if row.record.state == BucketState::Closing {
            return Ok(refuse(RefusalKind::NoSuchBucket, "the bucket is being deleted"));
        }
        Ok(self.set_bucket_state(row, BucketState::Active))
    }

    pub(super) fn begin_delete_bucket(&mut self, bucket: BucketId) -> Result<Outcome, StateError> {
        let row = decided!(self.bucket_row(bucket));
        Ok(self.set_bucket_state(row, BucketState::Closing))
    }

    pub(super) fn keep_bucket(&mut self, bucket: BucketId) -> Result<Outcome, StateError> {
        let row = decided!(self.bucket_row(bucket));
        let state = match row.record.state {
            BucketState::Closing => BucketState::Active,
            other => other,
        };
        Ok(self.set_bucket_state(row, state))
    }

    pub(super) fn remove_bucket(&mut self, bucket: BucketId) -> Result<Outcome, StateError> {
        let row = decided!(self.bucket_row(bucket));
        if row.record.state != BucketState::Closing {
            return Ok(refuse(RefusalKind::Invalid, "only a closing bucket can be removed"));
        }
        self.batch.delete(Family::Registry, keys::bucket_name(&row.record.name));
        self.batch.delete(Family::Registry, keys::bucket_of_account(&row.record.owner, &row.record.name));
        self.batch.delete(Family::Registry, keys::bucket_id(bucket));
        Ok(Outcome::Done)
    }

    pub(super) fn create_access_key(&mut self, key: &AccessKeyRow) -> Result<Outcome, StateError> {
        let place = keys::access_key(&key.id);
        if self.get(Family::Registry, &place)?.is_some() {
            return Ok(refuse(RefusalKind::AlreadyExists, "the access key id is taken"));
        }
        self.put(Family::Registry, place, &AccessKeyRow { created: self.now, ..key.clone() });
        Ok(Outcome::Done)
    }

    pub(super) fn revoke_access_key(&mut self, id: &str) -> Result<Outcome, StateError> {
        let place = keys::access_key(id);
        if self.get(Family::Registry, &place)?.is_none() {
            return Ok(refuse(RefusalKind::NoSuchAccessKey, "there is no such access key"));
        }
        self.batch.delete(Family::Registry, place);
        Ok(Outcome::Done)
    }

    pub(super) fn create_join_token(&mut self, token: &JoinTokenRow) -> Result<Outcome, StateError> {
        let place = keys::join_token(&token.hash);
        if self.get(Family::Registry, &place)?.is_some() {
            return Ok(refuse(RefusalKind::AlreadyExists, "the token exists"));
        }
        self.drop_expired_tokens()?;
        self.put(Family::Registry, place, token);
        Ok(Outcome::Done)
    }

    fn drop_expired_tokens(&mut self) -> Result<(), StateError> {
        let range = KeyRange::of_prefix(&[keys::registry::JOIN_TOKEN]);
        for (place, row) in self.scan(Family::Registry, &range, TOKENS_AT_ONCE)? {
            let token: JoinTokenRow = rows::decode(Family::Registry, &row)?;
            if token.expires <= self.now {
                self.batch.delete(Family::Registry, place);
            }
        }
        Ok(())
    }

    pub(super) fn consume_join_token(&mut self, consume: &ConsumeJoinToken) -> Result<Outcome, StateError> {
        let place = keys::join_token(&consume.hash);
        let token: Option<JoinTokenRow> = self.read(Family::Registry, &place)?;
        let valid = token.filter(|token| token.expires > self.now);
        let Some(token) = valid else {
            return Ok(refuse(RefusalKind::InvalidToken, "the token is unknown, used or expired"));
        };
        if !consume.roles.iter().all(|role| token.roles.contains(role)) {
            return Ok(refuse(RefusalKind::InvalidToken, "the token is for other roles"));
        }
        self.batch.delete(Family::Registry, place);
        Ok(Outcome::Done)
    }
}
