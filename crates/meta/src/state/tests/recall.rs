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
    assert_eq!(shard.apply_one(early), Outcome::Deleted(true), "forgotten");
    for _ in 0..32 {
        shard.run(Command::RaiseFence(WriterId(1)));
    }
    // What is left: the strict tokens (24 h), and the requests of the last lines.
    assert_eq!(shard.rows(Family::Tokens), 20 + 33);
    shard.assert_counters();
    shard.now_ms += TOKEN_MEMORY_MS + 1;
    for _ in 0..48 {
        shard.run(Command::RaiseFence(WriterId(1)));
    }
    assert!(shard.rows(Family::Tokens) <= 48);
    shard.assert_counters();
}
