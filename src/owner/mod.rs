//! The owner's side: requests come out of the lanes, methods run, answers go back.
//!
//! [`pool`] decides which thread looks where; [`dispatch`] takes one request through its method to its answer; a
//! [`lane::OwnerLane`] is one caller process connected with one [`hosted::Hosted`] object; [`task`] carries async
//! methods that did not end at once; [`context`] is what a method can ask about its call; [`exports`] are the objects that a caller
//! gives along with its calls, for which the two sides change places.

pub(crate) mod context;
pub(crate) mod dispatch;
pub(crate) mod exports;
pub(crate) mod hosted;
pub(crate) mod lane;
pub(crate) mod listener;
pub(crate) mod permits;
pub(crate) mod pool;
pub(crate) mod respond;
pub(crate) mod task;
