//! The system group's directory: buckets by name, access keys, join tokens.
//!
//! A bucket lives in two places: its name here, its openness in the shards. Creating goes Opening
//! → (shards open) → Active, deleting Active → Closing → (shards close) → gone, or, where a shard is not empty,
//! Closing and reopening → (shards open) → Active; whoever finds a bucket on the way may carry on, since every step may
//! be repeated. Each of the three changes has a number from here, which goes with all its steps: a step that arrives
//! when a later change has begun is refused, here and in the shards.

use super::rows::{BucketName, BucketsByAccount, Kept, NodeRow};
use super::store::{Family, KeyRange, View};
use super::work::{Decided, Work, decided, refusal, refuse};
use super::{StateError, keys, rows};
use plinth_protocol::meta::{
    AccessKeyRow, AdmitNode, BucketAttempt, ConsumeJoinToken, CreateBucket, JoinTokenRow, Outcome, RefusalKind,
    UsedToken,
};
use plinth_protocol::object::{BucketRow, BucketState};
use plinth_protocol::{BucketId, NodeId};

/// Changes of buckets that one entry can number.
const ATTEMPTS_PER_ENTRY: u64 = 1 << 16;
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
            attempt: create.numbered.then(|| self.next_attempt()),
            reopening: false,
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

    /// Returns the number of a change that begins: above all before it, of any bucket. Log indexes never come twice.
    fn next_attempt(&mut self) -> u64 {
        self.attempts = self.attempts.saturating_add(1);
        self.index.saturating_mul(ATTEMPTS_PER_ENTRY).saturating_add(self.attempts)
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

    /// Returns the row of a bucket for a step that carries no number: those of an older gateway. Numbered buckets
    /// are not theirs to change.
    fn unnumbered_row(&self, bucket: BucketId) -> Decided<Kept<BucketRow>> {
        Ok(self.bucket_row(bucket)?.and_then(|row| match row.record.attempt {
            None => Ok(row),
            Some(attempt) => Err(refusal(RefusalKind::StaleAttempt, format!("change {attempt} is under way or done"))),
        }))
    }

    /// Returns the row of a bucket whose latest change is the one that the step belongs to.
    fn row_in_attempt(&self, change: &BucketAttempt) -> Decided<Kept<BucketRow>> {
        Ok(self.bucket_row(change.bucket)?.and_then(|row| match row.record.attempt.unwrap_or(0) {
            latest if latest == change.attempt => Ok(row),
            latest => {
                let text = format!("change {latest} has begun since change {}", change.attempt);
                Err(refusal(RefusalKind::StaleAttempt, text))
            }
        }))
    }

    fn put_bucket(&mut self, row: Kept<BucketRow>) -> Outcome {
        self.batch.put(Family::Registry, keys::bucket_name(&row.record.name), row.encode());
        Outcome::Bucket(row.record)
    }

    pub(super) fn activate_attempt(&mut self, change: &BucketAttempt) -> Result<Outcome, StateError> {
        let mut row = decided!(self.row_in_attempt(change));
        if row.record.state == BucketState::Closing && !row.record.reopening {
            return Ok(refuse(RefusalKind::NoSuchBucket, "the bucket is being deleted"));
        }
        (row.record.state, row.record.reopening) = (BucketState::Active, false);
        Ok(self.put_bucket(row))
    }

    pub(super) fn begin_delete_attempt(&mut self, bucket: BucketId) -> Result<Outcome, StateError> {
        let mut row = decided!(self.bucket_row(bucket));
        match (row.record.state, row.record.attempt) {
            (BucketState::Opening, _) => return Ok(refuse(RefusalKind::NoSuchBucket, "the bucket is being created")),
            // Under way, by somebody who numbers: any number of deleters share one change.
            (BucketState::Closing, Some(_)) => return Ok(Outcome::Bucket(row.record)),
            (BucketState::Active, _) | (BucketState::Closing, None) => {}
        }
        (row.record.state, row.record.attempt) = (BucketState::Closing, Some(self.next_attempt()));
        Ok(self.put_bucket(row))
    }

    pub(super) fn reopen_bucket(&mut self, change: &BucketAttempt) -> Result<Outcome, StateError> {
        let mut row = decided!(self.row_in_attempt(change));
        if row.record.state != BucketState::Closing {
            return Ok(refuse(RefusalKind::Invalid, "only a closing bucket can be opened again"));
        }
        if row.record.reopening {
            return Ok(Outcome::Bucket(row.record));
        }
        (row.record.reopening, row.record.attempt) = (true, Some(self.next_attempt()));
        Ok(self.put_bucket(row))
    }

    pub(super) fn remove_attempt(&mut self, change: &BucketAttempt) -> Result<Outcome, StateError> {
        let row = decided!(self.row_in_attempt(change));
        if row.record.state != BucketState::Closing || row.record.reopening {
            return Ok(refuse(RefusalKind::Invalid, "only a closing bucket can be removed"));
        }
        Ok(self.drop_bucket(&row.record))
    }

    fn drop_bucket(&mut self, row: &BucketRow) -> Outcome {
        self.batch.delete(Family::Registry, keys::bucket_name(&row.name));
        self.batch.delete(Family::Registry, keys::bucket_of_account(&row.owner, &row.name));
        self.batch.delete(Family::Registry, keys::bucket_id(row.bucket));
        Outcome::Done
    }

    pub(super) fn activate_bucket(&mut self, bucket: BucketId) -> Result<Outcome, StateError> {
        let row = decided!(self.unnumbered_row(bucket));
        if row.record.state == BucketState::Closing {
            return Ok(refuse(RefusalKind::NoSuchBucket, "the bucket is being deleted"));
        }
        Ok(self.set_bucket_state(row, BucketState::Active))
    }

    pub(super) fn begin_delete_bucket(&mut self, bucket: BucketId) -> Result<Outcome, StateError> {
        let row = decided!(self.unnumbered_row(bucket));
        Ok(self.set_bucket_state(row, BucketState::Closing))
    }

    pub(super) fn keep_bucket(&mut self, bucket: BucketId) -> Result<Outcome, StateError> {
        let row = decided!(self.unnumbered_row(bucket));
        let state = match row.record.state {
            BucketState::Closing => BucketState::Active,
            other => other,
        };
        Ok(self.set_bucket_state(row, state))
    }

    pub(super) fn remove_bucket(&mut self, bucket: BucketId) -> Result<Outcome, StateError> {
        let row = decided!(self.unnumbered_row(bucket));
        if row.record.state != BucketState::Closing {
            return Ok(refuse(RefusalKind::Invalid, "only a closing bucket can be removed"));
        }
        Ok(self.drop_bucket(&row.record))
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
        self.put(Family::Registry, place, &JoinTokenRow { used: None, ..token.clone() });
        Ok(Outcome::Done)
    }

    pub(super) fn revoke_join_token(&mut self, hash: &[u8; 32]) -> Result<Outcome, StateError> {
        let place = keys::join_token(hash);
        if self.get(Family::Registry, &place)?.is_none() {
            return Ok(refuse(RefusalKind::InvalidToken, "there is no such token"));
        }
        self.batch.delete(Family::Registry, place);
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
        let valid = token.filter(|token| token.expires > self.now && token.used.is_none());
        let Some(token) = valid else {
            return Ok(refuse(RefusalKind::InvalidToken, "the token is unknown, used or expired"));
        };
        if !consume.roles.iter().all(|role| token.roles.contains(role)) {
            return Ok(refuse(RefusalKind::InvalidToken, "the token is for other roles"));
        }
        self.batch.delete(Family::Registry, place);
        Ok(Outcome::Done)
    }

    /// Registers a node and uses up its token; a refusal leaves the token as it was. The node that the token has
    /// admitted already gets its answer again.
    pub(super) fn admit_node(&mut self, admit: &AdmitNode) -> Result<Outcome, StateError> {
        let invalid = |text: &str| Ok(refuse(RefusalKind::InvalidToken, text));
        let Some(public_key) = admit.register.public_key.filter(|_| admit.register.node.node == NodeId(0)) else {
            return Ok(refuse(RefusalKind::Invalid, "a token admits a new node, with its key"));
        };
        let place = keys::join_token(&admit.token);
        let token = self.read_kept::<JoinTokenRow>(Family::Registry, &place)?;
        let Some(mut token) = token.filter(|token| token.record.expires > self.now) else {
            return invalid("the token is unknown, withdrawn or expired");
        };
        if let Some(used) = &token.record.used {
            let node: Option<NodeRow> = self.read(Family::Registry, &keys::node(used.node))?;
            return match node.filter(|_| used.public_key == public_key) {
                Some(row) => Ok(Outcome::Node(row.node)),
                None => invalid("the token has admitted another node"),
            };
        }
        if !admit.register.node.roles.iter().all(|role| token.record.roles.contains(role)) {
            return invalid("the token is for other roles");
        }
        let outcome = self.register_node(&admit.register)?;
        if let Outcome::Node(node) = &outcome {
            token.record.used = Some(UsedToken { node: node.node, public_key });
            self.batch.put(Family::Registry, place, token.encode());
        }
        Ok(outcome)
    }
}
