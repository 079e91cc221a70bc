//! One self-contained HTML page: nothing is fetched, no script runs, and it can be mailed.
//!
//! A [`Page`] is a title, a lead and sections of [`Block`]s. Figures and captioned tables are
//! numbered in the order they appear. The page follows the reader's light or dark setting, reads
//! from 360 pixels up, prints in black on white, and wide tables scroll by themselves. A chart
//! is drawn twice, once for wide and once for narrow screens, since the text of a scaled-down
//! chart could not be read; the style sheet shows one of the two.
//!
//! In running text, `code` between backticks is set as code, and web addresses become links.

use super::palette::chart_css;
use super::svg::escape;
use super::table::Table;

/// Width at which a figure is drawn for wide screens, in pixels.
pub const WIDE: f64 = 880.0;
/// Width at which it is drawn for narrow ones.
pub const NARROW: f64 = 380.0;
/// A table under a figure with more rows than this is folded away.
const LONG: usize = 6;

/// A page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// Its title and heading.
    pub title: String,
    /// Paragraphs under the heading, in larger type.
    pub lead: Vec<String>,
    /// What follows.
    pub sections: Vec<Section>,
}

/// A part of a page under a heading.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Section {
    /// The heading.
    pub title: String,
    /// The content.
    pub blocks: Vec<Block>,
}

/// A piece of content.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// A paragraph.
    Text(String),
    /// A bulleted list.
    List(Vec<String>),
    /// Terms and what they mean or hold.
    Terms(Vec<(String, String)>),
    /// A command or other literal text.
    Code(String),
    /// A table with its caption.
    Table(Table, String),
    /// A figure.
    Figure(Figure),
    /// Markup that is inserted as it is, such as a formula. It must be valid HTML, and whatever
    /// came from outside must have been escaped.
    Markup(String),
}

/// A chart with its caption and its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What is shown, in words.
    pub caption: String,
    /// SVG for wide screens.
    pub wide: String,
    /// SVG for narrow screens.
    pub narrow: String,
    /// The numbers behind it.
    pub table: Option<Table>,
}

impl Figure {
    /// A figure drawn by `draw`, which is given the width in pixels and returns an SVG element.
    pub fn new(caption: impl Into<String>, draw: impl Fn(f64) -> String) -> Self {
        Figure { caption: caption.into(), wide: draw(WIDE), narrow: draw(NARROW), table: None }
    }

    /// The same figure with the numbers behind it.
    pub fn with_table(mut self, table: Table) -> Self {
        self.table = Some(table);
        self
    }
}

impl Page {
    /// The page as an HTML5 document.
    pub fn render(&self) -> String {
        let title = escape(&self.title);
        let mut body = format!("<header><h1>{title}</h1>");
        for paragraph in &self.lead {
            body.push_str(&format!("<p class=\"lead\">{}</p>", inline(paragraph)));
        }
        body.push_str("</header>");
        let mut numbers = Numbers::default();
        for section in &self.sections {
            body.push_str(&format!("\n<section><h2>{}</h2>", escape(&section.title)));
            for block in &section.blocks {
                body.push('\n');
                body.push_str(&block.render(&mut numbers));
            }
            body.push_str("</section>");
        }
        format!(
            "<!DOCTYPE html>\n<html lang=\"en-GB\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
             <style>\n{PAGE_CSS}{}\n</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n\
             </html>\n",
            chart_css()
        )
    }
}

/// How many figures and tables there were so far.
#[derive(Default)]
struct Numbers {
    figures: usize,
    tables: usize,
}

impl Block {
    fn render(&self, numbers: &mut Numbers) -> String {
        match self {
            Block::Text(text) => format!("<p>{}</p>", inline(text)),
            Block::List(items) => {
                let items = items.iter().map(|i| format!("<li>{}</li>", inline(i)));
                format!("<ul>{}</ul>", items.collect::<String>())
            }
            Block::Terms(terms) => {
                let terms = terms
                    .iter()
                    .map(|(term, text)| format!("<dt>{}</dt><dd>{}</dd>", escape(term), inline(text)));
                format!("<dl>{}</dl>", terms.collect::<String>())
            }
            Block::Code(text) => format!(
                "<pre role=\"region\" tabindex=\"0\" aria-label=\"Command\"><code>{}</code></pre>",
                escape(text)
            ),
            Block::Table(table, caption) => {
                numbers.tables += 1;
                let name = format!("Table {}", numbers.tables);
                // Not a <caption>, which would scroll away with a wide table.
                format!("<p class=\"caption\"><b>{name}.</b> {}</p>{}", inline(caption), table.to_html(&name))
            }
            Block::Figure(figure) => {
                numbers.figures += 1;
                figure.render(numbers.figures)
            }
            Block::Markup(markup) => markup.clone(),
        }
    }
}

impl Figure {
    fn render(&self, number: usize) -> String {
        let table = match &self.table {
            None => String::new(),
            Some(table) => {
                let name = format!("Figure {number} as a table");
                let table_html = table.to_html(&name);
                if table.rows.len() > LONG {
                    format!("<details><summary>{name}</summary>{table_html}</details>")
                } else {
                    table_html
                }
            }
        };
        format!(
            "<figure><div class=\"wide\">{}</div><div class=\"narrow\">{}</div>\
             <figcaption><b>Figure {number}.</b> {}</figcaption>{table}</figure>",
            self.wide,
            self.narrow,
            inline(&self.caption)
        )
    }
}

/// Text with `code` and links, everything else escaped.
fn inline(text: &str) -> String {
    let mut out = String::new();
    for (i, part) in text.split('`').enumerate() {
        // The last part is code only if its backtick was closed, which an even count shows.
        let open = i % 2 == 1;
        if open && text.matches('`').count() > i {
            out.push_str(&format!("<code>{}</code>", escape(part)));
        } else {
            if open {
                out.push('`');
            }
            link(part, &mut out);
        }
    }
    out
}

/// Appends `text` escaped, with its web addresses as links.
fn link(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(start) = rest.find("https://") {
        let (before, from) = rest.split_at(start);
        out.push_str(&escape(before));
        let end = from.find(|c: char| c.is_whitespace() || "<>\"')".contains(c));
        let address = &from[..end.unwrap_or(from.len())];
        let address = address.trim_end_matches(['.', ',', ';', ':']);
        let safe = escape(address);
        let shown = safe.trim_start_matches("https://");
        out.push_str(&format!("<a href=\"{safe}\">{shown}</a>"));
        rest = &from[address.len()..];
    }
    out.push_str(&escape(rest));
}

const PAGE_CSS: &str = "\
:root{color-scheme:light dark;--ink:#1c2128;--muted:#59636e;--rule:#d5dae0;--soft:#f4f6f8;\
--ground:#ffffff;--link:#0059a8}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e6e9ed;--muted:#9aa5b1;\
--rule:#353d47;--soft:#1d232a;--ground:#14181d;--link:#7cc0f2}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.55 system-ui,-apple-system,\
\"Segoe UI\",Roboto,\"Helvetica Neue\",Arial,sans-serif;overflow-wrap:break-word}
main{max-width:57.5rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.75rem;line-height:1.2;letter-spacing:-.01em;margin:0 0 1rem;text-wrap:balance}
h2{font-size:1.2rem;line-height:1.3;margin:2.75rem 0 .75rem;padding-top:1.1rem;\
border-top:1px solid var(--rule)}
p,ul{margin:.75rem 0;max-width:46rem}
li{margin:.25rem 0}
.lead{font-size:1.1rem;max-width:50rem}
a{color:var(--link)}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,\"DejaVu Sans Mono\",monospace}
pre{background:var(--soft);border:1px solid var(--rule);border-radius:4px;\
padding:.7rem .9rem;overflow-x:auto;margin:.75rem 0}
pre code{font-size:.84rem}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.875rem;line-height:1.35;\
font-variant-numeric:tabular-nums;border-bottom:1.5px solid var(--ink)}
.caption{color:var(--muted);font-size:.9rem;line-height:1.45;max-width:50rem;\
margin:1.25rem 0 .6rem;break-after:avoid}
.caption+.scroll{margin-top:0}
.caption b{color:var(--ink)}
th,td{padding:.32rem .75rem;text-align:left;white-space:nowrap;vertical-align:bottom}
th:first-child{padding-left:.1rem}
td:last-child,th:last-child{padding-right:.1rem}
thead th{border-top:1.5px solid var(--ink);border-bottom:1px solid var(--muted);font-weight:600}
tbody th{font-weight:400}
tbody tr+tr>*{border-top:1px solid var(--rule)}
.r{text-align:right}
.c{text-align:center}
figure{margin:1.75rem 0 2.25rem}
figcaption{color:var(--muted);font-size:.9rem;line-height:1.45;max-width:50rem;\
margin-top:.6rem}
figcaption b{color:var(--ink)}
details{margin-top:.6rem;font-size:.9rem}
summary{cursor:pointer;color:var(--link)}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.3rem 1.25rem;margin:1rem 0;\
font-size:.93rem}
dt{color:var(--muted)}
dd{margin:0}
math{font-size:1.1em}
.formula{margin:1rem 0;overflow-x:auto;padding:.2rem 0}
:focus-visible{outline:2px solid var(--link);outline-offset:2px}
.narrow{display:none}
.wide{max-width:880px}
.narrow{max-width:560px}
@media (max-width:719px){main{padding:1.5rem .9rem 3rem}h1{font-size:1.45rem}\
.lead{font-size:1.03rem}.wide{display:none}.narrow{display:block}\
th,td{padding-left:.5rem;padding-right:.5rem}dl{grid-template-columns:minmax(0,1fr);gap:0}dd{margin:0 0 .6rem}}
@media print{:root{color-scheme:light}main{max-width:none;padding:0}body{font-size:10.5pt}\
a{color:inherit}figure,table,pre{break-inside:avoid}h2{break-after:avoid}\
.wide{display:block}.narrow{display:none}.scroll,pre{overflow:visible}\
pre{white-space:pre-wrap}th,td{white-space:normal}}
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::table::Align;

    fn page() -> String {
        let mut long = Table::new(&[("step", Align::Right)]);
        for i in 0..20 {
            long.push([i.to_string()]);
        }
        let figure =
            |table| Block::Figure(Figure::new("a < b", |w| format!("<svg>{w}</svg>")).with_table(table));
        Page {
            title: "A & B".into(),
            lead: vec!["see https://example.org/a?b=1&c=2.".into()],
            sections: vec![Section {
                title: "<S>".into(),
                blocks: vec![
                    figure(long),
                    figure(Table::new(&[("x", Align::Left)])),
                    Block::Table(Table::default(), "of nothing".into()),
                    Block::Terms(vec![("k".into(), "v `w<`".into())]),
                    Block::Code("a && b".into()),
                    Block::List(vec!["one".into()]),
                ],
            }],
        }
        .render()
    }

    #[test]
    fn a_page_is_whole_escaped_and_fetches_nothing() {
        let html = page();
        assert!(html.starts_with("<!DOCTYPE html>\n<html lang=\"en-GB\">"));
        assert!(html.contains("<title>A &amp; B</title>") && html.contains("<h2>&lt;S&gt;</h2>"));
        for forbidden in ["<script", "<link", "src=", "@import", "url("] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn every_tag_is_closed_in_order() {
        let html = page();
        let void = ["meta", "!DOCTYPE"];
        let mut open: Vec<&str> = Vec::new();
        for tag in html.split('<').skip(1) {
            let name = tag.split([' ', '>', '\n']).next().unwrap();
            if let Some(name) = name.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !void.contains(&name) {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn figures_are_numbered_and_long_tables_folded() {
        let html = page();
        assert!(html.contains("<b>Figure 1.</b> a &lt; b"));
        assert!(html.contains("<summary>Figure 1 as a table</summary>"));
        assert!(html.contains("<b>Figure 2.</b>") && !html.contains("<summary>Figure 2"));
        assert!(html.contains("<p class=\"caption\"><b>Table 1.</b> of nothing</p>"));
    }

    #[test]
    fn links_and_code_are_set_and_stray_backticks_kept() {
        assert_eq!(
            inline("a https://x.org/y?a=1&b=2, b"),
            "a <a href=\"https://x.org/y?a=1&amp;b=2\">x.org/y?a=1&amp;b=2</a>, b"
        );
        assert_eq!(inline("`a<b` c"), "<code>a&lt;b</code> c");
        assert_eq!(inline("a ` b"), "a ` b");
    }
}
