//! Puts a file into a filesystem store and reads it back: `put_get DIRECTORY FILE`.

use std::sync::Arc;

use futures::TryStreamExt;
use store_core::{BlobId, Expect, Options, Store, buffer::Pool, file};
use store_fs::{FsBackend, FsConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(directory), Some(path)) = (arguments.next(), arguments.next()) else {
        return Err("usage: put_get DIRECTORY FILE".into());
    };
    let store =
        Store::new("local", Arc::new(FsBackend::open(&FsConfig::new(directory))?), Options::default());

    let source = Arc::new(std::fs::File::open(path)?);
    let size = source.metadata()?.len();
    let chunks = file::read(source, 0..size, Pool::new(store.info().chunk, 8));
    let start = std::time::Instant::now();
    let blob = store.put(&BlobId::random(), chunks, Expect::new().size(size)).await?;
    println!("{} {:?} {:?}", blob.location, blob.meta.digests, start.elapsed());

    let start = std::time::Instant::now();
    let read: u64 = store
        .stream(&blob.location, ..)
        .await?
        .map_ok(|bytes| bytes.len() as u64)
        .try_fold(0, |sum, len| async move { Ok(sum + len) })
        .await?;
    println!("{read} bytes came back {:?}", start.elapsed());
    store.delete(&blob.location).await?;
    Ok(())
}
