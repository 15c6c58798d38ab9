use std::{
    env,
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
};

use crate::{Error, ErrorKind, Result, Settings, Stores, registry};

/// The variable that names the configuration file.
pub const CONFIG_VARIABLE: &str = "IMAGESTORE_CONFIG";

/// Where a configuration came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The caller named this file.
    Named(PathBuf),
    /// [`CONFIG_VARIABLE`] names this file.
    Variable(PathBuf),
    /// This file was found where configurations are looked for.
    Found(PathBuf),
    /// There is no file: one store, `local`, in the user's data directory.
    BuiltIn,
}

impl Origin {
    /// Decides which configuration counts. The first of these does:
    ///
    /// 1. `named`, if it is given;
    /// 2. `IMAGESTORE_CONFIG`, if it is set and not empty;
    /// 3. `$XDG_CONFIG_HOME/imagestore/imagestore.toml`, or below `~/.config` where that variable is not set;
    /// 4. `/etc/imagestore/imagestore.toml`;
    /// 5. none: what is [built in](built_in).
    ///
    /// A file that is named and missing is not passed over; reading it fails.
    ///
    /// ```
    /// use imagestore::Origin;
    /// use std::path::Path;
    ///
    /// let origin = Origin::find(Some(Path::new("my.toml")));
    /// assert_eq!(origin.path(), Some(Path::new("my.toml")));
    /// ```
    pub fn find(named: Option<&Path>) -> Self {
        if let Some(path) = named {
            return Self::Named(path.to_owned());
        }
        if let Some(path) = variable(CONFIG_VARIABLE) {
            return Self::Variable(path.into());
        }
        let mut places = Self::places().into_iter();
        // One that cannot be looked at may be there: reading it says why it cannot be.
        let there = |path: &PathBuf| match path.try_exists() {
            Ok(there) => there,
            Err(error) => error.kind() != io::ErrorKind::NotADirectory,
        };
        places.find(there).map_or(Self::BuiltIn, Self::Found)
    }

    /// The files that are looked for, in this order, where none is named.
    pub fn places() -> Vec<PathBuf> {
        let user = base_dir("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("imagestore/imagestore.toml"));
        user.into_iter().chain([PathBuf::from("/etc/imagestore/imagestore.toml")]).collect()
    }

    /// The file, if there is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Named(path) | Self::Variable(path) | Self::Found(path) => Some(path),
            Self::BuiltIn => None,
        }
    }

    /// Reads the configuration, then lets this process's `IMAGESTORE_*` variables override it.
    pub fn load(&self) -> Result<Settings> {
        // Variables that are no Unicode are none of ours.
        let variables =
            env::vars_os().filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?)));
        match self.path() {
            Some(path) => Settings::load(path, variables).map_err(|error| match self {
                // A variable that overrides a setting is not in the file.
                Self::Variable(_) if !error.message().starts_with("the variable") => {
                    error.with_hint(format!("{CONFIG_VARIABLE} names this file"))
                }
                Self::Named(path) if !path.exists() => error.with_hint(format!(
                    "check the path; where none is given, {} is read",
                    Self::places()
                        .iter()
                        .map(|path| path.display().to_string())
                        .collect::<Vec<_>>()
                        .join(" or ")
                )),
                _ => error,
            }),
            None => Settings::parse_with(&built_in()?, variables),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path() {
            Some(path) => path.display().fmt(f),
            None => f.write_str("built in"),
        }
    }
}

/// The settings in effect and where they came from; see [`Origin::find`] for the order.
///
/// ```
/// # fn main() -> imagestore::Result<()> {
/// # let dir = std::env::temp_dir().join(format!("imagestore-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir).unwrap();
/// let file = dir.join("imagestore.toml");
/// std::fs::write(&file, "[stores.scratch]\ntype = 'memory'\n").unwrap();
/// let (settings, origin) = imagestore::configuration(Some(&file))?;
/// assert_eq!(settings.default(), Some("scratch"));
/// assert_eq!(origin.path(), Some(&*file));
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok(()) }
/// ```
pub fn configuration(named: Option<&Path>) -> Result<(Settings, Origin)> {
    let origin = Origin::find(named);
    Ok((origin.load()?, origin))
}

/// The stores of the configuration in effect, with every backend that is [built in](registry). Nothing is connected
/// before a store is asked for.
///
/// ```no_run
/// # #[tokio::main] async fn main() -> imagestore::Result<()> {
/// let stores = imagestore::open(None)?;
/// let store = stores.get(None).await?; // the default one
/// let at = store.locate(&"my-image".parse()?).await?;
/// println!("{} bytes", store.stat(&at).await?.size);
/// # Ok(()) }
/// ```
pub fn open(named: Option<&Path>) -> Result<Stores> {
    let (settings, _) = configuration(named)?;
    Ok(Stores::new(registry(), settings))
}

/// The configuration that counts where no file does: one filesystem store, named `local`, in the user's
/// [data directory](data_dir). The directory is created when the store is first used.
///
/// ```
/// # fn main() -> imagestore::Result<()> {
/// # if std::env::var_os("HOME").is_none() { return Ok(()) }
/// let text = imagestore::built_in()?;
/// assert_eq!(imagestore::Settings::parse(&text)?.default(), Some("local"));
/// # Ok(()) }
/// ```
pub fn built_in() -> Result<String> {
    let path = data_dir()?;
    let path = path.to_str().ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("the data directory {} is not Unicode", path.display()))
            .with_hint("write a configuration, and name it with --config or IMAGESTORE_CONFIG")
    })?;
    // A basic string of TOML: quotes, backslashes and control characters are escaped as in Rust.
    let path: String = path
        .chars()
        .map(|c| match c {
            '"' | '\\' => format!("\\{c}"),
            c if c.is_control() => format!("\\u{:04X}", u32::from(c)),
            c => c.to_string(),
        })
        .collect();
    Ok(format!("default = \"local\"\n\n[stores.local]\ntype = \"fs\"\npath = \"{path}\"\n"))
}

/// `$XDG_DATA_HOME/imagestore`, or `~/.local/share/imagestore` where that variable is not set.
pub fn data_dir() -> Result<PathBuf> {
    base_dir("XDG_DATA_HOME", ".local/share").map(|dir| dir.join("imagestore")).ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "there is no configuration, and no home directory to do without one")
            .with_hint("set HOME, or name a configuration with --config or IMAGESTORE_CONFIG")
    })
}

/// A directory of the XDG Base Directory Specification, which ignores relative paths.
fn base_dir(name: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    variable(name).and_then(absolute).or_else(|| Some(variable("HOME").and_then(absolute)?.join(below_home)))
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}
