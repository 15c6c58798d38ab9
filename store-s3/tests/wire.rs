//! What only S3 does: servers that break the rules, and real ones that say no.
//!
//! Rules are broken by a small server in this process, since no real one breaks them all. What any real server can do is
//! asked of MinIO, or of Ceph's object gateway where there is no MinIO; the rest only of the one that can do it.

#![allow(clippy::unwrap_used, reason = "a test panics where its own set-up fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, Instant},
};

use aws_sdk_s3::{
    config::{BehaviorVersion, Credentials, ProvideCredentials, Region},
    primitives::ByteStream,
};
use bytes::Bytes;
use futures::{TryStreamExt, stream};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use store_core::{
    Backend, BlobId, Chunk, Error, ErrorKind, Expect, Location, Meta, Options, Retry, Secret, Size, SizeHint,
    Span, Store, Swept,
};
use store_s3::{Checksum, Conditional, PathStyle, S3Backend, S3Config, Sse};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};

#[allow(dead_code, reason = "each test uses a part of it")]
mod server;

use server::{Server, bucket};

type Outcome = Result<(), String>;
type Plain = (&'static str, fn() -> Outcome);

fn main() {
    let broken: [Plain; 10] = [
        ("a_server_that_ignores_ranges_is_read_exactly", ignored_range),
        ("a_range_that_is_served_as_all_is_read_exactly", unnamed_range),
        ("an_answer_that_ends_early_is_gone_on_with", early_end),
        ("an_error_in_a_reply_of_status_200_is_no_commit", error_in_200),
        ("a_server_without_conditions_is_found_out", no_conditions),
        ("a_server_that_stores_something_else_is_found_out", framing),
        ("a_server_that_is_not_there_is_unavailable", nobody),
        ("a_server_that_asks_for_time_gets_it", patience),
        ("clocks_that_differ_are_named", clocks),
        ("a_server_whose_parts_replace_is_found_out", unconditional_parts),
    ];
    let real: [Plain; 12] = [
        ("wrong_credentials_are_denied_and_not_shown", wrong_credentials),
        ("a_missing_bucket_is_named", missing_bucket),
        ("every_checksum_works", checksums),
        ("objects_of_others_are_read_and_their_keys_not_shown", foreign),
        ("parts_grow_with_the_length", long_image),
        ("a_process_that_stores_and_reads_takes_128_mib", memory),
        ("a_replaced_object_is_no_longer_read", replaced),
        ("parts_beyond_the_window_are_gathered", gathered),
        ("what_a_killed_process_gathered_is_swept", gathered_and_swept),
        ("locations_bring_their_own_credentials", glance),
        ("credentials_come_from_where_the_sdk_looks", chain),
        ("tags_and_classes_are_set", labelled),
    ];
    let minio: [Plain; 6] = [
        ("a_wrong_region_is_named", wrong_region),
        ("a_certificate_is_checked", certificates),
        ("a_full_disk_is_no_space_and_keeps_nothing", full_disk),
        ("a_throttled_upload_gets_through", throttled),
        ("the_server_encrypts", encrypted),
        ("hosts_name_buckets_and_a_proxy_finds_them", virtual_hosts),
    ];
    let mut trials: Vec<Trial> = broken
        .into_iter()
        .map(|(name, test)| Trial::test(name, move || test().map_err(Failed::from)))
        .collect();
    trials.extend(real.map(|(name, test)| needing(name, &SERVER, "s3-rgw", test)));
    let rgw: [Plain; 1] = [("temporary_credentials_come_from_where_the_sdk_looks", temporary)];
    trials.extend(rgw.map(|(name, test)| needing(name, &RGW, "s3-rgw", test)));
    trials.extend(minio.map(|(name, test)| needing(name, &MINIO, "s3", test)));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

type Started = LazyLock<Result<Server, String>>;

static MINIO: Started = LazyLock::new(|| Server::start("wire", &[]));

/// Ceph's object gateway.
static RGW: Started = LazyLock::new(|| Server::start_rgw("s3-wire", &[]));

/// MinIO, or else the gateway.
static SERVER: Started = LazyLock::new(|| if MINIO.is_ok() { MINIO.clone() } else { RGW.clone() });

/// A test that is left out where its server is not there, unless the suite of that name must not be.
fn needing(name: &str, server: &'static Started, suite: &'static str, test: fn() -> Outcome) -> Trial {
    Trial::ignorable_test(name, move || {
        // A process of its own that a test has started: it has been given its server.
        if let Ok(what) = std::env::var(CHILD) {
            return use_the_chain(&what).map(|()| Completion::Completed).map_err(Failed::from);
        }
        match (&**server, conformance_tests::is_required(suite)) {
            (Ok(_), _) => test().map(|()| Completion::Completed).map_err(Failed::from),
            (Err(why), true) => Err(Failed::from(format!("required, but {why}"))),
            (Err(why), false) => Ok(Completion::ignored_with(why)),
        }
    })
}

fn real() -> Result<&'static Server, String> {
    SERVER.as_ref().map_err(Clone::clone)
}

fn run(test: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Runtime::new().unwrap().block_on(test)
}

async fn open(config: &S3Config) -> Result<Store, String> {
    let backend = S3Backend::connect(config).await.map_err(|e| format!("{e}: {e:?}"))?;
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
    outcome.map_err(|error| format!("{error}: {error:?}"))
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

// --- servers that break the rules -----------------------------------------------------------------------------

/// A small server of objects in memory, and what it does wrong.
#[derive(Clone, Default)]
struct Wrong {
    objects: Arc<Mutex<BTreeMap<String, Held>>>,
    parts: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    ignores_ranges: bool,
    names_no_ranges: bool,
    ends_early: Arc<Mutex<u32>>,
    fails_in_200: Arc<Mutex<u32>>,
    ignores_conditions: bool,
    replaces_by_parts: bool,
    /// Until then it answers writes of blobs with 503 and asks to come back in a second.
    busy_until: Arc<Mutex<Option<Instant>>>,
    impatient: Arc<Mutex<u32>>,
    wrong_clock: bool,
    stores_more: bool,
}

/// An object's bytes and token.
type Held = (Vec<u8>, Option<String>);

struct Request {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Wrong {
    async fn start(self) -> S3Config {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = S3Config::new("bucket");
        config.endpoint = Some(format!("http://{}", listener.local_addr().unwrap()));
        config.access_key = Some(Secret::new("key"));
        config.secret_key = Some(Secret::new("secret"));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = self.clone();
                tokio::spawn(async move {
                    let mut client = BufReader::new(client);
                    while let Some(request) = read(&mut client).await {
                        let (reply, whole) = server.answer(&request);
                        if client.write_all(&reply).await.is_err() || !whole {
                            break;
                        }
                    }
                });
            }
        });
        config
    }

    /// The reply, and whether all of it is sent.
    fn answer(&self, request: &Request) -> (Vec<u8>, bool) {
        let mut objects = self.objects.lock().unwrap();
        let key = request.path.trim_start_matches("/bucket").trim_start_matches('/').to_owned();
        let taken = objects.contains_key(&key) && request.headers.contains_key("if-none-match");
        let token = request.headers.get("x-amz-meta-imagestore-token").cloned();
        let empty = |status: &str| (reply(status, "", b"", true), true);
        if self.wrong_clock {
            let xml = "<Error><Code>RequestTimeTooSkewed</Code><Message>too large</Message></Error>";
            return (reply("403 Forbidden", "", xml.as_bytes(), true), true);
        }
        if request.method == "PUT" && key == "busy" {
            let mut until = self.busy_until.lock().unwrap();
            let now = Instant::now();
            match *until {
                None => {
                    *until = Some(now + Duration::from_secs(1));
                    return (reply("503 Slow Down", "Retry-After: 1\r\n", b"", true), true);
                }
                Some(until) if now < until => *self.impatient.lock().unwrap() += 1,
                Some(_) => {}
            }
        }
        let whole = request.query.is_empty() || request.query.starts_with("x-id");
        let taken = taken && (whole || !self.replaces_by_parts);
        match (request.method.as_str(), request.query.as_str()) {
            ("GET", query) if key.is_empty() && query.contains("list-type") => {
                let xml = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
                (reply("200 OK", "", xml.as_bytes(), true), true)
            }
            ("GET", query) if query.contains("uploadId") => empty("404 Not Found"),
            ("HEAD" | "GET", _) => {
                let Some((bytes, token)) = objects.get(&key) else { return empty("404 Not Found") };
                let token = token.as_ref().map(|token| format!("X-Amz-Meta-Imagestore-Token: {token}\r\n"));
                let headers = format!("ETag: \"{}\"\r\n{}", bytes.len(), token.unwrap_or_default());
                let range = request.headers.get("range").and_then(|range| {
                    let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
                    Some(start.parse().ok()?..end.parse::<usize>().ok()? + 1)
                });
                let body = request.method == "GET";
                let Some(range) = range.filter(|_| !self.ignores_ranges) else {
                    return (reply("200 OK", &headers, bytes, body), true);
                };
                let named = format!(
                    "{headers}Content-Range: bytes {}-{}/{}\r\n",
                    range.start,
                    range.end - 1,
                    bytes.len()
                );
                let mut all = match self.names_no_ranges {
                    true => reply("200 OK", &headers, &bytes[range], body),
                    false => reply("206 Partial Content", &named, &bytes[range], body),
                };
                let mut left = self.ends_early.lock().unwrap();
                let whole = *left == 0 || all.len() < 4096;
                if !whole {
                    *left -= 1;
                    all.truncate(all.len() - 1000);
                }
                (all, whole)
            }
            ("PUT", query) if query.contains("partNumber") => {
                let number = query.split('&').find_map(|pair| pair.strip_prefix("partNumber=")).unwrap();
                self.parts.lock().unwrap().insert(format!("{number:0>5}"), request.body.clone());
                (reply("200 OK", "ETag: \"part\"\r\n", b"", true), true)
            }
            ("PUT", _)
                if request
                    .headers
                    .get("if-match")
                    .is_some_and(|tag| self.replaces_by_parts && tag.contains('"')) =>
            {
                empty("412 Precondition Failed")
            }
            ("PUT" | "POST", _) if taken && !self.ignores_conditions => empty("412 Precondition Failed"),
            ("PUT", _) => {
                let mut bytes = request.body.clone();
                if self.stores_more && token.is_some() {
                    bytes.extend_from_slice(b"0;chunk-signature=00\r\n\r\n");
                }
                objects.insert(key, (bytes, token));
                (reply("200 OK", "ETag: \"object\"\r\n", b"", true), true)
            }
            ("POST", query) if query.contains("uploads") => {
                self.parts.lock().unwrap().clear();
                let id = token.unwrap_or_default();
                let xml = format!(
                    "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                );
                (reply("200 OK", "", xml.as_bytes(), true), true)
            }
            ("POST", query) => {
                let mut left = self.fails_in_200.lock().unwrap();
                if *left > 0 {
                    *left -= 1;
                    let xml = "<Error><Code>InternalError</Code><Message>try again</Message></Error>";
                    return (reply("200 OK", "", xml.as_bytes(), true), true);
                }
                let token =
                    query.split('&').find_map(|pair| pair.strip_prefix("uploadId=")).map(str::to_owned);
                let all = self.parts.lock().unwrap().values().flatten().copied().collect();
                objects.insert(key, (all, token));
                let xml = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>";
                (reply("200 OK", "", xml.as_bytes(), true), true)
            }
            ("DELETE", query) => {
                if !query.contains("uploadId") {
                    objects.remove(&key);
                }
                empty("204 No Content")
            }
            _ => empty("501 Not Implemented"),
        }
    }
}

fn reply(status: &str, headers: &str, body: &[u8], with_body: bool) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    let mut all = head.into_bytes();
    if with_body {
        all.extend_from_slice(body);
    }
    all
}

async fn read(client: &mut BufReader<tokio::net::TcpStream>) -> Option<Request> {
    let mut line = String::new();
    client.read_line(&mut line).await.ok().filter(|len| *len > 0)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        client.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    if headers.contains_key("expect") {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
    }
    let mut body = vec![0; length];
    client.read_exact(&mut body).await.ok()?;
    Some(Request { method, path: path.to_owned(), query: query.to_owned(), headers, body })
}

/// Uploads in one piece and in parts, and reads all and some of it.
async fn round_trip(wrong: Wrong) -> Outcome {
    let store = open(&wrong.start().await).await?;
    for len in [0, 1, 100_000, 20 << 20] {
        let bytes = content(len);
        let at = text(put(&store, &format!("blob-{len}"), &bytes).await)?;
        check(text(store.get(&at, ..).await)? == bytes, format!("{len} bytes came back as others"))?;
        if len > 70 {
            let some = text(store.get(&at, 17..len as u64 - 33).await)?;
            check(some == bytes[17..len - 33], format!("a range of {len} bytes came back as another"))?;
        }
    }
    Ok(())
}

fn ignored_range() -> Outcome {
    run(round_trip(Wrong { ignores_ranges: true, ..Wrong::default() }))
}

fn unnamed_range() -> Outcome {
    run(round_trip(Wrong { names_no_ranges: true, ..Wrong::default() }))
}

fn early_end() -> Outcome {
    run(round_trip(Wrong { ends_early: Arc::new(Mutex::new(2)), ..Wrong::default() }))
}

fn error_in_200() -> Outcome {
    run(async {
        round_trip(Wrong { fails_in_200: Arc::new(Mutex::new(2)), ..Wrong::default() }).await?;
        let wrong = Wrong { fails_in_200: Arc::new(Mutex::new(u32::MAX)), ..Wrong::default() };
        let store = open(&wrong.clone().start().await).await?;
        refused(put(&store, "a", &content(9 << 20)).await, ErrorKind::Unavailable, "")?;
        check(wrong.objects.lock().unwrap().is_empty(), "something is left behind")
    })
}

fn no_conditions() -> Outcome {
    run(async {
        let wrong = Wrong { ignores_conditions: true, ..Wrong::default() };
        let mut config = wrong.clone().start().await;
        let store = open(&config).await?;
        check(!store.info().can.atomic_create, "the server was not found out")?;
        let mut late = text(store.upload(&"a".parse().unwrap(), Expect::new()).await)?;
        text(late.write(Bytes::from("late")).await)?;
        let at = text(put(&store, "a", &Bytes::from("early")).await)?;
        refused(late.finish().await, ErrorKind::AlreadyExists, "")?;
        refused(put(&store, "a", &Bytes::from("later")).await, ErrorKind::AlreadyExists, "")?;
        check(text(store.get(&at, ..).await)? == "early", "the winner was overwritten")?;
        check(wrong.objects.lock().unwrap().len() == 2, "something is left behind")?;
        config.conditional_writes = Conditional::On;
        check(open(&config).await?.info().can.atomic_create, "what is configured is not believed")
    })
}

fn framing() -> Outcome {
    run(async {
        let wrong = Wrong { stores_more: true, ..Wrong::default() };
        let store = open(&wrong.clone().start().await).await?;
        refused(put(&store, "a", &content(1000)).await, ErrorKind::Corrupt, "")?;
        check(wrong.objects.lock().unwrap().is_empty(), "something is left behind")
    })
}

fn nobody() -> Outcome {
    run(async {
        let mut config = S3Config::new("bucket");
        config.access_key = Some(Secret::new("key"));
        config.secret_key = Some(Secret::new("hunter2"));
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        config.endpoint = Some(format!("http://{free}"));
        let error = refused(S3Backend::connect(&config).await, ErrorKind::Unavailable, "`endpoint`")?;
        check(!format!("{error:?}").contains("hunter2"), "a secret shows")?;
        config.endpoint = Some("http://no-such-host.invalid:9000".to_owned());
        refused(S3Backend::connect(&config).await, ErrorKind::Unavailable, "host").map(drop)
    })
}

fn patience() -> Outcome {
    run(async {
        let wrong = Wrong::default();
        let store = open(&wrong.clone().start().await).await?;
        let at = text(put(&store, "busy", &content(1000)).await)?;
        check(text(store.get(&at, ..).await)?.len() == 1000, "other bytes came back")?;
        check(wrong.busy_until.lock().unwrap().is_some(), "the server was not busy")?;
        check(*wrong.impatient.lock().unwrap() == 0, "it was not given the time that it asked for")
    })
}

fn clocks() -> Outcome {
    run(async {
        let config = Wrong { wrong_clock: true, ..Wrong::default() }.start().await;
        refused(S3Backend::connect(&config).await, ErrorKind::Denied, "clocks").map(drop)
    })
}

/// As Ceph's gateway is: the last object that is made of parts wins, and entity tags are compared without quotes.
fn unconditional_parts() -> Outcome {
    run(async {
        let wrong = Wrong { replaces_by_parts: true, ..Wrong::default() };
        let store = open(&wrong.clone().start().await).await?;
        check(store.info().can.atomic_create, "a claim is as good")?;
        let long = content(9 << 20);
        let mut late = text(store.upload(&"a".parse().unwrap(), Expect::new()).await)?;
        text(late.write(long.clone()).await)?;
        let at = text(put(&store, "a", &Bytes::from("early")).await)?;
        refused(late.finish().await, ErrorKind::AlreadyExists, "")?;
        check(text(store.get(&at, ..).await)? == "early", "the winner was overwritten")?;
        check(wrong.objects.lock().unwrap().len() == 2, "something is left behind")?;
        // A claim is waited for.
        let claim = ".imagestore/claim/b".to_owned();
        wrong.objects.lock().unwrap().insert(claim.clone(), (b"another".to_vec(), None));
        let release = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            wrong.objects.lock().unwrap().remove(&claim);
        };
        let (stored, ()) = tokio::join!(put(&store, "b", &long), release);
        text(stored).map(drop)
    })
}

// --- a real server ----------------------------------------------------------------------------------------------

fn wrong_credentials() -> Outcome {
    run(async {
        let config = real()?.config(&bucket());
        for (key, secret, hint) in [
            (real()?.access_key.as_str(), "hunter2hunter2", "`secret_key`"),
            ("nobody", "hunter2hunter2", "`access_key`"),
        ] {
            let mut config = config.clone();
            config.access_key = Some(Secret::new(key));
            config.secret_key = Some(Secret::new(secret));
            let error = refused(S3Backend::connect(&config).await, ErrorKind::Denied, hint)?;
            check(!format!("{error} {error:?} {config:?}").contains("hunter2"), "a secret shows")?;
        }
        Ok(())
    })
}

fn missing_bucket() -> Outcome {
    run(async {
        let mut config = real()?.config(&bucket());
        config.create_bucket = false;
        refused(S3Backend::connect(&config).await, ErrorKind::Invalid, "`create_bucket = true`")?;
        // It goes away under a store that is open: that is not the same as a missing blob.
        config.create_bucket = true;
        config.conditional_writes = Conditional::On;
        let store = open(&config).await?;
        let gone = real()?.client().delete_bucket().bucket(&config.bucket).send().await;
        gone.map_err(|e| format!("{e:?}"))?;
        refused(store.locate(&"a".parse().unwrap()).await, ErrorKind::Invalid, "`bucket`").map(drop)
    })
}

fn wrong_region() -> Outcome {
    run(async {
        let server = Server::start("region", &["--region", "eu-test-1"])?;
        let mut config = server.config(&bucket());
        text(S3Backend::connect(&config).await)?;
        config.region = Some("us-east-1".to_owned());
        refused(S3Backend::connect(&config).await, ErrorKind::Invalid, "eu-test-1")?;
        // Where none is said, the server is asked.
        config.region = None;
        let store = open(&config).await?;
        let bytes = content(9 << 20);
        let at = text(put(&store, "a", &bytes).await)?;
        check(text(store.get(&at, ..).await)? == bytes, "other bytes came back")?;
        server.stop()
    })
}

fn certificates() -> Outcome {
    run(async {
        let server = Server::start("tls", &["--tls"])?;
        let mut config = server.config(&bucket());
        let store = open(&config).await?;
        let bytes = content(9 << 20);
        let at = text(put(&store, "a", &bytes).await)?;
        check(text(store.get(&at, ..).await)? == bytes, "other bytes came back")?;
        let ca_file = config.ca_file.take();
        refused(S3Backend::connect(&config).await, ErrorKind::Invalid, "`ca_file`")?;
        config.ca_file = Some(env!("CARGO_MANIFEST_DIR").into());
        check(S3Backend::connect(&config).await.is_err(), "a directory is no certificate")?;
        config.ca_file = Some(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into());
        refused(S3Backend::connect(&config).await, ErrorKind::Invalid, "")?;
        config.ca_file = ca_file;
        config.endpoint = Some(real()?.endpoint.replace("http:", "https:"));
        refused(S3Backend::connect(&config).await, ErrorKind::Invalid, "http://")?;
        server.stop()
    })
}

fn full_disk() -> Outcome {
    run(async {
        let server = Server::start("full", &["--disk", "300M"])?;
        let store = open(&server.config(&bucket())).await?;
        let piece = content(1 << 20);
        let at = text(put(&store, "kept", &piece).await)?;
        let source = stream::iter((0..600).map(|_| Ok(piece.clone())));
        let outcome = store.put(&"large".parse().unwrap(), source, Expect::new()).await;
        refused(outcome, ErrorKind::NoSpace, "")?;
        check(text(store.get(&at, ..).await)? == piece, "another blob has suffered")?;
        let swept = text(store.sweep(Duration::ZERO).await)?;
        check(swept == Swept::default(), format!("left behind: {swept:?}"))?;
        text(store.delete(&at).await)?;
        check(text(store.list().try_collect::<Vec<_>>().await)?.is_empty(), "something is listed")?;
        server.stop()
    })
}

fn throttled() -> Outcome {
    run(async {
        let server = Server::start("throttled", &["--requests", "1"])?;
        let backend = text(S3Backend::connect(&server.config(&bucket())).await)?;
        let store = Store::new("a", Arc::new(backend), Options::default());
        let bytes = content(60 << 20);
        let at = text(put(&store, "a", &bytes).await)?;
        check(text(store.get(&at, ..).await)? == bytes, "other bytes came back")?;
        server.stop()
    })
}

fn checksums() -> Outcome {
    run(async {
        for checksum in
            [Checksum::Sha256, Checksum::Md5, Checksum::Crc32c, Checksum::Crc64nvme, Checksum::None]
        {
            let mut config = real()?.config(&bucket());
            config.checksum = checksum;
            let store = open(&config).await?;
            for len in [0, 70_000, 21 << 20] {
                let bytes = content(len);
                let at = put(&store, &format!("blob-{len}"), &bytes).await;
                let at = text(at).map_err(|why| format!("{checksum:?}, {len} bytes: {why}"))?;
                check(text(store.get(&at, ..).await)? == bytes, "other bytes came back")?;
            }
        }
        Ok(())
    })
}

fn foreign() -> Outcome {
    run(async {
        let config = real()?.config(&bucket());
        let store = open(&config).await?;
        let bytes = content(100_000);
        let put = real()?.client().put_object().bucket(&config.bucket).key("71c675ab");
        put.body(ByteStream::from(bytes.clone())).send().await.map_err(|e| format!("{e:?}"))?;
        let (address, name) = (real()?.address(), &config.bucket);
        for start in ["s3://ACCESS:hunter2/x@", "s3+http://ACCESS:hunter2@", "s3+https://"] {
            let at: Location = text(format!("{start}{address}/{name}/71c675ab").parse())?;
            check(text(store.get(&at, ..).await)? == bytes, "other bytes came back")?;
            let stat = text(store.stat(&at).await)?;
            check(stat.meta.is_none() && stat.size == 100_000, format!("{stat:?}"))?;
            check(!text(store.verify(&at, |_| {}).await)?.compared, "there is nothing to compare with")?;
            let missing: Location = text(format!("{start}{address}/{name}/missing").parse())?;
            let error = refused(store.get(&missing, ..).await, ErrorKind::NotFound, "")?;
            check(!format!("{error} {error:?}").contains("hunter2"), "a secret shows")?;
        }
        Ok(())
    })
}

fn long_image() -> Outcome {
    run(async {
        let config = real()?.config(&bucket());
        let backend = text(S3Backend::connect(&config).await)?;
        let id: BlobId = "a".parse().unwrap();
        let hint = SizeHint::exactly(1 << 50);
        refused(backend.begin(&id, hint).await.map(drop), ErrorKind::Unsupported, "larger")?;
        // Announced as 200 GiB, so in parts of 21 MiB.
        let mut upload = text(backend.begin(&id, SizeHint::exactly(200 << 30)).await)?;
        let bytes = content(4 << 20);
        for _ in 0..12 {
            text(upload.write(Chunk::Data(bytes.clone())).await)?;
        }
        let at = text(upload.commit(&Meta::new(48 << 20)).await)?;
        let head = real()?.client().head_object().bucket(&config.bucket).key("a").send().await;
        let tag = head.map_err(|e| format!("{e:?}"))?.e_tag.unwrap_or_default();
        check(tag.trim_matches('"').ends_with("-3"), format!("the entity tag is {tag}"))?;
        check(text(backend.open(&at).await)?.stat().size == 48 << 20, "the size is another one")
    })
}

fn gathered() -> Outcome {
    run(async {
        for checksum in [Checksum::Sha256, Checksum::Crc64nvme] {
            let mut config = real()?.config(&bucket());
            (config.part_size, config.window, config.checksum) = (Size(5 << 20), Size(15 << 20), checksum);
            let backend = text(S3Backend::connect(&config).await)?;
            // Announced as 200 GiB, so in parts of 21 MiB, of which the window holds not one.
            let hint = SizeHint::exactly(200 << 30);
            let bytes = content((60 << 20) + 12345);
            let mut upload = text(backend.begin(&"a".parse().unwrap(), hint).await)?;
            for piece in 0..bytes.len().div_ceil(4 << 20) {
                let piece = bytes.slice(piece << 22..bytes.len().min((piece + 1) << 22));
                text(upload.write(Chunk::Data(piece)).await)?;
            }
            let at = text(upload.commit(&Meta::new(bytes.len() as u64)).await)?;
            let head = real()?.client().head_object().bucket(&config.bucket).key("a").send().await;
            let tag = head.map_err(|e| format!("{e:?}"))?.e_tag.unwrap_or_default();
            check(tag.trim_matches('"').ends_with("-3"), format!("the entity tag is {tag}"))?;
            let store = Store::new("a", Arc::new(backend), quick());
            check(text(store.get(&at, ..).await)? == bytes, "other bytes came back")?;
            check(text(store.sweep(Duration::ZERO).await)? == Swept::default(), "something is left behind")?;
            let objects = real()?.client().list_objects_v2().bucket(&config.bucket).send().await;
            let objects = objects.map_err(|e| format!("{e:?}"))?.key_count;
            check(objects == Some(2), format!("{objects:?} objects, not a blob and its metadata"))?;
        }
        Ok(())
    })
}

fn gathered_and_swept() -> Outcome {
    run(async {
        let mut config = real()?.config(&bucket());
        (config.part_size, config.window) = (Size(5 << 20), Size(15 << 20));
        let backend = text(S3Backend::connect(&config).await)?;
        let piece = content(4 << 20);
        for aborted in [true, false] {
            let hint = SizeHint::exactly(200 << 30);
            let mut upload = text(backend.begin(&"a".parse().unwrap(), hint).await)?;
            for _ in 0..10 {
                text(upload.write(Chunk::Data(piece.clone())).await)?;
            }
            let expected = if aborted {
                text(upload.abort().await)?;
                0
            } else {
                // Its process is killed.
                std::mem::forget(upload);
                tokio::time::sleep(Duration::from_millis(500)).await;
                1
            };
            let swept = text(backend.sweep(Duration::ZERO).await)?;
            check(swept.uploads == expected, format!("{swept:?} of {expected}"))?;
            check(text(backend.sweep(Duration::ZERO).await)? == Swept::default(), "a sweep left something")?;
            let objects = real()?.client().list_objects_v2().bucket(&config.bucket).send().await;
            let objects = objects.map_err(|e| format!("{e:?}"))?.key_count;
            check(objects == Some(0), format!("{objects:?} objects are left"))?;
        }
        Ok(())
    })
}

fn glance() -> Outcome {
    run(async {
        let store = open(&real()?.config(&bucket())).await?;
        let (client, theirs, bytes) = (real()?.client(), bucket(), content(3 << 20));
        client.create_bucket().bucket(&theirs).send().await.map_err(|e| format!("{e:?}"))?;
        let put = client.put_object().bucket(&theirs).key("71c675ab").body(ByteStream::from(bytes.clone()));
        put.send().await.map_err(|e| format!("{e:?}"))?;
        let (address, key, secret) = (real()?.address(), &real()?.access_key, &real()?.secret_key);
        for scheme in ["s3", "s3+http", "s3+https"] {
            let at = format!("{scheme}://{key}:{secret}@{address}/{theirs}/71c675ab");
            let at: Location = text(at.parse())?;
            check(text(store.get(&at, ..).await)? == bytes, "other bytes came back")?;
            refused(store.delete(&at).await, ErrorKind::Invalid, "")?;
        }
        let at: Location = text(format!("s3://{key}:hunter2@{address}/{theirs}/71c675ab").parse())?;
        let error = refused(store.get(&at, ..).await, ErrorKind::Denied, "`secret_key`")?;
        check(!format!("{error} {error:?}").contains("hunter2"), "a secret shows")?;
        let at: Location = text(format!("s3://{address}/{theirs}/71c675ab").parse())?;
        refused(store.get(&at, ..).await, ErrorKind::Invalid, "").map(drop)
    })
}

/// Runs the test `name` of this binary in a process with other variables: they belong to the whole of one.
fn child(name: &str, variables: &[(&str, &str)]) -> Outcome {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    for (variable, _) in std::env::vars().filter(|(variable, _)| variable.starts_with("AWS_")) {
        command.env_remove(variable);
    }
    let output = command
        .args(["--exact", name, "--test-threads", "1"])
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .envs(variables.iter().copied())
        .output()
        .map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    check(output.status.success() && said.contains("1 passed"), said)
}

/// Names the endpoint, and the profile if one is set, to the process of a test that has variables of its own.
const CHILD: &str = "STORE_S3_TEST_CHAIN";

/// Such a process: it uses a store with whatever credentials the SDK finds.
fn use_the_chain(what: &str) -> Outcome {
    run(async {
        let (endpoint, profile) = what.split_once(' ').unwrap();
        let mut config = S3Config::new(bucket());
        (config.endpoint, config.create_bucket) = (Some(endpoint.to_owned()), true);
        config.profile = Some(profile.to_owned()).filter(|profile| !profile.is_empty());
        if profile == "nobody" {
            return refused(S3Backend::connect(&config).await, ErrorKind::Denied, "`access_key`").map(drop);
        }
        let store = open(&config).await?;
        let at = text(put(&store, "a", &content(1000)).await)?;
        check(text(store.get(&at, ..).await)? == content(1000), "other bytes came back")
    })
}

fn chain() -> Outcome {
    const NAME: &str = "credentials_come_from_where_the_sdk_looks";
    let server = real()?;
    let (endpoint, key, secret) = (&server.endpoint, &server.access_key, &server.secret_key);
    let folder = std::env::temp_dir().join(format!("store-s3-chain-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let (file, none) = (folder.join("credentials"), folder.join("none"));
    let keys = format!("aws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
    std::fs::write(&file, format!("[default]\n{keys}[images]\n{keys}")).map_err(|e| e.to_string())?;
    let (file, none) = (file.to_string_lossy().into_owned(), none.to_string_lossy().into_owned());
    let nowhere = [("AWS_CONFIG_FILE", none.as_str()), ("AWS_SHARED_CREDENTIALS_FILE", none.as_str())];
    let cases = [
        (
            "",
            vec![
                ("AWS_ACCESS_KEY_ID", key.as_str()),
                ("AWS_SECRET_ACCESS_KEY", secret),
                nowhere[0],
                nowhere[1],
            ],
        ),
        ("", vec![nowhere[0], ("AWS_SHARED_CREDENTIALS_FILE", file.as_str())]),
        ("images", vec![nowhere[0], ("AWS_SHARED_CREDENTIALS_FILE", file.as_str())]),
        ("nobody", vec![nowhere[0], nowhere[1]]),
    ];
    let outcome = cases.iter().try_for_each(|(profile, variables)| {
        let what = format!("{endpoint} {profile}");
        let all = [&[(CHILD, what.as_str())], variables.as_slice()].concat();
        child(NAME, &all).map_err(|why| format!("{profile:?}: {why}"))
    });
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

/// What the services hand out that an instance, a container or a pod asks for credentials.
struct Session {
    key: String,
    secret: String,
    token: String,
}

impl Session {
    /// A session of the role, from the server itself.
    async fn of(server: &Server) -> Result<Self, String> {
        let keys = Credentials::new(&server.access_key, &server.secret_key, None, None, "test");
        let sdk = aws_config::defaults(BehaviorVersion::latest())
            .credentials_provider(keys)
            .region(Region::new(server.region.clone()))
            .endpoint_url(&server.endpoint)
            .load()
            .await;
        let role = server.role.as_deref().ok_or("the server has no role")?;
        let role = aws_config::sts::AssumeRoleProvider::builder(role).session_name("test").configure(&sdk);
        let found = role.build().await.provide_credentials().await.map_err(|e| format!("{e:?}"))?;
        let token = found.session_token().ok_or("the session has no token")?;
        Ok(Self {
            key: found.access_key_id().to_owned(),
            secret: found.secret_access_key().to_owned(),
            token: token.to_owned(),
        })
    }

    /// What a service says to a request, as its documentation has it.
    fn answer(&self, request: &Request) -> (u16, String) {
        let Self { key, secret, token } = self;
        let header = |name: &str| request.headers.get(name).map(String::as_str);
        let json = format!(
            r#"{{"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": "{key}", "SecretAccessKey": "{secret}",
                "Token": "{token}", "LastUpdated": "2020-01-01T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z"}}"#
        );
        let instance = "/latest/meta-data/iam/security-credentials/";
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/container") if header("authorization") == Some("of this container") => (200, json),
            ("PUT", "/latest/api/token") => (200, "of this instance".to_owned()),
            ("GET", path) if header("x-aws-ec2-metadata-token") == Some("of this instance") => {
                match path.strip_prefix(instance) {
                    Some("") => (200, "images".to_owned()),
                    Some("images") => (200, json),
                    _ => (404, String::new()),
                }
            }
            ("POST", "/")
                if String::from_utf8_lossy(&request.body).contains("WebIdentityToken=of.this.pod") =>
            {
                let result = format!(
                    "<Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>\
                     <SessionToken>{token}</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>\
                     <AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/images/pod</Arn>\
                     <AssumedRoleId>A:pod</AssumedRoleId></AssumedRoleUser>"
                );
                let result =
                    format!("<AssumeRoleWithWebIdentityResult>{result}</AssumeRoleWithWebIdentityResult>");
                (
                    200,
                    format!(
                        "<AssumeRoleWithWebIdentityResponse>{result}</AssumeRoleWithWebIdentityResponse>"
                    ),
                )
            }
            _ => (403, String::new()),
        }
    }

    /// Serves it.
    async fn serve(self) -> Result<String, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|e| e.to_string())?;
        let url = format!("http://{}", listener.local_addr().map_err(|e| e.to_string())?);
        let session = Arc::new(self);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let session = Arc::clone(&session);
                tokio::spawn(async move {
                    let mut client = BufReader::new(client);
                    while let Some(request) = read(&mut client).await {
                        let (status, body) = session.answer(&request);
                        let head = format!(
                            "HTTP/1.1 {status} x\r\nx-aws-ec2-metadata-token-ttl-seconds: 600\r\ncontent-length: {}\r\n\r\n",
                            body.len()
                        );
                        client.write_all((head + &body).as_bytes()).await.ok()?;
                    }
                    Some(())
                });
            }
        });
        Ok(url)
    }
}

/// Sessions are Ceph's own. What hands them out where an instance, a container or a pod asks is a small server in this
/// process: the real ones run in Amazon's cloud only.
fn temporary() -> Outcome {
    const NAME: &str = "temporary_credentials_come_from_where_the_sdk_looks";
    run(async {
        let server = &Server::start_rgw("s3-sts", &["--sts"])?;
        let session = Session::of(server).await?;
        let mut config = server.config(&bucket());
        config.access_key = Some(Secret::new(&session.key));
        config.secret_key = Some(Secret::new(&session.secret));
        config.session_token = Some(Secret::new(&session.token));
        let store = open(&config).await?;
        let at = text(put(&store, "a", &content(6 << 20)).await)?;
        check(text(store.get(&at, ..).await)? == content(6 << 20), "other bytes came back")?;
        config.session_token = Some(Secret::new("hunter2"));
        let error = refused(S3Backend::connect(&config).await, ErrorKind::Denied, "")?;
        check(!format!("{error} {error:?} {config:?}").contains("hunter2"), "a secret shows")?;

        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let (settings, keys, pod, none) = (path("config"), path("credentials"), path("pod"), path("none"));
        let role = server.role.as_deref().unwrap_or_default();
        let profile =
            format!("[profile role]\nrole_arn = {role}\nsource_profile = user\nregion = us-east-1\n");
        let user = format!(
            "[user]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            server.access_key, server.secret_key
        );
        for (file, content) in [(&settings, profile.as_str()), (&keys, &user), (&pod, "of.this.pod")] {
            std::fs::write(file, content).map_err(|e| e.to_string())?;
        }
        let url = session.serve().await?;
        let container = format!("{url}/container");
        let nowhere = [("AWS_CONFIG_FILE", none.as_str()), ("AWS_SHARED_CREDENTIALS_FILE", none.as_str())];
        let cases = [
            (
                "role",
                vec![
                    ("AWS_CONFIG_FILE", settings.as_str()),
                    ("AWS_SHARED_CREDENTIALS_FILE", &keys),
                    ("AWS_ENDPOINT_URL_STS", &server.endpoint),
                ],
            ),
            (
                "",
                vec![
                    nowhere[0],
                    nowhere[1],
                    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container),
                    ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "of this container"),
                ],
            ),
            (
                "",
                vec![
                    nowhere[0],
                    nowhere[1],
                    ("AWS_EC2_METADATA_DISABLED", "false"),
                    ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url),
                ],
            ),
            (
                "",
                vec![
                    nowhere[0],
                    nowhere[1],
                    ("AWS_WEB_IDENTITY_TOKEN_FILE", &pod),
                    ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/images"),
                    ("AWS_REGION", "us-east-1"),
                    ("AWS_ENDPOINT_URL_STS", &url),
                ],
            ),
        ];
        for (profile, variables) in cases {
            let what = format!("{} {profile}", server.endpoint);
            let all = [&[(CHILD, what.as_str())], variables.as_slice()].concat();
            // The other threads of the runtime serve.
            let outcome = tokio::task::block_in_place(|| child(NAME, &all));
            outcome.map_err(|why| format!("{variables:?}: {why}"))?;
        }
        server.stop()
    })
}

/// The most memory that this process has had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// In a process of its own, since tests run beside each other.
fn memory() -> Outcome {
    const CHILD: &str = "STORE_S3_TEST_MEMORY";
    if std::env::var_os(CHILD).is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_process_that_stores_and_reads_takes_128_mib", "--test-threads", "1"])
            .env(CHILD, "1")
            .output()
            .map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        return check(output.status.success(), said);
    }
    run(async {
        let store = open(&real()?.config(&bucket())).await?;
        let piece = content(1 << 20);
        let source = stream::iter((0..700).map(|_| Ok(Bytes::copy_from_slice(&piece))));
        let at = text(store.put(&"a".parse().unwrap(), source, Expect::new()).await)?.location;
        let upload = peak() >> 10;
        let read = text(store.stream(&at, ..).await)?;
        let len = read.try_fold(0, |sum, bytes| async move { Ok(sum + bytes.len()) }).await;
        check(text(len)? == 700 << 20, "another length came back")?;
        let both = peak() >> 10;
        check(both <= 128, format!("{upload} MiB for an upload, {both} MiB with a download"))
    })
}

fn replaced() -> Outcome {
    run(async {
        let config = real()?.config(&bucket());
        let store = open(&config).await?;
        let at = text(put(&store, "a", &content(3 << 20)).await)?;
        let reader = text(store.open(&at).await)?;
        let put = real()?.client().put_object().bucket(&config.bucket).key("a");
        put.body(ByteStream::from(vec![1; 3 << 20])).send().await.map_err(|e| format!("{e:?}"))?;
        let outcome = text(reader.stream(..))?.try_for_each(|_| std::future::ready(Ok(()))).await;
        refused(outcome, ErrorKind::NotFound, "open it again").map(drop)
    })
}

fn labelled() -> Outcome {
    run(async {
        let mut config = real()?.config(&bucket());
        // The gateway of the tests has the standard class alone.
        let expected = if real()?.is_minio() { "REDUCED_REDUNDANCY" } else { "STANDARD" };
        config.storage_class = Some(expected.to_owned());
        config.tags = [("owner", "image service"), ("os:type", "a=b +c")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let store = open(&config).await?;
        for (id, len) in [("small", 1000), ("large", 9 << 20)] {
            text(put(&store, id, &content(len)).await)?;
            let client = real()?.client();
            let head = client.head_object().bucket(&config.bucket).key(id).send().await;
            let class = head.map_err(|e| format!("{e:?}"))?.storage_class;
            // The standard class may go without saying.
            let class = class.as_ref().map_or("STANDARD", |class| class.as_str());
            check(class == expected, class)?;
            // The gateway forgets those of objects made of parts, and then answers without a document.
            if id == "large" && !real()?.is_minio() {
                continue;
            }
            let tags = client.get_object_tagging().bucket(&config.bucket).key(id).send().await;
            let tags = tags.map_err(|e| format!("{e:?}"))?.tag_set;
            let tags: BTreeMap<_, _> = tags.into_iter().map(|tag| (tag.key, tag.value)).collect();
            check(tags == config.tags, format!("{tags:?}"))?;
        }
        // Found out when the store is opened, by the object that it tries conditions on.
        config.storage_class = Some("NO_SUCH_CLASS".to_owned());
        refused(S3Backend::connect(&config).await, ErrorKind::Invalid, "`storage_class`").map(drop)
    })
}

fn encrypted() -> Outcome {
    run(async {
        // It encrypts with keys of a customer over TLS only.
        let server = Server::start("sse", &["--tls", "--kms"])?;
        let key = Secret::new("MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=");
        for sse in [Sse::Aes256, Sse::Kms, Sse::Customer] {
            let mut config = server.config(&bucket());
            config.sse = Some(sse);
            config.sse_kms_key = (sse == Sse::Kms).then(|| "test-key".to_owned());
            config.sse_customer_key = (sse == Sse::Customer).then(|| key.clone());
            (config.part_size, config.window) = (Size(5 << 20), Size(15 << 20));
            let store = open(&config).await.map_err(|why| format!("{sse:?}: {why}"))?;
            for (id, len) in [("small", 1000), ("large", 11 << 20)] {
                let bytes = content(len);
                let at = text(put(&store, id, &bytes).await).map_err(|why| format!("{sse:?} {id}: {why}"))?;
                check(text(store.get(&at, ..).await)? == bytes, "other bytes came back")?;
                let copy = text(store.copy(&at, &format!("{id}-copy").parse().unwrap(), |_| {}).await)?;
                check(text(store.get(&copy.location, ..).await)? == bytes, "other bytes were copied")?;
                check(text(store.stat(&copy.location).await)?.meta.is_some(), "the metadata is gone")?;
                if sse == Sse::Customer {
                    let mut other = config.clone();
                    (other.sse, other.sse_customer_key) = (None, None);
                    check(open(&other).await?.get(&at, ..).await.is_err(), "it is readable without the key")?;
                    refused(store.presign(&at, Duration::from_secs(60)).await, ErrorKind::Unsupported, "")?;
                }
            }
        }
        let mut config = server.config(&bucket());
        (config.sse, config.sse_customer_key) = (Some(Sse::Customer), Some(Secret::new("hunter2")));
        let error = refused(S3Backend::connect(&config).await, ErrorKind::Invalid, "openssl")?;
        check(!format!("{error} {error:?}").contains("hunter2"), "a secret shows")?;
        server.stop()
    })
}

/// A proxy for HTTP that finds every host at one address, and remembers which ones were asked for.
async fn proxy(address: String) -> Result<(String, Arc<Mutex<BTreeSet<String>>>), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|e| e.to_string())?;
    let url = format!("http://{}", listener.local_addr().map_err(|e| e.to_string())?);
    let hosts = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&hosts);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (address, seen) = (address.clone(), Arc::clone(&seen));
            tokio::spawn(async move {
                let mut client = BufReader::new(client);
                let mut server = BufReader::new(tokio::net::TcpStream::connect(&address).await.ok()?);
                while let Some(request) = read(&mut client).await {
                    // A proxy is asked for whole URLs.
                    let rest = request.path.strip_prefix("http://")?;
                    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
                    seen.lock().unwrap().insert(host.to_owned());
                    let query =
                        if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
                    let mut head = format!("{} /{path}{query} HTTP/1.1\r\n", request.method);
                    for (name, value) in request.headers.iter().filter(|(name, _)| *name != "expect") {
                        head += &format!("{name}: {value}\r\n");
                    }
                    server.write_all(format!("{head}\r\n").as_bytes()).await.ok()?;
                    server.write_all(&request.body).await.ok()?;
                    let (mut reply, mut length) = (String::new(), 0);
                    loop {
                        let start = reply.len();
                        server.read_line(&mut reply).await.ok().filter(|len| *len > 0)?;
                        let line = reply[start..].to_ascii_lowercase();
                        if let Some(text) = line.strip_prefix("content-length:") {
                            length = text.trim().parse().ok()?;
                        }
                        if line == "\r\n" {
                            break;
                        }
                    }
                    let bodiless = request.method == "HEAD" || reply.contains(" 204 ");
                    let mut body = vec![0; if bodiless { 0 } else { length }];
                    server.read_exact(&mut body).await.ok()?;
                    client.write_all(reply.as_bytes()).await.ok()?;
                    client.write_all(&body).await.ok()?;
                }
                Some(())
            });
        }
    });
    Ok((url, hosts))
}

fn virtual_hosts() -> Outcome {
    run(async {
        let server = Server::start("domain", &["--domain", "s3.test"])?;
        let (url, hosts) = proxy(server.address().to_owned()).await?;
        let mut config = server.config(&bucket());
        let port = server.address().rsplit(':').next().unwrap_or_default();
        config.endpoint = Some(format!("http://s3.test:{port}"));
        config.path_style = PathStyle::Off;
        config.proxy = Some(Secret::new(url));
        let store = open(&config).await?;
        let bytes = content(3 << 20);
        let at = text(put(&store, "a", &bytes).await)?;
        check(text(store.get(&at, ..).await)? == bytes, "other bytes came back")?;
        let hosts = hosts.lock().unwrap().clone();
        let named = hosts.iter().all(|host| host.starts_with(&config.bucket));
        check(named && !hosts.is_empty(), format!("asked for {hosts:?}"))?;
        config.proxy = Some(Secret::new("http://127.0.0.1:1"));
        refused(S3Backend::connect(&config).await, ErrorKind::Unavailable, "")?;
        config.proxy = Some(Secret::new("ftp://user:hunter2@host"));
        let error = refused(S3Backend::connect(&config).await, ErrorKind::Invalid, "proxy")?;
        check(!format!("{error} {error:?}").contains("hunter2"), "a secret shows")?;
        server.stop()
    })
}
