//! The README says what there is.

#![allow(clippy::unwrap_used, reason = "a test panics where its own files are not as they must be")]

use std::fmt::Write;

use conformance_tests::{Case, all, wrong};

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");

const GUARANTEES: [&str; 9] = [
    "Committed means durable and whole",
    "Nothing is left behind",
    "An id is written once",
    "Exact bytes or an error",
    "Bounded memory",
    "Every call has a deadline, every error a kind",
    "Sparse stays sparse",
    "Secrets never show",
    "A blob describes itself",
];

#[test]
fn the_readme_is_up_to_date() {
    let found = std::fs::read_to_string(README).unwrap();
    let plug_in = include_str!("acme/main.rs");
    let plug_in = between(plug_in, "// README: from here\n", "// README: to here\n");
    let mut wanted = with(&found, "plug-in", &format!("```rust,ignore\n{plug_in}```\n"));
    wanted = with(&wanted, "cases", &cases());
    wanted = with(&wanted, "wrong", &wrongs());
    if std::env::var_os("README_UPDATE").is_some() {
        std::fs::write(README, &wanted).unwrap();
    }
    assert!(
        found == wanted || std::env::var_os("README_UPDATE").is_some(),
        "run this test with README_UPDATE=1"
    );
    for number in [format!("{} named properties", all().count()), format!("[{} pairs]", wrong::all().count())]
    {
        assert!(wanted.contains(&number), "the README does not say {number:?}");
    }
}

#[test]
fn every_case_has_a_name_of_its_own_and_proves_something() {
    let mut names: Vec<&str> = all().map(|case| case.name).collect();
    names.sort();
    let before = names.len();
    names.dedup();
    assert_eq!(names.len(), before);
    for case in all() {
        assert!(
            !case.proves.is_empty() && case.proves.iter().all(|number| (1..=9).contains(number)),
            "{case:?}"
        );
    }
    for number in 1..=9 {
        assert!(all().any(|case| case.proves.contains(&number)), "nothing proves guarantee {number}");
    }
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    text.split_once(from).and_then(|(_, rest)| rest.split_once(to)).unwrap().0
}

/// `text` with `content` between the marks of `section`.
fn with(text: &str, section: &str, content: &str) -> String {
    let (from, to) = (format!("<!-- {section} -->\n"), format!("<!-- /{section} -->\n"));
    let old = between(text, &from, &to);
    text.replace(&format!("{from}{old}{to}"), &format!("{from}{content}{to}"))
}

fn cases() -> String {
    let mut text = String::new();
    for (number, guarantee) in (1..).zip(GUARANTEES) {
        let proofs: Vec<&Case> = all().filter(|case| case.proves.contains(&number)).collect();
        let names: Vec<String> = proofs.iter().map(|case| format!("`{}`", case.name)).collect();
        write!(text, "\n### {number}. {guarantee}\n{}\n", wrapped(&names.join(", "))).unwrap();
    }
    text.push('\n');
    text
}

fn wrongs() -> String {
    let mut text = String::from("\n| wrong | caught by |\n|---|---|\n");
    for wrong in wrong::all() {
        writeln!(text, "| {} | `{}` |", wrong.name.replace('_', " "), wrong.caught_by).unwrap();
    }
    text.push('\n');
    text
}

fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().unwrap();
        match line.len() + word.len() < 120 {
            true if line.is_empty() => line.push_str(word),
            true => *line += &format!(" {word}"),
            false => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}
