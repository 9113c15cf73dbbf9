//! Subscribers of another user, whom only root can become: without it this test says so and passes.

use super::*;

use objbus::CallError;
use support::system::is_root;

const STRANGER: u32 = 12_345;

/// The role of another user's process: asks for what it may not have, then reads pages.
pub fn subscribe_as_stranger(directory: &str) -> ! {
    // SAFETY: the library has no threads yet; glibc changes the user of all others.
    assert_eq!(unsafe { libc::setgid(STRANGER) | libc::setuid(STRANGER) }, 0);
    let bus = Bus::builder().directory(directory).owner(0).open().unwrap();
    let news: NewsProxy = bus.proxy("news").wait().unwrap();
    let refused = news.told().lag(Lag::Block).wait().unwrap_err();
    assert!(matches!(refused, CallError::BadRequest { .. }), "{refused:?}");
    let mut told = news.told().wait().unwrap();
    let mut pages: Vec<_> = (0..3).map(|_| news.pages().wait().unwrap()).collect();
    say("ready");
    hear();
    for events in &mut pages {
        let page = next(events);
        assert!(page.number == 7 && page.text.iter().all(|&byte| byte == 7));
    }
    assert_eq!(next(&mut told), 1);
    say("taken");
    stay()
}

#[test]
fn each_user_has_a_copy_of_its_own_and_only_our_own_may_hold_us_up() {
    if !is_root() {
        println!("not run: only root can become another user");
        return;
    }
    const LEN: usize = 4 << 20;
    let place = place();
    let bus = Bus::builder().directory(place.path()).admit(STRANGER).open().unwrap();
    let news = News::default();
    let _published = bus.publish("news", news.clone()).unwrap();
    let proxy: NewsProxy = bus.proxy("news").wait().unwrap();
    let mut own: Vec<_> = (0..3).map(|_| proxy.pages().wait().unwrap()).collect();
    let mut stranger = start("stranger", &[place.text()]);
    stranger.expect("ready");
    news.pages.emit(&Page { number: 7, text: vec![7; LEN], picture: None }).unwrap();
    news.told.emit(&1).unwrap();
    let users = bus.memory().users;
    for uid in [0, STRANGER] {
        let used = users.iter().find(|user| user.uid == uid).map_or(0, |user| user.in_use);
        assert!((LEN as u64..2 * LEN as u64).contains(&used), "{used} bytes for user {uid}");
    }
    stranger.tell("take");
    stranger.expect("taken");
    assert!(own.iter_mut().all(|events| next(events).number == 7));
    wait_until("the memory is back", || in_use(&bus) == 0);
}
