//! Wrong about themselves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use store_core::{
    BlobId, Capabilities, Capacity, Download, Entry, Error, ErrorKind, Info, Location, Result, Secret,
    SizeHint, Swept, Upload,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::{Inner, Twist, wrong};

wrong! {
    ClaimsAList => claims_a_list, caught by an_empty_storage_lists_nothing;
    Hides(|can| can.list = false) => hides_its_list, caught by a_list_that_is_not_declared_is_refused;
    ClaimsDeletion => claims_deletion, caught by deletion_that_is_declared_works;
    Hides(|can| can.delete = false) => hides_its_deletion, caught by deletion_that_is_not_declared_is_refused;
    ClaimsCapacity => claims_a_capacity, caught by a_capacity_that_is_declared_adds_up;
    Hides(|can| can.capacity = false) => hides_its_capacity, caught by a_capacity_that_is_not_declared_is_refused;
    Hides(|can| *can = Capabilities { list: true, ..Capabilities::default() }) => hides_its_uploads, caught by uploads_that_are_not_declared_are_refused;
    SignsNothing => signs_nothing, caught by a_url_gives_the_bytes_to_anybody;
    SignsForEver => signs_for_ever, caught by a_url_ends_when_its_time_is_over;
    SignsUnasked => signs_unasked, caught by a_url_that_is_not_declared_is_refused;
    SweepsUnasked => sweeps_without_uploads, caught by sweeps_without_uploads_find_nothing;
    Hides(|can| can.metadata = false) => hides_its_metadata, caught by metadata_that_is_not_kept_is_not_invented;
    Hides(|can| can.staging = false) => hides_its_staging, caught by a_forgotten_upload_vanishes_by_itself;
    Hides(|can| can.write = false) => stages_without_uploads, caught by what_it_says_of_itself_makes_sense;
    MoreFreeThanThereIs => more_free_than_there_is, caught by a_capacity_that_is_declared_adds_up;
    EndlessRoom => endless_room, caught by an_upload_that_cannot_fit_is_refused;
    ChangesItsMind::default() => changes_its_mind, caught by every_handle_says_the_same_of_itself;
    OddHoles => odd_holes, caught by what_it_says_of_itself_makes_sense;
}

/// On which nothing works.
#[derive(Debug)]
pub(super) struct Dead;

fn dead<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Internal, "dead"))
}

#[async_trait]
impl Twist for Dead {
    fn info(&self, info: &mut Info) {
        info.scheme = "Dead Scheme";
        info.chunk = 4096;
    }
    async fn begin(&self, _: &Inner, _: &BlobId, _: SizeHint) -> Result<Box<dyn Upload>> {
        dead()
    }
    async fn locate(&self, _: &Inner, _: &BlobId) -> Result<Location> {
        dead()
    }
    async fn open(&self, _: &Inner, _: &Location) -> Result<Arc<dyn Download>> {
        dead()
    }
    async fn delete(&self, _: &Inner, _: &Location) -> Result<()> {
        dead()
    }
    fn list<'a>(&'a self, _: &'a Inner) -> BoxStream<'a, Result<Entry>> {
        stream::iter([dead()]).boxed()
    }
    async fn sweep(&self, _: &Inner, _: Duration) -> Result<Swept> {
        dead()
    }
    async fn capacity(&self, inner: &Inner) -> Result<Capacity> {
        // The fixture asks, too.
        let Capacity { total, .. } = inner.capacity().await?;
        Ok(Capacity { total, free: 2 * total })
    }
    async fn presign(&self, _: &Inner, _: &Location, _: Duration) -> Result<Secret> {
        dead()
    }
}

/// Does something, and does not declare it.
struct Hides(fn(&mut Capabilities));

impl std::fmt::Debug for Hides {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hides")
    }
}

impl Twist for Hides {
    fn info(&self, info: &mut Info) {
        (self.0)(&mut info.can);
    }
}

#[derive(Debug)]
struct ClaimsAList;

impl Twist for ClaimsAList {
    fn list<'a>(&'a self, _: &'a Inner) -> BoxStream<'a, Result<Entry>> {
        stream::iter([Err(Error::unsupported("listing"))]).boxed()
    }
}

#[derive(Debug)]
struct ClaimsDeletion;

#[async_trait]
impl Twist for ClaimsDeletion {
    async fn delete(&self, _: &Inner, _: &Location) -> Result<()> {
        Err(Error::unsupported("deletion"))
    }
}

/// Declares a capacity, and knows none.
#[derive(Debug)]
struct ClaimsCapacity;

#[async_trait]
impl Twist for ClaimsCapacity {
    async fn capacity(&self, _: &Inner) -> Result<Capacity> {
        Ok(Capacity { total: 0, free: 0 })
    }
}

/// A URL at which nobody answers.
const NOWHERE: &str = "http://127.0.0.1:1/";

/// Declares URLs that lead nowhere.
#[derive(Debug)]
struct SignsNothing;

#[async_trait]
impl Twist for SignsNothing {
    fn info(&self, info: &mut Info) {
        info.can.presign = true;
    }

    async fn presign(&self, _: &Inner, _: &Location, _: Duration) -> Result<Secret> {
        Ok(Secret::new(NOWHERE))
    }
}

/// Serves the bytes, whenever.
#[derive(Debug)]
struct SignsForEver;

#[async_trait]
impl Twist for SignsForEver {
    fn info(&self, info: &mut Info) {
        info.can.presign = true;
    }

    async fn presign(&self, _: &Inner, _: &Location, _: Duration) -> Result<Secret> {
        let failed = |error| Error::from_io("cannot listen", error);
        let server = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let url = format!("http://{}/", server.local_addr().map_err(failed)?);
        tokio::spawn(async move {
            let (mut client, _) = server.accept().await?;
            let _request = client.read(&mut [0; 4096]).await?;
            client.write_all(b"HTTP/1.0 200 OK\r\n\r\nthe bytes").await
        });
        Ok(Secret::new(url))
    }
}

/// Has URLs, and does not declare them.
#[derive(Debug)]
struct SignsUnasked;

#[async_trait]
impl Twist for SignsUnasked {
    async fn presign(&self, _: &Inner, _: &Location, _: Duration) -> Result<Secret> {
        Ok(Secret::new(NOWHERE))
    }
}

#[derive(Debug)]
struct SweepsUnasked;

#[async_trait]
impl Twist for SweepsUnasked {
    fn info(&self, info: &mut Info) {
        info.can = Capabilities { list: true, ..Capabilities::default() };
    }

    async fn sweep(&self, _: &Inner, _: Duration) -> Result<Swept> {
        Ok(Swept { uploads: 3, bytes: 0 })
    }
}

#[derive(Debug)]
struct MoreFreeThanThereIs;

#[async_trait]
impl Twist for MoreFreeThanThereIs {
    async fn capacity(&self, inner: &Inner) -> Result<Capacity> {
        let Capacity { total, .. } = inner.capacity().await?;
        Ok(Capacity { total, free: total + 1 })
    }
}

#[derive(Debug)]
struct EndlessRoom;

#[async_trait]
impl Twist for EndlessRoom {
    async fn begin(&self, inner: &Inner, id: &BlobId, _: SizeHint) -> Result<Box<dyn Upload>> {
        inner.begin(id, SizeHint::default()).await
    }
}

#[derive(Debug, Default)]
struct ChangesItsMind(AtomicUsize);

impl Twist for ChangesItsMind {
    fn info(&self, info: &mut Info) {
        info.chunk <<= self.0.fetch_add(1, Ordering::Relaxed) % 3;
    }
}

#[derive(Debug)]
struct OddHoles;

impl Twist for OddHoles {
    fn info(&self, info: &mut Info) {
        info.hole = Some(5000);
    }
}
