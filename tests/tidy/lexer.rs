//! Just enough of Rust's lexical rules to tell code from comments and literals, and to find where a function ends.

/// A function's place in a file.
pub struct Function {
    /// Its name.
    pub name: String,
    /// The line of its `fn`, from 1.
    pub first: usize,
    /// The line of its last brace.
    pub last: usize,
}

impl Function {
    /// Its length from `fn` to the last brace.
    pub fn lines(&self) -> usize {
        self.last - self.first + 1
    }
}

/// Every function with a body, nested ones included.
pub fn functions(text: &str) -> Vec<Function> {
    let code = code_only(text);
    let bytes = code.as_bytes();
    let line_of = |at: usize| bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let starts_a_word = at == 0 || !is_word(bytes[at - 1]);
        let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if starts_a_word && !name.is_empty() {
            let last = end_of_body(bytes, at);
            found.extend(last.map(|last| Function { name, first: line_of(at), last: line_of(last) }));
        }
    }
    found
}

/// The brace that closes the body of the item at `start`; none if a `;` ends it first.
fn end_of_body(code: &[u8], start: usize) -> Option<usize> {
    // A `;` inside the brackets of a signature, as in `[u8; 4]`, does not end it.
    let (mut braces, mut brackets) = (0_usize, 0_usize);
    for (at, byte) in code.iter().enumerate().skip(start) {
        match byte {
            b'[' | b'(' => brackets += 1,
            b']' | b')' => brackets = brackets.saturating_sub(1),
            b';' if braces == 0 && brackets == 0 => return None,
            b'{' => braces += 1,
            b'}' if braces <= 1 => return Some(at),
            b'}' => braces -= 1,
            _ => {}
        }
    }
    None
}

/// The words of a line: names and keywords.
pub fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The text with a blank for every byte of a comment or a literal; line ends stay, so line numbers do.
pub fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let length = not_code(bytes, at);
        match length {
            0 => code.push(if bytes[at].is_ascii() { bytes[at] } else { b'_' }),
            _ => code
                .extend(bytes[at..at + length].iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' })),
        }
        at += length.max(1);
    }
    String::from_utf8(code).expect("only ASCII was pushed")
}

/// The length of the comment or literal that begins at `at`; 0 if code does.
fn not_code(text: &[u8], at: usize) -> usize {
    let rest = &text[at..];
    let behind_word = at > 0 && is_word(text[at - 1]);
    match rest {
        [b'/', b'/', ..] => rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment(rest),
        [b'"', ..] => quoted(rest, b'"'),
        [b'\'', b'\\', ..] => quoted(rest, b'\''),
        [b'\'', ..] => plain_character(rest),
        [b'r', b'"' | b'#', ..] if !behind_word => raw_string(rest, 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !behind_word => raw_string(rest, 2),
        _ => 0,
    }
}

/// Block comments nest.
fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at + 1 < rest.len() {
        match &rest[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// A literal up to the next `quote` that no backslash escapes.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// `'x'`, one character of up to four bytes; a lifetime has no closing quote and is code.
fn plain_character(rest: &[u8]) -> usize {
    let width = match rest.get(1) {
        Some(0xF0..) => 4,
        Some(0xE0..) => 3,
        Some(0xC0..) => 2,
        _ => 1,
    };
    if rest.get(width + 1) == Some(&b'\'') { width + 2 } else { 0 }
}

/// `r"..."`, `r#"..."#` and so on, the marks beginning at `marks`; a raw name such as `r#fn` is code.
fn raw_string(rest: &[u8], marks: usize) -> usize {
    let count = rest[marks..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(marks + count) != Some(&b'"') {
        return 0;
    }
    let end = [&b"\""[..], &b"#".repeat(count)].concat();
    let body = marks + count + 1;
    let found = rest[body..].windows(end.len()).position(|window| window == end);
    found.map_or(rest.len(), |at| body + at + end.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blank_and_lines_stay() {
        let text = "let a = \"{\\\"\"; // }\nlet b = '{'; /* { /* */\n */ let c: &'a str = r#\"}\"\"#;";
        let code = code_only(text);
        assert_eq!(code.lines().count(), 3);
        assert!(!code.contains(['{', '}', '"']), "{code}");
        assert!(code.contains("let c: &'a str ="), "{code}");
    }

    #[test]
    fn a_function_ends_with_its_own_brace() {
        let found = functions("trait T { fn a(&self) -> [u8; 4]; }\nfn b() {\n    if true {\n    }\n}\n");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].first, found[0].last), ("b", 2, 5));
    }
}
