//! A server that answers by a script: what no real one does, but a proxy before it may.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Answers each request by its first line, with a status, headers and a body; on the runtime of its test.
#[derive(Debug)]
pub(crate) struct Scripted {
    pub(crate) addr: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

/// Status and headers, each with its end of line, and the body.
pub(crate) type Answer = (String, Vec<u8>);

/// An answer with a body.
pub(crate) fn answer(status: u16, headers: &str, body: impl Into<Vec<u8>>) -> Answer {
    let body = body.into();
    (format!("HTTP/1.1 {status} Said\r\ncontent-length: {}\r\n{headers}\r\n", body.len()), body)
}

impl Scripted {
    pub(crate) async fn start(script: fn(&str) -> Answer) -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|e| e.to_string())?;
        let addr = listener.local_addr().map_err(|e| e.to_string())?;
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let shared = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let _ = serve(client, script, &shared).await; // The client has gone away.
                });
            }
        });
        Ok(Self { addr, requests })
    }

    /// The first lines of the requests so far that begin with that.
    pub(crate) fn requests(&self, start: &str) -> Vec<String> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().filter(|line| line.starts_with(start)).cloned().collect()
    }
}

/// None of the requests has a body.
async fn serve(
    mut client: TcpStream,
    script: fn(&str) -> Answer,
    requests: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    loop {
        head.push(client.read_u8().await?);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8_lossy(&std::mem::take(&mut head)).into_owned();
        let line = text.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
        let (head, body) = script(&line);
        requests.lock().unwrap_or_else(PoisonError::into_inner).push(line.clone());
        client.write_all(head.as_bytes()).await?;
        if !line.starts_with("HEAD ") {
            client.write_all(&body).await?;
        }
    }
}
