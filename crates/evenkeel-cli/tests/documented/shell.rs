//! As much of the shell's grammar as is needed to see where a command ends and which words it is made of. Running
//! is left to the shell.

/// A piece of shell text.
#[derive(Debug, Default)]
pub(crate) struct Lexed {
    /// Its simple commands: programs with their words, without redirections and assignments before them.
    pub(crate) commands: Vec<Vec<String>>,
    /// What stands behind the last `#`.
    pub(crate) comment: String,
    /// Whether it goes on in the next line: an open quote, loop or here-document, or a backslash at its end.
    pub(crate) open: bool,
}

impl Lexed {
    /// The code that a comment `# exit N` expects; 0 without one.
    pub(crate) fn exit(&self) -> i32 {
        self.comment.strip_prefix("exit ").and_then(|code| code.trim().parse().ok()).unwrap_or(0)
    }
}

/// Words that open a compound command, and those that close it.
const OPENERS: [&str; 5] = ["for", "while", "until", "if", "case"];
const CLOSERS: [&str; 3] = ["done", "fi", "esac"];
/// Words before a program that are not it.
const BEFORE: [&str; 7] = ["do", "then", "else", "!", "time", "exec", "{"];

/// Takes shell text apart.
pub(crate) fn lex(text: &str) -> Lexed {
    let mut out = Lexed::default();
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut depth = 0i32;
    let mut heredocs: Vec<String> = Vec::new();
    // Whether the next word is the target of a redirection, and whether that is a here-document's end.
    let mut target: Option<bool> = None;
    let mut chars = text.chars().peekable();
    loop {
        let c = chars.next();
        match c {
            Some('\\') => match chars.next() {
                Some('\n') => {}
                Some(c) => word.get_or_insert_default().push(c),
                None => out.open = true,
            },
            Some(quote @ ('\'' | '"')) => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        None => break out.open = true,
                        Some(c) if c == quote => break,
                        Some('\\') if quote == '"' => word.extend(chars.next()),
                        Some(c) => word.push(c),
                    }
                }
            }
            // What a substitution runs is not looked into.
            Some('$') if chars.peek() == Some(&'(') => {
                let word = word.get_or_insert_default();
                word.push('$');
                let mut nesting = 0;
                loop {
                    let Some(c) = chars.next() else { break out.open = true };
                    word.push(c);
                    nesting += i32::from(c == '(') - i32::from(c == ')');
                    if nesting == 0 {
                        break;
                    }
                }
            }
            Some('#') if word.is_none() => {
                out.comment.clear();
                while let Some(c) = chars.next_if(|&c| c != '\n') {
                    out.comment.push(c);
                }
                out.comment = out.comment.trim().to_string();
            }
            Some(c) if !" \t\n;|&()<>".contains(c) => word.get_or_insert_default().push(c),
            _ => {
                // A word has ended. A number before a redirection belongs to it.
                if let Some(word) = word.take() {
                    match target.take() {
                        Some(true) => heredocs.push(word),
                        Some(false) => {}
                        None if matches!(c, Some('<' | '>')) && word.parse::<u8>().is_ok() => {}
                        None => {
                            depth += i32::from(words.is_empty() && OPENERS.contains(&word.as_str()));
                            depth -= i32::from(words.is_empty() && CLOSERS.contains(&word.as_str()));
                            let before = BEFORE.contains(&word.as_str()) || assigns(&word);
                            if !(words.is_empty() && before) {
                                words.push(word);
                            }
                        }
                    }
                }
                match c {
                    Some('<' | '>') => {
                        let twice = chars.next_if_eq(&c.unwrap_or_default()).is_some();
                        while chars.next_if(|c| "&-|".contains(*c)).is_some() {}
                        target = Some(twice && c == Some('<'));
                    }
                    Some(' ' | '\t') => {}
                    _ => {
                        if !words.is_empty() {
                            out.commands.push(std::mem::take(&mut words));
                        }
                        if c == Some('\n') {
                            for end in heredocs.drain(..) {
                                let mut closed = false;
                                while !closed && chars.peek().is_some() {
                                    let line: String =
                                        std::iter::from_fn(|| chars.next_if(|&c| c != '\n')).collect();
                                    chars.next();
                                    closed = line.trim() == end;
                                }
                                out.open |= !closed;
                            }
                        }
                    }
                }
            }
        }
        if c.is_none() {
            break;
        }
    }
    out.open |= depth > 0 || !heredocs.is_empty();
    out
}

/// Whether a word before a program sets a variable.
fn assigns(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
    })
}

/// The commands of a block, each with the number of its first line within the block: lines joined where one goes on
/// in the next. Empty lines and comments are left out.
pub(crate) fn commands(block: &[String]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut begun: Option<(usize, String)> = None;
    for (i, line) in block.iter().enumerate() {
        let (first, text) = match begun.take() {
            Some((first, text)) => (first, format!("{text}\n{line}")),
            None => (i, line.clone()),
        };
        let lexed = lex(&text);
        if lexed.open && i + 1 < block.len() {
            begun = Some((first, text));
        } else if !lexed.commands.is_empty() {
            found.push((first, text));
        }
    }
    found
}

#[test]
fn text_is_taken_apart() {
    let one =
        lex("A=1 evenkeel train a.toml --set 'x=[{a=\"b\"}]' 2> log > out.txt && tail -n 1 \"a b\" # exit 1");
    assert_eq!(
        one.commands,
        [&["evenkeel", "train", "a.toml", "--set", "x=[{a=\"b\"}]"][..], &["tail", "-n", "1", "a b"]]
    );
    assert_eq!((one.exit(), one.open), (1, false));
    let block = "cat > a <<'EOF'\nx | y\nEOF\n\n# a comment\nfor i in 1 2; do\n  echo $i\ndone\na \\\n b $(c | d)\n'e\nf'";
    let block: Vec<String> = block.lines().map(String::from).collect();
    let found = commands(&block);
    assert_eq!(found.iter().map(|c| c.0).collect::<Vec<_>>(), [0, 5, 8, 10]);
    assert_eq!(lex(&found[0].1).commands, [["cat"]]);
    assert_eq!(lex(&found[1].1).commands[1], ["echo", "$i"]);
    assert_eq!(lex(&found[2].1).commands, [["a", "b", "$(c | d)"]]);
}
