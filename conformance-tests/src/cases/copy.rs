//! A copy within a store is a blob like any other, whether the storage makes it by itself or not.

use futures::{TryStreamExt, future};
use jiff::Timestamp;
use store_core::{Algorithm, Blob, BlobId, ErrorKind, Expect, Location, Store, inspect::Format};

use super::leftovers::{Points, is_undone, polled};
use crate::{
    Fixture, Outcome,
    case::{Failure, cases, ensure, refused},
    source::Content,
};

cases! { Copy:
    a_copy_is_whole proves [1, 4] needs [Write, Transfers(2)];
    a_copy_of_nothing_is_empty proves [1, 4] needs [Write, Transfers(2)];
    a_copy_is_as_sparse_as_its_original proves [7] needs [Write, Holes, Size(65 << 20), Transfers(2)];
    a_copy_keeps_what_is_kept_with_the_blob proves [9] needs [Write, Metadata, Transfers(2)];
    a_copy_is_listed proves [1] needs [Write, List, Empty, Transfers(2)];
    a_copy_and_its_original_can_both_be_deleted proves [1, 2] needs [Write, Delete, Empty, Transfers(2)];
    a_copy_of_a_copy_outlives_both proves [1, 4] needs [Write, Delete, Transfers(2)];
    a_copy_replaces_nothing proves [3] needs [Write, Transfers(2)];
    a_copy_of_what_is_gone_is_not_found proves [2, 6] needs [Write, Delete, Transfers(2)];
    of_4_copies_to_one_id_one_wins proves [3] needs [Write, AtomicCreate, Transfers(8)];
    a_copy_cancelled_anywhere_leaves_nothing proves [2] needs [Write, Empty, Transfers(2)];
}

async fn copy(fixture: &Fixture, store: &Store, at: &Location) -> Result<Blob, Failure> {
    Ok(store.copy(at, &fixture.id("copy"), |_| {}).await?)
}

async fn a_copy_is_whole(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let several = 5 * store.info().chunk as u64 + 4099;
    for content in [Content::new(1, 1), Content::new(2, several).with_random_holes(2, 3, 200_000)] {
        let original = fixture.put(&store, &fixture.id("original"), &content).await?;
        let copy = copy(fixture, &store, &original.location).await?;
        ensure!(copy.meta.size == content.len(), "the copy has {} bytes", copy.meta.size);
        ensure!(copy.location != original.location, "the copy is where the original is");
        let witness = fixture.store().await?;
        content.is_at(&witness, &copy.location).await?;
        content.is_at(&witness, &original.location).await?;
        witness.verify(&copy.location, |_| {}).await?;
    }
    Ok(())
}

async fn a_copy_of_nothing_is_empty(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let original = fixture.put(&store, &fixture.id("empty"), &Content::new(1, 0)).await?;
    let copy = copy(fixture, &store, &original.location).await?;
    Content::new(1, 0).is_at(&fixture.store().await?, &copy.location).await
}

async fn a_copy_is_as_sparse_as_its_original(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let data = Content::new(3, 100_000).bytes(0..100_000);
    let pieces = [store_core::Chunk::Data(data), store_core::Chunk::Zeros(64 << 20)].map(Ok);
    let expect = Expect::new().size(100_000 + (64 << 20)).data_size(100_000);
    let original = store.put(&fixture.id("sparse"), futures::stream::iter(pieces), expect).await?;
    let copy = copy(fixture, &store, &original.location).await?;
    let witness = fixture.store().await?;
    let (before, after) = (witness.stat(&original.location).await?, witness.stat(&copy.location).await?);
    ensure!(after.size == before.size, "the copy has {} of {} bytes", after.size, before.size);
    if let Some((before, after)) = before.allocated.zip(after.allocated) {
        // Storages count in blocks, some of which are megabytes.
        ensure!(after <= before + (16 << 20), "the copy takes {after} bytes, the original {before}");
    }
    witness.verify(&copy.location, |_| {}).await?;
    Ok(())
}

async fn a_copy_keeps_what_is_kept_with_the_blob(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let expect =
        Expect::new().also(Algorithm::Sha256).property("os", "debian").property("Größe", "ja = 1; \"x\"");
    let content = Content::new(4, 70_000);
    let original = store.put(&fixture.id("original"), content.source().stream(), expect).await?;
    let before = Timestamp::now();
    let copied = copy(fixture, &store, &original.location).await?;
    let stat = fixture.store().await?.stat(&copied.location).await?;
    let kept = stat.meta.ok_or_else(|| Failure::broken("the copy has no metadata"))?;
    ensure!(kept == copied.meta, "kept is {kept:?}, returned was {:?}", copied.meta);
    ensure!(kept.digests == original.meta.digests, "the digests are {:?}", kept.digests);
    ensure!(kept.properties == original.meta.properties, "the properties are {:?}", kept.properties);
    ensure!(kept.format == original.meta.format, "the format is {:?}", kept.format.map(Format::as_str));
    ensure!(
        kept.created.as_second() >= before.as_second(),
        "the copy was created at {}, before it was made",
        kept.created
    );
    Ok(())
}

async fn a_copy_is_listed(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let (original, id) = (fixture.id("original"), fixture.id("copy"));
    let at = fixture.put(&store, &original, &Content::new(5, 3000)).await?.location;
    let copy = store.copy(&at, &id, |_| {}).await?;
    let entries: Vec<_> = fixture.store().await?.list().try_collect().await?;
    let entry = entries.iter().find(|entry| entry.id == id);
    let entry = entry.ok_or_else(|| Failure::broken("the copy is not listed"))?;
    ensure!(entry.location == copy.location && entry.size == 3000, "it is listed as {entry:?}");
    ensure!(fixture.store().await?.locate(&id).await? == copy.location, "it is located elsewhere");
    fixture.holds_only(&store, &[&original, &id]).await
}

/// A storage may refuse to delete an original that its copy leans upon; then the copy goes first.
async fn remove(store: &Store, at: &Location) -> Result<bool, Failure> {
    match store.delete(at).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::InUse => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn a_copy_and_its_original_can_both_be_deleted(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = Content::new(6, store.info().chunk as u64 + 17);
    let original = fixture.put(&store, &fixture.id("original"), &content).await?.location;
    let copy = copy(fixture, &store, &original).await?.location;
    let gone = remove(&store, &original).await?;
    content.is_at(&fixture.store().await?, &copy).await?;
    store.delete(&copy).await?;
    if !gone {
        content.is_at(&fixture.store().await?, &original).await?;
        store.delete(&original).await?;
    }
    fixture.holds_only(&store, &[]).await
}

async fn a_copy_of_a_copy_outlives_both(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = Content::new(7, 2 * store.info().chunk as u64 + 1);
    let original = fixture.put(&store, &fixture.id("original"), &content).await?.location;
    let first = copy(fixture, &store, &original).await?.location;
    let second = copy(fixture, &store, &first).await?.location;
    remove(&store, &original).await?;
    remove(&store, &first).await?;
    content.is_at(&fixture.store().await?, &second).await
}

async fn a_copy_replaces_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let (from, to) = (fixture.id("original"), fixture.id("taken"));
    let (content, other) = (Content::new(8, 50_000), Content::new(9, 40_000));
    let at = fixture.put(&store, &from, &content).await?.location;
    let taken = fixture.put(&store, &to, &other).await?.location;
    refused("a copy onto another blob", store.copy(&at, &to, |_| {}).await, ErrorKind::AlreadyExists)?;
    refused("a copy onto itself", store.copy(&at, &from, |_| {}).await, ErrorKind::AlreadyExists)?;
    other.is_at(&fixture.store().await?, &taken).await?;
    content.is_at(&fixture.store().await?, &at).await?;
    fixture.holds_only(&store, &[&from, &to]).await
}

async fn a_copy_of_what_is_gone_is_not_found(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let at = fixture.put(&store, &fixture.id("gone"), &Content::new(10, 1000)).await?.location;
    store.delete(&at).await?;
    refused("a copy", store.copy(&at, &fixture.id("copy"), |_| {}).await, ErrorKind::NotFound)?;
    fixture.holds_only(&store, &[]).await
}

async fn of_4_copies_to_one_id_one_wins(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let id = fixture.id("contested");
    let mut originals = Vec::new();
    for seed in 0..4 {
        let content = Content::new(20 + seed, 90_000 + seed);
        let at = fixture.put(&store, &fixture.id("original"), &content).await?.location;
        originals.push((content, at));
    }
    let rivals = originals.iter().map(|(_, at)| store.copy(at, &id, |_| {}));
    let outcomes = future::join_all(rivals).await;
    let mut winner = None;
    for ((content, _), outcome) in originals.iter().zip(outcomes) {
        match outcome {
            Ok(blob) => {
                ensure!(winner.is_none(), "two copies won");
                winner = Some((content, blob.location));
            }
            lost => drop(refused("a rival copy", lost, ErrorKind::AlreadyExists)?),
        }
    }
    let (content, at) = winner.ok_or_else(|| Failure::broken("no copy won"))?;
    content.is_at(&fixture.store().await?, &at).await
}

async fn a_copy_cancelled_anywhere_leaves_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = Content::new(11, 2 * store.info().chunk as u64 + 4097);
    let original = fixture.id("original");
    let at = fixture.put(&store, &original, &content).await?.location;
    let mut done: Vec<BlobId> = vec![original];
    let mut points = Points::default();
    while let Some(polls) = points.next() {
        let id = fixture.id("cancel");
        let copied = polled(store.copy(&at, &id, |_| {}), polls).await;
        points.tried(copied.is_some());
        if let Some(blob) = copied.transpose()? {
            content.is_at(&fixture.store().await?, &blob.location).await?;
            done.push(id);
        }
        is_undone(fixture, &store, &done, polls).await?;
    }
    Ok(())
}
