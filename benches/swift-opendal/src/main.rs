//! Puts a file into Swift and gets it back, with OpenDAL; `benches/swift` measures it.
//!
//! `swift-opendal put FILE OBJECT` · `swift-opendal get OBJECT FILE`, with `ENDPOINT`, `TOKEN` and `CONTAINER` in the
//! environment: it asks for no tokens itself.

use std::io::ErrorKind;

use anyhow::{Context, Result, bail};
use opendal::{Operator, services::Swift};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// As large as those of the others that are measured.
const SEGMENT: usize = 64_000 * 1024;
/// As many requests at once as imagestore has.
const CONCURRENT: usize = 4;

#[tokio::main]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let env = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
    let service =
        Swift::default().endpoint(&env("ENDPOINT")?).token(&env("TOKEN")?).container(&env("CONTAINER")?);
    let operator = Operator::new(service)?;
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["put", file, object] => put(&operator, file, object).await,
        ["get", object, file] => get(&operator, object, file).await,
        _ => bail!("usage: swift-opendal put FILE OBJECT | get OBJECT FILE"),
    }
}

async fn put(operator: &Operator, file: &str, object: &str) -> Result<()> {
    let mut file = tokio::fs::File::open(file).await?;
    let mut writer = operator.writer_with(object).chunk(SEGMENT).concurrent(CONCURRENT).await?;
    loop {
        let mut piece = vec![0; 2 << 20];
        let mut filled = 0;
        while filled < piece.len() {
            match file.read(&mut piece[filled..]).await {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if filled == 0 {
            break;
        }
        piece.truncate(filled);
        writer.write(piece).await?;
    }
    writer.close().await?;
    Ok(())
}

async fn get(operator: &Operator, object: &str, file: &str) -> Result<()> {
    let size = operator.stat(object).await?.content_length();
    let reader = operator.reader_with(object).chunk(8 << 20).concurrent(CONCURRENT).await?;
    let mut stream = reader.into_stream(0..size).await?;
    let mut file = tokio::fs::File::create(file).await?;
    while let Some(buffer) = futures::TryStreamExt::try_next(&mut stream).await? {
        for bytes in buffer {
            file.write_all(&bytes).await?;
        }
    }
    file.flush().await?;
    Ok(())
}
