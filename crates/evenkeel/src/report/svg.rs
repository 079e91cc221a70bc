//! Writing SVG by hand: escaping, numbers, the width of text, and a few elements.
//!
//! A chart needs to know how wide its text is before it is drawn, and no font is at hand.
//! [`text_width`] therefore uses a rough table of advance widths that follows the widest of the
//! usual sans-serif fonts: real text comes out a little narrower, so what fits by this measure
//! fits on the screen. Coordinates are in CSS pixels of the view box and are written to a tenth.
//!
//! Nothing in this file can write a non-finite number: [`px`] is the only way for a number to
//! reach the output.

use std::fmt::Write;

use super::palette;

/// Where an SVG is going to live, which decides whether it carries its own style sheet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A file of its own: name space, style sheet and background included.
    File,
    /// Inside a page that has [`palette::chart_css`] in its head.
    Page,
}

/// Escapes `text` for element content and for attribute values in XML and HTML. Characters that
/// XML 1.0 forbids (most controls) become U+FFFD, because there is no way to write them.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => out.push(c),
            '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => {
                out.push('\u{fffd}');
            }
            _ => out.push(c),
        }
    }
    out
}

/// A coordinate, to a tenth of a pixel and without trailing zeros. What is not finite is written
/// as 0; callers leave such points out, this only keeps a mistake from breaking the file.
pub fn px(value: f64) -> String {
    if !value.is_finite() {
        return "0".into();
    }
    let tenths = (value * 10.0).round();
    if tenths == 0.0 {
        return "0".into();
    }
    format!("{}", tenths / 10.0)
}

/// An upper estimate of the width of `text` at `size` pixels in a proportional sans-serif font.
pub fn text_width(text: &str, size: f64) -> f64 {
    text.chars().map(advance).sum::<f64>() * size
}

/// Advance width of a character as a share of the font size.
fn advance(c: char) -> f64 {
    match c {
        'i' | 'j' | 'l' | 'I' | 'J' | '\'' | '|' => 0.30,
        ' ' | '\u{a0}' | '.' | ',' | ':' | ';' | '/' | '\\' => 0.34,
        'f' | 't' | 'r' | '-' | '(' | ')' | '[' | ']' | '!' => 0.42,
        'm' | 'w' | 'M' | 'W' | '%' | '@' => 1.0,
        '+' | '=' | '<' | '>' | '~' => 0.84,
        'A'..='Z' => 0.79,
        '\0'..='\u{7f}' => 0.64,
        // Han, kana, Hangul, emoji and the like take a full square.
        '\u{1100}'.. if !('\u{2000}'..='\u{2bff}').contains(&c) => 1.05,
        _ => 0.85,
    }
}

/// `text`, cut with an ellipsis where it would be wider than `max`.
pub fn ellipsize(text: &str, size: f64, max: f64) -> String {
    if text_width(text, size) <= max {
        return text.to_string();
    }
    let room = max - text_width("…", size);
    let mut used = 0.0;
    let mut out = String::new();
    for c in text.chars() {
        used += advance(c) * size;
        if used > room {
            break;
        }
        out.push(c);
    }
    out.truncate(out.trim_end().len());
    out.push('…');
    out
}

/// `text` broken at spaces into at most `lines` lines no wider than `max`; a word that is too
/// wide, and what is left over at the end, is cut with an ellipsis.
pub fn wrap(text: &str, size: f64, max: f64, lines: usize) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    // Not `split_whitespace`, which takes a no-break space for one.
    for word in text.split_ascii_whitespace() {
        if let Some(last) = out.last_mut() {
            let joined = format!("{last} {word}");
            // The last line allowed takes the rest and is cut below.
            if text_width(&joined, size) <= max || out.len() == lines {
                let end = out.len() - 1;
                out[end] = joined;
                continue;
            }
        }
        out.push(word.to_string());
    }
    out.iter().map(|line| ellipsize(line, size, max)).collect()
}

/// Which end of a text its position names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The left end.
    Start,
    /// The centre.
    Middle,
    /// The right end.
    End,
}

/// An SVG document being written.
#[derive(Debug, Default)]
pub struct Canvas {
    body: String,
}

impl Canvas {
    /// An empty canvas.
    pub fn new() -> Self {
        Self::default()
    }

    /// A straight line of a style-sheet class.
    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let _ = write!(
            self.body,
            "<path class=\"{class}\" d=\"M{} {}L{} {}\"/>",
            px(from.0),
            px(from.1),
            px(to.0),
            px(to.1)
        );
    }

    /// One line of text. `class` is a class of the style sheet (`t`, `m` or `b`).
    pub fn text(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let _ = write!(
            self.body,
            "<text class=\"{class}\" x=\"{}\" y=\"{}\"{anchor}>{}</text>",
            px(at.0),
            px(at.1),
            escape(text)
        );
    }

    /// Anything else: markup that the caller has made of escaped text and [`px`] numbers.
    pub fn raw(&mut self, markup: &str) {
        self.body.push_str(markup);
    }

    /// What was drawn so far, to be laid over another canvas.
    pub fn into_body(self) -> String {
        self.body
    }

    /// The finished document, `width` × `height` pixels, with `label` for those who cannot see it.
    /// It scales with its container through its view box.
    pub fn finish(self, target: Target, width: f64, height: f64, label: &str) -> String {
        let (w, h) = (px(width), px(height));
        let (space, style, ground) = match target {
            Target::File => (
                format!(" xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\""),
                format!("<style>{}</style>", palette::chart_css()),
                format!("<rect class=\"k\" fill=\"#fff\" width=\"{w}\" height=\"{h}\"/>"),
            ),
            Target::Page => (String::new(), String::new(), String::new()),
        };
        format!(
            "<svg class=\"ek\"{space} viewBox=\"0 0 {w} {h}\" role=\"img\" aria-label=\"{}\" \
             font-family=\"system-ui, sans-serif\" font-size=\"12\">{style}{ground}{}</svg>",
            escape(label),
            self.body
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn markup_is_escaped_and_forbidden_characters_replaced() {
        assert_eq!(
            escape("<a href=\"x\">'&'\u{0}\u{1b}</a>"),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;\u{fffd}\u{fffd}&lt;/a&gt;"
        );
    }

    #[test]
    fn numbers_are_short_and_always_finite() {
        assert_eq!(px(1.04), "1");
        assert_eq!(px(-0.04), "0");
        assert_eq!(px(12.25), "12.3");
        assert_eq!(px(f64::NAN), "0");
        assert_eq!(px(f64::NEG_INFINITY), "0");
    }

    #[test]
    fn wrapping_breaks_at_spaces_and_cuts_what_is_left() {
        let lines = wrap("alpha beta gamma delta", 10.0, 70.0, 2);
        assert_eq!(lines[0], "alpha beta");
        assert_eq!(lines.len(), 2);
        let cut = wrap("alpha beta gamma delta epsilon", 10.0, 60.0, 1);
        assert_eq!(cut.len(), 1);
        assert!(cut[0].ends_with('…'), "{cut:?}");
        assert!(wrap("", 10.0, 60.0, 2).is_empty());
        let kept = wrap("alpha lr\u{a0}3e-3", 10.0, 60.0, 2);
        assert_eq!(kept, ["alpha", "lr\u{a0}3e-3"]);
    }

    proptest! {
        #[test]
        fn cut_text_fits(text in "\\PC{0,60}", max in 12.0..300.0f64) {
            prop_assert!(text_width(&ellipsize(&text, 12.0, max), 12.0) <= max + 1e-9);
            for line in wrap(&text, 12.0, max, 3) {
                prop_assert!(text_width(&line, 12.0) <= max + 1e-9);
            }
        }

        #[test]
        fn escaped_text_holds_no_markup(text in any::<String>()) {
            let safe = escape(&text);
            prop_assert!(!safe.contains(['<', '>', '"', '\'']));
            prop_assert!(!safe.chars().any(|c| c < ' ' && !"\t\n\r".contains(c)));
        }
    }
}
