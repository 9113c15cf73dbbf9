//! Tasks that wait for answers: one word on the socket serves all of them, and none is forgotten.

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
}

impl Tasks {
    /// Mirrors `OwnerLane::wake`.
    fn wake(&self, _slot: usize, arm: u32) {
        if arm >= FIRST_ARM && self.woken_arm.swap(arm, Ordering::AcqRel) != arm {
            self.socket.happen();
        }
    }

    /// Mirrors `OwnerLane::answer` and `OwnerLane::after_answers`.
    fn answer_next(&self) {
        let request = self.lane.take().unwrap();
        self.lane.answer(&request);
        self.lane.owner.sleepers(1 << request.slot(), |slot, arm| self.wake(slot, arm));
        self.lane.owner.after_answers(1 << request.slot(), |slot, arm| self.wake(slot, arm));
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
            drop(waiting);
            self.woken.happen();
        }
        is_answered
    }
}

/// A task in slot 0, and in slot 1 a call that is armed already and answered first.
fn two_tasks(arms_under_lock: bool, looks_again: bool) {
    let tasks = Arc::new(Tasks {
        lane: Lane::new(),
        arm: AtomicU32::new(FIRST_ARM),
        waiting: Mutex::new(false),
        woken: Event::new(),
        woken_arm: AtomicU32::new(AWAKE),
        socket: Event::new(),
        arms_under_lock,
        looks_again,
    });
    tasks.lane.publish(1, 1);
    tasks.lane.publish(0, 2);
    tasks.lane.caller.set_sleep(1, FIRST_ARM);
    let owner = Arc::clone(&tasks);
    let worker = thread::spawn(move || {
        owner.answer_next();
        owner.answer_next();
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
    explore(3, || two_tasks(true, true));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_task_that_arms_itself_beside_the_watcher_is_forgotten() {
    explore(3, || two_tasks(false, true));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_watcher_that_does_not_look_again_forgets_a_task() {
    explore(3, || two_tasks(true, false));
}
