//! What goes in comes out, whatever its size and however it is sent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::TryStreamExt;
use store_core::{Chunk, Expect};

use crate::{
    Fixture, Outcome,
    case::{Failure, cases, ensure},
    source::{Content, Source},
};

cases! { Roundtrip:
    an_empty_blob_comes_back proves [4] needs [Blobs];
    a_blob_of_one_byte_comes_back proves [4] needs [Blobs];
    every_byte_value_comes_back proves [4] needs [Blobs];
    blobs_around_one_chunk_come_back proves [4] needs [Blobs];
    blobs_around_several_chunks_come_back proves [4] needs [Blobs];
    blobs_around_one_hole_come_back proves [4, 7] needs [Blobs];
    a_blob_of_unknown_size_comes_back proves [4, 5] needs [Write];
    a_blob_of_64_mib_comes_back proves [4, 5] needs [Blobs, Size(64 << 20)];
    a_blob_of_1_gib_is_streamed_through proves [4, 5] needs [Write, Size(1 << 30), Patience];
    a_source_is_not_read_far_ahead proves [5] needs [Write, Size(256 << 20)];
    pieces_of_one_byte_make_a_blob proves [4] needs [Write];
    odd_pieces_make_a_blob proves [4] needs [Write];
    empty_pieces_change_nothing proves [4] needs [Write];
    a_slow_source_makes_a_blob proves [4, 6] needs [Write];
    a_writer_makes_the_same_blob_as_a_put proves [4] needs [Write];
    a_sparse_source_comes_back proves [4, 7] needs [Write];
    nothing_but_zeros_comes_back proves [4, 7] needs [Write];
    leading_and_trailing_holes_come_back proves [4, 7] needs [Write];
    holes_at_any_offset_come_back proves [4, 7] needs [Write];
    tiny_runs_of_zeros_come_back proves [4, 7] needs [Write];
    zeros_sent_as_bytes_come_back proves [4, 7] needs [Write];
    holes_take_no_space proves [7] needs [Write, Holes];
    a_local_file_becomes_a_blob proves [4, 7] needs [Write];
    a_local_file_that_changes_later_changes_no_blob proves [4] needs [Write];
    a_copy_between_handles_is_whole proves [4, 7] needs [Write, Transfers(2)];
}

/// Stores `content` and reads it through another handle.
async fn returns(fixture: &Fixture, content: &Content) -> Outcome {
    let at = fixture.blob(&fixture.store().await?, "roundtrip", content).await?;
    content.is_at(&fixture.store().await?, &at).await.map_err(|f| f.at(format!("{} bytes", content.len())))
}

/// The same with a source that sends in its own way.
async fn returns_from(fixture: &Fixture, content: &Content, source: Source) -> Outcome {
    let id = fixture.id("roundtrip");
    let blob = fixture.store().await?.put(&id, source.stream(), Expect::new().size(content.len())).await?;
    ensure!(blob.meta.size == content.len(), "a size of {} instead of {}", blob.meta.size, content.len());
    content.is_at(&fixture.store().await?, &blob.location).await
}

async fn chunk(fixture: &Fixture) -> Result<u64, Failure> {
    Ok(fixture.store().await?.info().chunk as u64)
}

/// Where holes begin and end, or where they would.
async fn hole(fixture: &Fixture) -> Result<u64, Failure> {
    Ok(fixture.store().await?.info().hole.unwrap_or(4096))
}

async fn an_empty_blob_comes_back(fixture: &Fixture) -> Outcome {
    returns(fixture, &Content::new(1, 0)).await
}

async fn a_blob_of_one_byte_comes_back(fixture: &Fixture) -> Outcome {
    returns(fixture, &Content::literal("x")).await?;
    returns(fixture, &Content::literal("\0")).await
}

async fn every_byte_value_comes_back(fixture: &Fixture) -> Outcome {
    let bytes: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
    returns(fixture, &Content::literal(bytes)).await?;
    // What a transport that takes bytes for text would change.
    returns(fixture, &Content::literal("\r\n\r\n0\r\n\r\n\u{feff}--boundary--\x1a\x04\x7f\n")).await
}

async fn blobs_around_one_chunk_come_back(fixture: &Fixture) -> Outcome {
    let chunk = chunk(fixture).await?;
    for len in [chunk - 1, chunk, chunk + 1] {
        returns(fixture, &Content::new(len, len)).await?;
    }
    Ok(())
}

async fn blobs_around_several_chunks_come_back(fixture: &Fixture) -> Outcome {
    let chunk = chunk(fixture).await?;
    for len in [3 * chunk - 1, 3 * chunk, 3 * chunk + 1] {
        returns(fixture, &Content::new(len, len)).await?;
    }
    Ok(())
}

async fn blobs_around_one_hole_come_back(fixture: &Fixture) -> Outcome {
    let hole = hole(fixture).await?;
    for len in [hole - 1, hole, hole + 1, 2 * hole + 1] {
        returns(fixture, &Content::new(len, len)).await?;
        returns(fixture, &Content::zeros(len)).await.map_err(|failure| failure.at("zeros"))?;
    }
    Ok(())
}

async fn a_blob_of_unknown_size_comes_back(fixture: &Fixture) -> Outcome {
    let chunk = chunk(fixture).await?;
    for len in [0, 1, 2 * chunk, 2 * chunk + 77] {
        let content = Content::new(len, len);
        let id = fixture.id("unknown");
        let blob = fixture.store().await?.put(&id, content.source().stream(), Expect::new()).await?;
        content
            .is_at(&fixture.store().await?, &blob.location)
            .await
            .map_err(|f| f.at(format!("{len} bytes")))?;
    }
    Ok(())
}

async fn a_blob_of_64_mib_comes_back(fixture: &Fixture) -> Outcome {
    returns(fixture, &Content::new(64, 64 << 20)).await
}

async fn a_blob_of_1_gib_is_streamed_through(fixture: &Fixture) -> Outcome {
    // Neither its size nor its parts are multiples of anything.
    let content = Content::new(1024, (1 << 30) - 4321);
    returns_from(fixture, &content, content.source().pieces(3_333_333)).await
}

/// Bytes that are lent, not copied, show how much the store and its driver hold at a time.
async fn a_source_is_not_read_far_ahead(fixture: &Fixture) -> Outcome {
    let chunk = chunk(fixture).await?;
    let content = Content::new(5, (256 << 20) / chunk * chunk);
    let alive = Arc::default();
    returns_from(fixture, &content, content.source().pieces(chunk).counted(&alive)).await?;
    // The window of a transfer, and what the digests are behind by.
    let most = (64 << 20) + 8 * chunk;
    ensure!(
        alive.most() <= most,
        "{} bytes of the source were held at a time; {most} are too many",
        alive.most()
    );
    Ok(())
}

async fn pieces_of_one_byte_make_a_blob(fixture: &Fixture) -> Outcome {
    let content = Content::new(6, 10_007);
    returns_from(fixture, &content, content.source().pieces(1)).await
}

async fn odd_pieces_make_a_blob(fixture: &Fixture) -> Outcome {
    let content = Content::new(7, 2 * chunk(fixture).await? + 4097);
    returns_from(fixture, &content, content.source().odd_pieces(1)).await
}

async fn empty_pieces_change_nothing(fixture: &Fixture) -> Outcome {
    let content = Content::new(8, chunk(fixture).await? + 99);
    returns_from(fixture, &content, content.source().odd_pieces(2).empty_pieces()).await?;
    let content = Content::new(8, 0);
    returns_from(fixture, &content, content.source().empty_pieces()).await
}

async fn a_slow_source_makes_a_blob(fixture: &Fixture) -> Outcome {
    let content = Content::new(9, 2 * chunk(fixture).await? + 1);
    let piece = content.len() / 10;
    returns_from(fixture, &content, content.source().pieces(piece).slow(2, Duration::from_millis(30))).await
}

async fn a_writer_makes_the_same_blob_as_a_put(fixture: &Fixture) -> Outcome {
    let content = Content::new(10, chunk(fixture).await? + 12_345).with_random_holes(1, 3, 50_000);
    let store = fixture.store().await?;
    let mut writer = store.upload(&fixture.id("writer"), Expect::new()).await?;
    for piece in content.runs(0..content.len()) {
        writer.write(piece).await?;
    }
    ensure!(writer.written() == content.len(), "written() says {}", writer.written());
    let one = writer.finish().await?;
    let other = fixture.put(&store, &fixture.id("put"), &content).await?;
    ensure!(one.meta.digests == other.meta.digests, "the two doors compute different digests");
    let witness = fixture.store().await?;
    content.is_at(&witness, &one.location).await?;
    content.is_at(&witness, &other.location).await
}

async fn a_sparse_source_comes_back(fixture: &Fixture) -> Outcome {
    let chunk = chunk(fixture).await?;
    let content =
        Content::new(11, 6 * chunk).with_holes([chunk..3 * chunk, 5 * chunk - 4096..5 * chunk + 4096]);
    returns_from(fixture, &content, content.source()).await
}

async fn nothing_but_zeros_comes_back(fixture: &Fixture) -> Outcome {
    for len in [2 * chunk(fixture).await?, 100_003] {
        let content = Content::zeros(len);
        returns_from(fixture, &content, content.source()).await.map_err(|f| f.at("one hole"))?;
        returns_from(fixture, &content, content.source().plain()).await.map_err(|f| f.at("bytes"))?;
    }
    Ok(())
}

async fn leading_and_trailing_holes_come_back(fixture: &Fixture) -> Outcome {
    let chunk = chunk(fixture).await?;
    let content = Content::new(13, 3 * chunk);
    for content in [
        content.clone().with_hole(0..chunk),
        content.clone().with_hole(chunk..3 * chunk),
        content.with_holes([0..chunk + 1, 2 * chunk - 1..3 * chunk]),
    ] {
        let source = content.source();
        returns_from(fixture, &content, source).await.map_err(|f| f.at(format!("{:?}", content.holes())))?;
    }
    let ragged = Content::new(14, chunk + 4096 + 17).with_hole(chunk..chunk + 4096 + 17);
    returns_from(fixture, &ragged, ragged.source()).await
}

async fn holes_at_any_offset_come_back(fixture: &Fixture) -> Outcome {
    let chunk = chunk(fixture).await?;
    for seed in 0..6 {
        let content = Content::new(seed, 2 * chunk + 4097).with_random_holes(seed, 12, chunk / 4);
        let source = content.source().odd_pieces(seed);
        returns_from(fixture, &content, source).await.map_err(|f| f.at(format!("seed {seed}")))?;
    }
    Ok(())
}

async fn tiny_runs_of_zeros_come_back(fixture: &Fixture) -> Outcome {
    let content = Content::new(15, 100_000).with_random_holes(3, 1000, 40);
    returns_from(fixture, &content, content.source()).await?;
    returns_from(fixture, &content, content.source().plain()).await
}

async fn zeros_sent_as_bytes_come_back(fixture: &Fixture) -> Outcome {
    let chunk = chunk(fixture).await?;
    let content = Content::new(16, 4 * chunk).with_holes([chunk - 5..2 * chunk + 5, 3 * chunk..4 * chunk]);
    returns_from(fixture, &content, content.source().plain().odd_pieces(4)).await
}

/// Two witnesses count: what the storage says it uses, and the holes that a reader is told of.
async fn holes_take_no_space(fixture: &Fixture) -> Outcome {
    let hole = hole(fixture).await?;
    let grain = hole.max(1 << 20);
    let content = Content::new(17, 32 * grain).with_holes([grain..20 * grain, 21 * grain..32 * grain]);
    for source in [content.source(), content.source().plain()] {
        let store = fixture.store().await?;
        let id = fixture.id("sparse");
        let expect = Expect::new().size(content.len()).data_size(content.data_len());
        let at = store.put(&id, source.stream(), expect).await?.location;
        let reader = fixture.store().await?.open(&at).await?;
        let mut zeros = 0;
        let mut chunks = reader.chunks(..)?;
        while let Some(chunk) = chunks.try_next().await? {
            zeros += if let Chunk::Zeros(len) = chunk { len } else { 0 };
        }
        // Storages round up to blocks, and keep tables.
        let most = content.data_len() + 4 * grain;
        let spared = reader.stat().allocated.is_some_and(|used| used <= most);
        let told = content.len() - zeros <= most;
        ensure!(
            reader.stat().allocated.is_none_or(|_| spared),
            "{:?} bytes are used for {} bytes of data",
            reader.stat().allocated,
            content.data_len()
        );
        ensure!(spared || told, "neither the space in use nor the chunks of a read show the holes");
    }
    Ok(())
}

async fn a_local_file_becomes_a_blob(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let chunk = store.info().chunk as u64;
    let sparse = Content::new(19, 3 * chunk + 4097).with_holes([4096..chunk, 2 * chunk..3 * chunk]);
    for content in [Content::new(19, 0), Content::new(19, 1), sparse, Content::zeros(2 * chunk)] {
        let seen = AtomicU64::new(0);
        let progress = |len| {
            seen.fetch_add(len, Ordering::Relaxed);
        };
        let (id, file) = (fixture.id("file"), content.as_file().await?);
        let blob = store.put_file(&id, file, Expect::new(), progress).await?;
        ensure!(seen.into_inner() == content.len(), "the progress does not add up to the length");
        let sent = fixture.put(&store, &fixture.id("sent"), &content).await?;
        ensure!(blob.meta.digests == sent.meta.digests, "a file and a stream have different digests");
        content.is_at(&fixture.store().await?, &blob.location).await?;
    }
    Ok(())
}

/// Also where the two share their blocks.
async fn a_local_file_that_changes_later_changes_no_blob(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = Content::new(20, store.info().chunk as u64 + 100_000);
    let (id, file) = (fixture.id("file"), content.as_file().await?);
    let blob = store.put_file(&id, Arc::clone(&file), Expect::new(), |_| {}).await?;
    Content::new(21, content.len() / 2).write_into(file).await?;
    content.is_at(&fixture.store().await?, &blob.location).await
}

async fn a_copy_between_handles_is_whole(fixture: &Fixture) -> Outcome {
    let content = Content::new(18, 2 * chunk(fixture).await? + 5).with_random_holes(5, 5, 70_000);
    let (one, other) = (fixture.store().await?, fixture.store().await?);
    let at = fixture.blob(&one, "original", &content).await?;
    let copied = AtomicU64::new(0);
    let progress = |len| {
        copied.fetch_add(len, Ordering::Relaxed);
    };
    let copy = one.copy_to(&at, &other, &fixture.id("copy"), progress).await?;
    ensure!(copied.into_inner() == content.len(), "the progress does not add up to the length");
    content.is_at(&fixture.store().await?, &copy.location).await?;
    content.is_at(&fixture.store().await?, &at).await
}
