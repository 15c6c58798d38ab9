//! `peers LIBRARY put|get FILE`: one transfer with a library of others, as its documentation does it, four requests at once.
//! The object is named after the library, which is one of
//!
//! `object_store`, `opendal-s3`: with parts of 8 MiB; the variables are S3_ENDPOINT, S3_REGION, S3_BUCKET, S3_ACCESS_KEY and
//! S3_SECRET_KEY;
//!
//! `opendal-swift`: with segments of 64,000 KiB; the variables are SWIFT_ENDPOINT, SWIFT_TOKEN and SWIFT_CONTAINER, since it asks
//! for no tokens itself.

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use object_store::{ObjectStoreExt, WriteMultipart, aws::AmazonS3Builder};
use opendal::{
    Operator,
    services::{S3, Swift},
};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncWriteExt, BufWriter},
};

const PART: usize = 8 << 20;
const AT_ONCE: usize = 4;

/// As large as those of the others that are measured on Swift.
const SEGMENT: usize = 64_000 << 10;

#[tokio::main]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["object_store", "put", path] => object_store_put(path).await,
        ["object_store", "get", path] => object_store_get(path).await,
        [library @ "opendal-s3", "put", path] => opendal_put(&opendal_s3()?, library, PART, path).await,
        [library @ "opendal-s3", "get", path] => opendal_get(&opendal_s3()?, library, path).await,
        [library @ "opendal-swift", "put", path] => opendal_put(&opendal_swift()?, library, SEGMENT, path).await,
        [library @ "opendal-swift", "get", path] => opendal_get(&opendal_swift()?, library, path).await,
        _ => bail!("usage: peers object_store|opendal-s3|opendal-swift put|get FILE"),
    }
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| name.to_owned())
}

/// The next piece of a file; empty at its end.
async fn piece(file: &mut File) -> Result<Bytes> {
    let mut piece = BytesMut::with_capacity(PART);
    while piece.len() < PART && file.read_buf(&mut piece).await? > 0 {}
    Ok(piece.freeze())
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
        let part = piece(&mut file).await?;
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

fn opendal_s3() -> Result<Operator> {
    let s3 = S3::default()
        .endpoint(&variable("S3_ENDPOINT")?)
        .region(&variable("S3_REGION")?)
        .bucket(&variable("S3_BUCKET")?)
        .access_key_id(&variable("S3_ACCESS_KEY")?)
        .secret_access_key(&variable("S3_SECRET_KEY")?);
    Ok(Operator::new(s3)?)
}

fn opendal_swift() -> Result<Operator> {
    let swift = Swift::default()
        .endpoint(&variable("SWIFT_ENDPOINT")?)
        .token(&variable("SWIFT_TOKEN")?)
        .container(&variable("SWIFT_CONTAINER")?);
    Ok(Operator::new(swift)?)
}

async fn opendal_put(operator: &Operator, object: &str, part: usize, path: &str) -> Result<()> {
    let mut write = operator.writer_with(object).chunk(part).concurrent(AT_ONCE).await?;
    let mut file = File::open(path).await?;
    loop {
        let piece = piece(&mut file).await?;
        if piece.is_empty() {
            break;
        }
        write.write(piece).await?;
    }
    write.close().await?;
    Ok(())
}

async fn opendal_get(operator: &Operator, object: &str, path: &str) -> Result<()> {
    let read = operator.reader_with(object).chunk(PART).concurrent(AT_ONCE).await?;
    save(path, read.into_bytes_stream(..).await?).await
}
