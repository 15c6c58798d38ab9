//! Whatever happens to an upload, nothing of it stays behind.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use store_core::{BlobId, Digests, ErrorKind, Expect, Store, Swept, Tap, Writer};

use crate::{
    Fixture, Outcome,
    case::{Failure, cases, ensure, refused},
    source::Content,
};

cases! { Leftovers:
    an_aborted_upload_leaves_nothing proves [2] needs [Write, Empty];
    an_upload_aborted_before_its_first_byte_leaves_nothing proves [2] needs [Write, Empty];
    a_dropped_upload_leaves_nothing proves [2] needs [Write, Empty];
    an_upload_dropped_on_a_plain_thread_leaves_nothing proves [2] needs [Write, Empty];
    an_upload_dropped_with_its_store_leaves_nothing proves [2] needs [Write, Empty];
    a_source_error_leaves_nothing proves [2] needs [Write, Empty];
    a_wrong_size_leaves_nothing proves [2, 4] needs [Write, Empty];
    a_wrong_digest_leaves_nothing proves [2, 4] needs [Write, Empty];
    a_refused_local_file_leaves_nothing proves [2, 4] needs [Write, Empty];
    a_refusing_tap_leaves_nothing proves [2] needs [Write, Empty];
    a_refused_id_leaves_only_the_winner proves [2, 3] needs [Write, Empty];
    a_lost_race_leaves_only_the_winner proves [2, 3] needs [Write, Empty, Transfers(3)];
    a_cancelled_write_leaves_nothing proves [2] needs [Write, Empty];
    a_put_cancelled_anywhere_leaves_nothing proves [2] needs [Write, Empty];
    a_put_of_a_file_cancelled_anywhere_leaves_nothing proves [2] needs [Write, Empty];
    a_finish_cancelled_anywhere_leaves_nothing proves [2] needs [Write, Empty];
    an_abort_cancelled_anywhere_leaves_nothing proves [2] needs [Write, Empty];
    a_forgotten_upload_is_found_by_a_sweep proves [2] needs [Write, Empty, Staging, Transfers(2)];
    a_forgotten_upload_vanishes_by_itself proves [2] needs [Write, Empty, NoStaging, Transfers(2)];
    a_sweep_spares_a_live_upload proves [2] needs [Write, Empty];
    a_sweep_spares_every_committed_blob proves [2] needs [Write, Empty];
    a_swept_upload_cannot_be_finished proves [1, 2] needs [Write, Empty, Staging];
    an_aborted_upload_gives_its_space_back proves [2] needs [Write, ExactCapacity];
    a_deleted_blob_gives_its_space_back proves [2] needs [Write, Delete, ExactCapacity];
}

const DAY: Duration = Duration::from_secs(86_400);

/// Of such a length that some chunks are on their way and some are held back.
fn content(store: &Store) -> Content {
    Content::new(1, 2 * store.info().chunk as u64 + 4097)
}

async fn begun(store: &Store, id: &BlobId) -> Result<Writer, Failure> {
    let mut writer = store.upload(id, Expect::new()).await?;
    let content = content(store);
    for piece in content.runs(0..content.len()) {
        writer.write(piece).await?;
    }
    Ok(writer)
}

async fn an_aborted_upload_leaves_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    begun(&store, &fixture.id("abort")).await?.abort().await?;
    fixture.holds_only(&store, &[]).await
}

async fn an_upload_aborted_before_its_first_byte_leaves_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    store.upload(&fixture.id("abort"), Expect::new()).await?.abort().await?;
    drop(store.upload(&fixture.id("drop"), Expect::new().size(1 << 20)).await?);
    fixture.holds_only(&store, &[]).await
}

async fn a_dropped_upload_leaves_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    drop(begun(&store, &fixture.id("drop")).await?);
    fixture.holds_only(&store, &[]).await
}

async fn an_upload_dropped_on_a_plain_thread_leaves_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let writer = begun(&store, &fixture.id("drop")).await?;
    let dropped = std::thread::spawn(move || drop(writer)).join();
    ensure!(dropped.is_ok(), "the drop panicked");
    fixture.holds_only(&store, &[]).await
}

async fn an_upload_dropped_with_its_store_leaves_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let kept = store.clone();
    let writer = begun(&store, &fixture.id("drop")).await?;
    drop(store);
    drop(writer);
    fixture.holds_only(&kept, &[]).await
}

async fn a_source_error_leaves_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = content(&store);
    for offset in [0, 1, content.len() / 2, content.len()] {
        let source = content.source().failing_at(offset, ErrorKind::Denied);
        let put = store.put(&fixture.id("source"), source.stream(), Expect::new()).await;
        refused("a put whose source fails", put, ErrorKind::Denied)?;
        fixture.holds_only(&store, &[]).await.map_err(|f| f.at(format!("failed at {offset}")))?;
    }
    Ok(())
}

async fn a_wrong_size_leaves_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = content(&store);
    for size in [content.len() - 1, content.len() + 1] {
        let put = store.put(&fixture.id("size"), content.source().stream(), Expect::new().size(size)).await;
        refused("a put of another size", put, ErrorKind::Corrupt)?;
        fixture.holds_only(&store, &[]).await?;
    }
    Ok(())
}

async fn a_wrong_digest_leaves_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let mut digests = Digests::default();
    digests.insert_hex(store_core::Algorithm::Crc64Nvme, "0123456789abcdef")?;
    let expect = Expect::new().digests(digests);
    let put = store.put(&fixture.id("digest"), content(&store).source().stream(), expect).await;
    refused("a put of other bytes", put, ErrorKind::Corrupt)?;
    fixture.holds_only(&store, &[]).await
}

async fn a_refused_local_file_leaves_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = content(&store);
    let (file, len) = (content.as_file().await?, content.len());
    let mut digests = Digests::default();
    digests.insert_hex(store_core::Algorithm::Crc64Nvme, "0123456789abcdef")?;
    for expect in [Expect::new().size(len - 1), Expect::new().size(len + 1), Expect::new().digests(digests)] {
        let put = store.put_file(&fixture.id("file"), std::sync::Arc::clone(&file), expect, |_| {}).await;
        refused("a put of another file", put, ErrorKind::Corrupt)?;
        fixture.holds_only(&store, &[]).await?;
    }
    Ok(())
}

struct Refuse;

impl Tap for Refuse {
    fn update(&mut self, _: &[u8]) -> store_core::Result<()> {
        Ok(())
    }
    fn finish(self: Box<Self>) -> store_core::Result<()> {
        Err(store_core::Error::new(ErrorKind::Denied, "the signature does not fit"))
    }
}

async fn a_refusing_tap_leaves_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let expect = Expect::new().tap(Refuse);
    let put = store.put(&fixture.id("tap"), content(&store).source().stream(), expect).await;
    refused("a put that a tap refuses", put, ErrorKind::Denied)?;
    fixture.holds_only(&store, &[]).await
}

async fn a_refused_id_leaves_only_the_winner(fixture: &Fixture) -> Outcome {
    let id = fixture.id("taken");
    let store = fixture.store().await?;
    let winner = Content::new(2, 5000);
    let blob = fixture.put(&store, &id, &winner).await?;
    let put = store.put(&id, content(&store).source().stream(), Expect::new()).await;
    refused("a put of a taken id", put, ErrorKind::AlreadyExists)?;
    fixture.holds_only(&store, &[&id]).await?;
    winner.is_at(&fixture.store().await?, &blob.location).await
}

/// However the loser ends, the winner stays.
async fn a_lost_race_leaves_only_the_winner(fixture: &Fixture) -> Outcome {
    for end in ["finish", "abort", "drop"] {
        let id = fixture.id(end);
        let (store, rival) = (fixture.store().await?, fixture.store().await?);
        let loser = begun(&store, &id).await?;
        let winner = Content::new(3, rival.info().chunk as u64 + 1);
        let blob = fixture.put(&rival, &id, &winner).await?;
        match end {
            "finish" => drop(refused("finishing second", loser.finish().await, ErrorKind::AlreadyExists)?),
            "abort" => loser.abort().await?,
            _ => drop(loser),
        }
        store.settle().await;
        winner.is_at(&fixture.store().await?, &blob.location).await.map_err(|f| f.at(end))?;
        let swept = store.sweep(Duration::ZERO).await?;
        ensure!(swept == Swept::default(), "{end} left {} upload(s)", swept.uploads);
    }
    Ok(())
}

/// Takes its time, so that a writer has to wait for it.
struct Slow;

impl Tap for Slow {
    fn update(&mut self, _: &[u8]) -> store_core::Result<()> {
        std::thread::sleep(Duration::from_millis(10));
        Ok(())
    }
    fn finish(self: Box<Self>) -> store_core::Result<()> {
        Ok(())
    }
}

async fn a_cancelled_write_leaves_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let id = fixture.id("cancel");
    // More chunks than the queues in front of a tap take, so that the write has to wait.
    let content = Content::new(5, 16 * store.info().chunk as u64);
    let mut cancelled = 0;
    for polls in 1..6 {
        let mut writer = store.upload(&id, Expect::new().tap(Slow)).await?;
        match polled(writer.write(content.bytes(0..content.len())), polls).await {
            // Gone on as if nothing had been, it would have a gap in it.
            None => {
                cancelled += 1;
                refused("finishing after a cancelled write", writer.finish().await, ErrorKind::Invalid)?;
            }
            Some(written) => {
                written?;
                drop(writer);
            }
        }
        fixture.quiesce(&store).await;
        fixture.holds_only(&store, &[]).await.map_err(|f| f.at(format!("after {polls} poll(s)")))?;
    }
    ensure!(cancelled > 0, "no write ever waited");
    Ok(())
}

/// Polls `future` that often at most, and drops it while it waits.
pub(super) async fn polled<T>(future: impl Future<Output = T>, polls: u32) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context: &mut Context<'_>| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match Pin::as_mut(&mut future).poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// How often every point is tried: which of them a given poll reaches is up to threads, so that one round may miss one.
const ROUNDS: u32 = 4;

/// After how many polls to cancel: 0, 1, 2, ... until the call comes to its end, and all of that again.
#[derive(Default)]
pub(super) struct Points {
    polls: u32,
    rounds: u32,
}

impl Points {
    pub(super) fn next(&self) -> Option<u32> {
        (self.rounds < ROUNDS).then_some(self.polls)
    }

    pub(super) fn tried(&mut self, came_to_its_end: bool) {
        match came_to_its_end {
            true => *self = Self { polls: 0, rounds: self.rounds + 1 },
            // Larger steps after a while, so that a call of many polls takes no age.
            false => self.polls += 1 + self.polls / 24,
        }
    }
}

/// Whatever became of a cancelled call, nothing of it is there, staged or committed.
pub(super) async fn is_undone(fixture: &Fixture, store: &Store, done: &[BlobId], polls: u32) -> Outcome {
    fixture.quiesce(store).await;
    let outcome = fixture.holds_only(store, &done.iter().collect::<Vec<_>>()).await;
    outcome.map_err(|failure| failure.at(format!("cancelled after {polls} poll(s)")))
}

/// A call that came to its end has worked.
async fn is_whole(
    fixture: &Fixture,
    content: &Content,
    blob: &store_core::Result<store_core::Blob>,
) -> Outcome {
    let blob = blob.as_ref().map_err(|error| Failure::broken(format!("this must work, but: {error}")))?;
    content.is_at(&fixture.store().await?, &blob.location).await
}

async fn a_put_cancelled_anywhere_leaves_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = content(&store);
    let mut done = Vec::new();
    let mut points = Points::default();
    while let Some(polls) = points.next() {
        let id = fixture.id("cancel");
        let source = content.source().pieces(700_001).stream();
        let put = polled(store.put(&id, source, Expect::new().size(content.len())), polls).await;
        if let Some(blob) = &put {
            is_whole(fixture, &content, blob).await?;
            done.push(id);
        }
        is_undone(fixture, &store, &done, polls).await?;
        points.tried(put.is_some());
    }
    Ok(())
}

/// Whose blocks the storage may share, and of which it may have them all before the first write.
async fn a_put_of_a_file_cancelled_anywhere_leaves_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = content(&store);
    let file = content.as_file().await?;
    let mut done = Vec::new();
    // One round: all but the beginning is what any put does.
    let mut points = Points { rounds: ROUNDS - 1, ..Points::default() };
    while let Some(polls) = points.next() {
        let id = fixture.id("cancel");
        let put = store.put_file(&id, std::sync::Arc::clone(&file), Expect::new(), |_| {});
        let put = polled(put, polls).await;
        if let Some(blob) = &put {
            is_whole(fixture, &content, blob).await?;
            done.push(id);
        }
        is_undone(fixture, &store, &done, polls).await?;
        points.tried(put.is_some());
    }
    Ok(())
}

async fn a_finish_cancelled_anywhere_leaves_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let mut done = Vec::new();
    let mut points = Points::default();
    while let Some(polls) = points.next() {
        let id = fixture.id("cancel");
        let finished = polled(begun(&store, &id).await?.finish(), polls).await;
        if let Some(blob) = &finished {
            is_whole(fixture, &content(&store), blob).await?;
            done.push(id);
        }
        is_undone(fixture, &store, &done, polls).await?;
        points.tried(finished.is_some());
    }
    Ok(())
}

async fn an_abort_cancelled_anywhere_leaves_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let mut points = Points::default();
    while let Some(polls) = points.next() {
        let aborted = polled(begun(&store, &fixture.id("cancel")).await?.abort(), polls).await;
        is_undone(fixture, &store, &[], polls).await?;
        points.tried(aborted.is_some());
        aborted.transpose()?;
    }
    Ok(())
}

/// The control of all the others: a sweep that finds nothing when there is something proves nothing.
async fn a_forgotten_upload_is_found_by_a_sweep(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let id = fixture.id("forgotten");
    // As if the process had been killed.
    std::mem::forget(begun(&store, &id).await?);
    let witness = fixture.store().await?;
    refused("locating a killed upload", witness.locate(&id).await, ErrorKind::NotFound)?;
    let swept = witness.sweep(Duration::ZERO).await?;
    ensure!(swept.uploads == 1, "a sweep finds {} upload(s) where one is", swept.uploads);
    fixture.holds_only(&witness, &[]).await?;
    let blob = fixture.put(&witness, &id, &Content::new(4, 5000)).await?;
    Content::new(4, 5000).is_at(&witness, &blob.location).await
}

async fn a_forgotten_upload_vanishes_by_itself(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let id = fixture.id("forgotten");
    std::mem::forget(begun(&store, &id).await?);
    fixture.holds_only(&fixture.store().await?, &[]).await
}

async fn a_sweep_spares_a_live_upload(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let id = fixture.id("live");
    let content = content(&store);
    let mut writer = store.upload(&id, Expect::new()).await?;
    for piece in content.runs(0..content.len()) {
        writer.write(piece).await?;
        let swept = fixture.store().await?.sweep(DAY).await?;
        ensure!(swept == Swept::default(), "a sweep of what is a day old took a live upload");
    }
    let blob = writer.finish().await?;
    content.is_at(&fixture.store().await?, &blob.location).await
}

async fn a_sweep_spares_every_committed_blob(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let chunk = store.info().chunk as u64;
    let contents: Vec<Content> = [0, 1, chunk, 2 * chunk + 1].map(|len| Content::new(len, len)).into();
    let mut blobs = Vec::new();
    for content in &contents {
        let id = fixture.id("kept");
        blobs.push((content, fixture.put(&store, &id, content).await?.location, id));
    }
    for age in [DAY, Duration::from_secs(1), Duration::ZERO, Duration::ZERO] {
        fixture.store().await?.sweep(age).await?;
    }
    for (content, at, _) in &blobs {
        content.is_at(&fixture.store().await?, at).await?;
    }
    fixture.holds_only(&store, &blobs.iter().map(|(_, _, id)| id).collect::<Vec<_>>()).await
}

async fn a_swept_upload_cannot_be_finished(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let writer = begun(&store, &fixture.id("swept")).await?;
    let swept = fixture.store().await?.sweep(Duration::ZERO).await?;
    ensure!(swept.uploads == 1, "a sweep finds {} upload(s) where one is", swept.uploads);
    let finished = writer.finish().await;
    ensure!(finished.is_err(), "an upload whose bytes were swept away was finished");
    fixture.holds_only(&store, &[]).await
}

async fn free(fixture: &Fixture) -> Result<u64, Failure> {
    Ok(fixture.store().await?.capacity().await?.free)
}

async fn an_aborted_upload_gives_its_space_back(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let before = free(fixture).await?;
    let writer = begun(&store, &fixture.id("space")).await?;
    ensure!(free(fixture).await? < before, "an upload under way takes no space");
    writer.abort().await?;
    drop(begun(&store, &fixture.id("space")).await?);
    fixture.quiesce(&store).await;
    let after = free(fixture).await?;
    ensure!(after == before, "{} bytes were not given back", before.saturating_sub(after));
    Ok(())
}

async fn a_deleted_blob_gives_its_space_back(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let before = free(fixture).await?;
    let blob = fixture.put(&store, &fixture.id("space"), &content(&store)).await?;
    ensure!(free(fixture).await? < before, "a blob takes no space");
    store.delete(&blob.location).await?;
    let after = free(fixture).await?;
    ensure!(after == before, "{} bytes were not given back", before.saturating_sub(after));
    Ok(())
}
