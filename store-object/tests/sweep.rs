//! A sweep that is told too short an age, in the middle of a commit: the upload fails, and no blob is there without its bytes.

#![allow(clippy::unwrap_used, reason = "a test panics where its own set-up fails")]

use std::{sync::Arc, time::Duration};

use futures::TryStreamExt;
use object_store::{
    ObjectStore,
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
