//! Where credentials come from: the store's settings, `clouds.yaml`, or the environment, as OpenStack's clients read them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::IgnoredAny};
use store_core::{Error, ErrorKind, Result, Secret};

use crate::{
    SwiftConfig,
    auth::{Access, Identity, Named},
    config::{AuthVersion, Interface, check_url},
};

/// Finds the credentials of a store. Without any in its settings, those of the environment count.
pub(crate) fn find(config: &SwiftConfig, env: &dyn Fn(&str) -> Option<String>) -> Result<Access> {
    let own = Given::of_config(config);
    // A variable that is empty is not set, to OpenStack's clients too.
    let env = &|name: &str| env(name).filter(|text| !text.is_empty());
    let cloud = config.cloud.clone().or_else(|| env("OS_CLOUD").filter(|_| own.is_empty()));
    let given = match cloud {
        Some(name) if own.is_empty() => Given::of_cloud(&name, config.clouds_file.as_deref(), env)?,
        Some(_) => {
            let text = "`cloud` names credentials, and the settings have others";
            return Err(Error::new(ErrorKind::Invalid, text).with_hint("keep one of both"));
        }
        None if own.is_empty() => Given::of_env(env)?,
        None => own,
    };
    given.access(config)
}

/// Credentials as they were written down, wherever that was.
#[derive(Default)]
struct Given {
    auth_url: Option<String>,
    v1: Option<bool>,
    user: Named,
    password: Option<Secret>,
    project: Named,
    app_id: Option<String>,
    app_name: Option<String>,
    app_secret: Option<Secret>,
    token: Option<Secret>,
    region: Option<String>,
    interface: Option<String>,
    service_type: Option<String>,
    endpoint: Option<String>,
    ca_file: Option<PathBuf>,
}

impl Given {
    fn of_config(config: &SwiftConfig) -> Self {
        Self {
            auth_url: config.auth_url.clone(),
            user: Named {
                id: config.user_id.clone(),
                name: config.user.clone(),
                domain: config.user_domain.clone(),
                domain_id: config.user_domain_id.clone(),
            },
            password: config.password.clone(),
            project: Named {
                id: config.project_id.clone(),
                name: config.project.clone(),
                domain: config.project_domain.clone(),
                domain_id: config.project_domain_id.clone(),
            },
            app_id: config.application_credential_id.clone(),
            app_name: config.application_credential_name.clone(),
            app_secret: config.application_credential_secret.clone(),
            token: config.token.clone(),
            ..Self::default()
        }
    }

    /// Whether nothing is said of who asks: half of it is not filled up from elsewhere, be it a project alone.
    fn is_empty(&self) -> bool {
        let nobody = Named::default();
        let texts = [&self.auth_url, &self.app_id, &self.app_name];
        let secrets = [&self.token, &self.password, &self.app_secret];
        texts.iter().all(|text| text.is_none())
            && secrets.iter().all(|secret| secret.is_none())
            && self.user == nobody
            && self.project == nobody
    }

    /// The variables that `openstack`, and `swift` with version 1, read.
    fn of_env(env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let get = |names: &[&str]| names.iter().find_map(|name| env(name));
        if let (Some(url), Some(user)) = (get(&["ST_AUTH"]), get(&["ST_USER"])) {
            return Ok(Self {
                auth_url: Some(url),
                v1: Some(true),
                user: Named { name: Some(user), ..Named::default() },
                password: get(&["ST_KEY"]).map(Secret::new),
                ca_file: get(&["OS_CACERT"]).map(Into::into),
                ..Self::default()
            });
        }
        for name in ["OS_TRUST_ID", "OS_SYSTEM_SCOPE", "OS_PASSCODE", "OS_CERT", "OS_KEY"] {
            if get(&[name]).is_some() {
                return Err(not_followed(name, "the environment"));
            }
        }
        let default =
            || (get(&["OS_DEFAULT_DOMAIN_NAME"]), get(&["OS_DEFAULT_DOMAIN_ID", "OS_DEFAULT_DOMAIN"]));
        let in_domain = |id: Option<String>, name: Option<String>, kind: &str| {
            let (by_name, by_id) = (format!("OS_{kind}_DOMAIN_NAME"), format!("OS_{kind}_DOMAIN_ID"));
            named(id, name, [(get(&[&by_name]), get(&[&by_id])), default()])
        };
        let version = get(&["OS_IDENTITY_API_VERSION", "OS_AUTH_VERSION"]);
        Ok(Self {
            auth_url: get(&["OS_AUTH_URL"]),
            v1: is_v1(get(&["OS_AUTH_TYPE"]).as_deref(), version.as_deref())?,
            user: in_domain(get(&["OS_USER_ID"]), get(&["OS_USERNAME"]), "USER"),
            password: get(&["OS_PASSWORD"]).map(Secret::new),
            project: in_domain(
                get(&["OS_PROJECT_ID", "OS_TENANT_ID"]),
                get(&["OS_PROJECT_NAME", "OS_TENANT_NAME"]),
                "PROJECT",
            ),
            app_id: get(&["OS_APPLICATION_CREDENTIAL_ID"]),
            app_name: get(&["OS_APPLICATION_CREDENTIAL_NAME"]),
            app_secret: get(&["OS_APPLICATION_CREDENTIAL_SECRET"]).map(Secret::new),
            token: get(&["OS_AUTH_TOKEN"]).map(Secret::new).filter(|_| get(&["OS_STORAGE_URL"]).is_some()),
            region: get(&["OS_REGION_NAME"]),
            interface: get(&["OS_INTERFACE", "OS_ENDPOINT_TYPE"]),
            service_type: get(&["OS_SERVICE_TYPE"]),
            endpoint: get(&["OS_STORAGE_URL"]),
            ca_file: get(&["OS_CACERT"]).map(Into::into),
        })
    }

    /// An entry of `clouds.yaml`, with what `secure.yaml` beside it adds.
    fn of_cloud(name: &str, file: Option<&Path>, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let path = match file {
            Some(path) => path.to_owned(),
            None => usual_place(env).ok_or_else(|| {
                Error::new(ErrorKind::Invalid, format!("there is no clouds.yaml for `cloud` = {name:?}"))
                    .with_hint("put it into ~/.config/openstack, or set `clouds_file`")
            })?,
        };
        let missing = || {
            Error::new(ErrorKind::Invalid, format!("{} has no cloud named {name:?}", path.display()))
                .with_hint("`cloud` names an entry under `clouds:`")
        };
        let cloud = read(&path)?.clouds.remove(name).ok_or_else(missing)?;
        let secure = path.with_file_name("secure.yaml");
        let secret = match secure.exists() {
            true => read(&secure)?.clouds.remove(name).unwrap_or_default(),
            false => Cloud::default(),
        };
        Self::of_entries(cloud, secret)
    }

    fn of_entries(cloud: Cloud, secret: Cloud) -> Result<Self> {
        for cloud in [&cloud, &secret] {
            cloud.check()?;
        }
        let cloud = secret.over(cloud);
        let region = cloud.region()?;
        let version = cloud.identity_api_version.as_ref().map(Text::text);
        let v1 = is_v1(cloud.auth_type.as_deref(), version.as_deref())?;
        let a = cloud.auth;
        let of_all = (a.domain_name, a.domain_id);
        let default = (a.default_domain_name, a.default_domain);
        let of_user = (a.user_domain_name, a.user_domain_id);
        let of_project = (a.project_domain_name, a.project_domain_id);
        Ok(Self {
            auth_url: a.auth_url,
            v1,
            user: named(a.user_id, a.username, [of_user, of_all.clone(), default.clone()]),
            password: a.password.map(|text| Secret::new(text.text())),
            project: named(
                a.project_id.or(a.tenant_id),
                a.project_name.or(a.tenant_name),
                [of_project, of_all, default],
            ),
            app_id: a.application_credential_id,
            app_name: a.application_credential_name,
            app_secret: a.application_credential_secret.map(|text| Secret::new(text.text())),
            token: a.token.map(Secret::new),
            region,
            interface: cloud.object_store_interface.or(cloud.interface).or(cloud.endpoint_type),
            service_type: cloud.object_store_service_type,
            endpoint: cloud.object_store_endpoint_override.or(cloud.object_store_endpoint),
            ca_file: cloud.cacert.map(Into::into),
        })
    }

    fn access(self, config: &SwiftConfig) -> Result<Access> {
        let invalid = |text: &'static str| Error::new(ErrorKind::Invalid, text);
        let endpoint = config.endpoint.clone().or(self.endpoint);
        let v1 = match config.auth_version {
            AuthVersion::Auto => self.v1,
            AuthVersion::V1 => Some(true),
            AuthVersion::V3 => Some(false),
        };
        let url = self.auth_url.unwrap_or_default();
        let identity = if let Some(token) = self.token {
            if endpoint.is_none() {
                return Err(invalid("a `token` says nothing of where Swift is: set `endpoint`"));
            }
            Identity::Token(token)
        } else if url.is_empty() {
            return Err(invalid("`auth_url` is missing")
                .with_hint("set it, or `cloud`, or OS_CLOUD or OS_AUTH_URL in the environment"));
        } else if let Some(secret) = self.app_secret {
            let by_name = self.app_name.is_some() && !self.user.is_empty();
            if self.app_id.is_none() && !by_name {
                return Err(invalid("`application_credential_id` is missing, or a name and its user"));
            }
            Identity::Application { id: self.app_id, name: self.app_name, user: self.user, secret }
        } else {
            let password = self.password.ok_or_else(|| invalid("`password` is missing"))?;
            if self.user.is_empty() {
                return Err(invalid("`user` is missing, or `user_id`"));
            }
            // Ceph's gateway listens at an address without the letter, too.
            let looks_old = || url.contains("/v1") || url.trim_end_matches('/').ends_with("/auth/1.0");
            match v1.unwrap_or_else(looks_old) {
                true => Identity::V1 {
                    user: self.user.name.ok_or_else(|| invalid("version 1 knows users by name only"))?,
                    key: password,
                },
                false if self.project.is_empty() => {
                    return Err(invalid("`project` is missing, or `project_id`"));
                }
                false => Identity::Password { user: self.user, password, project: self.project },
            }
        };
        if !url.is_empty() {
            check_url("auth_url", &url)?;
        }
        if let Some(endpoint) = &endpoint {
            check_url("endpoint", endpoint)?;
        }
        let service = config.service_user.as_ref().zip(config.service_password.clone());
        let in_domain = |name: String| {
            let domain = config.service_domain.clone();
            Named { name: Some(name), domain, ..Named::default() }
        };
        let service = service.map(|(user, password)| Identity::Password {
            user: in_domain(user.clone()),
            password,
            project: in_domain(config.service_project.clone().unwrap_or_else(|| "service".to_owned())),
        });
        if service.is_some() && (url.is_empty() || matches!(identity, Identity::V1 { .. })) {
            return Err(invalid("`service_user` needs Keystone at an `auth_url`"));
        }
        let interface = self.interface.as_deref().map(|text| text.trim_end_matches("URL").to_lowercase());
        Ok(Access {
            url,
            identity,
            service,
            region: config.region.clone().or(self.region),
            interface: match config.interface {
                Some(own) => own.as_str().to_owned(),
                None => interface.unwrap_or_else(|| Interface::default().as_str().to_owned()),
            },
            service_type: config
                .service_type
                .clone()
                .or(self.service_type)
                .unwrap_or_else(|| "object-store".to_owned()),
            endpoint,
            ca_file: config.ca_file.clone().or(self.ca_file),
        })
    }
}

/// A user or a project, in the first domain that is said by name or by id.
fn named<const N: usize>(
    id: Option<String>,
    name: Option<String>,
    domains: [(Option<String>, Option<String>); N],
) -> Named {
    let said = domains.into_iter().find(|(name, id)| name.is_some() || id.is_some());
    let (domain, domain_id) = said.unwrap_or_default();
    Named { id, name, domain, domain_id }
}

fn usual_place(env: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    if let Some(path) = env("OS_CLIENT_CONFIG_FILE") {
        return Some(path.into());
    }
    let home = env("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| env("HOME").map(|home| Path::new(&home).join(".config")));
    let mut folders = vec![PathBuf::from(".")];
    folders.extend(home.map(|home| home.join("openstack")));
    folders.push("/etc/openstack".into());
    let files = folders.iter().flat_map(|folder| [folder.join("clouds.yaml"), folder.join("clouds.yml")]);
    files.into_iter().find(|path| path.exists())
}

fn read(path: &Path) -> Result<Clouds> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::from_io(format_args!("cannot read {}", path.display()), e))
        .map_err(|e| Error::new(ErrorKind::Invalid, e.message().to_owned()).with_source(e))?;
    parse(&text).map_err(|()| {
        // The parser's own words quote lines, which may hold a password.
        Error::new(ErrorKind::Invalid, format!("{} is no clouds.yaml", path.display()))
            .with_hint("it is YAML with an entry `clouds:`; `openstack configuration show` reads it too")
    })
}

fn parse(text: &str) -> Result<Clouds, ()> {
    serde_saphyr::from_str(text).map_err(drop)
}

#[derive(Default, Deserialize)]
struct Clouds {
    #[serde(default)]
    clouds: BTreeMap<String, Cloud>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Cloud {
    auth: Auth,
    auth_type: Option<String>,
    identity_api_version: Option<Text>,
    region_name: Option<String>,
    regions: Option<Vec<Region>>,
    interface: Option<String>,
    endpoint_type: Option<String>,
    object_store_interface: Option<String>,
    object_store_region_name: Option<String>,
    object_store_service_type: Option<String>,
    object_store_endpoint_override: Option<String>,
    object_store_endpoint: Option<String>,
    cacert: Option<String>,
    verify: Option<bool>,
    insecure: Option<bool>,
    // What changes whom one speaks to, or as whom, and is not followed.
    profile: Option<IgnoredAny>,
    cloud: Option<IgnoredAny>,
    cert: Option<IgnoredAny>,
    key: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Region {
    Name(String),
    Full {
        name: String,
        #[serde(default)]
        values: BTreeMap<String, IgnoredAny>,
    },
}

/// What the first says, and what only the second says.
macro_rules! over {
    ($first:ident, $second:ident: $($key:ident),* $(; $inner:ident: $merged:expr)?) => {
        Self { $($key: $first.$key.or($second.$key),)* $($inner: $merged)? }
    };
}

impl Auth {
    fn over(self, other: Self) -> Self {
        over!(self, other: auth_url, username, user_id, password, token, project_name, project_id, tenant_name, tenant_id,
            domain_name, domain_id, default_domain, default_domain_name, user_domain_name, user_domain_id,
            project_domain_name, project_domain_id, application_credential_id, application_credential_name,
            application_credential_secret, trust_id, system_scope, passcode)
    }
}

impl Cloud {
    fn over(self, other: Self) -> Self {
        over!(self, other: auth_type, identity_api_version, region_name, regions, interface, endpoint_type,
            object_store_interface, object_store_region_name, object_store_service_type,
            object_store_endpoint_override, object_store_endpoint, cacert, verify, insecure, profile, cloud, cert, key;
            auth: self.auth.over(other.auth))
    }

    /// Finds what would be passed over in silence.
    fn check(&self) -> Result<()> {
        if self.verify == Some(false) || self.insecure == Some(true) {
            let key = if self.verify == Some(false) { "verify: false" } else { "insecure: true" };
            return Err(Error::new(ErrorKind::Invalid, format!("`{key}` in clouds.yaml is not followed"))
                .with_hint("name the authority that signed the server's certificate in `cacert`"));
        }
        let given = [
            ("profile", &self.profile),
            ("cloud", &self.cloud),
            ("cert", &self.cert),
            ("key", &self.key),
            ("trust_id", &self.auth.trust_id),
            ("system_scope", &self.auth.system_scope),
            ("passcode", &self.auth.passcode),
        ];
        match given.iter().find(|(_, value)| value.is_some()) {
            Some((key, _)) => Err(not_followed(key, "clouds.yaml")),
            None => Ok(()),
        }
    }

    /// The region that is named, else the first of the list.
    fn region(&self) -> Result<Option<String>> {
        let named = self.object_store_region_name.as_ref().or(self.region_name.as_ref());
        let names: Vec<&String> = self
            .regions
            .iter()
            .flatten()
            .map(|region| match region {
                Region::Name(name) => Ok(name),
                Region::Full { name, values } if values.is_empty() => Ok(name),
                Region::Full { .. } => Err(not_followed("regions: values", "clouds.yaml")),
            })
            .collect::<Result<_>>()?;
        match named {
            Some(name) if !names.is_empty() && !names.contains(&name) => {
                let text = format!("the region {name:?} is none of the cloud's `regions`");
                Err(Error::new(ErrorKind::Invalid, text).with_hint("correct `region_name` in clouds.yaml"))
            }
            named => Ok(named.or(names.first().copied()).cloned()),
        }
    }
}

/// Passing it over would lead elsewhere than it does with OpenStack's own clients.
fn not_followed(key: &str, whose: &str) -> Error {
    let hint = match key {
        "profile" | "cloud" => "write what the profile says, such as `auth_url`, into the entry itself",
        "cert" | "key" | "OS_CERT" | "OS_KEY" => "certificates of clients are not supported",
        "trust_id" | "OS_TRUST_ID" => {
            "trusts are not supported: use an application credential, or `service_user` with a token"
        }
        _ => "remove it, or use other credentials",
    };
    Error::new(ErrorKind::Invalid, format!("`{key}` in {whose} is not followed")).with_hint(hint)
}

/// Whether tokens are had with version 1, if that is said.
fn is_v1(auth_type: Option<&str>, version: Option<&str>) -> Result<Option<bool>> {
    match (auth_type, version) {
        (Some("v1password"), _) => Ok(Some(true)),
        (Some("v3password" | "v3token" | "v3applicationcredential"), _) => Ok(Some(false)),
        (Some("password" | "token"), None) | (None, None) => Ok(None),
        (Some("password" | "token") | None, Some(version)) => match version.chars().next() {
            Some('1') => Ok(Some(true)),
            Some('3') => Ok(Some(false)),
            _ => {
                Err(Error::new(ErrorKind::Invalid, format!("version {version:?} of Keystone is not spoken"))
                    .with_hint("set the version of the identity API to 3"))
            }
        },
        (Some(other), _) => {
            let text = format!("credentials of the type {other:?} are not supported");
            Err(Error::new(ErrorKind::Invalid, text)
                .with_hint("use a password, an application credential, or a token"))
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth_url: Option<String>,
    username: Option<String>,
    user_id: Option<String>,
    password: Option<Text>,
    token: Option<String>,
    project_name: Option<String>,
    project_id: Option<String>,
    tenant_name: Option<String>,
    tenant_id: Option<String>,
    domain_name: Option<String>,
    domain_id: Option<String>,
    default_domain: Option<String>,
    default_domain_name: Option<String>,
    user_domain_name: Option<String>,
    user_domain_id: Option<String>,
    project_domain_name: Option<String>,
    project_domain_id: Option<String>,
    application_credential_id: Option<String>,
    application_credential_name: Option<String>,
    application_credential_secret: Option<Text>,
    trust_id: Option<IgnoredAny>,
    system_scope: Option<IgnoredAny>,
    passcode: Option<IgnoredAny>,
}

/// Passwords and versions are often written without quotes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Quoted(String),
    Whole(i64),
    Fraction(f64),
}

impl Text {
    fn text(&self) -> String {
        match self {
            Self::Quoted(text) => text.clone(),
            Self::Whole(number) => number.to_string(),
            Self::Fraction(number) => number.to_string(),
        }
    }
}

/// Lets a text be read as `clouds.yaml`, and each of its entries as credentials.
#[cfg(any(test, fuzzing))]
pub(crate) fn parse_all(text: &str) {
    if let Ok(Clouds { clouds }) = parse(text) {
        for cloud in clouds.into_values() {
            let given = Given::of_entries(cloud, Cloud::default());
            let _ = given.and_then(|given| given.access(&SwiftConfig::new("c")));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLOUDS: &str = r#"
clouds:
  images:
    auth:
      auth_url: http://keystone:5000/v3
      username: glance
      project_name: images
      user_domain_name: Default
      project_domain_name: Default
    region_name: RegionOne
    interface: internalURL
    identity_api_version: 3
    cacert: /etc/ssl/cloud.pem
  app:
    auth_type: v3applicationcredential
    auth:
      auth_url: http://keystone:5000/v3
      application_credential_id: abc
      application_credential_secret: hunter2
  old:
    auth_type: v1password
    auth: {auth_url: "http://swift/auth/v1.0", username: "images:glance", password: 123456}
  regional:
    regions: [one, {name: two}]
    object_store_service_type: objects
    object_store_interface: admin
    interface: internal
    object_store_endpoint: http://swift
    auth: {auth_url: "https://k/v3", username: u, password: p, project_name: x}
"#;

    fn config() -> SwiftConfig {
        SwiftConfig::new("c")
    }

    #[test]
    fn clouds_are_read_with_their_secrets_beside_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("clouds.yaml"), CLOUDS).unwrap();
        let secure = "clouds: {images: {auth: {password: hunter3, project_domain_name: Secret,
            auth_url: 'https://keystone/v3'}, region_name: RegionTwo}}";
        std::fs::write(dir.path().join("secure.yaml"), secure).unwrap();
        let path = dir.path().join("clouds.yaml").display().to_string();
        let env = |name: &str| (name == "OS_CLIENT_CONFIG_FILE").then(|| path.clone());
        let find = |cloud: &str| {
            let mut config = config();
            config.cloud = Some(cloud.to_owned());
            super::find(&config, &env)
        };
        let images = find("images").unwrap();
        // What is beside them counts more, whatever it is.
        assert_eq!((images.region.as_deref(), images.interface.as_str()), (Some("RegionTwo"), "internal"));
        assert_eq!(images.url, "https://keystone/v3");
        assert_eq!(images.ca_file.as_deref(), Some(Path::new("/etc/ssl/cloud.pem")));
        let Identity::Password { user, password, project } = &images.identity else { panic!("no password") };
        assert_eq!((user.name.as_deref(), project.domain.as_deref()), (Some("glance"), Some("Secret")));
        assert_eq!(password.expose(), "hunter3");
        assert!(matches!(find("app").unwrap().identity, Identity::Application { id: Some(_), .. }));
        let Identity::V1 { key, .. } = find("old").unwrap().identity else { panic!("not version 1") };
        assert_eq!(key.expose(), "123456");
        let regional = find("regional").unwrap();
        assert_eq!((regional.region.as_deref(), regional.interface.as_str()), (Some("one"), "admin"));
        assert_eq!(
            (regional.service_type.as_str(), regional.endpoint.as_deref()),
            ("objects", Some("http://swift"))
        );
        assert_eq!(find("missing").unwrap_err().kind(), ErrorKind::Invalid);
        let mut own = config();
        (own.cloud, own.interface) = (Some("images".to_owned()), Some(Interface::Public));
        own.service_type = Some("object-store".to_owned());
        assert_eq!(super::find(&own, &env).unwrap().interface, "public");
        own.cloud = Some("regional".to_owned());
        assert_eq!(super::find(&own, &env).unwrap().service_type, "object-store");
    }

    #[test]
    fn a_domain_that_is_said_counts_more_than_the_default() {
        let env = |name: &str| {
            Some(match name {
                "OS_AUTH_URL" => "http://keystone:5000/v3".to_owned(),
                "OS_USERNAME" | "OS_PASSWORD" | "OS_PROJECT_NAME" => "x".to_owned(),
                "OS_USER_DOMAIN_NAME" => "Users".to_owned(),
                "OS_DEFAULT_DOMAIN" => "default".to_owned(),
                "OS_CLOUD" | "OS_CLIENT_CONFIG_FILE" => String::new(),
                _ => return None,
            })
        };
        let Identity::Password { user, project, .. } = find(&config(), &env).unwrap().identity else {
            panic!("no password")
        };
        assert_eq!((user.domain.as_deref(), user.domain_id), (Some("Users"), None));
        assert_eq!((project.domain, project.domain_id.as_deref()), (None, Some("default")));
    }

    #[test]
    fn half_of_the_credentials_is_not_filled_up_from_elsewhere() {
        let env = |name: &str| {
            ["OS_AUTH_URL", "OS_USERNAME", "OS_PASSWORD", "OS_PROJECT_NAME"]
                .contains(&name)
                .then(|| "http://keystone:5000/v3".to_owned())
        };
        assert!(find(&config(), &env).is_ok());
        let some = || Some("x".to_owned());
        let changes: [&dyn Fn(&mut SwiftConfig); 6] = [
            &|c| c.project = some(),
            &|c| c.project_id = some(),
            &|c| c.user_domain = some(),
            &|c| c.project_domain_id = some(),
            &|c| c.application_credential_id = some(),
            &|c| c.application_credential_name = some(),
        ];
        for change in changes {
            let mut config = config();
            change(&mut config);
            assert!(find(&config, &env).unwrap_err().message().contains("`auth_url`"));
        }
        let mut version = config();
        version.auth_version = AuthVersion::V1;
        assert!(matches!(find(&version, &env).unwrap().identity, Identity::V1 { .. }));
    }

    #[test]
    fn the_address_tells_the_version() {
        for (url, v1) in [
            ("http://swift/auth/v1.0", true),
            ("http://rgw/auth/1.0", true),
            ("http://rgw/auth/1.0/", true),
            ("http://keystone:5000/v3", false),
            ("http://keystone/identity", false),
        ] {
            let mut config = config();
            (config.auth_url, config.user) = (Some(url.to_owned()), Some("u".to_owned()));
            (config.password, config.project) = (Some(Secret::new("p")), Some("p".to_owned()));
            let found = find(&config, &|_| None).unwrap().identity;
            assert_eq!(matches!(found, Identity::V1 { .. }), v1, "{url}");
        }
    }

    #[test]
    fn what_is_not_followed_is_refused() {
        for (line, named) in [
            ("verify: false", "`verify: false`"),
            ("insecure: true", "`insecure: true`"),
            ("profile: vendor", "`profile`"),
            ("cloud: vendor", "`cloud`"),
            ("cert: /etc/client.pem", "`cert`"),
            ("regions: [{name: one, values: {auth: {}}}]", "`regions: values`"),
            ("regions: [one]\n    region_name: two", "\"two\""),
            ("auth_type: v3oidcpassword", "\"v3oidcpassword\""),
            ("identity_api_version: 2.0", "\"2\""),
        ] {
            let text = format!("clouds:\n  a:\n    {line}\n    auth: {{auth_url: https://k/v3}}");
            let cloud = parse(&text).unwrap().clouds.remove("a").unwrap();
            let error = Given::of_entries(cloud, Cloud::default()).map(drop).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.hint().is_some(), "{line}");
            assert!(error.message().contains(named), "{line}: {error}");
        }
        for key in ["trust_id", "system_scope", "passcode"] {
            let cloud = parse(&format!("clouds: {{a: {{auth: {{{key}: x}}}}}}")).unwrap().clouds.remove("a");
            let error = Given::of_entries(Cloud::default(), cloud.unwrap()).map(drop).unwrap_err();
            assert!(error.message().contains(&format!("`{key}`")), "{error}");
        }
        for name in ["OS_TRUST_ID", "OS_CERT"] {
            let env = |key: &str| (key == name || key == "OS_AUTH_URL").then(|| "http://k/v3".to_owned());
            assert!(find(&config(), &env).unwrap_err().message().contains(name));
        }
    }

    #[test]
    fn the_environment_counts_where_nothing_else_is_set() {
        let env = |name: &str| {
            Some(match name {
                "OS_AUTH_URL" => "http://keystone:5000/v3".to_owned(),
                "OS_USERNAME" => "glance".to_owned(),
                "OS_PASSWORD" => "hunter2".to_owned(),
                "OS_TENANT_NAME" => "images".to_owned(),
                "OS_ENDPOINT_TYPE" => "adminURL".to_owned(),
                _ => return None,
            })
        };
        let access = find(&config(), &env).unwrap();
        assert_eq!(access.interface, "admin");
        assert!(!format!("{access:?}").contains("hunter2"));
        let mut own = config();
        own.auth_url = Some("http://swift/auth/v1.0".to_owned());
        assert!(find(&own, &env).unwrap_err().message().contains("`password`"));
        let v1 = |name: &str| {
            Some(match name {
                "ST_AUTH" => "http://swift/auth/v1.0".to_owned(),
                "ST_USER" => "images:glance".to_owned(),
                "ST_KEY" => "hunter2".to_owned(),
                _ => return None,
            })
        };
        assert!(matches!(find(&config(), &v1).unwrap().identity, Identity::V1 { .. }));
        assert!(find(&config(), &|_| None).unwrap_err().message().contains("`auth_url`"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let find = |change: &dyn Fn(&mut SwiftConfig)| {
            let mut config = config();
            config.auth_url = Some("http://keystone:5000/v3".to_owned());
            change(&mut config);
            super::find(&config, &|_| None).map(drop)
        };
        let secret = || Some(Secret::new("hunter2"));
        for (named, change) in [
            ("`password`", &(|c: &mut SwiftConfig| c.user = Some("u".into())) as &dyn Fn(&mut SwiftConfig)),
            ("`user`", &|c| c.password = secret()),
            ("`project`", &|c| (c.user, c.password) = (Some("u".into()), secret())),
            ("`application_credential_id`", &|c| c.application_credential_secret = secret()),
            ("`endpoint`", &|c| c.token = secret()),
            ("`cloud`", &|c| (c.cloud, c.password) = (Some("x".into()), secret())),
        ] {
            let error = find(change).unwrap_err();
            assert!(error.message().contains(named), "{named}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(
            text in "\\PC{0,80}",
            indent in "[ :\\-\\n{}\\[\\]a-z]{0,80}",
            pairs in proptest::collection::vec(
                ("(auth_url|username|password|region_name|regions|verify|auth_type|profile)", "[a-z0-9.:/\\[\\]{}~]{0,12}"),
                0..5,
            ),
        ) {
            parse_all(&text);
            parse_all(&indent);
            let pairs: String = pairs.iter().map(|(key, value)| format!("    {key}: {value}\n")).collect();
            parse_all(&format!("clouds:\n  a:\n{pairs}"));
            parse_all(&format!("clouds:\n  a:\n   auth:\n{pairs}"));
        }
    }
}
