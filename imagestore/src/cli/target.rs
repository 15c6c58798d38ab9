//! From what stands on the command line to a blob in a store.

use imagestore::{BlobId, Error, ErrorKind, Location, Reader, Result, Store};

use super::{App, args::Target};

/// A blob that an argument names.
pub(super) struct Found {
    pub(super) store: Store,
    pub(super) at: Location,
}

impl Found {
    pub(super) async fn open(&self) -> Result<Reader> {
        self.store.open(&self.at).await
    }
}

impl App {
    /// Finds the blob that `target` names in the store named `store`, or where it can only be.
    pub(super) async fn find(&self, target: &Target, store: Option<&str>) -> Result<Found> {
        match (target, store) {
            (Target::Id(id), _) => self.find_id(id, store).await,
            (Target::Location(at), Some(_)) => Ok(Found { store: self.store(store).await?, at: at.clone() }),
            (Target::Location(at), None) => self.find_location(at).await,
        }
    }

    async fn find_id(&self, id: &BlobId, name: Option<&str>) -> Result<Found> {
        let store = self.store(name).await?;
        let at = store.locate(id).await.map_err(|error| self.not_here(error, &store))?;
        Ok(Found { store, at })
    }

    /// Adds where else the blob could be.
    pub(super) fn not_here(&self, error: Error, store: &Store) -> Error {
        let others = || -> Vec<&str> {
            let names = self.stores().map(|stores| stores.names().collect()).unwrap_or_default();
            let names: Vec<&str> = names;
            names.into_iter().filter(|name| *name != store.name()).collect()
        };
        match error.kind() {
            ErrorKind::NotFound if others().is_empty() => {
                error.with_hint("`imagestore ls` lists what is there")
            }
            ErrorKind::NotFound => error.with_hint(format!(
                "to look in another store, add --store with one of: {}",
                others().join(", ")
            )),
            _ => error,
        }
    }

    /// Tries the stores that take such a location, the default one first, then by weight, and of equals those that may also
    /// delete it first.
    async fn find_location(&self, at: &Location) -> Result<Found> {
        let stores = self.stores()?;
        let mut names: Vec<&str> = stores.names().collect();
        let rank = |name: &str| {
            let options = stores.settings().section(name).and_then(|section| section.options());
            options.map_or((0, false), |options| (-i64::from(options.weight), options.read_only))
        };
        names.sort_by_key(|name| (stores.default() != Some(name), rank(name)));
        let (mut schemes, mut unreachable, mut failed) = (Vec::new(), None, None);
        for name in names {
            let store = match self.store(Some(name)).await {
                Ok(store) => store,
                Err(error) => {
                    unreachable.get_or_insert(error);
                    continue;
                }
            };
            let info = store.info();
            if info.scheme != at.scheme() && !info.also.contains(&at.scheme()) {
                schemes.push(format!("{name} ({}:)", info.scheme));
                continue;
            }
            match store.open(at).await {
                Ok(_) => return Ok(Found { store, at: at.clone() }),
                // It is there; whether damage matters is for the verb to say.
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    return Ok(Found { store, at: at.clone() });
                }
                // Another store may have it. Of several errors, one that says more than "not mine" is to be reported.
                Err(error) => {
                    let known =
                        failed.as_ref().is_some_and(|known: &Error| known.kind() != ErrorKind::Invalid);
                    failed = if known { failed } else { Some(error) };
                }
            }
        }
        let known = failed.as_ref().is_some_and(|known| known.kind() != ErrorKind::Invalid);
        Err(match (failed, unreachable) {
            (Some(failed), None) => failed,
            (Some(failed), Some(_)) if known => failed,
            (_, Some(unreachable)) => {
                let message = format!("no store that can be reached has a blob at {at}");
                Error::new(unreachable.kind(), message)
                    .with_source(unreachable)
                    .with_hint("`imagestore stores` tells which stores can be reached")
            }
            (None, None) => {
                let message = format!("no store keeps blobs at {}: locations", at.scheme());
                Error::new(ErrorKind::Invalid, message)
                    .with_hint(format!("the stores are: {}", schemes.join(", ")))
            }
        })
    }
}
