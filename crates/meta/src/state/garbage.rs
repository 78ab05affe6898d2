//! What is owed and what is to be destroyed: fill-in rows and deferred deletes.
//!
//! Both kinds of rows are written in the batch that makes them true: a fill-in row with the row
//! that refers to the incomplete stripe, a deferred delete with the change that takes the last
//! reference away (I4).

use super::objects::{Holder, owner};
use super::rows::{self, DeferredDelete, Kept, OwedFragments};
use super::store::{Family, View};
use super::work::{Work, count_down, count_up};
use super::{StateError, keys};
use plinth_protocol::meta::{FilledIn, FinishDeletes, Outcome};
use plinth_protocol::object::Body;
use plinth_protocol::stripe::StripeRef;
use plinth_protocol::wire::{Fields, WireError, decode_varint, encode_varint, take};
use plinth_protocol::{StripeId, UploadId};

/// Most stripes in one deferred-delete row: bounds the row to some 50 KiB.
pub(super) const STRIPES_PER_DELETE_MAX: usize = 512;

/// The tag of the field that holds the body in `ObjectBody` and in `PartRow`.
const OBJECT_BODY_TAG: u64 = 2;
const PART_BODY_TAG: u64 = 5;
/// The variant of `Body` that holds stripes.
const STRIPES_VARIANT: u64 = 2;

impl<V: View> Work<'_, V> {
    /// Writes a fill-in row for each stripe of a new body that owes fragments.
    pub(super) fn owe_fragments(&mut self, holder: Holder<'_>, body: &Body) {
        let Body::Stripes(stripes) = body else { return };
        let mut offset = 0u64;
        for (ordinal, stripe) in stripes.iter().enumerate() {
            if stripe.missing.is_some_and(|missing| missing != 0) {
                let owner = owner(holder, ordinal as u32, offset);
                let row = OwedFragments { at: self.now, owner, stripe: stripe.clone() };
                self.put(Family::FillIns, keys::fill_in(stripe.stripe, &holder.row()), &row);
                count_up(&mut self.shard.record.fill_ins, 1);
            }
            offset = offset.saturating_add(stripe.object_bytes());
        }
    }

    /// Queues the stripes of a body that loses its row, and forgets what they owe.
    pub(super) fn free(&mut self, holder: Holder<'_>, body: &Body) {
        let doomed = self.forget_owed(holder, body);
        self.doom(holder, doomed.into_iter());
    }

    /// Forgets what a body owes that loses its row, and returns the stripes that go with it.
    pub(super) fn forget_owed(&mut self, holder: Holder<'_>, body: &Body) -> Vec<StripeRef> {
        let Body::Stripes(stripes) = body else { return Vec::new() };
        for stripe in stripes.iter().filter(|stripe| stripe.missing.is_some_and(|missing| missing != 0)) {
            self.batch.delete(Family::FillIns, keys::fill_in(stripe.stripe, &holder.row()));
            count_down(&mut self.shard.record.fill_ins, 1);
        }
        // A pack has other tenants: it goes by repack, never with one of them.
        stripes.iter().filter(|stripe| stripe.pack_offset.is_none()).cloned().collect()
    }

    /// Queues stripes of one key, so many to a row.
    pub(super) fn doom(&mut self, holder: Holder<'_>, doomed: impl Iterator<Item = StripeRef>) {
        let mut doomed = doomed.peekable();
        while doomed.peek().is_some() {
            let stripes = doomed.by_ref().take(STRIPES_PER_DELETE_MAX).collect();
            let row = DeferredDelete { at: self.now, bucket: holder.bucket, key: holder.key.to_owned(), stripes };
            self.put(Family::Deletes, keys::deferred(self.now, self.index, self.deferred), &row);
            self.deferred += 1;
            count_up(&mut self.shard.record.deferred_deletes, 1);
        }
    }

    /// Clears the missing bits of a stripe wherever it is referred to now; a stripe that nothing
    /// refers to any more loses its fill-in row only.
    pub(super) fn fill_in(&mut self, filled: &FilledIn) -> Result<Outcome, StateError> {
        let holder = Holder {
            bucket: filled.owner.bucket,
            key: &filled.owner.key,
            part: holder_part(filled.owner.upload, filled.owner.part),
        };
        let (family, tag) = match holder.part {
            None => (Family::Bodies, OBJECT_BODY_TAG),
            Some(_) => (Family::Parts, PART_BODY_TAG),
        };
        let place = holder.row();
        let mut left = None;
        if let Some(row) = self.get(family, &place)? {
            let change = |stripe: &mut StripeRef| {
                let missing = stripe.missing.unwrap_or(0) & !filled.fragments;
                stripe.missing = (missing != 0).then_some(missing);
                left = stripe.missing;
            };
            let rewritten = rewrite_stripe(&row, tag, filled.stripe, change).map_err(rows::unreadable(family))?;
            if let Some(row) = rewritten {
                self.batch.put(family, place.clone(), row);
            }
        }
        let owed = keys::fill_in(filled.stripe, &place);
        if let Some(mut row) = self.read_kept::<OwedFragments>(Family::FillIns, &owed)? {
            row.record.stripe.missing = left;
            match left {
                Some(_) => self.batch.put(Family::FillIns, owed, row.encode()),
                None => {
                    self.batch.delete(Family::FillIns, owed);
                    count_down(&mut self.shard.record.fill_ins, 1);
                }
            }
        }
        Ok(Outcome::Done)
    }

    /// Forgets deferred deletes that are done; unknown ones are passed over.
    pub(super) fn finish_deletes(&mut self, finish: &FinishDeletes) -> Result<Outcome, StateError> {
        for key in &finish.rows {
            if self.get(Family::Deletes, key)?.is_some() {
                self.batch.delete(Family::Deletes, key.to_vec());
                count_down(&mut self.shard.record.deferred_deletes, 1);
            }
        }
        Ok(Outcome::Done)
    }
}

fn holder_part(upload: Option<UploadId>, part: Option<u16>) -> Option<(UploadId, u16)> {
    upload.zip(part)
}

/// Changes the reference to one stripe inside a row and leaves every other byte of the row as it
/// is, fields that this version does not know included. None where the row has no such stripe.
fn rewrite_stripe(
    row: &[u8],
    body_tag: u64,
    wanted: StripeId,
    change: impl FnOnce(&mut StripeRef),
) -> Result<Option<Vec<u8>>, WireError> {
    let mut fields = Fields::new(rows::fields(row)?);
    let mut change = Some(change);
    let mut out = vec![rows::ROW_VERSION];
    while let Some(field) = fields.next()? {
        let mut value = field.value.to_vec();
        if field.tag == body_tag {
            value = rewrite_body(field.value, wanted, &mut change)?;
        }
        encode_varint(field.tag << 1 | u64::from(field.ignorable), &mut out);
        encode_varint(value.len() as u64, &mut out);
        out.extend_from_slice(&value);
    }
    Ok(change.is_none().then_some(out))
}

fn rewrite_body(
    body: &[u8],
    wanted: StripeId,
    change: &mut Option<impl FnOnce(&mut StripeRef)>,
) -> Result<Vec<u8>, WireError> {
    let mut rest = body;
    let variant = decode_varint(&mut rest)?;
    if variant != STRIPES_VARIANT {
        return Ok(body.to_vec());
    }
    let mut out = Vec::with_capacity(body.len());
    encode_varint(variant, &mut out);
    while !rest.is_empty() {
        let length = decode_varint(&mut rest)?;
        let mut item = take(&mut rest, length)?.to_vec();
        let mut stripe = Kept::<StripeRef>::decode_fields(&item)?;
        if stripe.record.stripe == wanted
            && let Some(change) = change.take()
        {
            change(&mut stripe.record);
            item.clear();
            stripe.encode_fields(&mut item);
        }
        encode_varint(item.len() as u64, &mut out);
        out.extend_from_slice(&item);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_protocol::object::{ObjectBody, StoredHeaders};
    use plinth_protocol::stripe::Code;
    use plinth_protocol::wire::{Wire, encode_field};
    use plinth_protocol::{PgId, WriterId};

    fn stripe(sequence: u64, missing: Option<u32>) -> StripeRef {
        StripeRef {
            stripe: StripeId::new(WriterId(3), sequence, 9),
            pg: PgId(1),
            generation: 1,
            code: Code::new(3, 2),
            payload_bytes: 10,
            fragment_payload_bytes: 10,
            missing,
            plain_bytes: None,
            sealing: None,
            pack_offset: None,
        }
    }

    #[test]
    fn rewriting_a_stripe_leaves_the_other_bytes() {
        let headers = StoredHeaders { standard: vec![("a".into(), "b".into())], user: vec![] };
        let stripes = vec![stripe(1, Some(3)), stripe(2, Some(4))];
        let mut row = rows::encode(&ObjectBody { headers: headers.clone(), body: Body::Stripes(stripes) });
        encode_field(40, true, &7u64, &mut row);
        let wanted = stripe(2, None);
        let rewritten =
            rewrite_stripe(&row, OBJECT_BODY_TAG, wanted.stripe, |stripe| stripe.missing = None).unwrap().unwrap();
        let mut expected = rows::encode(&ObjectBody { headers, body: Body::Stripes(vec![stripe(1, Some(3)), wanted]) });
        encode_field(40, true, &7u64, &mut expected);
        assert_eq!(rewritten, expected);
        assert_eq!(rewrite_stripe(&row, OBJECT_BODY_TAG, stripe(5, None).stripe, |_| ()).unwrap(), None);
    }

    #[test]
    fn tags_of_bodies_are_those_of_the_protocol() {
        let body = Body::Stripes(vec![stripe(1, None)]);
        let held = |row: &[u8], tag: u64| {
            let mut fields = Fields::new(&row[1..]);
            std::iter::from_fn(|| fields.next().unwrap())
                .find(|field| field.tag == tag)
                .map(|field| Body::decode(field.value).unwrap())
        };
        let headers = StoredHeaders { standard: vec![], user: vec![] };
        let object = rows::encode(&ObjectBody { headers, body: body.clone() });
        assert_eq!(held(&object, OBJECT_BODY_TAG), Some(body.clone()));
        let part = rows::encode(&plinth_protocol::object::PartRow {
            size_bytes: 10,
            md5: [0; 16],
            modified: plinth_protocol::HybridTime(1),
            checksum: None,
            body: body.clone(),
            request: plinth_protocol::RequestId(1),
        });
        assert_eq!(held(&part, PART_BODY_TAG), Some(body));
    }
}
