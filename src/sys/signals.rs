//! Threads of the library take no signals: those are for the program that uses it (think of `sigwait`).

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::thread::{Builder, JoinHandle};

/// Starts a thread in which every signal is blocked. `name` is cut by the kernel after 15 bytes.
///
/// Errors: no memory or no process slot left.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    // A thread starts with its maker's mask, so blocking inside it would be too late.
    let _blocked = Blocked::all();
    Builder::new().name(name.to_owned()).spawn(f)
}

/// The present thread's signals are blocked while this lives.
struct Blocked {
    before: libc::sigset_t,
}

impl Blocked {
    fn all() -> Blocked {
        let mut all = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: sigfillset initialises `all`, and pthread_sigmask, which cannot fail with a valid `how`, `before`.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Blocked { before: before.assume_init() }
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: `before` is a whole set, and null means that the present one is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks_usr1() -> bool {
        let mut now = MaybeUninit::uninit();
        // SAFETY: a null set changes nothing; the call fills `now`, which is only read after it.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, ptr::null(), now.as_mut_ptr());
            libc::sigismember(now.as_ptr(), libc::SIGUSR1) == 1
        }
    }

    #[test]
    fn only_the_new_thread_blocks_signals() {
        assert!(spawn("test", blocks_usr1).unwrap().join().unwrap());
        assert!(!blocks_usr1());
    }
}
