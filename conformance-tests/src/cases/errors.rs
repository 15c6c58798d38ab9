//! Errors that a program can act on and a person can read.

use store_core::{BlobId, Error, ErrorKind, Expect, Location, Store};

use crate::{
    Fixture, Outcome,
    case::{Failure, cases, ensure, refused, refused_as},
    source::Content,
};

cases! { Errors:
    a_missing_blob_is_not_found proves [6] needs [Blobs];
    a_blob_that_was_deleted_is_not_found proves [6] needs [Write, Delete];
    deleting_twice_is_not_found proves [6] needs [Write, Delete];
    a_location_of_another_scheme_is_invalid proves [6] needs [];
    a_malformed_location_is_invalid proves [6] needs [];
    a_location_cannot_climb_out proves [6] needs [Blobs];
    the_longest_id_works proves [3] needs [Write];
    ids_are_told_apart_by_case proves [3] needs [Write];
    ids_that_begin_alike_are_different_blobs proves [2, 3] needs [Write];
    a_location_survives_as_text proves [9] needs [Blobs];
    every_error_says_what_failed proves [6] needs [Write];
    secrets_never_show proves [8] needs [];
}

/// A location that names nothing: that of a blob which was here once, or a sibling of one that is.
async fn nowhere(fixture: &Fixture, store: &Store) -> Result<Location, Failure> {
    let at = fixture.blob(store, "here", &Content::new(1, 10)).await?;
    if store.info().can.delete {
        store.delete(&at).await?;
        return Ok(at);
    }
    Ok(at.to_string().replace("conformance-here-", "conformance-nowhere-").parse()?)
}

async fn a_missing_blob_is_not_found(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    if store.info().can.write {
        let located = store.locate(&fixture.id("none")).await;
        refused("locating a blob that is not there", located, ErrorKind::NotFound)?;
    }
    let at = nowhere(fixture, &store).await?;
    refused("opening a blob that is not there", store.open(&at).await, ErrorKind::NotFound)?;
    refused("stat of a blob that is not there", store.stat(&at).await, ErrorKind::NotFound)?;
    refused("get of a blob that is not there", store.get(&at, ..).await, ErrorKind::NotFound)?;
    refused("get of nothing of a missing blob", store.get(&at, 0..0).await, ErrorKind::NotFound)?;
    refused("verifying a blob that is not there", store.verify(&at, |_| {}).await, ErrorKind::NotFound)?;
    if store.info().can.delete {
        refused("deleting a blob that is not there", store.delete(&at).await, ErrorKind::NotFound)?;
    }
    Ok(())
}

async fn a_blob_that_was_deleted_is_not_found(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let id = fixture.id("gone");
    let at = fixture.put(&store, &id, &Content::new(2, 1 << 16)).await?.location;
    let witness = fixture.store().await?;
    Content::new(2, 1 << 16).is_at(&witness, &at).await?;
    store.delete(&at).await?;
    for handle in [&store, &witness, &fixture.store().await?] {
        refused("locating a deleted blob", handle.locate(&id).await, ErrorKind::NotFound)?;
        refused("opening a deleted blob", handle.open(&at).await, ErrorKind::NotFound)?;
    }
    Ok(())
}

async fn deleting_twice_is_not_found(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let at = fixture.put(&store, &fixture.id("twice"), &Content::new(3, 10)).await?.location;
    store.delete(&at).await?;
    refused("deleting again", store.delete(&at).await, ErrorKind::NotFound)?;
    refused("deleting again elsewhere", fixture.store().await?.delete(&at).await, ErrorKind::NotFound)?;
    Ok(())
}

/// What a call answers to a location that it cannot take.
async fn refuses(store: &Store, text: &str, kinds: &[ErrorKind]) -> Outcome {
    let at: Location = text.parse()?;
    refused_as(&format!("opening {at}"), store.open(&at).await, kinds)?;
    if store.info().can.delete {
        refused_as(&format!("deleting {at}"), store.delete(&at).await, kinds)?;
    }
    Ok(())
}

async fn a_location_of_another_scheme_is_invalid(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    for text in ["nonsense://host/bucket/key", "nonsense:opaque", "data:,x"] {
        refuses(&store, text, &[ErrorKind::Invalid]).await?;
    }
    if store.info().can.write {
        let at = fixture.put(&store, &fixture.id("scheme"), &Content::new(4, 100)).await?.location;
        refuses(&store, &format!("x{at}"), &[ErrorKind::Invalid]).await?;
        Content::new(4, 100).is_at(&store, &at).await?;
    }
    Ok(())
}

async fn a_malformed_location_is_invalid(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    for scheme in std::iter::once(&store.info().scheme).chain(store.info().also) {
        refuses(&store, &format!("{scheme}:malformed"), &[ErrorKind::Invalid]).await?;
    }
    Ok(())
}

/// Locations come from a database that others may write to.
async fn a_location_cannot_climb_out(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let at = fixture.blob(&store, "inside", &Content::new(4, 100)).await?.to_string();
    let kinds = [ErrorKind::Invalid, ErrorKind::NotFound, ErrorKind::Denied];
    for end in
        ["/../../../../../../etc/hostname", "/%2e%2e/%2e%2e/%2e%2e/etc/hostname", "%00", "%2f..", "/.."]
    {
        let out: Location = format!("{at}{end}").parse()?;
        // Only opened: what a storage that follows it would delete is not the suite's.
        refused_as(&format!("opening {out}"), store.open(&out).await, &kinds)?;
    }
    Content::new(4, 100).is_at(&store, &at.parse()?).await
}

async fn whole(fixture: &Fixture, id: &BlobId) -> Outcome {
    let store = fixture.store().await?;
    let content = Content::new(5, 5000);
    let blob = fixture.put(&store, id, &content).await?;
    let witness = fixture.store().await?;
    ensure!(witness.locate(id).await? == blob.location, "it is located elsewhere than it was put");
    content.is_at(&witness, &blob.location).await
}

async fn the_longest_id_works(fixture: &Fixture) -> Outcome {
    let id = fixture.longest_id();
    ensure!(id.as_str().len() == BlobId::MAX_LEN, "{} is not the longest", id.as_str().len());
    // Told apart by their last characters only.
    let other = fixture.id_of(format!("{}Z", &id.as_str()[..BlobId::MAX_LEN - 1]));
    whole(fixture, &id).await?;
    whole(fixture, &other).await?;
    fixture.holds_only(&fixture.store().await?, &[&id, &other]).await
}

async fn ids_are_told_apart_by_case(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let upper = fixture.id("Case");
    let lower = fixture.id_of(upper.as_str().to_lowercase());
    let (one, other) = (Content::new(6, 100), Content::new(7, 200));
    let first = fixture.put(&store, &upper, &one).await?;
    refused("locating the other case", store.locate(&lower).await, ErrorKind::NotFound)?;
    let second = fixture.put(&store, &lower, &other).await?;
    one.is_at(&store, &first.location).await?;
    other.is_at(&store, &second.location).await
}

/// Neither a clean-up nor a deletion may take what merely begins like its own.
async fn ids_that_begin_alike_are_different_blobs(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let stem = fixture.id("stem");
    let mut others = Vec::new();
    for end in ["-1", ".1", "_", ".part", ".meta", "0"] {
        let id = fixture.id_of(format!("{stem}{end}"));
        let at = fixture.put(&store, &id, &Content::new(8, 100)).await?.location;
        others.push((id, at));
    }
    refused("locating what only others begin with", store.locate(&stem).await, ErrorKind::NotFound)?;
    let content = Content::new(9, 3 * store.info().chunk as u64);
    let mut writer = store.upload(&stem, Expect::new()).await?;
    writer.write(content.bytes(0..content.len())).await?;
    writer.abort().await?;
    let at = fixture.put(&store, &stem, &content).await?.location;
    if store.info().can.delete {
        store.delete(&at).await?;
    }
    for (id, at) in &others {
        ensure!(store.locate(id).await? == *at, "{id} is somewhere else now");
        Content::new(8, 100).is_at(&fixture.store().await?, at).await.map_err(|f| f.at(id))?;
    }
    Ok(())
}

/// A database keeps locations as text.
async fn a_location_survives_as_text(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = Content::new(10, 10_000);
    let at = fixture.blob(&store, "text", &content).await?;
    let text = at.to_string();
    ensure!(at.scheme() == store.info().scheme, "its scheme is {}, not {}", at.scheme(), store.info().scheme);
    let again: Location = text.parse()?;
    ensure!(again == at && again.to_string() == text, "{text} does not parse into itself");
    content.is_at(&fixture.store().await?, &again).await
}

/// Store, call and target must be in the text, and the kind must say what to do.
fn says(error: &Error, store: &Store, operation: &str, target: &str) -> Outcome {
    let text = error.to_string();
    for part in [store.name(), operation, target] {
        ensure!(text.contains(part), "the error {text:?} does not name {part:?}");
    }
    ensure!(error.store() == Some(store.name()), "the error {text:?} has no store");
    ensure!(
        error.operation() == Some(operation),
        "the operation is {:?}, not {operation}",
        error.operation()
    );
    ensure!(target.is_empty() || error.target() == Some(target), "the target is {:?}", error.target());
    ensure!(!error.message().is_empty(), "there is no message");
    Ok(())
}

async fn every_error_says_what_failed(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let id = fixture.id("none");
    let located = refused("locating nothing", store.locate(&id).await, ErrorKind::NotFound)?;
    says(&located, &store, "locate", id.as_str())?;
    let at = nowhere(fixture, &store).await?;
    let opened = refused("opening nothing", store.open(&at).await, ErrorKind::NotFound)?;
    says(&opened, &store, "open", &at.to_string())?;
    if store.info().can.delete {
        let deleted = refused("deleting nothing", store.delete(&at).await, ErrorKind::NotFound)?;
        says(&deleted, &store, "delete", &at.to_string())?;
    }
    let taken = fixture.id("taken");
    let blob = fixture.put(&store, &taken, &Content::new(11, 100)).await?;
    let again = store.put(&taken, store_core::once("x"), Expect::new()).await;
    says(&refused("a put of a taken id", again, ErrorKind::AlreadyExists)?, &store, "put", taken.as_str())?;
    let read = store.get(&blob.location, 0..101).await;
    let read = refused("reading past the end", read, ErrorKind::Invalid)?;
    says(&read, &store, "read", &blob.location.to_string())?;

    let short = fixture.id("short");
    let mut writer = store.upload(&short, Expect::new().size(1)).await?;
    let written = writer.write(bytes::Bytes::from_static(b"xy")).await;
    says(&refused("a write beyond the size", written, ErrorKind::Corrupt)?, &store, "put", short.as_str())?;
    let finished = refused("finishing a broken upload", writer.finish().await, ErrorKind::Invalid)?;
    says(&finished, &store, "put", short.as_str())
}

async fn secrets_never_show(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let mut shown = vec![format!("{store:?}"), format!("{:?}", store.info())];
    let mut note = |error: Option<Error>| {
        if let Some(error) = error {
            shown.extend([
                error.to_string(),
                format!("{error:?}"),
                error.hint().unwrap_or_default().to_owned(),
            ]);
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                shown.extend([error.to_string(), format!("{error:?}")]);
                cause = error.source();
            }
        }
    };
    note(store.locate(&fixture.id("none")).await.err());
    let mut secrets = fixture.secrets().to_vec();
    // A file's location has no credentials in it (RFC 8089).
    if store.info().scheme != "file" {
        secrets.push("hunter2secret".to_owned());
        for text in [
            "user:hunter2secret@conformance.invalid/a/b",
            ":hunter2secret@conformance.invalid:1/a",
            "user:hunter2secret@",
        ] {
            let at: Location = format!("{}://{text}", store.info().scheme).parse()?;
            note(store.open(&at).await.err());
            note(store.get(&at, 5..6).await.err());
            note(store.delete(&at).await.err());
        }
    }
    if store.info().can.write {
        let blob = fixture.put(&store, &fixture.id("blob"), &Content::new(12, 10)).await?;
        note(store.get(&blob.location, 0..11).await.err());
        shown.push(format!("{} {blob:?}", blob.location));
    }
    for secret in secrets {
        let leak = shown.iter().find(|text| text.contains(&secret));
        ensure!(leak.is_none(), "a secret shows in {:?}", leak.map(|text| text.replace(&secret, "<SECRET>")));
    }
    Ok(())
}
