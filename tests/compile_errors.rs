//! What the macros refuse, and in which words: each file in `tests/ui/fail` fails with the sentences beside it, each in
//! `tests/ui/pass` compiles. `TRYBUILD=overwrite` rewrites the sentences; they are those of Rust 1.95.

#[test]
fn the_macros_refuse_at_the_spot() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/pass/*.rs");
    cases.compile_fail("tests/ui/fail/*.rs");
}
