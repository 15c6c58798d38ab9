//! Puts a file into a filesystem store and saves it again: `put_get DIRECTORY FILE COPY`.

use std::{fs::File, sync::Arc};

use store_core::{BlobId, Expect, Options, Store};
use store_fs::{FsBackend, FsConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(directory), Some(path), Some(copy)) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: put_get DIRECTORY FILE COPY".into());
    };
    let store =
        Store::new("local", Arc::new(FsBackend::open(&FsConfig::new(directory))?), Options::default());

    let source = Arc::new(File::open(path)?);
    let blob = store.put_file(&BlobId::random(), source, Expect::new(), |_| {}).await?;
    println!("{} bytes at {}", blob.meta.size, blob.location);

    let target = Arc::new(File::create_new(copy)?);
    store.open(&blob.location).await?.save(target, |_| {}).await?;
    store.delete(&blob.location).await?;
    Ok(())
}
