//! A table of text, written three ways: HTML for pages, aligned plain text for terminals, and
//! Markdown for summaries that are committed or pasted into an issue.
//!
//! Cells are text that somebody has already formatted; an undefined figure is a dash, which
//! [`cell`] writes. Rows may be shorter than the header (missing cells are empty) or longer
//! (the header is then padded): a table never fails.

use super::svg::escape;

/// How the cells of a column stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Align {
    /// At the left: names and prose.
    #[default]
    Left,
    /// At the right: numbers with the same number of decimals.
    Right,
    /// In the centre: short marks.
    Centre,
}

/// A header, rows, and an alignment per column.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Names of the columns.
    pub header: Vec<String>,
    /// Rows of cells.
    pub rows: Vec<Vec<String>>,
    /// Alignment of each column; left where it is missing.
    pub align: Vec<Align>,
}

/// A number as text, or a dash where it is undefined or not finite.
pub fn cell(value: Option<f64>, write: impl Fn(f64) -> String) -> String {
    match value {
        Some(value) if value.is_finite() => write(value),
        _ => "–".into(),
    }
}

impl Table {
    /// A table without rows.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        Table {
            header: columns.iter().map(|c| c.0.to_string()).collect(),
            rows: Vec::new(),
            align: columns.iter().map(|c| c.1).collect(),
        }
    }

    /// Adds a row.
    pub fn push(&mut self, row: impl IntoIterator<Item = String>) {
        self.rows.push(row.into_iter().collect());
    }

    fn columns(&self) -> usize {
        let longest = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        longest.max(self.header.len())
    }

    fn align_of(&self, column: usize) -> Align {
        self.align.get(column).copied().unwrap_or_default()
    }

    /// A `<table>` in a container of its own that scrolls sideways when the page is narrow. The
    /// first cell of a row is its header. `name` is what the container is called for those who
    /// cannot see it.
    pub fn to_html(&self, name: &str) -> String {
        let class = |column| match self.align_of(column) {
            Align::Left => "",
            Align::Right => " class=\"r\"",
            Align::Centre => " class=\"c\"",
        };
        // A region that scrolls must be reachable by keyboard, and then needs a name.
        let mut out = format!(
            "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{}\"><table>",
            escape(name)
        );
        out.push_str("<thead><tr>");
        for column in 0..self.columns() {
            let text = self.header.get(column).map_or("", String::as_str);
            let attributes = class(column);
            out.push_str(&format!("<th scope=\"col\"{attributes}>{}</th>", escape(text)));
        }
        out.push_str("</tr></thead><tbody>");
        for row in &self.rows {
            out.push_str("<tr>");
            for column in 0..self.columns() {
                let text = escape(row.get(column).map_or("", String::as_str));
                let attributes = class(column);
                out.push_str(&if column == 0 {
                    format!("<th scope=\"row\"{attributes}>{text}</th>")
                } else {
                    format!("<td{attributes}>{text}</td>")
                });
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table></div>");
        out
    }

    /// Aligned text with a rule under the header, two spaces between columns, no trailing spaces,
    /// and a newline at the end of every line.
    pub fn to_text(&self) -> String {
        let clean = |text: &str| text.replace(['\n', '\r', '\t'], " ");
        let widths = self.widths(&clean);
        let line = |row: &[String]| {
            let mut out = String::new();
            for (column, width) in widths.iter().enumerate() {
                if column > 0 {
                    out.push_str("  ");
                }
                let text = clean(row.get(column).map_or("", String::as_str));
                out.push_str(&pad(&text, *width, self.align_of(column)));
            }
            out.truncate(out.trim_end().len());
            out.push('\n');
            out
        };
        let mut out = line(&self.header);
        let rule: Vec<String> = widths.iter().map(|w| "─".repeat(*w)).collect();
        out.push_str(&line(&rule));
        for row in &self.rows {
            out.push_str(&line(row));
        }
        out
    }

    /// A pipe table as GitHub reads it, its cells padded so that the source is readable too.
    pub fn to_markdown(&self) -> String {
        let clean = |text: &str| {
            let mut out = String::new();
            for c in text.chars() {
                match c {
                    '\n' | '\r' => out.push(' '),
                    '|' | '\\' | '*' | '_' | '`' | '<' | '[' | ']' => {
                        out.push('\\');
                        out.push(c);
                    }
                    _ => out.push(c),
                }
            }
            out
        };
        let mut widths = self.widths(&clean);
        // The rule under the header needs three characters with its colons.
        widths.iter_mut().for_each(|w| *w = (*w).max(3));
        let line = |row: &[String]| {
            let mut out = String::from("|");
            for (column, width) in widths.iter().enumerate() {
                let text = clean(row.get(column).map_or("", String::as_str));
                let text = pad(&text, *width, self.align_of(column));
                out.push_str(&format!(" {text} |"));
            }
            out.push('\n');
            out
        };
        let mut out = line(&self.header);
        out.push('|');
        for (column, width) in widths.iter().enumerate() {
            let dashes = "-".repeat(width.saturating_sub(2));
            out.push_str(&match self.align_of(column) {
                Align::Left => format!(" {dashes}-- |"),
                Align::Right => format!(" {dashes}-: |"),
                Align::Centre => format!(" :{dashes}: |"),
            });
        }
        out.push('\n');
        for row in &self.rows {
            out.push_str(&line(row));
        }
        out
    }

    /// The widest cell of each column, in terminal columns.
    fn widths(&self, clean: &impl Fn(&str) -> String) -> Vec<usize> {
        (0..self.columns())
            .map(|column| {
                std::iter::once(&self.header)
                    .chain(&self.rows)
                    .filter_map(|row| row.get(column))
                    .map(|text| terminal_width(&clean(text)))
                    .max()
                    .unwrap_or(0)
            })
            .collect()
    }
}

/// Columns that text takes in a terminal: two for East Asian wide characters, none for combining
/// marks. The ranges are the large blocks of UAX #11, enough for names of models and runs.
pub fn terminal_width(text: &str) -> usize {
    text.chars()
        .map(|c| match c {
            '\u{300}'..='\u{36f}' | '\u{200b}'..='\u{200f}' | '\u{fe00}'..='\u{fe0f}' => 0,
            '\u{1100}'..='\u{115f}'
            | '\u{2e80}'..='\u{a4cf}'
            | '\u{ac00}'..='\u{d7a3}'
            | '\u{f900}'..='\u{faff}'
            | '\u{fe30}'..='\u{fe6f}'
            | '\u{ff00}'..='\u{ff60}'
            | '\u{1f300}'..='\u{1faff}'
            | '\u{20000}'..='\u{3fffd}' => 2,
            _ => 1,
        })
        .sum()
}

fn pad(text: &str, width: usize, align: Align) -> String {
    let room = width.saturating_sub(terminal_width(text));
    let left = match align {
        Align::Left => 0,
        Align::Right => room,
        Align::Centre => room / 2,
    };
    format!("{}{text}{}", " ".repeat(left), " ".repeat(room - left))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&[("run", Align::Left), ("loss", Align::Right)]);
        table.push(["pre".into(), "12.5".into()]);
        table.push(["日本".into(), cell(None, |v| v.to_string())]);
        table
    }

    #[test]
    fn plain_text_is_aligned() {
        assert_eq!(sample().to_text(), "run   loss\n────  ────\npre   12.5\n日本     –\n");
    }

    #[test]
    fn markdown_is_aligned_and_escaped() {
        let mut table = sample();
        table.push(["a|b\nc".into()]);
        assert_eq!(
            table.to_markdown(),
            "| run    | loss |\n| ------ | ---: |\n| pre    | 12.5 |\n| 日本   |    – |\n\
             | a\\|b c |      |\n"
        );
    }

    #[test]
    fn html_is_escaped_and_rows_may_be_ragged() {
        let mut table = sample();
        table.push(["<b>".into(), "1".into(), "more & more".into()]);
        let html = table.to_html("\"Results\"");
        assert!(html.contains("aria-label=\"&quot;Results&quot;\""));
        assert!(html.contains("<th scope=\"row\">&lt;b&gt;</th><td class=\"r\">1</td>"));
        assert!(html.contains("<td>more &amp; more</td>"));
        let cells = html.matches("<td").count() + html.matches("<th ").count();
        assert_eq!(cells, 12);
    }

    #[test]
    fn what_is_undefined_is_a_dash() {
        for value in [None, Some(f64::NAN), Some(f64::INFINITY)] {
            assert_eq!(cell(value, |v| v.to_string()), "–");
        }
        assert_eq!(cell(Some(1.5), |v| v.to_string()), "1.5");
    }
}
