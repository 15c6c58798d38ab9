//! What only Swift does: tokens that end, servers that are away, objects that others wrote.

#![allow(clippy::unwrap_used, reason = "a test panics where its own set-up fails")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
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

use server::{
    Raw, Server, container,
    front::{Authority, Front},
    map,
    scripted::{Answer, Scripted, answer},
};

type Outcome = Result<(), String>;
type Alone = (&'static str, fn() -> Outcome);
type Real = (&'static str, &'static LazyLock<Result<Server, String>>, fn(&Server) -> Outcome);

/// One disk, Swift's own tokens.
static PLAIN: LazyLock<Result<Server, String>> =
    LazyLock::new(|| Server::start("wire", &["--dlo-rate", "1"]));
/// Keystone, whose tokens live for some seconds.
static KEYSTONE: LazyLock<Result<Server, String>> =
    LazyLock::new(|| Server::start("keystone", &["--keystone", "--token-life", "12"]));
/// Small objects only, few segments to a list, and few objects to an answer.
static SMALL: LazyLock<Result<Server, String>> = LazyLock::new(|| {
    Server::start("small", &["--max-file-size", "3145728", "--max-segments", "8", "--page", "7"])
});
/// Few requests a second, no static large objects, and no deletion of many at once.
static SLOW: LazyLock<Result<Server, String>> =
    LazyLock::new(|| Server::start("slow", &["--rate", "4", "--without", "slo", "--without", "bulk"]));
/// One that keeps its limits for itself, and does not wait for long.
static SILENT: LazyLock<Result<Server, String>> = LazyLock::new(|| {
    Server::start("silent", &["--without", "info", "--max-file-size", "3145728", "--client-timeout", "2"])
});
/// One whose services are stopped.
static STOPPED: LazyLock<Result<Server, String>> = LazyLock::new(|| Server::start("stopped", &[]));
/// A full disk.
static FULL: LazyLock<Result<Server, String>> =
    LazyLock::new(|| Server::start("full", &["--reserve", "100%"]));

/// Those that stop services do so one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn main() {
    if let Ok(container) = std::env::var(CHILD) {
        return child(&container);
    }
    let tests: Vec<Real> = vec![
        ("wrong_credentials_are_denied_and_not_shown", &PLAIN, wrong_credentials),
        ("a_missing_container_is_named", &PLAIN, missing_container),
        ("errors_name_the_transaction", &PLAIN, transactions),
        ("a_missing_or_changed_segment_is_corrupt", &PLAIN, damaged_segments),
        ("a_dynamic_large_object_is_one_blob", &PLAIN, dynamic_object),
        ("blobs_beside_segments_are_none", &PLAIN, beside_segments),
        ("who_may_not_delete_segments_is_told_what_is_left", &PLAIN, undeletable),
        ("segments_go_from_where_they_went_before", &PLAIN, former_container),
        ("a_gap_in_a_dynamic_large_object_is_corrupt", &PLAIN, dynamic_gap),
        ("dynamic_large_objects_can_be_written", &PLAIN, dynamic_writes),
        ("metadata_that_does_not_fit_is_kept_beside", &PLAIN, large_metadata),
        ("a_quota_is_no_space_and_keeps_nothing", &PLAIN, quotas),
        ("a_quota_of_the_account_is_no_space", &PLAIN, account_quota),
        ("an_expired_blob_is_gone", &PLAIN, expiry),
        ("a_url_works_where_the_key_of_the_account_is_news", &PLAIN, news),
        ("blobs_are_spread_over_containers", &PLAIN, seeds),
        ("an_upload_outlives_its_container_server", &STOPPED, container_server),
        ("a_commit_outlives_its_object_server", &STOPPED, commit_again),
        ("an_object_server_that_is_away_is_unavailable", &STOPPED, object_server),
        ("a_sweep_spares_what_others_wrote", &PLAIN, foreign_segments),
        ("a_sweep_spares_what_others_have_described", &PLAIN, described),
        ("stores_that_share_a_container_of_segments_spare_each_other", &PLAIN, shared_segments),
        ("a_blob_from_before_the_shared_names_is_read_and_deleted", &PLAIN, names_before),
        ("a_commit_that_was_swept_meanwhile_fails", &PLAIN, swept_commit),
        ("a_sweep_removes_its_mark_last", &PLAIN, mark_last),
        ("a_deletion_that_is_repeated_spares_a_newer_blob", &PLAIN, late_deletion),
        ("an_authority_of_ones_own_is_trusted_and_no_other", &PLAIN, authority),
        ("an_authority_of_ones_own_signs_for_keystone_too", &KEYSTONE, keystone_authority),
        ("what_is_damaged_on_its_way_is_sent_again", &PLAIN, damage),
        ("stores_share_a_token", &PLAIN, shared_token),
        ("no_request_is_made_for_nothing", &PLAIN, requests),
        ("what_needs_no_answer_is_asked_at_once", &PLAIN, at_once),
        ("a_token_that_the_server_forgets_is_renewed", &STOPPED, forgotten_token),
        ("a_manifest_of_missing_segments_is_refused", &PLAIN, missing_segments),
        ("a_list_of_parts_of_objects_is_read_as_a_whole", &PLAIN, parts_of_objects),
        ("a_dynamic_large_object_waits_for_its_list", &STOPPED, dynamic_lag),
        ("a_stalled_request_is_sent_again", &SILENT, stalled),
        ("a_server_may_keep_its_limits_for_itself", &SILENT, silent),
        ("long_lists_come_in_pages", &SMALL, pages),
        ("clouds_and_the_environment_are_read", &KEYSTONE, clouds),
        ("a_small_limit_makes_small_segments", &SMALL, small_limit),
        ("many_segments_become_lists_of_lists", &SMALL, nested),
        ("a_throttled_upload_gets_through", &SLOW, throttled),
        ("a_full_disk_is_unavailable_and_keeps_nothing", &FULL, full_disk),
        ("tokens_are_renewed_in_the_middle_of_an_upload", &KEYSTONE, renewal),
        ("a_revoked_token_is_renewed", &KEYSTONE, revoked_token),
        ("application_credentials_and_regions_work", &KEYSTONE, credentials),
        ("wrong_credentials_of_keystone_are_denied", &KEYSTONE, wrong_keystone),
        ("an_expired_token_works_with_a_service_token", &KEYSTONE, service_token),
        ("each_blob_has_a_container_that_projects_may_read", &KEYSTONE, multi_tenant),
        ("what_glance_wrote_is_read_and_deleted", &KEYSTONE, glance),
    ];
    let alone: [Alone; 8] = [
        ("a_server_that_is_not_there_is_unavailable", nobody),
        ("what_is_listed_without_being_asked_for_is_not_deleted", foreign_names),
        ("an_answer_without_end_is_an_error", endless),
        ("segments_that_stay_are_not_forgotten", staying),
        ("a_busy_server_is_asked_again_when_it_says", busy),
        ("a_sweep_goes_by_the_servers_clock", other_clock),
        ("a_failure_to_get_a_token_is_shared", failing_tokens),
        ("a_token_is_used_to_its_end_where_no_other_is_had", last_minute),
    ];
    let mut trials: Vec<Trial> =
        alone.map(|(name, test)| Trial::test(name, move || test().map_err(Failed::from))).into();
    trials.extend(tests.into_iter().map(|(name, server, test)| {
        Trial::ignorable_test(name, move || match (&**server, required()) {
            (Ok(server), _) => test(server).map(|()| Completion::Completed).map_err(Failed::from),
            (Err(why), true) => Err(Failed::from(format!("required, but {why}"))),
            (Err(why), false) => Ok(Completion::ignored_with(why)),
        })
    }));
    let mut arguments = Arguments::from_args();
    // Most of them wait: for servers, tokens and pauses.
    arguments.test_threads.get_or_insert(4);
    libtest_mimic::run(&arguments, trials).exit();
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

/// What tells this program to store an image with the credentials of its environment, and to read it.
const CHILD: &str = "STORE_SWIFT_CONTAINER";

fn child(container: &str) {
    let outcome = run(async {
        let mut config = SwiftConfig::new(container);
        config.create_container = true;
        let store = open(&config).await?;
        let at = text(put(&store, "image", &content(1000)).await)?;
        reads(&store, &at, &content(1000)).await
    });
    outcome.unwrap();
}

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

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// The settings of a store at a server that answers by a script.
fn scripted(server: &Scripted) -> SwiftConfig {
    let mut config = SwiftConfig::new("c");
    config.token = Some(Secret::new("scripted"));
    config.endpoint = Some(format!("http://{}/v1/AUTH_a", server.addr));
    config
}

/// Takes no notice of `prefix`, and has names that are shorter than it, or cut a letter of it.
fn lists_all(line: &str) -> Answer {
    let names = ["a", "image/0123456789abcdef0123456789abcde\u{e4}", "image/other/00000000", "z"];
    let own = format!("image/{TOKEN}/00000000");
    match line.split_once(' ') {
        Some(("GET", path)) if path.starts_with("/v1/AUTH_a/c_segments?") => {
            let mut names: Vec<&str> = names.into_iter().chain([own.as_str()]).collect();
            names.sort_unstable();
            let rows: Vec<_> = names.iter().map(|name| serde_json::json!({ "name": name })).collect();
            let rows = if path.contains("marker=") { Vec::new() } else { rows };
            answer(200, "", serde_json::json!(rows).to_string())
        }
        Some(("HEAD", "/v1/AUTH_a/c/image")) => {
            let token = format!("x-object-meta-imagestore-token: {TOKEN}\r\nx-static-large-object: true\r\n");
            answer(200, &token, "12345")
        }
        Some(("HEAD", _)) | Some((_, "/info")) => answer(404, "", ""),
        Some(("DELETE", _)) => answer(204, "", ""),
        _ => answer(200, "", "[]"),
    }
}

fn foreign_names() -> Outcome {
    run(async {
        let server = Scripted::start(lists_all).await?;
        let store = open(&scripted(&server)).await?;
        let at = text(store.locate(&"image".parse().unwrap()).await)?;
        text(store.delete(&at).await)?;
        let mut deleted = server.requests("DELETE");
        deleted.sort();
        let own = format!("DELETE /v1/AUTH_a/c_segments/image/{TOKEN}/00000000");
        check(deleted == ["DELETE /v1/AUTH_a/c/image".to_owned(), own], format!("it made {deleted:?}"))
    })
}

/// A server whose lists never end.
fn lists_for_ever(line: &str) -> Answer {
    match line.contains("format=json") {
        true => answer(200, "", r#"[{"name": "image", "bytes": 18446744073709551615}]"#),
        false => answer(404, "", ""),
    }
}

/// A server that says more than it should.
fn says_too_much(line: &str) -> Answer {
    match line.ends_with("/info") {
        true => answer(200, "", vec![b' '; 20 << 20]),
        false => answer(200, "", "[]"),
    }
}

fn endless() -> Outcome {
    run(async {
        let server = Scripted::start(lists_for_ever).await?;
        let store = open(&scripted(&server)).await?;
        let listed: Result<Vec<_>, Error> = store.list().try_collect().await;
        refused(listed, ErrorKind::Internal, "marker")?;
        refused(store.sweep(Duration::ZERO).await, ErrorKind::Internal, "marker")?;
        let server = Scripted::start(says_too_much).await?;
        refused(SwiftBackend::connect(&scripted(&server)).await, ErrorKind::Internal, "endpoint").map(drop)
    })
}

/// Deletes no segment.
fn keeps_segments(line: &str) -> Answer {
    let (method, path) = line.split_once(' ').unwrap_or_default();
    match (method, path.strip_prefix("/v1/AUTH_a/").unwrap_or(path)) {
        (_, "/info") => answer(200, "", r#"{"swift": {}, "slo": {"yield_frequency": 10}}"#),
        ("HEAD", "c/static") => answer(200, "x-static-large-object: true\r\n", "1234567890"),
        ("GET", "c/static?multipart-manifest=get") => {
            answer(200, "", r#"[{"name": "/s/static/0", "bytes": 10, "hash": "h"}]"#)
        }
        ("HEAD", "c/dynamic") => answer(200, "x-object-manifest: s/dynamic/\r\n", ""),
        ("GET", path) if path.starts_with("s?") && !path.contains("marker=") => {
            answer(200, "", r#"[{"name": "dynamic/0", "bytes": 10}]"#)
        }
        ("DELETE", path) if path.starts_with("s/") => answer(503, "", ""),
        ("DELETE", _) => answer(204, "", ""),
        ("HEAD", _) => answer(404, "", ""),
        _ => answer(200, "", "[]"),
    }
}

/// The same, and shows no manifest: it is asked to delete all, and drops the name.
fn keeps_segments_silently(line: &str) -> Answer {
    static GONE: AtomicBool = AtomicBool::new(false);
    match line {
        "GET /info" => answer(404, "", ""),
        "DELETE /v1/AUTH_a/c/static?multipart-manifest=delete" => {
            GONE.store(true, Ordering::SeqCst);
            let errors = r#""Errors": [["/s/static/0", "503 Service Unavailable"]]"#;
            answer(200, "", format!(r#"{{"Response Status": "502 Bad Gateway", {errors}}}"#))
        }
        "HEAD /v1/AUTH_a/c/static" if GONE.load(Ordering::SeqCst) => answer(404, "", ""),
        line => keeps_segments(line),
    }
}

fn staying() -> Outcome {
    run(async {
        let server = Scripted::start(keeps_segments).await?;
        let store = open(&scripted(&server)).await?;
        let at = text(store.locate(&"static".parse().unwrap()).await)?;
        let error = refused(store.delete(&at).await, ErrorKind::Unavailable, "")?;
        check(error.message().contains("deleted again"), format!("it fails with {error}"))?;
        let deleted = server.requests("DELETE /v1/AUTH_a/c/static");
        check(deleted.is_empty(), format!("{deleted:?} leaves nothing that names the segments"))?;
        let at = text(store.locate(&"dynamic".parse().unwrap()).await)?;
        refused(store.delete(&at).await, ErrorKind::Internal, "s/dynamic/")?;
        let server = Scripted::start(keeps_segments_silently).await?;
        let store = open(&scripted(&server)).await?;
        let at = text(store.locate(&"static".parse().unwrap()).await)?;
        refused(store.delete(&at).await, ErrorKind::Internal, "what is left").map(drop)
    })
}

/// Has no time for the first question, nor for the first look at an object.
fn says_wait(line: &str) -> Answer {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    static LOOKED: AtomicUsize = AtomicUsize::new(0);
    match line {
        "GET /info" if ASKED.fetch_add(1, Ordering::SeqCst) == 0 => answer(429, "retry-after: 2\r\n", ""),
        "GET /info" => answer(200, "", r#"{"swift": {}, "tempurl": {"allowed_digests": ["sha256"]}}"#),
        "HEAD /v1/AUTH_a/c/image" if LOOKED.fetch_add(1, Ordering::SeqCst) == 0 => answer(503, "", ""),
        "HEAD /v1/AUTH_a/c/image" => answer(200, "", "1234567890"),
        line if line.contains("prefix=") && !line.contains("marker=") => {
            answer(200, "", r#"[{"name": "image", "bytes": 0}]"#)
        }
        _ => answer(200, "", "[]"),
    }
}

fn busy() -> Outcome {
    run(async {
        let server = Scripted::start(says_wait).await?;
        let mut config = scripted(&server);
        config.temp_url_key = Some(Secret::new("key"));
        let start = Instant::now();
        let backend = text(SwiftBackend::connect(&config).await)?;
        check(start.elapsed() >= Duration::from_secs(2), "it comes back too soon")?;
        check(server.requests("GET /info").len() == 2, "it takes that for an answer")?;
        check(backend.info().can.presign, "it has not understood the second answer")?;
        let listed: Vec<_> = text(backend.list().try_collect().await)?;
        check(listed.len() == 1 && listed[0].size == 10, format!("it lists {listed:?}"))
    })
}

/// Its clock is years behind, and it has an upload of an hour ago and one of three hours ago.
fn lives_in_the_past(line: &str) -> Answer {
    let date = "date: Wed, 01 Jan 2020 12:00:00 GMT\r\n";
    let rows = [("new", "11"), ("old", "09")].map(|(id, hour)| {
        serde_json::json!({ "name": format!("{id}/{TOKEN}/00000000"), "bytes": 10,
            "last_modified": format!("2020-01-01T{hour}:00:00.000000") })
    });
    match line.split_once(' ') {
        Some(("GET", path)) if path.starts_with("/v1/AUTH_a/c_segments?") && !path.contains("marker=") => {
            answer(200, date, serde_json::json!(rows).to_string())
        }
        Some(("HEAD", _)) | Some((_, "/info")) => answer(404, date, ""),
        Some(("DELETE", _)) => answer(204, date, ""),
        _ => answer(200, date, "[]"),
    }
}

fn other_clock() -> Outcome {
    run(async {
        let server = Scripted::start(lives_in_the_past).await?;
        let store = open(&scripted(&server)).await?;
        let swept = text(store.sweep(Duration::from_secs(2 * 60 * 60)).await)?;
        check(swept.uploads == 1, format!("it swept {swept:?}"))?;
        let deleted = server.requests("DELETE");
        check(deleted.iter().all(|line| line.contains("/old/")), format!("it made {deleted:?}"))
    })
}

/// The settings of a store that gets its tokens by a script.
fn scripted_tokens(server: &Scripted) -> SwiftConfig {
    let mut config = scripted(server);
    config.token = None;
    config.auth_url = Some(format!("http://{}/auth/v1.0", server.addr));
    (config.user, config.password) = (Some("images:glance".to_owned()), Some(Secret::new("hunter2")));
    config
}

fn has_no_tokens(_: &str) -> Answer {
    answer(503, "x-openstack-request-id: req-1\r\nretry-after: 1\r\n", "hunter2")
}

fn failing_tokens() -> Outcome {
    run(async {
        let server = Scripted::start(has_no_tokens).await?;
        let config = scripted_tokens(&server);
        let stores = (0..8).map(|_| SwiftBackend::connect(&config));
        for outcome in futures::future::join_all(stores).await {
            let error = refused(outcome, ErrorKind::Unavailable, "identity service")?;
            check(error.message().contains("req-1"), format!("no request is named in {error}"))?;
            check(error.retry_after().is_some(), "nothing says when to come back")?;
            check(!format!("{error:?}").contains("hunter2"), "the password shows")?;
        }
        // Each of them tried five times.
        let asked = server.requests("GET /auth").len();
        check((2..=10).contains(&asked), format!("tokens were asked for {asked} times"))
    })
}

/// Gives one token, for twelve seconds, and is in trouble from then on.
fn gives_one_token(line: &str) -> Answer {
    static GIVEN: AtomicUsize = AtomicUsize::new(0);
    let token = "x-auth-token: t\r\nx-storage-url: http://x/v1/AUTH_a\r\nx-auth-token-expires: 12\r\n";
    match line {
        "GET /auth/v1.0" if GIVEN.fetch_add(1, Ordering::SeqCst) == 0 => answer(200, token, ""),
        "GET /auth/v1.0" => answer(503, "", ""),
        "GET /info" => answer(404, "", ""),
        _ => answer(200, "", "[]"),
    }
}

fn last_minute() -> Outcome {
    run(async {
        let server = Scripted::start(gives_one_token).await?;
        let start = Instant::now();
        let store = open(&scripted_tokens(&server)).await?;
        // It should be renewed after nine seconds.
        tokio::time::sleep_until((start + Duration::from_millis(9_500)).into()).await;
        text(store.locate(&"image".parse().unwrap()).await)?;
        check(server.requests("GET /auth").len() == 2, "it has not asked for another token")?;
        tokio::time::sleep_until((start + Duration::from_secs(13)).into()).await;
        refused(store.locate(&"image".parse().unwrap()).await, ErrorKind::Unavailable, "identity").map(drop)
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
        // It made its container once, and makes it again.
        text(put(&store, "a", &content(10)).await)?;
        let mut config = server.config(&name);
        config.create_container = false;
        let careful = open(&config).await?;
        raw.delete(&format!("/{name}/a")).await?;
        raw.delete(&format!("/{name}")).await?;
        refused(put(&careful, "a", &content(10)).await, ErrorKind::Invalid, "create_container").map(drop)
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

fn beside_segments(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let (store, raw) = (open(&server.config(&name)).await?, server.raw().await?);
        let bytes = content(300_000);
        dynamic(&raw, &name, "image", &bytes, 100_000).await?;
        let mut beside = Vec::new();
        for id in ["image-7", "image-raw"] {
            beside.push(text(put(&store, id, &content(10)).await)?);
        }
        let at = text(store.locate(&"image".parse().unwrap()).await)?;
        reads(&store, &at, &bytes).await?;
        let listed: Vec<_> = text(store.list().try_collect().await)?;
        check(listed.len() == 3, format!("it lists {listed:?}"))?;
        text(store.delete(&at).await)?;
        for at in &beside {
            reads(&store, at, &content(10)).await?;
        }
        // What others name as they like may be anybody's.
        for part in ["a", "b"] {
            raw.put(&format!("/{name}/odd-{part}"), content(100)).await?;
        }
        let manifest = format!("{name}/odd-");
        raw.send(Method::PUT, &format!("/{name}/odd"), &[("x-object-manifest", &manifest)]).await?;
        let at = text(store.locate(&"odd".parse().unwrap()).await)?;
        reads(&store, &at, &[content(100), content(100)].concat().into()).await?;
        refused(store.delete(&at).await, ErrorKind::Unsupported, "the program that wrote it")?;
        for part in ["a", "b"] {
            raw.delete(&format!("/{name}/odd-{part}")).await?;
        }
        text(store.delete(&at).await)?;
        let left = raw.list(&name).await?;
        check(left == ["image-7", "image-raw"], format!("{left:?} is left"))
    })
}

fn undeletable(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let (store, raw) = (open(&server.config(&name)).await?, server.raw().await?);
        let (parts, user) = (format!("{name}_parts"), "images:norights");
        let both = [("x-container-read", user), ("x-container-write", user)];
        raw.send(Method::PUT, &format!("/{name}"), &both).await?;
        raw.send(Method::PUT, &format!("/{parts}"), &both[..1]).await?;
        let mut list = Vec::new();
        for number in 0..3 {
            for kind in ["static", "dynamic"] {
                raw.put(&format!("/{parts}/{kind}/{number:08}"), content(100)).await?;
            }
            list.push(serde_json::json!({ "path": format!("/{parts}/static/{number:08}") }));
        }
        let body = serde_json::to_vec(&list).unwrap();
        raw.put(&format!("/{name}/static?multipart-manifest=put"), body).await?;
        let manifest = [("x-object-manifest", &*format!("{parts}/dynamic/"))];
        raw.send(Method::PUT, &format!("/{name}/dynamic"), &manifest).await?;
        let mut config = server.config(&name);
        (config.user, config.password) = (Some(user.to_owned()), Some(Secret::new("norightspass")));
        config.create_container = false;
        let weak = open(&config).await?;
        let at = text(weak.locate(&"static".parse().unwrap()).await)?;
        refused(weak.delete(&at).await, ErrorKind::Denied, "ACL")?;
        reads(&store, &at, &[content(100), content(100), content(100)].concat().into()).await?;
        text(store.delete(&at).await)?;
        let at = text(weak.locate(&"dynamic".parse().unwrap()).await)?;
        refused(weak.delete(&at).await, ErrorKind::Denied, &format!("{parts}/dynamic/"))?;
        let left = (raw.list(&name).await?, raw.list(&parts).await?);
        check(left.0.is_empty() && left.1.len() == 3, format!("{left:?} is left"))
    })
}

fn former_container(server: &Server) -> Outcome {
    run(async {
        let (name, former) = (container(), container());
        let raw = server.raw().await?;
        let mut config = server.config(&name);
        config.segment_size.0 = MIB as u64;
        let (bytes, value) = (content(3 * MIB + 5), "\u{1}".repeat(1000));
        for large_objects in [LargeObjects::Static, LargeObjects::Dynamic] {
            (config.large_objects, config.segment_container) = (large_objects, Some(former.clone()));
            let expect = Expect::new().property("odd", value.clone());
            let source = store_core::once(bytes.clone());
            let at = open(&config).await?.put(&"image".parse().unwrap(), source, expect).await;
            let at = text(at)?.location;
            config.segment_container = None;
            let store = open(&config).await?;
            reads(&store, &at, &bytes).await?;
            let kept = text(store.stat(&at).await)?.meta.ok_or("no metadata")?;
            check(kept.properties.get("odd") == Some(&value), "the property is another one")?;
            text(store.delete(&at).await)?;
            holds_nothing(&store, &raw, &[&name, &former]).await?;
        }
        Ok(())
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
        let segments = format!("{name}_segments");
        let third = raw.list(&segments).await?.into_iter().nth(2).ok_or("no third segment")?;
        raw.delete(&format!("/{segments}/{third}")).await?;
        refused(store.open(&at).await, ErrorKind::Corrupt, &format!("{third} is gone"))?;
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
        config.segment_size.0 = MIB as u64;
        let store = open(&config).await?;
        let at = text(put(&store, "image", &content(3 * MIB)).await)?;
        for _ in 0..600 {
            match store.stat(&at).await {
                Err(error) if error.kind() == ErrorKind::NotFound => break,
                outcome => drop(text(outcome)?),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        refused(store.stat(&at).await, ErrorKind::NotFound, "")?;
        // Its segments are those of no blob from then on.
        let swept = text(store.sweep(Duration::ZERO).await)?;
        check(swept.uploads == 1, format!("it swept {swept:?}"))
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

/// Swift looks at each segment before it makes a large object, and says 400 where it cannot.
fn commit_again(server: &Server) -> Outcome {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    run(async {
        let name = container();
        let (front, config, raw) = watched(server, &name).await?;
        let store = open(&config).await?;
        let bytes = content(4 * MIB);
        let mut writer = text(store.upload(&"image".parse().unwrap(), Expect::new()).await)?;
        text(writer.write(bytes.clone()).await)?;
        while raw.list(&format!("{name}_segments")).await?.len() < 4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.pause("object")?;
        let back = async {
            while front.answers(" 400 ") == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let server = server.clone();
            tokio::task::spawn_blocking(move || server.resume("object")).await.map_err(|e| e.to_string())?
        };
        let back = tokio::time::timeout(Duration::from_secs(30), back);
        let (blob, back) = tokio::join!(writer.finish(), back);
        match back {
            Ok(outcome) => outcome?,
            Err(_) => return server.resume("object").and(Err("the commit was not refused".to_owned())),
        }
        reads(&store, &text(blob)?.location, &bytes).await
    })
}

fn object_server(server: &Server) -> Outcome {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    run(async {
        let front = Front::start(server.get("ADDRESS"), None, "").await?;
        let mut config = server.config(&container());
        config.endpoint = Some(format!("http://{}", front.addr));
        let store = open(&config).await?;
        let at = text(put(&store, "image", &content(1000)).await)?;
        server.pause("object")?;
        let outcomes = async {
            refused(store.get(&at, ..).await, ErrorKind::Unavailable, "")?;
            refused(put(&store, "other", &content(1000)).await, ErrorKind::Unavailable, "")?;
            front.requests();
            refused(put(&store, "other", &content(3 * MIB)).await, ErrorKind::Unavailable, "")?;
            // With pauses, since it may be back in a moment.
            let tried = front
                .requests()
                .into_iter()
                .filter(|made| made.starts_with("PUT ") && made.ends_with("/00000000"));
            let tried = tried.count();
            check(tried == 5, format!("the first segment was tried {tried} times"))?;
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

/// A `POST` replaces all metadata of an object, what ties it to its segments included.
fn described(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let mut config = server.config(&name);
        config.segment_size.0 = MIB as u64;
        let (raw, bytes) = (server.raw().await?, content(3 * MIB + 5));
        for large_objects in [LargeObjects::Static, LargeObjects::Dynamic] {
            config.large_objects = large_objects;
            let store = open(&config).await?;
            let at = text(put(&store, "image", &bytes).await)?;
            let path = format!("/{name}/image");
            let head = raw.send(Method::HEAD, &path, &[]).await?;
            let manifest = head.headers().get("x-object-manifest").and_then(|value| value.to_str().ok());
            raw.send(Method::POST, &path, &[("x-object-meta-os", "linux")]).await?;
            let swept = text(store.sweep(Duration::ZERO).await)?;
            check(swept == Swept::default(), format!("it swept {swept:?} of {large_objects:?}"))?;
            if let Some(manifest) = manifest {
                raw.send(Method::POST, &path, &[("x-object-manifest", manifest)]).await?;
                let swept = text(store.sweep(Duration::ZERO).await)?;
                check(swept == Swept::default(), format!("it swept {swept:?}"))?;
            }
            reads(&store, &at, &bytes).await?;
            check(text(store.stat(&at).await)?.meta.is_none(), "there is metadata")?;
            // What another upload of this id has left is not the blob's.
            raw.put(&format!("/{name}_segments/image/{TOKEN}/00000000"), content(10)).await?;
            let swept = text(store.sweep(Duration::ZERO).await)?;
            check(swept.uploads == 1, format!("it swept {swept:?}"))?;
            text(store.delete(&at).await)?;
            holds_nothing(&store, &raw, &[&name, &format!("{name}_segments")]).await?;
        }
        Ok(())
    })
}

fn shared_segments(server: &Server) -> Outcome {
    run(async {
        let (one, two, segments) = (container(), container(), container());
        let raw = server.raw().await?;
        let config = |name: &str| {
            let mut config = server.config(name);
            config.segment_container = Some(segments.clone());
            config.segment_size.0 = MIB as u64;
            config
        };
        let (first, second) = (open(&config(&one)).await?, open(&config(&two)).await?);
        let (bytes, value) = (content(3 * MIB + 5), "\u{1}".repeat(1000));
        let mut blobs = Vec::new();
        // Both have a blob of that name, and one has another one, and what a killed process left.
        for (store, id) in [(&first, "image"), (&second, "image"), (&second, "backup")] {
            let expect = Expect::new().property("odd", value.clone());
            let blob = store.put(&id.parse().unwrap(), store_core::once(bytes.clone()), expect).await;
            blobs.push((store, text(blob)?.location));
        }
        let mut writer = text(second.upload(&"killed".parse().unwrap(), Expect::new()).await)?;
        text(writer.write(content(3 * MIB)).await)?;
        std::mem::forget(writer);
        // What had a name without a container may be anybody's.
        let before = format!("backup/{TOKEN}/00000000");
        raw.put(&format!("/{segments}/{before}"), content(10)).await?;
        let swept = text(first.sweep(Duration::ZERO).await)?;
        check(swept == Swept::default(), format!("it swept {swept:?} of another store"))?;
        let swept = text(second.sweep(Duration::ZERO).await)?;
        check(swept.uploads == 1, format!("it swept {swept:?}"))?;
        for (store, at) in blobs {
            reads(store, &at, &bytes).await?;
            let kept = text(store.stat(&at).await)?.meta.ok_or("no metadata")?;
            check(kept.properties.get("odd") == Some(&value), "the property is another one")?;
            text(store.delete(&at).await)?;
        }
        let left = raw.list(&segments).await?;
        check(left == [before], format!("{left:?} is left"))
    })
}

/// Lays a blob out with the names that its segments had before, by what a store without a shared container writes.
fn names_before(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let raw = server.raw().await?;
        let mut config = server.config(&name);
        config.segment_size.0 = MIB as u64;
        let (bytes, value) = (content(3 * MIB + 5), "\u{1}".repeat(1000));
        for large_objects in [LargeObjects::Static, LargeObjects::Dynamic] {
            (config.large_objects, config.segment_container) = (large_objects, None);
            let expect = Expect::new().property("odd", value.clone());
            let source = store_core::once(bytes.clone());
            let before = open(&config).await?;
            let at = text(before.put(&"image".parse().unwrap(), source, expect).await)?.location;
            config.segment_container = Some(format!("{name}_segments"));
            let store = open(&config).await?;
            let swept = text(store.sweep(Duration::ZERO).await)?;
            check(swept == Swept::default(), format!("it swept {swept:?}"))?;
            reads(&store, &at, &bytes).await?;
            let kept = text(store.stat(&at).await)?.meta.ok_or("no metadata")?;
            check(kept.properties.get("odd") == Some(&value), "the property is another one")?;
            text(store.delete(&at).await)?;
            holds_nothing(&store, &raw, &[&name, &format!("{name}_segments")]).await?;
        }
        Ok(())
    })
}

/// The path of what the watched store writes.
fn account(raw: &Raw) -> &str {
    raw.storage.splitn(4, '/').nth(3).unwrap_or_default()
}

fn swept_commit(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let (front, config, raw) = watched(server, &name).await?;
        let store = open(&config).await?;
        let (segments, id): (_, BlobId) = (format!("{name}_segments"), "image".parse().unwrap());
        // A list of segments, and a small blob with metadata beside it.
        for len in [3 * MIB, 10] {
            front.catch(format!("PUT /{}/{name}/image", account(&raw)));
            let expect = Expect::new().size(len as u64).property("odd", "\u{1}".repeat(1000));
            let put = store.put(&id, store_core::once(content(len)), expect);
            // As a sweep does that looked before the blob was there, and has come to its end, mark and all.
            let sweep = async {
                front.caught().await;
                let names = raw.list(&segments).await?;
                check(!names.is_empty(), "nothing is staged")?;
                for name in names {
                    raw.delete(&format!("/{segments}/{name}")).await?;
                }
                front.release(false);
                Ok::<_, String>(())
            };
            let (put, swept) = tokio::join!(put, sweep);
            swept?;
            refused(put, ErrorKind::NotFound, "send the image again")?;
            store.settle().await;
            refused(store.locate(&id).await, ErrorKind::NotFound, "")?;
        }
        holds_nothing(&store, &raw, &[&name, &segments]).await
    })
}

fn mark_last(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let (front, config, raw) = watched(server, &name).await?;
        let mut writer = text(open(&config).await?.upload(&"image".parse().unwrap(), Expect::new()).await)?;
        text(writer.write(content(5 * MIB)).await)?;
        std::mem::forget(writer);
        let store = open(&config).await?;
        front.catch(format!("POST /{}?bulk-delete", account(&raw)));
        let segments = format!("{name}_segments");
        let look = async {
            front.caught().await;
            let left = raw.list(&segments).await;
            front.release(false);
            left
        };
        let (swept, left) = tokio::join!(store.sweep(Duration::ZERO), look);
        check(text(swept)?.uploads == 1, "it swept nothing")?;
        let left = left?;
        check(left.len() == 1 && left[0].ends_with("/swept"), format!("{left:?} is left before the mark"))?;
        holds_nothing(&store, &raw, &[&name, &segments]).await
    })
}

fn late_deletion(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let (front, config, raw) = watched(server, &name).await?;
        let store = open(&config).await?;
        let mut past = config.clone();
        past.endpoint = None;
        let past = open(&past).await?;
        let newer = content(3 * MIB + 5);
        // One of the store's own, and what others wrote.
        for foreign in [false, true] {
            match foreign {
                false => drop(text(put(&store, "image", &content(2 * MIB)).await)?),
                true => raw.put(&format!("/{name}/image"), content(1000)).await?,
            }
            let at = text(store.locate(&"image".parse().unwrap()).await)?;
            front.catch(format!("DELETE /{}/{name}/image", account(&raw)));
            // It is carried out, its answer is lost, and the id is taken anew before it is repeated.
            let replace = async {
                front.caught().await;
                let outcome = put(&past, "image", &newer).await;
                front.release(true);
                text(outcome)
            };
            let (deleted, replaced) = tokio::join!(store.delete(&at), replace);
            text(deleted)?;
            reads(&past, &replaced?, &newer).await?;
            text(past.delete(&at).await)?;
        }
        holds_nothing(&store, &raw, &[&name, &format!("{name}_segments")]).await
    })
}

/// Swift forgets what it remembers of an account before it changes that, and may have looked it up again meanwhile.
fn news(server: &Server) -> Outcome {
    run(async {
        let name = container();
        // An account that no other test has Swift look at.
        let (user, key) = ("other:other", "otherpass");
        let raw = server.raw_as(user, key).await?;
        let front = Front::start(server.get("ADDRESS"), None, "").await?;
        let mut config = server.config(&name);
        (config.user, config.password) = (Some(user.to_owned()), Some(Secret::new(key)));
        config.endpoint = Some(format!("http://{}", front.addr));
        config.temp_url_key = Some(Secret::new(&*name));
        let store = open(&config).await?;
        let bytes = content(1000);
        let at = text(put(&store, "image", &bytes).await)?;
        let path = account(&raw).to_owned();
        let before = server.remembered(path.rsplit('/').next().unwrap_or_default())?;
        front.catch(format!("POST /{path}"));
        let overtake = async {
            front.caught().await;
            let outcome = server.remember(&before);
            front.release(false);
            outcome
        };
        let (url, overtaken) = tokio::join!(store.presign(&at, Duration::from_secs(60)), overtake);
        overtaken?;
        check(front.answers(" 401 ") == 1, "nothing was out of date")?;
        let reply = reqwest::get(text(url)?.expose()).await.map_err(|e| e.to_string())?;
        check(reply.status() == 200, format!("a GET of the URL gives {}", reply.status()))?;
        check(reply.bytes().await.is_ok_and(|read| read == bytes), "other bytes")?;
        text(store.delete(&at).await)?;
        holds_nothing(&store, &raw, &[&name]).await
    })
}

fn authority(server: &Server) -> Outcome {
    let authority = Authority::new()?;
    run(async {
        let front = Front::start(server.get("ADDRESS"), Some(&authority), "").await?;
        let port = front.addr.port();
        let mut config = server.config(&container());
        config.auth_url = Some(format!("https://localhost:{port}/auth/v1.0"));
        // Swift does not know that there is TLS in front of it.
        config.endpoint = Some(format!("https://localhost:{port}"));
        config.segment_size.0 = MIB as u64;
        refused(SwiftBackend::connect(&config).await, ErrorKind::Invalid, "`ca_file`")?;
        config.ca_file = Some(authority.ca_file());
        let store = open(&config).await?;
        for len in [10, 5 * MIB + 3] {
            let at = text(put(&store, &format!("image-{len}"), &content(len)).await)?;
            reads(&store, &at, &content(len)).await?;
        }
        let mut other = config.clone();
        // It is for another name.
        other.auth_url = Some(format!("https://127.0.0.1:{port}/auth/v1.0"));
        refused(SwiftBackend::connect(&other).await, ErrorKind::Invalid, "name that it is for")?;
        other.auth_url = Some(format!("https://{}/auth/v1.0", server.get("ADDRESS")));
        refused(SwiftBackend::connect(&other).await, ErrorKind::Invalid, "http://")?;
        other.ca_file = Some(authority.ca_file().with_file_name("ext"));
        let error = refused(SwiftBackend::connect(&other).await, ErrorKind::Invalid, "")?;
        check(error.message().contains("`ca_file`"), format!("it fails with {error:?}"))?;
        other.ca_file = Some("/nonexistent/ca.pem".into());
        let error = SwiftBackend::connect(&other).await.map(drop).unwrap_err();
        check(error.to_string().contains("`ca_file`"), format!("it fails with {error:?}"))
    })
}

fn keystone_authority(server: &Server) -> Outcome {
    let authority = Authority::new()?;
    run(async {
        let keystone = server.get("KEYSTONE_URL").split('/').nth(2).unwrap_or_default();
        let keystone = Front::start(keystone, Some(&authority), "").await?;
        let proxy = Front::start(server.get("KEYSTONE_ADDRESS"), Some(&authority), "").await?;
        let mut config = server.keystone(&container());
        config.auth_url = Some(format!("https://localhost:{}/v3", keystone.addr.port()));
        config.endpoint = Some(format!("https://localhost:{}", proxy.addr.port()));
        refused(SwiftBackend::connect(&config).await, ErrorKind::Invalid, "`ca_file`")?;
        config.ca_file = Some(authority.ca_file());
        let store = open(&config).await?;
        let at = text(put(&store, "image", &content(3 * MIB)).await)?;
        reads(&store, &at, &content(3 * MIB)).await
    })
}

fn damage(server: &Server) -> Outcome {
    run(async {
        let front = Front::start(server.get("ADDRESS"), None, "").await?;
        let name = container();
        let mut config = server.config(&name);
        config.endpoint = Some(format!("http://{}", front.addr));
        config.segment_size.0 = MIB as u64;
        let (store, raw) = (open(&config).await?, server.raw().await?);
        // A blob in one piece, the first segment of one, and one of several that are on their way.
        for (id, len, clean) in [("whole", MIB, 0), ("first", 6 * MIB, 0), ("later", 9 * MIB + 5, 3 * MIB)] {
            let bytes = content(len);
            let expect = if clean == 0 { Expect::new().size(len as u64) } else { Expect::new() };
            let mut writer = text(store.upload(&id.parse().unwrap(), expect).await)?;
            text(writer.write(bytes.slice(..clean)).await)?;
            front.damage();
            text(writer.write(bytes.slice(clean..)).await)?;
            let blob = text(writer.finish().await)?;
            check(front.has_damaged(), format!("nothing of {id} was damaged"))?;
            reads(&store, &blob.location, &bytes).await?;
            text(store.delete(&blob.location).await)?;
        }
        // Who asks for no check gets none.
        config.checksum = store_swift::Checksum::None;
        let careless = open(&config).await?;
        front.damage();
        let at = text(put(&careless, "careless", &content(6 * MIB)).await)?;
        refused(careless.get(&at, ..).await, ErrorKind::Corrupt, "another copy")?;
        text(careless.delete(&at).await)?;
        holds_nothing(&store, &raw, &[&name, &format!("{name}_segments")]).await
    })
}

fn shared_token(server: &Server) -> Outcome {
    run(async {
        let front = Front::start(server.get("ADDRESS"), None, "GET /auth/v1.0").await?;
        let mut config = server.config(&container());
        config.auth_url = Some(format!("http://{}/auth/v1.0", front.addr));
        let stores = futures::future::try_join_all((0..4).map(|_| open(&config))).await?;
        let puts = stores.iter().enumerate().map(|(n, store)| {
            let id = format!("image-{n}");
            async move { text(put(store, &id, &content(10)).await) }
        });
        futures::future::try_join_all(puts).await?;
        check(front.count() == 1, format!("tokens were asked for {} times", front.count()))
    })
}

fn forgotten_token(server: &Server) -> Outcome {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    run(async {
        let front = Front::start(server.get("ADDRESS"), None, "GET /auth/v1.0").await?;
        let name = container();
        let mut config = server.config(&name);
        config.auth_url = Some(format!("http://{}/auth/v1.0", front.addr));
        config.segment_size.0 = MIB as u64;
        let store = open(&config).await?;
        let bytes = content(9 * MIB);
        let mut writer = text(store.upload(&"image".parse().unwrap(), Expect::new()).await)?;
        text(writer.write(bytes.slice(..4 * MIB)).await)?;
        server.forget()?;
        text(writer.write(bytes.slice(4 * MIB..)).await)?;
        let blob = text(writer.finish().await)?;
        check(front.count() == 2, format!("tokens were asked for {} times", front.count()))?;
        server.forget()?;
        reads(&store, &blob.location, &bytes).await?;
        check(front.count() == 3, format!("tokens were asked for {} times", front.count()))?;
        // One that cannot be renewed is refused at last.
        let raw = server.raw().await?;
        let mut given = SwiftConfig::new(&name);
        given.token = Some(Secret::new(raw.token()));
        given.endpoint = Some(raw.storage.clone());
        let given = open(&given).await?;
        reads(&given, &blob.location, &bytes).await?;
        server.forget()?;
        refused(given.get(&blob.location, ..).await, ErrorKind::Denied, "token").map(drop)
    })
}

/// Requests in the order of their names, without what is random in them.
fn plain(mut requests: Vec<String>, server: &Raw, container: &str) -> Vec<String> {
    let account = server.storage.splitn(4, '/').nth(3).unwrap_or_default().to_owned();
    for request in &mut requests {
        *request = request.replace(&format!("/{account}"), "").replace(container, "c");
        // What is behind the id of a blob in the container of segments starts with a random token.
        if let Some((before, behind)) = request.clone().split_once("/c_segments/image/") {
            *request = format!("{before}/c_segments/image/{}", behind.split_once('/').map_or("", |(_, n)| n));
        }
    }
    requests.sort();
    requests
}

/// A store behind a line that notes requests.
async fn watched(server: &Server, name: &str) -> Result<(Front, SwiftConfig, Raw), String> {
    let front = Front::start(server.get("ADDRESS"), None, "").await?;
    let raw = server.raw().await?;
    for container in [name.to_owned(), format!("{name}_segments")] {
        raw.send(Method::PUT, &format!("/{container}"), &[]).await?;
    }
    let mut config = server.config(name);
    config.endpoint = Some(format!("http://{}", front.addr));
    (config.segment_size.0, config.read_size.0) = (MIB as u64, MIB as u64);
    Ok((front, config, raw))
}

fn requests(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let (front, config, raw) = watched(server, &name).await?;
        let made = |expected: &[&str]| {
            let made = plain(front.requests(), &raw, &name);
            check(made == expected, format!("these requests were made: {made:#?}"))
        };
        let store = open(&config).await?;
        made(&[
            "GET /c?format=json&limit=1",
            "GET /c_segments?format=json&limit=1",
            "GET /info",
            "GET ?format=json&limit=1",
        ])?;
        let sized = async |id: &str, bytes: &Bytes| {
            let expect = Expect::new().size(bytes.len() as u64);
            let source = store_core::once(bytes.clone());
            text(store.put(&id.parse().unwrap(), source, expect).await)
        };
        let small = sized("image", &content(100_000)).await?.location;
        made(&["HEAD /c/image", "PUT /c/image"])?;
        check(text(store.get(&small, ..).await)? == content(100_000), "other bytes came back")?;
        made(&["GET /c/image?multipart-manifest=get"])?;
        text(store.delete(&small).await)?;
        made(&["DELETE /c/image", "HEAD /c/image"])?;
        let bytes = content(2 * MIB + 5);
        let large = sized("image", &bytes).await?.location;
        made(&[
            "HEAD /c/image",
            "HEAD /c/image",
            "HEAD /c_segments/image/00000000",
            "HEAD /c_segments/image/swept",
            "PUT /c/image?multipart-manifest=put",
            "PUT /c_segments/image/00000000",
            "PUT /c_segments/image/00000001",
            "PUT /c_segments/image/00000002",
        ])?;
        check(text(store.get(&large, ..).await)? == bytes, "other bytes came back")?;
        made(&[
            "GET /c/image?multipart-manifest=get",
            "GET /c_segments/image/00000000",
            "GET /c_segments/image/00000001",
            "GET /c_segments/image/00000002",
        ])
    })
}

/// Fails if `call` waits for an answer that is held back until it has made more requests.
async fn unheld<T>(what: &str, call: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let ended = tokio::time::timeout(Duration::from_secs(45), call).await;
    ended.map_err(|_| format!("{what} waits for an answer before it asks on"))?
}

fn at_once(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let (front, config, _) = watched(server, &name).await?;
        front.hold(4);
        let store = Box::pin(unheld("opening a store", open(&config))).await?;
        let bytes = content(4 * MIB + 5);
        // The look whether the id is taken, and all segments but the last one, which is not full yet.
        front.hold(5);
        let writer = unheld("an upload", async {
            let expect = Expect::new().size(bytes.len() as u64);
            let mut writer = text(store.upload(&"image".parse().unwrap(), expect).await)?;
            text(writer.write(bytes.slice(..4 * MIB)).await)?;
            while front.is_held() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            text(writer.write(bytes.slice(4 * MIB..)).await)?;
            Ok(writer)
        });
        let blob = text(writer.await?.finish().await)?;
        let reader = text(store.open(&blob.location).await)?;
        front.hold(4);
        let got: Vec<Bytes> =
            unheld("a read", async { text(text(reader.stream(..))?.try_collect().await) }).await?;
        check(got.concat() == bytes, "other bytes came back")
    })
}

fn missing_segments(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let mut config = server.config(&name);
        config.segment_size.0 = MIB as u64;
        let (store, raw) = (open(&config).await?, server.raw().await?);
        let segments = format!("{name}_segments");
        // Of more than twenty segments, the outcome comes behind a status that means nothing.
        for (len, harm, kind) in [
            (4 * MIB, "delete", ErrorKind::NotFound),
            (4 * MIB, "replace", ErrorKind::Corrupt),
            (25 * MIB, "delete", ErrorKind::NotFound),
            (25 * MIB, "replace", ErrorKind::Corrupt),
        ] {
            let mut writer = text(store.upload(&"image".parse().unwrap(), Expect::new()).await)?;
            // Two beyond it are on their way, or stored, when this returns.
            text(writer.write(content(len)).await)?;
            let listed = raw.list(&segments).await?;
            let first = listed.first().ok_or("no segment is there")?;
            let path = format!("/{segments}/{first}");
            match harm {
                "delete" => raw.delete(&path).await?,
                _ => raw.put(&path, content(2 * MIB + 1).slice(1..)).await?,
            }
            refused(writer.finish().await, kind, "")?;
            store.settle().await;
            refused(store.locate(&"image".parse().unwrap()).await, ErrorKind::NotFound, "")?;
        }
        holds_nothing(&store, &raw, &[&name, &segments]).await
    })
}

fn parts_of_objects(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let (store, raw) = (open(&server.config(&name)).await?, server.raw().await?);
        let bytes = content(2 * MIB);
        raw.send(Method::PUT, &format!("/{name}_other"), &[]).await?;
        raw.put(&format!("/{name}_other/a"), bytes.clone()).await?;
        raw.put(&format!("/{name}_other/b"), bytes.clone()).await?;
        let list = serde_json::json!([
            { "path": format!("/{name}_other/a"), "range": "0-999999" },
            { "path": format!("/{name}_other/b"), "range": "500000-1499999" },
        ]);
        raw.put(&format!("/{name}/image?multipart-manifest=put"), list.to_string()).await?;
        let expected = Bytes::from([&bytes[..1_000_000], &bytes[500_000..1_500_000]].concat());
        let at = text(store.locate(&"image".parse().unwrap()).await)?;
        reads(&store, &at, &expected).await?;
        // What is in the middle of it breaks the answer off; what is at its start is told by a status.
        for gone in ["b", "a"] {
            raw.delete(&format!("/{name}_other/{gone}")).await?;
            refused(store.get(&at, ..).await, ErrorKind::Corrupt, "another copy")?;
        }
        text(store.delete(&at).await)?;
        holds_nothing(&store, &raw, &[&name, &format!("{name}_other")]).await
    })
}

fn dynamic_lag(server: &Server) -> Outcome {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    run(async {
        let mut config = server.config(&container());
        (config.large_objects, config.segment_size.0) = (LargeObjects::Dynamic, MIB as u64);
        let store = open(&config).await?;
        let (id, bytes): (BlobId, _) = ("image".parse().unwrap(), content(5 * MIB));
        let mut writer = text(store.upload(&id, Expect::new()).await)?;
        text(writer.write(bytes.slice(..3 * MIB)).await)?;
        server.pause("container")?;
        // They are stored, and the list does not know them: as a large object it would be a shorter one.
        let written = writer.write(bytes.slice(3 * MIB..)).await;
        let finished = match written {
            Ok(()) => writer.finish().await.map(drop),
            Err(error) => Err(error),
        };
        server.resume("container")?;
        server.update()?;
        refused(finished, ErrorKind::Unavailable, "")?;
        store.settle().await;
        text(store.sweep(Duration::ZERO).await)?;
        refused(store.locate(&id).await, ErrorKind::NotFound, "")?;
        let at = text(put(&store, "image", &bytes).await)?;
        reads(&store, &at, &bytes).await
    })
}

fn stalled(server: &Server) -> Outcome {
    run(async {
        let raw = server.raw().await?;
        let name = container();
        raw.send(Method::PUT, &format!("/{name}"), &[]).await?;
        // So does the server answer who goes on too late: 408, or 499 if it takes that for the end.
        let late = futures::stream::unfold(0, |sent| async move {
            tokio::time::sleep(Duration::from_secs(if sent == 0 { 0 } else { 20 })).await;
            (sent < 2).then(|| (Ok::<_, std::io::Error>(content(1000)), sent + 1))
        });
        let body = reqwest::Body::wrap_stream(late);
        let (path, headers) = (format!("/{name}/late"), map(&[("content-length", "2000")]));
        let answer = raw.call(Method::PUT, &path, headers, body).await.map(drop);
        let given_up = answer.as_ref().is_err_and(|error| error.contains("408") || error.contains("499"));
        check(given_up, format!("it answers {answer:?}"))?;

        let proxy =
            conformance_tests::Proxy::start(server.get("ADDRESS")).await.map_err(|e| e.to_string())?;
        let mut config = server.config(&name);
        config.endpoint = Some(format!("http://{}", proxy.addr()));
        config.segment_size.0 = MIB as u64;
        let store = open(&config).await?;
        let bytes = content(6 * MIB);
        let mut writer = text(store.upload(&"image".parse().unwrap(), Expect::new()).await)?;
        text(writer.write(bytes.slice(..2 * MIB)).await)?;
        // A source may take its time: what it gives is sent when there is enough.
        tokio::time::sleep(Duration::from_secs(4)).await;
        text(writer.write(bytes.slice(2 * MIB..3 * MIB)).await)?;
        proxy.inject(conformance_tests::Fault::Stall);
        let rest = async {
            text(writer.write(bytes.slice(3 * MIB..)).await)?;
            text(writer.finish().await)
        };
        let healed = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            proxy.inject(conformance_tests::Fault::Heal);
        };
        let (blob, ()) = tokio::join!(rest, healed);
        reads(&store, &blob?.location, &bytes).await?;
        text(store.sweep(Duration::ZERO).await).map(drop)
    })
}

fn silent(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let mut config = server.config(&name);
        config.segment_size.0 = 2 * MIB as u64;
        let (store, raw) = (open(&config).await?, server.raw().await?);
        let bytes = content(7 * MIB + 5);
        let at = text(put(&store, "image", &bytes).await)?;
        reads(&store, &at, &bytes).await?;
        refused(put(&store, "image", &bytes).await, ErrorKind::AlreadyExists, "")?;
        let copy = text(store.copy(&at, &"copy".parse().unwrap(), |_| {}).await)?;
        reads(&store, &copy.location, &bytes).await?;
        for at in [&at, &copy.location] {
            text(store.delete(at).await)?;
        }
        // Its largest object is not known before it says so.
        config.segment_size.0 = 5 * MIB as u64;
        let large = put(&open(&config).await?, "large", &content(9 * MIB)).await;
        refused(large, ErrorKind::Unsupported, "`segment_size`")?;
        holds_nothing(&store, &raw, &[&name, &format!("{name}_segments")]).await
    })
}

fn pages(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let mut config = server.config(&name);
        config.segment_size.0 = MIB as u64;
        let (store, raw) = (open(&config).await?, server.raw().await?);
        let ids: Vec<String> = (0..20).map(|n| format!("image-{n:02}")).collect();
        for id in &ids {
            text(put(&store, id, &content(10)).await)?;
        }
        let found = async |store: &Store| {
            let listed: Vec<_> = text(store.list().try_collect().await)?;
            let mut found: Vec<String> = listed.iter().map(|entry| entry.id.to_string()).collect();
            found.sort();
            Ok::<_, String>((found, listed))
        };
        let (listed, entries) = found(&store).await?;
        check(listed == ids, format!("it lists {listed:?}"))?;
        // Three uploads of killed processes, whose segments are more than a page.
        for id in ["a", "b", "c"] {
            let mut writer = text(store.upload(&id.parse().unwrap(), Expect::new()).await)?;
            text(writer.write(content(7 * MIB)).await)?;
            std::mem::forget(writer);
        }
        let swept = text(open(&config).await?.sweep(Duration::ZERO).await)?;
        check(swept.uploads == 3, format!("it swept {swept:?}"))?;
        for entry in &entries {
            text(store.delete(&entry.location).await)?;
        }
        holds_nothing(&store, &raw, &[&name, &format!("{name}_segments")]).await?;
        config.container_seed = 2;
        let spread = open(&config).await?;
        let ids: Vec<String> = (0..9).map(|n| format!("{n}{n}-image")).collect();
        for id in &ids {
            text(put(&spread, id, &content(10)).await)?;
        }
        let (listed, _) = found(&spread).await?;
        check(listed == ids, format!("it lists {listed:?}"))
    })
}

fn clouds(server: &Server) -> Outcome {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let file = folder.path().join("clouds.yaml");
    let (url, user, project) = (server.get("KEYSTONE_URL"), server.get("USERNAME"), server.get("PROJECT"));
    let clouds = format!(
        "clouds:\n  images:\n    auth: {{auth_url: '{url}', username: {user}, project_name: {project}, \
         user_domain_name: Default, project_domain_id: default}}\n    regions: [RegionTwo, RegionOne]\n"
    );
    std::fs::write(&file, clouds).map_err(|e| e.to_string())?;
    let secure = format!("clouds: {{images: {{auth: {{password: '{}'}}}}}}\n", server.get("PASSWORD"));
    std::fs::write(folder.path().join("secure.yaml"), secure).map_err(|e| e.to_string())?;
    let name = container();
    run(async {
        let mut config = SwiftConfig::new(&name);
        config.create_container = true;
        (config.cloud, config.clouds_file) = (Some("images".to_owned()), Some(file.clone()));
        let backend = text(SwiftBackend::connect(&config).await)?;
        check(format!("{backend:?}").contains("http://localhost:"), format!("it uses {backend:?}"))?;
        let store = Store::new("a", Arc::new(backend), quick());
        let at = text(put(&store, "cloud", &content(1000)).await)?;
        reads(&store, &at, &content(1000)).await?;
        // The address of an administrator ends before the account.
        config.interface = Some(store_swift::Interface::Admin);
        reads(&open(&config).await?, &at, &content(1000)).await?;
        // Domains by name in the settings themselves.
        let mut config = server.keystone(&name);
        (config.user_domain, config.project_domain_id) =
            (Some("Default".to_owned()), Some("default".to_owned()));
        reads(&open(&config).await?, &at, &content(1000)).await?;
        config.project_domain_id = Some("elsewhere".to_owned());
        refused(SwiftBackend::connect(&config).await, ErrorKind::Denied, "domain").map(drop)
    })?;
    let file = file.display().to_string();
    let by_name = [("OS_CLOUD", "images"), ("OS_CLIENT_CONFIG_FILE", &file)];
    let by_hand = [
        ("OS_AUTH_URL", url),
        ("OS_USERNAME", user),
        ("OS_PASSWORD", server.get("PASSWORD")),
        ("OS_PROJECT_NAME", project),
        ("OS_DEFAULT_DOMAIN", "default"),
        ("OS_REGION_NAME", "RegionOne"),
        ("OS_ENDPOINT_TYPE", "publicURL"),
    ];
    let version_1 = [
        ("ST_AUTH", server.get("AUTH_URL")),
        ("ST_USER", server.get("ACCOUNT_USER")),
        ("ST_KEY", server.get("ACCOUNT_KEY")),
    ];
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    for variables in [&by_name[..], &by_hand, &version_1] {
        let child =
            Command::new(&program).env_clear().env(CHILD, container()).envs(variables.to_vec()).output();
        let child = child.map_err(|e| e.to_string())?;
        check(child.status.success(), String::from_utf8_lossy(&child.stderr))?;
    }
    Ok(())
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
        // Without its token, it is deleted as what others wrote.
        raw.send(Method::POST, &format!("/{name}/image"), &[("x-object-meta-os", "linux")]).await?;
        let swept = text(store.sweep(Duration::ZERO).await)?;
        check(swept == Swept::default(), format!("it swept {swept:?}"))?;
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
        let (name, raw) = (container(), server.raw().await?);
        // Swift limits no container that it remembers as an empty one, and may count objects a while after they are there.
        for container in [name.clone(), format!("{name}_segments")] {
            for path in [format!("/{container}"), format!("/{container}/first")] {
                raw.send(Method::PUT, &path, &[]).await?;
            }
            for _ in 0..100 {
                let reply = raw.send(Method::HEAD, &format!("/{container}"), &[]).await?;
                if reply.headers().get("x-container-object-count").is_some_and(|count| count == "1") {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            raw.send(Method::PUT, &format!("/{container}"), &[]).await?;
        }
        let front = Front::start(server.get("ADDRESS"), None, "").await?;
        let mut config = server.config(&name);
        config.endpoint = Some(format!("http://{}", front.addr));
        (config.segment_size.0, config.concurrency) = (MIB as u64, 8);
        let store = open(&config).await?;
        let bytes = content(10);
        // A server that is busy with others may be too slow for its own limit, the first times.
        let mut count = 0;
        while front.answers("498") == 0 && count < 80 {
            let ids: Vec<String> = (count..count + 8).map(|n| format!("small-{n}")).collect();
            let puts = ids.iter().map(|id| async { text(put(&store, id, &bytes).await) });
            futures::future::try_join_all(puts).await?;
            count += ids.len();
        }
        check(front.answers("498") > 0, "the server did not ask for fewer requests")?;
        // Lists have a limit of their own.
        let (before, mut rounds) = (front.answers("498"), 0);
        while front.answers("498") == before && rounds < 10 {
            let lists = (0..8).map(|_| async {
                let listed: Vec<_> = text(store.list().try_collect().await)?;
                check(listed.len() == count + 1, format!("it lists {listed:?}"))
            });
            futures::future::try_join_all(lists).await?;
            rounds += 1;
        }
        check(front.answers("498") > before, "the server did not ask for fewer lists")?;
        let bytes = content(12 * MIB);
        let at = text(put(&store, "image", &bytes).await)?;
        reads(&store, &at, &bytes).await?;
        text(store.delete(&at).await)
    })
}

fn full_disk(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let (store, raw) = (open(&server.config(&name)).await?, server.raw().await?);
        // The disk's 507 stays between the proxy and the object server.
        refused(put(&store, "small", &content(1000)).await, ErrorKind::Unavailable, "disks are full")?;
        refused(put(&store, "large", &content(9 * MIB)).await, ErrorKind::Unavailable, "disks are full")?;
        for id in ["small", "large"] {
            refused(store.locate(&id.parse().unwrap()).await, ErrorKind::NotFound, "")?;
        }
        holds_nothing(&store, &raw, &[&name, &format!("{name}_segments")]).await
    })
}

fn account_quota(server: &Server) -> Outcome {
    run(async {
        let name = container();
        let (user, key) = ("limited:limited", "limitedpass");
        let raw = server.raw_as(user, key).await?;
        // An account sets no quota for itself.
        let mut admin = server.raw_as(server.get("ADMIN_USER"), server.get("ADMIN_KEY")).await?;
        admin.storage = raw.storage.clone();
        let mut config = server.config(&name);
        (config.user, config.password) = (Some(user.to_owned()), Some(Secret::new(key)));
        let store = open(&config).await?;
        admin.send(Method::POST, "", &[("x-account-meta-quota-bytes", "3000000")]).await?;
        // Opened before there was a quota, it learns of it from the server.
        let error = refused(put(&store, "large", &content(9 * MIB)).await, ErrorKind::NoSpace, "quota")?;
        check(!error.is_retryable(), "it is retried")?;
        let store = open(&config).await?;
        check(text(store.capacity().await)?.total == 3_000_000, "there is another capacity")?;
        let known = store.upload(&"known".parse().unwrap(), Expect::new().size(4_000_000)).await;
        refused(known.map(drop), ErrorKind::NoSpace, "quota")?;
        holds_nothing(&store, &raw, &[&name, &format!("{name}_segments")]).await
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

fn revoked_token(server: &Server) -> Outcome {
    run(async {
        let keystone = server.get("KEYSTONE_URL").split('/').nth(2).unwrap_or_default();
        let front = Front::start(keystone, None, "POST /v3/auth/tokens").await?;
        let mut config = server.keystone(&container());
        config.auth_url = Some(format!("http://{}/v3", front.addr));
        config.segment_size.0 = MIB as u64;
        let store = open(&config).await?;
        let http = reqwest::Client::new();
        // As an operator does with a token that has become known to others.
        let revoke = async || {
            let token = front.subject();
            let tokens = format!("{}/auth/tokens", server.get("KEYSTONE_URL"));
            let call = http.delete(tokens).header("x-auth-token", &token).header("x-subject-token", &token);
            let reply = call.send().await.map_err(|e| e.to_string())?;
            check(reply.status().as_u16() == 204, format!("it is not revoked: {}", reply.status()))?;
            let account =
                format!("http://{}/v1/AUTH_{}", server.get("KEYSTONE_ADDRESS"), server.get("PROJECT_ID"));
            let reply = http.get(account).header("x-auth-token", &token).send().await;
            let status = reply.map_err(|e| e.to_string())?.status();
            check(status.as_u16() == 401, format!("a revoked token is still good: {status}"))?;
            Ok::<_, String>(token)
        };
        let bytes = content(9 * MIB);
        let first = revoke().await?;
        let mut writer = text(store.upload(&"image".parse().unwrap(), Expect::new()).await)?;
        text(writer.write(bytes.slice(..4 * MIB)).await)?;
        check(front.subject() != first, "it works with a revoked token")?;
        let second = revoke().await?;
        text(writer.write(bytes.slice(4 * MIB..)).await)?;
        let blob = text(writer.finish().await)?;
        check(front.subject() != second, "it works with a revoked token")?;
        let third = revoke().await?;
        reads(&store, &blob.location, &bytes).await?;
        check(front.subject() != third, "it works with a revoked token")?;
        // Those on their way at once have asked for one new token, not for one each.
        check(front.count() < 8, format!("tokens were asked for {} times", front.count()))
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
        config.interface = Some(store_swift::Interface::Internal);
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
        wrong.service_type = Some("object".to_owned());
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
        config.service_domain = Some("elsewhere".to_owned());
        refused(SwiftBackend::connect(&config).await, ErrorKind::Denied, "domain")?;
        config.service_domain = Some("Default".to_owned());
        let helped = open(&config).await?;
        tokio::time::sleep(Duration::from_secs(14)).await;
        refused(put(&alone, "image", &content(10)).await, ErrorKind::Denied, "token")?;
        let at = text(put(&helped, "image", &content(1000)).await)?;
        reads(&helped, &at, &content(1000)).await
    })
}

/// Who may read a container may not write to it.
async fn refused_by_acl(raw: &Raw, path: &str) -> Outcome {
    match raw.send(Method::PUT, path, &[]).await {
        Err(error) if error.contains("403") => Ok(()),
        outcome => Err(format!("a write without the right to it: {outcome:?}")),
    }
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
        let mut elsewhere_again = server.raw_keystone().await?;
        elsewhere_again.storage = elsewhere.storage.clone();
        refused_by_acl(&elsewhere_again, &format!("{}-beside", path(&glance))).await?;
        text(alice.delete(&at).await)?;
        let longest = "x".repeat(BlobId::MAX_LEN);
        let at = text(put(&alice, &longest, &bytes).await)?;
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
    // swiftclient's own layout, with static and with dynamic large objects.
    let image = folder.path().join("image");
    std::fs::write(&image, content(3 * MIB + 5)).map_err(|e| e.to_string())?;
    for (object, kind) in [("client-slo", "--use-slo"), ("client-dlo", "--use-dlo")] {
        let output = Command::new(&python)
            .args([
                "-m",
                "swiftclient.shell",
                "-q",
                "upload",
                kind,
                "-S",
                "1048576",
                "--object-name",
                object,
                &name,
            ])
            .arg(&image)
            .envs([("OS_AUTH_URL", url), ("OS_USERNAME", server.get("USERNAME")), ("OS_PASSWORD", key)])
            .envs([("OS_PROJECT_NAME", server.get("PROJECT")), ("OS_REGION_NAME", server.get("REGION"))])
            .envs([("OS_USER_DOMAIN_ID", "default"), ("OS_PROJECT_DOMAIN_ID", "default")])
            .env("OS_IDENTITY_API_VERSION", "3")
            .output()
            .map_err(|e| e.to_string())?;
        check(output.status.success(), format!("swift: {}", String::from_utf8_lossy(&output.stderr)))?;
    }
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
            // All of it is read; Glance's digests are with Glance.
            let verified = text(store.verify(&at, |_| {}).await)?;
            check(verified.size == bytes.len() as u64 && !verified.compared, format!("{verified:?}"))?;
            check(text(store.stat(&at).await)?.meta.is_none(), "metadata was invented")?;
            text(store.delete(&at).await)?;
            refused(store.open(&at).await, ErrorKind::NotFound, "")?;
        }
        for id in ["client-slo", "client-dlo"] {
            let at = text(store.locate(&id.parse().unwrap()).await)?;
            reads(&store, &at, &content(3 * MIB + 5)).await?;
            text(store.delete(&at).await)?;
        }
        // Only now: a token lives for seconds here.
        let raw = server.raw_keystone().await?;
        for container in [name.clone(), format!("{name}_segments")] {
            let left = raw.list(&container).await?;
            check(left.is_empty(), format!("{left:?} is left in {container}"))?;
        }
        Ok(())
    })
}
