//! How a call's end becomes a response in its slot.

use std::any::Any;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use super::hosted::Hosted;
use super::lane::OwnerLane;
use crate::blob::limit::NoMemory;
use crate::error::Executed;
use crate::object::{Completed, Refusal};
use crate::panics::contain;
use crate::ring::layout::{Loan, RESPONSE_BODY, ResponseMeta, len_with_loans};
use crate::status::{Refused, Status};
use crate::sys::cpu;
use crate::wire::output::Output;

/// How a call ended: a status, and what stands in the output.
pub(crate) struct Response {
    status: Status,
    /// The encoded result or error, or what the bus has to say instead.
    pub(super) body: Result<Output, Refused>,
}

impl Response {
    pub fn refused(refused: Refused) -> Response {
        Response { status: Status::Refused, body: Err(refused) }
    }

    pub fn completed(Completed { output, concluded }: Completed) -> Response {
        match concluded {
            Ok(()) => Response { status: status_of(&output), body: Ok(output) },
            Err(refusal) => Response::refused((*refusal).into()),
        }
    }

    pub fn panicked(object: &Hosted, panic: Box<dyn Any + Send>) -> Response {
        Response::refused(panicked(object, panic))
    }
}

/// A place for a body until all that is lent with it is lent.
///
/// The slot's cache line is the one that the caller looks at all the time. A store to it waits until the line has come over, an
/// atomic operation behind it waits for the store, and meanwhile the caller fetches the line back. So a body that lends is
/// written into the slot in one go, when no atomic operation is left to do before its count.
pub(super) struct Stage([MaybeUninit<u64>; RESPONSE_BODY / 8]);

impl Stage {
    #[inline(always)]
    pub fn new() -> Stage {
        Stage([MaybeUninit::uninit(); RESPONSE_BODY / 8])
    }

    /// An output that writes here.
    pub fn output(&mut self, lane: &OwnerLane) -> Output {
        let limit = lane.object.rules.limits.body_bytes;
        let place = NonNull::from(&mut self.0).cast();
        // SAFETY: the caller keeps the stage for longer than the output and uses it for nothing else; the lane holds the arena.
        unsafe { Output::new(place, RESPONSE_BODY, limit, Some(lane.parcels.arena())) }
    }
}

#[inline(always)]
pub(super) fn status_of(output: &Output) -> Status {
    if output.is_error() { Status::Failed } else { Status::Returned }
}

impl From<Refusal> for Refused {
    #[cold]
    fn from(refusal: Refusal) -> Refused {
        match refusal {
            Refusal::BadRequest(reason) => Refused::BadRequest(reason),
            Refusal::BadResponse(reason) => Refused::BadResponse(reason),
            Refusal::TooLarge { limit, size } => Refused::TooLargeResponse { limit, size },
            Refusal::NoMemory => Refused::NoMemory { executed: Executed::Yes },
            Refusal::NoRoom => Refused::NoMemory { executed: Executed::No },
            Refusal::Cancelled => Refused::Cancelled { executed: Executed::No },
        }
    }
}

/// Puts a response into its slot and publishes it, with what it lends, and through the arena if it is big.
pub(super) fn publish(lane: &OwnerLane, slot: usize, wanted: u32, Response { status, body }: Response) {
    match body {
        Ok(mut output) => publish_output(lane, slot, wanted, status, &mut output),
        Err(refused) => publish_refused(lane, slot, wanted, &refused),
    }
}

#[inline(always)]
pub(super) fn publish_output(
    lane: &OwnerLane,
    slot: usize,
    wanted: u32,
    status: Status,
    output: &mut Output,
) {
    if output.is_plain() {
        move_to_slot(lane, slot, output);
        return answer(lane, slot, wanted, (status, 0), (output.len(), 0));
    }
    if u32::try_from(output.len()).is_err() {
        let (limit, size) = (u64::from(u32::MAX), output.len() as u64);
        return publish_refused(lane, slot, wanted, &Refused::TooLargeResponse { limit, size });
    }
    match lend(lane, slot, output) {
        Ok((flags, len, lent)) => answer(lane, slot, wanted, (status, flags), (len, lent)),
        Err(NoMemory) => publish_refused(lane, slot, wanted, &Refused::NoMemory { executed: Executed::Yes }),
    }
    // A caller that has given the call up may not look here again, and would keep what is lent. Pairs with the fence of
    // `CallerRing::withdraw`: either it has seen the answer after that, or the word is seen here.
    fence(Ordering::SeqCst);
    if lane.ring.is_withdrawn(slot, wanted) {
        lane.parcels.send_wake();
    }
}

/// Copies a body that was written [aside](Stage) into its slot.
#[inline(always)]
fn move_to_slot(lane: &OwnerLane, slot: usize, output: &Output) {
    let place = lane.ring.response_body(slot);
    if let Some(body) = output.written_aside(place) {
        lane.ring.write_response_bytes(slot, body);
    }
}

#[inline(always)]
fn answer(
    lane: &OwnerLane,
    slot: usize,
    wanted: u32,
    (status, flags): (Status, u8),
    (len, lent): (usize, u32),
) {
    let meta = ResponseMeta { status: status as u8, flags, cpu: cpu::current() };
    lane.answer(slot, wanted, meta, len as u32, lent);
}

/// Lends what goes with a response, and its body where that does not fit the slot with it; what its head then says: the flags,
/// the length of the encoded body, and the number of loans. Where nobody reads the answer, nothing is lent with it.
#[inline(always)]
fn lend(lane: &OwnerLane, slot: usize, output: &mut Output) -> Result<(u8, usize, u32), NoMemory> {
    if lane.is_abandoned() {
        return Err(NoMemory);
    }
    let len = output.len();
    let fits = !output.is_spilled() && len_with_loans(len as u64, 1) <= RESPONSE_BODY as u64;
    match if fits { output.take_only_blob() } else { None } {
        Some(blob) => {
            let loan = lane.parcels.lend(blob).map_err(|_| NoMemory)?;
            move_to_slot(lane, slot, output);
            lane.ring.write_loans(slot, len.div_ceil(8), &[loan]);
            Ok((0, len, 1))
        }
        None => lend_all(lane, slot, output),
    }
}

/// The same for whatever is not a single blob behind a short body.
#[inline(never)]
fn lend_all(lane: &OwnerLane, slot: usize, output: &mut Output) -> Result<(u8, usize, u32), NoMemory> {
    let loans = lane.parcels.lend_all(output.take_blobs()).map_err(|_| NoMemory)?;
    let (len, lent) = (output.len(), loans.len() as u32);
    if !output.is_spilled() && len_with_loans(len as u64, lent) <= RESPONSE_BODY as u64 {
        move_to_slot(lane, slot, output);
        lane.ring.write_loans(slot, len.div_ceil(8), &loans);
        return Ok((0, len, lent));
    }
    let body = lend_body(lane, output, &loans).inspect_err(|NoMemory| lane.parcels.unlend(&loans))?;
    lane.ring.write_loans(slot, 0, &[body]);
    Ok((ResponseMeta::SPILLED, len, lent))
}

/// Lends the body, and takes its size of what its caller may have in flight.
fn lend_body(lane: &OwnerLane, output: &mut Output, loans: &[Loan]) -> Result<Loan, NoMemory> {
    let charge = lane.charge(output.len() as u64)?;
    output.spill_now().map_err(|_| NoMemory)?;
    let mut body = output.take_spill().ok_or(NoMemory)?;
    lane.parcels.lend_body(&mut body, loans, Some(charge)).map_err(|_| NoMemory)
}

fn publish_refused(lane: &OwnerLane, slot: usize, wanted: u32, refused: &Refused) {
    // SAFETY: the slot's body is ours until the call is answered, below; the arena is the lane's.
    let mut output = unsafe {
        Output::new(lane.ring.response_body(slot), RESPONSE_BODY, u64::MAX, Some(lane.parcels.arena()))
    };
    // The longest of them are a panic's message or a decoder's sentence; one for which there is no memory goes unsaid.
    let said = output.encode(refused).is_ok().then(|| match output.is_plain() {
        true => Ok((0, output.len(), 0)),
        false => lend(lane, slot, &mut output),
    });
    if let Some(Ok((flags, len, lent))) = said {
        return answer(lane, slot, wanted, (Status::Refused, flags), (len, lent));
    }
    publish_refused(lane, slot, wanted, &Refused::NoMemory { executed: Executed::Unknown });
}

/// What a panic says, and what it does to the object.
#[cold]
pub(crate) fn panicked(object: &Hosted, panic: Box<dyn Any + Send>) -> Refused {
    let message = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(message), _) => (*message).to_owned(),
        (_, Some(message)) => message.clone(),
        _ => "a value that is no text".to_owned(),
    };
    contain(|| drop(panic));
    object.note_panic(&message);
    Refused::Panicked(message)
}
