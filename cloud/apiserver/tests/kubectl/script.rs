//! The table of commands: `$ kubectl ...`, input in lines that begin with `|`, then the expected output.
//!
//! In expected lines `<*>` stands for anything, and a line `...` for any lines. Runs of spaces inside a line count as one.

pub struct Step {
    /// A comment or blank lines when absent.
    pub arguments: Option<Vec<String>>,
    /// The lines as they stand in the file: command or comments.
    head: String,
    pub input: String,
    pub expected: String,
}

pub fn parse(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("$ kubectl ") {
            let arguments = Some(words(command));
            steps.push(Step {
                arguments,
                head: format!("{line}\n"),
                input: String::new(),
                expected: String::new(),
            });
            continue;
        }
        let comment = line.starts_with('#') || line.is_empty();
        match steps.last_mut() {
            Some(step) if step.arguments.is_some() && !comment => {
                if let Some(input) = line.strip_prefix('|') {
                    step.input.push_str(input.strip_prefix(' ').unwrap_or(input));
                    step.input.push('\n');
                } else {
                    step.expected.push_str(line);
                    step.expected.push('\n');
                }
            }
            Some(step) if step.arguments.is_none() => {
                step.head.push_str(line);
                step.head.push('\n');
            }
            _ => steps.push(Step {
                arguments: None,
                head: format!("{line}\n"),
                input: String::new(),
                expected: String::new(),
            }),
        }
    }
    steps
}

/// Words as a shell would split them; single quotes keep spaces.
fn words(text: &str) -> Vec<String> {
    let (mut out, mut word, mut quoted, mut started) = (Vec::new(), String::new(), false, false);
    for c in text.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                started = true;
            }
            ' ' if !quoted => {
                if started {
                    out.push(std::mem::take(&mut word));
                }
                started = false;
            }
            c => {
                word.push(c);
                started = true;
            }
        }
    }
    if started {
        out.push(word);
    }
    out
}

pub fn render(steps: &[Step]) -> String {
    let mut out = String::new();
    for step in steps {
        out.push_str(&step.head);
        for line in step.input.lines() {
            out.push_str(&format!("| {line}\n"));
        }
        // A blank line would end the block.
        for line in step.expected.lines().filter(|line| !line.is_empty()) {
            out.push_str(&format!("{line}\n"));
        }
    }
    out
}

pub fn matches(expected: &str, got: &str) -> bool {
    let expected: Vec<String> = expected.lines().map(tidy).collect();
    let got: Vec<String> = got.lines().filter(|line| !line.is_empty()).map(tidy).collect();
    lines_match(&expected, &got)
}

fn lines_match(expected: &[String], got: &[String]) -> bool {
    match expected {
        [] => got.is_empty(),
        [dots, rest @ ..] if dots == "..." => (0..=got.len()).any(|from| lines_match(rest, &got[from..])),
        [line, rest @ ..] => got
            .split_first()
            .is_some_and(|(first, others)| line_matches(line, first) && lines_match(rest, others)),
    }
}

fn tidy(line: &str) -> String {
    let body = line.trim_start();
    let indent = &line[..line.len() - body.len()];
    format!("{indent}{}", body.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn line_matches(pattern: &str, line: &str) -> bool {
    match pattern.split_once("<*>") {
        None => pattern == line,
        Some((head, tail)) => line.strip_prefix(head).is_some_and(|rest| {
            rest.char_indices()
                .map(|(at, _)| at)
                .chain([rest.len()])
                .any(|at| line_matches(tail, &rest[at..]))
        }),
    }
}
