//! The storage of the example: a small server in this process, reached over TCP like any other.
//!
//! A request is a line of JSON and as many bytes as its `len` says; so is a reply. Every request may be repeated.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

const CAPACITY: u64 = 1 << 30;

#[derive(Default)]
struct Disk {
    blobs: BTreeMap<String, Blob>,
    staged: BTreeMap<String, Staged>,
    /// Uploads that were aborted: what of them is still under way comes too late.
    dead: BTreeSet<String>,
}

struct Blob {
    ticket: String,
    meta: Value,
    bytes: Arc<Vec<u8>>,
}

struct Staged {
    id: String,
    bytes: Vec<u8>,
    touched: Instant,
}

/// Starts a server that lives as long as the runtime.
pub(crate) async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let addr = listener.local_addr().expect("it has an address");
    let disk = Arc::new(Mutex::new(Disk::default()));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let disk = Arc::clone(&disk);
            // A client that is gone is none of the server's business.
            tokio::spawn(async move { drop(serve(client, &disk).await) });
        }
    });
    addr
}

async fn serve(client: TcpStream, disk: &Mutex<Disk>) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    let mut line = String::new();
    while client.read_line(&mut line).await? > 0 {
        let request: Value = serde_json::from_str(&line)?;
        let mut body = vec![0; request["len"].as_u64().unwrap_or(0) as usize];
        client.read_exact(&mut body).await?;
        let reply = disk.lock().unwrap_or_else(PoisonError::into_inner).answer(&request, body);
        let (mut head, blob) = reply.unwrap_or_else(|error| (json!({ "error": error }), None));
        let range = blob.as_ref().map_or(0..0, |_| number(&request, "from")..number(&request, "to"));
        head["len"] = json!(range.end - range.start);
        client.get_mut().write_all(format!("{head}\n").as_bytes()).await?;
        if let Some(blob) = blob {
            client.get_mut().write_all(&blob[range.start as usize..range.end as usize]).await?;
        }
        line.clear();
    }
    Ok(())
}

fn text<'a>(request: &'a Value, key: &str) -> &'a str {
    request[key].as_str().unwrap_or_default()
}

fn number(request: &Value, key: &str) -> u64 {
    request[key].as_u64().unwrap_or_default()
}

type Reply = Result<(Value, Option<Arc<Vec<u8>>>), &'static str>;

impl Disk {
    fn used(&self) -> u64 {
        let blobs = self.blobs.values().map(|blob| blob.bytes.len());
        blobs.chain(self.staged.values().map(|staged| staged.bytes.len())).sum::<usize>() as u64
    }

    fn answer(&mut self, request: &Value, body: Vec<u8>) -> Reply {
        let (id, ticket) = (text(request, "id"), text(request, "ticket"));
        let yes = || Ok((json!({}), None));
        if self.dead.contains(ticket) && text(request, "op") != "abort" {
            return Err("not_found");
        }
        match text(request, "op") {
            "begin" if self.blobs.get(id).is_some_and(|blob| blob.ticket != ticket) => Err("already_exists"),
            "begin" if number(request, "size") > CAPACITY - self.used() => Err("no_space"),
            "begin" => {
                let staged = || Staged { id: id.to_owned(), bytes: Vec::new(), touched: Instant::now() };
                self.staged.entry(ticket.to_owned()).or_insert_with(staged);
                yes()
            }
            "write" => {
                let room = CAPACITY - self.used();
                let staged = self.staged.get_mut(ticket).ok_or("not_found")?;
                // A part that came before comes again at the same place.
                staged.bytes.truncate(number(request, "from") as usize);
                if body.len() as u64 > room {
                    return Err("no_space");
                }
                staged.bytes.extend(body);
                staged.touched = Instant::now();
                yes()
            }
            "commit" => {
                if let Some(blob) = self.blobs.get(id) {
                    return if blob.ticket == ticket { yes() } else { Err("already_exists") };
                }
                let staged = self.staged.remove(ticket).ok_or("not_found")?;
                let (meta, bytes) = (request["meta"].clone(), Arc::new(staged.bytes));
                self.blobs.insert(staged.id, Blob { ticket: ticket.to_owned(), meta, bytes });
                yes()
            }
            "abort" => {
                self.staged.remove(ticket);
                self.blobs.retain(|_, blob| blob.ticket != ticket);
                self.dead.insert(ticket.to_owned());
                yes()
            }
            "stat" | "read" => {
                let blob = self.blobs.get(id).ok_or("not_found")?;
                if !ticket.is_empty() && blob.ticket != ticket {
                    return Err("not_found");
                }
                let head = json!({ "size": blob.bytes.len(), "ticket": blob.ticket, "meta": blob.meta });
                Ok((head, (text(request, "op") == "read").then(|| Arc::clone(&blob.bytes))))
            }
            "delete" => self.blobs.remove(id).map(|_| (json!({}), None)).ok_or("not_found"),
            "list" => {
                let after =
                    self.blobs.range::<str, _>((std::ops::Bound::Excluded(id), std::ops::Bound::Unbounded));
                let page: Vec<Value> = after.take(100).map(|(id, b)| json!([id, b.bytes.len()])).collect();
                Ok((json!({ "page": page }), None))
            }
            "sweep" => {
                let age = Duration::from_millis(number(request, "age"));
                let before = self.staged.len();
                self.staged.retain(|_, staged| staged.touched.elapsed() < age);
                Ok((json!({ "uploads": before - self.staged.len() }), None))
            }
            "capacity" => Ok((json!({ "total": CAPACITY, "free": CAPACITY - self.used() }), None)),
            _ => Err("invalid"),
        }
    }
}
