//! What only S3 does: servers that break the rules, and real ones that say no.
//!
//! Rules are broken by a small server in this process, since no real one breaks them all. What any real server can do is
//! asked of MinIO, or of Ceph's object gateway where there is no MinIO; the rest only of the one that can do it.

#![allow(clippy::unwrap_used, reason = "a test panics where its own set-up fails")]

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, Instant},
};

use aws_sdk_s3::{
    config::{BehaviorVersion, Credentials, ProvideCredentials, Region},
    primitives::ByteStream,
    types::{ChecksumMode, CompletedMultipartUpload, CompletedPart},
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use store_core::{
    Backend, BlobId, Chunk, Error, ErrorKind, Expect, Location, Meta, Options, Retry, Secret, Size, SizeHint,
    Span, Store, Swept,
};
use store_s3::{Checksum, Conditional, PathStyle, S3Backend, S3Config, Sse};
use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::TcpListener,
};

mod http;
#[allow(dead_code, reason = "each test uses a part of it")]
mod server;

use http::{Break, Breaker, Request, Tls, proxy, read, read_body, read_head, reply};
use server::{Server, bucket};

type Outcome = Result<(), String>;
type Plain = (&'static str, fn() -> Outcome);

fn main() {
    let broken: [Plain; 28] = [
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
        ("nothing_is_sent_that_old_servers_refuse_or_store", plain_requests),
        ("the_region_of_the_bucket_is_found", region),
        ("what_passes_is_tried_again", passing),
        ("a_conflict_at_the_commit_leaves_nothing", conflict),
        ("parts_that_outlive_an_abort_are_aborted_again", survivors),
        ("a_refusal_before_the_body_is_heard", early_refusal),
        ("a_missing_blob_that_may_not_be_listed_is_denied", hidden),
        ("a_coding_that_is_none_is_ignored", coded),
        ("no_more_is_asked_than_it_takes", requests),
        ("what_is_no_s3_server_is_named", no_s3),
        ("what_stays_wrong_at_a_commit_is_not_hidden_by_what_passed", lasting),
        ("what_is_near_is_asked_without_the_proxy", nearby),
        ("a_dead_connection_does_not_cost_the_upload", stalled),
        ("long_lists_are_read_to_their_end", long_lists),
        ("checksums_go_along_and_are_compared", kept_checksums),
        ("an_object_with_another_checksum_than_its_bytes_is_not_kept", other_checksum),
        ("an_object_without_a_first_byte_is_no_error", empty_object),
        ("what_is_archived_says_so", archived),
    ];
    let real: [Plain; 20] = [
        ("a_certificate_is_checked", certificates),
        ("the_server_encrypts", encrypted),
        ("hosts_name_buckets_and_a_proxy_finds_them", virtual_hosts),
        ("wrong_credentials_are_denied_and_not_shown", wrong_credentials),
        ("a_missing_bucket_is_named", missing_bucket),
        ("every_checksum_works", checksums),
        ("a_server_that_keeps_checksums_says_them_of_what_was_stored", stored_checksums),
        ("objects_of_others_are_read_and_their_keys_not_shown", foreign),
        ("parts_grow_with_the_length", long_image),
        ("a_process_that_stores_and_reads_takes_128_mib", memory),
        ("a_reader_may_take_a_break", pausing),
        ("a_replaced_object_is_no_longer_read", replaced),
        ("parts_beyond_the_window_are_gathered", gathered),
        ("what_a_killed_process_gathered_is_swept", gathered_and_swept),
        ("locations_bring_their_own_credentials", glance),
        ("credentials_come_from_where_the_sdk_looks", chain),
        ("tags_and_classes_are_set", labelled),
        ("each_request_may_break_anywhere", breaks),
        ("more_blobs_than_a_page_has_are_listed", many),
        ("a_long_blob_is_copied_in_ranges", long_copy),
    ];
    let minio: [Plain; 4] = [
        ("a_wrong_region_is_named", wrong_region),
        ("a_full_disk_is_no_space_and_keeps_nothing", full_disk),
        ("a_throttled_upload_gets_through", throttled),
        ("a_minio_that_is_killed_is_waited_for", minio_killed),
    ];
    let mut trials: Vec<Trial> = broken
        .into_iter()
        .map(|(name, test)| Trial::test(name, move || test().map_err(Failed::from)))
        .collect();
    trials.extend(real.map(|(name, test)| needing(name, &SERVER, "s3-rgw", test)));
    let rgw: [Plain; 5] = [
        ("temporary_credentials_come_from_where_the_sdk_looks", temporary),
        ("permissions_that_are_missing_are_named", permissions),
        ("a_full_quota_is_no_space_and_keeps_nothing", full_quota),
        ("a_server_that_is_killed_is_waited_for", killed),
        ("each_request_under_a_claim_may_break_anywhere", breaks_under_claims),
    ];
    trials.extend(rgw.map(|(name, test)| needing(name, &RGW, "s3-rgw", test)));
    trials.extend(minio.map(|(name, test)| needing(name, &MINIO, "s3", test)));
    let mut arguments = Arguments::from_args();
    // More than there are cores: most of the time they wait, as they are to.
    arguments.test_threads.get_or_insert(6);
    libtest_mimic::run(&arguments, trials).exit();
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

/// Lets the store find out what its server does with conditions, as a first upload does.
async fn tried_out(store: &Store) -> Outcome {
    let upload = text(store.upload(&BlobId::random(), Expect::new()).await)?;
    text(upload.abort().await)
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
    /// What was asked, without bodies.
    heard: Arc<Mutex<Vec<Request>>>,
    /// To the first request of an operation for a key that starts so: this instead, once.
    instead: Arc<Mutex<Vec<Instead>>>,
    /// Takes requests for this region only, and names it in a header or in the body.
    region: Option<(&'static str, bool)>,
    /// So often it lists a part of an upload that was aborted.
    survivors: Arc<Mutex<u32>>,
    /// Refuses the bodies of blobs before it has read them.
    refuses_early: bool,
    /// Says of missing objects that they are forbidden.
    hides: bool,
    /// Gives the framing's name back as a coding of the content.
    says_chunked: bool,
    /// What it says of objects to whoever asks for checksums.
    sums: &'static str,
}

/// Operation, start of the key, reply.
type Instead = (&'static str, &'static str, Vec<u8>);

/// A refusal, as servers put it.
fn error(status: &str, headers: &str, code: &str) -> Vec<u8> {
    reply(status, headers, format!("<Error><Code>{code}</Code></Error>").as_bytes(), true)
}

/// An object's bytes and token.
type Held = (Vec<u8>, Option<String>);

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
                    while let Some(mut request) = read_head(&mut client).await {
                        let long = request.header("content-length").is_some_and(|length| length.len() > 6);
                        if server.refuses_early && long {
                            let _ = client.write_all(&error("403 Forbidden", "", "AccessDenied")).await;
                            // As real ones do: a reset would take the reply away from the client.
                            tokio::time::sleep(Duration::from_secs(1)).await;
                            break;
                        }
                        if read_body(&mut client, &mut request).await.is_none() {
                            break;
                        }
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
        self.heard.lock().unwrap().push(Request { body: Vec::new(), ..request.clone() });
        let mut instead = self.instead.lock().unwrap();
        let matching = instead
            .iter()
            .position(|(operation, start, _)| *operation == request.operation() && key.starts_with(start));
        if let Some(index) = matching {
            return (instead.remove(index).2, true);
        }
        if let Some((region, in_body)) = self.region
            && !request.header("authorization").unwrap_or_default().contains(&format!("/{region}/s3/"))
        {
            if in_body {
                let xml = format!(
                    "<Error><Code>AuthorizationHeaderMalformed</Code><Region>{region}</Region></Error>"
                );
                return (reply("400 Bad Request", "", xml.as_bytes(), true), true);
            }
            let named = format!("x-amz-bucket-region: {region}\r\n");
            return (error("301 Moved Permanently", &named, "PermanentRedirect"), true);
        }
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
            ("GET", query) if query.contains("uploadId") => {
                let mut left = self.survivors.lock().unwrap();
                if *left == 0 {
                    return empty("404 Not Found");
                }
                *left -= 1;
                let xml = "<ListPartsResult><IsTruncated>false</IsTruncated><Part><PartNumber>1</PartNumber>\
                           <Size>5</Size></Part></ListPartsResult>";
                (reply("200 OK", "", xml.as_bytes(), true), true)
            }
            ("HEAD" | "GET", _) => {
                let Some((bytes, token)) = objects.get(&key) else {
                    return match (self.hides, request.method.as_str()) {
                        (true, "HEAD") => empty("403 Forbidden"),
                        (true, _) => (error("403 Forbidden", "", "AccessDenied"), true),
                        (false, _) => empty("404 Not Found"),
                    };
                };
                let token = token.as_ref().map(|token| format!("X-Amz-Meta-Imagestore-Token: {token}\r\n"));
                let mut headers = format!("ETag: \"{}\"\r\n{}", bytes.len(), token.unwrap_or_default());
                if self.says_chunked {
                    headers += "Content-Encoding: aws-chunked\r\n";
                }
                if request.headers.contains_key("x-amz-checksum-mode") {
                    headers += self.sums;
                }
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
                let sum = request.header("x-amz-checksum-crc32c").filter(|_| !self.sums.is_empty());
                let sum = sum.map(|sum| format!("x-amz-checksum-crc32c: {sum}\r\n")).unwrap_or_default();
                (reply("200 OK", &format!("ETag: \"part\"\r\n{sum}"), b"", true), true)
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
        check(wrong.objects.lock().unwrap().is_empty(), "something is left behind")?;
        for code in ["SlowDown", "SlowDownWrite", "ServiceUnavailable", "OperationTimedOut"] {
            let wrong = Wrong::default();
            let store = open(&wrong.clone().start().await).await?;
            wrong.instead.lock().unwrap().push(("CompleteMultipartUpload", "a", error("200 OK", "", code)));
            put(&store, "a", &content(9 << 20)).await.map_err(|why| format!("{code}: {why}"))?;
        }
        Ok(())
    })
}

fn no_conditions() -> Outcome {
    run(async {
        let wrong = Wrong { ignores_conditions: true, ..Wrong::default() };
        let mut config = wrong.clone().start().await;
        let store = open(&config).await?;
        check(!store.info().can.atomic_create, "claimed before it is known")?;
        tried_out(&store).await?;
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
        tried_out(&store).await?;
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

/// Trailers, framing and checksums that nobody asked for are refused by many servers, and stored as content by some.
fn plain_requests() -> Outcome {
    run(async {
        for checksum in [Checksum::Sha256, Checksum::Md5, Checksum::None] {
            let wrong = Wrong::default();
            let mut config = wrong.clone().start().await;
            config.checksum = checksum;
            let store = open(&config).await?;
            for len in [1000, 9 << 20] {
                let at = text(put(&store, &format!("blob-{len}"), &content(len)).await)?;
                check(text(store.get(&at, ..).await)? == content(len), "other bytes came back")?;
            }
            let heard = std::mem::take(&mut *wrong.heard.lock().unwrap());
            for request in &heard {
                let named = |part: &str| request.headers.keys().any(|name| name.contains(part));
                let unwanted = named("checksum") || named("trailer") || named("content-encoding");
                let sent = request.header("x-amz-content-sha256").unwrap_or_default();
                let said = format!("{checksum:?}: {} with {:?}", request.operation(), request.headers);
                check(!unwanted && !sent.starts_with("STREAMING"), &said)?;
                let blob = ["UploadPart", "PutObject"].contains(&request.operation())
                    && request.path.starts_with("/bucket/blob-");
                if blob {
                    check((sent.len() == 64) == (checksum == Checksum::Sha256), &said)?;
                    check(request.headers.contains_key("content-md5") == (checksum == Checksum::Md5), &said)?;
                    // Without a length, a PUT is an error to most servers.
                    check(request.headers.contains_key("content-length"), &said)?;
                }
            }
            check(heard.iter().any(|request| request.operation() == "UploadPart"), "no part was sent")?;
        }
        Ok(())
    })
}

fn region() -> Outcome {
    run(async {
        for in_body in [true, false] {
            let wrong = Wrong { region: Some(("eu-test-1", in_body)), ..Wrong::default() };
            let mut config = wrong.start().await;
            let store = open(&config).await?;
            let at = text(put(&store, "a", &content(9 << 20)).await)?;
            check(text(store.get(&at, ..).await)?.len() == 9 << 20, "other bytes came back")?;
            config.region = Some("us-east-1".to_owned());
            refused(S3Backend::connect(&config).await, ErrorKind::Invalid, "eu-test-1; set `region`")?;
        }
        Ok(())
    })
}

fn passing() -> Outcome {
    run(async {
        let again = [
            ("503 Slow Down", "", "SlowDown"),
            ("503 Slow Down", "", "SlowDownWrite"),
            ("503 Service Unavailable", "", "XMinioServerNotInitialized"),
            ("429 Too Many Requests", "Retry-After: 1\r\n", "TooManyRequests"),
            ("500 Internal Server Error", "", "InternalError"),
            ("400 Bad Request", "", "RequestTimeout"),
            ("400 Bad Request", "", "BadDigest"),
            ("409 Conflict", "", "ConditionalRequestConflict"),
        ];
        // At once: most of it is waiting.
        let operations = ["CreateMultipartUpload", "UploadPart", "PutObject", "HeadObject", "GetObject"];
        let outcomes = operations.map(|operation| async move {
            let wrong = Wrong::default();
            let store = open(&wrong.clone().start().await).await?;
            let kept = text(put(&store, "kept", &content(9 << 20)).await)?;
            // Two in a row at most: a driver does not ask for ever.
            for two in again.chunks(2) {
                for (status, headers, code) in two {
                    wrong.instead.lock().unwrap().push((operation, "", error(status, headers, code)));
                }
                let said = |why| format!("{operation}, {two:?}: {why}");
                let at = text(put(&store, "a", &content(9 << 20)).await).map_err(said)?;
                check(text(store.get(&at, ..).await).map_err(said)?.len() == 9 << 20, "another length")?;
                text(store.get(&kept, ..).await).map_err(said)?;
                check(wrong.instead.lock().unwrap().is_empty(), said("nothing was refused".to_owned()))?;
                text(store.delete(&at).await)?;
            }
            check(wrong.objects.lock().unwrap().len() == 2, "something is left behind")
        });
        futures::future::try_join_all(outcomes).await.map(drop)
    })
}

/// At Amazon, a conflict ends the upload: only all of it can be tried again.
fn conflict() -> Outcome {
    run(async {
        let wrong = Wrong::default();
        let store = open(&wrong.clone().start().await).await?;
        for (status, code) in
            [("409 Conflict", "ConditionalRequestConflict"), ("404 Not Found", "NoSuchUpload")]
        {
            wrong.instead.lock().unwrap().push(("CompleteMultipartUpload", "a", error(status, "", code)));
        }
        refused(put(&store, "a", &content(9 << 20)).await, ErrorKind::Unavailable, "again")?;
        check(wrong.objects.lock().unwrap().is_empty(), "something is left behind")?;
        text(put(&store, "a", &content(9 << 20)).await).map(drop)
    })
}

fn survivors() -> Outcome {
    run(async {
        let wrong = Wrong::default();
        let store = open(&wrong.clone().start().await).await?;
        tried_out(&store).await?;
        *wrong.survivors.lock().unwrap() = 2;
        let mut upload = text(store.upload(&"a".parse().unwrap(), Expect::new()).await)?;
        text(upload.write(content(20 << 20)).await)?;
        wrong.heard.lock().unwrap().clear();
        text(upload.abort().await)?;
        let heard = wrong.heard.lock().unwrap();
        let aborts = heard.iter().filter(|request| request.operation() == "AbortMultipartUpload").count();
        check(aborts == 3, format!("{aborts} attempts to abort"))
    })
}

fn early_refusal() -> Outcome {
    run(async {
        let wrong = Wrong { refuses_early: true, ..Wrong::default() };
        let mut config = wrong.clone().start().await;
        for part_size in [8 << 20, 64 << 20] {
            (config.part_size, config.window) = (Size(part_size), Size(64 << 20));
            let store = open(&config).await?;
            let outcome = put(&store, "a", &content(20 << 20)).await;
            refused(outcome, ErrorKind::Denied, "permission").map_err(|why| format!("{part_size}: {why}"))?;
            check(wrong.objects.lock().unwrap().is_empty(), "something is left behind")?;
        }
        Ok(())
    })
}

fn hidden() -> Outcome {
    run(async {
        let wrong = Wrong::default();
        let mut config = wrong.clone().start().await;
        let at = text(put(&open(&config).await?, "a", &content(1000)).await)?;
        let other = config.endpoint.clone().unwrap_or_default();
        config = Wrong { hides: true, ..wrong }.start().await;
        config.location_host = other.strip_prefix("http://").map(str::to_owned);
        let store = open(&config).await?;
        check(text(store.get(&at, ..).await)? == content(1000), "other bytes came back")?;
        refused(store.locate(&"b".parse().unwrap()).await, ErrorKind::Denied, "looks like a forbidden one")?;
        refused(put(&store, "b", &content(1000)).await, ErrorKind::Denied, "permission").map(drop)
    })
}

fn coded() -> Outcome {
    run(round_trip(Wrong { says_chunked: true, ..Wrong::default() }))
}

/// A far server answers each request late, so their number counts; and who only reads writes nothing.
fn requests() -> Outcome {
    run(async {
        let wrong = Wrong::default();
        let config = wrong.clone().start().await;
        let store = open(&config).await?;
        tried_out(&store).await?;
        let heard = || -> Vec<(&'static str, String)> {
            let heard = std::mem::take(&mut *wrong.heard.lock().unwrap());
            // Not those whose only purpose is a connection.
            let heard = heard.iter().filter(|request| {
                !["/bucket", "/bucket/"].contains(&&*request.path) || request.method != "HEAD"
            });
            heard.map(|request| (request.operation(), request.path.clone())).collect()
        };
        let counted = |heard: &[(&'static str, String)]| {
            let mut counted = BTreeMap::new();
            heard.iter().for_each(|(operation, _)| *counted.entry(*operation).or_insert(0) += 1);
            counted.into_iter().collect::<Vec<_>>()
        };
        heard();
        // The metadata's place, the id, the metadata, the blob, what became of it and of the metadata.
        let small = text(put(&store, "small", &content(1000)).await)?;
        let expected = [("GetObject", 1), ("HeadObject", 2), ("PutObject", 3)];
        check(counted(&heard()) == expected, "a small blob takes other requests")?;
        let source = stream::iter((0..20).map(|_| Ok(content(1 << 20))));
        let long = store.put(&"long".parse().unwrap(), source, Expect::new().size(20 << 20)).await;
        let asked = heard();
        let expected = [
            ("CompleteMultipartUpload", 1),
            ("CreateMultipartUpload", 1),
            ("GetObject", 1),
            ("HeadObject", 2),
            ("PutObject", 2),
            ("UploadPart", 3),
        ];
        check(counted(&asked) == expected, format!("a long blob takes {asked:?}"))?;
        // Otherwise a killed process leaves what no sweep finds on MinIO.
        let first = |wanted| asked.iter().position(|(operation, _)| *operation == wanted);
        check(first("PutObject") < first("CreateMultipartUpload"), "the upload comes before its sidecar")?;
        let last = asked.iter().rposition(|(operation, _)| *operation == "PutObject");
        check(last < first("CompleteMultipartUpload"), "the blob comes before its metadata")?;
        let mut reading = config.clone();
        reading.read_size = Size(8 << 20);
        for (at, pieces) in [(&small, 1), (&text(long)?.location, 3)] {
            let reader = open(&reading).await?;
            let found =
                text(reader.locate(&at.to_string().rsplit('/').next().unwrap().parse().unwrap()).await)?;
            check(found == *at, "it is found somewhere else")?;
            text(reader.get(&found, ..).await)?;
            let expected = [("GetObject", 1 + pieces), ("HeadObject", 2), ("ListObjectsV2", 1)];
            check(counted(&heard()) == expected, "a reader asks for something else")?;
        }
        Ok(())
    })
}

fn no_s3() -> Outcome {
    run(async {
        let page = b"<!DOCTYPE html><html><head><title>Console</title></head></html>";
        let text = b"Client sent an HTTP request to an HTTPS server.\n";
        for reply in [
            reply("200 OK", "Content-Type: text/html\r\n", page, true),
            reply("404 Not Found", "Content-Type: text/html\r\n", page, true),
            reply("404 Not Found", "", b"", true),
            reply("400 Bad Request", "Content-Type: text/plain\r\n", text, true),
        ] {
            let wrong = Wrong::default();
            wrong.instead.lock().unwrap().push(("ListObjectsV2", "", reply));
            let config = wrong.start().await;
            refused(S3Backend::connect(&config).await, ErrorKind::Invalid, "`endpoint`")?;
        }
        Ok(())
    })
}

fn lasting() -> Outcome {
    run(async {
        for (operation, len) in [("PutObject", 1000), ("CompleteMultipartUpload", 9 << 20)] {
            let wrong = Wrong::default();
            let store = open(&wrong.clone().start().await).await?;
            for (status, code) in [
                ("500 Internal Server Error", "InternalError"),
                ("507 Insufficient Storage", "XMinioStorageFull"),
            ] {
                wrong.instead.lock().unwrap().push((operation, "a", error(status, "", code)));
            }
            refused(put(&store, "a", &content(len)).await, ErrorKind::NoSpace, "disks are full")?;
            check(wrong.objects.lock().unwrap().is_empty(), "something is left behind")?;
        }
        Ok(())
    })
}

/// What hands credentials out to a container is on its host, where no proxy finds it.
fn nearby() -> Outcome {
    const NAME: &str = "what_is_near_is_asked_without_the_proxy";
    if let Ok(what) = std::env::var(CHILD) {
        return use_the_chain(&what);
    }
    run(async {
        let config = Wrong::default().start().await;
        let endpoint = config.endpoint.unwrap_or_default();
        let (url, hosts) = proxy(endpoint.trim_start_matches("http://").to_owned()).await?;
        let [key, secret, token] = ["key", "secret", "token"].map(str::to_owned);
        let container = format!("{}/container", Session { key, secret, token }.serve().await?);
        let variables = [
            (CHILD, "http://s3.test "),
            (THROUGH, &url),
            ("AWS_CONFIG_FILE", "/none"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/none"),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "of this container"),
        ];
        tokio::task::block_in_place(|| child(NAME, &variables))?;
        let hosts = hosts.lock().unwrap().clone();
        check(hosts.iter().all(|host| host.starts_with("s3.test")), format!("asked for {hosts:?}"))?;
        check(!hosts.is_empty(), "nothing went through the proxy")
    })
}

/// With the deadlines that a store has by default.
fn stalled() -> Outcome {
    run(async {
        let outcomes = [Break::Deaf, Break::Dumb].map(|at| async move {
            let mut config = Wrong::default().start().await;
            let endpoint = config.endpoint.take().unwrap_or_default();
            let breaker = Breaker::start(endpoint.trim_start_matches("http://")).await?;
            config.endpoint = Some(breaker.url.clone());
            let backend = text(S3Backend::connect(&config).await)?;
            let store = Store::new("a", Arc::new(backend), Options::default());
            breaker.arm("UploadPart", 1, at);
            let source = stream::iter((0..60).map(|_| Ok(content(1 << 20))));
            let stored = store.put(&"a".parse().unwrap(), source, Expect::new().size(60 << 20)).await;
            let at = text(stored).map_err(|why| format!("{at:?}: {why}"))?.location;
            check(breaker.has_fired(), "no connection died")?;
            check(text(store.stat(&at).await)?.size == 60 << 20, "another length was stored")
        });
        futures::future::try_join_all(outcomes).await.map(drop)
    })
}

/// Lists come in pages, each of which may fail once.
fn long_lists() -> Outcome {
    run(async {
        let wrong = Wrong::default();
        let store = open(&wrong.clone().start().await).await?;
        let instead = |operation, body: &str| {
            let name = match operation {
                "ListObjectsV2" => "ListBucketResult",
                "ListParts" => "ListPartsResult",
                _ => "ListMultipartUploadsResult",
            };
            let reply = reply("200 OK", "", format!("<{name}>{body}</{name}>").as_bytes(), true);
            wrong.instead.lock().unwrap().push((operation, "", reply));
        };
        let fails = |operation| {
            let busy = error("503 Slow Down", "", "SlowDown");
            wrong.instead.lock().unwrap().push((operation, "", busy));
        };
        let blob = |id| format!("<Contents><Key>{id}</Key><Size>5</Size></Contents>");
        let more = "<IsTruncated>true</IsTruncated>";
        let next = format!("{more}<NextContinuationToken>there</NextContinuationToken>");
        instead("ListObjectsV2", &(blob("a") + &blob("b") + &next));
        fails("ListObjectsV2");
        instead("ListObjectsV2", &(blob("c") + "<IsTruncated>false</IsTruncated>"));
        let listed: Vec<String> = text(store.list().try_collect::<Vec<_>>().await)?
            .into_iter()
            .map(|entry| entry.id.to_string())
            .collect();
        check(listed == ["a", "b", "c"], format!("{listed:?} are listed"))?;

        let upload = |key| format!("<Upload><Key>{key}</Key><UploadId>of-{key}</UploadId></Upload>");
        let markers = "<NextKeyMarker>x</NextKeyMarker><NextUploadIdMarker>of-x</NextUploadIdMarker>";
        instead("ListMultipartUploads", &(upload("x") + more + markers));
        instead("ListMultipartUploads", &upload("y"));
        for _ in ["x", "y"] {
            let part = |number| format!("<Part><PartNumber>{number}</PartNumber><Size>7</Size></Part>");
            instead("ListParts", &(part(1) + more + "<NextPartNumberMarker>1</NextPartNumberMarker>"));
            instead("ListParts", &part(2));
            // What is left after it was aborted.
            instead("ListParts", "");
        }
        wrong.heard.lock().unwrap().clear();
        let swept = text(store.sweep(Duration::ZERO).await)?;
        check((swept.uploads, swept.bytes) == (2, 28), format!("{swept:?}"))?;
        let heard = wrong.heard.lock().unwrap();
        let asked = |what: &str| heard.iter().filter(|request| request.query.contains(what)).count();
        let pages = (asked("key-marker=x"), asked("upload-id-marker=of-x"), asked("part-number-marker=1"));
        check(pages == (1, 1, 2), format!("{pages:?} second pages"))
    })
}

/// Those that the server keeps. What it says that it has received is not taken on trust.
fn kept_checksums() -> Outcome {
    run(async {
        for (checksum, header) in
            [(Checksum::Crc32c, "x-amz-checksum-crc32c"), (Checksum::Crc64nvme, "x-amz-checksum-crc64nvme")]
        {
            let wrong = Wrong::default();
            let mut config = wrong.clone().start().await;
            config.checksum = checksum;
            let store = open(&config).await?;
            tried_out(&store).await?;
            wrong.heard.lock().unwrap().clear();
            let other = format!("{header}: AAAAAAAAAAA=\r\nETag: \"part\"\r\n");
            wrong.instead.lock().unwrap().push(("UploadPart", "long", reply("200 OK", &other, b"", true)));
            let bytes = content((8 << 20) + 5);
            for (id, bytes) in [("short", bytes.slice(..1000)), ("long", bytes.clone())] {
                text(put(&store, id, &bytes).await)?;
            }
            let expected = |bytes: &[u8]| match checksum {
                Checksum::Crc32c => {
                    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32;
                    aws_smithy_types::base64::encode(sum.to_be_bytes())
                }
                _ => {
                    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes);
                    aws_smithy_types::base64::encode(sum.to_be_bytes())
                }
            };
            let heard = wrong.heard.lock().unwrap();
            let sent = |operation: &str, id: &str| -> Vec<String> {
                let of_it = heard.iter().filter(|request| {
                    request.operation() == operation && request.path == format!("/bucket/{id}")
                });
                let sums: Vec<_> = of_it.map(|request| request.header(header).unwrap_or("none")).collect();
                let mut sums: Vec<String> = sums.into_iter().map(str::to_owned).collect();
                sums.sort();
                sums
            };
            check(
                sent("PutObject", "short") == [expected(&bytes[..1000])],
                "another checksum of a short blob",
            )?;
            let (first, last) = (expected(&bytes[..8 << 20]), expected(&bytes[8 << 20..]));
            let sums = sent("UploadPart", "long");
            // The part that was received as something else goes twice.
            let twice = [[first.clone(), first.clone(), last.clone()], [first, last.clone(), last]];
            let fits = twice.into_iter().any(|mut twice| {
                twice.sort();
                sums == twice
            });
            check(fits, format!("{checksum:?}: {sums:?}"))?;
        }
        Ok(())
    })
}

/// A blob of a known length: of others, some parts may be copied, for which servers keep no checksums.
async fn put_known(store: &Store, bytes: &Bytes) -> store_core::Result<Location> {
    let expect = Expect::new().size(bytes.len() as u64);
    Ok(store.put(&"a".parse()?, store_core::once(bytes.clone()), expect).await?.location)
}

/// The parts arrived, and something went wrong when the server made an object of them.
fn other_checksum() -> Outcome {
    run(async {
        let long = content((8 << 20) + 5);
        for (checksum, sums, bytes) in [
            (Checksum::Crc64nvme, "x-amz-checksum-crc64nvme: AAAAAAAAAAA=\r\n", &long),
            (Checksum::Crc64nvme, "x-amz-checksum-crc64nvme: AAAAAAAAAAA=\r\n", &content(1000)),
            (Checksum::Crc32c, "x-amz-checksum-crc32c: AAAAAA==-2\r\n", &long),
        ] {
            let wrong = Wrong { sums, ..Wrong::default() };
            let mut config = wrong.clone().start().await;
            config.checksum = checksum;
            let store = open(&config).await?;
            let outcome = put_known(&store, bytes).await;
            refused(outcome, ErrorKind::Corrupt, "send the image again")
                .map_err(|why| format!("{checksum:?}, {} bytes: {why}", bytes.len()))?;
            store.settle().await;
            check(wrong.objects.lock().unwrap().is_empty(), "something is left behind")?;
        }
        // Of another kind, or none: that says nothing.
        for sums in ["", "x-amz-checksum-crc32c: AAAAAA==\r\n", "x-amz-checksum-crc32c: AAAAAA==-7\r\n"] {
            let wrong = Wrong { sums, ..Wrong::default() };
            let mut config = wrong.start().await;
            config.checksum = Checksum::Crc32c;
            text(put_known(&open(&config).await?, &long).await)?;
        }
        Ok(())
    })
}

/// So that there is something to compare after a commit.
fn stored_checksums() -> Outcome {
    run(async {
        let bytes = content((17 << 20) + 5);
        for checksum in [Checksum::Crc32c, Checksum::Crc64nvme] {
            let name = bucket();
            let mut config = real()?.config(&name);
            config.checksum = checksum;
            text(put_known(&open(&config).await?, &bytes).await)?;
            let asked = real()?.client().head_object().bucket(&name).key("a");
            let found = asked.checksum_mode(ChecksumMode::Enabled).send().await;
            let found = found.map_err(|e| format!("{e:?}"))?;
            if checksum == Checksum::Crc64nvme {
                let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &bytes);
                let sum = aws_smithy_types::base64::encode(sum.to_be_bytes());
                check(found.checksum_crc64_nvme() == Some(&sum), format!("{found:?}"))?;
            } else {
                check(found.checksum_crc32_c().is_some_and(|sum| sum.ends_with("-3")), format!("{found:?}"))?;
            }
        }
        Ok(())
    })
}

/// To a `HEAD` it is refused, when it is there after all: just written, and empty.
fn empty_object() -> Outcome {
    run(async {
        let wrong = Wrong::default();
        let store = open(&wrong.clone().start().await).await?;
        text(put(&store, "a", &content(0)).await)?;
        let (head, get) =
            (reply("404 Not Found", "", b"", false), error("416 Range Not Satisfiable", "", "InvalidRange"));
        wrong.instead.lock().unwrap().extend([("HeadObject", "a", head), ("GetObject", "a", get)]);
        text(store.locate(&"a".parse().unwrap()).await)?;
        check(wrong.instead.lock().unwrap().is_empty(), "nothing was refused")
    })
}

fn archived() -> Outcome {
    run(async {
        let wrong = Wrong::default();
        let store = open(&wrong.clone().start().await).await?;
        let at = text(put(&store, "a", &content(1000)).await)?;
        let refusal = error("403 Forbidden", "", "InvalidObjectState");
        wrong.instead.lock().unwrap().push(("GetObject", "a", refusal));
        refused(store.get(&at, ..).await, ErrorKind::Denied, "restore it first").map(drop)
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
        // MinIO speaks TLS itself; before the gateway there is something that does, as there is in a data centre.
        let own = if real()?.is_minio() { Some(Server::start("tls", &["--tls"])?) } else { None };
        let mut config = own.as_ref().map_or(real()?, |own| own).config(&bucket());
        let front = Tls::start(real()?.address()).await?;
        if own.is_none() {
            (config.endpoint, config.ca_file) = (Some(front.url.clone()), Some(front.ca_file()));
        }
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
        // A name that the certificate is not for.
        if own.is_none() {
            config.endpoint = Some(front.url.replace("127.0.0.1", "localhost"));
            refused(S3Backend::connect(&config).await, ErrorKind::Invalid, "the host's name")?;
        }
        if let Some(own) = &own {
            config.endpoint = Some(own.endpoint.replace("https:", "http:"));
            refused(S3Backend::connect(&config).await, ErrorKind::Invalid, "expects TLS")?;
        }
        config.endpoint = Some(real()?.endpoint.replace("http:", "https:"));
        refused(S3Backend::connect(&config).await, ErrorKind::Invalid, "http://")?;
        own.map_or(Ok(()), |own| own.stop())
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
        for start in [
            format!("s3://ACCESS:hunter2/x@{address}/{name}"),
            format!("s3+http://ACCESS:hunter2@{address}/{name}"),
            format!("s3+https://{address}/{name}"),
            format!("s3://{name}"),
        ] {
            let at: Location = text(format!("{start}/71c675ab").parse())?;
            check(text(store.get(&at, ..).await)? == bytes, "other bytes came back")?;
            let stat = text(store.stat(&at).await)?;
            check(stat.meta.is_none() && stat.size == 100_000, format!("{stat:?}"))?;
            check(!text(store.verify(&at, |_| {}).await)?.compared, "there is nothing to compare with")?;
            let missing: Location = text(format!("{start}/missing").parse())?;
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

/// Names the proxy to it.
const THROUGH: &str = "STORE_S3_TEST_PROXY";

/// Such a process: it uses a store with whatever credentials the SDK finds.
fn use_the_chain(what: &str) -> Outcome {
    run(async {
        let (endpoint, profile) = what.split_once(' ').unwrap();
        let mut config = S3Config::new(bucket());
        (config.endpoint, config.create_bucket) = (Some(endpoint.to_owned()), true);
        if let Ok(proxy) = std::env::var(THROUGH) {
            (config.proxy, config.bucket) = (Some(Secret::new(proxy)), "bucket".to_owned());
        }
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

/// In processes of their own, since tests run beside each other.
fn memory() -> Outcome {
    const CHILD: &str = "STORE_S3_TEST_MEMORY";
    const LEN: usize = 700 << 20;
    let Ok(task) = std::env::var(CHILD) else {
        for task in ["stores", "reads", "does both"] {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "a_process_that_stores_and_reads_takes_128_mib", "--test-threads", "1"])
                .env(CHILD, task)
                .output()
                .map_err(|e| e.to_string())?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            check(output.status.success(), format!("{task}: {said}"))?;
        }
        return Ok(());
    };
    run(async {
        let name = bucket();
        let store = open(&real()?.config(&name)).await?;
        let (id, piece): (BlobId, _) = ("a".parse().unwrap(), content(5 << 20));
        if task == "reads" {
            store_in_parts(&real()?.client(), &name, &piece, LEN).await.map_err(|e| format!("{e:?}"))?;
        } else {
            let pieces = (0..LEN / piece.len()).map(|_| Ok(Bytes::copy_from_slice(&piece)));
            text(store.put(&id, stream::iter(pieces), Expect::new()).await)?;
        }
        if task != "stores" {
            let at = text(store.locate(&id).await)?;
            let read = text(store.stream(&at, ..).await)?;
            let len = read.try_fold(0, |sum, bytes| async move { Ok(sum + bytes.len()) }).await;
            check(text(len)? == LEN, "another length came back")?;
        }
        let peak = peak() >> 10;
        check(peak <= 128, format!("{peak} MiB"))
    })
}

/// Stores the object `a` with hardly any memory.
async fn store_in_parts(
    client: &aws_sdk_s3::Client,
    bucket: &str,
    piece: &Bytes,
    len: usize,
) -> Result<(), aws_sdk_s3::Error> {
    let upload = client.create_multipart_upload().bucket(bucket).key("a").send().await?;
    let mut parts = Vec::new();
    for number in 1..=(len / piece.len()) as i32 {
        let part = client.upload_part().bucket(bucket).key("a").set_upload_id(upload.upload_id.clone());
        let part = part.part_number(number).body(ByteStream::from(piece.clone())).send().await?;
        parts.push(CompletedPart::builder().part_number(number).set_e_tag(part.e_tag).build());
    }
    let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    let complete = client.complete_multipart_upload().bucket(bucket).key("a").multipart_upload(parts);
    complete.set_upload_id(upload.upload_id).send().await?;
    Ok(())
}

/// The server has to wait with most of what was asked for: more than the line holds, of each request.
fn pausing() -> Outcome {
    run(async {
        let store = open(&real()?.config(&bucket())).await?;
        let bytes = content(150 << 20);
        let at = text(put(&store, "a", &bytes).await)?;
        let mut reader = text(store.stream(&at, ..).await)?;
        let mut got = 0;
        while let Some(chunk) = text(reader.try_next().await)? {
            check(bytes[got..].starts_with(&chunk), format!("other bytes come at {got}"))?;
            got += chunk.len();
            if got % (40 << 20) < chunk.len() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        check(got == bytes.len(), format!("{got} bytes came"))
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
        config.storage_class = Some("NO_SUCH_CLASS".to_owned());
        let store = open(&config).await?;
        refused(put(&store, "other", &content(9)).await, ErrorKind::Invalid, "`storage_class`").map(drop)
    })
}

/// The names of all objects, and how many uploads are unfinished.
async fn raw(server: &Server, bucket: &str) -> Result<(Vec<String>, usize), String> {
    let client = server.client();
    let objects = client.list_objects_v2().bucket(bucket).send().await.map_err(|e| format!("{e:?}"))?;
    let uploads = client.list_multipart_uploads().bucket(bucket).send().await;
    let uploads = uploads.map_err(|e| format!("{e:?}"))?.uploads().len();
    let keys = objects.contents().iter().filter_map(|object| object.key().map(str::to_owned));
    Ok((keys.collect(), uploads))
}

/// That these are the store's blobs, with their metadata.
async fn all_there(store: &Store, kept: &BTreeMap<&str, (Location, &Bytes)>) -> Outcome {
    for (id, (at, bytes)) in kept {
        check(text(store.get(at, ..).await)? == **bytes, format!("{id} came back as something else"))?;
        check(text(store.stat(at).await)?.meta.is_some(), format!("the metadata of {id} is gone"))?;
    }
    let listed = text(store.list().try_collect::<Vec<_>>().await)?.len();
    check(listed == kept.len(), format!("{listed} blobs are listed"))
}

/// Whether the server cannot end an upload any more. MinIO gives up what it is at when its client has gone: between the removal
/// of what it knows of the parts and the rename of the object, all it says from then on is that there are no parts
/// (`cmd/erasure-multipart.go`, `CompleteMultipartUpload`).
fn is_beyond_completion<T>(server: &Server, outcome: &Result<T, Error>, operation: &str, at: Break) -> bool {
    MINIO.as_ref().is_ok_and(|minio| minio.address() == server.address())
        && (operation, at) == ("CompleteMultipartUpload", Break::After)
        && outcome.as_ref().is_err_and(|error| {
            error.kind() == ErrorKind::Unavailable
                && error.message().contains("InvalidPart")
                && error.hint().unwrap_or_default().contains("send the image again")
        })
}

/// All that a store does, while the connection breaks once under a request of one kind.
async fn broken_once(server: &Server, operation: &'static str, skip: usize, at: Break) -> Outcome {
    let breaker = Breaker::start(server.address()).await?;
    let mut config = server.config(&bucket());
    config.endpoint = Some(breaker.url.clone());
    (config.part_size, config.window) = (Size(5 << 20), Size(20 << 20));
    let store = open(&config).await?;
    tried_out(&store).await?;
    breaker.arm(operation, skip, at);
    let (small, large) = (content(1000), content((6 << 20) + 7));
    let mut kept = BTreeMap::new();
    for (id, bytes) in [("small", &small), ("large", &large)] {
        let mut stored = put(&store, id, bytes).await;
        if is_beyond_completion(server, &stored, operation, at) {
            refused(store.locate(&id.parse().unwrap()).await, ErrorKind::NotFound, "")?;
            stored = put(&store, id, bytes).await;
        }
        kept.insert(id, (text(stored)?, bytes));
    }
    let copied = text(store.copy(&kept["large"].0, &"copied".parse().unwrap(), |_| {}).await)?;
    kept.insert("copied", (copied.location, &large));
    let mut given_up = text(store.upload(&"given-up".parse().unwrap(), Expect::new()).await)?;
    text(given_up.write(large.clone()).await)?;
    text(given_up.abort().await)?;
    text(store.sweep(Duration::from_secs(3600)).await)?;
    // A blob that is deleted while a request to write it is still under way would come back.
    if at == Break::Late && breaker.has_fired() {
        breaker.late().await;
        all_there(&store, &kept).await?;
    }
    text(store.delete(&kept.remove("small").unwrap().0).await)?;
    all_there(&store, &kept).await?;
    check(breaker.has_fired(), "there was no such request")?;
    if at == Break::Late {
        breaker.late().await;
        all_there(&store, &kept).await?;
    }
    // Two objects for each blob. An upload whose id got lost is for a sweep, and so is an object that the server makes
    // later than it is told to remove it.
    let lost = usize::from(operation == "CreateMultipartUpload" && at != Break::Before);
    let late = usize::from(operation == "PutObject" && matches!(at, Break::After | Break::Late));
    for turn in 0.. {
        let (keys, uploads) = raw(server, &config.bucket).await?;
        let most = 2 * kept.len() + late;
        if (2 * kept.len()..=most).contains(&keys.len()) && uploads <= lost {
            break;
        }
        // What was sent may be carried out a little later.
        check(turn < 50, format!("{uploads} uploads and these are left behind: {keys:?}"))?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    text(store.sweep(Duration::ZERO).await)?;
    let (keys, uploads) = raw(server, &config.bucket).await?;
    check(
        keys.len() == 2 * kept.len() && uploads == 0,
        format!("a sweep leaves {uploads} uploads, {keys:?}"),
    )?;
    for (at, _) in kept.values() {
        text(store.delete(at).await)?;
    }
    let deleted = server.client().delete_bucket().bucket(&config.bucket).send().await;
    deleted.map(drop).map_err(|e| format!("something was left behind: {e:?}"))
}

fn breaks() -> Outcome {
    breaks_of(real()?)
}

/// The same under a claim, where parts replace.
fn breaks_under_claims() -> Outcome {
    breaks_of(RGW.as_ref().map_err(Clone::clone)?)
}

fn breaks_of(server: &'static Server) -> Outcome {
    // Which ones, and how many of the kind come before it.
    const REQUESTS: [(&str, usize); 18] = [
        ("ListObjectsV2", 0),
        ("ListMultipartUploads", 0),
        ("ListParts", 0),
        ("GetObject", 0),
        ("GetObject", 3),
        ("HeadObject", 0),
        ("HeadObject", 2),
        ("UploadPartCopy", 0),
        ("UploadPart", 0),
        ("UploadPart", 1),
        // Of the first blob: the metadata's place, the metadata, then the claim and the blob.
        ("PutObject", 0),
        ("PutObject", 1),
        ("PutObject", 2),
        ("PutObject", 3),
        ("CreateMultipartUpload", 0),
        ("CompleteMultipartUpload", 0),
        ("AbortMultipartUpload", 0),
        ("DeleteObject", 0),
    ];
    run(async {
        let all = REQUESTS.iter().flat_map(|request| Break::ALL.map(|at| (*request, at)));
        let outcomes = stream::iter(all).map(|((operation, skip), at)| async move {
            let outcome = broken_once(server, operation, skip, at).await;
            outcome.err().map(|why| format!("{operation} {skip} broken {at:?}: {why}"))
        });
        let failed: Vec<String> = outcomes.buffer_unordered(8).filter_map(std::future::ready).collect().await;
        check(failed.is_empty(), failed.join("\n"))
    })
}

/// Sets who may do what in a bucket besides its owner.
async fn allow(bucket: &str, user: &str, statements: &[(&str, &str)]) -> Outcome {
    let statements: Vec<String> = statements
        .iter()
        .map(|(actions, resource)| {
            format!(
                r#"{{"Effect": "Allow", "Principal": {{"AWS": ["arn:aws:iam:::user/{user}"]}},
                    "Action": [{actions}], "Resource": ["arn:aws:s3:::{bucket}{resource}"]}}"#
            )
        })
        .collect();
    let policy = format!(r#"{{"Version": "2012-10-17", "Statement": [{}]}}"#, statements.join(", "));
    let client = RGW.as_ref().map_err(Clone::clone)?.client();
    let set = client.put_bucket_policy().bucket(bucket).policy(policy).send().await;
    set.map(drop).map_err(|e| format!("{e:?}"))
}

fn permissions() -> Outcome {
    run(async {
        let server = RGW.as_ref().map_err(Clone::clone)?;
        let (bucket, user) = (bucket(), "guest");
        text(S3Backend::connect(&server.config(&bucket)).await)?;
        let mut config = server.user(user)?.config(&bucket);
        config.create_bucket = false;
        refused(S3Backend::connect(&config).await, ErrorKind::Denied, "permission")?;

        allow(&bucket, user, &[(r#""s3:*""#, ""), (r#""s3:*""#, "/*")]).await?;
        let store = open(&config).await?;
        let bytes = content(9 << 20);
        let at = text(put(&store, "a", &bytes).await)?;
        // Without the permission to list, the server says of what is missing that it is forbidden.
        let files = (r#""s3:GetObject", "s3:PutObject", "s3:DeleteObject""#, "/*");
        allow(&bucket, user, &[files]).await?;
        check(text(store.get(&at, ..).await)? == bytes, "other bytes came back")?;
        let missing = refused(store.locate(&"b".parse().unwrap()).await, ErrorKind::Denied, "permission")?;
        check(missing.hint().unwrap_or_default().contains("looks like a forbidden one"), "no hint")?;
        refused(S3Backend::connect(&config).await, ErrorKind::Denied, "lists objects")?;

        allow(&bucket, user, &[(r#""s3:ListBucket""#, ""), (r#""s3:GetObject""#, "/*")]).await?;
        let store = open(&config).await?;
        check(text(store.get(&at, ..).await)? == bytes, "other bytes came back")?;
        refused(store.locate(&"b".parse().unwrap()).await, ErrorKind::NotFound, "")?;
        refused(put(&store, "b", &bytes).await, ErrorKind::Denied, "permission")?;
        refused(store.delete(&at).await, ErrorKind::Denied, "permission").map(drop)
    })
}

fn full_quota() -> Outcome {
    run(async {
        let server = RGW.as_ref().map_err(Clone::clone)?;
        let user = server.user("poor")?;
        let quota = ["--quota-scope=user", "--uid=poor"];
        server.admin(&[&["quota", "set", "--max-size=30M"], &quota[..]].concat())?;
        server.admin(&[&["quota", "enable"], &quota[..]].concat())?;
        let config = user.config(&bucket());
        let store = open(&config).await?;
        let piece = content(1 << 20);
        let at = text(put(&store, "kept", &piece).await)?;
        let source = stream::iter((0..100).map(|_| Ok(piece.clone())));
        let outcome = store.put(&"large".parse().unwrap(), source, Expect::new()).await;
        refused(outcome, ErrorKind::NoSpace, "quota")?;
        check(text(store.get(&at, ..).await)? == piece, "another blob has suffered")?;
        let swept = text(store.sweep(Duration::ZERO).await)?;
        check(swept == Swept::default(), format!("left behind: {swept:?}"))?;
        text(store.delete(&at).await)?;
        check(text(store.list().try_collect::<Vec<_>>().await)?.is_empty(), "something is listed")?;
        let found = user.client().list_objects_v2().bucket(&config.bucket).send().await;
        let found = found.map_err(|e| format!("{e:?}"))?.key_count;
        check(found == Some(0), format!("{found:?} objects are left"))
    })
}

/// In the middle of an upload and of a download, and started again at once: either they get through, or they fail as
/// what may pass, and a sweep finds what is left.
fn killed() -> Outcome {
    killed_in_between(Server::start_rgw("s3-killed", &[])?)
}

fn minio_killed() -> Outcome {
    killed_in_between(Server::start("killed", &[])?)
}

fn killed_in_between(server: Server) -> Outcome {
    run(async {
        let mut config = server.config(&bucket());
        (config.part_size, config.window, config.read_size) = (Size(5 << 20), Size(20 << 20), Size(5 << 20));
        let backend = text(S3Backend::connect(&config).await)?;
        let store = Store::new("a", Arc::new(backend), Options::default());
        let bytes = content(40 << 20);
        let at = text(put(&store, "kept", &bytes).await)?;
        let restart = |server: &Server| {
            let server = server.clone();
            tokio::task::spawn_blocking(move || server.restart())
        };

        let mut upload = text(store.upload(&"a".parse().unwrap(), Expect::new()).await)?;
        text(upload.write(bytes.slice(..22 << 20)).await)?;
        server.kill()?;
        let restarted = restart(&server);
        let outcome = async {
            upload.write(bytes.slice(22 << 20..)).await?;
            Ok(upload.finish().await?.location)
        };
        let uploaded: Result<Location, Error> = outcome.await;
        let server = restarted.await.map_err(|e| e.to_string())??;
        let mut blobs = 1;
        match uploaded {
            Ok(at) => {
                blobs += 1;
                check(text(store.get(&at, ..).await)? == bytes, "other bytes came back")?;
            }
            Err(error) => {
                refused::<()>(Err(error), ErrorKind::Unavailable, "")?;
                refused(store.locate(&"a".parse().unwrap()).await, ErrorKind::NotFound, "")?;
            }
        }
        text(store.sweep(Duration::ZERO).await)?;
        let found = server.client().list_objects_v2().bucket(&config.bucket).send().await;
        let found = found.map_err(|e| format!("{e:?}"))?.key_count;
        check(found == Some(2 * blobs), format!("{found:?} objects for {blobs} blobs"))?;

        let mut reader = text(store.stream(&at, ..).await)?;
        let mut got = Vec::new();
        let mut restarted = None;
        let outcome = loop {
            match reader.try_next().await {
                Ok(Some(piece)) => got.extend_from_slice(&piece),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
            if restarted.is_none() && got.len() > 1 << 20 {
                server.kill()?;
                restarted = Some(restart(&server));
            }
        };
        let server = restarted.ok_or("all came at once")?.await.map_err(|e| e.to_string())??;
        check(bytes.starts_with(&got), "other bytes came back")?;
        match outcome {
            Ok(()) => check(got.len() == bytes.len(), "some bytes are missing")?,
            Err(error) => drop(refused::<()>(Err(error), ErrorKind::Unavailable, "")?),
        }
        check(text(store.get(&at, ..).await)? == bytes, "other bytes came back later")?;
        server.stop()
    })
}

/// A list has pages of a thousand.
fn many() -> Outcome {
    run(async {
        let config = real()?.config(&bucket());
        let store = open(&config).await?;
        let client = real()?.client();
        let puts = stream::iter((0..1003).map(|number| {
            let put = client.put_object().bucket(&config.bucket).key(format!("blob-{number:04}"));
            put.body(ByteStream::from_static(b"x")).send()
        }));
        puts.buffer_unordered(16).try_for_each(|_| async { Ok(()) }).await.map_err(|e| format!("{e:?}"))?;
        let listed: Vec<String> = text(store.list().try_collect::<Vec<_>>().await)?
            .into_iter()
            .map(|entry| entry.id.to_string())
            .collect();
        let expected: Vec<String> = (0..1003).map(|number| format!("blob-{number:04}")).collect();
        check(listed == expected, format!("{} blobs are listed", listed.len()))
    })
}

/// The server copies 256 MiB at a time.
fn long_copy() -> Outcome {
    run(async {
        let config = real()?.config(&bucket());
        let store = open(&config).await?;
        let (piece, len) = (content(1 << 20), (257 << 20) + 7);
        let last = piece.slice(..7);
        let source = stream::iter((0..258).map(|at| Ok(if at < 257 { piece.clone() } else { last.clone() })));
        let at = text(store.put(&"a".parse().unwrap(), source, Expect::new()).await)?.location;
        let copy = text(store.copy(&at, &"b".parse().unwrap(), |_| {}).await)?;
        let head = real()?.client().head_object().bucket(&config.bucket).key("b").send().await;
        let tag = head.map_err(|e| format!("{e:?}"))?.e_tag.unwrap_or_default();
        check(tag.trim_matches('"').ends_with("-2"), format!("the entity tag is {tag}"))?;
        check(text(store.stat(&copy.location).await)?.size == len, "another length was copied")?;
        check(text(store.verify(&copy.location, |_| {}).await)?.compared, "there is nothing to compare with")
    })
}

fn encrypted() -> Outcome {
    run(async {
        // MinIO encrypts with keys of a customer over TLS only.
        let own = if real()?.is_minio() { Some(Server::start("sse", &["--tls", "--kms"])?) } else { None };
        let server = own.as_ref().map_or(real()?, |own| own);
        let front = Tls::start(real()?.address()).await?;
        let key = Secret::new("MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=");
        for sse in [Sse::Aes256, Sse::Kms, Sse::Customer] {
            let mut config = server.config(&bucket());
            config.sse = Some(sse);
            config.sse_kms_key = (sse == Sse::Kms).then(|| "test-key".to_owned());
            config.sse_customer_key = (sse == Sse::Customer).then(|| key.clone());
            if own.is_none() {
                (config.endpoint, config.ca_file) = (Some(front.url.clone()), Some(front.ca_file()));
            }
            (config.part_size, config.window) = (Size(5 << 20), Size(15 << 20));
            let store = open(&config).await.map_err(|why| format!("{sse:?}: {why}"))?;
            for (id, len) in [("small", 1000), ("large", 11 << 20)] {
                let bytes = content(len);
                let at = text(put(&store, id, &bytes).await).map_err(|why| format!("{sse:?} {id}: {why}"))?;
                check(text(store.get(&at, ..).await)? == bytes, "other bytes came back")?;
                let copy = text(store.copy(&at, &format!("{id}-copy").parse().unwrap(), |_| {}).await)?;
                check(text(store.get(&copy.location, ..).await)? == bytes, "other bytes were copied")?;
                check(text(store.stat(&copy.location).await)?.meta.is_some(), "the metadata is gone")?;
                if sse != Sse::Customer {
                    let head = server.client().head_object().bucket(&config.bucket).key(id).send().await;
                    let head = head.map_err(|e| format!("{e:?}"))?;
                    let by = head.server_side_encryption.as_ref().map(|by| by.as_str().to_owned());
                    let expected = if sse == Sse::Kms { "aws:kms" } else { "AES256" };
                    check(by.as_deref() == Some(expected), format!("{id} is encrypted by {by:?}"))?;
                    let named = head.ssekms_key_id.unwrap_or_default().ends_with("test-key");
                    check(named == (sse == Sse::Kms), "another key")?;
                }
                if sse == Sse::Customer {
                    let mut other = config.clone();
                    (other.sse, other.sse_customer_key) = (None, None);
                    check(open(&other).await?.get(&at, ..).await.is_err(), "it is readable without the key")?;
                    refused(store.presign(&at, Duration::from_secs(60)).await, ErrorKind::Unsupported, "")?;
                }
            }
        }
        let mut config = server.config(&bucket());
        config.endpoint = config.endpoint.map(|endpoint| endpoint.replace("http:", "https:"));
        (config.sse, config.sse_customer_key) = (Some(Sse::Customer), Some(Secret::new("hunter2")));
        let error = refused(S3Backend::connect(&config).await, ErrorKind::Invalid, "openssl")?;
        check(!format!("{error} {error:?}").contains("hunter2"), "a secret shows")?;
        own.map_or(Ok(()), |own| own.stop())
    })
}

fn virtual_hosts() -> Outcome {
    run(async {
        let own =
            if real()?.is_minio() { Some(Server::start("domain", &["--domain", "s3.test"])?) } else { None };
        let server = own.as_ref().map_or(real()?, |own| own);
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
        own.map_or(Ok(()), |own| own.stop())
    })
}
