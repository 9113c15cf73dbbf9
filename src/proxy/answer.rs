//! A response, copied out of its slot.

use std::mem::MaybeUninit;

use serde::de::DeserializeOwned;

use super::call::MethodName;
use super::link::Link;
use crate::error::{BusError, CallError, Executed};
use crate::parcels::{Back, Opened, UnpackError};
use crate::proxy::lane::Lane;
use crate::ring::caller::ResponseWords;
use crate::ring::layout::{RESPONSE_BODY, ResponseMeta, len_with_loans};
use crate::status::{Refused, Status};
use crate::wire::blob::{Blobs, Lent, is_blob, same};
use crate::wire::budget::decode_with;
use crate::wire::errors::OwnError;
use crate::wire::key::name_hash;

/// What the owner answered.
pub(crate) struct Answer {
    status: Status,
    len: usize,
    words: ResponseWords,
    /// The body, where it did not fit the slot, and what is lent with it; `None` for most, who then have nothing to drop.
    opened: Option<Opened>,
}

impl Answer {
    /// An empty one, to be filled where it stands: moving it would copy the whole buffer.
    #[inline(always)]
    pub fn blank() -> Answer {
        let words = [MaybeUninit::uninit(); RESPONSE_BODY / 8];
        Answer { status: Status::Returned, len: 0, words, opened: None }
    }

    /// Copies the answered response of `slot` out. `Err`: no honest owner wrote it, or there is no memory for it.
    #[inline(always)]
    pub fn read(&mut self, link: &Link, lane: &Lane, slot: usize) -> Result<ResponseMeta, BusError> {
        let (meta, len, lent) = lane.ring.response_head(slot);
        let is_plain = meta.flags & ResponseMeta::SPILLED == 0 && lent == 0;
        match Status::from_byte(meta.status) {
            Some(status) if !is_plain || len <= RESPONSE_BODY => self.status = status,
            _ => return Err(violation(lane)),
        }
        if !is_plain {
            self.open(link, lane, slot, (meta, len, lent))?;
        } else {
            lane.ring.response_body(slot, len, &mut self.words);
        }
        self.len = len;
        Ok(meta)
    }

    #[inline(always)]
    fn open(
        &mut self,
        link: &Link,
        lane: &Lane,
        slot: usize,
        head: (ResponseMeta, usize, u32),
    ) -> Result<(), BusError> {
        let (meta, len, lent) = head;
        let is_spilled = meta.flags & ResponseMeta::SPILLED != 0;
        if is_spilled
            || lent != 1
            || lane.parcels.copies()
            || len_with_loans(len as u64, 1) > RESPONSE_BODY as u64
        {
            return self.open_all(link, lane, slot, head);
        }
        let loan = lane.ring.response_loan(slot, len, &mut self.words);
        match lane.parcels.borrow(loan, Back::Riding) {
            Ok(blob) => {
                self.opened = Some(Opened { body: None, blobs: Blobs::from_buf([blob]) });
                Ok(())
            }
            Err(error) => Err(unopened(lane, self.executed(), error)),
        }
    }

    /// What a refusal that is not read would say of it is not known.
    fn executed(&self) -> Executed {
        if self.status == Status::Refused { Executed::Unknown } else { Executed::Yes }
    }

    /// The same for whatever is not a single blob behind a short body.
    #[inline(never)]
    fn open_all(
        &mut self,
        link: &Link,
        lane: &Lane,
        slot: usize,
        (meta, len, lent): (ResponseMeta, usize, u32),
    ) -> Result<(), BusError> {
        let executed = self.executed();
        let Some((spilled, inline)) = lane.ring.response_loans(slot, (meta, len, lent), &mut self.words)
        else {
            return Err(violation(lane));
        };
        let (limit, size) = (link.bus.body_limit(), len as u64);
        if spilled.is_some() && size > limit {
            lane.parcels.discard(spilled, size, lent, inline);
            return Err(CallError::TooLarge { limit, size, executed });
        }
        let charge = |bytes| link.bus.copies_held.charge(bytes);
        match lane.parcels.open(spilled, size, lent, inline, Back::Riding, charge) {
            Ok(opened) => {
                self.opened = Some(opened);
                Ok(())
            }
            Err(error) => Err(unopened(lane, executed, error)),
        }
    }

    /// Whether it is that the object was withdrawn before it began the call; then it is empty after this, to be filled again.
    #[cold]
    pub fn take_withdrawal(&mut self) -> bool {
        let is_refused = self.status == Status::Refused;
        let is_withdrawn = is_refused && Refused::decode(self.body()) == Some(Refused::Unpublished);
        if is_withdrawn {
            self.opened = None;
        }
        is_withdrawn
    }

    #[inline(always)]
    fn body(&self) -> &[u8] {
        match self.opened.as_ref().and_then(|opened| opened.body.as_ref()) {
            Some(body) => body,
            // SAFETY: `read`, which alone sets a length, checked it and had all words that it takes initialised.
            None => unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.len) },
        }
    }

    #[inline(always)]
    fn lent(&self) -> Lent<'_> {
        self.opened.as_ref().map_or_else(Lent::default, Opened::lent)
    }

    /// The result of the method with this key and name.
    #[inline(always)]
    pub fn decode<T: DeserializeOwned + 'static, E: OwnError>(
        &mut self,
        link: &Link,
        key: u64,
        method: &MethodName,
    ) -> Result<T, CallError<E>> {
        if self.status == Status::Returned
            && let Some(blob) = self.take_only_blob()
        {
            return Ok(blob);
        }
        let (lent, budget) = (self.lent(), link.bus.budget());
        let decoded = match self.status {
            Status::Returned => decode_with(self.body(), lent, budget).map(Ok),
            Status::Failed => {
                E::decode_error(self.body(), lent, budget).map(|error| Err(CallError::App(error)))
            }
            Status::Refused | Status::Taken => return Err(self.refusal(link, key, method).widen()),
        };
        decoded.unwrap_or_else(|error| {
            Err(CallError::BadResponse { reason: error.to_string(), executed: Executed::Yes })
        })
    }

    /// The result, if it is a blob and nothing else: without counting who holds it up and down again.
    #[inline(always)]
    fn take_only_blob<T>(&mut self) -> Option<T> {
        if !is_blob::<T>() || self.body() != [1] {
            return None;
        }
        let Opened { body, blobs } = self.opened.take()?;
        match blobs.into_inner() {
            Ok([blob]) => same(blob).ok(),
            Err(blobs) => {
                self.opened = Some(Opened { body, blobs });
                None
            }
        }
    }

    #[cold]
    fn refusal(&self, link: &Link, key: u64, method: &MethodName) -> BusError {
        let Some(refused) = Refused::decode(self.body()).filter(|_| self.status == Status::Refused) else {
            return CallError::BadResponse {
                reason: "the owner's refusal cannot be read".to_owned(),
                executed: Executed::Unknown,
            };
        };
        refused.into_error(|| unknown_key(link, key, method.as_str()))
    }
}

/// The object does not have our key: has it none of the method's name, or one built with other types?
#[cold]
fn unknown_key(link: &Link, ours: u64, method: &str) -> BusError {
    let theirs = link.with_lane(|lane| lane.keys.get(&name_hash(method)).copied()).flatten();
    let (method, executed) = (method.to_owned(), Executed::No);
    match theirs {
        Some(theirs) if theirs != ours => CallError::SchemaMismatch { method, ours, theirs, executed },
        _ => CallError::UnknownMethod { method, executed },
    }
}

#[cold]
fn unopened(lane: &Lane, executed: Executed, error: UnpackError) -> BusError {
    match error {
        UnpackError::NoMemory | UnpackError::Limit => CallError::NoMemory { executed },
        UnpackError::Violation => violation(lane),
    }
}

#[cold]
fn violation(lane: &Lane) -> BusError {
    lane.end(super::lane::Fate::Broken);
    CallError::ProtocolViolation { executed: Executed::Yes }
}
