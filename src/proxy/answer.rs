//! A response, copied out of its slot.

use std::mem::MaybeUninit;

use serde::de::DeserializeOwned;

use super::call::MethodName;
use super::link::Link;
use crate::error::{BusError, CallError, Executed};
use crate::parcels::{News, UnpackError};
use crate::proxy::lane::Lane;
use crate::ring::caller::ResponseWords;
use crate::ring::layout::{RESPONSE_BODY, ResponseMeta, SPILL_LEN, Spill};
use crate::status::{Refused, Status};
use crate::wire::bytes::decode_owned;
use crate::wire::errors::OwnError;
use crate::wire::key::name_hash;

/// What the owner answered.
pub(crate) struct Answer {
    status: Status,
    len: usize,
    words: ResponseWords,
    /// The body, where it did not fit the slot.
    spilled: Option<Vec<u8>>,
}

impl Answer {
    /// An empty one, to be filled where it stands: moving it would copy the whole buffer.
    #[inline(always)]
    pub fn blank() -> Answer {
        let words = [MaybeUninit::uninit(); RESPONSE_BODY / 8];
        Answer { status: Status::Returned, len: 0, words, spilled: None }
    }

    /// Copies the answered response of `slot` out. `Err`: no honest owner wrote it, or there is no memory for it.
    #[inline(always)]
    pub fn read(&mut self, lane: &Lane, slot: usize) -> Result<ResponseMeta, BusError> {
        let (meta, len) = lane.ring.response_head(slot);
        let is_spilled = meta.flags & ResponseMeta::SPILLED != 0;
        match Status::from_byte(meta.status) {
            Some(status) if is_spilled || len <= RESPONSE_BODY => self.status = status,
            _ => return Err(violation(lane)),
        }
        if is_spilled {
            self.fetch(lane, slot, len)?;
        } else {
            lane.ring.response_body(slot, len, &mut self.words);
        }
        self.len = len;
        Ok(meta)
    }

    /// Bytes of its body.
    pub fn len(&self) -> usize {
        self.len
    }

    #[cold]
    fn fetch(&mut self, lane: &Lane, slot: usize, len: usize) -> Result<(), BusError> {
        lane.ring.response_body(slot, SPILL_LEN, &mut self.words);
        // SAFETY: `response_body` initialised the first line's words, of which these are the first three.
        let words = std::array::from_fn(|i| unsafe { self.words[i].assume_init() });
        let spill = Spill::from_words(words).filter(|spill| spill.len == len as u64);
        let mut news = News::default();
        let fetched =
            spill.ok_or(UnpackError::Violation).and_then(|spill| lane.parcels.unpack(spill, &mut news));
        lane.take_news(news);
        match fetched {
            Ok(bytes) => {
                self.spilled = Some(bytes);
                Ok(())
            }
            Err(UnpackError::NoMemory) => Err(CallError::NoMemory { executed: Executed::Yes }),
            Err(UnpackError::Violation) => Err(violation(lane)),
        }
    }

    #[inline(always)]
    fn body(&self) -> &[u8] {
        match &self.spilled {
            Some(bytes) => bytes,
            // SAFETY: `read`, which alone sets a length, checked it and had all words that it takes initialised.
            None => unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.len) },
        }
    }

    /// The result of the method with this key and name.
    #[inline(always)]
    pub fn decode<T: DeserializeOwned + 'static, E: OwnError>(
        &self,
        link: &Link,
        key: u64,
        method: &MethodName,
    ) -> Result<T, CallError<E>> {
        let budget = link.bus.budget();
        let decoded = match self.status {
            Status::Returned => decode_owned(self.body(), budget).map(Ok),
            Status::Failed => E::decode_error(self.body(), budget).map(|error| Err(CallError::App(error))),
            Status::Refused | Status::Taken => return Err(self.refusal(link, key, method).widen()),
        };
        decoded.unwrap_or_else(|error| {
            Err(CallError::BadResponse { reason: error.to_string(), executed: Executed::Yes })
        })
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
fn violation(lane: &Lane) -> BusError {
    lane.end(super::lane::Fate::Broken);
    CallError::ProtocolViolation { executed: Executed::Yes }
}
