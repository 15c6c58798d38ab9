//! A storage that is not there fails a run that requires it, and is never skipped in silence.

use std::process::{Command, Output};

use conformance_tests::{REQUIRED, Setup, run};
use libtest_mimic::{Arguments, Failed, Trial};

/// Set for the process that plays the test binary of a backend.
const ROLE: &str = "CONFORMANCE_TESTS_MISSING";

fn main() {
    if std::env::var_os(ROLE).is_some() {
        run("acme", async || Setup::Missing("acme-server is not installed".into()));
    }
    let trials = vec![
        Trial::test("it_is_ignored_loudly_where_nobody_requires_it", || {
            for required in [None, Some(""), Some("other,another")] {
                let output = play(required)?;
                let (out, err) = (text(&output.stdout), text(&output.stderr));
                ensure(output.status.success(), required, "fails")?;
                ensure(err.contains("acme-server is not installed"), required, "does not say why")?;
                ensure(out.contains("0 passed; 0 failed"), required, &out)?;
                ensure(out.contains("ignored (acme-server is not installed)"), required, &out)?;
            }
            Ok(())
        }),
        Trial::test("it_fails_the_run_where_it_is_required", || {
            for required in ["all", "acme", "other, acme"] {
                let output = play(Some(required))?;
                ensure(!output.status.success(), Some(required), "passes")?;
                let err = text(&output.stderr);
                ensure(err.contains("acme-server is not installed"), Some(required), "does not say why")?;
            }
            Ok(())
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

fn play(required: Option<&str>) -> Result<Output, Failed> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(ROLE, "1").env_remove(REQUIRED);
    if let Some(required) = required {
        command.env(REQUIRED, required);
    }
    Ok(command.output()?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ensure(holds: bool, required: Option<&str>, what: &str) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(format!("with {REQUIRED}={required:?}: {what}").into()) }
}
