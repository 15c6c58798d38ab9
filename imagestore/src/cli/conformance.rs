use imagestore::Error;

use super::{App, args, exit::Outcome};

pub(super) async fn run(app: &App, args: args::Conformance) -> Outcome {
    let _store = app.store(Some(&args.store)).await?;
    let _ = args.only;
    Err(Error::unsupported("its proof yet: the conformance suite is not part of this build").into())
}
