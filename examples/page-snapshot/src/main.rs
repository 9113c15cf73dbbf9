//! Pictures of web pages over HTTP: `page-snapshot`, then <http://127.0.0.1:5511/?url=https://example.org>.

use std::process::ExitCode;

fn main() -> ExitCode {
    page_snapshot::app().run()
}
