//! The list shows what is committed, all of it and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt, stream};
use store_core::{BlobId, Entry, Expect, Store};

use crate::{
    Fixture, Outcome,
    case::{Failure, cases, ensure},
    source::Content,
};

cases! { Listing:
    an_empty_storage_lists_nothing proves [1] needs [List, Empty];
    a_blob_is_listed_with_its_size proves [9] needs [List, Blobs];
    three_hundred_blobs_are_listed_once_each proves [9] needs [List, Write];
    uploads_under_way_are_not_listed proves [1] needs [List, Write];
    listed_locations_can_be_read proves [9] needs [List, Blobs];
    a_deleted_blob_is_not_listed proves [1] needs [List, Write, Delete];
    a_list_may_be_dropped_half_way proves [5] needs [List, Write];
    blobs_that_come_and_go_do_not_disturb_a_list proves [9] needs [List, Write, Delete];
}

/// The entries of this case's blobs, each under its id; a second entry of one id is an error.
async fn listed(store: &Store, ids: &BTreeSet<BlobId>) -> Result<BTreeMap<BlobId, Entry>, Failure> {
    let mut found = BTreeMap::new();
    let mut entries = store.list();
    while let Some(entry) = entries.try_next().await? {
        if ids.contains(&entry.id) {
            let id = entry.id.clone();
            ensure!(found.insert(entry.id.clone(), entry).is_none(), "{id} is listed twice");
        }
    }
    Ok(found)
}

async fn an_empty_storage_lists_nothing(fixture: &Fixture) -> Outcome {
    let entries: Vec<Entry> = fixture.store().await?.list().try_collect().await?;
    ensure!(entries.is_empty(), "{entries:?} are listed");
    Ok(())
}

async fn a_blob_is_listed_with_its_size(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    for len in [0, 1, 77_777] {
        let at = fixture.blob(&store, "listed", &Content::new(len, len)).await?;
        let witness = fixture.store().await?;
        let mut entries: Vec<Entry> =
            witness.list().try_filter(|entry| std::future::ready(entry.location == at)).try_collect().await?;
        ensure!(entries.len() == 1, "{} entries are listed for {at}", entries.len());
        let size = entries.pop().map(|entry| entry.size);
        ensure!(size == Some(len), "{at} is listed with a size of {size:?} instead of {len}");
    }
    Ok(())
}

async fn three_hundred_blobs_are_listed_once_each(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let ids: Vec<BlobId> = (0..300).map(|n| fixture.id(&format!("many-{n}"))).collect();
    let contents: Vec<Content> = (0..300).map(|n| Content::new(n, n)).collect();
    let puts: Vec<_> =
        ids.iter().zip(&contents).map(|(id, content)| fixture.put(&store, id, content)).collect();
    stream::iter(puts).buffer_unordered(8).map_ok(drop).try_collect::<()>().await?;
    let wanted: BTreeSet<BlobId> = ids.iter().cloned().collect();
    let found = listed(&fixture.store().await?, &wanted).await?;
    for (n, id) in ids.iter().enumerate() {
        let Some(entry) = found.get(id) else {
            return Err(Failure::broken(format!("{id} is not listed, {} of 300 are", found.len())));
        };
        ensure!(entry.size == n as u64, "{id} is listed with a size of {} instead of {n}", entry.size);
        ensure!(entry.location == store.locate(id).await?, "{id} is listed elsewhere than it is located");
    }
    Ok(())
}

async fn uploads_under_way_are_not_listed(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let id = fixture.id("staged");
    let ids: BTreeSet<BlobId> = [id.clone()].into();
    let content = Content::new(1, 2 * store.info().chunk as u64 + 1);
    let before: BTreeSet<String> = names(fixture).await?;
    let mut writer = store.upload(&id, Expect::new()).await?;
    for piece in content.runs(0..content.len()) {
        writer.write(piece).await?;
        ensure!(listed(&store, &ids).await?.is_empty(), "an upload under way is listed");
        ensure!(listed(&fixture.store().await?, &ids).await?.is_empty(), "an upload under way is listed");
    }
    let after: BTreeSet<String> = names(fixture).await?;
    // Nor under any other name, such as that of its staging place.
    let new: Vec<_> = after.difference(&before).filter(|name| name.contains(id.as_str())).collect();
    ensure!(new.is_empty(), "{new:?} is listed for an upload under way");
    writer.finish().await?;
    ensure!(listed(&fixture.store().await?, &ids).await?.len() == 1, "a finished upload is not listed");
    Ok(())
}

async fn names(fixture: &Fixture) -> Result<BTreeSet<String>, Failure> {
    Ok(fixture.store().await?.list().map_ok(|entry| entry.id.to_string()).try_collect().await?)
}

async fn listed_locations_can_be_read(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let contents: Vec<Content> = (1..6).map(|n| Content::new(n, 1000 * n)).collect();
    let mut at = Vec::new();
    for content in &contents {
        at.push(fixture.blob(&store, "read", content).await?);
    }
    let witness = fixture.store().await?;
    let entries: Vec<Entry> = witness
        .list()
        .try_filter(|entry| std::future::ready(at.contains(&entry.location)))
        .try_collect()
        .await?;
    ensure!(entries.len() == 5, "{} of 5 blobs are listed where they were put", entries.len());
    for entry in entries {
        let content = contents.iter().find(|content| content.len() == entry.size);
        let content = content.ok_or_else(|| Failure::broken(format!("no blob has {} bytes", entry.size)))?;
        content.is_at(&store, &entry.location).await?;
    }
    Ok(())
}

async fn a_deleted_blob_is_not_listed(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let (gone, kept) = (fixture.id("gone"), fixture.id("kept"));
    let at = fixture.put(&store, &gone, &Content::new(1, 100)).await?.location;
    fixture.put(&store, &kept, &Content::new(2, 100)).await?;
    let ids: BTreeSet<BlobId> = [gone.clone(), kept.clone()].into();
    ensure!(listed(&fixture.store().await?, &ids).await?.len() == 2, "two blobs are not listed");
    store.delete(&at).await?;
    let found = listed(&fixture.store().await?, &ids).await?;
    ensure!(found.keys().eq([&kept]), "{:?} are listed after one was deleted", found.keys());
    Ok(())
}

async fn a_list_may_be_dropped_half_way(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let mut ids = BTreeSet::new();
    for n in 0..5 {
        let id = fixture.id("some");
        fixture.put(&store, &id, &Content::new(n, 10)).await?;
        ids.insert(id);
    }
    for _ in 0..10 {
        let mut entries = store.list();
        ensure!(entries.try_next().await?.is_some(), "five blobs, and none is listed");
    }
    ensure!(listed(&store, &ids).await?.len() == 5, "not all of five blobs are listed");
    Ok(())
}

async fn blobs_that_come_and_go_do_not_disturb_a_list(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let mut steady = BTreeSet::new();
    for n in 0..20 {
        let id = fixture.id(&format!("steady-{n}"));
        fixture.put(&store, &id, &Content::new(n, 10)).await?;
        steady.insert(id);
    }
    let restless = async {
        for n in 0..30 {
            let id = fixture.id(&format!("restless-{n}"));
            let blob = fixture.put(&store, &id, &Content::new(n, 10)).await?;
            tokio::task::yield_now().await;
            store.delete(&blob.location).await?;
        }
        Ok::<_, Failure>(())
    };
    let lists = async {
        let witness = fixture.store().await?;
        for _ in 0..10 {
            let found = listed(&witness, &steady).await?;
            ensure!(found.len() == steady.len(), "{} of {} blobs are listed", found.len(), steady.len());
            tokio::task::yield_now().await;
        }
        Ok(())
    };
    futures::try_join!(restless, lists).map(drop)
}
