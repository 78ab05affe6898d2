//! Writing an object: inline while it is tiny, else stripe by stripe.

use crate::client::Client;
use crate::config::STRIPES_IN_FLIGHT_MAX;
use crate::filling::Filling;
use crate::layout::StripeShape;
use crate::memory::{Held, Pool};
use bytes::Bytes;
use plinth_protocol::object::{Body, INLINE_BYTES_MAX};
use plinth_protocol::stripe::{Owner, StripeRef};
use plinth_protocol::{Failure, FailureKind};
use std::collections::VecDeque;
use tokio::task::{AbortHandle, JoinHandle};

impl Client {
    /// Starts an object or part. The writer fills in the owner's ordinal and offset; `size_hint` is
    /// the object's size in bytes where it is known: a wrong one costs space, nothing else.
    pub fn write(&self, owner: Owner, size_hint: Option<u64>) -> ObjectWriter {
        ObjectWriter {
            client: self.clone(),
            owner: Owner { ordinal: 0, offset: 0, ..owner },
            size_hint,
            head: Vec::new(),
            open: None,
            done: Vec::new(),
            in_flight: VecDeque::new(),
        }
    }
}

/// Takes an object's bytes and makes them durable. Dropping it abandons the object: what reached
/// the disks is garbage that nothing refers to.
pub struct ObjectWriter {
    client: Client,
    /// Whose bytes the next stripe holds; its offset is where that stripe starts.
    owner: Owner,
    size_hint: Option<u64>,
    /// The object's first bytes, while all of them may yet go into the row.
    head: Vec<u8>,
    /// The stripe that is being filled, and its memory.
    open: Option<(Filling, Held)>,
    done: Vec<StripeRef>,
    in_flight: VecDeque<InFlight>,
}

/// A stripe on its way; dropped, it is cancelled.
struct InFlight {
    task: JoinHandle<Result<StripeRef, Failure>>,
    _cancel: CancelOnDrop,
}

struct CancelOnDrop(AbortHandle);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl InFlight {
    async fn arrived(self) -> Result<StripeRef, Failure> {
        let gone = |_| Failure::new(FailureKind::Internal, "the task of a stripe ended before it was done");
        self.task.await.map_err(gone)?
    }
}

impl ObjectWriter {
    /// Takes the next bytes; waits while the client's memory for writing is taken or too many of
    /// the object's stripes are on their way. After an error the object can only be dropped.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if self.open.is_none() && self.owner.ordinal == 0 {
            if self.head.len() + bytes.len() <= INLINE_BYTES_MAX {
                self.head.extend_from_slice(bytes);
                return Ok(());
            }
            let head = std::mem::take(&mut self.head);
            self.fill(&head).await?;
        }
        self.fill(bytes).await
    }

    async fn fill(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let filling = self.open_stripe().await?;
            let taken = filling.take(bytes);
            bytes = &bytes[taken..];
            if filling.is_full() && !(bytes.is_empty() && self.is_all()) {
                self.dispatch().await?;
            }
        }
        Ok(())
    }

    /// Returns whether the object is complete if the hint is right: then its last stripe is sent by
    /// `finish` itself, without a task of its own.
    fn is_all(&self) -> bool {
        let payload = self.open.as_ref().map_or(0, |(filling, _)| filling.payload() as u64);
        self.size_hint == Some(self.owner.offset + payload)
    }

    /// Returns the open stripe; opens one, when its memory is free, where there is none.
    async fn open_stripe(&mut self) -> Result<&mut Filling, Failure> {
        if self.open.is_none() {
            let chart = self.client.chart();
            let (code, fragment_bytes_max) = (chart.code(), chart.map.fragment_bytes_max);
            let left = self.size_hint.and_then(|size| size.checked_sub(self.owner.offset)).filter(|&left| left > 0);
            let shape = StripeShape::choose(code, fragment_bytes_max, left);
            let bytes = shape.fragment_sizes(code).map(Pool::capacity).sum();
            let held = self.client.inner.write_budget.acquire(bytes).await;
            let stripe = self.client.new_stripe_id().await?;
            self.open = Some((Filling::new(stripe, code, shape, &self.client.inner.pool)?, held));
        }
        Ok(&mut self.open.as_mut().expect("opened above").0)
    }

    /// Sends the open stripe in a task of its own; waits while too many are on their way.
    async fn dispatch(&mut self) -> Result<(), Failure> {
        while self.in_flight.len() >= STRIPES_IN_FLIGHT_MAX {
            let oldest = self.in_flight.pop_front().expect("not empty");
            self.done.push(oldest.arrived().await?);
        }
        let (filling, held) = self.open.take().expect("a stripe is open");
        let owner = self.next_owner(filling.payload());
        let client = self.client.clone();
        let task = tokio::spawn(async move {
            let reference = client.send_stripe(filling.close(), owner).await;
            drop(held);
            reference
        });
        let cancel = CancelOnDrop(task.abort_handle());
        self.in_flight.push_back(InFlight { task, _cancel: cancel });
        Ok(())
    }

    /// Returns the owner of the stripe that is closed now, and moves on behind it.
    fn next_owner(&mut self, payload: usize) -> Owner {
        let owner = self.owner.clone();
        self.owner.ordinal += 1;
        self.owner.offset += payload as u64;
        owner
    }

    /// Makes the rest durable; returns where the bytes are. Nothing refers to them until the caller
    /// commits a row with this body.
    pub async fn finish(mut self) -> Result<Body, Failure> {
        if self.open.is_none() && self.owner.ordinal == 0 {
            return Ok(Body::Inline(Bytes::from(std::mem::take(&mut self.head))));
        }
        let last = match self.open.take() {
            Some((filling, held)) => {
                let owner = self.next_owner(filling.payload());
                let reference = self.client.send_stripe(filling.close(), owner).await?;
                drop(held);
                Some(reference)
            }
            None => None,
        };
        while let Some(oldest) = self.in_flight.pop_front() {
            self.done.push(oldest.arrived().await?);
        }
        self.done.extend(last);
        Ok(Body::Stripes(self.done))
    }
}
