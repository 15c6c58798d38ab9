//! The suite over what `object_store` reaches: its own memory, a local folder, and Azurite through a proxy that fails
//! on demand.

use std::{
    collections::HashMap,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, LazyLock},
};

use conformance_tests::{Damage, FaultKind, Fixture, Proxy, Setup, Suites};
use futures::TryStreamExt;
use object_store::{
    DynObjectStore, ObjectStore, ObjectStoreExt, PutPayload,
    azure::{MicrosoftAzure, MicrosoftAzureBuilder},
    local::LocalFileSystem,
    memory::InMemory,
};
use store_core::{Backend, BlobId, Location, Secret};
use store_object::{ObjectBackend, ObjectConfig};

fn main() {
    Suites::new()
        .with("object-memory", async || over(Arc::new(InMemory::new())))
        .with("object-local", async || {
            let Ok(folder) = tempfile::tempdir() else { return Setup::Missing("no folder".into()) };
            match LocalFileSystem::new_with_prefix(folder.path()) {
                Ok(objects) => keep(over(Arc::new(objects)), folder),
                Err(error) => Setup::Missing(error.to_string()),
            }
        })
        .with("object-azure", azure)
        .run()
}

/// The folder lives as long as its case.
fn keep(setup: Setup, folder: tempfile::TempDir) -> Setup {
    let folder = Arc::new(folder);
    match setup {
        Setup::Ready(fixture) => Setup::Ready(fixture.teardown(move || {
            let folder = Arc::clone(&folder);
            async move {
                drop(folder);
                Ok(())
            }
        })),
        missing => missing,
    }
}

fn over(objects: Arc<DynObjectStore>) -> Setup {
    let spoiled = Arc::clone(&objects);
    let open = move || {
        let objects = Arc::clone(&objects);
        async move {
            let backend = ObjectBackend::new(objects, "images".into(), "test/images").await?;
            Ok(Arc::new(backend) as Arc<dyn Backend>)
        }
    };
    Setup::Ready(
        Fixture::connecting(open)
            .damage(move |at, damage| injure(Arc::clone(&spoiled), "images".to_owned(), at, damage)),
    )
}

/// Writes the data of a blob anew, with other bytes.
async fn injure(
    objects: Arc<DynObjectStore>,
    folder: String,
    at: Location,
    damage: Damage,
) -> Result<(), String> {
    let id = at.rest().rsplit('/').next().unwrap_or_default().to_owned();
    let data = object_store::path::Path::from(format!("{folder}/data"));
    let found: Vec<_> = objects.list(Some(&data)).try_collect().await.map_err(|e| e.to_string())?;
    let is_its = |path: &object_store::path::Path| {
        path.filename().and_then(|name| name.rsplit_once('.')).is_some_and(|(name, _)| name == id)
    };
    let data = found.into_iter().map(|object| object.location).find(is_its).ok_or("there are no data")?;
    let read = async { objects.get(&data).await?.bytes().await };
    let mut bytes = read.await.map_err(|e| e.to_string())?.to_vec();
    match damage {
        Damage::Flip(at) => bytes[at as usize] ^= 1,
        Damage::Truncate(len) => bytes.truncate(len as usize),
        other => return Err(format!("how is {other:?} done?")),
    }
    objects.put(&data, PutPayload::from(bytes)).await.map(drop).map_err(|e| e.to_string())
}

/// An Azurite that runs until this process ends.
struct Azurite {
    endpoint: String,
    account: String,
    key: String,
    container: String,
}

static AZURITE: LazyLock<Result<Azurite, String>> = LazyLock::new(|| {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testservers/azurite");
    let process = std::process::id().to_string();
    let output = Command::new(script)
        .args(["start", "--name", &format!("conformance-{process}"), "--owner", &process])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("testservers/azurite cannot be run: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: HashMap<&str, &str> = lines.lines().filter_map(|line| line.split_once('=')).collect();
    let needed = |key: &str| lines.get(key).map(|value| value.to_string()).ok_or(format!("no {key}"));
    Ok(Azurite {
        endpoint: needed("ENDPOINT")?,
        account: needed("ACCOUNT")?,
        key: needed("ACCESS_KEY")?,
        container: needed("CONTAINER")?,
    })
});

/// A store in a fresh folder.
async fn azure() -> Setup {
    let server = match &*AZURITE {
        Ok(server) => server,
        Err(why) => return Setup::Missing(why.clone()),
    };
    let address = server.endpoint.trim_start_matches("http://");
    let proxy = match Proxy::start(address).await {
        Ok(proxy) => Arc::new(proxy),
        Err(why) => return Setup::Missing(format!("the server does not answer: {why}")),
    };
    let folder = BlobId::random();
    let direct = match client(server) {
        Ok(client) => Arc::new(client),
        Err(why) => return Setup::Missing(why),
    };
    let mut config = ObjectConfig::new(format!("az://{}/{folder}", server.container));
    let endpoint = format!("http://{}/{}", proxy.addr(), server.account);
    for (key, value) in [
        ("azure_storage_account_name", server.account.as_str()),
        ("azure_storage_account_key", &server.key),
        ("azure_storage_endpoint", &endpoint),
        ("azure_allow_http", "true"),
        // Faults are retried by this project's layers as well.
        ("timeout", "20s"),
        ("connect_timeout", "5s"),
    ] {
        config.options.insert(key.to_owned(), Secret::new(value));
    }
    let hook = proxy.hook();
    let open = move || {
        let (config, proxy) = (config.clone(), Arc::clone(&proxy));
        async move {
            let backend = ObjectBackend::connect(&config).await?;
            drop(proxy);
            Ok(Arc::new(backend) as Arc<dyn Backend>)
        }
    };
    Setup::Ready(Fixture::connecting(open).fault(&FaultKind::ALL, hook).secret(&server.key).damage(
        move |at, damage| injure(Arc::clone(&direct) as Arc<dyn ObjectStore>, folder.to_string(), at, damage),
    ))
}

/// A client that goes past the store.
fn client(server: &Azurite) -> Result<MicrosoftAzure, String> {
    MicrosoftAzureBuilder::new()
        .with_account(&server.account)
        .with_access_key(&server.key)
        .with_container_name(&server.container)
        .with_endpoint(format!("{}/{}", server.endpoint, server.account))
        .with_allow_http(true)
        .build()
        .map_err(|e| e.to_string())
}
