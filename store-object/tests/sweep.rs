//! A sweep that is told too short an age, in the middle of a commit: the upload fails, and no blob is there without its bytes.

#![allow(clippy::unwrap_used, reason = "a test panics where its own set-up fails")]

use std::{
    fs::File,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::TryStreamExt;
use object_store::{
    ObjectStore, ObjectStoreExt, PutPayload,
    local::LocalFileSystem,
    memory::InMemory,
    throttle::{ThrottleConfig, ThrottledStore},
};
use store_core::{Backend, BlobId, ErrorKind, Expect, Options, Store, once};
use store_object::ObjectBackend;

async fn store(objects: Arc<dyn ObjectStore>) -> Store {
    let backend = ObjectBackend::new(objects, "images".into(), "test/images").await.unwrap();
    Store::new("a", Arc::new(backend) as Arc<dyn Backend>, Options::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_swept_keeps_nothing() {
    let objects = Arc::new(InMemory::new());
    let pause = Duration::from_millis(200);
    let slow = ThrottleConfig { wait_put_per_call: pause, ..ThrottleConfig::default() };
    let slow = store(Arc::new(ThrottledStore::new(InMemory::clone(&objects), slow))).await;
    let quick = store(Arc::<InMemory>::clone(&objects)).await;
    let id: BlobId = "blob".parse().unwrap();

    // At each moment of the upload: its mark, its data and its note take a pause each.
    for step in 0..14 {
        let put = async { slow.put(&id, once("an image"), Expect::new()).await };
        let sweep = async {
            tokio::time::sleep(pause / 4 * step).await;
            quick.sweep(Duration::ZERO).await.unwrap()
        };
        let (put, _) = tokio::join!(put, sweep);
        match put {
            Ok(blob) => {
                assert_eq!(quick.get(&blob.location, ..).await.unwrap(), "an image", "step {step}");
                quick.verify(&blob.location, |_| {}).await.unwrap();
                quick.delete(&blob.location).await.unwrap();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "step {step}: {error}"),
        }
        slow.settle().await;
        let left: Vec<_> = objects.list(None).try_collect().await.unwrap();
        assert!(left.is_empty(), "step {step}: {left:?}");
    }
}

/// Files that are copied within a folder keep the time of their source; other storages give that of the upload's beginning.
#[tokio::test]
async fn data_that_look_old_are_spared_while_their_upload_is_young() {
    let folder = tempfile::tempdir().unwrap();
    let objects: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
    let store = store(Arc::clone(&objects)).await;
    let token = "0123456789abcdef0123456789abcdef";
    let (data, mark) = (format!("images/data/blob.{token}"), format!("images/upload/blob.{token}"));
    for path in [&data, &mark] {
        objects.put(&path.as_str().into(), PutPayload::from("an image")).await.unwrap();
    }
    let old = SystemTime::now() - Duration::from_secs(30 * 86400);
    let age =
        |path: &str| File::options().write(true).open(folder.path().join(path)).unwrap().set_modified(old);
    age(&data).unwrap();
    let day = Duration::from_secs(86400);
    assert_eq!(store.sweep(day).await.unwrap().uploads, 0);
    assert!(folder.path().join(&data).exists());

    // Its process is gone.
    age(&mark).unwrap();
    assert_eq!(store.sweep(day).await.unwrap().uploads, 1);
    assert!(!folder.path().join(&data).exists() && !folder.path().join(&mark).exists());
}
