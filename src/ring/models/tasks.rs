//! Tasks that wait for answers: one word on the socket serves all of them, however many answers there are, and none is forgotten.

use super::*;
use crate::sync::{AtomicU32, fence};

/// The caller's tasks and what the owner knows of them.
struct Tasks {
    lane: Arc<Lane>,
    arm: AtomicU32,
    /// Whether a task waits in slot 0. Mirrors `Waiting::waker`.
    waiting: Mutex<bool>,
    /// What wakes that task.
    woken: Event,
    woken_arm: AtomicU32,
    socket: Event,
    /// Whether the sleep word is written under the lock that the watcher takes as well.
    arms_under_lock: bool,
    /// Whether the watcher looks after it has armed anew.
    looks_again: bool,
    /// How the owner answers: one by one, or a burst...
    answers_burst: bool,
    /// ... and whether it tells then of what it has left for later.
    tells_last: bool,
    /// Words sent.
    wakes: AtomicUsize,
}

impl Tasks {
    /// Mirrors `OwnerLane::wake`.
    fn wake(&self, _slot: usize, arm: u32) {
        if arm >= FIRST_ARM && self.woken_arm.swap(arm, Ordering::AcqRel) != arm {
            self.wakes.fetch_add(1, Ordering::Relaxed);
            self.socket.happen();
        }
    }

    /// Mirrors `OwnerLane::wake_early`.
    fn wake_early(&self, slot: usize, arm: u32) {
        if !self.lane.owner.has_request() {
            self.wake(slot, arm);
        }
    }

    /// Mirrors `dispatch::answer_aside`.
    fn answer_next(&self) {
        let request = self.lane.take().unwrap();
        self.lane.answer(&request);
        let bit = 1 << request.slot();
        self.lane.owner.sleepers(bit, |slot, arm| self.wake_early(slot, arm));
        self.lane.owner.after_answers(bit, |slot, arm| self.wake(slot, arm));
    }

    /// Answers what is there. Mirrors `Worker::turn` over short methods, with `OwnerLane::answer`.
    fn answer_burst(&self) {
        let mut answered = 0;
        while let Some(request) = self.lane.take() {
            self.lane.answer(&request);
            let bit = 1 << request.slot();
            self.lane.owner.sleepers(bit, |slot, arm| self.wake_early(slot, arm));
            answered |= bit;
        }
        if self.tells_last {
            self.lane.owner.after_answers(answered, |slot, arm| self.wake(slot, arm));
        }
    }

    /// Registers the task of slot 0. Mirrors `Lane::arm`: whether to look again.
    fn arm(&self) -> bool {
        let mut waiting = self.waiting.lock().unwrap();
        *waiting = true;
        if !self.arms_under_lock {
            drop(waiting);
            self.lane.caller.set_sleep(0, self.arm.load(Ordering::SeqCst));
        } else {
            self.lane.caller.set_sleep(0, self.arm.load(Ordering::SeqCst));
            drop(waiting);
        }
        self.lane.is_answered(0)
    }

    /// Mirrors `Lane::disarm`.
    fn disarm(&self) {
        *self.waiting.lock().unwrap() = false;
        self.lane.caller.clear_sleep(0);
    }

    /// Mirrors `Lane::wake_tasks`; whether the task was woken.
    fn wake_tasks(&self) -> bool {
        self.arm.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let mut waiting = self.waiting.lock().unwrap();
        if !*waiting {
            return false;
        }
        self.lane.caller.set_sleep(0, self.arm.load(Ordering::SeqCst));
        let is_answered = self.looks_again && self.lane.is_answered(0);
        if is_answered {
            *waiting = false;
            self.lane.caller.clear_sleep(0);
            drop(waiting);
            self.woken.happen();
        }
        is_answered
    }
}

impl Tasks {
    fn new() -> Tasks {
        Tasks {
            lane: Lane::new(),
            arm: AtomicU32::new(FIRST_ARM),
            waiting: Mutex::new(false),
            woken: Event::new(),
            woken_arm: AtomicU32::new(AWAKE),
            socket: Event::new(),
            arms_under_lock: true,
            looks_again: true,
            answers_burst: false,
            tells_last: true,
            wakes: AtomicUsize::new(0),
        }
    }
}

/// A task in slot 0, and in slot 1 a call that is armed already and answered first.
fn two_tasks(tasks: Tasks) {
    let tasks = Arc::new(tasks);
    tasks.lane.publish(1, 1);
    tasks.lane.publish(0, 2);
    tasks.lane.caller.set_sleep(1, FIRST_ARM);
    let owner = Arc::clone(&tasks);
    let worker = thread::spawn(move || {
        if owner.answers_burst {
            return owner.answer_burst();
        }
        (0..SLOTS).for_each(|_| owner.answer_next());
    });
    let done = Arc::new(AtomicUsize::new(0));
    let watcher = {
        let (tasks, done) = (Arc::clone(&tasks), Arc::clone(&done));
        thread::spawn(move || {
            loop {
                tasks.socket.wait();
                if done.load(Ordering::Relaxed) == 1 || tasks.wake_tasks() {
                    return;
                }
            }
        })
    };
    if !tasks.arm() {
        tasks.woken.wait();
    }
    tasks.disarm();
    tasks.lane.finish(0, 2);
    worker.join().unwrap();
    done.store(1, Ordering::Relaxed);
    tasks.socket.happen();
    watcher.join().unwrap();
}

#[test]
fn no_task_is_forgotten() {
    explore(3, || two_tasks(Tasks::new()));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_task_that_arms_itself_beside_the_watcher_is_forgotten() {
    explore(3, || two_tasks(Tasks { arms_under_lock: false, ..Tasks::new() }));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_watcher_that_does_not_look_again_forgets_a_task() {
    explore(3, || two_tasks(Tasks { looks_again: false, ..Tasks::new() }));
}

#[test]
fn no_task_is_forgotten_in_a_burst() {
    explore(3, || two_tasks(Tasks { answers_burst: true, ..Tasks::new() }));
}

#[test]
#[should_panic(expected = "deadlock")]
fn an_owner_that_does_not_tell_at_last_forgets_a_task() {
    explore(3, || two_tasks(Tasks { answers_burst: true, tells_last: false, ..Tasks::new() }));
}

/// Two tasks that wait when the owner comes.
#[test]
fn a_burst_is_told_of_once() {
    explore(3, || {
        let tasks = Arc::new(Tasks::new());
        for slot in 0..SLOTS {
            tasks.lane.publish(slot, slot as u64);
            tasks.lane.caller.set_sleep(slot, FIRST_ARM);
        }
        let worker = with(&tasks, Tasks::answer_burst);
        tasks.socket.wait();
        for slot in 0..SLOTS {
            assert!(tasks.lane.is_answered(slot), "found: told of before it was answered");
            tasks.lane.caller.clear_sleep(slot);
        }
        worker.join().unwrap();
        assert_eq!(tasks.wakes.load(Ordering::Relaxed), 1, "found: several words");
    });
}
