//! What a bench tells: one table of plain aligned text, and a file of JSON lines with the same rows.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::paired::{Comparison, Quartiles};
use super::placement::{Placement, machine};
use super::plot;

/// The word behind a bar.
pub fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "MISSED" }
}

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

    /// Adds a row: `name` measured at `placement` against `floor`, and whether its ratio keeps within `bar`.
    pub fn add(&mut self, name: &str, at: (Placement, &str), bar: Option<f64>, found: &Comparison) {
        let (placement, floor) = at;
        let Comparison { rounds, ours, floor: base, ratio } = found;
        let held =
            bar.map_or(String::new(), |bar| format!("  bar {bar:.2} {}", verdict(ratio.median <= bar)));
        println!(
            "{name:34} {placement:9} {floor:22} {:>9.0} {:>9.0}  {:.2} ({:.2}-{:.2}){held}",
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
            "bar": bar,
            "machine": machine(),
        });
        writeln!(self.file, "{row}").expect("the target directory is writable");
    }

    /// Draws `bars` beside the file of rows, and says where.
    pub fn plot(&self, title: &str, bars: &[(String, Quartiles)]) {
        let path = self.path.with_extension("svg");
        plot::ratios(&path, title, bars).expect("the target directory is writable");
        println!("plot: {}", path.display());
    }

    /// Says where the rows are.
    pub fn finish(self) {
        println!("\nrows: {}", self.path.display());
    }
}
