//! One request, from the ring through its method to its answer.
//!
//! In order: is it admitted; may the object run it now; say that it begins; run it; answer. Every request that was taken
//! is answered exactly once: here, or by the ticket of an async method that goes on elsewhere.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use super::context::{self, Frame, Served, Source};
use super::exports::Asked;
use super::hosted::{Hosted, MethodState, Runnable, Runtime};
use super::lane::OwnerLane;
use super::permits::Queued;
use super::pool::Worker;
use super::respond::{Response, Stage, publish, publish_output, status_of};
use super::task::Task;
use crate::blob::limit::{Charge, NoMemory};
use crate::error::Executed;
use crate::object::{
    AsyncInvocation, Completed, Handler, Invocation, MethodTable, PooledFuture, RequestBody,
};
use crate::parcels::{Back, Opened, UnpackError};
use crate::ring::layout::{NO_CPU, RESPONSE_BODY, RequestMeta, ResponseMeta};
use crate::ring::owner::Request;
use crate::status::{Refused, Status};
use crate::sys::{clock, cpu};
use crate::wire::blob::Lent;
use crate::wire::output::Output;

/// A method that took longer than this runs with its worker's other lanes handed over.
const SHORT_NS: u64 = 5_000;
/// One run in so many of a short method is timed, since reading a clock twice costs a tenth of a hot call.
const TIMED_RUNS: u32 = 64;

/// The key under which every object describes itself; no method's key is a number this small.
pub(crate) const DESCRIBE_KEY: u64 = 1;

/// Serves a request that was just taken; its answer, if it is given here, is noted at the worker.
#[inline(always)]
pub(crate) fn serve(worker: &mut Worker, lane: &Arc<OwnerLane>, request: &Request) {
    serve_admitted(worker, lane, request);
    // Now the caller is busy with its answer; before a method that may take long, or that finds no memory, this was done.
    lane.take_back_returned(request);
}

#[inline(always)]
fn serve_admitted(worker: &mut Worker, lane: &Arc<OwnerLane>, request: &Request) {
    match admit(worker, lane, request) {
        Ok(index) if !lane.object.permits.is_limited() => {
            run(worker, lane, request, lane.object.method(index));
        }
        Ok(index) => serve_limited(worker, lane, request, index),
        Err(Refused::UnknownKey) if lane.object.exports.is_some() => serve_export(worker, lane, request),
        Err(refused) => refuse(worker, lane, request, refused),
    }
}

/// Whether the method exists and this caller may call it now: its index.
#[inline(always)]
fn admit(worker: &Worker, lane: &OwnerLane, request: &Request) -> Result<usize, Refused> {
    let object = &*lane.object;
    if object.is_withdrawn() {
        return Err(Refused::Unpublished);
    }
    if let Some(message) = object.poison() {
        return Err(Refused::Poisoned(message.to_owned()));
    }
    let index = object.table.find(request.key).ok_or(Refused::UnknownKey)?;
    if lane.denied.as_ref().is_some_and(|denied| denied[index]) {
        return Err(Refused::PermissionDenied);
    }
    admit_now(worker, request).map(|()| index)
}

/// Whether a request may run as far as that has nothing to do with its method.
#[inline(always)]
fn admit_now(worker: &Worker, request: &Request) -> Result<(), Refused> {
    if request.is_excess {
        return Err(Refused::Overloaded);
    }
    if worker.came_late && is_expired(request) {
        return Err(Refused::DeadlineExceeded);
    }
    Ok(())
}

/// Whether the caller has stopped waiting, by the clock. Asked only where the request may have lain for a while.
#[cold]
fn is_expired(request: &Request) -> bool {
    let deadline_ms = request.deadline_ms;
    deadline_ms != 0 && (deadline_ms.wrapping_sub(clock::now_ms()) as i32) < 0
}

/// As [`serve_admitted`], for a method of one of a caller's objects.
#[inline(never)]
fn serve_export(worker: &mut Worker, lane: &Arc<OwnerLane>, request: &Request) {
    let found = lane.object.exports.as_ref().and_then(|exports| exports.find(request.key));
    // One that was given for a call that is over, or was dropped.
    let Some((export, asked)) = found else { return refuse(worker, lane, request, Refused::Unpublished) };
    match (admit_now(worker, request), asked) {
        (Ok(()), Asked::Method(index)) => run(worker, lane, request, export.method(index)),
        (Ok(()), Asked::Description) => describe(worker, lane, request, export.table()),
        (Err(refused), _) => refuse(worker, lane, request, refused),
    }
}

/// As [`run`], for an object that serves only so many calls at once.
#[inline(never)]
fn serve_limited(worker: &mut Worker, lane: &Arc<OwnerLane>, request: &Request, index: usize) {
    let permits = &lane.object.permits;
    if permits.is_exclusive() && request.chain().contains(&lane.object.id) {
        return refuse(worker, lane, request, Refused::WouldDeadlock);
    }
    if permits.try_take() {
        return run(worker, lane, request, lane.object.method(index));
    }
    lane.take_back_returned(request);
    let queued = Queued { lane: Arc::clone(lane), request: Box::new(request.clone()) };
    if let Some(next) = permits.queue(queued) {
        // It may be of another lane, and the answers noted so far are of this one.
        lane.after_answers(worker.take_answered());
        serve_queued(worker, next);
    }
    // Who withdraws the object says so and then empties the queue: either it found the request there, or we see that it came
    // too late, and the request would wait for a running method only to be refused.
    if lane.object.is_withdrawn() {
        permits.drain().into_iter().for_each(refuse_withdrawn);
    }
}

/// Runs a request that waited for its object, with the right to run that was taken for it.
#[cold]
pub(crate) fn serve_queued(worker: &mut Worker, Queued { lane, request }: Queued) {
    worker.came_late = true;
    match admit(worker, &lane, &request) {
        Ok(index) => run(worker, &lane, &request, lane.object.method(index)),
        Err(refused) => {
            refuse(worker, &lane, &request, refused);
            give_back(&lane.object);
        }
    }
    lane.after_answers(worker.take_answered());
}

/// Gives a right to run back, where runs are counted; the next request in the queue is run by a worker.
#[inline(always)]
fn give_back(object: &Hosted) {
    if object.permits.is_limited() {
        give_back_limited(object);
    }
}

#[inline(never)]
fn give_back_limited(object: &Hosted) {
    if let Some(next) = object.permits.give_back() {
        object.engine.pool.enqueue_queued(next);
    }
}

#[inline(always)]
fn run(worker: &mut Worker, lane: &Arc<OwnerLane>, request: &Request, method: Runnable<'_>) {
    let one_way = request.meta.has(RequestMeta::ONE_WAY);
    if one_way {
        lane.object.begin_background();
    } else if !lane.ring.begin(request.slot(), request.wanted) {
        refuse(worker, lane, request, Refused::Cancelled { executed: Executed::No });
        return give_back(&lane.object);
    } else {
        // Who waits for an answer before it is not to wait for that, short though the method may be.
        worker.tell_answered(lane);
    }
    let opened = (!request.is_plain()).then(|| open(lane, request)).transpose();
    if one_way {
        // Not before what it lends is held or copied: with the last answer the lane may end, and with that the leases.
        answer_taken(worker, lane, request);
    }
    let opened = match opened {
        Ok(opened) => opened,
        Err(refused) => return finish(worker, lane, request, Response::refused(refused)),
    };
    let (body, lent) = match &opened {
        None => (request.body(), Lent::default()),
        Some((opened, _)) => (opened.body.as_deref().unwrap_or(request.body()), opened.lent()),
    };
    let clock = Stopwatch::start(worker, lane, request, method.state);
    match method.handler {
        Handler::Plain(handler) => {
            let mut stage = Stage::new();
            let is_staged = method.state.lends.load(Ordering::Relaxed) && !one_way;
            let mut output = if is_staged { stage.output(lane) } else { output_for(lane, request, one_way) };
            let concluded = {
                let frame = frame_of(lane, request, one_way);
                let call = Invocation::new(body, lent, &mut output, &lane.object.budget);
                context::enter(&frame, || catch_unwind(AssertUnwindSafe(|| handler(call))))
            };
            clock.stop();
            // Before the answer: who has it may send as much again at once.
            drop(opened);
            match concluded {
                Ok(Ok(())) if is_in_place(&output, request) && !is_staged => {
                    answer_in_place(worker, lane, request, &output);
                    output.end_plain();
                }
                Ok(Ok(())) if !one_way => answer_lending(worker, lane, request, method.state, &mut output),
                Ok(concluded) => {
                    finish(worker, lane, request, Response::completed(Completed { output, concluded }));
                }
                Err(panic) => finish(worker, lane, request, Response::panicked(&lane.object, panic)),
            }
        }
        Handler::Async(handler) => {
            let (opened, charge) = opened.unwrap_or_default();
            let body = opened.body.map_or_else(|| RequestBody::copy_of(request.body()), RequestBody::Large);
            let output = output_for(lane, request, one_way);
            let call = AsyncInvocation::new(body, opened.blobs, output, lane.object.budget);
            run_async(worker, lane, request, method.runtime, (one_way, clock, charge), || handler(call));
        }
    }
}

/// Tells short methods from others, by timing the first run of each and then some.
struct Stopwatch<'a> {
    state: &'a MethodState,
    began_ns: Option<u64>,
}

impl<'a> Stopwatch<'a> {
    /// Before a method not known to be short the worker hands over what it would hide.
    #[inline(always)]
    fn start(
        worker: &mut Worker,
        lane: &Arc<OwnerLane>,
        request: &Request,
        state: &'a MethodState,
    ) -> Stopwatch<'a> {
        let is_short = state.short.load(Ordering::Relaxed);
        if !is_short {
            // It may wait for a thread that waits for that very memory.
            lane.take_back_returned(request);
            worker.before_long_method(lane);
        }
        let began_ns = (!is_short || worker.is_nth_run(TIMED_RUNS)).then(clock::now_ns);
        Stopwatch { state, began_ns }
    }

    #[inline(always)]
    fn stop(self) {
        if let Some(began_ns) = self.began_ns {
            self.state.short.store(clock::now_ns() - began_ns <= SHORT_NS, Ordering::Relaxed);
        }
    }
}

/// Polls an async method once, right here; goes on elsewhere if it is pending.
#[inline(always)]
fn run_async(
    worker: &mut Worker,
    lane: &Arc<OwnerLane>,
    request: &Request,
    runtime: Option<&Runtime>,
    (one_way, clock, charge): (bool, Stopwatch<'_>, Option<Charge>),
    start: impl FnOnce() -> PooledFuture,
) {
    let frame = frame_of(lane, request, one_way);
    #[cfg(feature = "tokio")]
    let _entered = runtime.map(Runtime::enter);
    let first = context::enter(&frame, || {
        catch_unwind(AssertUnwindSafe(|| {
            let mut future = start();
            // Where it goes on polls it again at once, with a waker that works.
            match Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(completed) => Ok(completed),
                Poll::Pending => Err(future),
            }
        }))
    });
    clock.stop();
    match first {
        Ok(Err(future)) => Task::start(frame.to_served(), future, runtime, charge),
        Ok(Ok(completed)) => {
            drop(charge);
            match completed {
                Completed { output, concluded: Ok(()) } if is_in_place(&output, request) => {
                    answer_in_place(worker, lane, request, &output);
                    output.end_plain();
                }
                completed => finish(worker, lane, request, Response::completed(completed)),
            }
        }
        Err(panic) => {
            drop(charge);
            finish(worker, lane, request, Response::panicked(&lane.object, panic));
        }
    }
}

/// Whether the result of a method stands in the slot already.
#[inline(always)]
fn is_in_place(output: &Output, request: &Request) -> bool {
    output.is_plain() && !request.meta.has(RequestMeta::ONE_WAY)
}

/// Answers after a method whose result [stands in the slot](is_in_place).
#[inline(always)]
fn answer_in_place(worker: &mut Worker, lane: &OwnerLane, request: &Request, output: &Output) {
    // Before the answer: the caller's next request may be served by another worker at once.
    lane.count_good_request();
    answer_inline(worker, lane, request, status_of(output), output.len());
    give_back(&lane.object);
}

/// Answers after a method whose result lends something, or did not fit its slot.
#[inline(never)]
fn answer_lending(
    worker: &mut Worker,
    lane: &OwnerLane,
    request: &Request,
    state: &MethodState,
    output: &mut Output,
) {
    let (lends, now) = (&state.lends, output.blob_count() != 0);
    if lends.load(Ordering::Relaxed) != now {
        lends.store(now, Ordering::Relaxed);
    }
    lane.count_good_request();
    publish_output(lane, request.slot(), request.wanted, status_of(output), output);
    worker.note_answer(request.slot());
    give_back(&lane.object);
}

#[inline(always)]
fn frame_of<'a>(lane: &'a Arc<OwnerLane>, request: &'a Request, one_way: bool) -> Frame<'a> {
    Frame {
        lane,
        slot: request.slot(),
        wanted: request.wanted,
        one_way,
        deadline_ms: request.deadline_ms,
        source: Source::Whole(request),
    }
}

/// Where the result is encoded: into the call's slot, or, since nobody reads it, on the heap for a one-way call.
#[inline(always)]
fn output_for(lane: &OwnerLane, request: &Request, one_way: bool) -> Output {
    let (limit, slot) = (lane.object.rules.limits.body_bytes, lane.ring.response_body(request.slot()));
    if one_way {
        return Output::heap(limit);
    }
    // SAFETY: the slot's body is ours from taking the request until answering it, which the counts of both guard even
    // against a caller that names the slot twice; the memory is mapped as long as the lane, which the worker, or the
    // ticket of the task, holds for longer than the output; the lane holds the arena as well.
    unsafe { Output::new(slot, RESPONSE_BODY, limit, Some(lane.parcels.arena())) }
}

/// Borrows what a request lends, and takes the size of its body of what its caller may have in flight.
#[cold]
fn open(lane: &OwnerLane, request: &Request) -> Result<(Opened, Option<Charge>), Refused> {
    let charge = charge_for(lane, request).inspect_err(|_| discard(lane, request))?;
    let (spill, len, lent) = (request.spill(), request.len.into(), request.lent);
    let copying = |bytes| lane.charge(bytes);
    let opened = lane.parcels.open(spill, len, lent, request.loans(), Back::AtOnce, copying);
    let opened = opened.map_err(|error| match error {
        UnpackError::Limit => Refused::Overloaded,
        UnpackError::NoMemory => Refused::NoMemory { executed: Executed::No },
        UnpackError::Violation => {
            lane.violate();
            Refused::BadRequest("it lies outside of the memory announced".to_owned())
        }
    })?;
    Ok((opened, charge))
}

fn charge_for(lane: &OwnerLane, request: &Request) -> Result<Option<Charge>, Refused> {
    let (limit, size) = (lane.object.rules.limits.body_bytes, u64::from(request.len));
    if !request.meta.has(RequestMeta::SPILLED) {
        return Ok(None);
    }
    if size > limit {
        return Err(Refused::TooLargeRequest { limit, size });
    }
    lane.charge(size).map(Some).map_err(|NoMemory| Refused::Overloaded)
}

/// Gives back what a request lends that nobody looks at.
#[cold]
fn discard(lane: &OwnerLane, request: &Request) {
    lane.parcels.discard(request.spill(), request.len.into(), request.lent, request.loans());
}

/// The empty answer that a one-way call gets when it is taken.
fn answer_taken(worker: &mut Worker, lane: &OwnerLane, request: &Request) {
    answer_inline(worker, lane, request, Status::Taken, 0);
    // Its sender may be looking for it before it exits; it does not wait for the method.
    lane.after_answers(worker.take_answered());
}

#[inline(always)]
fn answer_inline(worker: &mut Worker, lane: &OwnerLane, request: &Request, status: Status, len: usize) {
    let meta = ResponseMeta { status: status as u8, flags: 0, cpu: cpu::current() };
    lane.answer(request.slot(), request.wanted, meta, len as u32, 0);
    worker.note_answer(request.slot());
}

/// Answers without having run the method.
#[cold]
#[inline(never)]
fn refuse(worker: &mut Worker, lane: &OwnerLane, request: &Request, refused: Refused) {
    if !request.is_plain() {
        discard(lane, request);
    }
    if request.meta.has(RequestMeta::ONE_WAY) {
        return answer_taken(worker, lane, request);
    }
    if matches!(refused, Refused::UnknownKey) && request.key == DESCRIBE_KEY {
        return describe(worker, lane, request, &lane.object.table);
    }
    publish(lane, request.slot(), request.wanted, Response::refused(refused));
    worker.note_answer(request.slot());
}

/// Answers with the object's description.
fn describe(worker: &mut Worker, lane: &OwnerLane, request: &Request, table: &MethodTable) {
    let mut output = output_for(lane, request, false);
    let encoded = output.encode(&table.description());
    let concluded = encoded.map_err(Box::from);
    publish(lane, request.slot(), request.wanted, Response::completed(Completed { output, concluded }));
    worker.note_answer(request.slot());
}

/// Answers after the method, in any way but the shortest.
#[cold]
#[inline(never)]
fn finish(worker: &mut Worker, lane: &Arc<OwnerLane>, request: &Request, response: Response) {
    let one_way = request.meta.has(RequestMeta::ONE_WAY);
    // Counted before the answer: the caller's next request may be served by another worker at once.
    let is_bad = matches!(response.body, Err(Refused::BadRequest(_)));
    let too_many = is_bad && lane.count_bad_request();
    if !is_bad {
        lane.count_good_request();
    }
    if one_way {
        drop(response);
        lane.object.end_background();
    } else {
        // As part of the call: what the answer lends may need what the request gives back.
        let frame = frame_of(lane, request, one_way);
        context::enter(&frame, || publish(lane, request.slot(), request.wanted, response));
        worker.note_answer(request.slot());
    }
    if too_many {
        lane.violate();
    }
    give_back(&lane.object);
}

/// Answers from wherever an async method ended.
pub(crate) fn answer_aside(served: &Served, response: Response, has_permit: bool) {
    let lane = &served.lane;
    if served.one_way {
        drop(response);
        lane.object.end_background();
    } else {
        publish(lane, served.slot, served.wanted, response);
        lane.after_answers(1 << served.slot);
    }
    if has_permit {
        give_back(&lane.object);
    }
}

/// Answers a request that waited in the queue of an object that is now withdrawn.
pub(crate) fn refuse_withdrawn(Queued { lane, request }: Queued) {
    if !request.is_plain() {
        discard(&lane, &request);
    }
    if !request.meta.has(RequestMeta::ONE_WAY) {
        publish(&lane, request.slot(), request.wanted, Response::refused(Refused::Unpublished));
    } else {
        let meta = ResponseMeta { status: Status::Taken as u8, flags: 0, cpu: NO_CPU };
        lane.answer(request.slot(), request.wanted, meta, 0, 0);
    }
    lane.after_answers(1 << request.slot());
}
