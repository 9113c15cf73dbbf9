//! Text in columns, and figures in it.

use std::time::Duration;

/// Prints rows under their titles; the first column to the left, the others to the right.
pub fn print<const N: usize>(titles: [&str; N], rows: &[[String; N]]) {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].len()).chain([titles[column].len()]).max().unwrap_or(0)
    };
    let line = |cells: [&str; N]| {
        let text = std::array::from_fn::<String, N, _>(|column| match column {
            0 => format!("  {:<1$}", cells[column], width(column)),
            _ => format!("   {:>1$}", cells[column], width(column)),
        });
        println!("{}", text.concat().trim_end());
    };
    line(titles);
    rows.iter().for_each(|row| line(row.each_ref().map(String::as_str)));
}

/// A number of bytes, in groups of three digits.
pub fn bytes(count: usize) -> String {
    let digits = count.to_string();
    let grouped = digits.bytes().enumerate().flat_map(|(index, digit)| {
        let is_border = index > 0 && (digits.len() - index).is_multiple_of(3);
        is_border.then_some(',').into_iter().chain([char::from(digit)])
    });
    grouped.collect()
}

/// A time in milliseconds, with as many digits as mean something.
pub fn millis(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1e3;
    match millis {
        0.0..1.0 => format!("{millis:.3} ms"),
        1.0..10.0 => format!("{millis:.2} ms"),
        10.0..100.0 => format!("{millis:.1} ms"),
        _ => format!("{millis:.0} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_readable() {
        let shown = [0, 12, 999, 1_000, 12_345, 1_234_567].map(bytes);
        assert_eq!(shown, ["0", "12", "999", "1,000", "12,345", "1,234,567"]);
        let shown = [300, 4_560, 78_900, 1_234_000].map(|micros| millis(Duration::from_micros(micros)));
        assert_eq!(shown, ["0.300 ms", "4.56 ms", "78.9 ms", "1234 ms"]);
    }
}
