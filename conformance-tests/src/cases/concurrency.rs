//! Many at once, through more than one handle.

use futures::{FutureExt, StreamExt, TryStreamExt, future, stream};
use store_core::{BlobId, ErrorKind, Expect, Store};

use crate::{
    Fixture, Outcome,
    case::{Failure, cases, ensure},
    source::{Content, Rng},
};

cases! { Concurrency:
    of_64_racing_puts_one_wins proves [3] needs [Write, AtomicCreate];
    of_8_simultaneous_commits_one_wins proves [3] needs [Write, AtomicCreate, Transfers(8)];
    sixty_four_uploads_at_once_are_all_whole proves [1, 4] needs [Write];
    sixteen_readers_of_one_blob_see_the_same_bytes proves [4] needs [Blobs];
    reads_and_writes_do_not_disturb_each_other proves [4] needs [Write];
    a_reader_of_a_deleted_blob_sees_its_bytes_or_an_error proves [4] needs [Write, Delete];
    a_reader_of_a_replaced_blob_never_sees_the_other_bytes proves [4] needs [Write, Delete, Transfers(2)];
    an_id_that_comes_and_goes_is_always_whole_or_absent proves [1, 3, 4] needs [Write, Delete];
}

/// What came of rivals, each with its number: the winner's, if there is exactly one and the others say so.
fn winner<T>(outcomes: Vec<(u64, store_core::Result<T>)>) -> Result<(u64, T), Failure> {
    let mut won = Vec::new();
    for (n, outcome) in outcomes {
        match outcome {
            Ok(blob) => won.push((n, blob)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Failure::from(error).at(format!("rival {n}"))),
        }
    }
    ensure!(won.len() <= 1, "{} rivals won", won.len());
    won.pop().ok_or_else(|| Failure::broken("no rival won"))
}

async fn of_64_racing_puts_one_wins(fixture: &Fixture) -> Outcome {
    let id = fixture.id("race");
    let handles = [fixture.store().await?, fixture.store().await?];
    let content = |n: u64| Content::new(n, 40_000 + n);
    let rivals = (0..64u64).map(|n| {
        let (store, id) = (handles[n as usize % 2].clone(), id.clone());
        let source = content(n).source().pieces(7000).stream();
        let put = tokio::spawn(async move { store.put(&id, source, Expect::new()).await });
        put.map(move |joined| (n, joined))
    });
    let mut outcomes = Vec::new();
    for (n, joined) in future::join_all(rivals).await {
        outcomes.push((n, joined.map_err(|panic| Failure::broken(format!("rival {n}: {panic}")))?));
    }
    let (n, blob) = winner(outcomes)?;
    content(n).is_at(&fixture.store().await?, &blob.location).await?;
    fixture.holds_only(&handles[0], &[&id]).await
}

/// All have sent everything before the first one commits, so that only the commit itself can decide.
async fn of_8_simultaneous_commits_one_wins(fixture: &Fixture) -> Outcome {
    let handles = [fixture.store().await?, fixture.store().await?];
    for round in 0..5 {
        let id = fixture.id("race");
        let content = |n: u64| Content::new(8 * round + n, 20_000 + n);
        let mut rivals = Vec::new();
        for n in 0..8 {
            let mut writer = handles[n as usize % 2].upload(&id, Expect::new()).await?;
            writer.write(content(n).bytes(0..content(n).len())).await?;
            rivals.push((n, writer));
        }
        let rivals: Vec<_> = rivals
            .into_iter()
            .map(|(n, writer)| tokio::spawn(writer.finish()).map(move |joined| (n, joined)))
            .collect();
        let mut outcomes = Vec::new();
        for (n, joined) in future::join_all(rivals).await {
            outcomes.push((n, joined.map_err(|panic| Failure::broken(format!("rival {n}: {panic}")))?));
        }
        let (n, blob) = winner(outcomes)?;
        content(n).is_at(&fixture.store().await?, &blob.location).await?;
    }
    Ok(())
}

async fn sixty_four_uploads_at_once_are_all_whole(fixture: &Fixture) -> Outcome {
    let handles = [fixture.store().await?, fixture.store().await?];
    let puts = (0..64).map(|n| {
        let content = Content::new(n, 1000 * n + 7).with_random_holes(n, 3, 5000);
        let store = &handles[n as usize % 2];
        async move {
            let id = fixture.id(&format!("parallel-{n}"));
            let source = content.source().odd_pieces(n).stream();
            let at = store.put(&id, source, Expect::new()).await?.location;
            Ok::<_, Failure>((content, at))
        }
    });
    let blobs = future::try_join_all(puts).await?;
    let witness = fixture.store().await?;
    for (content, at) in &blobs {
        content.is_at(&witness, at).await.map_err(|failure| failure.at(at))?;
    }
    Ok(())
}

async fn sixteen_readers_of_one_blob_see_the_same_bytes(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = Content::new(1, 2 * store.info().chunk as u64 + 99).with_random_holes(2, 9, 50_000);
    let at = fixture.blob(&store, "shared", &content).await?;
    let other = fixture.store().await?;
    let reads = (0..16).map(|n| content.is_at(if n % 2 == 0 { &store } else { &other }, &at));
    future::try_join_all(reads).await.map(drop)
}

async fn reads_and_writes_do_not_disturb_each_other(fixture: &Fixture) -> Outcome {
    let handles = [fixture.store().await?, fixture.store().await?];
    let chunk = handles[0].info().chunk as u64;
    let works = (0..12u64).map(|n| {
        let handles = &handles;
        async move {
            let mut rng = Rng::new(n);
            for round in 0..3 {
                let content = Content::new(100 * n + round, rng.below(chunk + chunk / 2) + 1);
                let id = fixture.id(&format!("mixed-{n}"));
                let at = fixture.put(&handles[n as usize % 2], &id, &content).await?.location;
                let reader = handles[(n as usize + 1) % 2].open(&at).await?;
                let from = rng.below(content.len());
                content.is_read_by(&reader, from..content.len()).await?;
                content.is_read_by(&reader, 0..content.len()).await?;
            }
            Ok::<_, Failure>(())
        }
    });
    stream::iter(works).buffer_unordered(6).try_collect().await
}

/// Reads what is left of `content`: all of it, or up to an error that owns up to the end.
async fn bytes_or_an_error(
    mut checker: crate::source::Checker,
    mut stream: store_core::ByteStream,
) -> Outcome {
    loop {
        match stream.next().await {
            Some(Ok(bytes)) => checker.feed(&bytes)?,
            None => return checker.end(),
            Some(Err(error)) => {
                let kinds = [ErrorKind::NotFound, ErrorKind::Corrupt, ErrorKind::Unavailable];
                ensure!(kinds.contains(&error.kind()), "the read ends with {}: {error}", error.kind());
                return Ok(());
            }
        }
    }
}

async fn a_reader_of_a_deleted_blob_sees_its_bytes_or_an_error(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = Content::new(3, 6 * store.info().chunk as u64 + 3);
    let at = fixture.put(&store, &fixture.id("deleted"), &content).await?.location;
    let reader = fixture.store().await?.open(&at).await?;
    let mut started = reader.stream(..)?;
    let mut checker = content.checker(0..content.len());
    if let Some(bytes) = started.try_next().await? {
        checker.feed(&bytes)?;
    }
    store.delete(&at).await?;
    bytes_or_an_error(checker, started).await.map_err(|f| f.at("a read under way"))?;
    let late = reader.stream(..)?;
    bytes_or_an_error(content.checker(0..content.len()), late)
        .await
        .map_err(|f| f.at("a read begun afterwards"))
}

async fn a_reader_of_a_replaced_blob_never_sees_the_other_bytes(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let id = fixture.id("replaced");
    let len = 6 * store.info().chunk as u64 + 3;
    // Of one length, so that nothing but the bytes tells them apart.
    let (old, new) = (Content::new(4, len), Content::new(5, len));
    let at = fixture.put(&store, &id, &old).await?.location;
    let reader = fixture.store().await?.open(&at).await?;
    let mut started = reader.stream(..)?;
    let mut checker = old.checker(0..len);
    if let Some(bytes) = started.try_next().await? {
        checker.feed(&bytes)?;
    }
    store.delete(&at).await?;
    let blob = fixture.put(&store, &id, &new).await?;
    bytes_or_an_error(checker, started).await.map_err(|f| f.at("a read under way"))?;
    let part = reader.stream(len / 2..)?;
    bytes_or_an_error(old.checker(len / 2..len), part).await.map_err(|f| f.at("a read begun afterwards"))?;
    new.is_at(&fixture.store().await?, &blob.location).await
}

async fn an_id_that_comes_and_goes_is_always_whole_or_absent(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let id = fixture.id("restless");
    let content = Content::new(6, 300_000);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let comes_and_goes = async {
        for _ in 0..15 {
            let blob = fixture.put(&store, &id, &content).await?;
            tokio::task::yield_now().await;
            store.delete(&blob.location).await?;
        }
        // The readers are gone only when they have failed, and that is what counts then.
        let _ = stop.send(true);
        Ok::<_, Failure>(())
    };
    let readers = (0..4).map(|_| watch(fixture, &id, &content, stopped.clone()));
    future::try_join(comes_and_goes, future::try_join_all(readers)).await.map(drop)
}

async fn watch(
    fixture: &Fixture,
    id: &BlobId,
    content: &Content,
    stopped: tokio::sync::watch::Receiver<bool>,
) -> Outcome {
    let store: Store = fixture.store().await?;
    while !*stopped.borrow() {
        let opened = match store.locate(id).await {
            Ok(at) => store.open(&at).await,
            Err(error) => Err(error),
        };
        match opened {
            Ok(reader) => bytes_or_an_error(content.checker(0..content.len()), reader.stream(..)?).await?,
            Err(error) => ensure!(error.kind() == ErrorKind::NotFound, "{}: {error}", error.kind()),
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}
