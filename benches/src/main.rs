//! The parts of the benchmarks that are not a run of the `imagestore` command; `benches/run` measures them.
//!
//! `probe digest ALGORITHM BYTES` · `probe puts DIRECTORY COUNT BYTES` · `probe fill DIRECTORY COUNT` ·
//! `probe list DIRECTORY` · `probe far ADDRESS MILLISECONDS`

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::{TryStreamExt, stream};
use store_core::{Algorithm, Expect, Hasher, Inspect, Options, Store};
use store_fs::{FsBackend, FsConfig};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep_until},
};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["digest", algorithm, bytes] => digest(algorithm.parse()?, bytes.parse()?),
        ["puts", directory, count, bytes] => puts(directory, count.parse()?, bytes.parse()?),
        ["fill", directory, count] => fill(directory.as_ref(), count.parse()?),
        ["list", directory] => list(directory),
        ["far", address, millis] => far(address, Duration::from_millis(millis.parse()?)),
        _ => bail!(
            "usage: probe digest ALGORITHM BYTES | puts DIRECTORY COUNT BYTES | fill DIRECTORY COUNT | list DIRECTORY \
             | far ADDRESS MILLISECONDS"
        ),
    }
}

/// One digest alone, over memory that stays in the cache: the best that any pipeline could do.
fn digest(algorithm: Algorithm, bytes: u64) -> Result<()> {
    let buffer = noise(1 << 20);
    let mut hasher = Hasher::new(algorithm);
    for _ in 0..bytes.div_ceil(buffer.len() as u64) {
        hasher.update(&buffer);
    }
    println!("{}", hasher.finish().len());
    Ok(())
}

/// So many puts at once, each of so many bytes.
#[tokio::main]
async fn puts(directory: &str, count: u64, bytes: u64) -> Result<()> {
    let store = open(directory)?;
    let piece = Bytes::from(noise(1 << 20));
    let puts = (0..count).map(|i| {
        let (store, piece) = (store.clone(), piece.clone());
        tokio::spawn(async move {
            let pieces = (0..bytes).step_by(piece.len()).map(move |_| store_core::Result::Ok(piece.clone()));
            store.put(&format!("put-{i}").parse()?, stream::iter(pieces), Expect::new().size(bytes)).await
        })
    });
    for put in futures::future::join_all(puts).await {
        let blob = put??;
        store.delete(&blob.location).await?;
    }
    Ok(())
}

/// Small blobs for `list`, written past the store to save an hour of fsync.
fn fill(directory: &Path, count: u64) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    for i in 0..count {
        let path = directory.join(format!("{i:08x}-0000-4000-8000-000000000000"));
        std::fs::write(&path, b"image").with_context(|| path.display().to_string())?;
    }
    Ok(())
}

#[tokio::main]
async fn list(directory: &str) -> Result<()> {
    let count = open(directory)?.list().try_fold(0u64, async |count, _| Ok(count + 1)).await?;
    println!("{count}");
    Ok(())
}

/// A line to a server that answers so much later, with any number of bytes on their way. Prints where it begins.
#[tokio::main]
async fn far(address: &str, trip: Duration) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (client, _) = listener.accept().await?;
        let address = address.to_owned();
        tokio::spawn(async move {
            // A connection takes a trip of its own.
            sleep_until(Instant::now() + trip).await;
            let Ok(server) = TcpStream::connect(address).await else { return };
            // A delay of the line, and none of ours.
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::join!(later(from_client, to_server, trip / 2), later(from_server, to_client, trip / 2));
        });
    }
}

/// Passes on what comes, so much later.
async fn later(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) {
    // Pieces of at most 64 KiB: 16 MiB on their way, which is more than a line of 50 ms and 300 MB/s has.
    let (queue, mut pieces) = mpsc::channel::<(Instant, Bytes)>(256);
    let read = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(len @ 1..) = from.read(&mut buffer).await {
            if queue.send((Instant::now() + delay, Bytes::copy_from_slice(&buffer[..len]))).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = pieces.recv().await {
            sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await; // The other side may be gone.
    };
    tokio::join!(read, write);
}

fn open(directory: &str) -> Result<Store> {
    let mut options = Options::default();
    options.inspect = Inspect::Declared;
    Ok(Store::new("bench", Arc::new(FsBackend::open(&FsConfig::new(directory))?), options))
}

/// Bytes that no one compresses and no hole detection removes.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let words = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.flat_map(u64::to_le_bytes).take(len).collect()
}
