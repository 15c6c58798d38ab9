//! Tokens: one for each credential in this process, renewed before it expires and when the server says so.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Value, json};
use store_core::{Error, ErrorKind, Result, Secret};

use crate::{
    client::{all_of, failed, transaction},
    error::{noted, of_reqwest},
};

/// Who asks whom for tokens, and what is looked up in the catalog.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) url: String,
    pub(crate) identity: Identity,
    /// Whose token goes with each request besides.
    pub(crate) service: Option<Identity>,
    pub(crate) region: Option<String>,
    pub(crate) interface: String,
    pub(crate) service_type: String,
    pub(crate) endpoint: Option<String>,
    pub(crate) ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub(crate) enum Identity {
    V1 { user: String, key: Secret },
    Password { user: Named, password: Secret, project: Named },
    Application { id: Option<String>, name: Option<String>, user: Named, secret: Secret },
    Token(Secret),
}

/// A user or a project.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Named {
    pub(crate) id: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) domain: Option<String>,
    pub(crate) domain_id: Option<String>,
}

impl Named {
    pub(crate) fn is_empty(&self) -> bool {
        self.id.is_none() && self.name.is_none()
    }

    /// As Keystone wants it: by id, or by name and domain, which is `default` unless it is said.
    fn json(&self) -> Value {
        match (&self.id, &self.domain_id, &self.domain) {
            (Some(id), ..) => json!({ "id": id }),
            (None, Some(domain), _) => json!({ "name": self.name, "domain": { "id": domain } }),
            (None, None, Some(domain)) => json!({ "name": self.name, "domain": { "name": domain } }),
            (None, None, None) => json!({ "name": self.name, "domain": { "id": "default" } }),
        }
    }
}

/// A token, and the account that it opens.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) token: Secret,
    /// Where the account is, without a slash at its end.
    pub(crate) storage: String,
    /// When it should be renewed, and when it ends.
    life: Option<(Instant, Instant)>,
}

/// What all stores with one credential share.
#[derive(Debug, Default)]
struct Tokens {
    own: tokio::sync::Mutex<Last>,
    service: tokio::sync::Mutex<Last>,
}

/// What came of the last requests for a token.
#[derive(Debug, Default)]
struct Last {
    grant: Option<Arc<Grant>>,
    failed: Option<(Instant, Error)>,
}

/// Gives tokens out.
#[derive(Clone)]
pub(crate) struct Session {
    http: reqwest::Client,
    access: Arc<Access>,
    tokens: Arc<Tokens>,
}

/// The tokens in use. Providers lock clients out that ask for one each time.
static SHARED: Mutex<Option<HashMap<String, Weak<Tokens>>>> = Mutex::new(None);

/// For a request to the identity service.
const CALL: Duration = Duration::from_secs(60);

/// An identity service that is in trouble is asked once in this time, not by each request.
const MOMENT: Duration = Duration::from_secs(1);

/// A catalog is at most this long.
const MAX_CATALOG: usize = 4 << 20;

/// However long a token is said to live, it is renewed after this time.
const MAX_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

impl Session {
    pub(crate) fn new(http: reqwest::Client, access: Access) -> Self {
        let mut guard = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = guard.get_or_insert_default();
        shared.retain(|_, tokens| tokens.strong_count() > 0);
        let key = access.key();
        let tokens = shared.get(&key).and_then(Weak::upgrade).unwrap_or_default();
        shared.insert(key, Arc::downgrade(&tokens));
        Self { http, access: Arc::new(access), tokens }
    }

    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    /// A token that is good for a while, and the service's where one is configured.
    pub(crate) async fn grant(&self) -> Result<(Arc<Grant>, Option<Arc<Grant>>)> {
        let own = self.current(&self.tokens.own, &self.access.identity, None).await?;
        Ok((own, self.service(None).await?))
    }

    /// Other tokens than those, which the server has refused; those that somebody else has just got count.
    pub(crate) async fn renew(
        &self,
        refused: &(Arc<Grant>, Option<Arc<Grant>>),
    ) -> Result<(Arc<Grant>, Option<Arc<Grant>>)> {
        let own = self.current(&self.tokens.own, &self.access.identity, Some(&refused.0)).await?;
        Ok((own, self.service(refused.1.as_ref()).await?))
    }

    async fn service(&self, refused: Option<&Arc<Grant>>) -> Result<Option<Arc<Grant>>> {
        let Some(identity) = &self.access.service else { return Ok(None) };
        self.current(&self.tokens.service, identity, refused).await.map(Some)
    }

    async fn current(
        &self,
        place: &tokio::sync::Mutex<Last>,
        identity: &Identity,
        refused: Option<&Arc<Grant>>,
    ) -> Result<Arc<Grant>> {
        let since = Instant::now();
        // Held while a token is asked for: the others wait for it instead of asking too.
        let mut last = place.lock().await;
        let good =
            last.grant.clone().filter(|grant| refused.is_none_or(|refused| !Arc::ptr_eq(grant, refused)));
        let is_before = |time: Instant| Instant::now() < time;
        if let Some(grant) = &good
            && grant.life.is_none_or(|(renew, _)| is_before(renew))
        {
            return Ok(Arc::clone(grant));
        }
        // What has failed while this waited, or just now, fails.
        let failed = last
            .failed
            .as_ref()
            .filter(|(at, error)| *at > since || error.is_retryable() && is_before(*at + MOMENT));
        let error = match failed {
            Some((_, error)) => same(error),
            None => match self.ask(identity).await {
                Ok(grant) => {
                    let grant = Arc::new(grant);
                    *last = Last { grant: Some(Arc::clone(&grant)), failed: None };
                    return Ok(grant);
                }
                Err(error) => {
                    last.failed = Some((Instant::now(), same(&error)));
                    error
                }
            },
        };
        match good.filter(|grant| grant.life.is_some_and(|(_, end)| is_before(end))) {
            Some(grant) if error.is_retryable() => {
                tracing::debug!(%error, "going on with a token that ends soon");
                Ok(grant)
            }
            _ => Err(error),
        }
    }

    async fn ask(&self, identity: &Identity) -> Result<Grant> {
        match identity {
            Identity::V1 { user, key } => self.ask_v1(user, key).await,
            Identity::Token(token) => {
                Ok(Grant { token: token.clone(), storage: self.access.overridden(None, None)?, life: None })
            }
            _ => self.ask_keystone(identity).await,
        }
    }

    async fn ask_v1(&self, user: &str, key: &Secret) -> Result<Grant> {
        const WHAT: &str = "get a token";
        let call = self.http.get(&self.access.url).timeout(CALL);
        let call = call.header("x-auth-user", user).header("x-auth-key", secret(key.expose())?);
        let reply = call.send().await.map_err(|e| of_reqwest(WHAT, e))?;
        let header = |name: &str| reply.headers().get(name).and_then(|value| value.to_str().ok());
        if !reply.status().is_success() {
            return Err(refused(&reply, "`user` or `password` is wrong"));
        }
        let token = header("x-auth-token").or_else(|| header("x-storage-token"));
        let (Some(token), Some(storage)) = (token, header("x-storage-url")) else {
            return Err(no_identity());
        };
        let life = header("x-auth-token-expires").and_then(|life| life.parse().ok());
        Ok(Grant {
            token: Secret::new(token),
            storage: self.access.overridden(Some(storage), None)?,
            life: life.map(|life| soon(Duration::from_secs(life))),
        })
    }

    async fn ask_keystone(&self, identity: &Identity) -> Result<Grant> {
        const WHAT: &str = "get a token from Keystone";
        let body = serde_json::to_vec(&question(identity)).unwrap_or_default();
        let call = self.http.post(self.access.keystone()).timeout(CALL).body(body);
        let call = call.header("content-type", "application/json").header("accept", "application/json");
        let reply = call.send().await.map_err(|e| of_reqwest(WHAT, e))?;
        let status = reply.status().as_u16();
        if status != 201 && status != 200 {
            return Err(refused(
                &reply,
                "user, project, domain or secret is wrong, or the user has no role there",
            ));
        }
        let token = reply.headers().get("x-subject-token").and_then(|token| token.to_str().ok());
        let token = Secret::new(token.ok_or_else(no_identity)?);
        let body = all_of(WHAT, reply, MAX_CATALOG).await?;
        let Issued { token: issued } = serde_json::from_slice(&body).map_err(|_| no_identity())?;
        let project = issued.project.map(|project| project.id);
        let found = find(&issued.catalog, &self.access);
        let storage = match (&self.access.endpoint, found) {
            (Some(_), found) => self.access.overridden(found.ok().as_deref(), project.as_deref())?,
            // An administrator's address often ends before the account.
            (None, found) => with_account(&found?, project.as_deref()),
        };
        // By the server's clock alone: ours may be wrong.
        let life = issued.expires_at.duration_since(issued.issued_at);
        let life = Duration::try_from(life).unwrap_or_default();
        Ok(Grant { token, storage: trimmed(&storage), life: Some(soon(life)) })
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("access", &self.access).finish_non_exhaustive()
    }
}

/// A minute before the end, or a quarter of a short life; and the end.
fn soon(life: Duration) -> (Instant, Instant) {
    let (now, life) = (Instant::now(), life.min(MAX_LIFE));
    (now + life.saturating_sub(Duration::from_secs(60).min(life / 4)), now + life)
}

/// The error once more, for another who waited for the same.
fn same(error: &Error) -> Error {
    let mut same = Error::new(error.kind(), error.message().to_owned());
    if let Some(hint) = error.hint() {
        same = same.with_hint(hint.to_owned());
    }
    match error.retry_after() {
        Some(pause) => same.with_retry_after(pause),
        None => same,
    }
}

/// An address from the catalog, with the project's account where it has none.
fn with_account(url: &str, project: Option<&str>) -> String {
    let url = trimmed(url);
    let path = url.splitn(4, '/').nth(3).unwrap_or_default();
    match (path, project) {
        ("", Some(project)) => format!("{url}/v1/AUTH_{project}"),
        ("v1", Some(project)) => format!("{url}/AUTH_{project}"),
        _ => url,
    }
}

fn trimmed(url: &str) -> String {
    url.trim_end_matches('/').to_owned()
}

/// A header's value that no log shows.
pub(crate) fn secret(text: &str) -> Result<reqwest::header::HeaderValue> {
    let mut value = reqwest::header::HeaderValue::from_str(text).map_err(|_| {
        Error::new(ErrorKind::Invalid, "a secret has characters that cannot be sent")
            .with_hint("a line break at the end of its file, perhaps")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

impl Access {
    /// What tells credentials apart; never shown.
    fn key(&self) -> String {
        let secret = |identity: &Identity| match identity {
            Identity::V1 { key, .. } => key.expose().to_owned(),
            Identity::Password { password, .. } => password.expose().to_owned(),
            Identity::Application { secret, .. } => secret.expose().to_owned(),
            Identity::Token(token) => token.expose().to_owned(),
        };
        format!(
            "{self:?}\0{}\0{}",
            secret(&self.identity),
            self.service.as_ref().map(secret).unwrap_or_default()
        )
    }

    fn keystone(&self) -> String {
        let base = trimmed(&self.url);
        match base.ends_with("/v3") {
            true => format!("{base}/auth/tokens"),
            false => format!("{base}/v3/auth/tokens"),
        }
    }

    /// The account's address: the configured one, filled in from what the identity service said.
    fn overridden(&self, found: Option<&str>, project: Option<&str>) -> Result<String> {
        let lost = || {
            Error::new(ErrorKind::Invalid, "`endpoint` does not say where the account is")
                .with_hint("write it with the account, as https://swift.example.org/v1/AUTH_%(project_id)s")
        };
        let Some(endpoint) = &self.endpoint else { return found.map(trimmed).ok_or_else(lost) };
        let mut url = trimmed(endpoint);
        for place in ["%(project_id)s", "%(tenant_id)s", "$(project_id)s", "$(tenant_id)s"] {
            if url.contains(place) {
                url = url.replace(place, project.ok_or_else(lost)?);
            }
        }
        let path = url.splitn(4, '/').nth(3).unwrap_or_default();
        if !path.is_empty() && path != "v1" {
            return Ok(url);
        }
        // Host and port only: the path is that of the address that was found.
        let found_path = found.and_then(|found| found.splitn(4, '/').nth(3));
        let found_path = found_path.map(str::to_owned).or_else(|| project.map(|id| format!("v1/AUTH_{id}")));
        let root = url.trim_end_matches("/v1").to_owned();
        Ok(trimmed(&format!("{root}/{}", found_path.ok_or_else(lost)?)))
    }
}

/// The body of a request for a token.
fn question(identity: &Identity) -> Value {
    match identity {
        Identity::Password { user, password, project } => {
            let mut user = user.json();
            user["password"] = json!(password.expose());
            json!({ "auth": {
                "identity": { "methods": ["password"], "password": { "user": user } },
                "scope": { "project": project.json() },
            } })
        }
        // It has its project in itself: Keystone refuses one that is said.
        Identity::Application { id, name, user, secret } => {
            let credential = match id {
                Some(id) => json!({ "id": id, "secret": secret.expose() }),
                None => json!({ "name": name, "secret": secret.expose(), "user": user.json() }),
            };
            json!({ "auth": { "identity": {
                "methods": ["application_credential"], "application_credential": credential,
            } } })
        }
        Identity::V1 { .. } | Identity::Token(_) => Value::Null,
    }
}

#[derive(Deserialize)]
struct Issued {
    token: IssuedToken,
}

#[derive(Deserialize)]
struct IssuedToken {
    expires_at: jiff::Timestamp,
    issued_at: jiff::Timestamp,
    #[serde(default)]
    project: Option<Project>,
    #[serde(default)]
    catalog: Vec<Service>,
}

#[derive(Deserialize)]
struct Project {
    id: String,
}

#[derive(Deserialize)]
struct Service {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    #[serde(default)]
    interface: String,
    #[serde(default)]
    region_id: Option<String>,
    #[serde(default)]
    region: Option<String>,
    url: String,
}

/// The address in the catalog that was asked for.
fn find(catalog: &[Service], access: &Access) -> Result<String> {
    let services = catalog.iter().filter(|service| service.kind == access.service_type);
    let endpoints: Vec<&Endpoint> = services.flat_map(|service| &service.endpoints).collect();
    let in_region = |endpoint: &&&Endpoint| {
        access
            .region
            .as_ref()
            .is_none_or(|region| endpoint.region_id.as_ref().or(endpoint.region.as_ref()) == Some(region))
    };
    let found = endpoints.iter().filter(in_region).find(|endpoint| endpoint.interface == access.interface);
    let missing = || {
        let mut known: Vec<String> = endpoints
            .iter()
            .map(|e| {
                let region = e.region_id.as_deref().or(e.region.as_deref()).unwrap_or("no region");
                format!("{} in {region}", e.interface)
            })
            .collect();
        known.sort();
        known.dedup();
        let known = match known.is_empty() {
            true => format!("no service of the type {:?}", access.service_type),
            false => known.join(", "),
        };
        let text = "the catalog has no such endpoint of Swift";
        Error::new(ErrorKind::Invalid, text).with_hint(format!(
            "check `region`, `interface` and `service_type`, or set `endpoint`; the catalog has: {known}"
        ))
    };
    found.map(|endpoint| endpoint.url.clone()).ok_or_else(missing)
}

/// Without the text of the answer, which may repeat what was sent.
fn refused(reply: &reqwest::Response, hint: &'static str) -> Error {
    let (status, headers) = (reply.status().as_u16(), reply.headers());
    let noted = noted(transaction(headers).as_deref());
    match status {
        401 | 403 => {
            Error::new(ErrorKind::Denied, format!("the credentials are refused: status {status}{noted}"))
                .with_hint(hint)
        }
        300 | 404 | 405 => Error::new(
            ErrorKind::Invalid,
            format!("`auth_url` leads to no identity service: status {status}{noted}"),
        )
        .with_hint("with Keystone it ends in /v3, with Swift's own in /auth/v1.0"),
        status => {
            let error = failed("get a token", status, headers, b"");
            let told = Error::new(error.kind(), error.message().to_owned());
            let told = match error.retry_after() {
                Some(pause) => told.with_retry_after(pause),
                None => told,
            };
            match status {
                408 | 429 | 500.. => {
                    told.with_hint("the identity service is in trouble, or has too much to do")
                }
                _ => told,
            }
        }
    }
}

fn no_identity() -> Error {
    Error::new(ErrorKind::Invalid, "what answers at `auth_url` is no identity service")
        .with_hint("with Keystone it ends in /v3, with Swift's own in /auth/v1.0")
}

/// Lets every parser of the identity service's answers see a text.
#[cfg(any(test, fuzzing))]
pub(crate) fn parse_all(text: &[u8]) {
    let mut access = Access {
        url: "http://keystone:5000/v3/".into(),
        identity: Identity::Token(Secret::new("hunter2")),
        service: None,
        region: None,
        interface: "public".into(),
        service_type: "object-store".into(),
        endpoint: None,
        ca_file: None,
    };
    if let Ok(Issued { token }) = serde_json::from_slice(text) {
        let project = token.project.as_ref().map(|project| project.id.as_str());
        if let Ok(url) = find(&token.catalog, &access) {
            let _ = with_account(&url, project);
            access.endpoint = Some("http://other".into());
            let _ = access.overridden(Some(&url), project);
        }
    }
    if let Ok(catalog) = serde_json::from_slice::<Vec<Service>>(text) {
        let _ = find(&catalog, &access);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_catalog_makes_the_parser_panic(
            text in "\\PC{0,100}",
            url in "[a-z:/{}$%()]{0,30}",
            region in proptest::option::of("[a-z]{0,5}"),
            project in proptest::option::of("[a-z]{0,5}"),
        ) {
            parse_all(text.as_bytes());
            let catalog = json!([{ "type": "object-store", "endpoints": [
                { "interface": "public", "region": region, "url": url },
            ] }]);
            parse_all(catalog.to_string().as_bytes());
            let time = "2026-11-22T14:08:58.000000Z";
            let project = project.map(|id| json!({ "id": id }));
            let issued = json!({ "token":
                { "expires_at": time, "issued_at": time, "catalog": catalog, "project": project } });
            parse_all(issued.to_string().as_bytes());
        }
    }

    #[test]
    fn a_life_without_end_ends_within_a_day() {
        let before = Instant::now();
        for life in [Duration::MAX, Duration::from_secs(u64::MAX), Duration::from_secs(90_000)] {
            let (renewed, end) = soon(life);
            assert!(renewed > before && renewed < end && end <= Instant::now() + MAX_LIFE);
        }
    }

    fn access(endpoint: Option<&str>) -> Access {
        Access {
            url: "http://keystone:5000/v3/".into(),
            identity: Identity::Token(Secret::new("hunter2")),
            service: None,
            region: None,
            interface: "public".into(),
            service_type: "object-store".into(),
            endpoint: endpoint.map(str::to_owned),
            ca_file: None,
        }
    }

    #[test]
    fn an_endpoint_may_be_a_host_or_an_account() {
        let found = Some("http://inner:8080/v1/AUTH_abc");
        for (endpoint, expected) in [
            (None, "http://inner:8080/v1/AUTH_abc"),
            (Some("https://outer"), "https://outer/v1/AUTH_abc"),
            (Some("https://outer/"), "https://outer/v1/AUTH_abc"),
            (Some("https://outer/v1"), "https://outer/v1/AUTH_abc"),
            (Some("https://outer/swift/v1/AUTH_%(project_id)s"), "https://outer/swift/v1/AUTH_p"),
            (Some("https://outer/swift/v1"), "https://outer/swift/v1"),
        ] {
            assert_eq!(access(endpoint).overridden(found, Some("p")).unwrap(), expected);
        }
        assert_eq!(access(Some("http://o")).overridden(None, Some("p")).unwrap(), "http://o/v1/AUTH_p");
        assert_eq!(access(Some("http://o")).overridden(None, None).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(access(None).keystone(), "http://keystone:5000/v3/auth/tokens");
    }

    #[test]
    fn an_endpoint_without_an_account_gets_the_projects() {
        for (url, expected) in [
            ("http://swift/v1/AUTH_abc/", "http://swift/v1/AUTH_abc"),
            ("http://swift/v1", "http://swift/v1/AUTH_p"),
            ("http://swift:8080", "http://swift:8080/v1/AUTH_p"),
            ("http://rgw/swift/v1", "http://rgw/swift/v1"),
        ] {
            assert_eq!(with_account(url, Some("p")), expected);
        }
    }

    #[test]
    fn the_catalog_is_asked_for_type_interface_and_region() {
        let text = r#"[{"type": "image", "endpoints": [{"interface": "public", "url": "http://glance"}]},
            {"type": "object-store", "endpoints": [
                {"interface": "admin", "region_id": "one", "url": "http://admin"},
                {"interface": "public", "region_id": "one", "url": "http://one"},
                {"interface": "public", "region": "two", "url": "http://two"}]}]"#;
        let catalog: Vec<Service> = serde_json::from_str(text).unwrap();
        let mut access = access(None);
        assert_eq!(find(&catalog, &access).unwrap(), "http://one");
        access.region = Some("two".into());
        assert_eq!(find(&catalog, &access).unwrap(), "http://two");
        access.interface = "admin".into();
        let error = find(&catalog, &access).unwrap_err();
        assert!(error.hint().unwrap().contains("admin in one, public in one, public in two"));
    }

    #[test]
    fn tokens_are_shared_by_credential_and_not_shown() {
        let session = |secret: &str| {
            let mut access = access(Some("http://swift/v1/AUTH_x"));
            access.identity = Identity::V1 { user: "shared".into(), key: Secret::new(secret) };
            Session::new(reqwest::Client::new(), access)
        };
        let (one, same, other) = (session("hunter2"), session("hunter2"), session("hunter3"));
        assert!(Arc::ptr_eq(&one.tokens, &same.tokens) && !Arc::ptr_eq(&one.tokens, &other.tokens));
        assert!(!format!("{one:?}").contains("hunter"));
    }
}
