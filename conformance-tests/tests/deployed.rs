//! The operators' door: the suite on a store that others use, too.

use std::{sync::Arc, time::Duration};

use conformance_tests::{CheckOptions, Group, Verdict, check};
use futures::TryStreamExt;
use store_core::{Entry, ErrorKind, Expect, MemoryBackend, Options, Store, once};

/// Opens `backend` as a program does that has read it from its configuration.
fn opener(
    backend: &MemoryBackend,
    options: &Options,
) -> impl Fn() -> std::future::Ready<store_core::Result<Store>> + Send + Sync + 'static {
    let (backend, options) = (backend.clone(), options.clone());
    move || std::future::ready(Ok(Store::new("production", Arc::new(backend.clone()), options.clone())))
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_blobs_and_uploads_are_left_alone_and_nothing_else_is_left() {
    let backend = MemoryBackend::new(2 << 30);
    let open = opener(&backend, &Options::default());
    let store = open().await.unwrap();
    let foreign = store.put(&"foreign".parse().unwrap(), once("bytes"), Expect::new()).await.unwrap();
    let mut upload = store.upload(&"under-way".parse().unwrap(), Expect::new()).await.unwrap();
    upload.write(bytes::Bytes::from_static(b"half")).await.unwrap();

    let mut told = Vec::new();
    let report = check(open, &CheckOptions::default(), |case| told.push(case.name)).await.unwrap();
    let failed: Vec<_> =
        report.cases.iter().filter(|case| matches!(case.verdict, Verdict::Failed { .. })).collect();
    assert!(report.is_success(), "{failed:#?}");
    assert_eq!(report.cases.iter().map(|case| case.name).collect::<Vec<_>>(), told);
    assert_eq!(report.passed + report.ignored, conformance_tests::all().count());
    assert!(report.passed > 80, "only {} cases were tried", report.passed);
    let ignored = |name: &str| {
        let case = report.cases.iter().find(|case| case.name == name).unwrap();
        matches!(case.verdict, Verdict::Ignored { .. })
    };
    assert!(ignored("a_forgotten_upload_is_found_by_a_sweep"));
    assert!(ignored("an_empty_storage_lists_nothing"));
    assert!(ignored("a_blob_of_1_gib_is_streamed_through"));

    assert_eq!(store.get(&foreign.location, ..).await.unwrap(), "bytes");
    let late = upload.finish().await.unwrap();
    assert_eq!(store.get(&late.location, ..).await.unwrap(), "half");
    let mut listed: Vec<Entry> = store.list().try_collect().await.unwrap();
    listed.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(listed.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(), ["foreign", "under-way"]);
    assert_eq!(store.sweep(Duration::ZERO).await.unwrap().uploads, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_store_can_be_claimed_and_one_in_use_cannot() {
    let backend = MemoryBackend::new(1 << 30);
    let open = opener(&backend, &Options::default());
    let store = open().await.unwrap();
    let mut options = CheckOptions::default();
    options.exclusive = true;
    options.groups = vec![Group::Leftovers, Group::Listing];
    let report = check(opener(&backend, &Options::default()), &options, |_| {}).await.unwrap();
    assert!(report.is_success(), "{report:#?}");
    let swept =
        report.cases.iter().find(|case| case.name == "a_forgotten_upload_is_found_by_a_sweep").unwrap();
    assert_eq!(swept.verdict, Verdict::Passed);
    assert!(store.list().try_next().await.unwrap().is_none());

    store.put(&"foreign".parse().unwrap(), once("bytes"), Expect::new()).await.unwrap();
    let refused = check(opener(&backend, &Options::default()), &options, |_| {}).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
}

/// Whoever stops a run finds nothing of it in the store, wherever it was at that moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_stopped_leaves_nothing() {
    for delay in [0, 1, 3, 10, 30, 100, 300, 1000] {
        let backend = MemoryBackend::new(1 << 30);
        let store = opener(&backend, &Options::default())().await.unwrap();
        store.put(&"foreign".parse().unwrap(), once("bytes"), Expect::new()).await.unwrap();
        let options = CheckOptions::default();
        let stop = options.stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            stop.cancel();
        });
        let report = check(opener(&backend, &Options::default()), &options, |_| {}).await.unwrap();
        assert!(report.stopped && report.is_success(), "{report:#?}");
        let left: Vec<Entry> = store.list().try_collect().await.unwrap();
        assert_eq!(left.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(), ["foreign"], "{delay} ms");
        assert_eq!(store.sweep(Duration::ZERO).await.unwrap().uploads, 0, "{delay} ms");
    }
}

/// What the store's own configuration rules out is no failure of its storage.
#[tokio::test(flavor = "multi_thread")]
async fn every_configuration_passes() {
    let backend = MemoryBackend::new(1 << 30);
    let mut small = Options::default();
    small.max_size = Some(store_core::Size(40 << 20));
    small.digests = Vec::new();
    small.verify_reads = false;
    let mut few = Options::default();
    few.max_transfers = Some(1);
    few.inspect = store_core::Inspect::Strict;
    let mut view = Options::default();
    view.read_only = true;
    for options in [small, few, view] {
        let report = check(opener(&backend, &options), &CheckOptions::default(), |_| {}).await.unwrap();
        let failed: Vec<_> =
            report.cases.iter().filter(|case| matches!(case.verdict, Verdict::Failed { .. })).collect();
        assert!(report.is_success(), "{options:?}: {failed:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_for_programs_too() {
    let backend = MemoryBackend::new(1 << 30);
    let mut options = CheckOptions::default();
    options.filter = Some("capacity_that_is".into());
    let report = check(opener(&backend, &Options::default()), &options, |_| {}).await.unwrap();
    let mut json = serde_json::to_value(&report).unwrap();
    for case in json["cases"].as_array_mut().unwrap() {
        assert!(case["seconds"].as_f64().unwrap() >= 0.0);
        case.as_object_mut().unwrap().remove("seconds");
    }
    let expected = serde_json::json!({
        "passed": 1, "failed": 0, "ignored": 1, "stopped": false,
        "cases": [
            { "name": "a_capacity_that_is_declared_adds_up", "group": "honesty", "proves": [6], "verdict": "passed" },
            { "name": "a_capacity_that_is_not_declared_is_refused", "group": "honesty", "proves": [6],
              "verdict": "ignored", "reason": "needs a store of unknown capacity" },
        ],
    });
    assert_eq!(json, expected);
}
