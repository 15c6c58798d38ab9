//! The suite over a real Swift, with its own tokens and with Keystone's, and over Ceph's object gateway, through a proxy
//! that fails on demand.

use std::sync::{Arc, LazyLock};

use conformance_tests::{Damage, FaultKind, Fixture, Proxy, Setup, Suites};
use reqwest::{Method, header::HeaderMap};
use store_core::{Backend, Location, Secret};
use store_swift::{SwiftBackend, SwiftConfig};

#[allow(dead_code, reason = "each test uses a part of it")]
mod server;

use server::{Raw, Server};

/// One storage for all cases, each in a container of its own.
static SERVER: LazyLock<Result<Server, String>> =
    LazyLock::new(|| Server::start("conformance", &["--keystone"]));

/// Ceph's object gateway.
static CEPH: LazyLock<Result<Server, String>> = LazyLock::new(|| Server::start_ceph("swift"));

fn main() {
    Suites::new()
        .at_once(4)
        .with("swift", async || setup(&SERVER, false, |_| {}).await)
        .with("swift-keystone", async || {
            setup(&SERVER, true, |config| {
                config.prefix = "cloud images/".to_owned();
                config.segment_size.0 = 5 << 20;
                config.temp_url_key = Some(Secret::new("conformance-key"));
            })
            .await
        })
        .with("swift-rgw", async || setup(&CEPH, false, |_| {}).await)
        .run()
}

/// A store in a fresh container.
async fn setup(
    server: &'static LazyLock<Result<Server, String>>,
    keystone: bool,
    change: fn(&mut SwiftConfig),
) -> Setup {
    let server = match &**server {
        Ok(server) => server,
        Err(why) => return Setup::Missing(why.clone()),
    };
    let address = server.get(if keystone { "KEYSTONE_ADDRESS" } else { "ADDRESS" });
    let proxy = match Proxy::start(address).await {
        Ok(proxy) => Arc::new(proxy),
        Err(why) => return Setup::Missing(format!("the server does not answer: {why}")),
    };
    let raw = if keystone { server.raw_keystone().await } else { server.raw().await };
    let raw = match raw {
        Ok(raw) => raw,
        Err(why) => return Setup::Missing(format!("the server gives no token: {why}")),
    };
    let container = server::container();
    let mut config = if keystone { server.keystone(&container) } else { server.config(&container) };
    match keystone {
        true => config.endpoint = Some(format!("http://{}", proxy.addr())),
        false => config.auth_url = Some(format!("http://{}/auth/v1.0", proxy.addr())),
    }
    change(&mut config);
    let hook = proxy.hook();
    let open = move || {
        let (config, proxy) = (config.clone(), Arc::clone(&proxy));
        async move {
            let backend = SwiftBackend::connect(&config).await?;
            drop(proxy);
            Ok(Arc::new(backend) as Arc<dyn Backend>)
        }
    };
    let secret = server.get(if keystone { "PASSWORD" } else { "ACCOUNT_KEY" });
    let injured = raw.clone();
    Setup::Ready(
        Fixture::connecting(open)
            .fault(&FaultKind::ALL, hook)
            .secret(secret)
            .damage(move |at, damage| injure(injured.clone(), at, damage))
            .teardown(move || {
                let (raw, container) = (raw.clone(), container.clone());
                async move { raw.remove(&container).await }
            }),
    )
}

/// Writes the object anew, as a plain one with other bytes and the same metadata.
async fn injure(raw: Raw, at: Location, damage: Damage) -> Result<(), String> {
    let path = at.rest().trim_start_matches("//").split_once('/').ok_or("no path")?.1;
    let path = format!("/{path}").replace("%2F", "/");
    let found = raw.send(Method::GET, &path, &[]).await?;
    let keep = |name: &str| name.starts_with("x-object-meta-");
    let pairs = found.headers().iter().filter(|(name, _)| keep(name.as_str()));
    let headers: HeaderMap = pairs.map(|(name, value)| (name.clone(), value.clone())).collect();
    let mut bytes = found.bytes().await.map_err(|e| e.to_string())?.to_vec();
    match damage {
        Damage::Flip(at) => bytes[at as usize] ^= 1,
        Damage::Truncate(len) => bytes.truncate(len as usize),
        other => return Err(format!("how is {other:?} done?")),
    }
    raw.call(Method::PUT, &path, headers, bytes).await.map(drop)
}
