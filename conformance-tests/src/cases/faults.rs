//! A storage that goes away, stalls, or loses its replies.

use std::time::Duration;

use futures::TryStreamExt;
use store_core::{Blob, BlobId, ErrorKind, Expect, Location, Options, Span, Store};

use crate::{
    Fault, Fixture, Outcome,
    case::{Failure, cases, ensure, refused},
    source::Content,
};

cases! { Faults:
    a_storage_that_is_away_is_unavailable proves [6] needs [Blobs, Fault(Cut)];
    a_read_of_a_storage_that_is_away_is_unavailable proves [4, 6] needs [Blobs, Transfers(2), Fault(Cut)];
    a_download_goes_on_after_a_cut proves [4, 6] needs [Blobs, Fault(Cut)];
    a_download_cut_at_any_byte_is_exact_or_unavailable proves [4, 6] needs [Blobs, Fault(CutAfter)];
    an_upload_goes_on_after_a_cut proves [4, 6] needs [Write, Fault(Cut)];
    an_upload_cut_for_good_leaves_at_most_what_a_sweep_finds proves [2, 6] needs [Write, Empty, Fault(Cut)];
    an_upload_cut_at_any_byte_is_whole_or_absent proves [1, 2, 6] needs [Write, Fault(CutAfter)];
    an_upload_whose_replies_get_lost_is_whole_or_absent proves [1, 2, 3, 6] needs [Write, Fault(CutReply)];
    a_commit_whose_reply_gets_lost_is_looked_up proves [1, 2, 3, 6] needs [Write, Fault(CutReply)];
    a_deletion_whose_reply_gets_lost_is_no_error proves [6] needs [Write, Delete, Fault(CutReply)];
    a_list_of_a_storage_that_is_away_is_no_empty_list proves [6] needs [Blobs, List, Fault(Cut)];
    a_stalled_call_ends_at_its_deadline proves [6] needs [Blobs, Options, Fault(Stall)];
    a_stalled_download_ends_at_its_deadline proves [6] needs [Blobs, Options, Fault(Stall)];
    a_stalled_upload_ends_at_its_deadline proves [2, 6] needs [Write, Options, Fault(Stall)];
    a_slow_storage_is_waited_for proves [4, 6] needs [Blobs, Fault(Slow)];
}

fn content(store: &Store) -> Content {
    Content::new(1, 4 * store.info().chunk as u64 + 4097)
}

async fn stored(fixture: &Fixture) -> Result<(Store, Content, Location), Failure> {
    let store = fixture.store().await?;
    let content = content(&store);
    let at = fixture.blob(&store, "fault", &content).await?;
    Ok((store, content, at))
}

/// Deadlines that can be waited for.
fn impatient(options: &mut Options) {
    let soon = Span(Duration::from_secs(2));
    options.timeout.call = soon;
    options.timeout.chunk = soon;
    options.timeout.commit = soon;
    options.retry.attempts = 2;
}

/// What an impatient store has to do before the fault that is judged: a busy machine may take longer than it waits.
async fn prepared<T, F: Future<Output = store_core::Result<T>>>(
    mut call: impl FnMut() -> F,
) -> store_core::Result<T> {
    for _ in 0..5 {
        match call().await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {}
            outcome => return outcome,
        }
    }
    call().await
}

async fn a_storage_that_is_away_is_unavailable(fixture: &Fixture) -> Outcome {
    let (store, content, at) = stored(fixture).await?;
    let id = fixture.id("away");
    fixture.inject(Fault::Cut).await?;
    refused("opening", store.open(&at).await, ErrorKind::Unavailable)?;
    if store.info().can.write {
        refused("locating", store.locate(&id).await, ErrorKind::Unavailable)?;
        refused("an upload", fixture.put_quietly(&store, &id, &content).await, ErrorKind::Unavailable)?;
    }
    if store.info().can.delete {
        refused("a deletion", store.delete(&at).await, ErrorKind::Unavailable)?;
    }
    if store.info().can.capacity {
        refused("a measurement", store.capacity().await, ErrorKind::Unavailable)?;
    }
    fixture.inject(Fault::Heal).await?;
    // The same handle works again, and nothing has happened meanwhile.
    content.is_at(&store, &at).await?;
    if store.info().can.write {
        store.settle().await;
        refused("locating what could not be put", store.locate(&id).await, ErrorKind::NotFound)?;
    }
    Ok(())
}

async fn a_read_of_a_storage_that_is_away_is_unavailable(fixture: &Fixture) -> Outcome {
    let (store, content, at) = stored(fixture).await?;
    let reader = store.open(&at).await?;
    let mut stream = reader.stream(..)?;
    let mut checker = content.checker(0..content.len());
    if let Some(bytes) = stream.try_next().await? {
        checker.feed(&bytes)?;
    }
    fixture.inject(Fault::Cut).await?;
    // What was on its way may still arrive, as long as it is right.
    let rest = loop {
        match stream.try_next().await {
            Ok(Some(bytes)) => checker.feed(&bytes)?,
            Ok(None) => break checker.end().map(|()| None)?,
            Err(error) => break Some(error),
        }
    };
    if let Some(error) = rest {
        ensure!(error.kind() == ErrorKind::Unavailable, "the read ends with {}: {error}", error.kind());
    }
    refused("a read from the start", read(&reader).await, ErrorKind::Unavailable)?;
    fixture.inject(Fault::Heal).await?;
    content.is_read_by(&reader, 0..content.len()).await
}

async fn read(reader: &store_core::Reader) -> store_core::Result<()> {
    reader.stream(..)?.try_for_each(|_| std::future::ready(Ok(()))).await
}

async fn a_download_goes_on_after_a_cut(fixture: &Fixture) -> Outcome {
    let (store, content, at) = stored(fixture).await?;
    let reader = store.open(&at).await?;
    let mut stream = reader.stream(..)?;
    let mut checker = content.checker(0..content.len());
    let mut cuts = 0;
    while let Some(bytes) = stream.try_next().await? {
        checker.feed(&bytes)?;
        if checker.offset() > cuts * content.len() / 3 {
            cuts += 1;
            fixture.inject(Fault::Cut).await?;
            fixture.inject(Fault::Heal).await?;
        }
    }
    checker.end()
}

/// How many bytes pass before a cut: some in the first request, some in the data, some near the end.
fn cuts(content: &Content) -> [u64; 9] {
    let len = content.len();
    [0, 1, 100, 1000, 10_000, len / 3, len / 2, len - 1, len + 200]
}

async fn a_download_cut_at_any_byte_is_exact_or_unavailable(fixture: &Fixture) -> Outcome {
    let (_, content, at) = stored(fixture).await?;
    for after in cuts(&content) {
        let store = fixture.store().await?;
        fixture.inject(Fault::CutAfter(after)).await?;
        match store.get(&at, ..).await {
            Ok(bytes) => {
                let mut checker = content.checker(0..content.len());
                checker
                    .feed(&bytes)
                    .and_then(|()| checker.end())
                    .map_err(|f| f.at(format!("cut after {after}")))?;
            }
            Err(error) => ensure!(error.kind() == ErrorKind::Unavailable, "{}: {error}", error.kind()),
        }
        fixture.inject(Fault::Heal).await?;
    }
    Ok(())
}

async fn an_upload_goes_on_after_a_cut(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = content(&store);
    let mut writer = store.upload(&fixture.id("resumed"), Expect::new().size(content.len())).await?;
    let mut source = content.source().stream();
    let mut sent = 0;
    while let Some(piece) = source.try_next().await? {
        writer.write(piece).await?;
        sent += 1;
        if sent % 2 == 0 {
            fixture.inject(Fault::Cut).await?;
            fixture.inject(Fault::Heal).await?;
        }
    }
    let blob = writer.finish().await?;
    content.is_at(&fixture.store().await?, &blob.location).await
}

async fn an_upload_cut_for_good_leaves_at_most_what_a_sweep_finds(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = content(&store);
    let id = fixture.id("cut");
    let mut writer = store.upload(&id, Expect::new()).await?;
    writer.write(content.bytes(0..content.len() / 2)).await?;
    fixture.inject(Fault::Cut).await?;
    let outcome = match writer.write(content.bytes(content.len() / 2..content.len())).await {
        Ok(()) => writer.finish().await.map(drop),
        Err(error) => {
            drop(writer);
            Err(error)
        }
    };
    refused("an upload to a storage that is away", outcome, ErrorKind::Unavailable)?;
    store.settle().await;
    fixture.inject(Fault::Heal).await?;
    let witness = fixture.store().await?;
    refused("locating a broken upload", witness.locate(&id).await, ErrorKind::NotFound)?;
    // The clean-up could not reach the storage either: that is what sweeps are for.
    let swept = witness.sweep(Duration::ZERO).await?;
    ensure!(swept.uploads <= 1, "one upload left {} behind", swept.uploads);
    fixture.holds_only(&witness, &[]).await?;
    let blob = fixture.put(&witness, &id, &content).await?;
    content.is_at(&witness, &blob.location).await
}

/// After a fault during an upload: the blob is there and whole if the call said so, and not there if it did not.
async fn whole_or_absent(
    fixture: &Fixture,
    id: &BlobId,
    content: &Content,
    outcome: store_core::Result<Blob>,
) -> Outcome {
    fixture.inject(Fault::Heal).await?;
    let witness = fixture.store().await?;
    match outcome {
        Ok(blob) => content.is_at(&witness, &blob.location).await,
        Err(error) => {
            ensure!(error.kind() == ErrorKind::Unavailable, "it fails with {}: {error}", error.kind());
            refused("locating an upload that failed", witness.locate(id).await, ErrorKind::NotFound).map(drop)
        }
    }
}

async fn an_upload_cut_at_any_byte_is_whole_or_absent(fixture: &Fixture) -> Outcome {
    let content = content(&fixture.store().await?);
    for after in cuts(&content) {
        let id = fixture.id("cut");
        let store = fixture.store().await?;
        fixture.inject(Fault::CutAfter(after)).await?;
        let outcome = fixture.put_quietly(&store, &id, &content).await;
        store.settle().await;
        let outcome = whole_or_absent(fixture, &id, &content, outcome).await;
        outcome.map_err(|failure| failure.at(format!("cut after {after} bytes")))?;
    }
    Ok(())
}

/// How many replies pass before one gets lost; more than any driver needs for a small upload do no harm.
const REPLIES: std::ops::Range<u32> = 0..12;

async fn an_upload_whose_replies_get_lost_is_whole_or_absent(fixture: &Fixture) -> Outcome {
    for after in REPLIES {
        let id = fixture.id("reply");
        let store = fixture.store().await?;
        let content = content(&store);
        fixture.inject(Fault::CutReply(after)).await?;
        let outcome = fixture.put_quietly(&store, &id, &content).await;
        store.settle().await;
        let outcome = whole_or_absent(fixture, &id, &content, outcome).await;
        outcome.map_err(|failure| failure.at(format!("cut before reply {after}")))?;
    }
    Ok(())
}

async fn a_commit_whose_reply_gets_lost_is_looked_up(fixture: &Fixture) -> Outcome {
    for after in REPLIES {
        let id = fixture.id("commit");
        let store = fixture.store().await?;
        let content = Content::new(2, 10_000);
        let mut writer = store.upload(&id, Expect::new()).await?;
        writer.write(content.bytes(0..content.len())).await?;
        fixture.inject(Fault::CutReply(after)).await?;
        let outcome = writer.finish().await;
        store.settle().await;
        let outcome = whole_or_absent(fixture, &id, &content, outcome).await;
        outcome.map_err(|failure| failure.at(format!("cut before reply {after}")))?;
    }
    Ok(())
}

async fn a_deletion_whose_reply_gets_lost_is_no_error(fixture: &Fixture) -> Outcome {
    for after in 0..4 {
        let store = fixture.store().await?;
        let at = fixture.put(&store, &fixture.id("delete"), &Content::new(3, 1000)).await?.location;
        fixture.inject(Fault::CutReply(after)).await?;
        let deleted = store.delete(&at).await;
        fixture.inject(Fault::Heal).await?;
        deleted.map_err(|error| Failure::from(error).at(format!("cut before reply {after}")))?;
        refused("opening what was deleted", store.open(&at).await, ErrorKind::NotFound)?;
    }
    Ok(())
}

async fn a_list_of_a_storage_that_is_away_is_no_empty_list(fixture: &Fixture) -> Outcome {
    let (store, ..) = stored(fixture).await?;
    fixture.inject(Fault::Cut).await?;
    let listed = store.list().try_collect::<Vec<_>>().await;
    refused("a list", listed, ErrorKind::Unavailable)?;
    fixture.inject(Fault::Heal).await?;
    ensure!(store.list().try_next().await?.is_some(), "nothing is listed after all works again");
    Ok(())
}

async fn a_stalled_call_ends_at_its_deadline(fixture: &Fixture) -> Outcome {
    let (_, content, at) = stored(fixture).await?;
    let store = fixture.store_with(impatient).await?;
    fixture.inject(Fault::Stall).await?;
    refused("opening", store.open(&at).await, ErrorKind::Unavailable)?;
    if store.info().can.write {
        refused("locating", store.locate(&fixture.id("none")).await, ErrorKind::Unavailable)?;
    }
    fixture.inject(Fault::Heal).await?;
    content.is_at(&store, &at).await
}

async fn a_stalled_download_ends_at_its_deadline(fixture: &Fixture) -> Outcome {
    let (_, content, at) = stored(fixture).await?;
    let store = fixture.store_with(impatient).await?;
    let reader = prepared(|| store.open(&at)).await?;
    fixture.inject(Fault::Stall).await?;
    refused("a read", read(&reader).await, ErrorKind::Unavailable)?;
    fixture.inject(Fault::Heal).await?;
    content.is_read_by(&reader, 0..content.len()).await
}

async fn a_stalled_upload_ends_at_its_deadline(fixture: &Fixture) -> Outcome {
    let store = fixture.store_with(impatient).await?;
    let content = content(&store);
    let id = fixture.id("stalled");
    let begun = prepared(|| async {
        let mut writer = store.upload(&id, Expect::new()).await?;
        writer.write(content.bytes(0..content.len() / 2)).await?;
        Ok(writer)
    });
    let mut writer = begun.await?;
    fixture.inject(Fault::Stall).await?;
    let outcome = match writer.write(content.bytes(content.len() / 2..content.len())).await {
        Ok(()) => writer.finish().await.map(drop),
        Err(error) => {
            drop(writer);
            Err(error)
        }
    };
    refused("an upload to a stalled storage", outcome, ErrorKind::Unavailable)?;
    fixture.inject(Fault::Heal).await?;
    let witness = fixture.store().await?;
    // With deadlines as short as these the driver may be at its clean-up yet when the last attempt is given up.
    for _ in 0..100 {
        fixture.quiesce(&store).await;
        if witness.locate(&id).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    refused("locating a stalled upload", witness.locate(&id).await, ErrorKind::NotFound)?;
    let blob = fixture.put(&witness, &id, &content).await?;
    content.is_at(&witness, &blob.location).await
}

async fn a_slow_storage_is_waited_for(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = content(&store);
    // About two seconds each way.
    fixture.inject(Fault::Slow(content.len() / 2)).await?;
    let at = fixture.blob(&store, "slow", &content).await?;
    content.is_at(&fixture.store().await?, &at).await
}
