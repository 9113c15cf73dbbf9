//! What a bench tells: one table of plain aligned text, and a file of JSON lines with the same rows.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::paired::Comparison;
use super::placement::{Placement, machine};

/// The rows of one bench, printed as they come.
pub struct Report {
    bench: &'static str,
    file: fs::File,
    path: PathBuf,
}

impl Report {
    /// Prints the head of the table and starts `target/bench/<bench>.json`.
    pub fn start(bench: &'static str) -> Report {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
        fs::create_dir_all(&directory).expect("the target directory is writable");
        let path = directory.join(bench).with_extension("json");
        let file = fs::File::create(&path).expect("the target directory is writable");
        println!("{}", machine());
        for placement in Placement::available() {
            let (caller, peer) = (placement.caller_cpu(), placement.peer_cpu());
            println!("{placement}: caller on CPU {caller}, peer on CPU {peer}");
        }
        println!("p50 in ns per call; ratio: median of the paired rounds' ratios (quartiles)\n");
        println!("{:34} {:9} {:22} {:>9} {:>9}  ratio", "what", "placement", "against", "its p50", "p50");
        Report { bench, file, path }
    }

    /// Adds a row: `name` measured at `placement` against `floor`.
    pub fn add(&mut self, name: &str, placement: Placement, floor: &str, found: &Comparison) {
        let Comparison { rounds, ours, floor: base, ratio } = found;
        println!(
            "{name:34} {placement:9} {floor:22} {:>9.0} {:>9.0}  {:.2} ({:.2}-{:.2})",
            base.p50, ours.p50, ratio.median, ratio.q1, ratio.q3
        );
        let spread =
            |s: &super::paired::Spread| json!({"p50": s.p50, "p90": s.p90, "p99": s.p99, "p99.9": s.p999});
        let row = json!({
            "bench": self.bench,
            "name": name,
            "placement": placement.to_string(),
            "unit": "ns",
            "rounds": rounds,
            "against": floor,
            "ours": spread(ours),
            "floor": spread(base),
            "ratio": {"median": ratio.median, "q1": ratio.q1, "q3": ratio.q3},
            "machine": machine(),
        });
        writeln!(self.file, "{row}").expect("the target directory is writable");
    }

    /// Says where the rows are.
    pub fn finish(self) {
        println!("\nrows: {}", self.path.display());
    }
}
