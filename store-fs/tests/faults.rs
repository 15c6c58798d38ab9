//! Faults, for real: killed writers, full, read-only and missing file systems, failing system calls.
//!
//! The test starts itself again as the process that is killed or traced. Mounting needs root, tracing needs `strace`:
//! where they are missing the test fails, and says so.

#![allow(clippy::unwrap_used, reason = "a test panics where its own set-up fails")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{TryStreamExt, stream};
use libtest_mimic::{Arguments, Failed, Trial};
use store_core::{
    Backend, BlobId, Error, ErrorKind, Expect, Meta, Options, Registry, Settings, SizeHint, Span, Store,
};
use store_fs::{FsBackend, FsConfig, Staging};

const CHILD: &str = "STORE_FS_TEST_CHILD";

fn main() {
    if let Ok(task) = std::env::var(CHILD) {
        return child(&task);
    }
    type Test = (&'static str, fn() -> Outcome);
    let tests: [Test; 44] = [
        ("kill_9_leaves_whole_blobs_or_nothing_unnamed", || kill_9(Staging::Unnamed)),
        ("kill_9_leaves_whole_blobs_or_nothing_named", || kill_9(Staging::Directory)),
        ("bytes_are_durable_before_the_name_and_the_name_before_success_unnamed", || {
            durable_order("unnamed")
        }),
        ("bytes_are_durable_before_the_name_and_the_name_before_success_named", || {
            durable_order("directory")
        }),
        ("metadata_beside_the_blob_are_durable_before_its_name", sidecar_order),
        ("without_hard_links_a_rename_that_replaces_nothing_commits", without_links),
        ("copies_within_a_file_system_are_left_to_the_kernel", kernel_copies),
        ("a_failing_fsync_of_the_blob_keeps_nothing", || failing_call("fsync", "EIO", 1, "internal")),
        ("a_failing_fsync_of_the_directory_keeps_nothing", || failing_call("fsync", "EIO", 2, "internal")),
        ("a_failing_link_keeps_nothing", || failing_call("linkat", "EIO", 1, "internal")),
        ("a_quota_is_no_space", || failing_call("pwrite64", "EDQUOT", 2, "no_space")),
        ("a_file_too_large_is_no_space", || failing_call("pwrite64", "EFBIG", 2, "no_space")),
        ("a_write_error_of_the_disk_is_internal", || failing_call("pwrite64", "EIO", 3, "internal")),
        ("a_refused_write_is_denied", || failing_call("pwrite64", "EACCES", 1, "denied")),
        ("a_read_error_of_the_disk_is_corrupt", read_error),
        ("a_read_error_within_a_copy_of_the_kernel_is_corrupt", copy_error),
        ("a_full_disk_is_noticed_before_the_first_byte", full_disk_known_size),
        ("a_disk_that_fills_up_keeps_nothing", full_disk_unknown_size),
        ("a_disk_that_fills_up_under_a_download_is_no_space", full_disk_of_a_download),
        ("the_configured_space_is_left_free", leaves_reserve),
        ("two_uploads_do_not_count_on_the_same_space", reserve_taken_twice),
        ("a_read_only_file_system_reads_and_refuses_writes", read_only_file_system),
        ("an_unmounted_share_is_an_error", unmounted_share),
        ("a_mount_that_fstab_expects_is_missed", missing_mount),
        ("a_share_that_goes_away_is_an_error", share_goes_away),
        ("without_attributes_metadata_lies_beside_the_blob", no_attributes),
        ("without_unnamed_files_and_attributes_all_works", bindfs),
        ("a_share_that_does_not_answer_stops_no_other_store", hung_share),
        ("a_share_whose_server_died_is_unavailable", dead_share),
        ("a_read_only_store_makes_nothing", read_only_store),
        ("the_largest_metadata_comes_back", largest_metadata),
        ("damaged_metadata_is_corrupt", damaged_metadata),
        ("links_pipes_and_directories_are_no_blobs", strange_files),
        ("two_directories_keep_an_id_once", two_directories),
        ("a_lost_directory_hides_no_blob_of_the_others", lost_directory),
        ("a_commit_that_comes_after_its_upload_was_given_up_is_taken_back", late_commit),
        ("a_sweep_during_a_commit_takes_no_metadata_of_a_blob", swept_metadata),
        ("blobs_get_the_configured_mode_and_group", mode_and_group),
        ("space_is_reserved_and_given_back", reservation),
        ("zeros_take_no_space", holes),
        ("the_page_cache_is_not_filled", page_cache),
        ("a_source_that_grows_is_cut_off_where_it_was_announced", growing_source),
        ("blocks_are_shared_with_local_files_where_that_works", shared_blocks),
        ("images_that_start_with_holes_cross_file_systems", leading_hole),
    ];
    let trials = tests.map(|(name, test)| Trial::test(name, move || test().map_err(Failed::from)));
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit();
}

type Outcome = Result<(), String>;

/// What the started process does: puts blobs of a size until it is told to stop, and prints each that is committed.
fn child(task: &str) {
    let words: Vec<&str> = task.split(' ').collect();
    let [verb, directory, staging, size] = words[..] else { panic!("child task {task:?}") };
    let size: usize = size.parse().unwrap();
    let outcome = runtime().block_on(async {
        let text = format!("[stores.a]\ntype = 'fs'\npath = '{directory}'\nstaging = '{staging}'");
        let config: FsConfig = Settings::parse(&text)?.section("a")?.backend()?;
        let store = Store::new("a", Arc::new(FsBackend::open(&config)?), Options::default());
        match verb {
            "get" => {
                let at = store.locate(&"blob".parse()?).await?;
                store.get(&at, ..).await.map(drop)
            }
            "put" => store.put(&"blob".parse()?, source(size), Expect::new()).await.map(drop),
            "save" => {
                let at = store.locate(&"blob".parse()?).await?;
                let target = tempfile::tempfile_in(directory).expect("there is room");
                store.open(&at).await?.save(Arc::new(target), |_| ()).await.map(drop)
            }
            "copy" => {
                let at = store.locate(&"blob".parse()?).await?;
                store.copy(&at, &"copy".parse()?, |_| ()).await.map(drop)
            }
            // Gives up long before the commit ends.
            "late" => {
                let backend = Arc::new(FsBackend::open(&config)?);
                let mut options = Options::default();
                options.timeout.commit = Span(Duration::from_millis(300));
                options.retry.attempts = 2;
                options.retry.delay = Span(Duration::from_millis(10));
                let store = Store::new("a", backend, options);
                let put = store.put(&"blob".parse()?, source(size), Expect::new()).await.map(drop);
                store.settle().await;
                tokio::time::sleep(Duration::from_secs(4)).await;
                put
            }
            // Sweeps all the while.
            "swept" => {
                let expect = Expect::new().property("long", "\u{1}".repeat(1000));
                let id = "blob".parse()?;
                let put = store.put(&id, source(size), expect);
                let sweep = async {
                    loop {
                        store.sweep(Duration::ZERO).await?;
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                tokio::select! {
                    put = put => put.map(drop),
                    swept = sweep => swept,
                }
            }
            // Another blob gets the id, the one that was put aside, after the upload began.
            "rival" => {
                let mut upload = store.upload(&"blob".parse()?, Expect::new()).await?;
                let pieces: Vec<Bytes> = source(size).try_collect().await?;
                upload.write(Bytes::from(pieces.concat())).await?;
                let rename = std::fs::rename(format!("{directory}/aside"), format!("{directory}/blob"));
                rename.expect("the test put it there");
                upload.finish().await.map(drop)
            }
            _ => loop {
                println!("begin");
                let blob = store.put(&BlobId::random(), source(size), Expect::new()).await?;
                println!("{}", blob.location);
            },
        }
    });
    println!("{}", outcome.map_or_else(|error: Error| error.kind().as_str(), |()| "ok"));
}

fn source(size: usize) -> impl futures::Stream<Item = store_core::Result<Bytes>> + Send {
    let pieces = (0..size).step_by(100_000).map(move |at| {
        let piece: Vec<u8> = (at..size.min(at + 100_000)).map(|i| (i / 3 % 251) as u8 + 1).collect();
        Ok(Bytes::from(piece))
    });
    stream::iter(pieces)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

fn command(program: &Path, task: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env(CHILD, task).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn this() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn store(config: FsConfig) -> Result<Store, String> {
    let backend = FsBackend::open(&config).map_err(|e| format!("open: {e}"))?;
    Ok(Store::new("a", Arc::new(backend), Options::default()))
}

fn named(directory: &Path, staging: Staging) -> FsConfig {
    let mut config = FsConfig::new(directory);
    config.staging = staging;
    config
}

fn check(truth: bool, what: impl Into<String>) -> Outcome {
    if truth { Ok(()) } else { Err(what.into()) }
}

fn kind_is<T: std::fmt::Debug>(outcome: Result<T, Error>, kind: ErrorKind, what: &str) -> Outcome {
    match outcome {
        Err(error) if error.kind() == kind => Ok(()),
        other => Err(format!("{what}: expected {kind}, got {other:?}")),
    }
}

fn text<T>(outcome: Result<T, Error>) -> Result<T, String> {
    outcome.map_err(|error| format!("{error}"))
}

/// Every file below `directory` but the marker.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => open.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found.retain(|path| !path.ends_with(".imagestore/marker") && !path.ends_with(".imagestore/lock"));
    found
}

fn kill_9(staging: Staging) -> Outcome {
    let word = if staging == Staging::Directory { "directory" } else { "unnamed" };
    let dir = tempfile::tempdir().unwrap();
    let mut left_behind = 0;
    let mut committed_in_all = 0;
    for round in 0..200 {
        let task = format!("loop {} {word} 1234567", dir.path().display());
        let mut process = command(&this(), &task, &[]).spawn().unwrap();
        let mut printed = BufReader::new(process.stdout.take().unwrap()).lines();
        let begun = printed.next().is_some_and(|line| line.is_ok_and(|line| line == "begin"));
        // Every other round lets one commit pass first, so that there are some however slow the disk is.
        let mut reported = 0;
        if round % 2 == 1 && printed.next().is_some_and(|line| line.is_ok_and(|line| is_commit(&line))) {
            reported += 1;
        }
        let mut random = [0; 2];
        getrandom::fill(&mut random).unwrap();
        std::thread::sleep(Duration::from_micros(2 * u64::from(u16::from_le_bytes(random))));
        process.kill().unwrap();
        process.wait().unwrap();
        check(begun, "the writer did not start")?;
        reported += printed.filter(|line| line.as_ref().is_ok_and(|line| is_commit(line))).count();

        runtime().block_on(async {
            let store = store(named(dir.path(), staging))?;
            let entries: Vec<_> = text(store.list().try_collect().await)?;
            let lost =
                format!("round {round}: {reported} commits were reported, {} are there", entries.len());
            check(entries.len() >= reported, lost)?;
            committed_in_all += entries.len();
            for entry in entries {
                let verified = text(store.verify(&entry.location, |_| {}).await)?;
                check(
                    verified.size == 1_234_567 && verified.compared,
                    "a blob is not whole, or lost its digests",
                )?;
                text(store.delete(&entry.location).await)?;
            }
            left_behind += text(store.sweep(Duration::ZERO).await)?.uploads;
            check(files(dir.path()).is_empty(), format!("round {round}: left are {:?}", files(dir.path())))
        })?;
    }
    println!("{word}: {committed_in_all} blobs committed, {left_behind} staged files swept");
    // Without a single commit or interrupted upload the rounds would have proved nothing.
    check(committed_in_all >= 100, "hardly any upload was committed")?;
    check(
        (left_behind > 0) == (staging == Staging::Directory),
        format!("{left_behind} staged files were swept"),
    )
}

/// Whether the writer says that a blob is committed.
fn is_commit(line: &str) -> bool {
    line.starts_with("file://")
}

/// Bytes of a blob that makes some thread do each call several times: strace counts them by thread.
const MANY: usize = 60_000_000;

fn strace(task: &str, arguments: &[&str]) -> Result<Output, String> {
    let mut all = vec!["-f", "-qq"];
    all.extend(arguments);
    let this = this();
    all.push(this.to_str().unwrap());
    let output = command(Path::new("strace"), task, &all).output();
    output.map_err(|e| format!("strace is needed (package strace): {e}"))
}

/// The calls of a put in the order in which the kernel saw them end.
fn durable_order(staging: &str) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let calls = "trace=pwrite64,fsync,fdatasync,linkat,fsetxattr,ftruncate";
    let task = format!("put {} {staging} 9000000", data.display());
    let (printed, lines) = traced(&task, &["-e", calls])?;
    check(printed == "ok", format!("{printed}: {lines:?}"))?;
    let trace = lines.join("\n");
    let place = |what: &str, from: usize| {
        lines.iter().skip(from).position(|line| line.contains(what)).map(|at| at + from)
    };
    let link = place("linkat", 0).ok_or("no linkat")?;
    let last_write = lines.iter().rposition(|line| line.contains("pwrite64")).ok_or("no pwrite64")?;
    let sync_file = place("fsync", last_write).ok_or("no fsync after the last write")?;
    let sync_directory = place("fsync", link).ok_or("no fsync of the directory after the link")?;
    let attribute = place("fsetxattr", 0).ok_or("no fsetxattr")?;
    let order = [last_write, attribute, sync_file, link, sync_directory];
    check(order.is_sorted(), format!("write, attribute, fsync, link, fsync are at {order:?} of\n{trace}"))?;
    let ends_well = |at: usize| lines[at].ends_with("= 0");
    check(ends_well(sync_file) && ends_well(link) && ends_well(sync_directory), trace.clone())?;
    check(!lines[sync_directory].contains("blob"), format!("the directory is what is synced last:\n{trace}"))
}

/// A task under strace: what it printed, and the calls in the order in which the kernel saw them end.
fn traced(task: &str, arguments: &[&str]) -> Result<(String, Vec<String>), String> {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let output = strace(task, &[arguments, &["-y", "-o", trace.path().to_str().unwrap()]].concat())?;
    let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let (mut calls, mut unfinished) = (Vec::new(), BTreeMap::new());
    for line in std::fs::read_to_string(trace.path()).unwrap().lines() {
        let (thread, call) = line.split_once(' ').unwrap_or_default();
        let call = call.trim_start();
        if let Some(begun) = call.strip_suffix("<unfinished ...>") {
            unfinished.insert(thread.to_owned(), begun.trim_end().to_owned());
        } else if let Some((_, end)) = call.split_once(" resumed>") {
            calls.push(unfinished.remove(thread).unwrap_or_default() + end);
        } else {
            calls.push(call.to_owned());
        }
    }
    Ok((printed, calls))
}

/// On a file system without extended attributes.
fn sidecar_order() -> Outcome {
    let mounted = Mounted::new(&["-t", "ramfs", "none"])?;
    for staging in ["unnamed", "directory"] {
        let data = mounted.path.join(staging);
        let task = format!("put {} {staging} 100000", data.display());
        let (printed, calls) = traced(&task, &["-e", "trace=mkdirat,write,fsync,linkat"])?;
        check(printed == "ok", format!("{staging}: {printed}"))?;
        let data = data.display();
        let (private, meta) = (format!("<{data}/.imagestore>"), format!("<{data}/.imagestore/meta>"));
        let sidecar = format!("<{data}/.imagestore/meta/blob.");
        let place = |call: &str, what: &str| {
            let found = calls.iter().rposition(|line| line.contains(call) && line.contains(what));
            found.ok_or_else(|| format!("{staging}: no {call} of {what} in\n{}", calls.join("\n")))
        };
        let order = [
            place("mkdirat(", "\"meta\"")?,
            place("fsync(", &private)?,
            place("write(", &sidecar)?,
            place("fsync(", &sidecar)?,
            place("fsync(", &meta)?,
            place("linkat(", "\"blob\"")?,
            place("fsync(", &format!("<{data}>"))?,
        ];
        check(order.is_sorted(), format!("{staging}: {order:?} of\n{}", calls.join("\n")))?;
    }
    Ok(())
}

/// As on file systems that have no hard links.
fn without_links() -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    store_exists(dir.path())?;
    let task = format!("put {} directory 100000", dir.path().display());
    for errno in ["EPERM", "EOPNOTSUPP", "EMLINK"] {
        let inject = format!("inject=linkat:error={errno}");
        let arguments = ["-e", "trace=linkat,renameat2", "-e", &inject];
        let (printed, calls) = traced(&task, &arguments)?;
        check(printed == "ok", format!("{errno}: {printed}"))?;
        let renamed = calls.iter().any(|call| call.contains("RENAME_NOREPLACE) = 0"));
        check(renamed, format!("{errno}: {}", calls.join("\n")))?;
        // Another upload under the same id must not replace it. Uploads that begin while it is there are refused before.
        let before = std::fs::metadata(dir.path().join("blob")).unwrap().ino();
        runtime().block_on(async {
            let store = store(named(dir.path(), Staging::Directory))?;
            let at = text(store.locate(&"blob".parse().unwrap()).await)?;
            text(store.verify(&at, |_| {}).await)?;
            std::fs::rename(dir.path().join("blob"), dir.path().join("aside")).unwrap();
            Ok::<_, String>(())
        })?;
        let rival = format!("rival {} directory 100000", dir.path().display());
        let (printed, calls) = traced(&rival, &arguments)?;
        check(printed == "already_exists", format!("{errno}: a rival's end is {printed}"))?;
        check(
            calls.iter().any(|call| call.contains("renameat2") && call.contains("EEXIST")),
            calls.join("\n"),
        )?;
        check(std::fs::metadata(dir.path().join("blob")).unwrap().ino() == before, "the blob was replaced")?;
        std::fs::remove_file(dir.path().join("blob")).unwrap();
        check(files(dir.path()).is_empty(), format!("left are {:?}", files(dir.path())))?;
    }
    Ok(())
}

fn kernel_copies() -> Outcome {
    const SIZE: u64 = 40_000_000;
    for (mkfs, shares) in [("mkfs.xfs", true), ("mkfs.ext4", false)] {
        let mounted = Mounted::loopback(&[mkfs, "-q"], 320 << 20)?;
        let data = mounted.path.join("data");
        let put = command(&this(), &format!("put {} auto {SIZE}", data.display()), &[]).output().unwrap();
        check(String::from_utf8_lossy(&put.stdout).trim() == "ok", format!("{put:?}"))?;
        let task = format!("copy {} auto 0", data.display());
        let (printed, calls) = traced(&task, &["-e", "trace=ioctl,copy_file_range,pread64,pwrite64"])?;
        check(printed == "ok", format!("{mkfs}: {printed}"))?;
        let all = calls.join("\n");
        // Without those of the process's own start.
        let calls: Vec<_> = calls.iter().filter(|line| line.contains(data.to_str().unwrap())).collect();
        let of = |call: &str| calls.iter().filter(|line| line.contains(call)).collect::<Vec<_>>();
        check(of("pread64").is_empty() && of("pwrite64").is_empty(), format!("{mkfs}: bytes pass:\n{all}"))?;
        let shared = of("FICLONE").iter().any(|line| line.ends_with("= 0"));
        let copied: u64 = of("copy_file_range")
            .iter()
            .filter_map(|line| line.rsplit("= ").next()?.parse::<u64>().ok())
            .sum();
        check((shared, copied) == (shares, if shares { 0 } else { SIZE }), format!("{mkfs}:\n{all}"))?;
        check(
            std::fs::read(data.join("blob")).unwrap() == std::fs::read(data.join("copy")).unwrap(),
            "bytes",
        )?;
    }
    Ok(())
}

/// The `nth` such call of a put fails.
fn failing_call(call: &str, errno: &str, nth: usize, kind: &str) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    // The store's own directories are made, and synced, before anything is traced.
    store_exists(dir.path())?;
    std::fs::create_dir(dir.path().join(".imagestore/staging")).unwrap();
    for staging in ["unnamed", "directory"] {
        let task = format!("put {} {staging} {MANY}", dir.path().display());
        let inject = format!("inject={call}:error={errno}:when={nth}");
        let output = strace(&task, &["-e", &inject, "-o", "/dev/null"])?;
        let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        check(printed == kind, format!("{staging}: expected {kind}, got {printed} {output:?}"))?;
        check(files(dir.path()).is_empty(), format!("{staging}: left are {:?}", files(dir.path())))?;
    }
    Ok(())
}

fn late_commit() -> Outcome {
    for staging in ["unnamed", "directory"] {
        let dir = tempfile::tempdir().unwrap();
        let task = format!("late {} {staging} 100000", dir.path().display());
        // The second one: the first makes the directory of the marker durable.
        let output = strace(
            &task,
            &["-e", "trace=fsync", "-e", "inject=fsync:delay_enter=1500000", "-o", "/dev/null"],
        )?;
        let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        check(printed == "unavailable", format!("{staging}: got {printed} {output:?}"))?;
        check(files(dir.path()).is_empty(), format!("{staging}: left are {:?}", files(dir.path())))?;
    }
    Ok(())
}

fn swept_metadata() -> Outcome {
    let mounted = Mounted::loopback(&["mkfs.ext4", "-q"], 64 << 20)?;
    let (mut committed, mut swept) = (0, 0);
    for round in 0..12 {
        // The metadata lies beside the blob: ext4 has no room for it.
        let directory = mounted.path.join(round.to_string());
        let task = format!("swept {} unnamed 100000", directory.display());
        let inject = format!("inject=fsync,linkat:delay_enter={}", round % 4 * 20_000);
        let output = strace(&task, &["-e", "trace=fsync,linkat", "-e", &inject, "-o", "/dev/null"])?;
        match String::from_utf8_lossy(&output.stdout).trim() {
            "ok" => runtime().block_on(async {
                committed += 1;
                let store = store(FsConfig::new(&directory))?;
                let at = text(store.locate(&"blob".parse().unwrap()).await)?;
                let meta = text(store.stat(&at).await)?.meta.ok_or("the metadata is gone")?;
                check(meta.properties["long"].len() == 1000, "the property is not whole")
            })?,
            "not_found" => {
                swept += 1;
                check(!directory.join("blob").exists(), "a blob is there whose upload failed")?;
            }
            printed => return Err(format!("got {printed} {output:?}")),
        }
    }
    println!("metadata under a sweep: {committed} committed, {swept} swept");
    Ok(())
}

fn store_exists(directory: &Path) -> Outcome {
    runtime().block_on(async { store(FsConfig::new(directory)).map(drop) })
}

fn read_error() -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let put = command(&this(), &format!("put {} auto {MANY}", dir.path().display()), &[]).output().unwrap();
    check(String::from_utf8_lossy(&put.stdout).trim() == "ok", format!("{put:?}"))?;
    let task = format!("get {} auto 0", dir.path().display());
    let output = strace(&task, &["-e", "inject=pread64:error=EIO:when=3+", "-o", "/dev/null"])?;
    let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    check(printed == "corrupt", format!("expected corrupt, got {printed}"))
}

/// The kernel does not say which of the two files it could not get on with.
fn copy_error() -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let put = command(&this(), &format!("put {} auto {MANY}", dir.path().display()), &[]).output().unwrap();
    check(String::from_utf8_lossy(&put.stdout).trim() == "ok", format!("{put:?}"))?;
    let task = format!("save {} auto 0", dir.path().display());
    let blob = dir.path().join("blob");
    let fails = |calls: &[&str]| {
        let mut arguments = vec!["-o", "/dev/null", "-P", blob.to_str().unwrap()];
        let inject: Vec<_> = calls.iter().map(|call| format!("inject={call}")).collect();
        inject.iter().for_each(|inject| arguments.extend(["-e", inject]));
        let output = strace(&task, &arguments)?;
        Ok::<_, String>(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    // A target that cannot be written, then a source that cannot be read.
    let written = fails(&["copy_file_range:error=EIO"])?;
    check(written == "internal", format!("of the target: expected internal, got {written}"))?;
    let read = fails(&["copy_file_range:error=EIO", "pread64:error=EIO"])?;
    check(read == "corrupt", format!("of the source: expected corrupt, got {read}"))
}

/// A mounted file system that goes with this value.
struct Mounted {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Mounted {
    fn new(arguments: &[&str]) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mnt");
        std::fs::create_dir(&path).unwrap();
        run("mount", arguments, &path)?;
        Ok(Self { path, _dir: dir })
    }

    fn loopback(mkfs: &[&str], size: u64) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let (image, path) = (dir.path().join("image"), dir.path().join("mnt"));
        std::fs::File::create(&image).unwrap().set_len(size).unwrap();
        std::fs::create_dir(&path).unwrap();
        run(mkfs[0], &mkfs[1..], &image)?;
        run("mount", &["-o", "loop", image.to_str().unwrap()], &path)?;
        Ok(Self { path, _dir: dir })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).output();
    }
}

fn run(program: &str, arguments: &[&str], last: &Path) -> Outcome {
    let output =
        Command::new(program).args(arguments).arg(last).output().map_err(|e| format!("{program}: {e}"))?;
    let why = String::from_utf8_lossy(&output.stderr);
    check(output.status.success(), format!("{program} {arguments:?} (root is needed): {why}"))
}

/// The same for what waits until nobody has a file open there: a process that another test is just starting has, for
/// a moment, all files of this one.
fn run_once_free(program: &str, arguments: &[&str], last: &Path) -> Outcome {
    for _ in 0..100 {
        match run(program, arguments, last) {
            Err(why) if why.contains("busy") => std::thread::sleep(Duration::from_millis(100)),
            outcome => return outcome,
        }
    }
    run(program, arguments, last)
}

fn full_disk_known_size() -> Outcome {
    for mounted in [
        Mounted::new(&["-t", "tmpfs", "-o", "size=16m", "none"])?,
        Mounted::loopback(&["mkfs.xfs", "-q"], 320 << 20)?,
    ] {
        runtime().block_on(async {
            let store = store(FsConfig::new(&mounted.path))?;
            let size = 1 << 30;
            let upload = store.upload(&"blob".parse().unwrap(), Expect::new().size(size)).await;
            kind_is(upload, ErrorKind::NoSpace, "an upload that cannot fit")?;
            // A sparse source that fits is another matter, whatever its length.
            let sparse = Expect::new().size(size).data_size(1 << 20);
            let mut upload = text(store.upload(&"sparse".parse().unwrap(), sparse).await)?;
            text(upload.write(Bytes::from(vec![1; 1 << 20])).await)?;
            text(upload.write(store_core::Chunk::Zeros(size - (1 << 20))).await)?;
            text(upload.finish().await).map(drop)
        })?;
    }
    Ok(())
}

fn full_disk_unknown_size() -> Outcome {
    for mounted in [
        Mounted::new(&["-t", "tmpfs", "-o", "size=16m", "none"])?,
        Mounted::loopback(&["mkfs.ext4", "-q"], 32 << 20)?,
    ] {
        for staging in [Staging::Auto, Staging::Directory] {
            runtime().block_on(async {
                let store = store(named(&mounted.path, staging))?;
                let small = text(store.put(&"small".parse().unwrap(), source(100_000), Expect::new()).await)?;
                let free = text(store.capacity().await)?.free;
                let put = store.put(&"blob".parse().unwrap(), source(64 << 20), Expect::new()).await;
                kind_is(put, ErrorKind::NoSpace, "an upload that fills the disk")?;
                text(store.verify(&small.location, |_| {}).await)?;
                text(store.delete(&small.location).await)?;
                check(files(&mounted.path).is_empty(), format!("left are {:?}", files(&mounted.path)))?;
                free_again(&store, free).await
            })?;
        }
    }
    Ok(())
}

fn full_disk_of_a_download() -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    for mounted in [
        Mounted::new(&["-t", "tmpfs", "-o", "size=16m", "none"])?,
        Mounted::loopback(&["mkfs.ext4", "-q"], 32 << 20)?,
    ] {
        runtime().block_on(async {
            let store = store(FsConfig::new(dir.path()))?;
            let target = || Arc::new(tempfile::tempfile_in(&mounted.path).unwrap());
            for (size, fits) in [(8 << 20, true), (64 << 20, false)] {
                let blob = store.put(&BlobId::random(), source(size), Expect::new()).await;
                let reader = text(store.open(&text(blob)?.location).await)?;
                let (copied, written) = (target(), target());
                let by_kernel = reader.save(Arc::clone(&copied), |_| ()).await;
                let chunks = text(reader.chunks(..))?;
                if fits {
                    check(text(by_kernel)? == size as u64, "the length")?;
                    drop(copied);
                    text(store_core::file::write(Arc::clone(&written), chunks, |_| ()).await)?;
                    let found = written.metadata().unwrap();
                    let taken = found.blocks() * 512;
                    check((found.len(), taken) == (size as u64, size as u64), format!("{found:?} {taken}"))?;
                } else {
                    kind_is(by_kernel, ErrorKind::NoSpace, "a copy that fills the disk")?;
                    copied.set_len(0).unwrap();
                    let outcome = store_core::file::write(written, chunks, |_| ()).await;
                    kind_is(outcome, ErrorKind::NoSpace, "a download that fills the disk")?;
                }
            }
            Outcome::Ok(())
        })?;
    }
    Ok(())
}

fn leaves_reserve() -> Outcome {
    let mounted = Mounted::new(&["-t", "tmpfs", "-o", "size=64m", "none"])?;
    runtime().block_on(async {
        let mut config = FsConfig::new(&mounted.path);
        config.reserve = "40MiB".parse().unwrap();
        let store = store(config)?;
        let free = || {
            let space = rustix::fs::statvfs(&mounted.path).unwrap();
            space.f_bavail * space.f_frsize
        };
        // Of an unknown length, so that nothing can be refused at the start.
        let put = store.put(&"blob".parse().unwrap(), source(48 << 20), Expect::new()).await;
        kind_is(put, ErrorKind::NoSpace, "an upload into what is to be left free")?;
        check(free() > 60 << 20, "something is left")?;
        let mut upload = text(store.upload(&"blob".parse().unwrap(), Expect::new()).await)?;
        let mut pieces = std::pin::pin!(source(48 << 20));
        let refused = loop {
            let Some(piece) = text(pieces.try_next().await)? else { break None };
            if let Err(error) = upload.write(piece).await {
                break Some(error.kind());
            }
        };
        check(refused == Some(ErrorKind::NoSpace), format!("writes end in {refused:?}"))?;
        // Writes in flight do not see each other.
        check(free() >= 30 << 20, format!("only {} are left free", free()))?;
        text(upload.abort().await)?;
        text(store.put(&"blob".parse().unwrap(), source(8 << 20), Expect::new()).await).map(drop)
    })
}

/// Both see enough of it before either has taken any.
fn reserve_taken_twice() -> Outcome {
    let mounted = Mounted::new(&["-t", "tmpfs", "-o", "size=64m", "none"])?;
    runtime().block_on(async {
        let mut config = FsConfig::new(&mounted.path);
        config.reserve = "24MiB".parse().unwrap();
        for _ in 0..20 {
            let store = store(config.clone())?;
            let begun = futures::future::join_all((0..8).map(|i| {
                let (store, id) = (store.clone(), format!("blob-{i}").parse().unwrap());
                tokio::spawn(async move { store.upload(&id, Expect::new().size(30 << 20)).await })
            }));
            let begun: Vec<_> = begun.await.into_iter().map(Result::unwrap).collect();
            let space = rustix::fs::statvfs(&mounted.path).unwrap();
            check(space.f_bavail * space.f_frsize >= 24 << 20, "the reserve was given away")?;
            for upload in begun {
                match upload {
                    Ok(upload) => text(upload.abort().await)?,
                    refused => kind_is(refused, ErrorKind::NoSpace, "an upload that does not fit any more")?,
                }
            }
        }
        Ok(())
    })
}

fn read_only_store() -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let (missing, there) = (dir.path().join("missing"), dir.path().join("there"));
    std::fs::create_dir(&there).unwrap();
    std::fs::write(there.join("blob"), "a blob of Glance's").unwrap();
    runtime().block_on(async {
        let open = async |path: &Path| {
            let text = format!("[stores.a]\ntype = 'fs'\nread_only = true\npath = '{}'", path.display());
            let settings = Settings::parse(&text)?;
            Registry::default().with::<FsConfig>().open(settings.section("a")?).await
        };
        kind_is(open(&missing).await, ErrorKind::Unavailable, "a directory that is not there")?;
        check(!missing.exists(), "the directory was made")?;
        let store = text(open(&there).await)?;
        let at = text(store.locate(&"blob".parse().unwrap()).await)?;
        check(text(store.get(&at, ..).await)?.len() == 18, "reading")?;
        check(!there.join(".imagestore").exists(), "a marker was made")
    })
}

fn read_only_file_system() -> Outcome {
    let mounted = Mounted::new(&["-t", "tmpfs", "-o", "size=16m", "none"])?;
    runtime().block_on(async {
        let writable = store(FsConfig::new(&mounted.path))?;
        let blob = text(writable.put(&"blob".parse().unwrap(), source(1000), Expect::new()).await)?;
        run_once_free("mount", &["-o", "remount,ro"], &mounted.path)?;
        for store in [writable, store(FsConfig::new(&mounted.path))?] {
            check(text(store.get(&blob.location, ..).await)?.len() == 1000, "reading")?;
            let put = store.put(&"other".parse().unwrap(), source(1000), Expect::new()).await;
            kind_is(put, ErrorKind::Denied, "a put")?;
            kind_is(store.delete(&blob.location).await, ErrorKind::Denied, "a deletion")?;
        }
        Ok(())
    })
}

fn unmounted_share() -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let mut config = FsConfig::new(dir.path());
        config.require_marker = true;
        kind_is(FsBackend::open(&config), ErrorKind::Unavailable, "a bare mount point")?;
        check(files(dir.path()).is_empty(), "something was written to the bare mount point")?;
        std::fs::create_dir(dir.path().join(".imagestore")).unwrap();
        std::fs::write(dir.path().join(".imagestore/marker"), "").unwrap();
        text(FsBackend::open(&config)).map(drop)
    })
}

/// A process for which /etc/fstab has one more line.
fn missing_mount() -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let (point, fstab) = (dir.path().join("share"), dir.path().join("fstab"));
    std::fs::create_dir(&point).unwrap();
    std::fs::write(&fstab, format!("server:/images {} nfs4 defaults,nofail 0 0\n", point.display())).unwrap();
    let data = point.join("images");
    let put = |prepare: &str| {
        let script =
            format!("mount --bind '{}' /etc/fstab && {prepare} exec '{}'", fstab.display(), this().display());
        let task = format!("put {} auto 1000", data.display());
        let output = command(Path::new("unshare"), &task, &["--mount", "sh", "-c", &script]).output();
        let output = output.map_err(|e| format!("unshare: {e}"))?;
        Ok::<_, String>(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned())
    };
    let missed = put("")?;
    check(missed == "unavailable", format!("without the mount (root is needed): {missed}"))?;
    check(files(&point).is_empty() && !data.exists(), "something was written beneath the mount point")?;
    let mounted = put(&format!("mount -t tmpfs none '{}' &&", point.display()))?;
    check(mounted == "ok", format!("with the mount: {mounted}"))
}

fn share_goes_away() -> Outcome {
    let mounted = Mounted::new(&["-t", "tmpfs", "-o", "size=16m", "none"])?;
    runtime().block_on(async {
        let mut options = Options::default();
        options.retry.attempts = 1;
        let backend = text(FsBackend::open(&FsConfig::new(&mounted.path)))?;
        let store = Store::new("a", Arc::new(backend), options);
        let blob = text(store.put(&"blob".parse().unwrap(), source(1000), Expect::new()).await)?;
        run_once_free("umount", &[], &mounted.path)?;
        let put = store.put(&"other".parse().unwrap(), source(1000), Expect::new()).await;
        kind_is(put, ErrorKind::Unavailable, "a put")?;
        kind_is(
            store.stat(&blob.location).await,
            ErrorKind::Unavailable,
            "a stat: not NotFound, the blob may be there",
        )?;
        kind_is(store.list().try_collect::<Vec<_>>().await, ErrorKind::Unavailable, "a list")?;
        check(files(&mounted.path).is_empty(), "something was written beneath the mount point")
    })
}

fn no_attributes() -> Outcome {
    let mounted = Mounted::new(&["-t", "ramfs", "none"])?;
    runtime().block_on(async {
        let store = store(FsConfig::new(&mounted.path))?;
        keeps_metadata(&store, &mounted.path).await?;
        // What a crash between sidecar and name leaves is swept; what belongs to a blob is not.
        let blob = text(store.put(&"blob".parse().unwrap(), source(1000), Expect::new()).await)?;
        std::fs::write(mounted.path.join(".imagestore/meta/gone.4711"), "{}").unwrap();
        text(store.sweep(Duration::ZERO).await)?;
        check(!mounted.path.join(".imagestore/meta/gone.4711").exists(), "an orphan stays")?;
        check(text(store.stat(&blob.location).await)?.meta.is_some(), "a blob lost its metadata")
    })
}

async fn keeps_metadata(store: &Store, directory: &Path) -> Outcome {
    let expect = Expect::new().property("os", "debian");
    let blob = text(store.put(&"noted".parse().unwrap(), source(1000), expect).await)?;
    let sidecars = files(&directory.join(".imagestore/meta"));
    check(sidecars.len() == 1, format!("metadata lies in {sidecars:?}"))?;
    check(text(store.stat(&blob.location).await)?.meta == Some(blob.meta), "metadata differs")?;
    text(store.delete(&blob.location).await)?;
    check(files(directory).is_empty(), format!("left are {:?}", files(directory)))
}

/// A mounted file system whose server stops and goes on.
struct Share {
    server: std::process::Child,
    path: PathBuf,
}

impl Share {
    fn new(below: &Path, path: &Path) -> Result<Self, String> {
        let device = |path| std::fs::metadata(path).map(|found| found.dev()).unwrap_or_default();
        let before = device(path);
        let server = Command::new("bindfs").args(["-f", "--xattr-none"]).args([below, path]).spawn();
        let server = server.map_err(|e| format!("bindfs is needed (package bindfs): {e}"))?;
        let share = Self { server, path: path.to_owned() };
        for _ in 0..100 {
            if device(path) != before {
                return Ok(share);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err("bindfs mounts nothing".to_owned())
    }

    fn signal(&self, name: &str) {
        let _ = Command::new("kill").args([name, &self.server.id().to_string()]).status();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.signal("-CONT");
        let _ = run("umount", &["--lazy"], &self.path);
        let _ = self.server.wait();
    }
}

fn hung_share() -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let [below, path, local] = ["below", "share", "local"].map(|name| dir.path().join(name));
    std::fs::create_dir(&below).unwrap();
    std::fs::create_dir(&path).unwrap();
    // Dropped last: its threads wait for the share.
    let runtime = runtime();
    let share = Share::new(&below, &path)?;
    let outcome = runtime.block_on(async {
        let mut options = Options::default();
        options.timeout.call = Span(Duration::from_millis(200));
        options.retry.delay = Span(Duration::from_millis(10));
        let backend = Arc::new(text(FsBackend::open(&FsConfig::new(&path)))?);
        let hung = Store::new("hung", backend, options);
        let local = store(FsConfig::new(&local))?;
        let id: BlobId = "blob".parse().unwrap();
        let blob = text(local.put(&id, source(100_000), Expect::new()).await)?;
        let begun = (0..70).map(|i| {
            let (hung, id) = (hung.clone(), format!("upload-{i}").parse().unwrap());
            async move { hung.upload(&id, Expect::new()).await }
        });
        let uploads = text(futures::future::try_join_all(begun).await)?;
        share.signal("-STOP");
        // With five attempts each, more than there are blocking threads.
        for located in futures::future::join_all((0..150).map(|_| hung.locate(&id))).await {
            kind_is(located, ErrorKind::Unavailable, "a call to the share")?;
        }
        let got = tokio::time::timeout(Duration::from_secs(20), local.verify(&blob.location, |_| {})).await;
        text(got.map_err(|_| "the other store does not answer either")?)?;
        // Neither do writes of many uploads take all of the process's blocking threads.
        let writes = uploads.into_iter().map(|mut upload| async move {
            let piece = Bytes::from(vec![7; 12 << 20]);
            let written = tokio::time::timeout(Duration::from_secs(2), upload.write(piece)).await;
            (written.is_ok_and(|written| written.is_ok()), upload)
        });
        let written = futures::future::join_all(writes).await;
        check(!written.iter().any(|(written, _)| *written), "a share that hangs takes 12 MiB")?;
        let got = tokio::time::timeout(Duration::from_secs(20), local.verify(&blob.location, |_| {})).await;
        text(got.map_err(|_| "the other store does not answer while uploads hang")?)?;
        share.signal("-CONT");
        drop(written);
        hung.settle().await;
        for _ in 0..100 {
            if hung.locate(&id).await.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
                return Ok(());
            }
        }
        Err("the share is not back".to_owned())
    });
    drop(share);
    outcome
}

fn dead_share() -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let [below, path] = ["below", "share"].map(|name| dir.path().join(name));
    std::fs::create_dir(&below).unwrap();
    std::fs::create_dir(&path).unwrap();
    let share = Share::new(&below, &path)?;
    runtime().block_on(async {
        let mut options = Options::default();
        options.retry.attempts = 1;
        let store = Store::new("a", Arc::new(text(FsBackend::open(&FsConfig::new(&path)))?), options);
        let blob = text(store.put(&"blob".parse().unwrap(), source(9_000_000), Expect::new()).await)?;
        let reader = text(store.open(&blob.location).await)?;
        share.signal("-KILL");
        for _ in 0..100 {
            if std::fs::metadata(&path).is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let read = text(reader.stream(..))?.try_collect::<Vec<_>>().await.map(|pieces| pieces.len());
        kind_is(read, ErrorKind::Unavailable, "a read of an open blob")?;
        kind_is(store.stat(&blob.location).await, ErrorKind::Unavailable, "a stat")?;
        kind_is(store.list().try_collect::<Vec<_>>().await, ErrorKind::Unavailable, "a list")?;
        let put = store.put(&"other".parse().unwrap(), source(1000), Expect::new()).await;
        kind_is(put, ErrorKind::Unavailable, "a put")?;
        kind_is(FsBackend::open(&FsConfig::new(&path)), ErrorKind::Unavailable, "an opening")
    })
}

/// A FUSE file system with neither `O_TMPFILE` nor extended attributes, as old network shares are.
fn bindfs() -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let (below, path) = (dir.path().join("below"), dir.path().join("mnt"));
    std::fs::create_dir(&below).unwrap();
    std::fs::create_dir(&path).unwrap();
    run("bindfs", &["--xattr-none", below.to_str().unwrap()], &path)?;
    let mounted = Mounted { path, _dir: dir };
    runtime().block_on(async {
        let store = store(FsConfig::new(&mounted.path))?;
        check(store.info().can.staging, "this file system should have no unnamed files")?;
        keeps_metadata(&store, &mounted.path).await?;
        let big = text(store.put(&"big".parse().unwrap(), source(9_000_000), Expect::new()).await)?;
        text(store.verify(&big.location, |_| {}).await)?;
        let again = store.put(&"big".parse().unwrap(), source(1000), Expect::new()).await;
        kind_is(again, ErrorKind::AlreadyExists, "a second put")?;
        std::mem::forget(text(store.upload(&"lost".parse().unwrap(), Expect::new()).await)?);
        check(text(store.sweep(Duration::from_secs(3600)).await)?.uploads == 0, "sweep took a live upload")?;
        check(text(store.sweep(Duration::ZERO).await)?.uploads == 1, "sweep missed a lost upload")
    })
}

/// Characters that JSON writes with six, on file systems that keep them all in the attribute.
fn largest_metadata() -> Outcome {
    for mounted in [
        Mounted::new(&["-t", "tmpfs", "-o", "size=16m", "none"])?,
        Mounted::loopback(&["mkfs.xfs", "-q"], 320 << 20)?,
        Mounted::loopback(&["mkfs.ext4", "-q"], 32 << 20)?,
    ] {
        runtime().block_on(async {
            let store = store(FsConfig::new(&mounted.path))?;
            let expect = Expect::new().property("n", "\u{1}".repeat(store_core::Meta::MAX_PROPERTIES - 1));
            let blob = text(store.put(&"blob".parse().unwrap(), source(1000), expect).await)?;
            check(text(store.stat(&blob.location).await)?.meta == Some(blob.meta), "metadata differs")?;
            text(store.verify(&blob.location, |_| {}).await).map(drop)
        })?;
    }
    Ok(())
}

fn damaged_metadata() -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = store(FsConfig::new(dir.path()))?;
        let blob = text(store.put(&"blob".parse().unwrap(), source(1000), Expect::new()).await)?;
        let path = dir.path().join("blob");
        rustix::fs::setxattr(&path, "user.imagestore", b"{broken", rustix::fs::XattrFlags::empty()).unwrap();
        kind_is(store.verify(&blob.location, |_| {}).await, ErrorKind::Corrupt, "verify")?;
        let read = store.get(&blob.location, ..).await;
        let hint = read.as_ref().err().and_then(|error| error.hint().map(str::to_owned)).unwrap_or_default();
        kind_is(read, ErrorKind::Corrupt, "a read that cannot be checked")?;
        check(hint.contains("user.imagestore"), format!("the hint is {hint:?}"))?;
        // As the hint says.
        rustix::fs::removexattr(&path, "user.imagestore").unwrap();
        check(text(store.get(&blob.location, ..).await)?.len() == 1000, "the bytes cannot be read any more")
    })
}

fn strange_files() -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let data = dir.path().join("data");
    runtime().block_on(async {
        let store = store(FsConfig::new(&data))?;
        std::os::unix::fs::symlink(&secret, data.join("link")).unwrap();
        std::fs::create_dir(data.join("directory")).unwrap();
        run("mkfifo", &[], &data.join("pipe"))?;
        check(data.join("pipe").symlink_metadata().unwrap().file_type().is_fifo(), "no pipe")?;
        let at = |name: &str| format!("file://{}/{name}", data.display()).parse().unwrap();
        kind_is(store.get(&at("link"), ..).await, ErrorKind::Denied, "a symbolic link")?;
        kind_is(store.get(&at("pipe"), ..).await, ErrorKind::Invalid, "a pipe")?;
        kind_is(store.get(&at("directory"), ..).await, ErrorKind::Invalid, "a directory")?;
        kind_is(
            store.get(&format!("file://{}", secret.display()).parse().unwrap(), ..).await,
            ErrorKind::Invalid,
            "a file outside",
        )?;
        let listed: Vec<_> = text(store.list().try_collect().await)?;
        check(listed.is_empty(), format!("listed are {listed:?}"))?;
        // The id is taken all the same: nothing is written through a link.
        let put = store.put(&"link".parse().unwrap(), source(10), Expect::new()).await;
        kind_is(put, ErrorKind::AlreadyExists, "a put over a link")?;
        check(std::fs::read_to_string(&secret).unwrap() == "secret", "the file outside was changed")?;
        kind_is(store.delete(&at("link")).await, ErrorKind::Denied, "deleting a link")?;
        kind_is(store.delete(&at("directory")).await, ErrorKind::Invalid, "deleting a directory")?;
        check(data.join("link").symlink_metadata().is_ok(), "a link was deleted")?;

        // Nor is anything swept through a link.
        let (outside, linked) = (dir.path().join("outside"), dir.path().join("linked"));
        std::fs::create_dir_all(outside.join("staging")).unwrap();
        std::fs::write(outside.join("staging/victim"), "victim").unwrap();
        std::fs::write(outside.join("marker"), "").unwrap();
        std::fs::create_dir(&linked).unwrap();
        std::os::unix::fs::symlink(&outside, linked.join(".imagestore")).unwrap();
        if let Ok(backend) = FsBackend::open(&FsConfig::new(&linked)) {
            let store = Store::new("a", Arc::new(backend), Options::default());
            let _ = store.sweep(Duration::ZERO).await;
        }
        std::fs::remove_file(linked.join(".imagestore")).unwrap();
        std::fs::create_dir(linked.join(".imagestore")).unwrap();
        std::os::unix::fs::symlink(outside.join("staging"), linked.join(".imagestore/staging")).unwrap();
        let store_of_links = self::store(FsConfig::new(&linked))?;
        check(store_of_links.sweep(Duration::ZERO).await.is_err(), "a link is swept")?;
        check(outside.join("staging/victim").exists(), "a file outside was swept away")?;

        // What another program left, without metadata and with a name that is no id, is read all the same.
        std::fs::write(data.join("by hand, with spaces"), "by hand").unwrap();
        let by_hand = at("by%20hand,%20with%20spaces");
        check(text(store.get(&by_hand, ..).await)? == "by hand", "a file by hand")?;
        check(text(store.stat(&by_hand).await)?.meta.is_none(), "it has no metadata")
    })
}

fn two_directories() -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let small = Mounted::new(&["-t", "tmpfs", "-o", "size=8m", "none"])?;
    let large = dir.path().join("large");
    let text_of = |first: i32| {
        format!(
            "[stores.a]\ntype='fs'\ndirectories=[{{path='{}', priority={first}}}, {{path='{}', priority=5}}]",
            small.path.display(),
            large.display()
        )
    };
    let open = |first: i32| -> Result<Store, String> {
        let config =
            text(Settings::parse(&text_of(first)).and_then(|settings| settings.section("a")?.backend()))?;
        store(config)
    };
    runtime().block_on(async {
        let (prefers_small, prefers_large) = (open(9)?, open(1)?);
        let put = async |store: &Store, id: &str, size: usize| {
            text(store.put(&id.parse().unwrap(), source(size), Expect::new().size(size as u64)).await)
        };
        let first = put(&prefers_small, "first", 1000).await?;
        check(first.location.to_string().contains(small.path.to_str().unwrap()), "priority")?;
        let big = put(&prefers_small, "big", 20 << 20).await?;
        check(
            big.location.to_string().contains(large.to_str().unwrap()),
            "what does not fit goes to the next one",
        )?;
        // An id is taken wherever it lies.
        let again = prefers_large.put(&"first".parse().unwrap(), source(10), Expect::new()).await;
        kind_is(again, ErrorKind::AlreadyExists, "an id in the other directory")?;
        check(text(prefers_large.locate(&"first".parse().unwrap()).await)? == first.location, "locate")?;

        // Rivals that began in different directories: one wins.
        for round in 0..50 {
            let id: BlobId = format!("race-{round}").parse().unwrap();
            let mut writers = Vec::new();
            for store in [&prefers_small, &prefers_large, &prefers_small, &prefers_large] {
                let mut writer = text(store.upload(&id, Expect::new()).await)?;
                text(writer.write(Bytes::from(vec![writers.len() as u8 + 1; 1000])).await)?;
                writers.push(writer);
            }
            let outcomes =
                futures::future::join_all(writers.into_iter().map(|w| tokio::spawn(w.finish()))).await;
            let mut kinds = BTreeMap::new();
            for outcome in outcomes {
                *kinds.entry(outcome.unwrap().err().map(|error| error.kind())).or_insert(0) += 1;
            }
            let expected = BTreeMap::from([(None, 1), (Some(ErrorKind::AlreadyExists), 3)]);
            check(kinds == expected, format!("round {round}: {kinds:?}"))?;
            let found = [&small.path, &large].iter().filter(|path| path.join(id.as_str()).exists()).count();
            check(found == 1, format!("round {round}: {found} blobs of one id"))?;
        }
        let total = text(prefers_small.capacity().await)?.total;
        check(total > 8 << 20, "the capacity is that of both")
    })
}

/// One of two directories is gone when the store is opened, or goes afterwards; nothing may say that a blob is not there
/// which may lie in it, and no second blob of an id may come into being.
fn lost_directory() -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let (kept, lost, away) =
        (dir.path().join("kept"), dir.path().join("a-lost-one"), dir.path().join("away"));
    let config = |staging: &str| -> Result<FsConfig, String> {
        let more = format!("create=false\nstaging='{staging}'\nrequire_marker=true");
        let settings = format!(
            "[stores.a]\ntype='fs'\n{more}\ndirectories=[{{path='{}', priority=9}}, {{path='{}'}}]",
            lost.display(),
            kept.display()
        );
        text(Settings::parse(&settings).and_then(|settings| settings.section("a")?.backend()))
    };
    let open = |staging: &str| -> Result<Store, String> {
        let mut options = Options::default();
        options.retry.attempts = 1;
        Ok(Store::new("a", Arc::new(text(FsBackend::open(&config(staging)?))?), options))
    };
    for path in [&kept, &lost] {
        std::fs::create_dir_all(path.join(".imagestore")).unwrap();
        std::fs::write(path.join(".imagestore/marker"), "").unwrap();
    }
    let id = |text: &str| -> BlobId { text.parse().unwrap() };
    runtime().block_on(async {
        let one = store(FsConfig::new(&kept))?;
        let here = text(one.put(&id("here"), source(1000), Expect::new()).await)?.location;
        let before = open("directory")?;
        let there = text(before.put(&id("there"), source(1000), Expect::new()).await)?.location;
        check(lost.join("there").exists(), "priority")?;
        std::fs::create_dir_all(kept.join(".imagestore/staging")).unwrap();
        std::fs::rename(&lost, &away).unwrap();

        let after = open("auto")?;
        for store in [&before, &after] {
            std::fs::write(kept.join(".imagestore/staging/x.0123"), "left by a killed process").unwrap();
            check(text(store.locate(&id("here")).await)? == here, "a blob of the other directory is found")?;
            text(store.verify(&here, |_| {}).await)?;
            kind_is(
                store.locate(&id("there")).await,
                ErrorKind::Unavailable,
                "a blob that may be in the lost one",
            )?;
            kind_is(store.stat(&there).await, ErrorKind::Unavailable, "a location in the lost one")?;
            kind_is(store.delete(&there).await, ErrorKind::Unavailable, "a deletion in the lost one")?;
            let put = store.put(&id("there"), source(1000), Expect::new()).await;
            kind_is(put, ErrorKind::Unavailable, "an id that may be taken")?;
            let mut entries = store.list();
            let first = text(entries.try_next().await)?.ok_or("nothing is listed")?;
            check(first.location == here, "the blobs that are there are listed")?;
            let error = entries.try_next().await.err().ok_or("the list says that it is whole")?;
            check(
                error.to_string().contains(lost.to_str().unwrap()),
                format!("the lost one is named: {error}"),
            )?;
            check(error.kind() == ErrorKind::Unavailable && error.hint().is_some(), format!("{error:?}"))?;
            kind_is(store.sweep(Duration::ZERO).await, ErrorKind::Unavailable, "a sweep")?;
            check(!kept.join(".imagestore/staging/x.0123").exists(), "the other directory is swept")?;
            kind_is(store.capacity().await, ErrorKind::Unavailable, "the capacity")?;
        }
        check(!lost.exists(), "something was written in the place of the lost one")?;
        std::fs::create_dir(&lost).unwrap();
        kind_is(after.locate(&id("there")).await, ErrorKind::Unavailable, "a bare mount point")?;
        std::fs::remove_dir(&lost).unwrap();
        std::fs::rename(&away, &lost).unwrap();
        for store in [&before, &after] {
            check(text(store.locate(&id("there")).await)? == there, "it is back")?;
            let again = BlobId::random();
            let blob = text(store.put(&again, source(1000), Expect::new()).await)?;
            check(lost.join(again.as_str()).exists(), "the preferred one is used again")?;
            text(store.delete(&blob.location).await)?;
        }
        // With none of them there is no store.
        std::fs::rename(&lost, dir.path().join("b")).unwrap();
        std::fs::rename(&kept, dir.path().join("c")).unwrap();
        kind_is(FsBackend::open(&config("auto")?), ErrorKind::Unavailable, "no directory at all")
    })
}

fn mode_and_group() -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let with = |more: &str| format!("[stores.a]\ntype='fs'\npath='{}'\n{more}", dir.path().display());
    let config =
        |more: &str| -> Result<FsConfig, Error> { Settings::parse(&with(more))?.section("a")?.backend() };
    runtime().block_on(async {
        for (id, more, mode, group) in [
            ("a", "", 0o640, None),
            ("b", "file_mode='0444'\ngroup='daemon'", 0o444, Some(1)),
            ("c", "group=4321", 0o640, Some(4321)),
        ] {
            let store = store(text(config(more))?)?;
            text(store.put(&id.parse().unwrap(), source(10), Expect::new()).await)?;
            let found = dir.path().join(id).metadata().unwrap();
            check(
                found.permissions().mode() & 0o7777 == mode,
                format!("{id}: mode {:o}", found.permissions().mode()),
            )?;
            check(group.is_none_or(|group| found.gid() == group), format!("{id}: group {}", found.gid()))?;
        }
        for (wrong, line) in
            [("file_mode='0200'", 4), ("file_mode='rw'", 4), ("group='no-such-group'", 4), ("paht=''", 4)]
        {
            let error = config(wrong).err().ok_or_else(|| format!("{wrong} was accepted"))?;
            check(error.message().contains(&format!("line {line}")), format!("{error}"))?;
        }
        Ok(())
    })
}

fn allocated(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

fn reservation() -> Outcome {
    let mounted = Mounted::loopback(&["mkfs.ext4", "-q", "-m", "0"], 256 << 20)?;
    runtime().block_on(async {
        let store = store(FsConfig::new(&mounted.path))?;
        let before = text(store.capacity().await)?.free;
        let size = 128 << 20;
        let upload = text(store.upload(&"a".parse().unwrap(), Expect::new().size(size)).await)?;
        let during = text(store.capacity().await)?.free;
        check(before - during >= size, "the space is not reserved")?;
        let second = store.upload(&"b".parse().unwrap(), Expect::new().size(size)).await;
        kind_is(second, ErrorKind::NoSpace, "a second reservation")?;
        text(upload.abort().await)?;
        free_again(&store, before - (1 << 20)).await
    })
}

/// Waits for space to be free: the last one to close a file frees its blocks, and a program that another test is just
/// starting holds all open files from fork(2) to execve(2).
async fn free_again(store: &Store, expected: u64) -> Outcome {
    for _ in 0..100 {
        if text(store.capacity().await)?.free >= expected {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err("the space is not given back".to_owned())
}

fn holes() -> Outcome {
    for mounted in [
        Mounted::loopback(&["mkfs.ext4", "-q"], 64 << 20)?,
        Mounted::loopback(&["mkfs.xfs", "-q"], 320 << 20)?,
    ] {
        runtime().block_on(async {
            let store = store(FsConfig::new(&mounted.path))?;
            // Zeros as plain bytes, of a known length, so that their space was reserved first.
            let pieces = (0..24u8).map(|i| Ok(Bytes::from(vec![u8::from(i % 8 == 0); 1 << 20])));
            let expect = Expect::new().size(24 << 20);
            let blob = text(store.put(&"holes".parse().unwrap(), stream::iter(pieces), expect).await)?;
            let used = allocated(&mounted.path.join("holes"));
            check(used < 4 << 20, format!("3 MiB of data take {used} bytes"))?;
            text(store.verify(&blob.location, |_| {}).await)?;
            // They come back as holes.
            let reader = text(store.open(&blob.location).await)?;
            let zeros = text(reader.chunks(..))?.try_filter_map(async |chunk| {
                Ok(matches!(chunk, store_core::Chunk::Zeros(_)).then(|| chunk.len()))
            });
            let zeros: Vec<u64> = text(zeros.try_collect().await)?;
            check(zeros.iter().sum::<u64>() == 21 << 20, format!("the holes are {zeros:?}"))
        })?;
    }
    Ok(())
}

/// How much of a file the page cache holds, as `fincore` tells: with direct I/O nothing, else what may lie there before it
/// is written out, and what is being written then.
fn page_cache() -> Outcome {
    let mounted = Mounted::loopback(&["mkfs.ext4", "-q"], 640 << 20)?;
    for (direct_io, most) in [(true, 1 << 20), (false, 130 << 20)] {
        let mut config = FsConfig::new(mounted.path.join(direct_io.to_string()));
        config.direct_io = direct_io;
        let path = config.path.clone().unwrap().join("blob");
        runtime().block_on(async {
            text(store(config)?.put(&"blob".parse().unwrap(), source(200 << 20), Expect::new()).await)
        })?;
        let output =
            Command::new("fincore").args(["--noheadings", "--bytes", "--output", "RES"]).arg(&path).output();
        let output = output.map_err(|e| format!("fincore is needed (package util-linux): {e}"))?;
        let mut resident = String::new();
        output.stdout.as_slice().read_to_string(&mut resident).unwrap();
        let resident: u64 = resident.trim().parse().map_err(|e| format!("fincore says {resident:?}: {e}"))?;
        check(
            resident <= most,
            format!("direct_io = {direct_io}: {resident} of 200 MiB are in the page cache"),
        )?;
    }
    Ok(())
}

fn growing_source() -> Outcome {
    let mounted = Mounted::loopback(&["mkfs.xfs", "-q"], 320 << 20)?;
    runtime().block_on(async {
        let backend = Arc::new(text(FsBackend::open(&FsConfig::new(mounted.path.join("data"))))?);
        let pieces: Vec<Bytes> = text(source(3 << 20).try_collect().await)?;
        let path = mounted.path.join("source");
        std::fs::write(&path, pieces.concat()).unwrap();
        let source = Arc::new(std::fs::File::open(&path).unwrap());
        // What a program measured before somebody appended to the file.
        let size = 2_000_000;
        let mut upload = text(backend.begin(&"blob".parse().unwrap(), SizeHint::exactly(size)).await)?;
        check(text(upload.adopt(&source).await)?.is_some(), "XFS should share blocks")?;
        let at = text(upload.commit(&Meta::new(size)).await)?;
        let store = Store::new("a", backend, Options::default());
        check(text(store.get(&at, ..).await)? == pieces.concat()[..2_000_000], "other bytes")
    })
}

/// Between file systems the kernel does not copy (`EXDEV`), but says so only of data.
fn leading_hole() -> Outcome {
    const LEN: u64 = 200 << 20;
    let near = Mounted::loopback(&["mkfs.ext4", "-q"], 320 << 20)?;
    let far = Mounted::new(&["-t", "tmpfs", "-o", "size=64m", "none"])?;
    let source = far.path.join("source");
    let file = std::fs::File::create(&source).unwrap();
    file.set_len(LEN).unwrap();
    for at in [150 << 20, LEN - 5] {
        file.write_all_at(b"bytes", at).unwrap();
    }
    let content = std::fs::read(&source).unwrap();
    for verify_reads in [true, false] {
        let backend = text(FsBackend::open(&FsConfig::new(near.path.join(verify_reads.to_string()))))?;
        let mut options = Options::default();
        options.verify_reads = verify_reads;
        runtime().block_on(async {
            let store = Store::new("a", Arc::new(backend), options);
            let file = Arc::new(std::fs::File::open(&source).unwrap());
            let blob = text(store.put_file(&"blob".parse().unwrap(), file, Expect::new(), |_| {}).await)?;
            text(store.verify(&blob.location, |_| {}).await)?;
            for (place, target) in
                [("another", far.path.join("target")), ("the same", near.path.join("target"))]
            {
                let target_file = Arc::new(std::fs::File::create(&target).unwrap());
                let told = AtomicU64::new(0);
                let reader = text(store.open(&blob.location).await)?;
                let tell = |len| {
                    told.fetch_add(len, Ordering::SeqCst);
                };
                let len = reader.save(target_file, tell).await;
                let what = format!("on {place} file system, verify_reads = {verify_reads}");
                check(len.map_err(|e| format!("{what}: {e}"))? == LEN, "another length")?;
                check(told.into_inner() == LEN, format!("{what}: told of other bytes"))?;
                check(std::fs::read(&target).unwrap() == content, format!("{what}: other bytes"))?;
                check(target.metadata().unwrap().blocks() < 2048, format!("{what}: no holes"))?;
            }
            Ok::<(), String>(())
        })?;
    }
    Ok(())
}

/// Free space tells whether blocks are shared: XFS and btrfs can, ext4 cannot.
fn shared_blocks() -> Outcome {
    for (mkfs, shares) in [("mkfs.xfs", true), ("mkfs.btrfs", true), ("mkfs.ext4", false)] {
        let mounted = Mounted::loopback(&[mkfs, "-q"], 640 << 20)?;
        let free = || {
            let space = rustix::fs::statvfs(&mounted.path).unwrap();
            space.f_bavail * space.f_frsize
        };
        runtime().block_on(async {
            let store = store(FsConfig::new(mounted.path.join("data")))?;
            let path = mounted.path.join("source");
            let pieces: Vec<Bytes> = text(source(64 << 20).try_collect().await)?;
            std::fs::write(&path, pieces.concat()).unwrap();
            std::fs::File::open(&path).unwrap().sync_all().unwrap();

            let before = free();
            let file = Arc::new(std::fs::File::open(&path).unwrap());
            let blob = text(store.put_file(&"blob".parse().unwrap(), file, Expect::new(), |_| {}).await)?;
            let put = before.saturating_sub(free());
            check((put < 32 << 20) == shares, format!("{mkfs}: a put took {put} bytes"))?;
            // What becomes of the source is no matter of the blob.
            std::fs::write(&path, "changed").unwrap();
            text(store.verify(&blob.location, |_| {}).await)?;

            let target = Arc::new(std::fs::File::create(mounted.path.join("target")).unwrap());
            let before = free();
            let reader = text(store.open(&blob.location).await)?;
            text(reader.save(Arc::clone(&target), |_| {}).await)?;
            target.sync_all().unwrap();
            let got = before.saturating_sub(free());
            check((got < 32 << 20) == shares, format!("{mkfs}: a get took {got} bytes"))?;
            check(std::fs::read(mounted.path.join("target")).unwrap() == pieces.concat(), "the bytes differ")
        })?;
    }
    Ok(())
}
