use std::{collections::BTreeMap, fmt, future::Future, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::OnceCell;

use crate::{
    Backend, Error, ErrorKind, Result, Store,
    config::{Section, Settings},
};

/// A backend's typed settings: a serde struct with `deny_unknown_fields`.
///
/// They serialise as well, to show what is in effect; a [`Secret`](crate::Secret) among them shows as `***`.
pub trait Config: DeserializeOwned + Serialize + Send + 'static {
    /// The value of `type` that selects this backend.
    const TYPE: &'static str;

    /// Finds mistakes that the types of the settings do not: keys that exclude each other, say. Touches nothing. A key
    /// that its error names in backticks is told with its line.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Comes before [`connect`](Self::connect) where the store is `read_only`: what that would make for lack of it, such as a
    /// directory or a bucket, is not to be made. All else is refused without the driver's doing.
    fn read_only(&mut self) {}

    /// Connects, and fails early if the settings cannot work. `name` is the store's, for messages.
    fn connect(self, name: &str) -> impl Future<Output = Result<Arc<dyn Backend>>> + Send;
}

type Connect = fn(Section) -> BoxFuture<'static, Result<Arc<dyn Backend>>>;

/// What a registry does with one type of backend.
#[derive(Clone, Copy)]
struct Driver {
    connect: Connect,
    settings: fn(&Section) -> Result<toml::Table>,
}

/// The backends that a program was built with: a value, not a global.
///
/// ```
/// # use store_core::{MemoryConfig, Registry, Settings};
/// # #[tokio::main] async fn main() -> store_core::Result<()> {
/// let registry = Registry::default().with::<MemoryConfig>();
/// let settings = Settings::parse("[stores.scratch]\ntype = 'memory'\ncapacity = '1MiB'")?;
/// let store = registry.open(settings.section("scratch")?).await?;
/// assert_eq!(store.capacity().await?.total, 1 << 20);
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct Registry {
    drivers: BTreeMap<&'static str, Driver>,
    /// Types that are asked for in vain, and what to do about each.
    left_out: BTreeMap<&'static str, &'static str>,
}

impl Registry {
    /// Adds a backend; of two with one type the later one counts.
    #[must_use]
    pub fn with<C: Config>(mut self) -> Self {
        let driver = Driver {
            connect: |section| {
                let connect = async move {
                    let mut config = checked::<C>(&section)?;
                    if section.options()?.read_only {
                        config.read_only();
                    }
                    config.connect(section.name()).await
                };
                connect.boxed()
            },
            settings: |section| table(&checked::<C>(section)?),
        };
        self.drivers.insert(C::TYPE, driver);
        self
    }

    /// Names a type of backend that there is none of: one that this build was made without, or that goes by another
    /// name here. The error of a store of this type has `hint`, which says what to do about it.
    #[must_use]
    pub fn without(mut self, kind: &'static str, hint: &'static str) -> Self {
        self.left_out.insert(kind, hint);
        self
    }

    /// The types it knows.
    pub fn types(&self) -> impl Iterator<Item = &'static str> {
        self.drivers.keys().copied()
    }

    /// Opens the store that `section` configures.
    pub async fn open(&self, section: &Section) -> Result<Store> {
        let name = section.name();
        let opened = async {
            let driver = self.driver(section)?;
            let options = section.options()?;
            Ok(((driver.connect)(section.clone()).await?, options))
        };
        let (backend, options) = opened.await.map_err(|error: Error| error.in_call(name, "open", None))?;
        Ok(Store::new(name, backend, options))
    }

    /// All settings of the store that `section` configures, defaults filled in and secrets masked, without
    /// connecting to it. A mistake in them is found here as in [`open`](Self::open).
    pub fn effective(&self, section: &Section) -> Result<toml::Table> {
        let settings = || {
            let driver = self.driver(section)?;
            let mut all = (driver.settings)(section)?;
            all.insert("type".to_owned(), section.kind().into());
            all.extend(table(&section.options()?)?);
            Ok(all)
        };
        settings().map_err(|error: Error| error.in_call(section.name(), "configure", None))
    }

    fn driver(&self, section: &Section) -> Result<&Driver> {
        self.drivers.get(section.kind()).ok_or_else(|| {
            let known: Vec<_> = self.types().collect();
            let left_out = self.left_out.get(section.kind()).map(|hint| format!("{hint}; "));
            section.unknown_kind().with_hint(format!(
                "{}built in are: {}",
                left_out.unwrap_or_default(),
                known.join(", ")
            ))
        })
    }
}

fn checked<C: Config>(section: &Section) -> Result<C> {
    let config: C = section.backend()?;
    config.check().map_err(|error| section.placed(error))?;
    Ok(config)
}

fn table(settings: &impl Serialize) -> Result<toml::Table> {
    toml::Table::try_from(settings)
        .map_err(|e| Error::new(ErrorKind::Internal, "settings that TOML cannot show").with_source(e))
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.types()).finish()
    }
}

/// All stores of a deployment. Each is opened when it is first asked for, so that one that cannot be reached does not
/// stop the others; a failed one is tried again the next time.
#[derive(Clone, Debug)]
pub struct Stores {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    settings: Settings,
    open: BTreeMap<String, OnceCell<Store>>,
}

impl Stores {
    /// The stores that `settings` name, none of them opened yet.
    pub fn new(registry: Registry, settings: Settings) -> Self {
        let open = settings.sections().map(|section| (section.name().to_owned(), OnceCell::new())).collect();
        Self { inner: Arc::new(Inner { registry, settings, open }) }
    }

    /// The store named `name`, or the default one.
    pub async fn get(&self, name: Option<&str>) -> Result<Store> {
        let name = name.or_else(|| self.default()).ok_or_else(|| {
            let names: Vec<_> = self.names().collect();
            Error::new(ErrorKind::Invalid, "no store is named, and the configuration has no `default`")
                .with_hint(match names.is_empty() {
                    true => "the configuration has no stores: add a table [stores.NAME]".to_owned(),
                    false => format!("name one of: {}", names.join(", ")),
                })
        })?;
        let section = self.inner.settings.section(name)?;
        let Some(cell) = self.inner.open.get(name) else {
            return Err(Error::new(ErrorKind::Internal, "a configured store has no place"));
        };
        cell.get_or_try_init(|| self.inner.registry.open(section)).await.cloned()
    }

    /// The default store's name, if there is one.
    pub fn default(&self) -> Option<&str> {
        self.inner.settings.default()
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.inner.open.keys().map(String::as_str)
    }

    /// The configuration.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// Waits until every opened store has removed what dropped writers left.
    pub async fn settle(&self) {
        for store in self.inner.open.values().filter_map(OnceCell::get) {
            store.settle().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::{MemoryBackend, MemoryConfig, Secret};

    #[derive(Deserialize, Serialize)]
    #[serde(deny_unknown_fields)]
    struct Locked {
        password: Secret,
    }

    impl Config for Locked {
        const TYPE: &'static str = "locked";

        fn check(&self) -> Result<()> {
            let (message, hint) = match self.password.expose() {
                "" => ("`password` is empty", "choose one"),
                "1234" => ("no `key`, and a weak `password` at that", "choose another"),
                "none" => ("nothing is locked", "lock it"),
                _ => return Ok(()),
            };
            Err(Error::new(ErrorKind::Invalid, message).with_hint(hint))
        }

        async fn connect(self, _: &str) -> Result<Arc<dyn Backend>> {
            Ok(MemoryBackend::shared())
        }
    }

    #[test]
    fn the_effective_settings_have_defaults_and_no_secrets() {
        let registry = Registry::default().with::<MemoryConfig>().with::<Locked>();
        let show = |text: &str| {
            let settings = Settings::parse(text).unwrap();
            registry.effective(settings.section("a").unwrap())
        };
        let shown = show("[defaults]\nweight=3\n[stores.a]\ntype='memory'\nread_only=true").unwrap();
        assert_eq!(shown["capacity"].as_integer(), Some(1 << 30));
        assert_eq!((shown["weight"].as_integer(), shown["read_only"].as_bool()), (Some(3), Some(true)));
        assert_eq!(shown["retry"]["max_delay"].as_str(), Some("10s"));
        let shown = show("[stores.a]\ntype='locked'\npassword='hunter2'").unwrap();
        assert_eq!(shown["password"].as_str(), Some("***"));
        for (text, expected) in [
            ("[stores.a]\ntype='memory'\nfoo=1", "line 3: unknown field `foo`"),
            ("[stores.a]\ntype='memory'\nweight='x'", "line 3: `weight`"),
            ("[stores.a]\ntype='tape'", "line 2: no backend of type \"tape\" is built in"),
        ] {
            let error = show(text).unwrap_err();
            assert!(error.message().contains(expected), "{error}");
            assert_eq!(error.store(), Some("a"));
        }
    }

    #[test]
    fn what_a_check_finds_names_its_line() {
        let registry = Registry::default().with::<Locked>();
        for (text, variable, expected, hint) in [
            ("password=''", None, "configuration line 4: `password` is empty", "choose one"),
            (
                "password='1234'",
                None,
                "configuration line 4: no `key`, and a weak `password`",
                "choose another",
            ),
            ("password='none'", None, "configuration line 1: nothing is locked", "lock it"),
            ("", Some(""), "the variable IMAGESTORE_STORES__A__PASSWORD: `password` is empty", "choose one"),
        ] {
            let variables =
                variable.map(|value: &str| ("IMAGESTORE_STORES__A__PASSWORD".to_owned(), value.to_owned()));
            let text = format!("[stores.a]\ntype='locked'\n\n{text}\n");
            let settings = Settings::parse_with(&text, variables).unwrap();
            let error = registry.effective(settings.section("a").unwrap()).unwrap_err();
            assert!(error.message().starts_with(expected), "{error}");
            assert_eq!((error.kind(), error.hint()), (ErrorKind::Invalid, Some(hint)));
        }
    }

    #[test]
    fn a_backend_that_was_left_out_is_told_how_to_get() {
        let registry = Registry::default().with::<MemoryConfig>().without("tape", "build it with `--tape`");
        let hint = |kind: &str| {
            let settings = Settings::parse(&format!("[stores.a]\ntype='{kind}'")).unwrap();
            registry.effective(settings.section("a").unwrap()).unwrap_err().hint().map(str::to_owned)
        };
        assert_eq!(hint("tape").as_deref(), Some("build it with `--tape`; built in are: memory"));
        assert_eq!(hint("tap").as_deref(), Some("built in are: memory"));
    }
}
