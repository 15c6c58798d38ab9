use imagestore::{Origin, Result, Stores};
use serde_json::json;

use super::{App, Tally, args::ConfigVerb, exit::Outcome};

pub(super) fn run(app: &App, verb: ConfigVerb) -> Outcome {
    match verb {
        ConfigVerb::Check => check(app),
        ConfigVerb::Show => show(app),
        ConfigVerb::Path => path(app),
    }
}

fn check(app: &App) -> Outcome {
    let stores = app.stores()?;
    let (registry, out) = (imagestore::registry(), app.output());
    let mut tally = Tally::default();
    for section in stores.settings().sections() {
        let checked = registry.effective(section);
        out.object(&json!({ "store": section.name(), "type": section.kind(), "valid": checked.is_ok() }))?;
        match checked {
            Ok(_) if out.quiet => {}
            Ok(_) => out.line(format_args!("valid  {} ({})", section.name(), section.kind()))?,
            Err(error) => app.report(&error, &mut tally),
        }
    }
    if stores.default().is_none() {
        app.notice("no store is the default one; set `default`, or always use --store");
    }
    if tally.failed == 0 {
        app.notice(&format!(
            "{} has no mistakes; `imagestore stores` tries the stores themselves",
            name(app)
        ));
    }
    tally.outcome()
}

fn show(app: &App) -> Outcome {
    let stores = app.stores()?;
    let out = app.output();
    let mut tally = Tally::default();
    let mut all = toml::Table::new();
    if let Some(default) = stores.default() {
        all.insert("default".to_owned(), default.into());
    }
    all.insert("stores".to_owned(), effective(app, stores, &mut tally)?.into());
    out.object(&all)?;
    out.line(format_args!("# {}", name(app)))?;
    out.line(toml::to_string(&all).unwrap_or_default().trim_end())?;
    tally.outcome()
}

fn effective(app: &App, stores: &Stores, tally: &mut Tally) -> Result<toml::Table> {
    let registry = imagestore::registry();
    let mut all = toml::Table::new();
    for section in stores.settings().sections() {
        match registry.effective(section) {
            Ok(settings) => drop(all.insert(section.name().to_owned(), settings.into())),
            Err(error) => app.report(&error, tally),
        }
    }
    Ok(all)
}

fn path(app: &App) -> Outcome {
    let origin = app.origin();
    let out = app.output();
    out.object(&json!({ "path": origin.path(), "places": Origin::places() }))?;
    match origin.path() {
        Some(path) => out.line(path.display()),
        None => {
            let places: Vec<String> =
                Origin::places().iter().map(|path| path.display().to_string()).collect();
            app.notice(&format!("no configuration is used; {} would be", places.join(" or ")));
            Ok(())
        }
    }
}

fn name(app: &App) -> String {
    match app.origin() {
        Origin::BuiltIn => "the built-in configuration".to_owned(),
        origin => origin.to_string(),
    }
}
