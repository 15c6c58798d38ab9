use futures::{StreamExt, stream};
use imagestore::{Capabilities, Capacity, ErrorKind, Result, Size, Store};
use serde_json::json;

use super::{App, Tally, exit::Outcome};

/// How many stores are connected to at once.
const AT_ONCE: usize = 16;

pub(super) async fn run(app: &App) -> Outcome {
    let stores = app.stores()?;
    let settings = stores.settings();
    let sections: Vec<_> = settings.sections().collect();
    let width = sections.iter().map(|section| section.name().len()).max().unwrap_or_default().max(5);
    let out = app.output();
    if sections.is_empty() {
        app.notice(&format!("no store is configured in {}", app.origin()));
        return Ok(());
    }
    out.line(format_args!("  {:width$}  {:8}  {:>10}  {:>10}  ABILITIES", "STORE", "TYPE", "FREE", "TOTAL"))?;
    let mut tally = Tally::default();
    let looks: Vec<_> = sections.iter().map(|section| look(app, section.name())).collect();
    let mut looks = stream::iter(looks).buffered(AT_ONCE);
    for section in &sections {
        let Some(look) = looks.next().await else { break };
        let (name, kind) = (section.name(), section.kind());
        let default = stores.default() == Some(name);
        let mark = if default { '*' } else { ' ' };
        match look {
            Ok((store, capacity)) => {
                let (info, options) = (store.info(), store.options());
                out.object(&json!({
                    "store": name, "type": kind, "default": default, "reachable": true,
                    "description": options.description, "read_only": options.read_only, "info": info,
                    "capacity": capacity,
                }))?;
                let size = |bytes: Option<u64>| bytes.map_or("?".to_owned(), |bytes| Size(bytes).to_string());
                let (free, total) = (size(capacity.map(|c| c.free)), size(capacity.map(|c| c.total)));
                let abilities = abilities(&info.can, options.read_only);
                out.line(format_args!(
                    "{mark} {name:width$}  {kind:8}  {free:>10}  {total:>10}  {abilities}"
                ))?;
                if !options.description.is_empty() {
                    out.line(format_args!("  {:width$}  {}", "", options.description))?;
                }
            }
            Err(error) => {
                out.object(&json!({
                    "store": name, "type": kind, "default": default, "reachable": false,
                    "error": { "kind": error.kind().as_str(), "message": error.message(), "hint": error.hint() },
                }))?;
                out.line(format_args!(
                    "{mark} {name:width$}  {kind:8}  {:>10}  {:>10}  not reachable",
                    "", ""
                ))?;
                app.report(&error, &mut tally);
            }
        }
    }
    if stores.default().is_none() {
        app.notice("there is no default store; set `default` in the configuration, or use --store");
    }
    tally.outcome()
}

/// Opens a store and measures it, where it can be measured.
async fn look(app: &App, name: &str) -> Result<(Store, Option<Capacity>)> {
    let store = app.store(Some(name)).await?;
    match store.capacity().await {
        Ok(capacity) => Ok((store, Some(capacity))),
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok((store, None)),
        Err(error) => Err(error),
    }
}

fn abilities(can: &Capabilities, read_only: bool) -> String {
    if read_only {
        return "read only".to_owned();
    }
    let abilities = [
        (true, "read"),
        (can.write, "write"),
        (can.delete, "delete"),
        (can.list, "list"),
        (can.metadata, "digests"),
    ];
    abilities.iter().filter(|(can, _)| *can).map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
}
