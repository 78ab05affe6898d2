//! Request memory, client tokens, and their expiry.

use super::*;

fn token(scope: u128, parameters: u128, strict: bool) -> Option<ClientToken> {
    Some(ClientToken { scope, parameters, memory_ms: if strict { TOKEN_MEMORY_MS } else { REQUEST_MEMORY_MS }, strict })
}

#[test]
fn repeated_request_gets_its_first_outcome() {
    let mut shard = shard();
    let create = PutObject { expectation: expect(ExpectationKind::Absent, None), ..put_inline("k", b"x") };
    let mutation = shard.mutation(Command::PutObject(create));
    let first = shard.apply_one(mutation.clone());
    object_row(first.clone());
    shard.run(Command::DeleteObject(delete("k")));
    assert_eq!(shard.apply_one(mutation.clone()), first);
    assert!(shard.object("k").is_none(), "the repetition does nothing");
    // Also when both copies stand in one entry.
    let mutation = shard.mutation(Command::DeleteObject(delete("none")));
    assert_eq!(shard.apply(vec![mutation.clone(), mutation]), [Outcome::Deleted(false), Outcome::Deleted(false)]);
}

#[test]
fn refusals_are_repeated_too() {
    let mut shard = shard();
    let update = PutObject { expectation: expect(ExpectationKind::Present, None), ..put_inline("k", b"x") };
    let mutation = shard.mutation(Command::PutObject(update));
    let first = shard.apply_one(mutation.clone());
    assert_refused(first.clone(), RefusalKind::NoSuchKey);
    shard.run(Command::PutObject(put_inline("k", b"y")));
    assert_eq!(shard.apply_one(mutation), first);
}

#[test]
fn request_of_long_ago_still_knows_its_own_object() {
    let mut shard = shard();
    let mutation = shard.mutation(Command::PutObject(put_stripes("k", vec![stripe(1, 5)])));
    let first = shard.apply_one(mutation.clone());
    shard.now_ms += REQUEST_MEMORY_MS + 1;
    assert_eq!(shard.apply_one(mutation), first);
    assert!(shard.doomed().is_empty(), "the stripes that are referred to are not queued");
}

#[test]
fn client_token_replays_across_requests_and_refuses_other_parameters() {
    let mut shard = shard();
    let create = PutObject { expectation: expect(ExpectationKind::Absent, None), ..put_inline("k", b"x") };
    let send = |shard: &mut Replica<MemoryStore>, token| {
        let mut mutation = shard.mutation(Command::PutObject(create.clone()));
        mutation.token = token;
        shard.apply_one(mutation)
    };
    let first = send(&mut shard, token(1, 7, true));
    object_row(first.clone());
    assert_eq!(send(&mut shard, token(1, 7, true)), Outcome::Replayed(Box::new(first.clone())));
    assert_refused(send(&mut shard, token(1, 8, true)), RefusalKind::TokenMismatch);
    // An implied token with other parameters is a new request.
    assert_refused(send(&mut shard, token(1, 9, false)), RefusalKind::PreconditionFailed);
    let replayed = send(&mut shard, token(1, 9, false));
    assert!(
        matches!(replayed, Outcome::Replayed(inner) if matches!(*inner, Outcome::Refused(_))),
        "412 is a decided result"
    );
    shard.assert_counters();
}

#[test]
fn tokens_remember_decided_results_only() {
    let mut shard = shard();
    let complete = CompleteUpload {
        bucket: BUCKET,
        key: "k".into(),
        upload: UploadId(1),
        parts: vec![],
        expectation: None,
        size_bytes: None,
        checksum: None,
    };
    shard.run(Command::CreateUpload(CreateUpload {
        bucket: BUCKET,
        key: "k".into(),
        upload: UploadId(1),
        headers: headers(),
        algorithm: None,
        kind: None,
    }));
    for _ in 0..2 {
        let mut mutation = shard.mutation(Command::CompleteUpload(complete.clone()));
        mutation.token = token(3, 3, true);
        assert_refused(shard.apply_one(mutation), RefusalKind::InvalidPart);
    }
}

#[test]
fn memory_expires_by_command_time_and_is_swept() {
    let mut shard = shard();
    for number in 0..40 {
        let mut mutation = shard.mutation(Command::PutObject(put_inline("k", b"x")));
        mutation.token = token(number, 1, number % 2 == 0);
        shard.apply_one(mutation);
    }
    assert_eq!(shard.rows(Family::Tokens), 41 + 40);
    let mut early = shard.mutation(Command::DeleteObject(delete("k")));
    early.request = RequestId(2);
    assert!(matches!(shard.apply_one(early.clone()), Outcome::Object(_)), "still remembered");
    shard.now_ms += REQUEST_MEMORY_MS + 1;
    assert!(matches!(shard.apply_one(early.clone()), Outcome::Object(_)), "until it is removed");
    for _ in 0..32 {
        shard.run(Command::RaiseFence(WriterId(1)));
    }
    assert_eq!(shard.apply_one(early), Outcome::Deleted(true), "forgotten, and nobody knows how old it is");
    // What is left: the strict tokens (24 h), and the requests of the last lines.
    assert_eq!(shard.rows(Family::Tokens), 20 + 33);
    shard.assert_counters();
    // In two steps: one of more than a day would hold expiry up.
    shard.now_ms += TOKEN_MEMORY_MS / 2;
    shard.run(Command::RaiseFence(WriterId(1)));
    shard.now_ms += TOKEN_MEMORY_MS / 2 + 1;
    for _ in 0..48 {
        shard.run(Command::RaiseFence(WriterId(1)));
    }
    assert!(shard.rows(Family::Tokens) <= 48);
    shard.assert_counters();
}

/// A put of a stripe, issued now.
fn issued_put(shard: &mut Replica<MemoryStore>, key: &str, sequence: u64) -> Mutation {
    shard.now_ms += 1;
    let mutation = shard.mutation(Command::PutObject(put_stripes(key, vec![stripe(sequence, 5)])));
    Mutation { issued: Some(HybridTime::from_millis(shard.now_ms)), ..mutation }
}

/// Writes a key twice and forgets the first write's outcome by `forget`; then the first write comes once more.
fn assert_late_repetition_is_refused(mut shard: Replica<MemoryStore>, forget: impl FnOnce(&mut Replica<MemoryStore>)) {
    let first = issued_put(&mut shard, "k", 1);
    object_row(shard.apply_one(first.clone()));
    let second = issued_put(&mut shard, "k", 2);
    let newer = object_row(shard.apply_one(second));
    forget(&mut shard);
    let doomed = shard.doomed();
    assert!(doomed.contains(&stripe(1, 5).stripe), "the first write's stripe waits for its deletion");
    for _ in 0..2 {
        assert_refused(shard.apply_one(first.clone()), RefusalKind::Expired);
    }
    assert_eq!(shard.object("k").map(|view| view.row), Some(newer), "the acknowledged write stands");
    assert_eq!(shard.doomed(), doomed);
    let third = issued_put(&mut shard, "k", 3);
    object_row(shard.apply_one(third));
    shard.assert_counters();
}

#[test]
fn late_repetition_is_refused_when_its_outcome_went_by_age() {
    assert_late_repetition_is_refused(shard(), |shard| {
        shard.now_ms += REQUEST_MEMORY_MS + 1;
        for _ in 0..32 {
            shard.run(Command::RaiseFence(WriterId(1)));
        }
    });
}

#[test]
fn late_repetition_is_refused_when_its_outcome_went_by_number() {
    assert_late_repetition_is_refused(shard(), |shard| {
        super::super::recall::limit_requests(20);
        for _ in 0..64 {
            shard.run(Command::RaiseFence(WriterId(1)));
        }
        super::super::recall::limit_requests(super::super::recall::REQUESTS_MAX);
        assert!(shard.rows(Family::Tokens) < 64);
    });
}

#[test]
fn late_repetition_is_refused_after_a_leader_with_a_fast_clock() {
    assert_late_repetition_is_refused(shard(), |shard| {
        // What a leader of 02a86df stamped whose clock was 20 minutes ahead.
        shard.now_ms += 20 * 60 * 1000;
        for _ in 0..32 {
            shard.run(Command::RaiseFence(WriterId(1)));
        }
    });
}

#[test]
fn request_issued_in_the_future_is_refused_and_moves_no_watermark() {
    let mut shard = shard();
    let mut early = issued_put(&mut shard, "k", 1);
    early.issued = Some(HybridTime::from_millis(shard.now_ms + CLOCK_BOUND_MS + 1).next());
    assert_refused(shard.apply_one(early.clone()), RefusalKind::IssuedInFuture);
    assert!(shard.object("k").is_none());
    shard.now_ms += 2;
    object_row(shard.apply_one(early));
    shard.now_ms += REQUEST_MEMORY_MS + 1;
    for _ in 0..32 {
        shard.run(Command::RaiseFence(WriterId(1)));
    }
    let next = issued_put(&mut shard, "k", 2);
    object_row(shard.apply_one(next));
}

#[test]
fn a_jump_of_more_than_a_day_expires_nothing_until_it_is_confirmed() {
    let mut shard = shard();
    let first = issued_put(&mut shard, "k", 1);
    let row = object_row(shard.apply_one(first.clone()));
    let mut tokened = issued_put(&mut shard, "token", 2);
    tokened.token = token(1, 1, true);
    shard.apply_one(tokened.clone());
    shard.run(Command::DeleteObject(delete("k")));
    let due = |shard: &Replica<MemoryStore>| {
        let before = HybridTime::from_millis(shard.now_ms).before(900_000);
        match shard.query(Query::DueDeletes(DueQuery { before, after: None, limit: 10, age_ms: None })) {
            Reply::DueDeletes(page) => page.rows.len(),
            other => panic!("{other:?}"),
        }
    };
    shard.now_ms += 10 * 365 * 24 * 3600 * 1000;
    for _ in 0..32 {
        shard.run(Command::RaiseFence(WriterId(1)));
    }
    assert_eq!(shard.apply_one(first.clone()), Outcome::Object(row), "still remembered, ten years on");
    let again = shard.mutation(tokened.command.clone());
    let again = shard.apply_one(Mutation { token: token(1, 1, true), ..again });
    assert!(matches!(again, Outcome::Replayed(_)), "{again:?}");
    assert_eq!(due(&shard), 0, "what was deleted before the jump is kept");
    assert!(shard.stat().expiry_held_ms.is_some());
    // Time that really goes by still counts.
    shard.now_ms += 23 * 3600 * 1000;
    shard.run(Command::RaiseFence(WriterId(1)));
    assert_eq!(due(&shard), 1);
    assert_eq!(shard.run(Command::ConfirmTime), Outcome::Done);
    assert_eq!(shard.stat().expiry_held_ms, None);
    for _ in 0..32 {
        shard.run(Command::RaiseFence(WriterId(1)));
    }
    assert_refused(shard.apply_one(first), RefusalKind::Expired);
    shard.assert_counters();
}
