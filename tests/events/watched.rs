//! Values that others watch.

use super::*;

#[test]
fn the_value_is_told_at_once_and_then_each_change() {
    let place = place();
    let _owner = owner(&place);
    let news = news(&place);
    news.set(7).wait().unwrap();
    assert_eq!(news.state().get().wait(), Ok(7));
    assert_eq!(block_on(news.state().get()), Ok(7));
    let mut states = news.state().subscribe().wait().unwrap();
    assert_eq!(next(&mut states), 7);
    for state in 8..100 {
        news.set(state).wait().unwrap();
        assert_eq!(next(&mut states), state);
    }
    assert!(is_silent(&mut states));
    assert_eq!(next(&mut news.state().subscribe().wait().unwrap()), 99);
}

#[test]
fn who_lags_gets_the_latest() {
    let place = place();
    let _owner = owner(&place);
    let news = news(&place);
    let mut states = news.state().subscribe().wait().unwrap();
    (1..=1000).for_each(|state| news.set(state).wait().unwrap());
    let mut seen = vec![next(&mut states)];
    while seen.last() != Some(&1000) {
        seen.push(next(&mut states));
    }
    assert!(seen.len() <= 2, "{seen:?}");
}

#[test]
fn values_set_by_several_threads_end_with_the_last() {
    let place = place();
    let news = News::default();
    let _published = place.bus().publish("news", news.clone()).unwrap();
    let proxy: NewsProxy = place.bus().proxy("news").wait().unwrap();
    let mut states = proxy.state().subscribe().wait().unwrap();
    const EACH: u64 = 1000;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..EACH).for_each(|_| news.state.update(|state| *state += 1).unwrap()));
        }
        let mut last = 0;
        while last < 4 * EACH {
            let now = next(&mut states);
            assert!(now > last || now == 0, "{now} after {last}");
            last = now;
        }
    });
    assert_eq!(news.state.get(), 4 * EACH);
    assert_eq!(news.state.subscribers(), 1);
}

#[test]
fn a_restart_tells_the_new_value() {
    let place = place();
    let mut first = owner(&place);
    let news = news(&place);
    news.set(5).wait().unwrap();
    let mut states = news.state().subscribe().wait().unwrap();
    assert_eq!(next(&mut states), 5);
    first.kill();
    let _second = owner(&place);
    assert_eq!(gap(&mut states), Gap::Resubscribed);
    assert_eq!(next(&mut states), 0);
    news.set(6).wait().unwrap();
    assert_eq!(next(&mut states), 6);
}
