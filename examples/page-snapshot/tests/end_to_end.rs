//! Pictures of pages as a user gets them: the application on real Chromium, over HTTP.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::{Duration, Instant};

use objbus::CallError;
use page_snapshot::{PageSnapshotProxy, Shot, SnapshotError};
use rustix::process::{Signal, kill_process};
use support::app::{Setup, new_place};
use support::site::{Content, Site};
use support::{PATIENCE, Picture, has_chromium, shot, wait_for};

const RED: [u8; 3] = [200, 30, 30];
const GREEN: [u8; 3] = [30, 160, 60];
const BLUE: [u8; 3] = [40, 60, 200];
const WHITE: [u8; 3] = [255, 255, 255];

fn css([r, g, b]: [u8; 3]) -> String {
    format!("rgb({r},{g},{b})")
}

/// A page all in one colour.
fn plain(colour: [u8; 3]) -> Content {
    Content::Html(format!("<!doctype html><title>plain</title><body style='background:{}'>", css(colour)))
}

/// Bands of 1,000 pixels one below the other, each with a white square of 100 at (50, 50) in it.
fn tall(colours: &[[u8; 3]]) -> Content {
    let band = |colour: &[u8; 3]| {
        let square = "<div style='position:absolute;left:50px;top:50px;width:100px;height:100px;background:white'></div>";
        format!("<div style='position:relative;height:1000px;background:{}'>{square}</div>", css(*colour))
    };
    let bands: String = colours.iter().map(band).collect();
    Content::Html(format!("<!doctype html><title>tall</title><body style='margin:0'>{bands}"))
}

#[test]
fn a_page_is_shown_as_large_as_asked_or_whole() {
    if !has_chromium() {
        return;
    }
    let site = Site::serve([("/", tall(&[RED, GREEN, BLUE]))]);
    let app = Setup::default().start();

    let answer = app.get(&shot(&site.url("/"), ""));
    let window = answer.picture();
    assert_eq!((window.width, window.height), (1280, 800));
    window.assert_shows((20, 20), RED);
    window.assert_shows((100, 100), WHITE);
    window.assert_shows((1270, 790), RED);
    for part in ["wait", "load", "paint", "decode", "total"] {
        assert!(answer.header("server-timing").contains(&format!("{part};dur=")), "{part}");
    }

    let whole = app.get(&shot(&site.url("/"), "&full_page=true&width=600&height=400&quality=95")).picture();
    assert_eq!((whole.width, whole.height), (600, 3000));
    for (number, colour) in [RED, GREEN, BLUE].into_iter().enumerate() {
        let top = number * 1000;
        whole.assert_shows((20, top + 20), colour);
        whole.assert_shows((100, top + 100), WHITE);
        whole.assert_shows((160, top + 160), colour);
        whole.assert_shows((590, top + 990), colour);
    }
}

#[test]
fn each_kind_of_failure_has_its_status() {
    if !has_chromium() {
        return;
    }
    let elsewhere = |site: &Site, path: &str| site.url(path).replace("127.0.0.1", "localhost");
    let other = Site::serve([("/", plain(RED))]);
    let site = Site::serve([
        ("/", plain(GREEN)),
        ("/broken", Content::Status(500)),
        ("/on", Content::Redirect("/".to_owned())),
        ("/away", Content::Redirect(elsewhere(&other, "/"))),
        ("/file", Content::Redirect("file:///etc/hostname".to_owned())),
        ("/script", Content::Html(format!("<script>location = '{}'</script>", elsewhere(&other, "/")))),
        (
            "/dialog",
            Content::Html(format!("<body style='background:{}'><script>alert(1)</script>", css(BLUE))),
        ),
    ]);
    let app = Setup::default().start();
    let mut client = app.client();
    let mut ask = |url: &str| client.get(&shot(url, "&width=320&height=200"));

    ask(&site.url("/on")).picture().assert_shows((160, 100), GREEN);
    ask(&site.url("/dialog")).picture().assert_shows((160, 100), BLUE);
    for (url, status, why) in [
        ("no url".to_owned(), 400, "is no URL"),
        (elsewhere(&site, "/"), 403, "the host localhost"),
        ("chrome://version".to_owned(), 403, "the scheme chrome"),
        ("file:///etc/hostname".to_owned(), 403, "/etc/hostname"),
        (site.url("/away"), 403, "the host localhost"),
        (site.url("/script"), 403, "the host localhost"),
        (site.url("/broken"), 502, "500"),
        (site.url("/nowhere"), 502, "404"),
        (site.url("/file"), 502, "ERR_UNSAFE_REDIRECT"),
        ("http://127.0.0.1:1/".to_owned(), 502, "net::ERR"),
    ] {
        let said = ask(&url).refusal(status);
        assert!(said.contains(why), "{url}: {said}");
    }
    assert!(!other.has_seen("/"), "a host that is not allowed was asked");
    drop(client);
    for (target, why) in [
        ("/", "say which page"),
        ("/?full_page=true", "say which page"),
        ("/?url=http://127.0.0.1/&width=wide", "width"),
        ("/?url=http://127.0.0.1/&width=0", "cannot be painted"),
        ("/?url=http://127.0.0.1/&quality=101", "quality"),
    ] {
        let said = app.get(target).refusal(400);
        assert!(said.contains(why), "{target}: {said}");
    }
}

#[test]
fn a_page_that_takes_too_long_is_closed() {
    if !has_chromium() {
        return;
    }
    let site = Site::serve([("/silence", Content::Silence)]);
    let app = Setup { timeout: Duration::from_secs(3), ..Setup::default() }.start();
    let asked = Instant::now();
    let said = app.get(&shot(&site.url("/silence"), "")).refusal(504);
    assert!(asked.elapsed() >= Duration::from_secs(3), "{:?}", asked.elapsed());
    assert!(said.contains("longer than 3s"), "{said}");
    site.expect_given_up(1);
}

#[test]
fn another_program_asks_over_the_bus_and_waits_for_room() {
    if !has_chromium() {
        return;
    }
    let site = Site::serve([
        ("/", Content::Redirect("/tall".to_owned())),
        ("/tall", tall(&[RED, GREEN])),
        ("/silence", Content::Silence),
    ]);
    let app = Setup { pages: 1, ..Setup::default() }.start();
    let bus = app.bus();
    let snapshots: PageSnapshotProxy = bus.proxy("pageSnapshot").wait_for(PATIENCE).unwrap();
    let whole = Shot { full_page: true, timeout: PATIENCE, ..Shot::default() };
    let take = |path: &str, shot| snapshots.take(&site.url(path), shot).timeout(PATIENCE);

    let snapshot = take("/", whole).wait().unwrap();
    assert_eq!((snapshot.url, snapshot.title.as_str()), (site.url("/tall"), "tall"));
    assert_eq!((snapshot.width, snapshot.height), (1280, 2000));
    let picture = Picture::decode(&snapshot.jpeg);
    assert_eq!((picture.width, picture.height), (1280, 2000));
    picture.assert_shows((20, 1020), GREEN);

    let silent = take("/silence", whole).started();
    site.expect("/silence");
    let impatient = Shot { timeout: Duration::from_millis(100), ..whole };
    let refused = take("/", impatient).wait();
    assert!(matches!(refused, Err(CallError::App(SnapshotError::Overloaded { .. }))), "{refused:?}");
    // Who gives up makes room.
    let waits = take("/tall", whole).started();
    drop(silent);
    site.expect_given_up(1);
    assert_eq!(waits.wait().unwrap().height, 2000);
}

#[test]
fn a_client_that_leaves_takes_its_page_along() {
    if !has_chromium() {
        return;
    }
    let site = Site::serve([("/", plain(GREEN)), ("/silence", Content::Silence)]);
    let app = Setup { pages: 1, ..Setup::default() }.start();
    let mut client = app.client();
    client.ask(&shot(&site.url("/silence"), ""));
    site.expect("/silence");
    let left = Instant::now();
    drop(client);
    site.expect_given_up(1);
    app.get(&shot(&site.url("/"), "")).picture();
    assert!(left.elapsed() < Duration::from_secs(50), "the page was closed by its time-out");
}

#[test]
fn twenty_at_once_get_each_their_own() {
    if !has_chromium() {
        return;
    }
    const COLOURS: [(&str, u8); 20] = [
        ("/0", 0),
        ("/1", 1),
        ("/2", 2),
        ("/3", 3),
        ("/4", 4),
        ("/5", 5),
        ("/6", 6),
        ("/7", 7),
        ("/8", 8),
        ("/9", 9),
        ("/10", 10),
        ("/11", 11),
        ("/12", 12),
        ("/13", 13),
        ("/14", 14),
        ("/15", 15),
        ("/16", 16),
        ("/17", 17),
        ("/18", 18),
        ("/19", 19),
    ];
    let colour = |number: u8| [40 * (number % 5) + 20, 60 * (number / 5) + 20, 128];
    let site = Site::serve(COLOURS.map(|(path, number)| (path, plain(colour(number)))));
    let app = Setup { workers: 2, ..Setup::default() }.start();
    thread::scope(|scope| {
        for (path, number) in COLOURS {
            let (app, site) = (&app, &site);
            scope.spawn(move || {
                let picture = app.get(&shot(&site.url(path), "&width=400&height=300")).picture();
                assert_eq!((picture.width, picture.height), (400, 300));
                picture.assert_shows((200, 150), colour(number));
            });
        }
    });
}

#[test]
fn a_browser_that_is_killed_is_started_again() {
    if !has_chromium() {
        return;
    }
    let site = Site::serve([("/", plain(GREEN)), ("/silence", Content::Silence)]);
    let app = Setup::default().start();
    let mut client = app.client();
    client.get(&shot(&site.url("/"), "")).picture();

    // Between two requests.
    let first = app.browser();
    kill_process(first, Signal::KILL).expect("the browser runs");
    client.get(&shot(&site.url("/"), "")).picture();
    let second = app.browser();
    assert_ne!(first, second);

    // During one.
    client.ask(&shot(&site.url("/silence"), ""));
    site.expect("/silence");
    kill_process(second, Signal::KILL).expect("the browser runs");
    let said = client.answer().refusal(503);
    assert!(said.contains("died"), "{said}");
    client.get(&shot(&site.url("/"), "")).picture();
    wait_for("the dead browsers' profiles to go", || (app.profiles().len() == 1).then_some(()));
}

#[test]
fn what_a_page_loads_is_held_to_the_allowed_hosts() {
    if !has_chromium() {
        return;
    }
    let other = Site::serve([("/near", plain(RED)), ("/far", plain(RED)), ("/asked", plain(RED))]);
    let elsewhere = other.url("").replace("127.0.0.1", "localhost");
    let page = format!(
        "<!doctype html><body style='background:{}'><img src='{}'><img src='{elsewhere}/far'><script>
        fetch('{elsewhere}/asked'); new WebSocket('{}/asked');
        new Worker(URL.createObjectURL(new Blob(['fetch(\"{elsewhere}/asked\")'])));
        </script>",
        css(GREEN),
        other.url("/near"),
        elsewhere.replace("http", "ws"),
    );
    let site = Site::serve([("/", Content::Html(page))]);
    let app = Setup::default().start();
    app.get(&shot(&site.url("/"), "")).picture().assert_shows((640, 700), GREEN);
    assert!(other.has_seen("/near"));
    assert!(!other.has_seen("/far") && !other.has_seen("/asked"), "a host that is not allowed was asked");
}

#[test]
fn a_page_that_crashes_is_an_error_of_its_own() {
    if !has_chromium() {
        return;
    }
    let waits = Content::Html("<!doctype html><img src='/silence'>".to_owned());
    let site = Site::serve([("/", plain(GREEN)), ("/waits", waits), ("/silence", Content::Silence)]);
    let app = Setup::default().start();
    let (mut client, browser) = (app.client(), app.browser());
    client.ask(&shot(&site.url("/waits"), ""));
    site.expect("/silence");
    let renderers = app.renderers();
    assert!(!renderers.is_empty());
    for renderer in renderers {
        // It may have ended by itself meanwhile.
        let _killed = kill_process(renderer, Signal::KILL);
    }
    let said = client.answer().refusal(502);
    assert!(said.contains("crashed"), "{said}");
    client.get(&shot(&site.url("/"), "")).picture();
    assert_eq!(app.browser(), browser);
}

#[test]
fn a_browser_that_hangs_is_killed_and_started_again() {
    if !has_chromium() {
        return;
    }
    let site = Site::serve([("/", plain(GREEN))]);
    let app = Setup::default().start();
    let hung = app.browser();
    kill_process(hung, Signal::STOP).expect("the browser runs");
    app.get(&shot(&site.url("/"), "")).picture();
    assert_ne!(app.browser(), hung);
}

#[test]
fn without_a_browser_it_does_not_start_and_says_what_to_do() {
    let setup = Setup { chromium: "/usr/bin/no-chromium".into(), ..Setup::default() };
    let mut app = setup.begin(&new_place());
    assert!(!app.wait().success());
    wait_for("the reason", || app.has_said("apt-get install chromium").then_some(()));
}

#[test]
fn files_are_shown_below_the_root_and_nothing_beside_it() {
    if !has_chromium() {
        return;
    }
    let place = new_place();
    let root = place.join("root");
    fs::create_dir(&root).unwrap();
    let all = |colour| format!("<body style='background:{}'>", css(colour));
    fs::write(place.join("secret.html"), all(RED)).unwrap();
    fs::write(root.join("frame.html"), all(BLUE)).unwrap();
    symlink(place.join("secret.html"), root.join("link.html")).unwrap();
    let frame = |source: &str| {
        format!("<iframe src='{source}' style='display:block;border:0;width:300px;height:100px'></iframe>")
    };
    let secret = place.join("secret.html");
    let page =
        [frame("frame.html"), frame("link.html"), frame("../secret.html"), frame(&secret.to_string_lossy())];
    fs::write(root.join("page.html"), format!("<!doctype html><body style='margin:0'>{}", page.concat()))
        .unwrap();
    let app = Setup { files: Some(root.clone()), ..Setup::default() }.start();

    let picture = app.get(&shot(&format!("file://{}/page.html", root.display()), "")).picture();
    picture.assert_shows((150, 50), BLUE);
    for top in [100, 200, 300] {
        let is_red = (0..100).any(|y| picture.shows((150, top + y), RED));
        assert!(!is_red, "a file outside of the root is shown at {top}");
    }
    for path in ["root/link.html", "secret.html", "root/../secret.html", "root/%2e%2e/secret.html"] {
        app.get(&shot(&format!("file://{}/{path}", place.display()), "")).refusal(403);
    }
    app.get(&shot(&format!("file://{}/none.html", root.display()), "")).refusal(502);
    fs::remove_dir_all(&place).unwrap();
}

#[test]
fn nothing_is_left_of_it_however_it_ends() {
    if !has_chromium() {
        return;
    }
    let site = Site::serve([("/", plain(GREEN))]);
    let setup = Setup::default();
    let mut app = setup.start();
    app.get(&shot(&site.url("/"), "")).picture();
    assert_eq!(app.profiles().len(), 1);
    app.signal(Signal::KILL);
    app.wait();
    app.expect_no_chromium();
    app.expect_no_locks();

    // The next one removes what the killed one could not.
    let mut next = setup.start_in(&app.place);
    next.get(&shot(&site.url("/"), "")).picture();
    assert_eq!(next.profiles().len(), 1);
    next.signal(Signal::TERM);
    assert!(next.wait().success());
    assert!(next.chromium().is_empty());
    assert_eq!(next.profiles(), Vec::<std::path::PathBuf>::new());
}
