//! A caller that names a slot whose answer is just being given: it spoils its own calls, and the owner's books stay right.

use super::*;

/// Takes and answers one request, unless it is refused.
fn serve(lane: &Lane) {
    let mut request = Request::blank();
    let Some(mut taker) = lane.owner.try_lock() else { return };
    let take = taker.take(&mut request);
    drop(taker);
    if take == Take::Taken {
        lane.answer(&request);
    }
}

#[test]
fn a_slot_named_twice_leaves_no_lane_that_never_ends() {
    explore(None, || {
        let lane = Lane::new();
        lane.publish(0, 1);
        lane.publish(0, 2);
        let other = {
            let lane = Arc::clone(&lane);
            thread::spawn(move || serve(&lane))
        };
        serve(&lane);
        other.join().unwrap();
        assert!(!lane.owner.is_busy(), "found: a lane that is busy for ever");
    });
}
