//! A storage can do what it declares, refuses what it does not, and damage does not pass for data.

use std::time::Duration;

use futures::TryStreamExt;
use store_core::{ErrorKind, Expect, Location, Store};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    Damage, Fixture, Outcome,
    case::{Failure, cases, ensure, refused},
    source::Content,
};

cases! { Honesty:
    every_handle_says_the_same_of_itself proves [6] needs [];
    what_it_says_of_itself_makes_sense proves [6] needs [];
    uploads_that_are_not_declared_are_refused proves [6] needs [NoWrite];
    sweeps_without_uploads_find_nothing proves [2, 6] needs [NoWrite];
    deletion_that_is_declared_works proves [6] needs [Write, Delete];
    deletion_that_is_not_declared_is_refused proves [6] needs [NoDelete, Blobs];
    a_list_that_is_not_declared_is_refused proves [6] needs [NoList];
    a_capacity_that_is_declared_adds_up proves [6] needs [Capacity];
    a_capacity_that_is_not_declared_is_refused proves [6] needs [NoCapacity];
    a_url_gives_the_bytes_to_anybody proves [4, 6] needs [Write, Presign];
    a_url_ends_when_its_time_is_over proves [6, 8] needs [Write, Presign];
    a_url_that_is_not_declared_is_refused proves [6] needs [NoPresign, Blobs];
    an_upload_that_cannot_fit_is_refused proves [6] needs [Write, Capacity];
    a_read_only_view_refuses_every_change proves [6] needs [Write, Options];
    one_flipped_bit_fails_a_whole_read proves [4] needs [Blobs, Metadata, VerifiedReads, Damage];
    one_flipped_bit_fails_a_verification proves [4, 9] needs [Blobs, Metadata, Damage];
    a_blob_cut_short_fails_a_whole_read proves [4] needs [Blobs, Metadata, Damage];
    a_blob_cut_short_fails_a_verification proves [4, 9] needs [Blobs, Metadata, Damage];
}

async fn every_handle_says_the_same_of_itself(fixture: &Fixture) -> Outcome {
    // An atomic creation may be claimed as late as an upload has shown what the server does, and then stays.
    let said = |store: &Store, atomic_create: bool| {
        let mut info = store.info().clone();
        info.can.atomic_create |= atomic_create;
        format!("{info:?}")
    };
    let (one, other) = (fixture.store().await?, fixture.store().await?);
    let (claimed, before) = (one.info().can.atomic_create, said(&one, true));
    ensure!(said(&other, true) == before, "two handles differ: {before} and {:?}", other.info());
    if one.info().can.write {
        fixture.put(&one, &fixture.id("info"), &Content::new(1, 100)).await?;
    }
    let after = said(&one, false);
    ensure!(!claimed || one.info().can.atomic_create, "{after} has given up what was claimed");
    for store in [&one, &other, &fixture.store().await?] {
        ensure!(said(store, true) == before, "{:?} has changed from {before}", store.info());
    }
    if other.info().can.write {
        fixture.put(&other, &fixture.id("other"), &Content::new(2, 100)).await?;
    }
    for store in [&one, &other] {
        ensure!(said(store, false) == after, "{:?} is no longer what it was: {after}", store.info());
    }
    Ok(())
}

async fn what_it_says_of_itself_makes_sense(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let info = store.info();
    for scheme in std::iter::once(&info.scheme).chain(info.also) {
        let at: Location = format!("{scheme}://x/y").parse()?;
        ensure!(at.scheme() == *scheme, "{scheme:?} is not the scheme of a URI in lower case");
    }
    ensure!((4096..=64 << 20).contains(&info.chunk), "chunks of {} bytes", info.chunk);
    if let Some(hole) = info.hole {
        let fits = hole > 0 && (info.chunk as u64).is_multiple_of(hole);
        ensure!(fits, "holes of {hole} bytes do not fill chunks of {}", info.chunk);
    }
    let can = info.can;
    ensure!(can.write || !can.atomic_create && !can.staging, "abilities of uploads without uploads: {can:?}");
    Ok(())
}

async fn uploads_that_are_not_declared_are_refused(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let upload = store.upload(&fixture.id("refused"), Expect::new()).await;
    refused("an upload", upload, ErrorKind::Unsupported)?;
    let put = store.put(&fixture.id("refused"), store_core::once("x"), Expect::new()).await;
    refused("a put", put, ErrorKind::Unsupported)?;
    Ok(())
}

async fn sweeps_without_uploads_find_nothing(fixture: &Fixture) -> Outcome {
    match fixture.store().await?.sweep(Duration::from_secs(86_400)).await {
        Ok(swept) => ensure!(swept.uploads == 0, "{} uploads were swept where none can be", swept.uploads),
        Err(error) => ensure!(error.kind() == ErrorKind::Unsupported, "{}: {error}", error.kind()),
    }
    Ok(())
}

async fn deletion_that_is_declared_works(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let blob = fixture.put(&store, &fixture.id("delete"), &Content::new(2, 100)).await?;
    store.delete(&blob.location).await?;
    refused("opening what was deleted", store.open(&blob.location).await, ErrorKind::NotFound)?;
    Ok(())
}

async fn deletion_that_is_not_declared_is_refused(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = Content::new(3, 100);
    let at = fixture.blob(&store, "kept", &content).await?;
    refused("a deletion", store.delete(&at).await, ErrorKind::Unsupported)?;
    content.is_at(&fixture.store().await?, &at).await
}

async fn a_list_that_is_not_declared_is_refused(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let first = store.list().try_next().await;
    refused("a list", first, ErrorKind::Unsupported)?;
    Ok(())
}

async fn a_capacity_that_is_declared_adds_up(fixture: &Fixture) -> Outcome {
    let capacity = fixture.store().await?.capacity().await?;
    ensure!(capacity.total > 0, "there is no space at all");
    ensure!(capacity.free <= capacity.total, "{} of {} bytes are free", capacity.free, capacity.total);
    Ok(())
}

async fn a_capacity_that_is_not_declared_is_refused(fixture: &Fixture) -> Outcome {
    refused("a measurement", fixture.store().await?.capacity().await, ErrorKind::Unsupported)?;
    Ok(())
}

async fn a_url_gives_the_bytes_to_anybody(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    for content in [Content::new(31, 10), Content::new(32, 3 * store.info().chunk as u64 + 11)] {
        let at = fixture.put(&store, &fixture.id("handed out"), &content).await?.location;
        let url = store.presign(&at, Duration::from_secs(600)).await?;
        for secret in fixture.secrets() {
            ensure!(!url.expose().contains(secret.as_str()), "the URL shows a secret");
        }
        let (status, body) = get(url.expose()).await?;
        ensure!(status == 200, "a GET of the URL gives {status}");
        let mut checker = content.checker(0..content.len());
        checker.feed(&body)?;
        checker.end()?;
    }
    Ok(())
}

async fn a_url_ends_when_its_time_is_over(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let at = fixture.put(&store, &fixture.id("handed out"), &Content::new(33, 10)).await?.location;
    let url = store.presign(&at, Duration::from_secs(1)).await?;
    // Servers count in whole seconds, and their clock may be behind.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let (status, _) = get(url.expose()).await?;
    ensure!((400..500).contains(&status), "a GET of a URL whose time is over gives {status}");
    Ok(())
}

/// GETs an `http://` URL as a program would that knows nothing of this store: HTTP/1.0, so that the body has no framing.
async fn get(url: &str) -> Result<(u16, Vec<u8>), Failure> {
    let Some(rest) = url.strip_prefix("http://") else {
        return Err(Failure::NothingToTry("the URL asks for TLS".into()));
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let exchange = async {
        let mut connection = TcpStream::connect(address).await?;
        let request = format!("GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
        connection.write_all(request.as_bytes()).await?;
        let mut reply = Vec::new();
        connection.read_to_end(&mut reply).await?;
        std::io::Result::Ok(reply)
    };
    let reply =
        exchange.await.map_err(|error| Failure::broken(format!("the URL cannot be fetched: {error}")))?;
    let end = reply.windows(4).position(|four| four == b"\r\n\r\n");
    let status = reply.get(9..12).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    match status.zip(end) {
        Some((status, end)) => Ok((status, reply[end + 4..].to_vec())),
        None => Err(Failure::broken("the URL leads to something that does not speak HTTP")),
    }
}

async fn a_url_that_is_not_declared_is_refused(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let at = fixture.blob(&store, "kept", &Content::new(34, 100)).await?;
    refused("a URL", store.presign(&at, Duration::from_secs(60)).await, ErrorKind::Unsupported)?;
    Ok(())
}

/// Who can measure the space can see before the first byte that an image is larger than all of it.
async fn an_upload_that_cannot_fit_is_refused(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let total = store.capacity().await?.total;
    let most = store.options().max_size.map_or(u64::MAX, |size| size.0);
    let size = total.saturating_mul(2).saturating_add(1 << 20);
    if size > most {
        return Err(Failure::NothingToTry("max_size refuses it already".into()));
    }
    let id = fixture.id("large");
    let upload = store.upload(&id, Expect::new().size(size)).await;
    refused("an upload of twice the capacity", upload, ErrorKind::NoSpace)?;
    fixture.holds_only(&store, &[]).await
}

async fn a_read_only_view_refuses_every_change(fixture: &Fixture) -> Outcome {
    let id = fixture.id("kept");
    let content = Content::new(4, 50_000);
    let at = fixture.put(&fixture.store().await?, &id, &content).await?.location;
    let view = fixture.store_with(|options| options.read_only = true).await?;
    ensure!(!view.info().can.write && !view.info().can.delete, "it declares {:?}", view.info().can);
    let put = view.put(&fixture.id("refused"), store_core::once("x"), Expect::new()).await;
    refused("a put", put, ErrorKind::Unsupported)?;
    refused("a deletion", view.delete(&at).await, ErrorKind::Unsupported)?;
    refused("a sweep", view.sweep(Duration::from_secs(86_400)).await, ErrorKind::Unsupported)?;
    content.is_at(&view, &view.locate(&id).await?).await
}

/// Stores a blob, damages it at places of all kinds, one at a time, and has `notices` look each time.
async fn damaged(fixture: &Fixture, whole: bool, damages: impl Fn(u64) -> Vec<Damage>) -> Outcome {
    let store = fixture.store().await?;
    let content = Content::new(5, 2 * store.info().chunk as u64 + 77);
    for damage in damages(content.len()) {
        let at = fixture.blob(&store, "damaged", &content).await?;
        content.is_at(&fixture.store().await?, &at).await?;
        fixture.spoil(&at, damage).await?;
        let witness = fixture.store().await?;
        let outcome = match whole {
            true => witness.get(&at, ..).await.map(drop),
            false => witness.verify(&at, |_| {}).await.map(drop),
        };
        let error = refused("this", outcome, ErrorKind::Corrupt).map_err(|f| f.at(format!("{damage:?}")))?;
        ensure!(error.hint().is_some(), "the error does not say what to do: {error}");
    }
    Ok(())
}

fn flips(len: u64) -> Vec<Damage> {
    [0, len / 2, len - 1].map(Damage::Flip).into()
}

async fn one_flipped_bit_fails_a_whole_read(fixture: &Fixture) -> Outcome {
    damaged(fixture, true, flips).await
}

async fn one_flipped_bit_fails_a_verification(fixture: &Fixture) -> Outcome {
    damaged(fixture, false, flips).await
}

async fn a_blob_cut_short_fails_a_whole_read(fixture: &Fixture) -> Outcome {
    damaged(fixture, true, |len| vec![Damage::Truncate(len - 1), Damage::Truncate(0)]).await
}

async fn a_blob_cut_short_fails_a_verification(fixture: &Fixture) -> Outcome {
    damaged(fixture, false, |len| vec![Damage::Truncate(len - 1), Damage::Truncate(0)]).await
}
