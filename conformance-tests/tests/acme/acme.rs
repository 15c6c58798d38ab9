//! A backend for the server of the example, as a third party writes one.

use std::{fs::File, net::SocketAddr, ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use serde_json::{Value, json};
use store_core::{
    Backend, BlobId, Capacity, Chunk, ChunkStream, Download, Entry, Error, ErrorKind, Info, Location, Meta,
    Result, Secret, SizeHint, Stat, Swept, Upload,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

#[derive(Clone, Debug)]
pub(crate) struct Acme {
    addr: SocketAddr,
    info: Arc<Info>,
}

impl Acme {
    pub(crate) fn new(addr: SocketAddr) -> Self {
        let mut info = Info::new("acme");
        info.can.write = true;
        info.can.delete = true;
        info.can.list = true;
        info.can.capacity = true;
        info.can.metadata = true;
        info.can.atomic_create = true;
        info.can.staging = true;
        Self { addr, info: Arc::new(info) }
    }

    /// One request on a connection of its own; the connection, when its reply has more than a head.
    async fn ask_once(&self, request: &Value, body: &[u8]) -> Result<(Value, BufReader<TcpStream>)> {
        let sent = async {
            let mut server = BufReader::new(TcpStream::connect(self.addr).await?);
            let mut request = request.clone();
            request["len"] = json!(body.len());
            server.get_mut().write_all(format!("{request}\n").as_bytes()).await?;
            server.get_mut().write_all(body).await?;
            let mut reply = String::new();
            server.read_line(&mut reply).await?;
            Ok((serde_json::from_str::<Value>(&reply)?, server))
        };
        let (reply, server) = sent.await.map_err(broken)?;
        match reply["error"].as_str() {
            None => Ok((reply, server)),
            Some(word) => {
                let kind = ErrorKind::ALL.into_iter().find(|kind| kind.as_str() == word);
                Err(Error::new(kind.unwrap_or(ErrorKind::Internal), "the acme server refuses"))
            }
        }
    }

    /// A request that may be repeated, and is, once.
    async fn ask(&self, request: Value, body: &[u8]) -> Result<Value> {
        match self.ask_once(&request, body).await {
            Err(error) if error.is_retryable() => Ok(self.ask_once(&request, body).await?.0),
            outcome => Ok(outcome?.0),
        }
    }
}

fn broken(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "the acme server does not answer").with_source(error)
}

fn number(reply: &Value, key: &str) -> u64 {
    reply[key].as_u64().unwrap_or_default()
}

fn location(id: &BlobId) -> Result<Location> {
    format!("acme://{id}").parse()
}

fn id_of(at: &Location) -> Result<BlobId> {
    let id = at.rest().strip_prefix("//").and_then(|id| id.parse().ok());
    id.ok_or_else(|| Error::new(ErrorKind::Invalid, "an acme location is acme://ID"))
}

#[async_trait]
impl Backend for Acme {
    fn info(&self) -> &Info {
        &self.info
    }

    async fn begin(&self, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        let upload = AcmeUpload {
            acme: self.clone(),
            id: id.clone(),
            ticket: BlobId::random().to_string(),
            written: 0,
            begun: false,
        };
        // If this future is dropped, or the reply lost, the drop of the upload undoes what the server may have done.
        let begin =
            json!({ "op": "begin", "id": id.as_str(), "ticket": upload.ticket, "size": size.needed() });
        let mut upload = Box::new(upload);
        self.ask(begin, b"").await?;
        upload.begun = true;
        Ok(upload)
    }

    async fn locate(&self, id: &BlobId) -> Result<Location> {
        self.ask(json!({ "op": "stat", "id": id.as_str() }), b"").await?;
        location(id)
    }

    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>> {
        let id = id_of(at)?;
        let reply = self.ask(json!({ "op": "stat", "id": id.as_str() }), b"").await?;
        let mut stat = Stat::new(number(&reply, "size"));
        stat.meta = Some(Meta::from_json(reply["meta"].to_string().as_bytes())?);
        let ticket = reply["ticket"].as_str().unwrap_or_default().to_owned();
        Ok(Arc::new(AcmeDownload { acme: self.clone(), id, ticket, stat }))
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        // Not repeated here: whether a second answer of "not found" is one is not for the driver to know.
        self.ask_once(&json!({ "op": "delete", "id": id_of(at)?.as_str() }), b"").await.map(drop)
    }

    fn list(&self) -> BoxStream<'_, Result<Entry>> {
        let pages = stream::try_unfold(Some(String::new()), move |after| async move {
            let Some(after) = after else { return Ok(None) };
            let reply = self.ask(json!({ "op": "list", "id": after }), b"").await?;
            let page = reply["page"].as_array().cloned().unwrap_or_default();
            let next = page.last().and_then(|last| last[0].as_str()).map(str::to_owned);
            Ok::<_, Error>(Some((page, next)))
        });
        let entry = |found: Value| {
            let id: BlobId = found[0].as_str().unwrap_or_default().parse()?;
            Ok(Entry::new(id.clone(), location(&id)?, found[1].as_u64().unwrap_or_default()))
        };
        pages.map_ok(move |page| stream::iter(page.into_iter().map(entry))).try_flatten().boxed()
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        let reply = self.ask(json!({ "op": "sweep", "age": age.as_millis() as u64 }), b"").await?;
        Ok(Swept { uploads: number(&reply, "uploads"), bytes: 0 })
    }

    async fn capacity(&self) -> Result<Capacity> {
        let reply = self.ask(json!({ "op": "capacity" }), b"").await?;
        Ok(Capacity { total: number(&reply, "total"), free: number(&reply, "free") })
    }

    async fn presign(&self, _: &Location, _: Duration) -> Result<Secret> {
        Err(Error::unsupported("URLs for its blobs"))
    }
}

struct AcmeUpload {
    acme: Acme,
    id: BlobId,
    ticket: String,
    written: u64,
    begun: bool,
}

impl AcmeUpload {
    fn request(&self, op: &str) -> Value {
        json!({ "op": op, "id": self.id.as_str(), "ticket": self.ticket, "from": self.written })
    }
}

impl Drop for AcmeUpload {
    fn drop(&mut self) {
        if !self.begun {
            let (acme, abort) = (self.acme.clone(), self.request("abort"));
            tokio::spawn(async move { drop(acme.ask(abort, b"").await) });
        }
    }
}

#[async_trait]
impl Upload for AcmeUpload {
    async fn write(&mut self, chunk: Chunk) -> Result<()> {
        for bytes in chunk.into_bytes() {
            self.acme.ask(self.request("write"), &bytes).await?;
            self.written += bytes.len() as u64;
        }
        Ok(())
    }

    async fn adopt(&mut self, _: &Arc<File>) -> Result<Option<Arc<File>>> {
        Ok(None)
    }

    async fn copy(&mut self, _: &Location, _: u64) -> Result<()> {
        Err(Error::unsupported("copying within the storage"))
    }

    async fn commit(&mut self, meta: &Meta) -> Result<Location> {
        let mut commit = self.request("commit");
        commit["meta"] = serde_json::from_str(&meta.to_json()).unwrap_or_default();
        self.acme.ask(commit, b"").await?;
        location(&self.id)
    }

    async fn abort(&mut self) -> Result<()> {
        self.acme.ask(self.request("abort"), b"").await.map(drop)
    }
}

#[derive(Debug)]
struct AcmeDownload {
    acme: Acme,
    id: BlobId,
    ticket: String,
    stat: Stat,
}

#[async_trait]
impl Download for AcmeDownload {
    fn stat(&self) -> &Stat {
        &self.stat
    }

    async fn read(&self, range: Range<u64>) -> Result<ChunkStream> {
        let (from, to) = (range.start, range.end);
        let read =
            json!({ "op": "read", "id": self.id.as_str(), "ticket": self.ticket, "from": from, "to": to });
        let (reply, server) = self.acme.ask_once(&read, b"").await?;
        let chunks = stream::try_unfold((server, number(&reply, "len")), |(mut server, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let mut bytes = BytesMut::zeroed(left.min(1 << 18) as usize);
            let got = server.read(&mut bytes).await.map_err(broken)?;
            if got == 0 {
                return Err(broken(std::io::ErrorKind::UnexpectedEof.into()));
            }
            bytes.truncate(got);
            Ok(Some((Chunk::Data(Bytes::from(bytes)), (server, left - got as u64))))
        });
        Ok(chunks.boxed())
    }

    fn file(&self) -> Option<&Arc<File>> {
        None
    }
}
