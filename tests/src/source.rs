//! A Rust file as lines of code, comments apart: enough of a lexer for house rules, not a parser.

/// One line of a source file.
#[derive(Debug, Clone, Default)]
pub struct Line {
    /// The line with the insides of comments, strings and characters blanked.
    pub code: String,
    /// The line as it stands in the file.
    pub text: String,
    /// Whether the line belongs to test code.
    pub test: bool,
}

impl Line {
    /// Tells whether the line holds any code at all.
    pub fn has_code(&self) -> bool {
        !self.code.trim().is_empty()
    }

    /// Tells whether `word` stands in the code as a whole word.
    pub fn has_word(&self, word: &str) -> bool {
        words(&self.code).any(|(_, found)| found == word)
    }
}

/// A function with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Index of the line with the word `fn`, from 0.
    pub line: usize,
    /// Lines from the signature to the closing brace that hold code.
    pub lines_of_code: usize,
}

/// A Rust file, lexed.
#[derive(Debug, Clone)]
pub struct Source {
    /// All lines, in order.
    pub lines: Vec<Line>,
}

impl Source {
    /// Lexes a file's text. `test_file` marks every line as test code.
    pub fn lex(text: &str, test_file: bool) -> Source {
        let blanked = blank(text);
        let mut lines: Vec<Line> = blanked
            .split('\n')
            .zip(text.split('\n'))
            .map(|(code, text)| Line { code: code.to_string(), text: text.to_string(), test: test_file })
            .collect();
        mark_tests(&mut lines);
        Source { lines }
    }

    /// Lines of the file that are not test code.
    pub fn lines_outside_tests(&self) -> usize {
        self.lines.iter().filter(|line| !line.test).count()
    }

    /// Names of modules that are declared, without a body, inside test regions.
    pub fn test_modules(&self) -> Vec<String> {
        let declared = self.lines.iter().filter(|line| line.test);
        declared.filter_map(|line| module_without_body(&line.code)).collect()
    }

    /// Finds every function with a body, nested ones too.
    pub fn functions(&self) -> Vec<Function> {
        let mut found = Vec::new();
        for (index, line) in self.lines.iter().enumerate() {
            let mut after_fn = false;
            for (at, word) in words(&line.code) {
                if after_fn && let Some(end) = self.body_end(index, at) {
                    let lines_of_code = self.lines[index..=end].iter().filter(|line| line.has_code()).count();
                    found.push(Function { name: word.to_string(), line: index, lines_of_code });
                }
                // A pointer type `fn(u8)` has no name: the next word is not straight behind.
                after_fn = word == "fn" && line.code[at + 2..].starts_with(' ');
            }
        }
        found
    }

    /// The line on which the body that starts behind `column` of `line` closes; `None` for a declaration without body.
    fn body_end(&self, line: usize, column: usize) -> Option<usize> {
        let mut braces = 0usize;
        let mut brackets = 0usize;
        for (index, current) in self.lines.iter().enumerate().skip(line) {
            let start = if index == line { column } else { 0 };
            for character in current.code[start..].chars() {
                match character {
                    '(' | '[' => brackets += 1,
                    ')' | ']' => brackets = brackets.saturating_sub(1),
                    ';' if braces == 0 && brackets == 0 => return None,
                    '{' => braces += 1,
                    '}' => {
                        braces = braces.saturating_sub(1);
                        if braces == 0 && brackets == 0 {
                            return Some(index);
                        }
                    }
                    _ => {}
                }
            }
        }
        None
    }
}

/// Marks what follows `#[cfg(test)]` and `#[test]`, to the end of that item.
fn mark_tests(lines: &mut [Line]) {
    let mut index = 0;
    while index < lines.len() {
        let code = lines[index].code.trim();
        let starts = code.starts_with("#[cfg(test)]")
            || code.starts_with("#[cfg(all(test")
            || code.starts_with("#[test]")
            || code.starts_with("#[tokio::test");
        if !starts {
            index += 1;
            continue;
        }
        let end = item_end(lines, index);
        lines[index..=end].iter_mut().for_each(|line| line.test = true);
        index = end + 1;
    }
}

/// The last line of the item whose first attribute is on `start`.
fn item_end(lines: &[Line], start: usize) -> usize {
    let mut depth = 0usize;
    for (index, line) in lines.iter().enumerate().skip(start) {
        let attribute = depth == 0 && line.code.trim().starts_with("#[") && line.code.trim().ends_with(']');
        if attribute {
            continue;
        }
        for character in line.code.chars() {
            match character {
                '{' | '(' | '[' => depth += 1,
                '}' | ')' | ']' => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 && character == '}' {
                        return index;
                    }
                }
                ';' if depth == 0 => return index,
                _ => {}
            }
        }
    }
    lines.len() - 1
}

/// The name in `mod name;`, with any visibility before it.
pub fn module_without_body(code: &str) -> Option<String> {
    let code = code.trim();
    let (before, name) = code.strip_suffix(';')?.rsplit_once("mod ")?;
    let visible = before.is_empty() || before.trim_end().ends_with(']') || before.starts_with("pub");
    let plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    (visible && plain).then(|| name.to_string())
}

/// Words (identifiers) of a blanked line with the byte column of each.
pub fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = 0;
    std::iter::from_fn(move || {
        let start = rest + code[rest..].find(|c: char| c.is_alphanumeric() || c == '_')?;
        let length = code[start..].find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(code.len() - start);
        rest = start + length;
        Some((start, &code[start..rest]))
    })
}

/// Where the lexer stands.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Code,
    LineComment,
    BlockComment { depth: usize },
    Text { hashes: Option<usize> },
}

/// Replaces comments and the insides of strings and characters by spaces; line breaks stay, all else keeps its column
/// as far as it is ASCII.
fn blank(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut state = State::Code;
    let mut at = 0;
    while at < characters.len() {
        let (next, consumed, keep) = match state {
            State::Code => step_code(&characters, at),
            State::LineComment if characters[at] == '\n' => (State::Code, 1, true),
            State::LineComment => (State::LineComment, 1, false),
            State::BlockComment { depth } => step_block_comment(&characters, at, depth),
            State::Text { hashes } => step_text(&characters, at, hashes),
        };
        for &character in &characters[at..at + consumed] {
            out.push(if keep || character == '\n' { character } else { ' ' });
        }
        at += consumed;
        state = next;
    }
    out
}

fn step_code(characters: &[char], at: usize) -> (State, usize, bool) {
    let next = characters.get(at + 1).copied().unwrap_or('\n');
    let word_before = at > 0 && (characters[at - 1].is_alphanumeric() || characters[at - 1] == '_');
    match characters[at] {
        '/' if next == '/' => (State::LineComment, 2, false),
        '/' if next == '*' => (State::BlockComment { depth: 1 }, 2, false),
        '"' => (State::Text { hashes: None }, 1, true),
        'r' if !word_before || characters[at - 1] == 'b' => {
            let hashes = characters[at + 1..].iter().take_while(|c| **c == '#').count();
            match characters.get(at + 1 + hashes) {
                Some('"') => (State::Text { hashes: Some(hashes) }, hashes + 2, true),
                _ => (State::Code, 1, true),
            }
        }
        '\'' => match character_length(characters, at) {
            Some(length) => (State::Code, length, false),
            None => (State::Code, 1, true),
        },
        _ => (State::Code, 1, true),
    }
}

/// The length of a character literal with its quotes; `None` for a lifetime.
fn character_length(characters: &[char], at: usize) -> Option<usize> {
    if characters.get(at + 1) == Some(&'\\') {
        let end = characters[at + 3..].iter().position(|c| *c == '\'')?;
        return Some(end + 4);
    }
    (characters.get(at + 2) == Some(&'\'')).then_some(3)
}

fn step_block_comment(characters: &[char], at: usize, depth: usize) -> (State, usize, bool) {
    match (characters[at], characters.get(at + 1)) {
        ('*', Some('/')) if depth == 1 => (State::Code, 2, false),
        ('*', Some('/')) => (State::BlockComment { depth: depth - 1 }, 2, false),
        ('/', Some('*')) => (State::BlockComment { depth: depth + 1 }, 2, false),
        _ => (State::BlockComment { depth }, 1, false),
    }
}

fn step_text(characters: &[char], at: usize, hashes: Option<usize>) -> (State, usize, bool) {
    let inside = State::Text { hashes };
    match (characters[at], hashes) {
        ('\\', None) => (inside, 2.min(characters.len() - at), false),
        ('"', None) => (State::Code, 1, true),
        ('"', Some(count)) => {
            let closing = characters[at + 1..].iter().take(count).filter(|c| **c == '#').count();
            if closing == count { (State::Code, count + 1, true) } else { (inside, 1, false) }
        }
        _ => (inside, 1, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_not_code() {
        let text =
            "let a = \"unsafe // {\"; // unwrap()\n/* fn x() { /* } */ */ let c = '{'; let l: &'a str = r#\"}\"#;";
        let source = Source::lex(text, false);
        assert!(!source.lines[0].has_word("unsafe"));
        assert!(!source.lines[0].code.contains("unwrap"));
        assert!(source.lines[1].has_word("let"));
        assert!(!source.lines[1].code.contains('{') && !source.lines[1].code.contains('}'));
        assert!(source.lines[1].code.contains("'a str"));
    }

    #[test]
    fn escaped_quotes_stay_inside_a_string() {
        let source = Source::lex("call(\"a\\\"b { \", b'\\'', '\\u{7f}'); {", false);
        assert_eq!(source.lines[0].code.matches('{').count(), 1);
    }

    #[test]
    fn functions_are_counted_by_lines_that_hold_code() {
        let text = "fn short() {}\n\nfn long(\n    a: [u8; 4],\n) {\n    // why\n\n    call();\n}\ntrait T { fn none(&self); }\nlet f: fn(u8) = g;";
        let functions = Source::lex(text, false).functions();
        let summary: Vec<_> = functions.iter().map(|f| (f.name.as_str(), f.line, f.lines_of_code)).collect();
        assert_eq!(summary, [("short", 0, 1), ("long", 2, 5)]);
    }

    #[test]
    fn test_regions_end_with_their_item() {
        let text =
            "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod model;\nfn d() {}";
        let source = Source::lex(text, false);
        let marks: Vec<bool> = source.lines.iter().map(|line| line.test).collect();
        assert_eq!(marks, [false, true, true, true, true, false, true, true, false]);
        assert_eq!(source.test_modules(), ["model"]);
    }
}
