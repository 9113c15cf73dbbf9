//! What code of the user's throws where nobody can be told of it.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `f`, and lets nothing that it throws go further: the thread serves others too.
pub(crate) fn contain(f: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(f)) {
        // Dropping what was thrown may throw again; then it is leaked, which is all that can be done.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(again);
        }
    }
}
