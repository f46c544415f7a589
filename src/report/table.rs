//! A table of text: columns as wide as their widest cell.
//!
//! Owns alignment; leaves the cells to the caller.
//! Invariant: every row is padded by characters, not bytes, and no line ends in spaces.

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

const GAP: &str = "  ";
/// Characters of a cell of `table_of`.
const CELL_WIDTH: usize = 80;

/// Lays out rows, the first of them the header, with two spaces between columns.
pub fn layout(columns: &[Align], rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns.len()).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(columns).zip(&widths).map(|((cell, align), width)| match align {
            Align::Left => format!("{cell:<width$}"),
            Align::Right => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// A whole table of left-aligned columns as text, with a newline after each line; nothing where there are no rows.
pub fn table_of(head: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let clean = |row: Vec<String>| row.iter().map(|cell| super::text::fit(cell, CELL_WIDTH)).collect::<Vec<String>>();
    let mut all = vec![head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<String>>()];
    all.extend(rows.into_iter().map(clean));
    layout(&vec![Align::Left; head.len()], &all).iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_by_characters() {
        let rows = [vec!["a".into(), "n".into()], vec!["é".into(), "10".into()], vec!["xyz".into(), "2".into()]];
        assert_eq!(layout(&[Align::Left, Align::Right], &rows), ["a     n", "é    10", "xyz   2"]);
    }
}
