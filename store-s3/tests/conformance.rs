//! The suite over real servers, MinIO, Ceph's object gateway and Swift, through a proxy that fails on demand.

use std::sync::{Arc, LazyLock};

use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use conformance_tests::{Damage, FaultKind, Fixture, Proxy, Setup, Suites};
use store_core::{Backend, Location};
use store_s3::{Checksum, Conditional, S3Backend, S3Config};

#[allow(dead_code, reason = "each test uses a part of it")]
mod server;

use server::Server;

/// One server of a kind for all cases, each in a bucket of its own.
type Started = LazyLock<Result<Server, String>>;

static MINIO: Started = LazyLock::new(|| Server::start("conformance", &[]));
static RGW: Started = LazyLock::new(|| Server::start_rgw("s3-conformance", &[]));
static SWIFT: Started = LazyLock::new(|| Server::start_swift("s3-conformance", &[]));

fn main() {
    Suites::new()
        .at_once(6)
        .with("s3", async || setup(&MINIO, |_| {}).await)
        .with("s3-rgw", async || setup(&RGW, |_| {}).await)
        .with("s3-swift", async || setup(&SWIFT, |_| {}).await)
        .with("s3-prefix", async || {
            setup(&MINIO, |config| {
                config.prefix = "cloud images/".to_owned();
                config.checksum = Checksum::Crc64nvme;
                config.conditional_writes = Conditional::On;
            })
            .await
        })
        .run()
}

/// A store in a fresh bucket.
async fn setup(started: &'static Started, change: fn(&mut S3Config)) -> Setup {
    let server = match &**started {
        Ok(server) => server,
        Err(why) => return Setup::Missing(why.clone()),
    };
    let proxy = match Proxy::start(server.address()).await {
        Ok(proxy) => Arc::new(proxy),
        Err(why) => return Setup::Missing(format!("the server does not answer: {why}")),
    };
    let bucket = server::bucket();
    let mut config = server.config(&bucket);
    config.endpoint = Some(format!("http://{}", proxy.addr()));
    change(&mut config);
    let hook = proxy.hook();
    let open = move || {
        let (config, proxy) = (config.clone(), Arc::clone(&proxy));
        async move {
            let backend = S3Backend::connect(&config).await?;
            drop(proxy);
            Ok(Arc::new(backend) as Arc<dyn Backend>)
        }
    };
    let (damaged, emptied) = (bucket.clone(), bucket);
    Setup::Ready(
        Fixture::connecting(open)
            .fault(&FaultKind::ALL, hook)
            .secret(&server.secret_key)
            .damage(move |at, damage| injure(server, damaged.clone(), at, damage))
            .teardown(move || remove(server, emptied.clone())),
    )
}

/// Writes the object anew, with other bytes and the same user metadata.
async fn injure(server: &Server, bucket: String, at: Location, damage: Damage) -> Result<(), String> {
    let client = server.client();
    let path = at.rest().split(&format!("/{bucket}/")).nth(1).unwrap_or_default();
    let key = path.replace("%20", " ");
    let found = client.get_object().bucket(&bucket).key(&key).send().await;
    let found = found.map_err(|e| format!("{e:?}"))?;
    let metadata = found.metadata.clone();
    let mut bytes = found.body.collect().await.map_err(|e| e.to_string())?.to_vec();
    match damage {
        Damage::Flip(at) => bytes[at as usize] ^= 1,
        Damage::Truncate(len) => bytes.truncate(len as usize),
        other => return Err(format!("how is {other:?} done?")),
    }
    let body = ByteStream::from(Bytes::from(bytes));
    let put = client.put_object().bucket(&bucket).key(&key).set_metadata(metadata).body(body);
    put.send().await.map(drop).map_err(|e| format!("{e:?}"))
}

/// Removes a bucket and what is in it, which MinIO does at once where it is asked to.
async fn remove(server: &Server, bucket: String) -> Result<(), String> {
    let client = server.client();
    if !server.is_minio() {
        let found = client.list_objects_v2().bucket(&bucket).send().await.map_err(|e| format!("{e:?}"))?;
        for key in found.contents().iter().filter_map(|object| object.key()) {
            client.delete_object().bucket(&bucket).key(key).send().await.map_err(|e| format!("{e:?}"))?;
        }
    }
    let call = client.delete_bucket().bucket(bucket).customize();
    let call = call.mutate_request(|request| {
        request.headers_mut().insert("x-minio-force-delete", "true");
    });
    call.send().await.map(drop).map_err(|e| format!("{e:?}"))
}
