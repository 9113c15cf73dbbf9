//! What is shown of a running application: who is who, pictures by HTTP, the ways that bytes go, and times.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use objbus::{Blob, Bus};
use objbus_app::{AppControlProxy, AppState, AppStatus, ProcessStatus};
use page_snapshot::{PageSnapshotProxy, Snapshot};

use crate::http;
use crate::other::Other;
use crate::page::{PAGES, Page};
use crate::table::{self, bytes, millis};

/// How long the application may take to start: Chromium's first start on a cold disk takes many seconds.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
const STATUS_PAUSE: Duration = Duration::from_millis(20);
/// For a call that takes a picture: more than the application gives the picture.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Pictures of each page that are taken to measure.
const ROUNDS: usize = 5;
/// Long enough for processors to fall asleep, as they do while a browser works.
const PAUSE: Duration = Duration::from_millis(20);

/// Of `docs/layout.md`: what a request and an answer take on the ring beside their bodies, and a blob that is lent with one.
const CELL_HEADER: usize = 32;
const SLOT_HEADER: usize = 16;
const LOAN: usize = 24;

/// All that is needed to show it.
pub struct Scene {
    pub bus: Bus,
    /// Where the bus is.
    pub directory: PathBuf,
    pub guard: u32,
    pub web: SocketAddr,
    pub site: SocketAddr,
    pub to: PathBuf,
}

/// Shows everything; blocks.
pub fn run(scene: &Scene) -> Result<(), String> {
    let control: AppControlProxy =
        scene.bus.proxy("app.page-snapshot").wait_for(START_TIMEOUT).map_err(|error| error.to_string())?;
    let status = started(&control)?;
    let mut other = Other::start(&scene.bus, &scene.directory)?;
    processes(scene, &status, other.pid());
    let crossed = by_http(scene)?;
    let snapshots: PageSnapshotProxy =
        scene.bus.proxy("pageSnapshot").wait_for(STATUS_TIMEOUT).map_err(|error| error.to_string())?;
    let measured: Vec<Measured> = PAGES
        .iter()
        .map(|page| measure(page, scene.site, &snapshots, &mut other))
        .collect::<Result<_, _>>()?;
    ways(scene, &crossed, &measured);
    times(&measured);
    Ok(())
}

/// Waits until the application has started.
fn started(control: &AppControlProxy) -> Result<AppStatus, String> {
    let deadline = Instant::now() + START_TIMEOUT;
    while Instant::now() < deadline {
        let status = control.status().timeout(STATUS_TIMEOUT).wait().map_err(|error| error.to_string())?;
        if status.state == AppState::Running {
            return Ok(status);
        }
        std::thread::sleep(STATUS_PAUSE);
    }
    Err(format!("the application has not started within {START_TIMEOUT:?}"))
}

fn processes(scene: &Scene, status: &AppStatus, other: u32) {
    println!("\nprocesses");
    let row = |name: &str, pid: u32, what: String| println!("  {name:<12} {pid:>8}   {what}");
    row("guard", scene.guard, "was started here; ends with all that it has started".to_owned());
    row(
        "supervisor",
        status.pid,
        format!("starts and restarts the others; on the bus as app.{}", status.name),
    );
    for process in &status.processes {
        let pid = process.pid.unwrap_or_default();
        row(&format!("{} {}", process.name, process.index), pid, part(scene, process, pid));
    }
    row("demo", std::process::id(), format!("serves the pages at http://{}, asks for pictures", scene.site));
    row("its second", other, "gives the same pictures over the bus and over a socket, to compare".to_owned());
}

/// What a process does.
fn part(scene: &Scene, process: &ProcessStatus, pid: u32) -> String {
    let services: Vec<&str> = process.services.iter().map(|service| service.name.as_str()).collect();
    let what = match services[..] {
        ["pageSnapshot"] => {
            let browser = children(pid).first().map_or(String::new(), |pid| format!(" ({pid})"));
            format!("takes the pictures with Chromium{browser} and lends them")
        }
        _ => format!("serves them at http://{}", scene.web),
    };
    format!("{}: {what}", services.join(", "))
}

/// The processes that one has started.
fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    texts.flat_map(|text| text.split_whitespace().flat_map(str::parse).collect::<Vec<u32>>()).collect()
}

/// Takes a picture of each page as any client would, and stores it; gives how many bytes crossed.
fn by_http(scene: &Scene) -> Result<Vec<usize>, String> {
    println!("\npictures, by HTTP from the workers, in {}", scene.to.display());
    let failed = |error: std::io::Error| format!("cannot store pictures in {}: {error}", scene.to.display());
    fs::create_dir_all(&scene.to).map_err(failed)?;
    let one = |page: &Page| {
        let began = Instant::now();
        let answer = http::get(scene.web, &page.target(scene.site))?;
        let name = format!("{}.jpg", page.name);
        fs::write(scene.to.join(&name), &answer.body).map_err(failed)?;
        println!("  {name:<12} {:>9} bytes in {}", bytes(answer.body.len()), millis(began.elapsed()));
        Ok(answer.crossed)
    };
    PAGES.iter().map(one).collect()
}

/// What was measured with pictures of one page; times are medians.
struct Measured {
    page: &'static Page,
    width: u32,
    height: u32,
    jpeg: usize,
    on_the_ring: usize,
    over_the_socket: usize,
    browser: Duration,
    decoding: Duration,
    /// What is left of the call.
    rest: Duration,
    /// The same picture from a process that has no browser.
    by_bus: Duration,
    by_socket: Duration,
}

#[derive(Default)]
struct Times {
    browser: Vec<Duration>,
    decoding: Vec<Duration>,
    rest: Vec<Duration>,
    by_bus: Vec<Duration>,
    by_socket: Vec<Duration>,
}

/// Takes pictures of a page; all that is measured ends when every byte was read.
fn measure(
    page: &'static Page,
    site: SocketAddr,
    snapshots: &PageSnapshotProxy,
    other: &mut Other,
) -> Result<Measured, String> {
    let url = page.url(site);
    let mut times = Times::default();
    let mut last = None;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let taken = snapshots.take(&url, page.shot()).timeout(CALL_TIMEOUT).wait();
        let snapshot = taken.map_err(|error| format!("{url}: {error}"))?;
        let sum = read(&snapshot.jpeg);
        let total = began.elapsed();
        let parts = snapshot.times;
        let browser = parts.waiting + parts.loading + parts.painting;
        times.browser.push(browser);
        times.decoding.push(parts.decoding);
        times.rest.push(total.saturating_sub(browser + parts.decoding));
        let crossed = compare(&url, &snapshot, sum, other, &mut times)?;
        last = Some((snapshot, crossed));
    }
    let (snapshot, over_the_socket) = last.ok_or("nothing was measured")?;
    Ok(Measured {
        page,
        width: snapshot.width,
        height: snapshot.height,
        jpeg: snapshot.jpeg.len(),
        on_the_ring: on_the_ring(&url, page, snapshot)?,
        over_the_socket,
        browser: median(times.browser),
        decoding: median(times.decoding),
        rest: median(times.rest),
        by_bus: median(times.by_bus),
        by_socket: median(times.by_socket),
    })
}

/// Has the same picture of the demo's second process, both ways; gives how many bytes crossed on the socket.
fn compare(
    url: &str,
    snapshot: &Snapshot,
    sum: u64,
    other: &mut Other,
    times: &mut Times,
) -> Result<usize, String> {
    let failed = |error: std::io::Error| format!("the demo's second process: {error}");
    other.keep(&snapshot.jpeg).map_err(failed)?;
    // The answer says that the picture is there.
    other.take_by_socket(url, Duration::ZERO).map_err(failed)?;

    let began = Instant::now();
    let lent = other.take_by_bus(url, PAUSE)?;
    let by_bus = read(&lent.jpeg);
    times.by_bus.push(began.elapsed().saturating_sub(lent.pause));

    let began = Instant::now();
    let sent = other.take_by_socket(url, PAUSE).map_err(failed)?;
    let by_socket = read(&other.jpeg);
    times.by_socket.push(began.elapsed().saturating_sub(sent.pause));
    if [by_bus, by_socket] != [sum; 2] {
        return Err("the same picture has come as another".to_owned());
    }
    Ok(sent.crossed)
}

/// A sum of all bytes.
fn read(jpeg: &[u8]) -> u64 {
    jpeg.iter().map(|&byte| u64::from(byte)).sum()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// What of a call crosses on the ring: request and answer, with a blob's place in the answer and its loan.
fn on_the_ring(url: &str, page: &Page, mut snapshot: Snapshot) -> Result<usize, String> {
    // In a body a blob is a number of one byte, as an empty one is here.
    snapshot.jpeg = Blob::default();
    let request = postcard::experimental::serialized_size(&(url, page.shot()));
    let answer = postcard::experimental::serialized_size(&snapshot);
    let sum = |request: usize, answer: usize| CELL_HEADER + request + SLOT_HEADER + answer + LOAN;
    let size = request.and_then(|request| Ok(sum(request, answer?)));
    size.map_err(|error| format!("a call cannot be encoded: {error}"))
}

fn ways(scene: &Scene, crossed: &[usize], measured: &[Measured]) {
    println!("\nbytes for each picture, and which way they went");
    let row = |(measured, crossed): (&Measured, &usize)| {
        [
            measured.page.name.to_owned(),
            format!("{}x{}", measured.width, measured.height),
            bytes(measured.jpeg),
            bytes(measured.on_the_ring),
            bytes(*crossed),
            bytes(measured.over_the_socket),
        ]
    };
    let rows: Vec<_> = measured.iter().zip(crossed).map(row).collect();
    let titles = ["page", "pixels", "lent in shared memory", "on the ring", "by HTTP", "base64 in JSON"];
    table::print(titles, &rows);
    let mapped = scene.bus.memory().received as usize;
    println!(
        "  (lent: read where pageSnapshot wrote them, {} bytes of its memory are mapped here)",
        bytes(mapped)
    );
}

fn times(measured: &[Measured]) {
    println!("\ntime of a call for a picture, until every byte of it was read; medians of {ROUNDS}");
    let row = |measured: &Measured| {
        let times = measured.by_socket.as_secs_f64() / measured.by_bus.as_secs_f64();
        [
            measured.page.name.to_owned(),
            millis(measured.browser),
            millis(measured.decoding),
            millis(measured.rest),
            millis(measured.by_bus),
            millis(measured.by_socket),
            format!("{times:.1}x"),
        ]
    };
    let titles =
        ["page", "Chromium", "its base64", "the rest", "without browser", "base64 in JSON", "that is"];
    table::print(titles, &measured.iter().map(row).collect::<Vec<_>>());
    println!(
        "  the rest: the bus's share of the call, and waiting for a processor, since Chromium goes on for a while"
    );
    println!(
        "  without browser: the whole of a call for the same picture, of a process that sleeps {PAUSE:?} instead (not counted)"
    );
    println!("  base64 in JSON: the same between the same two processes, over a Unix socket");
}
