//! What only Ceph does, for real: daemons that stop and die, quotas, permissions, killed writers, clones, other programs.
//!
//! The test starts itself again as the process that is killed, or that has no librbd.

#![allow(clippy::unwrap_used, reason = "a test panics where its own set-up fails")]

use std::{
    collections::BTreeSet,
    future::Future,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use conformance_tests::{Fixture, is_required};
use futures::{StreamExt, TryStreamExt, stream};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use store_ceph::{CephBackend, CephConfig, CopyMode, Feature, InUse};
use store_core::{Backend, BlobId, Chunk, Error, ErrorKind, Expect, Location, Secret, Size, Span, Store};

#[allow(dead_code, reason = "each test uses a part of it")]
mod server;

use server::{Server, limited, signal, unique};

const CHILD: &str = "STORE_CEPH_TEST_CHILD";

/// Without the wait in `Pool::open`, librbd 16 ended the process before this many images were opened, mostly.
const CHURN: usize = 1500;

/// No test may take longer: one that hangs fails, by its name.
const DEADLINE: Duration = Duration::from_secs(240);

/// For tests that do no harm to each other.
static CALM: LazyLock<Result<Server, String>> = LazyLock::new(|| Server::start("calm", &[]));

type Outcome = Result<(), Failed>;

fn main() {
    if let Ok(task) = std::env::var(CHILD) {
        return child(&task);
    }
    type Test = (&'static str, fn() -> Outcome);
    let tests: [Test; 41] = [
        ("a_stopped_osd_is_unavailable_until_it_goes_on", stopped_osd),
        ("an_upload_outlives_the_death_of_the_osd", killed_osd),
        ("a_reader_outlives_the_death_of_the_osd", read_over_death),
        ("a_stopped_osd_blocks_no_async_thread", not_blocked),
        ("a_cluster_without_monitor_is_unavailable", no_monitor),
        ("an_upload_needs_no_monitor_for_a_while", monitor_stopped),
        ("a_client_that_was_blocked_connects_anew", blocked),
        ("a_cluster_that_is_full_is_no_space_and_lets_delete", full_cluster),
        ("a_pool_that_was_full_before_lets_delete", full_before),
        ("a_quota_reached_in_mid_upload_is_no_space_and_leaves_nothing", quota),
        ("a_wrong_key_is_denied", wrong_key),
        ("a_user_without_permissions_is_denied", no_permissions),
        ("a_user_that_may_only_read_reads", read_only_user),
        ("what_is_not_there_is_named", nothing_there),
        ("a_machine_without_librbd_is_told_the_package", no_library),
        ("librados_writes_nothing_to_the_process_s_stderr", quiet),
        ("stores_of_one_account_share_a_connection", one_connection),
        ("kill_9_leaves_whole_blobs_and_what_a_sweep_removes", kill_9),
        ("a_killed_writer_is_swept_from_a_full_pool", kill_9_full),
        ("a_blob_with_clones_stays_untouched", clones),
        ("a_blob_with_clones_goes_to_the_trash_if_that_is_wanted", trash),
        ("a_blob_that_is_open_to_write_is_in_use", watched),
        ("a_reader_of_a_deleted_blob_gets_no_zeros", deleted_under_reader),
        ("a_reader_of_a_deleted_clone_gets_nothing_of_its_parent", deleted_clone_under_reader),
        ("a_slow_deletion_takes_no_later_blob_of_the_id", deleted_meanwhile),
        ("a_deletion_beside_sweeps_is_whole_or_not_at_all", deleted_beside_sweeps),
        ("a_clean_up_cut_short_by_a_kill_is_finished_by_a_sweep", killed_discard),
        ("no_option_of_the_cluster_keeps_what_is_discarded", kept_by_option),
        ("a_move_to_the_trash_cut_short_is_in_no_sweeps_way", half_moved),
        ("a_commit_cut_short_by_a_kill_is_finished_by_a_sweep", half_renamed),
        ("a_removal_cut_short_by_a_kill_is_finished_by_a_sweep", half_removed),
        ("an_image_that_is_just_being_made_is_not_swept", just_made),
        ("an_upload_of_unknown_length_grows_and_is_whole", grown),
        ("other_programs_read_our_blobs", read_by_others),
        ("we_read_the_images_of_others", read_from_others),
        ("images_of_glance_store_are_ours_too", glance),
        ("an_image_is_made_as_configured", layout),
        ("data_can_be_in_another_pool", data_pool),
        ("data_can_be_in_an_erasure_coded_pool", erasure_coded),
        ("a_sparse_blob_stays_sparse_in_files_and_other_stores", sparse),
        ("images_closed_as_soon_as_they_are_open_do_no_harm", opened_and_closed),
    ];
    let missing = CALM.as_ref().err().cloned();
    if let Some(why) = missing.as_ref().filter(|_| is_required("ceph")) {
        eprintln!("error: ceph is required, but {why}");
        std::process::exit(101);
    }
    let trials = tests.map(|(name, test)| {
        let missing = missing.clone();
        Trial::ignorable_test(name, move || match missing {
            Some(why) => Ok(Completion::ignored_with(why)),
            None => in_time(test).map(|()| Completion::Completed),
        })
    });
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials.into());
    if let Ok(server) = &*CALM {
        let _ = server.stop();
    }
    conclusion.exit()
}

fn in_time(test: fn() -> Outcome) -> Outcome {
    let (ended, outcome) = mpsc::channel();
    let running = std::thread::spawn(move || {
        let _ended = ended;
        test()
    });
    match outcome.recv_timeout(DEADLINE) {
        Err(mpsc::RecvTimeoutError::Timeout) => Err(format!("it hangs: no end after {DEADLINE:?}").into()),
        // Nothing is sent; the end drops the sender.
        Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => match running.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        },
    }
}

fn calm() -> &'static Server {
    CALM.as_ref().unwrap()
}

fn run(test: impl Future<Output = Result<(), Error>>) -> Outcome {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(test).map_err(|error| Failed::from(format!("{error} ({})", error.kind())))
}

async fn open(config: &CephConfig) -> store_core::Result<Store> {
    let backend: Arc<dyn Backend> = Arc::new(CephBackend::connect(config).await?);
    Ok(Store::new("ceph", backend, Fixture::quick_options()))
}

/// Bytes that are the same nowhere, and never zero for long.
fn content(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

fn source(bytes: &Bytes) -> impl futures::Stream<Item = store_core::Result<Bytes>> + Send + use<> {
    stream::iter(vec![Ok(bytes.clone())])
}

async fn put(store: &Store, id: &str, bytes: &Bytes) -> store_core::Result<Location> {
    let expect = Expect::new().size(bytes.len() as u64);
    Ok(store.put(&id.parse()?, source(bytes), expect).await?.location)
}

#[track_caller]
fn assert_kind<T>(outcome: store_core::Result<T>, kind: ErrorKind) -> Error {
    let error = outcome.err().unwrap();
    assert_eq!(error.kind(), kind, "{error}");
    error
}

/// Names of all images of a namespace, and of what is in its trash.
fn everything(server: &Server, namespace: &str) -> BTreeSet<String> {
    const LIST: &str = "for name in rbd.RBD().list(io): print(name)\n\
        for entry in rbd.RBD().trash_list(io): print('trash/' + entry['name'])";
    server.python(namespace, LIST, &[]).unwrap().lines().map(str::to_owned).collect()
}

/// Objects of images in a namespace of the calm cluster.
fn parts(namespace: &str) -> Vec<String> {
    const OBJECTS: &str = "for object in io.list_objects(): print(object.key)";
    let objects = calm().python(namespace, OBJECTS, &[]).unwrap();
    let kinds = ["rbd_id.", "rbd_header.", "rbd_data.", "rbd_object_map."];
    objects
        .lines()
        .filter(|name| kinds.iter().any(|kind| name.starts_with(kind)))
        .map(str::to_owned)
        .collect()
}

/// The configuration of the calm cluster with more settings for clients.
fn conf_with(settings: &str) -> tempfile::NamedTempFile {
    let conf = tempfile::NamedTempFile::new().unwrap();
    let calm = std::fs::read_to_string(&calm().conf).unwrap();
    std::fs::write(conf.path(), format!("{calm}[client]\n{settings}\n")).unwrap();
    conf
}

/// Each answer comes after a tenth of a second, on average.
const SLOW: &str = "ms_inject_delay_type = osd\nms_inject_delay_probability = 1\nms_inject_delay_max = 0.2";

fn impatient(server: &Server) -> CephConfig {
    let mut config = server.own_namespace();
    config.operation_timeout = Span(Duration::from_secs(4));
    config.connect_timeout = Span(Duration::from_secs(4));
    config
}

/// A cluster that is stopped when the test is over, however it ends.
struct Own(Server);

impl Own {
    fn start(name: &str, options: &[&str]) -> Self {
        Self(Server::start(name, options).unwrap())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.stop();
    }
}

fn stopped_osd() -> Outcome {
    let server = Own::start("stopped", &[]);
    run(async {
        let config = impatient(&server.0);
        let store = open(&config).await?;
        let bytes = content(1, 9 << 20);
        let at = put(&store, "a", &bytes).await?;
        let reader = store.open(&at).await?;
        // One attempt each: the store would try again.
        let backend = CephBackend::connect(&config).await?;
        let mut writer = store.upload(&"c".parse()?, Expect::new()).await?;
        writer.write(bytes.clone()).await?;
        signal(server.0.osd, "STOP").unwrap();
        let begun = Instant::now();
        let written = async {
            writer.write(content(20, 64 << 20)).await?;
            writer.finish().await.map(drop)
        };
        assert_kind(written.await, ErrorKind::Unavailable);
        assert!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());
        assert_kind(backend.open(&at).await, ErrorKind::Unavailable);
        assert_kind(backend.locate(&"a".parse()?).await, ErrorKind::Unavailable);
        assert_kind(backend.delete(&at).await, ErrorKind::Unavailable);
        assert_kind(backend.list().try_collect::<Vec<_>>().await, ErrorKind::Unavailable);
        signal(server.0.osd, "CONT").unwrap();
        let caught_up = async || {
            let opened = backend.open(&at).await;
            opened
                .inspect_err(|error| eprintln!("the OSD has not caught up: {error} ({})", error.kind()))
                .is_ok()
        };
        until("the OSD has caught up", caught_up).await;
        // The same handles work again, and nothing has happened meanwhile.
        let read: Vec<Bytes> = reader.stream(..)?.try_collect().await?;
        assert!(read.concat() == bytes);
        assert!(store.get(&at, ..).await? == bytes);
        put(&store, "b", &bytes).await?;
        until("only blobs are left", async || {
            store.sweep(Duration::ZERO).await.unwrap();
            everything(&server.0, config.namespace.as_deref().unwrap())
                == ["a".to_owned(), "b".to_owned()].into()
        })
        .await;
        Ok(())
    })
}

fn killed_osd() -> Outcome {
    let server = Own::start("killed", &["--bluestore"]);
    run(async {
        let store = open(&server.0.own_namespace()).await?;
        let bytes = content(2, 48 << 20);
        let mut writer = store.upload(&"a".parse()?, Expect::new()).await?;
        writer.write(bytes.slice(..16 << 20)).await?;
        signal(server.0.osd, "KILL").unwrap();
        let own = server.0.clone();
        let restarting = tokio::task::spawn_blocking(move || own.restart().unwrap());
        // More than fits in the window: it waits for the OSD.
        writer.write(bytes.slice(16 << 20..32 << 20)).await?;
        restarting.await.unwrap();
        writer.write(bytes.slice(32 << 20..)).await?;
        let at = writer.finish().await?.location;
        assert!(open(&server.0.own_namespace()).await?.get(&at, ..).await.is_err(), "another namespace");
        assert!(store.get(&at, ..).await? == bytes);
        Ok(())
    })
}

fn read_over_death() -> Outcome {
    let server = Own::start("reading", &["--bluestore"]);
    run(async {
        let mut config = server.0.own_namespace();
        config.concurrency = 1;
        let store = open(&config).await?;
        let bytes = content(60, 48 << 20);
        let at = put(&store, "a", &bytes).await?;
        let reader = store.open(&at).await?;
        let mut stream = std::pin::pin!(reader.stream(..)?);
        let mut read = vec![stream.try_next().await?.unwrap()];
        signal(server.0.osd, "KILL").unwrap();
        let own = server.0.clone();
        let restarting = tokio::task::spawn_blocking(move || own.restart().unwrap());
        while let Some(piece) = stream.try_next().await? {
            read.push(piece);
        }
        restarting.await.unwrap();
        assert!(read.concat() == bytes);
        Ok(())
    })
}

fn not_blocked() -> Outcome {
    let server = Own::start("single", &[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcome = runtime.block_on(async {
        let backend = CephBackend::connect(&impatient(&server.0)).await?;
        let store = Store::new("ceph", Arc::new(backend.clone()), Fixture::quick_options());
        let at = put(&store, "a", &content(61, 1 << 20)).await?;
        let mut writer = store.upload(&"b".parse()?, Expect::new()).await?;
        let bytes = content(62, 32 << 20);
        signal(server.0.osd, "STOP").unwrap();
        let mut slowest = Duration::ZERO;
        let ticking = async {
            loop {
                let begun = Instant::now();
                tokio::time::sleep(Duration::from_millis(20)).await;
                slowest = slowest.max(begun.elapsed());
            }
        };
        let written = async {
            writer.write(bytes).await?;
            writer.finish().await.map(drop)
        };
        let work =
            async { tokio::join!(backend.open(&at), backend.delete(&at), backend.capacity(), written) };
        let (opened, deleted, _, written) = tokio::select! {
            outcomes = work => outcomes,
            () = ticking => unreachable!("it goes on for ever"),
        };
        signal(server.0.osd, "CONT").unwrap();
        assert_kind(opened.map(drop), ErrorKind::Unavailable);
        assert_kind(deleted, ErrorKind::Unavailable);
        assert_kind(written, ErrorKind::Unavailable);
        assert!(slowest < Duration::from_secs(1), "nothing else ran for {slowest:?}");
        Ok::<_, Error>(())
    });
    outcome.map_err(|error| Failed::from(error.to_string()))
}

fn monitor_stopped() -> Outcome {
    let server = Own::start("silent", &[]);
    run(async {
        let store = open(&impatient(&server.0)).await?;
        let bytes = content(63, 24 << 20);
        let mut writer = store.upload(&"a".parse()?, Expect::new()).await?;
        writer.write(bytes.slice(..8 << 20)).await?;
        signal(server.0.mon, "STOP").unwrap();
        writer.write(bytes.slice(8 << 20..)).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        signal(server.0.mon, "CONT").unwrap();
        let at = writer.finish().await?.location;
        assert!(store.get(&at, ..).await? == bytes);
        Ok(())
    })
}

fn blocked() -> Outcome {
    let server = Own::start("blocked", &[]);
    run(async {
        let config = server.0.config();
        let store = open(&config).await?;
        let bytes = content(64, 100_000);
        let at = put(&store, "a", &bytes).await?;
        let mut writer = store.upload(&"b".parse()?, Expect::new()).await?;
        writer.write(bytes.clone()).await?;
        let names = everything(&server.0, "");
        let name = names.iter().find(|name| name.starts_with(".imagestore.")).unwrap();
        let status =
            server.0.tool("rbd", "admin", &["status", &format!("{}/{name}", server.0.pool)]).unwrap();
        let address = status.lines().find_map(|line| line.trim().strip_prefix("watcher=")).unwrap();
        let address = address.split(' ').next().unwrap();
        server.0.tool("ceph", "admin", &["osd", "blocklist", "add", address]).unwrap();
        until("it is blocked", async || store.open(&at).await.is_err()).await;
        let error = assert_kind(store.open(&at).await.map(drop), ErrorKind::Unavailable);
        assert!(error.hint().unwrap().contains("blocklist"), "{error:?}");
        drop(writer);
        // Stores of the same account, one after the other.
        let other = CephConfig { object_size: Size(4 << 20), ..config.clone() };
        CephBackend::connect(&other).await?.open(&at).await?;
        let store = open(&config).await?;
        assert!(store.get(&at, ..).await? == bytes);
        put(&store, "c", &bytes).await.map(drop)
    })
}

fn full_cluster() -> Outcome {
    let server = Own::start("brimful", &["--size", "700M"]);
    run(async {
        let config = server.0.config();
        let store = open(&config).await?;
        let bytes = content(65, 32 << 20);
        let mut put_there = Vec::new();
        let error = loop {
            assert!(put_there.len() < 60, "it is never full");
            // Nobody is stopped before it is counted.
            tokio::time::sleep(Duration::from_millis(30 * put_there.len() as u64)).await;
            // Without a length: nobody asks for the space before.
            let id = format!("a{}", put_there.len()).parse()?;
            match store.put(&id, source(&bytes), Expect::new()).await {
                Ok(blob) => put_there.push(blob.location),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        store.settle().await;
        let at = put_there.pop().unwrap();
        assert!(store.get(&at, ..).await? == bytes);
        store.delete(&at).await?;
        assert_kind(store.open(&at).await.map(drop), ErrorKind::NotFound);
        for at in put_there {
            store.delete(&at).await?;
        }
        until("there is room again", async || {
            store.sweep(Duration::ZERO).await.unwrap();
            put(&store, "b", &bytes).await.is_ok()
        })
        .await;
        assert_eq!(everything(&server.0, ""), ["b".to_owned()].into());
        Ok(())
    })
}

fn full_before() -> Outcome {
    let server = Own::start("before", &[]);
    run(async {
        // Nothing was ever removed: there is no trash, and no room to make it.
        const FILL: &str = "rbd.RBD().create(io, 'a', 24 << 20, old_format=False)\n\
            image = rbd.Image(io, 'a')\n\
            for n in range(24): image.write(b'x' * (1 << 20), n << 20)\n\
            image.create_snap('snap'); image.protect_snap('snap'); image.close()";
        server.0.python("", FILL, &[]).unwrap();
        set_quota(&server.0, 8 << 20);
        until("the pool is full", async || {
            server.0.tool("ceph", "admin", &["health", "detail"]).unwrap().contains("POOL_FULL")
        })
        .await;
        let store = open(&server.0.config()).await?;
        assert_kind(put(&store, "b", &content(66, 1 << 20)).await, ErrorKind::NoSpace);
        store.delete(&"rbd://a".parse()?).await?;
        until("nothing is left", async || {
            store.sweep(Duration::ZERO).await.unwrap();
            let all = server.0.tool("rados", "admin", &["-p", &server.0.pool, "ls"]).unwrap();
            !all.contains("rbd_data.") && everything(&server.0, "").is_empty()
        })
        .await;
        Ok(())
    })
}

fn no_monitor() -> Outcome {
    let server = Own::start("monitor", &[]);
    run(async {
        let config = impatient(&server.0);
        let backend = CephBackend::connect(&config).await?;
        signal(server.0.mon, "STOP").unwrap();
        assert_kind(backend.capacity().await, ErrorKind::Unavailable);
        let mut other = impatient(&server.0);
        // Another account, and so another connection.
        other.connect_timeout = Span(Duration::from_secs(3));
        let error = assert_kind(CephBackend::connect(&other).await, ErrorKind::Unavailable);
        assert!(error.message().contains("no monitor"), "{error}");
        signal(server.0.mon, "CONT").unwrap();
        backend.capacity().await.map(drop)
    })
}

/// Waits until the cluster says so, which counts with a delay.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !holds().await {
        assert!(Instant::now() < end, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn set_quota(server: &Server, bytes: u64) {
    let quota = bytes.to_string();
    let command = ["osd", "pool", "set-quota", &server.pool, "max_bytes", &quota];
    server.tool("ceph", "admin", &command).unwrap();
}

/// Writes until there is no more room.
async fn fill(store: &Store, id: &str) -> store_core::Result<()> {
    let mut writer = store.upload(&id.parse()?, Expect::new()).await?;
    for seed in 0..300 {
        writer.write(content(seed, 4 << 20)).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    writer.finish().await.map(drop)
}

fn quota() -> Outcome {
    let server = Own::start("quota", &[]);
    run(async {
        let config = server.0.config();
        let store = open(&config).await?;
        let small = content(3, 1 << 20);
        let at = put(&store, "small", &small).await?;
        let origin = put(&store, "origin", &content(30, 16 << 20)).await?;
        set_quota(&server.0, 24 << 20);
        until("the quota counts", async || {
            store.capacity().await.is_ok_and(|c| c.total <= 24 << 20 && c.free < 12 << 20)
        })
        .await;
        // What takes no space needs none.
        let mut config = config.clone();
        config.copy = CopyMode::Clone;
        let cloning = open(&config).await?;
        let copy = cloning.copy(&origin, &"copy".parse()?, |_| {}).await?.location;
        assert!(store.get(&copy, ..).await? == content(30, 16 << 20));
        assert_kind(put(&cloning, "full", &content(31, 16 << 20)).await, ErrorKind::NoSpace);
        store.delete(&copy).await?;
        store.delete(&origin).await?;
        // What cannot fit is refused before the first byte.
        let expect = Expect::new().size(1 << 30);
        assert_kind(store.upload(&"large".parse()?, expect).await, ErrorKind::NoSpace);
        assert_kind(fill(&store, "a").await, ErrorKind::NoSpace);
        store.settle().await;
        assert_kind(store.locate(&"a".parse()?).await, ErrorKind::NotFound);
        store.sweep(Duration::ZERO).await?;
        assert_eq!(everything(&server.0, ""), ["small".to_owned()].into());
        // On the full pool too, a blob is read and deleted.
        assert!(store.get(&at, ..).await? == small);
        store.delete(&at).await?;
        assert_eq!(everything(&server.0, ""), BTreeSet::new());
        Ok(())
    })
}

fn wrong_key() -> Outcome {
    run(async {
        let mut config = calm().config();
        config.keyring = None;
        let key = "AQDJ1eZiAAAAABAAdTIzBDSZvGhBTXB5C9uI5g==";
        config.key = Some(Secret::new(key));
        let error = assert_kind(CephBackend::connect(&config).await, ErrorKind::Denied);
        assert!(!format!("{error} {error:?}").contains(key));
        // The right key as text, and monitors in place of a configuration.
        let keyring = std::fs::read_to_string(&calm().keyring).unwrap();
        config.key = Some(Secret::new(keyring.split("key = ").nth(1).unwrap().trim()));
        let conf = std::fs::read_to_string(&calm().conf).unwrap();
        let monitors = conf.lines().find_map(|line| line.trim().strip_prefix("mon_host = ")).unwrap();
        (config.conf, config.mon_host) = (None, Some(monitors.to_owned()));
        let store = open(&config).await?;
        put(&store, &unique("keyed"), &content(4, 1000)).await.map(drop)
    })
}

fn no_permissions() -> Outcome {
    run(async {
        let server = calm();
        let keyring = server.conf.with_file_name("weak.keyring");
        let add = ["auth", "get-or-create", "client.weak", "mon", "allow r", "-o", keyring.to_str().unwrap()];
        server.tool("ceph", "admin", &add).unwrap();
        let mut config = server.config();
        config.user = "weak".to_owned();
        config.keyring = Some(keyring);
        let error = assert_kind(CephBackend::connect(&config).await, ErrorKind::Denied);
        assert!(error.hint().unwrap().contains("profile rbd"), "{error:?}");
        Ok(())
    })
}

fn read_only_user() -> Outcome {
    run(async {
        let server = calm();
        let config = server.own_namespace();
        let bytes = content(67, 3 << 20);
        let at = put(&open(&config).await?, "a", &bytes).await?;
        let keyring = server.conf.with_file_name("reader.keyring");
        let osd = format!("profile rbd-read-only pool={}", server.pool);
        let caps = ["mon", "profile rbd", "osd", &osd, "-o", keyring.to_str().unwrap()];
        let add = [&["auth", "get-or-create", "client.reader"][..], &caps].concat();
        server.tool("ceph", "admin", &add).unwrap();
        let reading = CephConfig {
            user: "reader".to_owned(),
            keyring: Some(keyring),
            create_namespace: false,
            ..config
        };
        let store = open(&reading).await?;
        assert!(store.get(&at, ..).await? == bytes);
        assert_eq!(store.list().count().await, 1);
        let error = assert_kind(put(&store, "b", &bytes).await, ErrorKind::Denied);
        assert!(error.hint().unwrap().contains("profile rbd"), "{error:?}");
        assert_kind(store.delete(&at).await, ErrorKind::Denied);
        assert!(store.get(&at, ..).await? == bytes);
        Ok(())
    })
}

fn nothing_there() -> Outcome {
    run(async {
        let server = calm();
        let wrong = |change: fn(&mut CephConfig)| {
            let mut config = server.config();
            change(&mut config);
            async move { CephBackend::connect(&config).await }
        };
        let error = assert_kind(wrong(|c| c.pool = "nonesuch".into()).await, ErrorKind::Invalid);
        assert!(error.message().contains("`nonesuch`"), "{error}");
        let error = wrong(|c| c.namespace = Some("nonesuch".into())).await;
        assert!(assert_kind(error, ErrorKind::Invalid).message().contains("`nonesuch`"));
        let error = wrong(|c| c.keyring = Some("/nonexistent".into())).await;
        assert!(assert_kind(error, ErrorKind::Denied).hint().unwrap().contains("keyring"));
        let unresolved = |c: &mut CephConfig| {
            (c.conf, c.mon_host) = (None, Some("nonesuch.invalid".into()));
        };
        let error = assert_kind(wrong(unresolved).await, ErrorKind::Invalid);
        assert!(error.message().contains("`mon_host`"), "{error}");
        let error = wrong(|c| (c.keyring, c.key) = (None, Some(Secret::new("rubbish")))).await;
        assert!(assert_kind(error, ErrorKind::Invalid).hint().unwrap().contains("`key`"));
        let error = wrong(|c| c.keyring = Some("/etc/hostname".into())).await;
        assert!(assert_kind(error, ErrorKind::Invalid).message().contains("keyring"));
        let error = wrong(|c| c.conf = Some("/nonexistent".into())).await;
        assert!(assert_kind(error, ErrorKind::Invalid).message().contains("/nonexistent"));
        Ok(())
    })
}

/// This test again, as another process.
fn again(task: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(CHILD, task).stdin(Stdio::null());
    command
}

/// Waits until a process says something.
fn first_line(child: &mut std::process::Child) -> String {
    let mut line = String::new();
    let said = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(said), &mut line).unwrap();
    line
}

fn child(task: &str) {
    let words: Vec<&str> = task.split(' ').collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut config = CephConfig::default();
    if let [_, conf, keyring, namespace, ..] = words.as_slice() {
        config.conf = Some(conf.into());
        config.keyring = Some(keyring.into());
        config.namespace = Some(namespace.to_string()).filter(|name| name != "-");
    }
    runtime.block_on(async {
        match words[0] {
            "open" => {
                let error = CephBackend::connect(&config).await.unwrap_err();
                println!("{}: {error} ({})", error.kind(), error.hint().unwrap_or_default());
            }
            "put" => {
                let store = open(&config).await.unwrap();
                let bytes = content(5, 24 << 20);
                for number in 0.. {
                    put(&store, &format!("{}-{number}", words[4]), &bytes).await.unwrap();
                }
            }
            "churn" => churn(&config).await,
            "list" => {
                let all: Vec<_> = open(&config).await.unwrap().list().try_collect().await.unwrap();
                println!("{}", all.len());
            }
            "share" => {
                // A connection has threads of its own.
                let threads = || {
                    std::fs::read_dir("/proc/self/task").unwrap().flatten().filter(|thread| {
                        let name = std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
                        name.starts_with("msgr-worker") || name.starts_with("ms_dispatch")
                    })
                };
                let first = CephBackend::connect(&config).await.unwrap();
                let one = threads().count();
                config.namespace = None;
                config.object_size = Size(1 << 20);
                let second = CephBackend::connect(&config).await.unwrap();
                let two = threads().count();
                config.operation_timeout = Span(Duration::from_secs(77));
                let third = CephBackend::connect(&config).await.unwrap();
                println!("{one} {two} {}", threads().count());
                drop((first, second, third));
            }
            "abandon" => {
                // Many of them take their time.
                config.object_size = Size(128 << 10);
                let store = open(&config).await.unwrap();
                let mut writer = store.upload(&"abandoned".parse().unwrap(), Expect::new()).await.unwrap();
                writer.write(content(53, 24 << 20)).await.unwrap();
                drop(writer);
                println!("abandoned");
                store.settle().await;
                std::future::pending::<()>().await;
            }
            "begin" => {
                let store = open(&config).await.unwrap();
                let mut writer = store.upload(&"begun".parse().unwrap(), Expect::new()).await.unwrap();
                writer.write(content(6, 64 << 20)).await.unwrap();
                println!("written"); // All but what is in flight, which is less than half of it.
                std::future::pending::<()>().await;
            }
            other => panic!("{other}?"),
        }
    });
}

fn no_library() -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    // The loader takes the first that it finds, and this is no library.
    std::fs::write(folder.path().join("librados.so.2"), b"").unwrap();
    let output = again("open").env("LD_LIBRARY_PATH", folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.starts_with("unsupported: ") && said.contains("librbd1"), "{said} {output:?}");
    Ok(())
}

fn quiet() -> Outcome {
    let conf = conf_with("log_to_stderr = true\nerr_to_stderr = true\ndebug_ms = 1\ndebug_rados = 20");
    let mut server = calm().clone();
    server.conf = conf.path().into();
    let config = calm().own_namespace();
    run(async { open(&config).await.map(drop) })?;
    let output = again(&task("list", &server, &config.namespace.unwrap())).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!((&*output.stdout, &*output.stderr), (&b"0\n"[..], &b""[..]));
    Ok(())
}

fn one_connection() -> Outcome {
    let config = calm().own_namespace();
    run(async { open(&config).await.map(drop) })?;
    let output = again(&task("share", calm(), &config.namespace.unwrap())).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let counts: Vec<usize> = said.split_whitespace().map(|count| count.parse().unwrap()).collect();
    let [one, two, three] = counts[..] else { panic!("{said}") };
    assert!(one > 0 && two == one && three > two, "{said}");
    Ok(())
}

/// Images that are closed at once while no thread gets on: librbd's open must have let go of them.
fn opened_and_closed() -> Outcome {
    let server = calm();
    let config = server.own_namespace();
    let namespace = config.namespace.clone().unwrap();
    run(async { put(&open(&config).await?, "a", &content(15, 1000)).await.map(drop) })?;
    let output = again(&task("churn", server, &namespace)).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    Ok(())
}

async fn churn(config: &CephConfig) {
    let backend = CephBackend::connect(config).await.unwrap();
    let busy = Arc::new(AtomicBool::new(true));
    let burners: Vec<_> = (0..2 * std::thread::available_parallelism().unwrap().get())
        .map(|_| Arc::clone(&busy))
        .map(|busy| std::thread::spawn(move || while busy.load(Ordering::Relaxed) {}))
        .collect();
    let id: BlobId = "a".parse().unwrap();
    let located = stream::iter(0..CHURN).map(|_| backend.locate(&id)).buffer_unordered(8);
    located.try_for_each(|_| std::future::ready(Ok(()))).await.unwrap();
    busy.store(false, Ordering::Relaxed);
    burners.into_iter().for_each(|burner| burner.join().unwrap());
}

/// What a child needs to know.
fn task(what: &str, server: &Server, namespace: &str) -> String {
    format!("{what} {} {} {namespace}", server.conf.display(), server.keyring.display())
}

fn kill_9() -> Outcome {
    run(async {
        let server = calm();
        let config = server.own_namespace();
        let namespace = config.namespace.clone().unwrap();
        let store = open(&config).await?;
        for round in 0..6u64 {
            let name = format!("r{round}");
            let first = format!("{name}-0").parse()?;
            let mut child = again(&format!("{} {name}", task("put", server, &namespace))).spawn().unwrap();
            until("a blob is there", async || store.locate(&first).await.is_ok()).await;
            tokio::time::sleep(Duration::from_millis(37 * (round * 7 % 11))).await;
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let bytes = content(5, 24 << 20);
        let blobs: Vec<_> = store.list().try_collect().await?;
        assert!(blobs.len() >= 6);
        for blob in &blobs {
            assert!(store.get(&blob.location, ..).await? == bytes, "{}", blob.id);
        }
        let whole: BTreeSet<String> = blobs.iter().map(|blob| blob.id.to_string()).collect();
        for turn in 0.. {
            store.sweep(Duration::ZERO).await?;
            let left = everything(server, &namespace);
            if left == whole {
                break;
            }
            assert!(turn < 300, "sweeps leave {left:?} of {whole:?}");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert_eq!(store.list().count().await, whole.len());
        assert!(store.get(&blobs[0].location, ..).await? == bytes);
        Ok(())
    })
}

fn kill_9_full() -> Outcome {
    let server = Own::start("full", &[]);
    run(async {
        let store = open(&server.0.config()).await?;
        let mut child = again(&task("begin", &server.0, "-")).stdout(Stdio::piped()).spawn().unwrap();
        assert_eq!(first_line(&mut child), "written\n");
        child.kill().unwrap();
        child.wait().unwrap();
        set_quota(&server.0, 8 << 20);
        until("the pool is full", async || {
            let health = server.0.tool("ceph", "admin", &["health", "detail"]).unwrap();
            health.contains("POOL_FULL")
        })
        .await;
        assert_eq!(everything(&server.0, "").len(), 1);
        let swept = store.sweep(Duration::ZERO).await?;
        assert_eq!(swept.uploads, 1);
        until("the upload is gone", async || {
            store.sweep(Duration::ZERO).await.unwrap();
            everything(&server.0, "").is_empty()
        })
        .await;
        Ok(())
    })
}

/// Ceph's tool in a namespace.
fn rbd(config: &CephConfig, arguments: &[&str]) -> Result<String, String> {
    let namespace = config.namespace.clone().unwrap_or_default();
    let mut all = arguments.to_vec();
    all.extend(["--pool", &config.pool, "--namespace", &namespace]);
    calm().tool("rbd", "glance", &all)
}

fn clones() -> Outcome {
    run(async {
        let config = calm().own_namespace();
        let store = open(&config).await?;
        let bytes = content(7, 5 << 20);
        let at = put(&store, "parent", &bytes).await?;
        for format in ["1", "2"] {
            let option = format!("--rbd-default-clone-format={format}");
            rbd(
                &config,
                &[
                    "clone",
                    "--snap",
                    "snap",
                    "parent",
                    "--dest",
                    "child",
                    &option,
                    "--dest-pool",
                    &config.pool,
                    "--dest-namespace",
                    config.namespace.as_deref().unwrap(),
                ],
            )
            .unwrap();
            let error = assert_kind(store.delete(&at).await, ErrorKind::InUse);
            assert!(error.message().contains("clones"), "{error}");
            assert!(store.get(&at, ..).await? == bytes);
            assert!(rbd(&config, &["snap", "ls", "parent"]).unwrap().contains("yes"), "it is protected");
            // A clone that nothing was written to is read through its parent.
            assert!(store.get(&"rbd://child".parse()?, ..).await? == bytes);
            rbd(&config, &["rm", "child"]).unwrap();
        }
        store.delete(&at).await?;
        assert_eq!(everything(calm(), config.namespace.as_deref().unwrap()), BTreeSet::new());
        Ok(())
    })
}

fn trash() -> Outcome {
    run(async {
        let mut config = calm().own_namespace();
        config.delete_in_use = InUse::Trash;
        let backend = CephBackend::connect(&config).await?;
        let store = Store::new("ceph", Arc::new(backend.clone()), Fixture::quick_options());
        let bytes = content(8, 5 << 20);
        let at = put(&store, "parent", &bytes).await?;
        rbd(
            &config,
            &[
                "clone",
                "--snap",
                "snap",
                "parent",
                "--dest",
                "child",
                "--dest-pool",
                &config.pool,
                "--dest-namespace",
                config.namespace.as_deref().unwrap(),
            ],
        )
        .unwrap();
        store.delete(&at).await?;
        assert_kind(store.open(&at).await, ErrorKind::NotFound);
        assert_eq!(backend.trash().await?[0].name, "parent");
        store.sweep(Duration::ZERO).await?;
        assert_eq!(backend.trash().await?.len(), 1, "it has a clone");
        assert!(store.get(&"rbd://child".parse()?, ..).await? == bytes);
        // Its id is free meanwhile.
        let second = put(&store, "parent", &content(9, 1000)).await?;
        rbd(&config, &["rm", "child"]).unwrap();
        store.sweep(Duration::ZERO).await?;
        assert_eq!(backend.trash().await?, []);
        assert!(store.get(&second, ..).await? == content(9, 1000));
        store.delete(&second).await
    })
}

fn watched() -> Outcome {
    run(async {
        let config = calm().own_namespace();
        let namespace = config.namespace.clone().unwrap();
        let store = open(&config).await?;
        let at = put(&store, "open", &content(10, 1 << 20)).await?;
        const HOLD: &str =
            "image = rbd.Image(io, 'open'); print('open', flush=True); sys.stdin.read(); image.close()";
        const PROLOGUE: &str = "import sys, rados, rbd\n\
            cluster = rados.Rados(conffile=sys.argv[1], rados_id='admin'); cluster.connect()\n\
            io = cluster.open_ioctx(sys.argv[2]); io.set_namespace(sys.argv[3])\n";
        let mut holder = limited("/usr/bin/python3");
        holder.arg("-c").arg(format!("{PROLOGUE}{HOLD}")).arg(&calm().conf).args([&config.pool, &namespace]);
        let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        first_line(&mut holder);
        assert_kind(store.delete(&at).await, ErrorKind::InUse);
        assert!(store.get(&at, ..).await.unwrap() == content(10, 1 << 20));
        drop(holder.stdin.take());
        holder.wait().unwrap();
        until("it is closed", async || store.delete(&at).await.is_ok()).await;
        Ok(())
    })
}

fn deleted_under_reader() -> Outcome {
    run(async {
        let mut config = calm().own_namespace();
        config.concurrency = 1;
        let store = open(&config).await?;
        let bytes = content(11, 64 << 20);
        let at = put(&store, "a", &bytes).await?;
        // Without the digest, which would find it out at the end.
        let backend = CephBackend::connect(&config).await?;
        let download = backend.open(&at).await?;
        let mut chunks = download.read(0..64 << 20).await?;
        let first = chunks.try_next().await?.unwrap();
        store.delete(&at).await?;
        let mut read = first.len();
        let error = loop {
            match chunks.try_next().await {
                Ok(Some(chunk)) => {
                    for piece in chunk.into_bytes() {
                        let wanted = &bytes[read as usize..read as usize + piece.len()];
                        assert!(piece == wanted, "other bytes at {read}");
                        read += piece.len() as u64;
                    }
                }
                Ok(None) => panic!("all was read of a blob that is gone"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        Ok(())
    })
}

fn deleted_clone_under_reader() -> Outcome {
    run(async {
        const SIZE: u64 = 24 << 20;
        let mut config = calm().own_namespace();
        config.concurrency = 1;
        let namespace = config.namespace.clone().unwrap();
        let store = open(&config).await?;
        put(&store, "parent", &content(70, SIZE as usize)).await?;
        let dest = format!("{}/{namespace}/child", config.pool);
        rbd(&config, &["clone", "--snap", "snap", "parent", "--dest", &dest]).unwrap();
        const CHANGE: &str = "image = rbd.Image(io, 'child')\n\
            for n in range(24): image.write(bytes([n + 1]) * (1 << 20), n << 20)\n\
            image.create_snap('snap'); image.protect_snap('snap'); image.close()";
        calm().python(&namespace, CHANGE, &[]).unwrap();
        let backend = CephBackend::connect(&config).await?;
        let at = store.locate(&"child".parse()?).await?;
        let mut chunks = backend.open(&at).await?.read(0..SIZE).await?;
        let first = chunks.try_next().await?.unwrap();
        assert!(first.into_bytes().flatten().all(|byte| byte == 1 || byte == 2));
        store.delete(&at).await?;
        let rest: Result<Vec<Chunk>, Error> = chunks.try_collect().await;
        assert_kind(rest, ErrorKind::NotFound);
        Ok(())
    })
}

/// A deletion whose every step waits for the cluster, as of a call that its caller gave up and made again.
fn deleted_meanwhile() -> Outcome {
    let conf = conf_with(SLOW);
    run(async {
        let config = calm().own_namespace();
        let namespace = config.namespace.clone().unwrap();
        let store = open(&config).await?;
        let mut slow = config.clone();
        slow.conf = Some(conf.path().into());
        let slow = CephBackend::connect(&slow).await?;
        for round in 0..12 {
            let at = put(&store, "a", &content(40, 100_000)).await?;
            let late = tokio::spawn({
                let (slow, at) = (slow.clone(), at.clone());
                async move { slow.delete(&at).await }
            });
            tokio::time::sleep(Duration::from_millis(1200 + 100 * round)).await;
            let next = content(41 + round, 100_000);
            let replaced = match store.delete(&at).await {
                Ok(()) => put(&store, "a", &next).await.map(|_| true),
                // The other is as far as to move it.
                Err(error) if [ErrorKind::InUse, ErrorKind::NotFound].contains(&error.kind()) => Ok(false),
                Err(error) => Err(error),
            }?;
            let late = late.await.unwrap();
            let left = everything(calm(), &namespace);
            if replaced {
                // It found nothing, saw the other one at work, or believes that it moved what was gone already.
                let kind = late.as_ref().map_err(Error::kind);
                assert!(
                    matches!(kind, Ok(()) | Err(ErrorKind::NotFound | ErrorKind::InUse)),
                    "round {round}: {late:?}"
                );
                assert_eq!(left, ["a".to_owned()].into(), "round {round}");
                assert!(store.get(&at, ..).await? == next);
            }
            // Also where the two kept each other from it.
            until("the blob is gone", async || {
                let gone = store.delete(&at).await;
                gone.is_err_and(|error| error.kind() == ErrorKind::NotFound)
            })
            .await;
            store.sweep(Duration::ZERO).await?;
            assert_eq!(parts(&namespace), Vec::<String>::new(), "round {round}");
        }
        Ok(())
    })
}

fn deleted_beside_sweeps() -> Outcome {
    run(async {
        let config = calm().own_namespace();
        let namespace = config.namespace.clone().unwrap();
        let backend = CephBackend::connect(&config).await?;
        let store = Store::new("ceph", Arc::new(backend.clone()), Fixture::quick_options());
        let bytes = content(50, 300_000);
        let cloned = put(&store, "cloned", &bytes).await?;
        let dest = format!("{}/{namespace}/child", config.pool);
        rbd(&config, &["clone", "--snap", "snap", "cloned", "--dest", &dest]).unwrap();
        for round in 0..60 {
            let at = put(&store, "a", &bytes).await?;
            let over = AtomicBool::new(false);
            let sweep = async || {
                while !over.load(Ordering::Relaxed) {
                    backend.sweep(Duration::ZERO).await?;
                }
                Ok::<_, Error>(())
            };
            let delete = async || {
                let outcomes = tokio::join!(backend.delete(&at), backend.delete(&cloned));
                over.store(true, Ordering::Relaxed);
                outcomes
            };
            let ((deleted, refused), one, two) = tokio::join!(delete(), sweep(), sweep());
            deleted.and(one).and(two).inspect_err(|error| eprintln!("round {round}: {error}"))?;
            assert_kind(refused, ErrorKind::InUse);
            assert_kind(backend.open(&at).await.map(drop), ErrorKind::NotFound);
            assert!(store.get(&cloned, ..).await? == bytes, "round {round}");
        }
        assert!(store.verify(&cloned, |_| {}).await?.compared);
        rbd(&config, &["rm", "child"]).unwrap();
        store.delete(&cloned).await?;
        store.sweep(Duration::ZERO).await?;
        assert_eq!(parts(&namespace), Vec::<String>::new());
        Ok(())
    })
}

fn killed_discard() -> Outcome {
    let conf = conf_with(SLOW);
    run(async {
        let config = calm().own_namespace();
        let namespace = config.namespace.clone().unwrap();
        let store = open(&config).await?;
        let mut slow = calm().clone();
        slow.conf = conf.path().into();
        // The name goes first, then the data, one object after the other.
        const KILL: &str = "import os, time\n\
            while any(object.key.startswith('rbd_id.') for object in io.list_objects()): pass\n\
            time.sleep(0.4); os.kill(int(sys.argv[1]), 9)";
        for _ in 0..2 {
            let mut child =
                again(&task("abandon", &slow, &namespace)).stdout(Stdio::piped()).spawn().unwrap();
            assert_eq!(first_line(&mut child), "abandoned\n");
            calm().python(&namespace, KILL, &[&child.id().to_string()]).unwrap();
            child.wait().unwrap();
            assert!(parts(&namespace).iter().any(|part| part.starts_with("rbd_data.")));
        }
        until("all of it is gone", async || {
            store.sweep(Duration::ZERO).await.unwrap();
            parts(&namespace).is_empty()
        })
        .await;
        assert_eq!(everything(calm(), &namespace), BTreeSet::new());
        Ok(())
    })
}

fn kept_by_option() -> Outcome {
    let conf = conf_with("rbd_move_to_trash_on_remove = true");
    run(async {
        let mut config = calm().own_namespace();
        config.conf = Some(conf.path().into());
        let namespace = config.namespace.clone().unwrap();
        let store = open(&config).await?;
        let mut writer = store.upload(&"a".parse()?, Expect::new()).await?;
        writer.write(content(51, 9 << 20)).await?;
        drop(writer);
        store.settle().await;
        assert_eq!(everything(calm(), &namespace), BTreeSet::new());
        assert_eq!(parts(&namespace), Vec::<String>::new());
        Ok(())
    })
}

/// Entries of the trash as moves and removals leave them that were killed, at each of their steps.
fn half_moved() -> Outcome {
    run(async {
        let config = calm().own_namespace();
        let namespace = config.namespace.clone().unwrap();
        let store = open(&config).await?;
        for name in ["named", "listed", "moved", "back", "foreign", "kept"] {
            put(&store, name, &content(52, 300_000)).await?;
        }
        const LEAVE: &str = "import struct\n\
            def text(t): return len(t).to_bytes(4, 'little') + t.encode()\n\
            def entry(id, name, state):\n    \
                spec = b'\\0' + text(name) + struct.pack('<IIII', 1000, 0, 1000, 0) + bytes([state])\n    \
                spec = b'\\2\\1' + len(spec).to_bytes(4, 'little') + spec\n    \
                io.execute('rbd_trash', 'rbd', 'trash_add', text(id) + spec)\n\
            def cut(name, state, unnamed, unlisted):\n    \
                image = rbd.Image(io, name, read_only=True); id = image.id(); image.close()\n    \
                io.set_xattr('rbd_header.' + id, 'imagestore.deleted', b'1')\n    \
                entry(id, name, state)\n    \
                if unnamed: io.remove_object('rbd_id.' + name)\n    \
                if unlisted: io.execute('rbd_directory', 'rbd', 'dir_remove_image', text(name) + text(id))\n\
            cut('named', 1, False, False); cut('listed', 1, True, False); cut('moved', 1, True, True)\n\
            cut('back', 3, True, False)\n\
            entry('abcdef', 'headless', 0); entry('abcde', '.imagestore.01.half', 1)\n\
            rbd.RBD().trash_move(io, 'foreign', 0)\n\
            image = rbd.Image(io, 'kept', read_only=True); entry(image.id(), '.imagestore.03.kept', 0); image.close()\n\
            name = '.imagestore.00.held'\n\
            rbd.RBD().create(io, name, 1 << 20)\n\
            image = rbd.Image(io, name); image.create_snap('of others'); image.close()\n\
            rbd.RBD().create(io, '.imagestore.02.left', 1 << 20)";
        calm().python(&namespace, LEAVE, &[]).unwrap();
        assert_eq!(store.sweep(Duration::ZERO).await?.uploads, 1);
        let left = ["back", "kept", "trash/.imagestore.00.held", "trash/foreign"].map(str::to_owned);
        assert_eq!(everything(calm(), &namespace), left.into());
        // It was committed after all.
        store.delete(&store.locate(&"kept".parse()?).await?).await?;
        let back = store.locate(&"back".parse()?).await?;
        assert!(store.get(&back, ..).await? == content(52, 300_000));
        Ok(())
    })
}

fn half_renamed() -> Outcome {
    run(async {
        let config = calm().own_namespace();
        let namespace = config.namespace.clone().unwrap();
        let store = open(&config).await?;
        let bytes = content(12, 3 << 20);
        let at = put(&store, "blob", &bytes).await?;
        // As if the process had died after the first step of the rename.
        const UNDO: &str = "staged = '.imagestore.0123.blob'\n\
            image = rbd.Image(io, 'blob', read_only=True); id = image.id(); image.close()\n\
            def text(t): return len(t).to_bytes(4, 'little') + t.encode()\n\
            io.write_full('rbd_id.' + staged, text(id))\n\
            io.execute('rbd_directory', 'rbd', 'dir_rename_image', text('blob') + text(staged) + text(id))";
        calm().python(&namespace, UNDO, &[]).unwrap();
        assert_eq!(everything(calm(), &namespace), [".imagestore.0123.blob".to_owned()].into());
        let listed: Vec<_> = store.list().try_collect().await?;
        assert_eq!(
            listed.iter().map(|blob| (blob.id.as_str(), blob.size)).collect::<Vec<_>>(),
            [("blob", 3 << 20)]
        );
        assert_eq!(store.sweep(Duration::ZERO).await?.uploads, 0);
        assert_eq!(everything(calm(), &namespace), ["blob".to_owned()].into());
        assert!(store.get(&at, ..).await? == bytes);
        calm().python(&namespace, UNDO, &[]).unwrap();
        store.delete(&at).await?;
        assert_eq!(everything(calm(), &namespace), BTreeSet::new());
        Ok(())
    })
}

fn half_removed() -> Outcome {
    run(async {
        let config = calm().own_namespace();
        let namespace = config.namespace.clone().unwrap();
        let store = open(&config).await?;
        // As a removal leaves it that has died before its last step: the directory has the name of nothing.
        const LEAVE: &str = "def text(t): return len(t).to_bytes(4, 'little') + t.encode()\n\
            rbd.RBD().create(io, 'other', 1 << 20)\n\
            io.execute('rbd_directory', 'rbd', 'dir_add_image', text('.imagestore.0123.blob') + text('abcdef'))";
        calm().python(&namespace, LEAVE, &[]).unwrap();
        assert_eq!(everything(calm(), &namespace).len(), 2);
        assert_eq!(store.list().count().await, 0);
        store.sweep(Duration::ZERO).await?;
        assert_eq!(everything(calm(), &namespace), ["other".to_owned()].into());
        Ok(())
    })
}

/// librbd lists a name before it makes its object.
fn just_made() -> Outcome {
    run(async {
        let config = calm().own_namespace();
        let namespace = config.namespace.clone().unwrap();
        let backend = CephBackend::connect(&config).await?;
        const LIST: &str = "def text(t): return len(t).to_bytes(4, 'little') + t.encode()\n\
            io.execute('rbd_directory', 'rbd', 'dir_add_image', text('.imagestore.0123.blob') + text('abcdef'))";
        const NAME: &str = "id = b'abcdef'; io.write_full('rbd_id..imagestore.0123.blob', len(id).to_bytes(4, 'little') + id)";
        calm().python(&namespace, LIST, &[]).unwrap();
        let sweeping = tokio::spawn({
            let backend = backend.clone();
            async move { backend.sweep(Duration::from_secs(3600)).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        calm().python(&namespace, NAME, &[]).unwrap();
        assert_eq!(sweeping.await.unwrap()?.uploads, 0);
        assert_eq!(everything(calm(), &namespace), [".imagestore.0123.blob".to_owned()].into());
        backend.sweep(Duration::ZERO).await?;
        assert_eq!(everything(calm(), &namespace), BTreeSet::new());
        Ok(())
    })
}

fn grown() -> Outcome {
    run(async {
        let store = open(&calm().own_namespace()).await?;
        let bytes = content(71, (130 << 20) + 123);
        let at = store.put(&"a".parse()?, source(&bytes), Expect::new()).await?.location;
        assert_eq!(store.stat(&at).await?.size, bytes.len() as u64);
        let read: Vec<Bytes> = store.open(&at).await?.stream(..)?.try_collect().await?;
        assert!(read.concat() == bytes);
        store.delete(&at).await
    })
}

fn read_by_others() -> Outcome {
    run(async {
        let config = calm().config();
        let store = open(&config).await?;
        let name = unique("ours");
        let mut bytes = content(13, 20 << 20).to_vec();
        bytes[3 << 20..12 << 20].fill(0);
        let bytes = Bytes::from(bytes);
        let at = put(&store, &name, &bytes).await?;
        assert_eq!(at.to_string(), format!("rbd://{}/{}/{name}/snap", calm().fsid, config.pool));
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let info = rbd(&config, &["info", &name]).unwrap();
        assert!(info.contains("size 20 MiB") && info.contains("order 23"), "{info}");
        rbd(&config, &["export", &format!("{name}@snap"), &file("exported")]).unwrap();
        assert!(std::fs::read(file("exported")).unwrap() == bytes);
        let spec = format!("rbd:{}/{name}@snap:id=glance:conf={}", config.pool, calm().conf.display());
        let info = Command::new("qemu-img").args(["info", "--output=json", &spec]).output().unwrap();
        let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
        assert_eq!((&info["virtual-size"], &info["format"]), (&(20 << 20).into(), &"raw".into()), "{info}");
        let arguments = ["convert", "-f", "raw", "-O", "raw", &spec, &file("raw")];
        let output = Command::new("qemu-img").args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(std::fs::read(file("raw")).unwrap() == bytes);
        store.delete(&at).await
    })
}

fn read_from_others() -> Outcome {
    run(async {
        let config = calm().config();
        let store = open(&config).await?;
        let bytes = content(14, 10 << 20);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("image");
        std::fs::write(&file, &bytes).unwrap();
        // As `rbd import` leaves it: no snapshot, and so no blob, but it can be read.
        let name = unique("imported");
        let target = format!("{}/{name}", config.pool);
        calm().tool("rbd", "glance", &["import", file.to_str().unwrap(), &target]).unwrap();
        let error = assert_kind(store.locate(&name.parse()?).await, ErrorKind::NotFound);
        assert!(error.hint().unwrap().contains("no snapshot `snap`"), "{error:?}");
        let short: Location = format!("rbd://{name}").parse()?;
        assert!(store.get(&short, ..).await? == bytes);
        assert_kind(put(&store, &name, &bytes).await, ErrorKind::AlreadyExists);
        // As glance_store leaves it.
        rbd(&config, &["snap", "create", &format!("{name}@snap")]).unwrap();
        rbd(&config, &["snap", "protect", &format!("{name}@snap")]).unwrap();
        let at = store.locate(&name.parse()?).await?;
        let reader = store.open(&at).await?;
        assert!(reader.stat().meta.is_none());
        assert!(store.get(&at, ..).await? == bytes);
        assert!(store.get(&short, ..).await? == bytes);
        store.delete(&short).await?;
        assert_kind(store.open(&at).await, ErrorKind::NotFound);
        assert_kind(store.delete(&at).await, ErrorKind::NotFound);
        Ok(())
    })
}

/// glance_store in a virtual environment, made once.
fn glance_python() -> Result<PathBuf, String> {
    const VERSION: &str = "5.7.0";
    let home = std::env::var("HOME").unwrap_or_else(|_| "/root".to_owned());
    let cache = std::env::var("IMAGESTORE_CACHE").unwrap_or_else(|_| format!("{home}/.cache/imagestore"));
    let venv = Path::new(&cache).join(format!("glance_store-ceph-{VERSION}"));
    let ready = venv.join("bin/python");
    if ready.exists() {
        return Ok(ready);
    }
    // Made beside it, so that one that was cut short is never used.
    let made = venv.with_extension(std::process::id().to_string());
    // Of Debian's modules only those that no index has: their versions of the others do not fit.
    let script = format!(
        "set -e; /usr/bin/python3 -m venv '{0}'; '{0}/bin/python' -m pip install -q glance_store=={VERSION}\n\
         ln -s /usr/lib/python3/dist-packages/rados.*.so /usr/lib/python3/dist-packages/rbd.*.so \
         '{0}'/lib/python3*/site-packages/",
        made.display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(format!("glance_store is not installed: {}", String::from_utf8_lossy(&output.stderr)));
    }
    match std::fs::rename(&made, &venv) {
        Err(error) if !ready.exists() => Err(error.to_string()),
        _ => Ok(ready),
    }
}

/// Adds the file as each image with glance_store's own driver, and prints their locations.
const GLANCE: &str = r#"
import os, sys
import glance_store
from glance_store._drivers import rbd
from oslo_config import cfg
ceph_conf, pool, path = sys.argv[1:4]
conf = cfg.ConfigOpts()
glance_store.register_opts(conf)
conf([], project='test')
for name, value in dict(rbd_store_ceph_conf=ceph_conf, rbd_store_pool=pool, rbd_store_user='glance').items():
    conf.set_override(name, value, group='glance_store')
for image in sys.argv[4:]:
    kind, name = image.split('=', 1)
    conf.set_override('rbd_thin_provisioning', kind == 'thin', group='glance_store')
    driver = rbd.Store(conf)
    driver.configure()
    with open(path, 'rb') as source:
        print(driver.add(name, source, 0 if kind == 'unknown' else os.path.getsize(path), 'sha512')[0])
"#;

/// Reads an image with it.
const GLANCE_READS: &str = r#"
import sys
import glance_store
from glance_store._drivers import rbd
from glance_store import location
from oslo_config import cfg
ceph_conf, at, path = sys.argv[1:4]
conf = cfg.ConfigOpts()
glance_store.register_opts(conf)
conf([], project='test')
for name, value in dict(rbd_store_ceph_conf=ceph_conf, rbd_store_user='glance').items():
    conf.set_override(name, value, group='glance_store')
driver = rbd.Store(conf)
driver.configure()
where = location.Location('rbd', rbd.StoreLocation, conf, uri=at)
with open(path, 'wb') as target:
    for piece in driver.get(where)[0]:
        target.write(piece)
driver.delete(where)
"#;

fn glance() -> Outcome {
    let python = glance_python()?;
    let python = python.to_str().unwrap();
    run(async {
        let config = calm().config();
        let conf = calm().conf.to_str().unwrap();
        let store = open(&config).await?;
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let mut bytes = content(16, 21 << 20).to_vec();
        // A whole piece of glance_store's is zeros, and it ends within one.
        bytes[8 << 20..16 << 20].fill(0);
        bytes.truncate((21 << 20) - 7);
        let bytes = Bytes::from(bytes);
        std::fs::write(file("image"), &bytes).unwrap();
        let images = ["full=g-full", "thin=g-thin", "unknown=g-unknown", "full=g odd+%41\u{e4}?#&=.img"];
        let mut command = limited(python);
        command.args(["-c", GLANCE, conf, &config.pool, &file("image")]).args(images);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        let locations: Vec<&str> = said.lines().collect();
        assert_eq!(locations.len(), images.len());
        assert!(locations[3].contains("/g%20odd%2B%2541%C3%A4%3F%23%26%3D.img/snap"), "{said}");
        for (location, image) in locations.iter().zip(images) {
            let name = image.split_once('=').unwrap().1;
            let at: Location = location.parse()?;
            assert_eq!(at.to_string(), *location);
            let short: Location = format!("rbd://{}", Location::encode_segment(name)).parse()?;
            for at in [&at, &short] {
                let stat = store.stat(at).await?;
                assert_eq!((stat.size, stat.meta), (bytes.len() as u64, None), "{at}");
                assert!(store.get(at, ..).await? == bytes, "{at}");
                let verified = store.verify(at, |_| {}).await?;
                assert!(!verified.compared && verified.size == bytes.len() as u64, "{at}: {verified:?}");
            }
            if let Ok(id) = name.parse() {
                assert_eq!(store.locate(&id).await?, at);
            }
            let at = if image.starts_with("thin") { short } else { at };
            store.delete(&at).await?;
            assert_kind(store.open(&at).await, ErrorKind::NotFound);
        }
        let left = everything(calm(), "");
        assert!(left.iter().all(|name| !name.contains("g-") && !name.contains("g odd")), "{left:?}");
        // And the other way.
        let at = put(&store, &unique("for-glance"), &bytes).await?;
        let arguments = ["-c", GLANCE_READS, conf, &at.to_string(), &file("read")];
        let output = limited(python).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(std::fs::read(file("read")).unwrap() == bytes);
        assert_kind(store.open(&at).await, ErrorKind::NotFound);
        Ok(())
    })
}

/// How many bytes of an image Ceph holds.
fn held(config: &CephConfig, name: &str) -> u64 {
    const SUM: &str = "held = []\n\
        with rbd.Image(io, sys.argv[1], read_only=True) as image:\n    \
            image.diff_iterate(0, image.size(), None, lambda at, length, exists: held.append(length * exists))\n\
        print(sum(held))";
    let namespace = config.namespace.clone().unwrap_or_default();
    calm().python(&namespace, SUM, &[name]).unwrap().trim().parse().unwrap()
}

fn layout() -> Outcome {
    run(async {
        let mut config = calm().own_namespace();
        config.features = Some(vec![Feature::Layering, Feature::ExclusiveLock]);
        config.object_size = Size(2 << 20);
        config.snapshot = "v 1".to_owned();
        let mut bytes = content(17, 12 << 20).to_vec();
        bytes[2 << 20..10 << 20].fill(0);
        let bytes = Bytes::from(bytes);
        let store = open(&config).await?;
        let at = put(&store, "thin", &bytes).await?;
        assert!(at.to_string().ends_with("/thin/v%201"), "{at}");
        let info = rbd(&config, &["info", "thin"]).unwrap();
        assert!(info.contains("order 21 (2 MiB objects)"), "{info}");
        let features = info.lines().find_map(|line| line.trim().strip_prefix("features: "));
        assert_eq!(features, Some("layering, exclusive-lock"));
        assert_eq!(held(&config, "thin"), 4 << 20);
        config.thin_provisioning = false;
        let thick = open(&config).await?;
        let at = put(&thick, "thick", &bytes).await?;
        assert_eq!(held(&config, "thick"), 12 << 20);
        assert!(store.get(&at, ..).await? == bytes);
        let names: Vec<String> = store.list().map_ok(|entry| entry.id.to_string()).try_collect().await?;
        assert_eq!(BTreeSet::from_iter(names), ["thick".to_owned(), "thin".to_owned()].into());
        Ok(())
    })
}

fn data_pool() -> Outcome {
    run(async {
        let server = calm();
        server.tool("ceph", "admin", &["osd", "pool", "create", "data", "8"]).unwrap();
        let mut config = server.own_namespace();
        config.data_pool = Some("data".to_owned());
        // Glance's user may not use that pool.
        let denied = open(&config).await?;
        let error = assert_kind(put(&denied, "denied", &content(18, 1000)).await, ErrorKind::Denied);
        assert!(error.hint().unwrap().contains("DATA_POOL"), "{error:?}");
        keeps_data(server, &mut config).await?;
        // Its quota counts.
        let store = open(&config).await?;
        let quota = |bytes: &str| {
            server.tool("ceph", "admin", &["osd", "pool", "set-quota", "data", "max_bytes", bytes]).unwrap();
        };
        quota("67108864");
        until("the quota counts", async || store.capacity().await.is_ok_and(|c| c.total <= 64 << 20)).await;
        let expect = Expect::new().size(1 << 30);
        assert_kind(store.upload(&"large".parse()?, expect).await, ErrorKind::NoSpace);
        quota("0");
        config.data_pool = Some("nonesuch".to_owned());
        let error = put(&open(&config).await?, "nowhere", &content(18, 1000)).await.unwrap_err();
        assert!(error.hint().is_some_and(|hint| hint.contains("data_pool")), "{error:?}");
        Ok(())
    })
}

fn erasure_coded() -> Outcome {
    let server = Own::start("erasure", &["--bluestore"]);
    run(async {
        let server = &server.0;
        let admin = |arguments: &[&str]| server.tool("ceph", "admin", arguments).unwrap();
        // One chunk of data and one of parity, so that a single OSD can serve it.
        let profile = ["plugin=shec", "k=1", "m=1", "c=1", "crush-failure-domain=osd"];
        admin(&[&["osd", "erasure-code-profile", "set", "one"][..], &profile].concat());
        admin(&["osd", "crush", "rule", "create-erasure", "one", "one"]);
        // The rule that this makes is for three OSDs and more.
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let crushtool = |arguments: &[&str]| {
            let output = limited("crushtool").args(arguments).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        admin(&["osd", "getcrushmap", "-o", &file("map")]);
        crushtool(&["-d", &file("map"), "-o", &file("text")]);
        let text = std::fs::read_to_string(file("text")).unwrap();
        std::fs::write(file("text"), text.replace("min_size 3", "min_size 1")).unwrap();
        crushtool(&["-c", &file("text"), "-o", &file("map")]);
        admin(&["osd", "setcrushmap", "-i", &file("map")]);
        admin(&["osd", "pool", "create", "data", "8", "8", "erasure", "one", "one"]);
        admin(&["osd", "pool", "set", "data", "min_size", "1"]);
        admin(&["osd", "pool", "set", "data", "allow_ec_overwrites", "true"]);
        let mut config = server.own_namespace();
        config.data_pool = Some("data".to_owned());
        keeps_data(server, &mut config).await
    })
}

/// Puts, reads, copies and deletes blobs whose data are in the pool `data`, as a user who may use it.
async fn keeps_data(server: &Server, config: &mut CephConfig) -> store_core::Result<()> {
    let admin = |arguments: &[&str]| server.tool("ceph", "admin", arguments).unwrap();
    admin(&["osd", "pool", "application", "enable", "data", "rbd"]);
    let bytes = content(18, (9 << 20) + 77);
    let keyring = server.conf.with_file_name("data.keyring");
    let allow = format!("profile rbd pool={}, profile rbd pool=data", server.pool);
    let keyring_text = keyring.to_str().unwrap();
    admin(&["auth", "get-or-create", "client.data", "mon", "profile rbd", "osd", &allow, "-o", keyring_text]);
    config.user = "data".to_owned();
    config.keyring = Some(keyring);
    let store = open(config).await?;
    // Of unknown length: it grows, and is cut within a stripe.
    let at = store.put(&"elsewhere".parse()?, source(&bytes), Expect::new()).await?.location;
    let namespace = config.namespace.clone().unwrap_or_default();
    let spec = format!("{}/{namespace}/elsewhere", server.pool);
    let info = server.tool("rbd", "admin", &["info", &spec]).unwrap();
    assert!(info.contains("data_pool: data"), "{info}");
    assert!(store.get(&at, ..).await? == bytes);
    assert!(store.verify(&at, |_| {}).await?.compared);
    // Beside one that says that the pool was found to be fit.
    let objects = || {
        let all = server.tool("rados", "admin", &["-p", "data", "--all", "ls"]).unwrap();
        all.lines().filter(|line| line.contains("rbd_data.")).count()
    };
    assert!(objects() > 1, "no data in the pool");
    store.copy(&at, &"copied".parse()?, |_| {}).await?;
    for entry in store.list().try_collect::<Vec<_>>().await? {
        assert!(store.get(&entry.location, ..).await? == bytes);
        store.delete(&entry.location).await?;
    }
    until("all data are gone", async || {
        store.sweep(Duration::ZERO).await.unwrap();
        objects() == 0
    })
    .await;
    Ok(())
}

fn sparse() -> Outcome {
    run(async {
        const SIZE: u64 = 2 << 30;
        const PIECE: u64 = 3 << 20;
        let config = calm().own_namespace();
        let store = open(&config).await?;
        let bytes = content(19, PIECE as usize);
        // Data at the start, in the middle and at the end, none of it at the edge of an object.
        let gap = (SIZE - 3 * PIECE) / 2 - 12345;
        let rest = SIZE - 3 * PIECE - gap;
        let chunks = vec![
            Chunk::Data(bytes.clone()),
            Chunk::Zeros(gap),
            Chunk::Data(bytes.clone()),
            Chunk::Zeros(rest),
            Chunk::Data(bytes.clone()),
        ];
        let mut expect = Expect::new().size(SIZE);
        expect = expect.data_size(3 * PIECE);
        let at = store.put(&"a".parse()?, stream::iter(chunks).map(Ok), expect).await?.location;
        let most = 3 * (PIECE + (16 << 20));
        assert!(held(&config, "a") <= most);
        let file = tempfile::NamedTempFile::new().unwrap();
        let target = Arc::new(file.reopen().unwrap());
        let reader = store.open(&at).await?;
        assert_eq!(store_core::file::write(target, reader.chunks(..)?, |_| {}).await?, SIZE);
        assert!(store_core::file::data_size(file.as_file()).unwrap() <= most);
        let at_of = |offset: u64| {
            let mut found = vec![0; PIECE as usize];
            std::os::unix::fs::FileExt::read_exact_at(file.as_file(), &mut found, offset).unwrap();
            found
        };
        for offset in [0, PIECE + gap, SIZE - PIECE] {
            assert!(at_of(offset) == bytes, "other bytes at {offset}");
        }
        // Into another store, and within this one.
        let other = calm().own_namespace();
        open(&config).await?.copy_to(&at, &open(&other).await?, &"b".parse()?, |_| {}).await?;
        assert!(held(&other, "b") <= most);
        store.copy(&at, &"c".parse()?, |_| {}).await?;
        assert!(held(&config, "c") <= most);
        Ok(())
    })
}
