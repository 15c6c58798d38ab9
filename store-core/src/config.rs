//! Configuration: a TOML file, `IMAGESTORE_*` variables, and typed settings of each backend.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, de::DeserializeOwned};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{Error, ErrorKind, Options, Result};

/// The parsed configuration of a deployment: named stores, one of them the default.
///
/// ```toml
/// default = "fast"
///
/// [defaults]                  # for every store that does not say otherwise
/// digests = ["md5", "sha512"]
///
/// [stores.fast]
/// type = "fs"
/// path = "/srv/images"
/// ```
///
/// Mistakes are found when a store is opened, so that one bad store does not stop the others; each names its key
/// and line.
#[derive(Clone, Debug)]
pub struct Settings {
    default: Option<String>,
    stores: BTreeMap<String, Section>,
}

/// One store's part of the configuration.
///
/// It keeps the text and reads it anew each time, so that errors name lines and secrets live no longer than needed.
#[derive(Clone)]
pub struct Section {
    source: Arc<Source>,
    name: String,
    /// Where the text begins to speak of it.
    at: usize,
    kind: String,
    /// Where the text says so.
    kind_at: usize,
}

struct Source {
    path: Option<PathBuf>,
    text: String,
    /// Paths of names and what they are set to.
    overrides: Vec<(String, String)>,
}

/// What stands before a variable's path into the configuration: `IMAGESTORE_STORES__FAST__PATH=/srv/images` sets
/// `path` of `[stores.fast]`, `IMAGESTORE_DEFAULT` the default store.
pub const ENV_PREFIX: &str = "IMAGESTORE_";

impl Settings {
    /// What may stand at the top of a configuration.
    const KEYS: [&'static str; 3] = ["default", "defaults", "stores"];

    /// Reads a configuration file, then lets `variables` override it.
    pub fn load(path: &Path, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::new(ErrorKind::Invalid, format!("cannot read the configuration {}: {e}", path.display()))
                .with_source(e)
        })?;
        Self::from_source(Source { path: Some(path.to_owned()), text, overrides: overrides(variables) })
    }

    /// Parses a configuration's text; no variable overrides it.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_with(text, [])
    }

    /// Parses a configuration's text, then lets `variables` override it: for programs that run without a file.
    pub fn parse_with(text: &str, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        Self::from_source(Source { path: None, text: text.to_owned(), overrides: overrides(variables) })
    }

    fn from_source(source: Source) -> Result<Self> {
        let source = Arc::new(source);
        let mut root = source.root()?;
        source.only(&root, &Self::KEYS, "")?;
        let default = match root.remove("default").map(|value| (value.span().start, value.into_inner())) {
            None => None,
            Some((at, DeValue::String(name))) => Some((at, name.into_owned())),
            Some((at, _)) => return Err(source.wrong(at, "`default` must be the name of a store")),
        };
        let defaults = source.take_table(&mut root, "defaults")?;
        source.only(&defaults, &Options::KEYS, " in `[defaults]`")?;
        let mut stores = BTreeMap::new();
        for (key, value) in source.take_table(&mut root, "stores")? {
            let at = key.span().start;
            let name = key.into_inner().into_owned();
            let DeValue::Table(table) = value.into_inner() else {
                return Err(source.wrong(at, &format!("`stores.{name}` must be a table")));
            };
            let (kind, kind_at) = match table.get("type").map(|value| (value.span().start, value.get_ref())) {
                Some((at, DeValue::String(kind))) => (kind.clone().into_owned(), at),
                Some((at, _)) => {
                    return Err(source.wrong(at, &format!("`type` of store `{name}` must be a string")));
                }
                None => return Err(source.wrong(at, &format!("store `{name}` has no `type`"))),
            };
            stores.insert(name.clone(), Section { source: Arc::clone(&source), name, at, kind, kind_at });
        }
        if let Some((at, name)) = default.as_ref().filter(|(_, name)| !stores.contains_key(name)) {
            let known: Vec<&str> = stores.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let message = format!("`default` names the store {name:?}, but the stores are: {known}");
            return Err(source.wrong(*at, &message));
        }
        let default = default.map(|(_, name)| name);
        Ok(Self { default, stores })
    }

    /// The store to use where none is named: the configured one, or the only one.
    pub fn default(&self) -> Option<&str> {
        let only = || self.stores.keys().next().filter(|_| self.stores.len() == 1);
        self.default.as_ref().or_else(only).map(String::as_str)
    }

    /// All stores' parts, by name.
    pub fn sections(&self) -> impl Iterator<Item = &Section> {
        self.stores.values()
    }

    /// One store's part.
    pub fn section(&self, name: &str) -> Result<&Section> {
        self.stores.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.stores.keys().map(String::as_str).collect();
            Error::new(ErrorKind::Invalid, format!("there is no store named {name:?}"))
                .with_hint(format!("the configuration has: {}", known.join(", ")))
        })
    }
}

impl Section {
    /// The store's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The backend's type.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The error of a type that no backend has.
    pub(crate) fn unknown_kind(&self) -> Error {
        self.source.wrong(self.kind_at, &format!("no backend of type {:?} is built in", self.kind))
    }

    /// The settings that every store understands.
    pub fn options(&self) -> Result<Options> {
        let read = self.split().and_then(|(options, _)| self.source.read(options, self.at));
        read.map_err(|error| self.named(error))
    }

    /// The backend's own settings.
    pub fn backend<C: DeserializeOwned>(&self) -> Result<C> {
        let read = self.split().and_then(|(_, own)| self.source.read(own, self.at));
        read.map_err(|error| self.named(error))
    }

    /// Adds the line to the error of a check of the backend's settings: that of the first key which the message names in
    /// backticks and which is there, else the store's own.
    pub(crate) fn placed(&self, error: Error) -> Error {
        let line_of = |own: &DeTable<'_>| {
            let named = error.message().split('`').skip(1).step_by(2);
            named.filter_map(|name| own.get_key_value(name)).map(|(key, _)| key.span().start).next()
        };
        let at = self.split().ok().and_then(|(_, own)| line_of(&own));
        let message = format!("{}: {}", self.source.place(at.unwrap_or(self.at)), error.message());
        error.reworded(message)
    }

    /// What every store understands, defaults filled in, and what is the backend's own.
    fn split(&self) -> Result<(DeTable<'_>, DeTable<'_>)> {
        let mut root = self.source.root()?;
        let mut defaults = self.source.take_table(&mut root, "defaults")?;
        let mut stores = self.source.take_table(&mut root, "stores")?;
        let mut own = self.source.take_table(&mut stores, &self.name)?;
        own.remove("type");
        let mut options = DeTable::new();
        for key in Options::KEYS {
            if let Some((key, value)) = own.remove_entry(key).or_else(|| defaults.remove_entry(key)) {
                options.insert(key, value);
            }
        }
        Ok((options, own))
    }

    fn named(&self, error: Error) -> Error {
        error.in_call(&self.name, "configure", None)
    }
}

impl fmt::Debug for Section {
    /// Without the settings, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Section").field("name", &self.name).field("type", &self.kind).finish_non_exhaustive()
    }
}

impl Source {
    /// The whole configuration, with what variables override.
    fn root(&self) -> Result<DeTable<'_>> {
        let mut root = DeTable::parse(&self.text).map_err(|e| self.error(&e, 0))?.into_inner();
        for (index, (path, value)) in self.overrides.iter().enumerate() {
            // No place of the text is behind its end: there the variables have theirs.
            apply(&mut root, path, value, self.text.len() + 1 + index)?;
        }
        Ok(root)
    }

    /// Refuses a table with other keys than the `known` ones.
    fn only(&self, table: &DeTable<'_>, known: &[&str], in_table: &str) -> Result<()> {
        let Some((key, _)) = table.iter().find(|(key, _)| !known.contains(&key.get_ref().as_ref())) else {
            return Ok(());
        };
        let (known, unknown) = (known.join("`, `"), key.get_ref());
        let message = format!("unknown key `{unknown}`{in_table}, expected one of `{known}`");
        Err(self.wrong(key.span().start, &message))
    }

    /// Takes the table `key` out of `root`; a missing one is an empty one.
    fn take_table<'a>(&self, root: &mut DeTable<'a>, key: &str) -> Result<DeTable<'a>> {
        match root.remove(key).map(|value| (value.span(), value.into_inner())) {
            None => Ok(DeTable::new()),
            Some((_, DeValue::Table(table))) => Ok(table),
            Some((span, _)) => Err(self.wrong(span.start, &format!("`{key}` must be a table"))),
        }
    }

    /// Turns a table into typed settings; `at` is where it begins, and where what is missing is missed.
    fn read<T: DeserializeOwned>(&self, table: DeTable<'_>, at: usize) -> Result<T> {
        let deserializer = toml::Deserializer::from(Spanned::new(at..at, table));
        T::deserialize(deserializer).map_err(|e| self.error(&e, at))
    }

    fn error(&self, error: &toml::de::Error, at: usize) -> Error {
        // `toml` quotes the line, which may hold a secret; the message alone names the key.
        let shown = error.to_string();
        let key =
            shown.lines().find_map(|line| line.strip_prefix("in `")).map(|line| line.trim_end_matches('`'));
        let message = match key {
            Some(key) if !error.message().contains(&format!("`{key}`")) => {
                format!("`{key}`: {}", error.message())
            }
            _ => error.message().to_owned(),
        };
        self.wrong(error.span().map_or(at, |span| span.start), &message)
    }

    fn wrong(&self, at: usize, message: &str) -> Error {
        Error::new(ErrorKind::Invalid, format!("{}: {message}", self.place(at)))
    }

    /// A line of the text, or a variable.
    fn place(&self, at: usize) -> String {
        match at.checked_sub(self.text.len() + 1).and_then(|index| self.overrides.get(index)) {
            Some((path, _)) => format!("the variable {ENV_PREFIX}{path}"),
            None => {
                let before = self.text.get(..at).unwrap_or(&self.text);
                format!("{} line {}", self.name(), 1 + before.matches('\n').count())
            }
        }
    }

    fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "configuration".to_owned(), |path| path.display().to_string())
    }
}

/// The variables that are about the configuration, without their prefix.
fn overrides(variables: impl IntoIterator<Item = (String, String)>) -> Vec<(String, String)> {
    let ours = |(name, value): (String, String)| Some((name.strip_prefix(ENV_PREFIX)?.to_owned(), value));
    variables.into_iter().filter_map(ours).collect()
}

/// Sets what a variable names: `STORES__FAST__PATH` is `stores.fast.path`. Store names match in any case, with `_`
/// for `-`. What it sets is at the place `at`.
fn apply<'a>(root: &mut DeTable<'a>, path: &str, value: &'a str, at: usize) -> Result<()> {
    let mut names = path.split("__").map(str::to_ascii_lowercase).peekable();
    match names.peek() {
        Some(first) if Settings::KEYS.contains(&first.as_str()) => {}
        Some(first) if path.contains("__") => {
            let message = format!("the variable {ENV_PREFIX}{path}: unknown key `{first}`");
            let hint = format!("known are {}", Settings::KEYS.map(|key| format!("`{key}`")).join(", "));
            return Err(Error::new(ErrorKind::Invalid, message).with_hint(hint));
        }
        _ => return Ok(()), // A variable of the command, such as IMAGESTORE_CONFIG.
    }
    let mut table = root;
    while let Some(name) = names.next() {
        let same = |key: &str| key.to_ascii_lowercase().replace('-', "_") == name;
        let key = table.keys().find(|key| same(key.get_ref())).cloned();
        let key = key.unwrap_or_else(|| Spanned::new(at..at, name.into()));
        if names.peek().is_none() {
            table.remove(key.get_ref().as_ref());
            table.insert(Spanned::new(at..at, key.into_inner()), parse_value(value, at));
            return Ok(());
        }
        let entry = table.entry(key).or_insert_with(|| Spanned::new(at..at, DeValue::Table(DeTable::new())));
        let DeValue::Table(next) = entry.get_mut() else {
            let message = format!("the variable {ENV_PREFIX}{path} does not lead to a table");
            return Err(Error::new(ErrorKind::Invalid, message));
        };
        table = next;
    }
    Ok(())
}

/// A variable's text as TOML where it is TOML, else as a string; all of it at the place `at`.
fn parse_value(text: &str, at: usize) -> Spanned<DeValue<'_>> {
    let value = DeValue::parse(text).map(Spanned::into_inner);
    moved(value.unwrap_or_else(|_| DeValue::String(text.into())), at)
}

fn moved(value: DeValue<'_>, at: usize) -> Spanned<DeValue<'_>> {
    let value = match value {
        DeValue::Array(items) => {
            DeValue::Array(items.into_iter().map(|item| moved(item.into_inner(), at)).collect())
        }
        DeValue::Table(items) => {
            let mut table = DeTable::new();
            for (key, item) in items {
                table.insert(Spanned::new(at..at, key.into_inner()), moved(item.into_inner(), at));
            }
            DeValue::Table(table)
        }
        other => other,
    };
    Spanned::new(at..at, value)
}

/// A secret value of the configuration: `"text"`, `{ env = "VARIABLE" }` or `{ file = "/path" }`.
///
/// It is fetched when the configuration is read, and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself: for the wire, never for printing.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    /// As `***`: settings are serialised to be shown, not to be read again.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// Taken as a number it would lose zeros in front, signs and underscores.
const NO_TEXT: &str =
    "a secret is a text: one that looks like a number or a date needs quotes, in a variable too";

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a secret: \"text\", { env = \"VARIABLE\" } or { file = \"/path\" }")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret::new(text))
            }
            // The value itself is not to be quoted, as serde would.
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Secret, E> {
                Err(E::custom(NO_TEXT))
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Secret, E> {
                Err(E::custom(NO_TEXT))
            }
            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Secret, E> {
                Err(E::custom(NO_TEXT))
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Secret, E> {
                Err(E::custom(NO_TEXT))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Secret, A::Error> {
                let Some((from, name)) = map.next_entry::<String, String>()? else {
                    return Err(de::Error::invalid_length(0, &self));
                };
                if map.next_key::<String>()?.is_some() {
                    return Err(de::Error::custom("a secret has one source, `env` or `file`"));
                }
                match from.as_str() {
                    "env" => std::env::var(&name).map(Secret).map_err(|_| {
                        de::Error::custom(format!("the variable {name} that holds the secret is not set"))
                    }),
                    "file" if !std::path::Path::new(&name).is_absolute() => {
                        Err(de::Error::custom(format!("the secret file {name} must be an absolute path")))
                    }
                    "file" => std::fs::read_to_string(&name)
                        .map(|text| Secret(text.trim_end_matches(['\r', '\n']).to_owned()))
                        .map_err(|e| de::Error::custom(format!("cannot read the secret file {name}: {e}"))),
                    // How TOML gives a date.
                    _ if from.starts_with("$__toml") => Err(de::Error::custom(NO_TEXT)),
                    _ => Err(de::Error::unknown_field(&from, &["env", "file"])),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Backend {
        path: String,
        #[serde(default)]
        password: Option<Secret>,
    }

    fn section(text: &str) -> Section {
        Settings::parse(text).unwrap().section("a").unwrap().clone()
    }

    #[test]
    fn a_secret_that_is_no_text_is_refused_and_not_quoted() {
        for value in ["5551234", "-5551234", "555.1234", "0x5551234", "true", "1979-05-27", "[5551234]"] {
            let section = section(&format!("[stores.a]\ntype = 'x'\npath = '/'\npassword = {value}"));
            let error = section.backend::<Backend>().unwrap_err().to_string();
            let shown = value.trim_matches(['[', ']', '-']);
            assert!(!error.contains(shown) && error.contains("`password`"), "{value}: {error}");
        }
    }

    #[test]
    fn defaults_reach_every_store_and_a_store_overrides_them() {
        let settings = Settings::parse(
            "[defaults]\nmax_size = '1GiB'\nweight = 1\n[stores.a]\ntype='x'\npath='p'\nweight=7\n[stores.b]\ntype='x'",
        )
        .unwrap();
        let a = settings.section("a").unwrap();
        assert_eq!(a.options().unwrap().weight, 7);
        assert_eq!(a.options().unwrap().max_size, Some(crate::Size(1 << 30)));
        assert_eq!(a.backend::<Backend>().unwrap().path, "p");
        assert_eq!(settings.section("b").unwrap().options().unwrap().weight, 1);
        assert_eq!(settings.default(), None);
        assert_eq!(settings.section("c").unwrap_err().hint(), Some("the configuration has: a, b"));
    }

    #[test]
    fn mistakes_name_their_key_and_line() {
        for (text, expected) in [
            (
                "[stores.a]\ntype='x'\npath='p'\nfoo=1",
                "configuration line 4: unknown field `foo`, expected `path` or `password`",
            ),
            ("[stores.a]\ntype='x'\npath=\n", "configuration line 3: "),
            (
                "[stores.a]\ntype='x'\n\npath=3",
                "configuration line 4: `path`: invalid type: integer `3`, expected a string",
            ),
            (
                "[stores.a]\ntype='x'\npath='p'\nmax_size='much'",
                "configuration line 4: `max_size`: invalid value: string \"much\", expected a size such as 1048576 or \"10GiB\"",
            ),
            (
                "[stores.a]\ntype='x'\npath='p'\n[stores.a.retry]\ntries=2",
                "configuration line 5: `retry`: unknown field `tries`",
            ),
            (
                "[stores.a]\ntype='x'\npath='p'\npassword={file='/does/not/exist'}",
                "configuration line 4: `password`: cannot read the secret file /does/not/exist",
            ),
            (
                "[stores.a]\ntype='x'\npath='p'\npassword={env='IMAGESTORE_TEST_UNSET'}",
                "configuration line 4: `password`: the variable IMAGESTORE_TEST_UNSET",
            ),
            (
                "[stores.a]\ntype='x'\npath='p'\npassword={vault='x'}",
                "configuration line 4: `password`: unknown field `vault`",
            ),
            ("[stores.a]\npath='p'", "configuration line 1: store `a` has no `type`"),
            ("[defaults]\npath='p'", "configuration line 2: unknown key `path` in `[defaults]`"),
            (
                "\n[store.a]\ntype='x'\npath='p'",
                "configuration line 2: unknown key `store`, expected one of `default`, `defaults`, `stores`",
            ),
            (
                "\ndefault='b'\n[stores.a]\ntype='x'",
                "configuration line 2: `default` names the store \"b\", but the stores are: a",
            ),
            (
                "default='b'",
                "configuration line 1: `default` names the store \"b\", but the stores are: none",
            ),
            ("default=1", "configuration line 1: `default` must be the name of a store"),
            ("stores=1", "configuration line 1: `stores` must be a table"),
            ("\n[stores.a]\ntype='x'", "configuration line 2: missing field `path`"),
            (
                "[stores.a]\ntype='x'\npath='p'\n\nmax_transfers=0",
                "configuration line 5: `max_transfers`: invalid value: integer `0`, expected at least 1",
            ),
            (
                "[stores.a]\ntype='x'\npath='p'\nretry = { attempts = 0 }",
                "configuration line 4: `retry.attempts`: invalid value: integer `0`, expected at least 1",
            ),
            (
                "[stores.a]\ntype='x'\npath='p'\n[defaults.timeout]\ncall='0s'",
                "configuration line 5: `timeout.call`: invalid value: string \"0s\", expected more than no time",
            ),
        ] {
            let error = match Settings::parse(text) {
                Err(error) => error,
                Ok(settings) => {
                    let a = settings.section("a").unwrap();
                    a.options().map(drop).and_then(|()| a.backend::<Backend>().map(drop)).unwrap_err()
                }
            };
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(
                error.message().starts_with(expected),
                "{:?}\n  does not start with {expected:?}",
                error.message()
            );
        }
    }

    #[test]
    fn a_wrong_secret_is_not_quoted() {
        let a = section("[stores.a]\ntype='x'\npath='p'\npassword = 'hunter2'\nfoo = 1 # hunter2");
        let error = a.backend::<Backend>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        let ok =
            section("[stores.a]\ntype='x'\npath='p'\npassword = 'hunter2'").backend::<Backend>().unwrap();
        assert!(!format!("{ok:?}").contains("hunter2"));
        assert_eq!(ok.password.unwrap().expose(), "hunter2");
    }

    #[test]
    fn variables_override_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imagestore.toml");
        std::fs::write(&path, "[stores.fast-one]\ntype='x'\npath='p'\n").unwrap();
        let set = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> =
                pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            Settings::load(&path, pairs)
        };
        let settings = set(&[
            ("IMAGESTORE_STORES__FAST_ONE__PATH", "/other"),
            ("IMAGESTORE_STORES__FAST_ONE__WEIGHT", "-3"),
            ("IMAGESTORE_DEFAULT", "fast-one"),
            ("IMAGESTORE_CONFIG", "not ours"),
            ("HOME", "/root"),
        ])
        .unwrap();
        let section = settings.section("fast-one").unwrap();
        assert_eq!(section.backend::<Backend>().unwrap().path, "/other");
        assert_eq!(section.options().unwrap().weight, -3);
        assert_eq!(settings.default(), Some("fast-one"));
        let none = [("IMAGESTORE_STORES__A__TYPE".to_owned(), "memory".to_owned())];
        assert_eq!(Settings::parse_with("", none).unwrap().section("a").unwrap().kind(), "memory");
        let error = set(&[("IMAGESTORE_STORES__FAST_ONE__PATH__X", "1")]).unwrap_err();
        assert!(error.message().contains("IMAGESTORE_STORES__FAST_ONE__PATH__X"));
        // A mistake that is no line's names its variable, though others stand around it.
        for (name, value, expected) in [
            ("STORES__FAST_ONE__PTH", "/x", "unknown field `pth`"),
            ("STORES__FAST_ONE__MAX_TRANSFERS", "0", "`max_transfers`: invalid value"),
            ("STORES__FAST_ONE__DIGESTS", "['md5', 'md6']", "`digests`: unknown digest \"md6\""),
            ("STORES__FAST_ONE__TIMEOUT", "{ call = '1s', chunk = '' }", "`timeout.chunk`: invalid value"),
            ("STORES__NEW__PATH", "/x", "store `new` has no `type`"),
            ("STORES__FAST_ONE__TYPE", "3", "`type` of store `fast-one` must be a string"),
            ("DEFAULT", "fats", "`default` names the store \"fats\""),
            ("STORE__FAST_ONE__PATH", "/x", "unknown key `store`"),
            ("DEFAULTS__WIEGHT", "3", "unknown key `wieght` in `[defaults]`"),
        ] {
            let others = [("IMAGESTORE_STORES__FAST_ONE__WEIGHT", "1"), ("HOME", "/root")];
            let name = format!("IMAGESTORE_{name}");
            let read = set(&[&others[..], &[(&*name, value)]].concat()).and_then(|settings| {
                let section = settings.section("fast-one")?;
                section.options().and_then(|_| section.backend::<Backend>())
            });
            let expected = format!("the variable {name}: {expected}");
            let error = read.unwrap_err();
            assert!(error.message().starts_with(&expected), "{error} does not start with {expected}");
        }
        let error = Settings::load(&dir.path().join("missing"), []).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,80}") {
            if let Ok(settings) = Settings::parse(&text) {
                for section in settings.sections() {
                    let _ = (section.options(), section.backend::<Backend>());
                }
            }
        }
    }
}
