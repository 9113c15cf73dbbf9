//! What is to be done with a call whose lane has ended.

use crate::error::{BusError, CallError, Executed};
use crate::proxy::lane::Fate;

/// What to do after a call's end without an answer.
pub(super) enum Verdict {
    Fail(BusError),
    /// It did not run and another owner has the name: send it there.
    Resend,
}

impl Verdict {
    /// Of a call that found its lane at its end before it was sent there.
    pub(super) fn unsent(fate: Fate) -> Verdict {
        let executed = Executed::No;
        match fate {
            Fate::Open | Fate::Dying => Verdict::Fail(CallError::OwnerDied { executed }),
            Fate::Lost => Verdict::Fail(CallError::Disconnected { executed }),
            fate => Verdict::of(fate, executed),
        }
    }

    pub(super) fn of(fate: Fate, executed: Executed) -> Verdict {
        let not_begun = executed == Executed::No;
        Verdict::Fail(match fate {
            Fate::Replaced if not_begun => return Verdict::Resend,
            Fate::Replaced | Fate::Unpublished => CallError::Unpublished { executed },
            Fate::OwnerDied => CallError::OwnerDied { executed },
            Fate::Broken => CallError::ProtocolViolation { executed },
            Fate::Closed => CallError::Cancelled { executed },
            // The process lives and may still run what it has not begun.
            Fate::Lost | Fate::Open | Fate::Dying => CallError::Disconnected { executed: Executed::Unknown },
        })
    }
}
