//! What programs expect that speak `object_store`: its own integration tests, over our stores.

#![allow(clippy::unwrap_used, reason = "a test panics where its own set-up fails")]

use std::sync::Arc;

use object_store::{integration, memory::InMemory};
use store_core::{Backend, MemoryBackend, Options, Settings, Store};
use store_object::{ObjectBackend, StoreObjects};

fn objects(backend: Arc<dyn Backend>) -> StoreObjects {
    StoreObjects::new(Store::new("a", backend, Options::default())).unwrap()
}

async fn all(backend: Arc<dyn Backend>) {
    let objects = objects(backend);
    integration::put_get_delete_list(&objects).await;
    integration::list_uses_directories_correctly(&objects).await;
    integration::list_with_delimiter(&objects).await;
    integration::rename_and_copy(&objects).await;
    integration::copy_if_not_exists(&objects).await;
    integration::copy_rename_nonexistent_object(&objects).await;
    // This one starts with a look that nothing is there, and so before those that leave something.
    integration::stream_get(&objects).await;
    integration::get_opts(&objects).await;
    integration::put_opts(&objects, false).await;
    integration::put_get_attributes(&objects).await;
    integration::multipart_race_condition(&objects, false).await;
    integration::multipart_out_of_order(&objects).await;
}

async fn listing(backend: Arc<dyn Backend>) {
    integration::list_with_offset_exclusivity(&objects(backend)).await;
}

#[tokio::test]
async fn over_memory() {
    all(MemoryBackend::shared()).await;
    listing(MemoryBackend::shared()).await;
}

#[tokio::test]
async fn over_files() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("[stores.a]\ntype = 'fs'\npath = {:?}", folder.path());
    let settings = Settings::parse(&text).unwrap();
    let config: store_fs::FsConfig = settings.section("a").unwrap().backend().unwrap();
    all(store_core::Config::connect(config, "a").await.unwrap()).await;
}

/// Once around: objects over a store over objects.
#[tokio::test]
async fn over_objects() {
    let backend = ObjectBackend::new(Arc::new(InMemory::new()), "images".into(), "test").await.unwrap();
    all(Arc::new(backend)).await;
}
