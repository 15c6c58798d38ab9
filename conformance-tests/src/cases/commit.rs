//! A blob is there whole or not at all, and only once.

use bytes::Bytes;
use store_core::{Algorithm, BlobId, Digests, ErrorKind, Expect, Size, Store, Tap, Writer, inspect::Format};

use crate::{
    Fixture, Outcome,
    case::{Failure, cases, ensure, refused},
    source::Content,
};

cases! { Commit:
    an_unfinished_upload_is_invisible proves [1] needs [Write];
    a_finished_upload_is_visible_to_every_handle proves [1] needs [Write];
    a_blob_outlives_the_handle_that_wrote_it proves [1] needs [Write];
    a_blob_survives_a_crash_of_the_storage proves [1] needs [Write, Crash];
    an_upload_cut_by_a_crash_is_invisible proves [1, 2] needs [Write, Crash];
    a_taken_id_is_refused proves [3] needs [Write];
    the_second_of_two_open_uploads_loses proves [3] needs [Write, Transfers(3)];
    an_id_is_free_again_after_a_delete proves [3] needs [Write, Delete];
    an_id_is_free_again_after_an_abort proves [2, 3] needs [Write];
    an_id_is_free_again_after_a_failed_put proves [2, 3] needs [Write];
    a_source_that_ends_early_is_corrupt proves [4] needs [Write];
    a_source_that_goes_on_is_corrupt proves [4] needs [Write];
    a_wrong_digest_is_corrupt proves [4] needs [Write];
    a_right_digest_is_accepted proves [4] needs [Write];
    a_writer_that_failed_cannot_be_finished proves [4] needs [Write];
    a_tap_sees_every_byte proves [4] needs [Write];
    a_tap_that_refuses_the_bytes_stops_them proves [4] needs [Write];
    a_tap_that_refuses_at_the_end_stops_them proves [4] needs [Write];
    an_image_beyond_the_greatest_size_is_rejected proves [4] needs [Write, Options];
    an_image_of_the_declared_format_is_kept proves [4] needs [Write, Inspection];
    an_image_of_another_format_is_rejected proves [4] needs [Write, Inspection];
    a_hostile_image_is_rejected proves [4] needs [Write, Inspection];
}

/// An upload with a bit more than two chunks in it.
async fn begun(store: &Store, id: &BlobId) -> Result<Writer, Failure> {
    let mut writer = store.upload(id, Expect::new()).await?;
    let content = Content::new(1, 2 * store.info().chunk as u64 + 5);
    for piece in content.runs(0..content.len()) {
        writer.write(piece).await?;
    }
    Ok(writer)
}

async fn an_unfinished_upload_is_invisible(fixture: &Fixture) -> Outcome {
    let id = fixture.id("unfinished");
    let (store, witness) = (fixture.store().await?, fixture.store().await?);
    let mut writer = store.upload(&id, Expect::new()).await?;
    refused("locating an upload that has begun", witness.locate(&id).await, ErrorKind::NotFound)?;
    let content = Content::new(1, 3 * store.info().chunk as u64);
    for piece in content.runs(0..content.len()) {
        writer.write(piece).await?;
        refused("locating an upload under way", witness.locate(&id).await, ErrorKind::NotFound)?;
        refused("locating an upload under way", store.locate(&id).await, ErrorKind::NotFound)?;
    }
    // Its future location is no secret: it must lead nowhere.
    let at = writer.finish().await?.location;
    if witness.info().can.delete {
        witness.delete(&at).await?;
        let writer = begun(&store, &id).await?;
        refused("opening an upload under way", witness.open(&at).await, ErrorKind::NotFound)?;
        refused("deleting an upload under way", witness.delete(&at).await, ErrorKind::NotFound)?;
        writer.abort().await?;
    }
    Ok(())
}

async fn a_finished_upload_is_visible_to_every_handle(fixture: &Fixture) -> Outcome {
    let id = fixture.id("finished");
    let (store, witness) = (fixture.store().await?, fixture.store().await?);
    let content = Content::new(2, store.info().chunk as u64 + 17);
    // Asked before, a handle must not remember that there was nothing.
    refused("locating a blob before it is there", witness.locate(&id).await, ErrorKind::NotFound)?;
    let blob = fixture.put(&store, &id, &content).await?;
    for handle in [&store, &witness, &fixture.store().await?] {
        let at = handle.locate(&id).await?;
        ensure!(at == blob.location, "locate says {at}, put said {}", blob.location);
        content.is_at(handle, &at).await?;
    }
    Ok(())
}

async fn a_blob_outlives_the_handle_that_wrote_it(fixture: &Fixture) -> Outcome {
    let id = fixture.id("outlives");
    let content = Content::new(3, 100_000);
    let store = fixture.store().await?;
    let text = fixture.put(&store, &id, &content).await?.location.to_string();
    store.settle().await;
    drop(store);
    let store = fixture.store().await?;
    content.is_at(&store, &text.parse()?).await?;
    ensure!(store.locate(&id).await?.to_string() == text, "it is somewhere else now");
    Ok(())
}

async fn a_blob_survives_a_crash_of_the_storage(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = Content::new(4, 2 * store.info().chunk as u64 + 1);
    let id = fixture.id("crash");
    let blob = fixture.put(&store, &id, &content).await?;
    fixture.crash_now().await?;
    let store = fixture.store().await?;
    content.is_at(&store, &blob.location).await?;
    ensure!(store.locate(&id).await? == blob.location, "it is somewhere else now");
    Ok(())
}

async fn an_upload_cut_by_a_crash_is_invisible(fixture: &Fixture) -> Outcome {
    let id = fixture.id("crash");
    let store = fixture.store().await?;
    let writer = begun(&store, &id).await?;
    fixture.crash_now().await?;
    // It may go on where the storage kept what it had, or fail; nothing in between.
    let finished = writer.finish().await;
    store.settle().await;
    let witness = fixture.store().await?;
    match finished {
        Ok(blob) => Content::new(1, 2 * store.info().chunk as u64 + 5).is_at(&witness, &blob.location).await,
        Err(_) => {
            refused("locating a failed upload", witness.locate(&id).await, ErrorKind::NotFound)?;
            fixture.put(&witness, &id, &Content::new(5, 1000)).await.map(drop)
        }
    }
}

async fn a_taken_id_is_refused(fixture: &Fixture) -> Outcome {
    let id = fixture.id("taken");
    let store = fixture.store().await?;
    let (first, second) = (Content::new(6, 50_000), Content::new(7, 60_000));
    let blob = fixture.put(&store, &id, &first).await?;
    for handle in [&store, &fixture.store().await?] {
        let again = handle.put(&id, second.source().stream(), Expect::new()).await;
        refused("a put of a taken id", again, ErrorKind::AlreadyExists)?;
        let same = handle.put(&id, first.source().stream(), Expect::new()).await;
        refused("a put of the same bytes", same, ErrorKind::AlreadyExists)?;
    }
    first.is_at(&fixture.store().await?, &blob.location).await?;
    fixture.holds_only(&store, &[&id]).await
}

async fn the_second_of_two_open_uploads_loses(fixture: &Fixture) -> Outcome {
    let id = fixture.id("rivals");
    let (one, other) = (fixture.store().await?, fixture.store().await?);
    let (first, second) = (Content::new(8, 70_000), Content::new(9, 80_000));
    let mut loser = one.upload(&id, Expect::new()).await?;
    let mut winner = other.upload(&id, Expect::new()).await?;
    loser.write(first.bytes(0..first.len())).await?;
    winner.write(second.bytes(0..second.len())).await?;
    let blob = winner.finish().await?;
    refused("finishing second", loser.finish().await, ErrorKind::AlreadyExists)?;
    second.is_at(&one, &blob.location).await?;
    fixture.holds_only(&one, &[&id]).await
}

async fn an_id_is_free_again_after_a_delete(fixture: &Fixture) -> Outcome {
    let id = fixture.id("again");
    let store = fixture.store().await?;
    let (first, second) = (Content::new(10, 123_456), Content::new(11, 65_000));
    let old = fixture.put(&store, &id, &first).await?;
    fixture.store().await?.delete(&old.location).await?;
    refused("locating a deleted blob", store.locate(&id).await, ErrorKind::NotFound)?;
    let new = fixture.put(&store, &id, &second).await?;
    second.is_at(&fixture.store().await?, &new.location).await?;
    second.is_at(&store, &store.locate(&id).await?).await
}

async fn an_id_is_free_again_after_an_abort(fixture: &Fixture) -> Outcome {
    let id = fixture.id("again");
    let store = fixture.store().await?;
    begun(&store, &id).await?.abort().await?;
    let content = Content::new(12, 30_000);
    let blob = fixture.put(&store, &id, &content).await?;
    content.is_at(&fixture.store().await?, &blob.location).await
}

async fn an_id_is_free_again_after_a_failed_put(fixture: &Fixture) -> Outcome {
    let id = fixture.id("again");
    let store = fixture.store().await?;
    let content = Content::new(13, store.info().chunk as u64 + 30_000);
    let source = content.source().failing_at(content.len() - 1, ErrorKind::Denied);
    refused("a put that fails", store.put(&id, source.stream(), Expect::new()).await, ErrorKind::Denied)?;
    let blob = fixture.put(&store, &id, &content).await?;
    content.is_at(&fixture.store().await?, &blob.location).await
}

/// Has `expect` refuse `content` with `kind`, and makes sure that nothing is kept.
async fn rejects(fixture: &Fixture, content: &Content, expect: Expect, kind: ErrorKind) -> Outcome {
    let id = fixture.id("refused");
    let store = fixture.store().await?;
    let put = store.put(&id, content.source().stream(), expect).await;
    refused("this put", put, kind)?;
    fixture.holds_only(&store, &[]).await
}

async fn a_source_that_ends_early_is_corrupt(fixture: &Fixture) -> Outcome {
    let content = Content::new(14, fixture.store().await?.info().chunk as u64 + 100);
    for announced in [content.len() + 1, 2 * content.len()] {
        rejects(fixture, &content, Expect::new().size(announced), ErrorKind::Corrupt).await?;
    }
    rejects(fixture, &Content::new(14, 0), Expect::new().size(1), ErrorKind::Corrupt).await
}

async fn a_source_that_goes_on_is_corrupt(fixture: &Fixture) -> Outcome {
    let content = Content::new(15, fixture.store().await?.info().chunk as u64 + 100);
    for announced in [content.len() - 1, 1, 0] {
        rejects(fixture, &content, Expect::new().size(announced), ErrorKind::Corrupt).await?;
    }
    Ok(())
}

async fn a_wrong_digest_is_corrupt(fixture: &Fixture) -> Outcome {
    let content = Content::new(16, 100_000);
    for (algorithm, digits) in [(Algorithm::Md5, 32), (Algorithm::Sha256, 64), (Algorithm::Sha512, 128)] {
        let mut digests = Digests::default();
        digests.insert_hex(algorithm, &"5".repeat(digits))?;
        let expect = Expect::new().size(content.len()).digests(digests);
        rejects(fixture, &content, expect, ErrorKind::Corrupt).await.map_err(|f| f.at(algorithm))?;
    }
    Ok(())
}

async fn a_right_digest_is_accepted(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let text = "The quick brown fox jumps over the lazy dog";
    let mut digests = Digests::default();
    digests.insert_hex(Algorithm::Md5, "9E107D9D372BB6826BD81D3542A419D6")?;
    digests
        .insert_hex(Algorithm::Sha256, "d7a8fbb307d7809469ca9abcb0082e4f8d5651e46d3cdb762d02d0bf37c9e592")?;
    let expect = Expect::new().digests(digests.clone());
    let blob = store.put(&fixture.id("digest"), store_core::once(text), expect).await?;
    ensure!(digests.differences(&blob.meta.digests).is_empty(), "other digests came back");
    for (algorithm, _) in digests.iter() {
        ensure!(blob.meta.digests.get(algorithm).is_some(), "the {algorithm} was not kept");
    }
    Content::literal(text).is_at(&fixture.store().await?, &blob.location).await
}

async fn a_writer_that_failed_cannot_be_finished(fixture: &Fixture) -> Outcome {
    let id = fixture.id("broken");
    let store = fixture.store().await?;
    let mut writer = store.upload(&id, Expect::new().size(10)).await?;
    writer.write(Bytes::from_static(b"0123456789")).await?;
    refused("a write beyond the size", writer.write(Bytes::from_static(b"x")).await, ErrorKind::Corrupt)?;
    refused("a write after that", writer.write(Bytes::new()).await, ErrorKind::Invalid)?;
    refused("finishing after that", writer.finish().await, ErrorKind::Invalid)?;
    fixture.holds_only(&store, &[]).await
}

/// Counts and sums what it sees, and refuses at a byte or at the end.
struct Watch {
    checker: crate::source::Checker,
    seen: u64,
    refuse_from: u64,
    report: Option<std::sync::mpsc::Sender<u64>>,
}

impl Watch {
    fn new(content: &Content, refuse_from: u64) -> Self {
        Self { checker: content.checker(0..content.len()), seen: 0, refuse_from, report: None }
    }
}

impl Tap for Watch {
    fn update(&mut self, bytes: &[u8]) -> store_core::Result<()> {
        self.seen += bytes.len() as u64;
        if self.seen > self.refuse_from {
            return Err(store_core::Error::new(ErrorKind::Rejected, "the tap dislikes these bytes"));
        }
        let same = self.checker.feed(bytes);
        same.map_err(|failure| store_core::Error::new(ErrorKind::Internal, failure.to_string()))
    }

    fn finish(self: Box<Self>) -> store_core::Result<()> {
        if self.seen == self.refuse_from {
            return Err(store_core::Error::new(ErrorKind::Rejected, "the tap dislikes the whole"));
        }
        if let Some(report) = self.report {
            // Nobody listens any more only when the case has failed already.
            let _ = report.send(self.seen);
        }
        Ok(())
    }
}

async fn a_tap_sees_every_byte(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let chunk = store.info().chunk as u64;
    let content = Content::new(17, 3 * chunk + 9).with_hole(chunk..2 * chunk);
    let (report, seen) = std::sync::mpsc::channel();
    let tap = Watch { report: Some(report), ..Watch::new(&content, u64::MAX) };
    let id = fixture.id("tap");
    let blob = store.put(&id, content.source().odd_pieces(3).stream(), Expect::new().tap(tap)).await?;
    let seen = seen.recv().unwrap_or_default();
    ensure!(seen == content.len(), "the tap saw {seen} of {} bytes", content.len());
    content.is_at(&fixture.store().await?, &blob.location).await
}

async fn a_tap_that_refuses_the_bytes_stops_them(fixture: &Fixture) -> Outcome {
    let chunk = fixture.store().await?.info().chunk as u64;
    let content = Content::new(18, 12 * chunk);
    for from in [0, chunk, content.len() - 1] {
        let expect = Expect::new().tap(Watch::new(&content, from));
        rejects(fixture, &content, expect, ErrorKind::Rejected).await?;
    }
    Ok(())
}

async fn a_tap_that_refuses_at_the_end_stops_them(fixture: &Fixture) -> Outcome {
    let content = Content::new(19, fixture.store().await?.info().chunk as u64 + 1);
    let expect = Expect::new().tap(Watch::new(&content, content.len()));
    rejects(fixture, &content, expect, ErrorKind::Rejected).await
}

async fn an_image_beyond_the_greatest_size_is_rejected(fixture: &Fixture) -> Outcome {
    let most = 100_000;
    let store = fixture.store_with(|options| options.max_size = Some(Size(most))).await?;
    let (fits, over) = (Content::new(20, most), Content::new(21, most + 1));
    let id = fixture.id("size");
    for expect in [Expect::new(), Expect::new().size(over.len())] {
        let put = store.put(&id, over.source().stream(), expect).await;
        refused("a put beyond max_size", put, ErrorKind::Rejected)?;
        fixture.holds_only(&store, &[]).await?;
    }
    let blob = fixture.put(&store, &id, &fits).await?;
    fits.is_at(&fixture.store().await?, &blob.location).await
}

/// The first cluster of a qcow2 image (version 2) of 1 MiB, with or without a backing file, and three clusters after it.
fn qcow2(backing_file: Option<&str>) -> Content {
    let mut image = vec![0; 4 << 16];
    let name = backing_file.unwrap_or_default();
    image[512..512 + name.len()].copy_from_slice(name.as_bytes());
    let (name_at, name_len) = if name.is_empty() { (0, 0) } else { (512, name.len() as u32) };
    let mut header = b"QFI\xfb".to_vec();
    header.extend(2u32.to_be_bytes());
    header.extend(u64::to_be_bytes(name_at));
    header.extend(name_len.to_be_bytes());
    header.extend(16u32.to_be_bytes()); // clusters of 64 KiB
    header.extend((1u64 << 20).to_be_bytes());
    header.extend(0u32.to_be_bytes()); // no encryption
    header.extend(1u32.to_be_bytes()); // one L1 entry,
    header.extend((3u64 << 16).to_be_bytes()); // in the fourth cluster
    header.extend((1u64 << 16).to_be_bytes()); // the refcount table in the second,
    header.extend(1u32.to_be_bytes()); // which it fills,
    header.extend([0; 12]); // and no snapshots
    image[..header.len()].copy_from_slice(&header);
    // The refcount block is the third cluster; it counts one user of each of the four.
    image[1 << 16..(1 << 16) + 8].copy_from_slice(&(2u64 << 16).to_be_bytes());
    for cluster in 0..4 {
        image[(2 << 16) + 2 * cluster + 1] = 1;
    }
    Content::literal(image)
}

async fn an_image_of_the_declared_format_is_kept(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    for (content, format) in [(Content::new(22, 100_000), Format::Raw), (qcow2(None), Format::Qcow2)] {
        let expect = Expect::new().size(content.len()).format(format);
        let blob = store.put(&fixture.id("format"), content.source().stream(), expect).await?;
        content.is_at(&fixture.store().await?, &blob.location).await?;
    }
    Ok(())
}

async fn an_image_of_another_format_is_rejected(fixture: &Fixture) -> Outcome {
    let raw = Content::new(23, 100_000);
    for (content, declared) in [(qcow2(None), Format::Raw), (raw, Format::Qcow2)] {
        let expect = Expect::new().size(content.len()).format(declared);
        let outcome = rejects(fixture, &content, expect, ErrorKind::Rejected).await;
        outcome.map_err(|failure| failure.at(format!("declared as {declared:?}")))?;
    }
    Ok(())
}

async fn a_hostile_image_is_rejected(fixture: &Fixture) -> Outcome {
    let content = qcow2(Some("/etc/shadow"));
    let expect = Expect::new().size(content.len()).format(Format::Qcow2);
    rejects(fixture, &content, expect, ErrorKind::Rejected).await
}
