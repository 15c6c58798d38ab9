//! The suite itself under test: each wrong backend is caught by its case, and a right one is not.

use std::{collections::BTreeSet, future::Future, sync::Arc};

use conformance_tests::{Case, Failure, Fixture, Outcome, all, execute, wrong};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

fn main() {
    let runtime = Arc::new(Runtime::new().expect("a runtime starts"));
    let named: BTreeSet<&str> = wrong::all().map(|wrong| wrong.caught_by).collect();
    let mut trials = Vec::new();
    for wrong in wrong::all() {
        let case = case(wrong.caught_by);
        let title = format!("{}::is_caught_by::{}", wrong.name, case.name);
        trials.push(trial(&runtime, title, is_caught(case, || wrong.fixture())));
    }
    for case in all() {
        // Elsewhere, a case that passes on a dead backend would pass on any.
        if !named.contains(case.name) {
            let title = format!("dead::is_caught_by::{}", case.name);
            trials.push(trial(&runtime, title, is_caught(case, wrong::dead)));
        } else {
            trials.push(trial(&runtime, format!("reference::passes::{}", case.name), passes(case)));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

fn case(name: &str) -> &'static Case {
    all().find(|case| case.name == name).unwrap_or_else(|| panic!("there is no case {name}"))
}

async fn is_caught(case: &'static Case, fixture: impl Fn() -> Fixture) -> Result<(), String> {
    let outcome = run(case, fixture()).await?;
    match outcome {
        Err(Failure::Broken(_)) => Ok(()),
        other => Err(format!("the case does not notice: {other:?}")),
    }
}

async fn passes(case: &'static Case) -> Result<(), String> {
    let abilities = wrong::reference().abilities(true).await.map_err(|error| error.to_string())?;
    match case.unmet(&abilities) {
        // It is about what is not declared, and the reference declares everything.
        Some(_) => Ok(()),
        None => run(case, wrong::reference()).await?.map_err(|failure| failure.to_string()),
    }
}

/// What came of a case, which must have been tried.
async fn run(case: &'static Case, fixture: Fixture) -> Result<Outcome, String> {
    let abilities = fixture.abilities(true).await.map_err(|error| error.to_string())?;
    match case.unmet(&abilities) {
        Some(need) => Err(format!("the case is not even tried: it needs {need}")),
        None => Ok(execute(case, &fixture).await.0),
    }
}

fn trial(
    runtime: &Arc<Runtime>,
    title: String,
    test: impl Future<Output = Result<(), String>> + Send + 'static,
) -> Trial {
    let runtime = Arc::clone(runtime);
    Trial::test(title, move || runtime.block_on(test).map_err(Failed::from))
}
