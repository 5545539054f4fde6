//! Formats numbers and tables as text.

use indicatif::{HumanBytes, HumanCount};

/// Formats a byte count in the largest binary unit in which it is at least 1: `1.50 MiB`.
pub fn bytes(count: u64) -> String {
    HumanBytes(count).to_string()
}

/// Formats a count with its noun, in the plural unless the count is 1.
pub fn count(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Formats a count with commas between thousands: `1,048,576`.
pub fn thousands(count: u64) -> String {
    HumanCount(count).to_string()
}

/// Formats microseconds as milliseconds with two decimals, truncated rather than rounded.
pub fn milliseconds(us: u64) -> String {
    format!("{}.{:02} ms", us / 1000, us % 1000 / 10)
}

/// Lays out rows of cells as a table: the first column is left-aligned, the others right-aligned.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width - cell.chars().count());
            match column {
                0 => text.extend([cell.as_str(), &padding]),
                _ => text.extend(["  ", &padding, cell]),
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_printed_with_a_readable_unit() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (1024 * 1024 - 1, "1024.00 KiB"),
            (1024 * 1024, "1.00 MiB"),
            (5 << 40, "5.00 TiB"),
            (u64::MAX, "16.00 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn figures_are_readable() {
        for (count, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_048_448, "1,048,448"),
        ] {
            assert_eq!(thousands(count), text);
        }
        for (us, text) in [(0, "0.00 ms"), (99, "0.09 ms"), (12_345, "12.34 ms")] {
            assert_eq!(milliseconds(us), text);
        }
    }

    #[test]
    fn a_table_is_aligned() {
        let cell = str::to_owned;
        let rows = [vec![cell("name"), cell("n")], vec![cell("ä"), cell("100")]];
        assert_eq!(table(&rows), "name    n\nä     100\n");
    }
}
