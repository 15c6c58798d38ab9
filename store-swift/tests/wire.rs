//! What only Swift does: tokens that end, servers that are away, objects that others wrote.

#![allow(clippy::unwrap_used, reason = "a test panics where its own set-up fails")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::TryStreamExt;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use reqwest::Method;
use store_core::{
    Backend, BlobId, Error, ErrorKind, Expect, Location, Options, Retry, Secret, Span, Store, Swept,
};
use store_swift::{LargeObjects, SwiftBackend, SwiftConfig};

#[allow(dead_code, reason = "each test uses a part of it")]
mod server;

use server::{Raw, Server, container, map};

type Outcome = Result<(), String>;
type Real = (&'static str, &'static LazyLock<Result<Server, String>>, fn(&Server) -> Outcome);

/// One disk, Swift's own tokens.
static PLAIN: LazyLock<Result<Server, String>> = LazyLock::new(|| Server::start("wire", &[]));
/// Keystone, whose tokens live for some seconds.
static KEYSTONE: LazyLock<Result<Server, String>> =
    LazyLock::new(|| Server::start("keystone", &["--keystone", "--token-life", "8"]));
/// Small objects only, and few segments to a list.
static SMALL: LazyLock<Result<Server, String>> =
    LazyLock::new(|| Server::start("small", &["--max-file-size", "3145728", "--max-segments", "8"]));
/// Few requests a second, and no static large objects.
static SLOW: LazyLock<Result<Server, String>> =
    LazyLock::new(|| Server::start("slow", &["--rate", "8", "--without", "slo"]));
/// One whose services are stopped.
static STOPPED: LazyLock<Result<Server, String>> = LazyLock::new(|| Server::start("stopped", &[]));
/// A full disk.
static FULL: LazyLock<Result<Server, String>> =
    LazyLock::new(|| Server::start("full", &["--reserve", "99%"]));

/// Those that stop services do so one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn main() {
    let tests: [Real; 24] = [
        ("wrong_credentials_are_denied_and_not_shown", &PLAIN, wrong_credentials),
        ("a_missing_container_is_named", &PLAIN, missing_container),
        ("errors_name_the_transaction", &PLAIN, transactions),
        ("a_missing_or_changed_segment_is_corrupt", &PLAIN, damaged_segments),
        ("a_dynamic_large_object_is_one_blob", &PLAIN, dynamic_object),
        ("a_gap_in_a_dynamic_large_object_is_corrupt", &PLAIN, dynamic_gap),
        ("dynamic_large_objects_can_be_written", &PLAIN, dynamic_writes),
        ("metadata_that_does_not_fit_is_kept_beside", &PLAIN, large_metadata),
        ("a_quota_is_no_space_and_keeps_nothing", &PLAIN, quotas),
        ("an_expired_blob_is_gone", &PLAIN, expiry),
        ("blobs_are_spread_over_containers", &PLAIN, seeds),
        ("an_upload_outlives_its_container_server", &STOPPED, container_server),
        ("an_object_server_that_is_away_is_unavailable", &STOPPED, object_server),
        ("a_sweep_spares_what_others_wrote", &PLAIN, foreign_segments),
        ("a_small_limit_makes_small_segments", &SMALL, small_limit),
        ("many_segments_become_lists_of_lists", &SMALL, nested),
        ("a_throttled_upload_gets_through", &SLOW, throttled),
        ("a_full_disk_is_unavailable_and_keeps_nothing", &FULL, full_disk),
        ("tokens_are_renewed_in_the_middle_of_an_upload", &KEYSTONE, renewal),
        ("application_credentials_and_regions_work", &KEYSTONE, credentials),
        ("wrong_credentials_of_keystone_are_denied", &KEYSTONE, wrong_keystone),
        ("an_expired_token_works_with_a_service_token", &KEYSTONE, service_token),
        ("each_blob_has_a_container_that_projects_may_read", &KEYSTONE, multi_tenant),
        ("what_glance_wrote_is_read_and_deleted", &KEYSTONE, glance),
    ];
    let mut trials =
        vec![Trial::test("a_server_that_is_not_there_is_unavailable", || nobody().map_err(Failed::from))];
    trials.extend(tests.into_iter().map(|(name, server, test)| {
        Trial::ignorable_test(name, move || match (&**server, required()) {
            (Ok(server), _) => test(server).map(|()| Completion::Completed).map_err(Failed::from),
            (Err(why), true) => Err(Failed::from(format!("required, but {why}"))),
            (Err(why), false) => Ok(Completion::ignored_with(why)),
        })
    }));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn required() -> bool {
    conformance_tests::is_required("swift")
}

fn run(test: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Runtime::new().unwrap().block_on(test)
}

async fn open(config: &SwiftConfig) -> Result<Store, String> {
    let backend = SwiftBackend::connect(config).await.map_err(|e| format!("{e}: {e:?}, {:?}", e.hint()))?;
    Ok(Store::new("a", Arc::new(backend), quick()))
}

fn quick() -> Options {
    let mut options = Options::default();
    let millis = |millis| Span(Duration::from_millis(millis));
    options.retry = Retry { attempts: 3, delay: millis(10), max_delay: millis(50) };
    options
}

fn check(truth: bool, what: impl Into<String>) -> Outcome {
    if truth { Ok(()) } else { Err(what.into()) }
}

fn text<T>(outcome: Result<T, Error>) -> Result<T, String> {
    outcome.map_err(|error| format!("{error}: {error:?}, {:?}", error.hint()))
}

/// Fails unless `outcome` is an error of that kind whose hint has `hint` in it, and gives the error.
fn refused<T>(outcome: Result<T, Error>, kind: ErrorKind, hint: &str) -> Result<Error, String> {
    match outcome {
        Err(error) if error.kind() == kind && error.hint().unwrap_or_default().contains(hint) => Ok(error),
        Err(error) => Err(format!("expected {kind} ({hint}), got {error:?}, hint {:?}", error.hint())),
        Ok(_) => Err(format!("expected {kind} ({hint}), and it worked")),
    }
}

fn content(len: usize) -> Bytes {
    let mut state = 7u32;
    let bytes = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    bytes.take(len).collect::<Vec<u8>>().into()
}

async fn put(store: &Store, id: &str, bytes: &Bytes) -> Result<Location, Error> {
    Ok(store.put(&id.parse()?, store_core::once(bytes.clone()), Expect::new()).await?.location)
}

async fn reads(store: &Store, at: &Location, bytes: &Bytes) -> Outcome {
    let got = text(store.get(at, ..).await)?;
    check(got == *bytes, format!("{} bytes came back as {} others", bytes.len(), got.len()))?;
    let (start, end) = (bytes.len() as u64 / 3, bytes.len() as u64 * 2 / 3);
    let some = text(store.get(at, start..end).await)?;
    check(some == bytes[start as usize..end as usize], "a range came back as another")
}

async fn holds_nothing(store: &Store, raw: &Raw, containers: &[&str]) -> Outcome {
    store.settle().await;
    let swept = text(store.sweep(Duration::ZERO).await)?;
    check(swept == Swept::default(), format!("{} upload(s) were left behind", swept.uploads))?;
    for container in containers {
        let names = raw.list(container).await?;
        check(names.is_empty(), format!("{container} still has {names:?}"))?;
    }
    Ok(())
}

const MIB: usize = 1 << 20;

fn nobody() -> Outcome {
    run(async {
        let mut config = SwiftConfig::new("c");
        config.auth_url = Some("http://127.0.0.1:1/v3".to_owned());
        (config.user, config.project) = (Some("u".to_owned()), Some("p".to_owned()));
        config.password = Some(Secret::new("hunter2"));
        let error = refused(SwiftBackend::connect(&config).await, ErrorKind::Unavailable, "host and port")?;
        check(!format!("{error} {error:?}").contains("hunter2"), "the password shows")
    })
}

fn wrong_credentials(server: &Server) -> Outcome {
    run(async {
        let mut config = server.config(&container());
        config.password = Some(Secret::new("hunter2"));
        let error = refused(SwiftBackend::connect(&config).await, ErrorKind::Denied, "`password`")?;
        check(!format!("{error} {error:?}").contains("hunter2"), "the password shows")?;
        config.user = Some("images:norights".to_owned());
        config.password = Some(Secret::new("norightspass"));
        refused(SwiftBackend::connect(&config).await, ErrorKind::Denied, "roles")?;
        config.auth_url = Some(format!("http://{}/info", server.get("ADDRESS")));
        config.auth_version = store_swift::AuthVersion::V1;
        refused(SwiftBackend::connect(&config).await, ErrorKind::Invalid, "/auth/v1.0").map(drop)
    })
}

fn missing_container(server: &Server) -> Outcome {
    run(async {
        let mut config = server.config(&container());
        config.create_container = false;
        refused(SwiftBackend::connect(&config).await, ErrorKind::Invalid, "create_container").map(drop)
    })
}

fn transactions(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let mut config = server.config(&name);
        let store = open(&config).await?;
        let raw = server.raw().await?;
        raw.delete(&format!("/{name}")).await?;
        // Whoever may not read it is told so by the server, with the number of the request.
        config.token = Some(Secret::new("AUTH_tkwrong"));
        (config.user, config.password, config.auth_url) = (None, None, None);
        config.endpoint = Some(raw.storage.clone());
        let error = refused(SwiftBackend::connect(&config).await, ErrorKind::Denied, "token")?;
        check(error.message().contains("transaction tx"), format!("no transaction in {error}"))?;
        check(!format!("{error:?}").contains("AUTH_tkwrong"), "the token shows")?;
        let put = put(&store, "a", &content(10)).await;
        // It made its container once; now it is gone.
        refused(put, ErrorKind::Invalid, "create_container").map(drop)
    })
}

fn damaged_segments(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let mut config = server.config(&name);
        (config.segment_size.0, config.read_size.0) = (MIB as u64, 3 * MIB as u64);
        let (store, raw) = (open(&config).await?, server.raw().await?);
        let bytes = content(4 * MIB + 5);
        let mut options = quick();
        options.verify_reads = false;
        let backend: Arc<dyn Backend> = Arc::new(text(SwiftBackend::connect(&config).await)?);
        let unverified = Store::new("a", backend, options);
        for damage in ["delete", "replace"] {
            let at = text(put(&store, damage, &bytes).await)?;
            reads(&store, &at, &bytes).await?;
            let segments = raw.list(&format!("{name}_segments")).await?;
            let third =
                segments.iter().filter(|segment| segment.starts_with(damage)).nth(2).ok_or("no third")?;
            let path = format!("/{name}_segments/{third}");
            match damage {
                "delete" => raw.delete(&path).await?,
                _ => raw.put(&path, content(MIB + 1).slice(1..)).await?,
            }
            for store in [&store, &unverified] {
                refused(store.get(&at, ..).await, ErrorKind::Corrupt, "another copy")?;
                let sound = text(store.get(&at, 0..MIB as u64).await)?;
                check(sound == bytes[..MIB], "what is sound cannot be read")?;
            }
            text(store.delete(&at).await)?;
            refused(store.open(&at).await, ErrorKind::NotFound, "")?;
        }
        holds_nothing(&store, &raw, &[&name, &format!("{name}_segments")]).await
    })
}

/// Writes a dynamic large object as Glance does: numbered segments beside it.
async fn dynamic(raw: &Raw, container: &str, id: &str, bytes: &Bytes, segment: usize) -> Outcome {
    for (number, piece) in bytes.chunks(segment).enumerate() {
        raw.put(&format!("/{container}/{id}-{:05}", number + 1), piece.to_vec()).await?;
    }
    let manifest = format!("{container}/{id}-");
    let headers = map(&[("x-object-manifest", &manifest), ("content-length", "0")]);
    raw.call(Method::PUT, &format!("/{container}/{id}"), headers, Vec::new()).await.map(drop)
}

fn dynamic_object(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let (store, raw) = (open(&server.config(&name)).await?, server.raw().await?);
        let bytes = content(14 * 100_000 + 3);
        dynamic(&raw, &name, "image", &bytes, 100_000).await?;
        text(put(&store, "imago", &content(10)).await)?;
        let at = text(store.locate(&"image".parse().unwrap()).await)?;
        check(text(store.stat(&at).await)?.size == bytes.len() as u64, "it has another size")?;
        reads(&store, &at, &bytes).await?;
        let listed: Vec<_> = text(store.list().try_collect().await)?;
        let mut ids: Vec<(&str, u64)> = listed.iter().map(|entry| (entry.id.as_str(), entry.size)).collect();
        ids.sort_unstable();
        check(ids == [("image", bytes.len() as u64), ("imago", 10)], format!("it lists {ids:?}"))?;
        text(store.sweep(Duration::ZERO).await)?;
        let copy = text(store.copy(&at, &"copy".parse().unwrap(), |_| {}).await)?;
        reads(&store, &copy.location, &bytes).await?;
        text(store.delete(&at).await)?;
        reads(&store, &copy.location, &bytes).await?;
        let left = raw.list(&name).await?;
        check(left == ["copy", "imago"], format!("the container still has {left:?}"))
    })
}

fn dynamic_gap(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let (store, raw) = (open(&server.config(&name)).await?, server.raw().await?);
        dynamic(&raw, &name, "image", &content(400_000), 100_000).await?;
        raw.delete(&format!("/{name}/image-00002")).await?;
        let at = text(store.locate(&"image".parse().unwrap()).await)?;
        refused(store.open(&at).await, ErrorKind::Corrupt, "list").map(drop)
    })
}

fn dynamic_writes(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let mut config = server.config(&name);
        (config.large_objects, config.segment_size.0) = (LargeObjects::Dynamic, MIB as u64);
        let (store, raw) = (open(&config).await?, server.raw().await?);
        let bytes = content(5 * MIB + 5);
        let at = text(put(&store, "image", &bytes).await)?;
        reads(&store, &at, &bytes).await?;
        let swept = text(store.sweep(Duration::ZERO).await)?;
        check(swept.uploads == 0, "a sweep took a dynamic large object")?;
        reads(&store, &at, &bytes).await?;
        let head = raw.send(Method::HEAD, &format!("/{name}/image"), &[]).await?;
        check(head.headers().contains_key("x-object-manifest"), "it is none")?;
        text(store.delete(&at).await)?;
        holds_nothing(&store, &raw, &[&name, &format!("{name}_segments")]).await
    })
}

fn large_metadata(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let (store, raw) = (open(&server.config(&name)).await?, server.raw().await?);
        // Each of these takes six bytes in JSON.
        let value = "\u{1}".repeat(1000);
        for len in [10, 9 * MIB] {
            let (id, bytes) = (format!("blob-{len}"), content(len));
            let expect = Expect::new().property("odd", value.clone());
            let blob = text(store.put(&id.parse().unwrap(), store_core::once(bytes.clone()), expect).await)?;
            let stat = text(open(&server.config(&name)).await?.stat(&blob.location).await)?;
            let kept = stat.meta.ok_or("no metadata")?;
            check(kept.properties.get("odd") == Some(&value), "the property is another one")?;
            let swept = text(store.sweep(Duration::ZERO).await)?;
            check(swept.uploads == 0, "a sweep took metadata")?;
            reads(&store, &blob.location, &bytes).await?;
            text(store.delete(&blob.location).await)?;
        }
        holds_nothing(&store, &raw, &[&name, &format!("{name}_segments")]).await
    })
}

fn quotas(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let (store, raw) = (open(&server.config(&name)).await?, server.raw().await?);
        let segments = format!("{name}_segments");
        raw.send(Method::PUT, &format!("/{segments}"), &[("x-container-meta-quota-bytes", "3000000")])
            .await?;
        let error = refused(put(&store, "large", &content(9 * MIB)).await, ErrorKind::NoSpace, "quota")?;
        check(!error.is_retryable(), "it is retried")?;
        raw.send(Method::POST, &format!("/{name}"), &[("x-container-meta-quota-bytes", "1000")]).await?;
        refused(put(&store, "small", &content(2000)).await, ErrorKind::NoSpace, "quota")?;
        let store = open(&server.config(&name)).await?;
        let capacity = text(store.capacity().await)?;
        check((capacity.total, capacity.free) == (1000, 1000), format!("the capacity is {capacity:?}"))?;
        let known = store.upload(&"known".parse().unwrap(), Expect::new().size(2000)).await;
        refused(known.map(drop), ErrorKind::NoSpace, "quota")?;
        text(put(&store, "fits", &content(900)).await)?;
        text(store.delete(&text(store.locate(&"fits".parse().unwrap()).await)?).await)?;
        holds_nothing(&store, &raw, &[&name, &segments]).await
    })
}

fn expiry(server: &Server) -> Outcome {
    run(async {
        let mut config = server.config(&container());
        config.expire = Some(Span(Duration::from_secs(3)));
        let store = open(&config).await?;
        let at = text(put(&store, "image", &content(10)).await)?;
        for _ in 0..600 {
            match store.stat(&at).await {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                outcome => drop(text(outcome)?),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err("it is still there".to_owned())
    })
}

fn seeds(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let mut config = server.config(&name);
        config.container_seed = 2;
        let (store, raw) = (open(&config).await?, server.raw().await?);
        let mut ids = vec!["ab1".to_owned(), "AB2".to_owned(), "cd3".to_owned(), "e-f4".to_owned()];
        for id in &ids {
            let at = text(put(&store, id, &content(9 * MIB)).await)?;
            reads(&store, &at, &content(9 * MIB)).await?;
        }
        let listed: Vec<_> = text(store.list().try_collect().await)?;
        let mut found: Vec<String> = listed.iter().map(|entry| entry.id.to_string()).collect();
        found.sort();
        ids.sort();
        check(found == ids, format!("it lists {found:?}"))?;
        check(raw.list(&format!("{name}_ab")).await?.len() == 2, "they are not in their container")?;
        check(raw.list(&format!("{name}_e-f")).await?.len() == 1, "a dash counts")?;
        text(store.sweep(Duration::ZERO).await)?;
        for entry in &listed {
            text(store.delete(&entry.location).await)?;
        }
        holds_nothing(&store, &raw, &[&format!("{name}_ab_segments"), &format!("{name}_cd")]).await
    })
}

fn container_server(server: &Server) -> Outcome {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    run(async {
        let mut config = server.config(&container());
        config.segment_size.0 = MIB as u64;
        let store = open(&config).await?;
        let bytes = content(8 * MIB + 5);
        let id: BlobId = "image".parse().unwrap();
        let mut writer = text(store.upload(&id, Expect::new()).await)?;
        text(writer.write(bytes.slice(..5 * MIB)).await)?;
        server.pause("container")?;
        let written = writer.write(bytes.slice(5 * MIB..)).await;
        let finished = match written {
            Ok(()) => writer.finish().await,
            Err(error) => Err(error),
        };
        server.resume("container")?;
        server.update()?;
        // A dynamic large object would read as a shorter one here.
        match finished {
            Ok(blob) => reads(&store, &blob.location, &bytes).await?,
            Err(error) => {
                check(error.kind() == ErrorKind::Unavailable, format!("it fails with {error:?}"))?;
                store.settle().await;
                text(store.sweep(Duration::ZERO).await)?;
                refused(store.locate(&id).await, ErrorKind::NotFound, "")?;
                let at = text(put(&store, "image", &bytes).await)?;
                reads(&store, &at, &bytes).await?;
            }
        }
        let listed: Vec<_> = text(store.list().try_collect().await)?;
        check(listed.len() == 1, format!("it lists {listed:?}"))
    })
}

fn object_server(server: &Server) -> Outcome {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    run(async {
        let store = open(&server.config(&container())).await?;
        let at = text(put(&store, "image", &content(1000)).await)?;
        server.pause("object")?;
        let outcomes = async {
            refused(store.get(&at, ..).await, ErrorKind::Unavailable, "")?;
            refused(put(&store, "other", &content(1000)).await, ErrorKind::Unavailable, "")?;
            refused(store.delete(&at).await, ErrorKind::Unavailable, "")
        };
        let outcomes = outcomes.await;
        server.resume("object")?;
        outcomes?;
        reads(&store, &at, &content(1000)).await?;
        refused(store.locate(&"other".parse().unwrap()).await, ErrorKind::NotFound, "").map(drop)
    })
}

fn foreign_segments(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let (store, raw) = (open(&server.config(&name)).await?, server.raw().await?);
        text(put(&store, "own", &content(9 * MIB)).await)?;
        // As swiftclient lays them out.
        for number in 0..3 {
            raw.put(&format!("/{name}_segments/image/slo/17.5/300/100/{number:08}"), content(100)).await?;
        }
        let list: Vec<_> = (0..3)
            .map(|n| serde_json::json!({ "path": format!("/{name}_segments/image/slo/17.5/300/100/{n:08}") }))
            .collect();
        let body = serde_json::to_vec(&list).unwrap();
        raw.put(&format!("/{name}/image?multipart-manifest=put"), body).await?;
        let swept = text(store.sweep(Duration::ZERO).await)?;
        check(swept == Swept::default(), format!("it swept {swept:?}"))?;
        let at = text(store.locate(&"image".parse().unwrap()).await)?;
        let bytes: Bytes = [content(100), content(100), content(100)].concat().into();
        reads(&store, &at, &bytes).await?;
        text(store.delete(&at).await)?;
        let left = raw.list(&format!("{name}_segments")).await?;
        check(left.iter().all(|name| name.starts_with("own/")), format!("{left:?} is left"))
    })
}

fn small_limit(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let (store, raw) = (open(&server.config(&name)).await?, server.raw().await?);
        for len in [3 * MIB, 3 * MIB + 1, 7 * MIB] {
            let (id, bytes) = (format!("blob-{len}"), content(len));
            let expect = Expect::new().size(len as u64);
            let blob = text(store.put(&id.parse().unwrap(), store_core::once(bytes.clone()), expect).await)?;
            reads(&store, &blob.location, &bytes).await?;
            text(store.delete(&blob.location).await)?;
        }
        holds_nothing(&store, &raw, &[&name, &format!("{name}_segments")]).await
    })
}

fn nested(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let mut config = server.config(&name);
        (config.segment_size.0, config.window.0) = (MIB as u64, 4 * MIB as u64);
        let (store, raw) = (open(&config).await?, server.raw().await?);
        let bytes = content(19 * MIB + 7);
        let at = text(put(&store, "image", &bytes).await)?;
        reads(&store, &at, &bytes).await?;
        let copy = text(store.copy(&at, &"copy".parse().unwrap(), |_| {}).await);
        // What was a list becomes one object, which is more than this server takes.
        check(copy.is_err(), "the copy of a list fits into one object")?;
        text(store.delete(&at).await)?;
        // An upload that is given up has lists, too.
        let mut writer = text(store.upload(&"other".parse().unwrap(), Expect::new()).await)?;
        text(writer.write(bytes.clone()).await)?;
        text(writer.abort().await)?;
        holds_nothing(&store, &raw, &[&name, &format!("{name}_segments")]).await?;
        let expect = Expect::new().size(1 << 40);
        let long = store.upload(&"long".parse().unwrap(), expect).await.map(drop);
        refused(long, ErrorKind::Unsupported, "`window`").map(drop)
    })
}

fn throttled(server: &Server) -> Outcome {
    run(async {
        let mut config = server.config(&container());
        (config.segment_size.0, config.concurrency) = (MIB as u64, 16);
        let store = open(&config).await?;
        let bytes = content(24 * MIB);
        let at = text(put(&store, "image", &bytes).await)?;
        reads(&store, &at, &bytes).await?;
        text(store.delete(&at).await)
    })
}

fn full_disk(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let mut config = server.config(&name);
        config.create_container = true;
        // Account and container servers want room, too.
        let store = match SwiftBackend::connect(&config).await {
            Err(error) => {
                return check(
                    [ErrorKind::Unavailable, ErrorKind::NoSpace].contains(&error.kind()),
                    format!("it fails with {error:?}"),
                );
            }
            Ok(backend) => Store::new("a", Arc::new(backend), quick()),
        };
        refused(put(&store, "small", &content(1000)).await, ErrorKind::Unavailable, "disks")?;
        refused(put(&store, "large", &content(9 * MIB)).await, ErrorKind::Unavailable, "disks")?;
        refused(store.locate(&"large".parse().unwrap()).await, ErrorKind::NotFound, "")?;
        let listed: Vec<_> = text(store.list().try_collect().await)?;
        check(listed.is_empty(), format!("it lists {listed:?}"))
    })
}

fn renewal(server: &Server) -> Outcome {
    run(async {
        for mut config in [server.keystone(&container()), server.config(&container())] {
            config.segment_size.0 = MIB as u64;
            let store = open(&config).await?;
            let bytes = content(6 * MIB);
            let mut writer = text(store.upload(&"image".parse().unwrap(), Expect::new()).await)?;
            // Longer than a token lives.
            for piece in bytes.chunks(2 * MIB) {
                text(writer.write(Bytes::copy_from_slice(piece)).await)?;
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            let blob = text(writer.finish().await)?;
            reads(&store, &blob.location, &bytes).await?;
        }
        Ok(())
    })
}

fn credentials(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let mut config = server.keystone(&name);
        let store = open(&config).await?;
        let at = text(put(&store, "image", &content(1000)).await)?;
        (config.user, config.password, config.project) = (None, None, None);
        config.application_credential_id = Some(server.get("APP_ID").to_owned());
        config.application_credential_secret = Some(Secret::new(server.get("APP_SECRET")));
        // It answers under another name there.
        config.region = Some("RegionTwo".to_owned());
        let backend = text(SwiftBackend::connect(&config).await)?;
        check(format!("{backend:?}").contains("http://localhost:"), format!("it uses {backend:?}"))?;
        let by_app = Store::new("a", Arc::new(backend), quick());
        reads(&by_app, &at, &content(1000)).await?;
        (config.application_credential_id, config.user) = (None, Some("glance".to_owned()));
        config.application_credential_name = Some("imagestore".to_owned());
        config.interface = store_swift::Interface::Internal;
        reads(&open(&config).await?, &at, &content(1000)).await?;
        // Without the version, and by ids.
        let mut config = server.keystone(&name);
        config.auth_url = config.auth_url.map(|url| url.trim_end_matches("/v3").to_owned());
        (config.user, config.user_id) = (None, Some(server.get("USER_ID").to_owned()));
        (config.project, config.project_id) = (None, Some(server.get("PROJECT_ID").to_owned()));
        reads(&open(&config).await?, &at, &content(1000)).await
    })
}

fn wrong_keystone(server: &Server) -> Outcome {
    run(async {
        let config = || server.keystone("images");
        let mut wrong = config();
        wrong.password = Some(Secret::new("hunter2"));
        let error = refused(SwiftBackend::connect(&wrong).await, ErrorKind::Denied, "role")?;
        check(!format!("{error} {error:?}").contains("hunter2"), "the password shows")?;
        let mut wrong = config();
        wrong.region = Some("RegionNine".to_owned());
        refused(SwiftBackend::connect(&wrong).await, ErrorKind::Invalid, "public in RegionOne")?;
        let mut wrong = config();
        wrong.service_type = "object".to_owned();
        refused(SwiftBackend::connect(&wrong).await, ErrorKind::Invalid, "no service of the type")?;
        let mut wrong = config();
        (wrong.user, wrong.password) = (Some("norole".to_owned()), Some(Secret::new("norolepass")));
        refused(SwiftBackend::connect(&wrong).await, ErrorKind::Denied, "roles")?;
        let mut wrong = config();
        wrong.auth_url = Some(format!("http://{}/v3", server.get("KEYSTONE_ADDRESS")));
        let error = SwiftBackend::connect(&wrong).await.map(drop).unwrap_err();
        check(
            [ErrorKind::Invalid, ErrorKind::Denied].contains(&error.kind()),
            format!("Swift for Keystone is {error:?}"),
        )
    })
}

fn service_token(server: &Server) -> Outcome {
    run(async {
        let name = container();
        drop(open(&server.keystone(&name)).await?);
        let raw = server.raw_keystone().await?;
        let mut config = SwiftConfig::new(&name);
        config.create_container = true;
        config.token = Some(Secret::new(raw.token()));
        config.endpoint = Some(raw.storage.clone());
        let alone = open(&config).await?;
        config.auth_url = Some(server.get("KEYSTONE_URL").to_owned());
        config.service_user = Some("swift".to_owned());
        config.service_password = Some(Secret::new("swiftpass"));
        let helped = open(&config).await?;
        tokio::time::sleep(Duration::from_secs(10)).await;
        refused(put(&alone, "image", &content(10)).await, ErrorKind::Denied, "token")?;
        let at = text(put(&helped, "image", &content(1000)).await)?;
        reads(&helped, &at, &content(1000)).await
    })
}

fn multi_tenant(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let tenant = |user: &str, project: &str| {
            let mut config = server.keystone(&name);
            (config.user, config.project) = (Some(user.to_owned()), Some(project.to_owned()));
            config.password = Some(Secret::new(format!("{user}pass")));
            config.multi_tenant = true;
            config.readers = vec![server.get("PROJECT_ID").to_owned()];
            config
        };
        let alice = open(&tenant("alice", "tenant-a")).await?;
        let bytes = content(9 * MIB);
        let at = text(put(&alice, "image", &bytes).await)?;
        check(at.to_string().starts_with("swift+http://"), format!("its location is {at}"))?;
        reads(&alice, &at, &bytes).await?;
        // It is the same object to others, if they may read it.
        let url = at.to_string().replacen("swift+http", "http", 1);
        let path = |raw: &Raw| url.replacen(raw.storage.rsplit_once("/v1").unwrap().0, "", 1);
        let glance = server.raw_keystone().await?;
        let mut elsewhere = glance.clone();
        elsewhere.storage = glance.storage.rsplit_once("/v1").unwrap().0.to_owned();
        let got = elsewhere.send(Method::GET, &path(&glance), &[]).await?;
        check(got.bytes().await.map_err(|e| e.to_string())? == bytes, "others read other bytes")?;
        let bob = open(&tenant("bob", "tenant-b")).await?;
        refused(bob.open(&at).await, ErrorKind::Invalid, "")?;
        let listed: Vec<_> = text(alice.list().try_collect().await)?;
        check(listed.len() == 1 && listed[0].size == bytes.len() as u64, format!("it lists {listed:?}"))?;
        text(alice.sweep(Duration::ZERO).await)?;
        reads(&alice, &at, &bytes).await?;
        text(alice.delete(&at).await)?;
        let mut writer = text(alice.upload(&"other".parse().unwrap(), Expect::new()).await)?;
        text(writer.write(bytes.clone()).await)?;
        text(writer.abort().await)?;
        // As if the process had been killed.
        let mut writer = text(alice.upload(&"killed".parse().unwrap(), Expect::new()).await)?;
        text(writer.write(bytes.clone()).await)?;
        std::mem::forget(writer);
        let swept = text(open(&tenant("alice", "tenant-a")).await?.sweep(Duration::ZERO).await)?;
        check(swept.uploads == 1, format!("it swept {swept:?}"))?;
        let listed: Vec<_> = text(alice.list().try_collect().await)?;
        check(listed.is_empty(), format!("it lists {listed:?}"))
    })
}

/// glance_store in a virtual environment, made once.
fn python() -> Result<PathBuf, String> {
    const VERSION: &str = "5.7.0";
    let home = std::env::var("HOME").unwrap_or_else(|_| "/root".to_owned());
    let cache = std::env::var("IMAGESTORE_CACHE").unwrap_or_else(|_| format!("{home}/.cache/imagestore"));
    let venv = Path::new(&cache).join(format!("glance_store-swift-{VERSION}"));
    let ready = venv.join("bin/python");
    if ready.exists() {
        return Ok(ready);
    }
    // Made beside it, so that one that was cut short is never used.
    let made = venv.with_extension(format!("{}", std::process::id()));
    let run = |command: &mut Command| {
        let output = command.output().map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    };
    run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&made))?;
    let packages = [format!("glance_store=={VERSION}"), "python-swiftclient==4.11.0".to_owned()];
    let packages: Vec<String> =
        packages.into_iter().chain(["python-keystoneclient==6.0.0".to_owned()]).collect();
    run(Command::new(made.join("bin/python")).args(["-m", "pip", "install", "-q"]).args(packages))?;
    match std::fs::rename(&made, &venv) {
        Ok(()) => Ok(ready),
        Err(_) if ready.exists() => std::fs::remove_dir_all(&made).map(|()| ready).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Adds an image of each size with glance_store's own driver, and prints their locations.
const GLANCE: &str = r#"
import io, sys
import glance_store
from glance_store._drivers.swift import store as swift
from oslo_config import cfg
url, user, key, container, region, config = sys.argv[1:7]
conf = cfg.ConfigOpts()
glance_store.register_opts(conf)
conf([], project='test')
def put(name, value):
    conf.set_override(name, value, group='glance_store')
put('swift_store_container', container)
put('swift_store_create_container_on_put', True)
put('swift_store_region', region)
put('swift_store_large_object_size', 1)
put('swift_store_large_object_chunk_size', 1)
if config:
    put('swift_store_config_file', config)
    put('default_swift_reference', 'ref1')
else:
    put('swift_store_auth_address', url)
    put('swift_store_user', user)
    put('swift_store_key', key)
driver = swift.Store(conf)
driver.configure()
for image in sys.argv[7:]:
    name, size = image.split('=')
    size = int(size)
    state, data = 7, bytearray()
    while len(data) < size:
        state = (state * 1664525 + 1013904223) & 0xffffffff
        data.append(state >> 24)
    print(driver.add(name, io.BytesIO(bytes(data)), size, 'sha512')[0])
"#;

fn glance(server: &Server) -> Outcome {
    let python = python()?;
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let settings = folder.path().join("swift.conf");
    let (user, key) =
        (format!("{}:{}", server.get("PROJECT"), server.get("USERNAME")), server.get("PASSWORD"));
    let url = server.get("KEYSTONE_URL");
    let text_of_settings = format!(
        "[ref1]\nuser = {user}\nkey = {key}\nauth_address = {url}\nauth_version = 3\nuser_domain_id = default\n\
         project_domain_id = default\n"
    );
    std::fs::write(&settings, text_of_settings).map_err(|e| e.to_string())?;
    let name = container();
    let add = |config: &str, images: &[String]| {
        let output = Command::new(&python)
            .args(["-c", GLANCE, url, &user, key, &name, server.get("REGION"), config])
            .args(images)
            .output()
            .map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<String> = lines.lines().map(str::to_owned).collect();
        if output.status.success() { Ok(lines) } else { Err(format!("glance_store fails: {said}")) }
    };
    // It cannot store what is no multiple of its segments and longer than one.
    let sizes = [10, 3 * 1_024_000];
    let images = |kind: &str| sizes.map(|size| format!("{kind}-{size}={size}"));
    let mut locations = add(&settings.display().to_string(), &images("config"))?;
    locations.extend(add("", &images("plain"))?);
    run(async {
        let store = open(&server.keystone(&name)).await?;
        check(locations[0].starts_with("swift+config://ref1/"), format!("a location is {}", locations[0]))?;
        check(locations[2].contains(key), "there is no secret in the location of a single tenant")?;
        for (location, size) in locations.iter().zip(sizes.iter().cycle()) {
            let (at, bytes): (Location, _) = (text(location.parse())?, content(*size));
            check(!format!("{at} {at:?}").contains(key), "the location shows its secret")?;
            reads(&store, &at, &bytes).await?;
            let verified = store.verify(&at, |_| {}).await;
            check(
                verified.as_ref().err().is_none_or(|error| error.kind() != ErrorKind::Corrupt),
                format!("it is not verified: {verified:?}"),
            )?;
            check(text(store.stat(&at).await)?.meta.is_none(), "metadata was invented")?;
            text(store.delete(&at).await)?;
            refused(store.open(&at).await, ErrorKind::NotFound, "")?;
        }
        // Only now: a token lives for seconds here.
        let left = server.raw_keystone().await?.list(&name).await?;
        check(left.is_empty(), format!("{left:?} is left"))
    })
}
