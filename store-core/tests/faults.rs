//! What core makes good, over a backend that fails as told.

#![allow(clippy::unwrap_used, reason = "a test panics where its own set-up fails")]

use std::{
    collections::BTreeMap,
    fs::File,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, stream, stream::BoxStream};
use proptest::prelude::*;
use store_core::{
    Backend, BlobId, Capacity, Chunk, ChunkStream, Download, Entry, Error, ErrorKind, Expect, Info, Location,
    MemoryBackend, Meta, Options, Result, Secret, SizeHint, Span, Stat, Store, Swept, Upload, once,
};

/// What happens to one call.
#[derive(Clone, Debug)]
enum Fault {
    /// The call fails.
    Fail(ErrorKind),
    /// The call does its work, and then fails.
    Lose(ErrorKind),
    /// The call never ends.
    Hang,
    /// The stream breaks after so many bytes.
    Break(u64),
    /// The stream ends after so many bytes, as if that was all.
    End(u64),
    /// The stream goes on after its end.
    Overrun,
    /// The stream stops after so many bytes.
    Stall(u64),
    /// One bit of the stream is wrong.
    Flip,
}

/// A memory backend whose calls fail by a script, one fault a call, in order.
#[derive(Clone, Debug)]
struct Faulty {
    inner: MemoryBackend,
    script: Arc<Mutex<BTreeMap<&'static str, Vec<Fault>>>>,
    calls: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Faulty {
    fn new() -> Self {
        Self { inner: MemoryBackend::new(1 << 30), script: Arc::default(), calls: Arc::default() }
    }

    fn script(&self, operation: &'static str, faults: &[Fault]) {
        self.script.lock().unwrap().insert(operation, faults.to_vec());
        self.calls.lock().unwrap().remove(operation);
    }

    fn calls(&self, operation: &str) -> usize {
        self.calls.lock().unwrap().get(operation).copied().unwrap_or_default()
    }

    fn next(&self, operation: &'static str) -> Option<Fault> {
        *self.calls.lock().unwrap().entry(operation).or_insert(0) += 1;
        let mut script = self.script.lock().unwrap();
        let faults = script.get_mut(operation)?;
        (!faults.is_empty()).then(|| faults.remove(0))
    }

    async fn call<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        match self.next(operation) {
            Some(Fault::Fail(kind)) => Err(Error::new(kind, "as told")),
            Some(Fault::Lose(kind)) => {
                call.await?;
                Err(Error::new(kind, "as told"))
            }
            Some(Fault::Hang) => std::future::pending().await,
            _ => call.await,
        }
    }

    fn store(&self, change: impl FnOnce(&mut Options)) -> Store {
        let mut options = Options::default();
        options.retry.delay = Span(Duration::from_millis(1));
        change(&mut options);
        Store::new("test", Arc::new(self.clone()), options)
    }
}

#[async_trait]
impl Backend for Faulty {
    fn info(&self) -> &Info {
        self.inner.info()
    }
    async fn begin(&self, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        let inner = self.call("begin", self.inner.begin(id, size)).await?;
        Ok(Box::new(FaultyUpload { inner, backend: self.clone() }))
    }
    async fn locate(&self, id: &BlobId) -> Result<Location> {
        self.call("locate", self.inner.locate(id)).await
    }
    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>> {
        let inner = self.call("open", self.inner.open(at)).await?;
        Ok(Arc::new(FaultyDownload { inner, backend: self.clone() }))
    }
    async fn delete(&self, at: &Location) -> Result<()> {
        self.call("delete", self.inner.delete(at)).await
    }
    fn list(&self) -> BoxStream<'_, Result<Entry>> {
        match self.next("list") {
            Some(Fault::Fail(kind)) => stream::iter([Err(Error::new(kind, "as told"))]).boxed(),
            Some(Fault::Break(entries)) => {
                let broken = stream::iter([Err(Error::new(ErrorKind::Unavailable, "as told"))]);
                self.inner.list().take(entries as usize).chain(broken).boxed()
            }
            _ => self.inner.list(),
        }
    }
    async fn sweep(&self, age: Duration) -> Result<Swept> {
        self.call("sweep", self.inner.sweep(age)).await
    }
    async fn capacity(&self) -> Result<Capacity> {
        self.call("capacity", self.inner.capacity()).await
    }

    async fn presign(&self, at: &Location, lifetime: Duration) -> Result<Secret> {
        self.call("presign", self.inner.presign(at, lifetime)).await
    }
}

struct FaultyUpload {
    inner: Box<dyn Upload>,
    backend: Faulty,
}

#[async_trait]
impl Upload for FaultyUpload {
    async fn write(&mut self, chunk: Chunk) -> Result<()> {
        let backend = self.backend.clone();
        backend.call("write", self.inner.write(chunk)).await
    }
    async fn adopt(&mut self, source: &Arc<File>) -> Result<Option<Arc<File>>> {
        self.inner.adopt(source).await
    }
    async fn copy(&mut self, from: &Location, size: u64) -> Result<()> {
        self.inner.copy(from, size).await
    }

    async fn commit(&mut self, meta: &Meta) -> Result<Location> {
        let backend = self.backend.clone();
        backend.call("commit", self.inner.commit(meta)).await
    }
    async fn abort(&mut self) -> Result<()> {
        let backend = self.backend.clone();
        backend.call("abort", self.inner.abort()).await
    }
}

#[derive(Debug)]
struct FaultyDownload {
    inner: Arc<dyn Download>,
    backend: Faulty,
}

#[async_trait]
impl Download for FaultyDownload {
    fn stat(&self) -> &Stat {
        self.inner.stat()
    }
    async fn read(&self, range: Range<u64>) -> Result<ChunkStream> {
        let fault = self.backend.next("read");
        let all = self.inner.read(range.clone()).await?;
        let first = |bytes: u64| self.inner.read(range.start..range.end.min(range.start + bytes));
        Ok(match fault {
            None => all,
            Some(Fault::Break(bytes)) => {
                let broken = stream::iter([Err(Error::new(ErrorKind::Unavailable, "as told"))]);
                first(bytes).await?.chain(broken).boxed()
            }
            Some(Fault::End(bytes)) => first(bytes).await?,
            Some(Fault::Stall(bytes)) => first(bytes).await?.chain(stream::pending()).boxed(),
            Some(Fault::Overrun) => {
                all.chain(stream::iter([Ok(Chunk::Data(Bytes::from_static(b"x")))])).boxed()
            }
            Some(Fault::Flip) => {
                let chunks: Vec<Chunk> = all.try_collect().await?;
                let mut bytes: Vec<u8> = chunks.into_iter().flat_map(Chunk::into_bytes).flatten().collect();
                bytes[0] ^= 1;
                stream::iter([Ok(Chunk::Data(bytes.into()))]).boxed()
            }
            Some(Fault::Fail(kind)) => return Err(Error::new(kind, "as told")),
            Some(other) => panic!("{other:?} is no fault of a read"),
        })
    }
    fn file(&self) -> Option<&Arc<File>> {
        None
    }
}

fn id(text: &str) -> BlobId {
    text.parse().unwrap()
}

fn image(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 % 251) as u8 + 1).collect()
}

async fn put(store: &Store, len: usize) -> Location {
    store.put(&id("blob"), once(image(len)), Expect::new()).await.unwrap().location
}

fn kind<T: std::fmt::Debug>(outcome: Result<T>) -> ErrorKind {
    outcome.unwrap_err().kind()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However often a download breaks, the bytes are those that were asked for.
    #[test]
    fn broken_downloads_are_resumed(
        breaks in proptest::collection::vec((any::<bool>(), 1u64..2_000_000), 0..12),
        start in 0u64..3_000_000,
    ) {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let backend = Faulty::new();
            let store = backend.store(|_| ());
            let at = put(&store, 3_000_000).await;
            let faults = breaks.iter().map(|(end, at)| if *end { Fault::End(*at) } else { Fault::Break(*at) });
            let faults: Vec<_> = faults.collect();
            for start in [0, start] {
                backend.script("read", &faults);
                let got = store.get(&at, start..).await.unwrap();
                assert!(got == image(3_000_000)[start as usize..]);
            }
        });
    }
}

#[tokio::test]
async fn a_download_without_progress_is_given_up() {
    let backend = Faulty::new();
    let store = backend.store(|options| options.retry.attempts = 4);
    let at = put(&store, 100).await;
    for fault in [Fault::Break(0), Fault::End(0), Fault::Fail(ErrorKind::Unavailable)] {
        backend.script("read", &vec![fault; 100]);
        assert_eq!(kind(store.get(&at, ..).await), ErrorKind::Unavailable);
        assert_eq!(backend.calls("read"), 4);
    }
    // What is not a broken connection is not tried again.
    backend.script("read", &[Fault::Fail(ErrorKind::NotFound)]);
    assert_eq!(kind(store.get(&at, ..).await), ErrorKind::NotFound);
    assert_eq!(backend.calls("read"), 1);
}

#[tokio::test]
async fn wrong_bytes_never_end_well() {
    let backend = Faulty::new();
    let store = backend.store(|_| ());
    let at = put(&store, 3_000_000).await;
    for fault in [Fault::Overrun, Fault::Flip] {
        backend.script("read", std::slice::from_ref(&fault));
        let error = store.get(&at, ..).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{fault:?}");
        assert!(error.to_string().starts_with("store test: read memory://blob: "), "{error}");
        backend.script("read", &[fault]);
        assert_eq!(kind(store.verify(&at, |_| {}).await), ErrorKind::Corrupt);
    }
    let careless = backend.store(|options| options.verify_reads = false);
    backend.script("read", &[Fault::Flip]);
    assert!(careless.get(&at, ..).await.is_ok());
    backend.script("read", &[Fault::Flip]);
    let mut chunks = careless.open(&at).await.unwrap().thorough().chunks(..).unwrap();
    let error = loop {
        if let Err(error) = chunks.try_next().await {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn calls_are_tried_again_and_others_are_not() {
    let backend = Faulty::new();
    let store = backend.store(|options| options.retry.attempts = 3);
    let twice = [Fault::Fail(ErrorKind::Unavailable), Fault::Fail(ErrorKind::Unavailable)];

    backend.script("begin", &twice);
    let at = put(&store, 10).await;
    assert_eq!(backend.calls("begin"), 3);
    for operation in ["open", "locate", "capacity", "sweep", "list"] {
        backend.script(operation, &twice);
        match operation {
            "open" => drop(store.stat(&at).await.unwrap()),
            "locate" => drop(store.locate(&id("blob")).await.unwrap()),
            "capacity" => drop(store.capacity().await.unwrap()),
            "sweep" => drop(store.sweep(Duration::ZERO).await.unwrap()),
            _ => assert_eq!(store.list().count().await, 1),
        }
        assert_eq!(backend.calls(operation), 3, "{operation}");
    }
    backend.script("capacity", &[Fault::Fail(ErrorKind::Denied)]);
    assert_eq!(kind(store.capacity().await), ErrorKind::Denied);
    assert_eq!(backend.calls("capacity"), 1);
    // A list that has begun is not begun again: its reader would see entries twice.
    backend.script("list", &[Fault::Break(1)]);
    let listed: Vec<_> = store.list().collect().await;
    assert_eq!((listed.len(), backend.calls("list")), (2, 1));

    // Only the driver can repeat these without doing them twice.
    for operation in ["write", "commit"] {
        backend.script(operation, &[Fault::Fail(ErrorKind::Unavailable)]);
        assert_eq!(
            kind(store.put(&id("other"), once(image(10)), Expect::new()).await),
            ErrorKind::Unavailable
        );
        assert_eq!(backend.calls(operation), 1, "{operation}");
        assert_eq!(kind(store.locate(&id("other")).await), ErrorKind::NotFound);
    }
    assert_eq!(store.sweep(Duration::ZERO).await.unwrap().uploads, 0);

    // The work was done, the reply was lost: what is gone is deleted.
    backend.script("delete", &[Fault::Lose(ErrorKind::Unavailable)]);
    store.delete(&at).await.unwrap();
    assert_eq!(backend.calls("delete"), 2);
    assert_eq!(kind(store.delete(&at).await), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn every_call_has_a_deadline() {
    let backend = Faulty::new();
    let store = backend.store(|options| options.retry.attempts = 1);
    let at = put(&store, 100).await;
    for operation in ["open", "locate", "capacity", "sweep", "delete", "begin"] {
        backend.script(operation, &[Fault::Hang]);
        let outcome = match operation {
            "open" => store.stat(&at).await.map(drop),
            "locate" => store.locate(&id("blob")).await.map(drop),
            "capacity" => store.capacity().await.map(drop),
            "sweep" => store.sweep(Duration::ZERO).await.map(drop),
            "delete" => store.delete(&at).await,
            _ => store.upload(&id("new"), Expect::new()).await.map(drop),
        };
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{operation}");
        assert!(error.hint().unwrap().contains("timeout"), "{operation}");
    }
    for (aborts, operation) in [(1, "write"), (2, "commit")] {
        backend.script(operation, &[Fault::Hang]);
        let put = store.put(&id("new"), once(image(10)), Expect::new()).await;
        assert_eq!((kind(put), backend.calls("abort")), (ErrorKind::Unavailable, aborts), "{operation}");
    }
    backend.script("read", &[Fault::Stall(50)]);
    assert_eq!(kind(store.get(&at, ..).await), ErrorKind::Unavailable);
    // With another attempt, a stall is a break like any other.
    let patient = backend.store(|_| ());
    backend.script("read", &[Fault::Stall(50), Fault::Stall(20)]);
    assert!(patient.get(&at, ..).await.unwrap() == image(100));
}

#[tokio::test(start_paused = true)]
async fn a_clean_up_is_tried_again_and_settle_waits_for_it() {
    let backend = Faulty::new();
    let store = backend.store(|options| options.retry.attempts = 3);
    for (faults, tries) in [
        (vec![Fault::Hang, Fault::Fail(ErrorKind::Unavailable)], 3),
        (vec![Fault::Hang, Fault::Hang, Fault::Hang, Fault::Hang, Fault::Hang], 4),
        (vec![Fault::Fail(ErrorKind::Denied)], 1),
    ] {
        backend.script("commit", &[Fault::Hang]);
        backend.script("abort", &faults);
        let put = store.put(&id("new"), once(image(10)), Expect::new()).await;
        assert_eq!(kind(put), ErrorKind::Unavailable);
        store.settle().await;
        assert_eq!(backend.calls("abort"), tries, "{faults:?}");
    }
}

#[tokio::test]
async fn transfers_wait_for_their_turn() {
    let backend = Faulty::new();
    let store = backend.store(|options| options.max_transfers = Some(2));
    let at = put(&store, 5_000_000).await;

    let running = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let most = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let transfers = (0..40).map(|i| {
        let (store, at, way) = (store.clone(), at.clone(), i % 2);
        let (running, most) = (Arc::clone(&running[way]), Arc::clone(&most[way]));
        tokio::spawn(async move {
            let begin = || most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let end = || running.fetch_sub(1, Ordering::SeqCst);
            if way == 0 {
                let mut stream = store.stream(&at, ..).await.unwrap();
                while let Some(piece) = stream.next().await {
                    piece.unwrap();
                    begin();
                    tokio::task::yield_now().await;
                    end();
                }
            } else {
                let mut writer = store.upload(&id(&format!("blob-{i}")), Expect::new()).await.unwrap();
                begin();
                writer.write(Bytes::from(image(1000))).await.unwrap();
                tokio::task::yield_now().await;
                end();
                writer.finish().await.unwrap();
            }
        })
    });
    for transfer in futures::future::join_all(transfers).await {
        transfer.unwrap();
    }
    assert!(most.iter().all(|most| most.load(Ordering::SeqCst) <= 2), "{most:?}");

    // Neither dropped writers nor dropped streams keep their turn.
    for _ in 0..2 {
        let one = store.upload(&id("x"), Expect::new()).await.unwrap();
        let two = store.upload(&id("y"), Expect::new()).await.unwrap();
        assert!(store.upload(&id("z"), Expect::new()).now_or_never().is_none());
        let mut streams = [store.stream(&at, ..).await.unwrap(), store.stream(&at, ..).await.unwrap()];
        for stream in &mut streams {
            stream.next().await.unwrap().unwrap();
        }
        assert!(store.stream(&at, ..).await.unwrap().next().now_or_never().is_none());
        drop((one, two, streams));
        store.settle().await;
    }
}

#[tokio::test]
async fn copies_within_a_store_do_not_wait_for_themselves() {
    let backend = Faulty::new();
    let store = backend.store(|options| options.max_transfers = Some(1));
    let at = put(&store, 3_000_000).await;
    let copies = (0..5).map(|i| {
        let (store, at) = (store.clone(), at.clone());
        tokio::spawn(async move { store.copy_to(&at, &store, &id(&format!("copy-{i}")), |_| {}).await })
    });
    for copy in futures::future::join_all(copies).await {
        assert_eq!(copy.unwrap().unwrap().meta.size, 3_000_000);
    }
}

#[tokio::test]
async fn a_read_only_store_refuses_all_that_writes() {
    let backend = Faulty::new();
    let at = put(&backend.store(|_| ()), 10).await;
    let store = backend.store(|options| options.read_only = true);
    assert!(!store.info().can.write && !store.info().can.delete && store.info().can.list);
    for refused in [
        store.upload(&id("x"), Expect::new()).await.map(drop),
        store.delete(&at).await,
        store.sweep(Duration::ZERO).await.map(drop),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.hint().unwrap().contains("read_only"));
    }
    assert_eq!(store.get(&at, ..).await.unwrap().len(), 10);
}

#[test]
fn spans_tell_store_operation_and_blob() {
    use tracing_subscriber::fmt::format::FmtSpan;

    let log = tempfile::NamedTempFile::new().unwrap();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_span_events(FmtSpan::NEW | FmtSpan::CLOSE)
        .with_writer(Mutex::new(log.reopen().unwrap()))
        .with_ansi(false)
        .without_time()
        .finish();
    let lines = |part: &str| {
        let text = std::fs::read_to_string(log.path()).unwrap();
        text.lines().filter(|line| line.contains(part)).map(str::to_owned).collect::<Vec<_>>()
    };
    tracing::subscriber::with_default(subscriber, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let backend = Faulty::new();
            let store = backend.store(|_| ());
            let put = r#"imagestore{store="test" operation="put" blob=my-blob}: "#;
            let mut upload = store.upload(&id("my-blob"), Expect::new()).await.unwrap();
            upload.write(Bytes::from(image(5000))).await.unwrap();
            assert_eq!(lines(put).len(), 1, "a put that goes on: {:?}", lines(""));
            let at = upload.finish().await.unwrap().location;
            assert_eq!(lines(put).len(), 2, "a put that has ended: {:?}", lines(""));

            let read = format!(r#"imagestore{{store="test" operation="read" blob={at}}}: "#);
            let mut stream = store.stream(&at, ..).await.unwrap();
            stream.try_next().await.unwrap();
            assert_eq!(lines(&read).len(), 1, "a read that goes on: {:?}", lines(""));
            drop(stream);
            assert_eq!(lines(&read).len(), 2, "a read that has ended: {:?}", lines(""));
            // What a layer below has to tell of a call says of which.
            let delete = format!(r#"imagestore{{store="test" operation="delete" blob={at}}}: "#);
            backend.script("delete", &[Fault::Fail(ErrorKind::Unavailable)]);
            store.delete(&at).await.unwrap();
            assert!(lines(&delete).iter().any(|line| line.contains("trying again")), "{:?}", lines(""));
            assert!(!lines(&format!(r#"operation="open" blob={at}}}"#)).is_empty());
        });
    });
}

#[test]
fn metrics_count_operations_bytes_retries_and_failures() {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let backend = Faulty::new();
            let store = backend.store(|_| ());
            let pieces = [Chunk::Data(image(5000).into()), Chunk::Zeros(1 << 20)].map(Ok);
            let at = store.put(&id("blob"), stream::iter(pieces), Expect::new()).await.unwrap().location;
            backend.script("read", &[Fault::Break(100)]);
            store.get(&at, ..).await.unwrap();
            assert_eq!(kind(store.locate(&id("missing")).await), ErrorKind::NotFound);
            drop(store.upload(&id("dropped"), Expect::new()).await.unwrap());
            store.settle().await;
            // What no storage complains of: bytes that are not those announced.
            let expect = Expect::new().size(1000);
            let short = store.put(&id("short"), once("short"), expect).await;
            assert_eq!(kind(short), ErrorKind::Corrupt);
        });
    });
    let mut found = BTreeMap::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let mut labels: Vec<_> = key.key().labels().map(|label| label.value().to_owned()).collect();
        labels.sort();
        let value = match value {
            DebugValue::Counter(count) => count as i64,
            DebugValue::Gauge(value) => value.0 as i64,
            DebugValue::Histogram(samples) => samples.len() as i64,
        };
        found.insert(format!("{} {}", key.key().name(), labels.join(",")), value);
    }
    let value =
        |name: &str| found.get(name).copied().unwrap_or_else(|| panic!("{name} is not in {found:#?}"));
    assert_eq!(value("imagestore_operations_total ok,put,test"), 1);
    assert_eq!(value("imagestore_operations_total cancelled,put,test"), 2);
    assert_eq!(value("imagestore_errors_total corrupt,put,test"), 1);
    assert_eq!(value("imagestore_errors_total locate,not_found,test"), 1);
    assert_eq!(value("imagestore_operations_total locate,not_found,test"), 1);
    assert_eq!(value("imagestore_operations_total read,test,unavailable"), 1);
    assert_eq!(value("imagestore_operations_total ok,read,test"), 1);
    assert_eq!(value("imagestore_retries_total read,test"), 1);
    assert_eq!(value("imagestore_operation_seconds read,test"), 2);
    assert_eq!(value("imagestore_in_flight put,test"), 0);
    assert_eq!(value("imagestore_in_flight read,test"), 0);
    // Zeros count as zeros where they are stored as such: all but the odd ends of the run.
    let zeros = value("imagestore_bytes_total in,test,zeros");
    assert_eq!(value("imagestore_bytes_total data,in,test") + zeros, 5000 + 5 + (1 << 20));
    assert!(zeros >= (1 << 20) - 2 * 4096, "{zeros}");
    let out = value("imagestore_bytes_total data,out,test") + value("imagestore_bytes_total out,test,zeros");
    assert_eq!(out, 5000 + (1 << 20));
}
