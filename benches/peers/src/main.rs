//! `peers LIBRARY put|get FILE`: one transfer with object_store or OpenDAL, as their documentation does it, with parts of
//! 8 MiB, four at once. The bucket is that of the variables S3_ENDPOINT, S3_REGION, S3_BUCKET, S3_ACCESS_KEY, S3_SECRET_KEY.
//!
//! `peers delay ADDRESS MILLISECONDS`: a way to that address whose round trips take so much longer; prints where it is.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use object_store::{ObjectStoreExt, WriteMultipart, aws::AmazonS3Builder};
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

const PART: usize = 8 << 20;
const AT_ONCE: usize = 4;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [library, what, path] = &arguments[..] else { bail!("peers LIBRARY put|get FILE") };
    match (library.as_str(), what.as_str()) {
        ("object_store", "put") => object_store_put(path).await,
        ("object_store", "get") => object_store_get(path).await,
        ("opendal", "put") => opendal_put(path).await,
        ("opendal", "get") => opendal_get(path).await,
        ("delay", address) => delay(address, Duration::from_millis(path.parse()?)).await,
        _ => bail!("peers LIBRARY put|get FILE"),
    }
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| name.to_owned())
}

/// The next part of a file; empty at its end.
async fn part(file: &mut File) -> Result<Bytes> {
    let mut part = BytesMut::with_capacity(PART);
    while part.len() < PART && file.read_buf(&mut part).await? > 0 {}
    Ok(part.freeze())
}

async fn save<E: std::error::Error + Send + Sync + 'static>(
    path: &str,
    stream: impl futures::Stream<Item = Result<Bytes, E>>,
) -> Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).await?);
    futures::pin_mut!(stream);
    while let Some(bytes) = stream.try_next().await? {
        file.write_all(&bytes).await?;
    }
    Ok(file.flush().await?)
}

fn object_store() -> Result<object_store::aws::AmazonS3> {
    Ok(AmazonS3Builder::new()
        .with_endpoint(variable("S3_ENDPOINT")?)
        .with_allow_http(true)
        .with_region(variable("S3_REGION")?)
        .with_bucket_name(variable("S3_BUCKET")?)
        .with_access_key_id(variable("S3_ACCESS_KEY")?)
        .with_secret_access_key(variable("S3_SECRET_KEY")?)
        .build()?)
}

async fn object_store_put(path: &str) -> Result<()> {
    let upload = object_store()?.put_multipart(&"object_store".into()).await?;
    let mut write = WriteMultipart::new_with_chunk_size(upload, PART);
    let mut file = File::open(path).await?;
    loop {
        let part = part(&mut file).await?;
        if part.is_empty() {
            break;
        }
        write.wait_for_capacity(AT_ONCE).await?;
        write.put(part);
    }
    write.finish().await?;
    Ok(())
}

async fn object_store_get(path: &str) -> Result<()> {
    save(path, object_store()?.get(&"object_store".into()).await?.into_stream()).await
}

fn opendal() -> Result<opendal::Operator> {
    let s3 = opendal::services::S3::default()
        .endpoint(&variable("S3_ENDPOINT")?)
        .region(&variable("S3_REGION")?)
        .bucket(&variable("S3_BUCKET")?)
        .access_key_id(&variable("S3_ACCESS_KEY")?)
        .secret_access_key(&variable("S3_SECRET_KEY")?);
    Ok(opendal::Operator::new(s3)?)
}

async fn opendal_put(path: &str) -> Result<()> {
    let mut write = opendal()?.writer_with("opendal").chunk(PART).concurrent(AT_ONCE).await?;
    let mut file = File::open(path).await?;
    loop {
        let part = part(&mut file).await?;
        if part.is_empty() {
            break;
        }
        write.write(part).await?;
    }
    write.close().await?;
    Ok(())
}

async fn opendal_get(path: &str) -> Result<()> {
    let read = opendal()?.reader_with("opendal").chunk(PART).concurrent(AT_ONCE).await?;
    save(path, read.into_bytes_stream(..).await?).await
}

/// Half of the delay on each way, and all of it once when a connection is made.
async fn delay(address: &str, delay: Duration) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (client, _) = listener.accept().await?;
        let address = address.to_owned();
        tokio::spawn(async move {
            sleep(delay).await;
            let server = TcpStream::connect(address).await?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            tokio::spawn(later(from_client, to_server, delay / 2));
            later(from_server, to_client, delay / 2).await
        });
    }
}

/// Passes on what comes, each piece so much later.
async fn later(
    mut from: impl AsyncRead + Unpin + Send + 'static,
    mut to: impl AsyncWrite + Unpin,
    delay: Duration,
) -> Result<()> {
    let (queue, mut due) = mpsc::channel::<(Instant, Bytes)>(256);
    tokio::spawn(async move {
        let mut piece = BytesMut::new();
        loop {
            piece.reserve(64 << 10);
            if from.read_buf(&mut piece).await.unwrap_or(0) == 0 {
                break;
            }
            if queue.send((Instant::now() + delay, piece.split().freeze())).await.is_err() {
                break;
            }
        }
    });
    while let Some((time, bytes)) = due.recv().await {
        sleep_until(time).await;
        to.write_all(&bytes).await?;
    }
    Ok(to.shutdown().await?)
}
