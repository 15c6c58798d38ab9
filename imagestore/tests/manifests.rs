//! Every crate of the repository can be published, or says that it is not to be.
#![allow(clippy::unwrap_used, reason = "a test panics where its own set-up fails")]

use std::{path::Path, process::Command};

use serde_json::Value;

/// The packages of a workspace, as cargo sees them.
fn packages(workspace: &str) -> Vec<Value> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(workspace).join("Cargo.toml");
    let arguments = ["metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path"];
    let output = Command::new(env!("CARGO")).args(arguments).arg(&manifest).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    all["packages"].as_array().unwrap().clone()
}

#[test]
fn every_crate_has_what_a_registry_asks_for() {
    let mut published = 0;
    for package in [packages("."), packages("fuzz"), packages("benches/peers")].concat() {
        let name = package["name"].as_str().unwrap();
        assert_eq!(package["license"], "Apache-2.0", "{name}");
        assert!(package["description"].as_str().is_some_and(|text| text.len() > 20), "{name}");
        if package["publish"].as_array().is_some_and(Vec::is_empty) {
            continue; // Not to be published.
        }
        published += 1;
        assert!(package["repository"].is_string() && package["readme"].is_string(), "{name}");
        let files = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap();
        assert!(files.join(package["readme"].as_str().unwrap()).exists(), "{name}");
        for dependency in package["dependencies"].as_array().unwrap() {
            // A path alone leads nowhere once the crate is published.
            let found = dependency["path"].is_null() || dependency["req"] != "*";
            assert!(found, "{name}: {} has no version", dependency["name"]);
        }
    }
    assert!(published >= 8, "{published}");
}
