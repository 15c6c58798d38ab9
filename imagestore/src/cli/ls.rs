use futures::TryStreamExt;
use imagestore::Size;

use super::{App, args, exit::Outcome};

pub(super) async fn run(app: &App, args: args::Ls) -> Outcome {
    let store = app.store(args.store.store.as_deref()).await?;
    let out = app.output();
    let mut entries = store.list();
    let (mut count, mut bytes) = (0u64, 0u64);
    while let Some(entry) = entries.try_next().await? {
        count += 1;
        bytes = bytes.saturating_add(entry.size);
        out.object(&entry)?;
        match args.long {
            // Padded by hand: a size's own formatting knows no width.
            true => out.line(format_args!(
                "{:>10}  {}  {}",
                Size(entry.size).to_string(),
                entry.id,
                entry.location
            ))?,
            false => out.line(&entry.id)?,
        }
    }
    if args.long {
        let images = if count == 1 { "image" } else { "images" };
        app.notice(&format!("{count} {images}, {} in store {}", Size(bytes), store.name()));
    } else if count == 0 {
        app.notice(&format!("store {} is empty", store.name()));
    }
    Ok(())
}
