use conformance_tests::{CaseReport, CheckOptions, Verdict, check};
use imagestore::{Error, Store};
use serde_json::json;

use super::{
    App, args,
    exit::{OTHER, Outcome, Stop},
    output::Output,
};

pub(super) async fn run(app: &App, args: args::Conformance) -> Outcome {
    let section = app.stores()?.settings().section(&args.store)?.clone();
    // Each case connects anew, as another process would.
    let open = move || {
        let section = section.clone();
        async move { imagestore::registry().open(&section).await as Result<Store, Error> }
    };
    let mut wanted = CheckOptions::default();
    wanted.slow = args.slow;
    wanted.exclusive = args.exclusive;
    wanted.filter = args.only;
    wanted.stop = app.stopping.clone();
    let out = app.output();
    // The suite goes on whether or not anybody reads.
    let mut printed = Ok(());
    let report = check(open, &wanted, |case| {
        if printed.is_ok() {
            printed = out.object(case).and_then(|()| tell(out, case));
        }
    })
    .await?;
    printed?;
    if report.stopped {
        return Ok(()); // The exit code is the signal's.
    }
    let (passed, failed, ignored) = (report.passed, report.failed, report.ignored);
    if passed + failed == 0 {
        app.notice("no case was run; leave out --only, or name a part of a case's name");
    }
    out.object(&json!({ "store": args.store, "summary": { "passed": passed, "failed": failed, "ignored": ignored } }))?;
    out.line(format_args!("store {}: {passed} hold, {failed} broken, {ignored} skipped", args.store))?;
    match report.is_success() {
        true => Ok(()),
        false => Err(Stop::Code(OTHER)),
    }
}

/// Prints a case's line; quietly, only if its promise is broken.
fn tell(out: Output, case: &CaseReport) -> Outcome {
    let title = format!("{}::{}", case.group, case.name);
    match &case.verdict {
        Verdict::Failed { reason } => out.line(format_args!("BROKEN   {title}: {reason}")),
        _ if out.quiet => Ok(()),
        Verdict::Ignored { reason } => out.line(format_args!("skipped  {title}: {reason}")),
        _ => out.line(format_args!("holds    {title} ({:.1} s)", case.duration.as_secs_f64())),
    }
}
