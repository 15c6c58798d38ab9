//! The example configuration tells the whole truth.
#![allow(clippy::unwrap_used, reason = "a test panics where its own set-up fails")]

use imagestore::{Options, Settings, registry};

const EXAMPLE: &str = include_str!("../imagestore.example.toml");

fn effective(text: &str) -> toml::Table {
    let settings = Settings::parse(text).unwrap();
    // What is not built in is looked at by the builds that have it.
    let built: Vec<_> = registry().types().collect();
    let stores = settings.sections().filter(|section| built.contains(&section.kind())).map(|section| {
        let all = registry().effective(section).unwrap();
        (section.name().to_owned(), toml::Value::Table(all))
    });
    stores.collect()
}

/// `key = value`, as it stands or commented out.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.strip_prefix("# ").unwrap_or(line).split_once(" = ")?;
    key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_').then_some((key, value))
}

#[test]
fn every_type_and_every_key_is_in_it() {
    let keys: Vec<&str> = EXAMPLE.lines().filter_map(assignment).map(|(key, _)| key).collect();
    let nested = ["retry", "timeout"];
    for key in Options::KEYS.iter().filter(|key| !nested.contains(key)) {
        assert!(keys.contains(key), "{key}");
    }
    let stores = effective(EXAMPLE);
    for kind in registry().types() {
        assert!(stores.values().any(|store| store["type"].as_str() == Some(kind)), "{kind}");
    }
    for (name, store) in &stores {
        for (key, value) in store.as_table().unwrap() {
            match value {
                toml::Value::Table(inner) if nested.contains(&key.as_str()) => {
                    assert!(EXAMPLE.contains(&format!("[defaults.{key}]")), "{key} of {name}");
                    inner.keys().for_each(|key| assert!(keys.contains(&key.as_str()), "{key} of {name}"));
                }
                _ => assert!(keys.contains(&key.as_str()), "{key} of {name}"),
            }
        }
    }
}

#[test]
fn what_is_commented_out_is_the_default() {
    let uncommented: Vec<&str> = EXAMPLE
        .lines()
        .map(|line| match assignment(line) {
            Some(_) => line.strip_prefix("# ").unwrap_or(line),
            None => line,
        })
        .collect();
    let all = uncommented.join("\n");
    assert!(all.lines().filter(|line| EXAMPLE.lines().all(|known| known != *line)).count() > 10);
    assert_eq!(effective(&all), effective(EXAMPLE));
}
