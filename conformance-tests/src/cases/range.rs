//! Any part of a blob, exactly.

use futures::{StreamExt, TryStreamExt, stream};
use store_core::{ByteRange, ErrorKind, Location, Reader};

use crate::{
    Fixture, Outcome,
    case::{Failure, cases, ensure, refused},
    source::{Content, Rng},
};

cases! { Range:
    every_form_of_range_yields_its_bytes proves [4] needs [Blobs];
    an_empty_range_yields_nothing proves [4] needs [Blobs];
    a_range_past_the_end_is_invalid proves [4] needs [Blobs];
    a_blob_without_bytes_has_an_empty_range_only proves [4] needs [Blobs];
    ranges_across_chunk_boundaries_are_exact proves [4] needs [Blobs];
    ranges_in_and_across_holes_are_exact proves [4, 7] needs [Blobs];
    random_ranges_are_exact proves [4] needs [Blobs];
    concurrent_ranges_of_one_reader_are_exact proves [4] needs [Blobs];
    a_read_may_be_dropped_half_way proves [4] needs [Blobs];
    a_blob_can_be_read_in_small_steps proves [4] needs [Blobs];
    a_local_file_is_the_blob proves [4] needs [Blobs];
}

async fn stored(fixture: &Fixture, content: &Content) -> Result<(Reader, Location), Failure> {
    let at = fixture.blob(&fixture.store().await?, "range", content).await?;
    Ok((fixture.store().await?.open(&at).await?, at))
}

/// Reads `range` and compares it with what `ByteRange::within` says that it is.
async fn exact(reader: &Reader, content: &Content, range: ByteRange) -> Outcome {
    let Some(span) = range.within(content.len()) else {
        return Err(Failure::broken(format!("{range:?} lies outside of {} bytes", content.len())));
    };
    let mut checker = content.checker(span);
    let mut stream = reader.stream(range)?;
    while let Some(bytes) = stream.try_next().await? {
        checker.feed(&bytes).map_err(|failure| failure.at(format!("{range:?}")))?;
    }
    checker.end().map_err(|failure| failure.at(format!("{range:?}")))
}

async fn every_form_of_range_yields_its_bytes(fixture: &Fixture) -> Outcome {
    let len = 300_000;
    let content = Content::new(1, len);
    let (reader, at) = stored(fixture, &content).await?;
    for range in [
        ByteRange::Full,
        ByteRange::From(0),
        ByteRange::From(1),
        ByteRange::From(len - 1),
        ByteRange::Span(0, 1),
        ByteRange::Span(0, len),
        ByteRange::Span(len - 1, len),
        ByteRange::Span(1000, 200_000),
        ByteRange::Last(1),
        ByteRange::Last(70_000),
        ByteRange::Last(len),
        ByteRange::Last(len + 1),
        ByteRange::Last(u64::MAX),
    ] {
        exact(&reader, &content, range).await?;
    }
    let store = fixture.store().await?;
    ensure!(store.get(&at, 100..1100).await? == content.bytes(100..1100), "get(100..1100)");
    ensure!(store.get(&at, 299_990..).await? == content.bytes(299_990..len), "get(299990..)");
    ensure!(store.get(&at, ..).await? == content.bytes(0..len), "get(..)");
    Ok(())
}

async fn an_empty_range_yields_nothing(fixture: &Fixture) -> Outcome {
    let content = Content::new(2, 5000);
    let (reader, _) = stored(fixture, &content).await?;
    for range in [
        ByteRange::Span(0, 0),
        ByteRange::Span(4096, 4096),
        ByteRange::Span(5000, 5000),
        ByteRange::From(5000),
        ByteRange::Last(0),
    ] {
        exact(&reader, &content, range).await?;
    }
    Ok(())
}

async fn a_range_past_the_end_is_invalid(fixture: &Fixture) -> Outcome {
    let content = Content::new(3, 5000);
    let (reader, at) = stored(fixture, &content).await?;
    let store = fixture.store().await?;
    for range in [
        ByteRange::Span(0, 5001),
        ByteRange::Span(5000, 5001),
        ByteRange::Span(5001, 5001),
        ByteRange::Span(0, u64::MAX),
        ByteRange::Span(20, 10),
        ByteRange::From(5001),
        ByteRange::From(u64::MAX),
    ] {
        refused(&format!("reading {range:?}"), reader.stream(range).map(drop), ErrorKind::Invalid)?;
        refused(&format!("getting {range:?}"), store.get(&at, range).await, ErrorKind::Invalid)?;
    }
    exact(&reader, &content, ByteRange::Full).await
}

async fn a_blob_without_bytes_has_an_empty_range_only(fixture: &Fixture) -> Outcome {
    let content = Content::new(4, 0);
    let (reader, _) = stored(fixture, &content).await?;
    for range in [ByteRange::Full, ByteRange::From(0), ByteRange::Span(0, 0), ByteRange::Last(9)] {
        exact(&reader, &content, range).await?;
    }
    refused("reading 0..1 of nothing", reader.stream(0..1).map(drop), ErrorKind::Invalid)?;
    Ok(())
}

async fn ranges_across_chunk_boundaries_are_exact(fixture: &Fixture) -> Outcome {
    let chunk = fixture.store().await?.info().chunk as u64;
    let content = Content::new(5, 3 * chunk + 7);
    let (reader, _) = stored(fixture, &content).await?;
    for (from, to) in [
        (chunk - 1, chunk),
        (chunk - 1, chunk + 1),
        (chunk, chunk + 1),
        (chunk, 2 * chunk),
        (chunk - 1, 2 * chunk + 1),
        (1, 3 * chunk + 6),
        (3 * chunk, 3 * chunk + 7),
        (3 * chunk - 1, 3 * chunk + 7),
    ] {
        exact(&reader, &content, ByteRange::Span(from, to)).await?;
    }
    Ok(())
}

async fn ranges_in_and_across_holes_are_exact(fixture: &Fixture) -> Outcome {
    let grain = fixture.store().await?.info().hole.unwrap_or(4096);
    let content = Content::new(6, 16 * grain).with_holes([2 * grain..8 * grain, 10 * grain + 3..16 * grain]);
    let (reader, _) = stored(fixture, &content).await?;
    for (from, to) in [
        (3 * grain, 4 * grain),
        (2 * grain, 8 * grain),
        (2 * grain - 1, 2 * grain + 1),
        (8 * grain - 1, 8 * grain + 1),
        (grain + 5, 9 * grain - 5),
        (10 * grain, 10 * grain + 6),
        (16 * grain - 1, 16 * grain),
        (12 * grain + 1, 16 * grain),
    ] {
        exact(&reader, &content, ByteRange::Span(from, to)).await?;
    }
    Ok(())
}

async fn random_ranges_are_exact(fixture: &Fixture) -> Outcome {
    let chunk = fixture.store().await?.info().chunk as u64;
    let content = Content::new(7, 2 * chunk + 54_321).with_random_holes(7, 20, 30_000);
    let (reader, _) = stored(fixture, &content).await?;
    let mut rng = Rng::new(77);
    for _ in 0..200 {
        let from = rng.below(content.len() + 1);
        let longest = 1 << rng.below(18);
        let to = (from + rng.below(longest + 1)).min(content.len());
        exact(&reader, &content, ByteRange::Span(from, to)).await?;
    }
    Ok(())
}

async fn concurrent_ranges_of_one_reader_are_exact(fixture: &Fixture) -> Outcome {
    let chunk = fixture.store().await?.info().chunk as u64;
    let content = Content::new(8, 2 * chunk + 999);
    let (reader, _) = stored(fixture, &content).await?;
    let mut rng = Rng::new(88);
    let ranges: Vec<ByteRange> = std::iter::repeat_with(|| {
        let from = rng.below(content.len());
        ByteRange::Span(from, from + rng.below(content.len() - from).min(100_000))
    })
    .take(64)
    .collect();
    let reads: Vec<_> = ranges.iter().map(|range| exact(&reader, &content, *range)).collect();
    stream::iter(reads).buffer_unordered(16).try_collect().await
}

async fn a_read_may_be_dropped_half_way(fixture: &Fixture) -> Outcome {
    let chunk = fixture.store().await?.info().chunk as u64;
    let content = Content::new(9, 4 * chunk);
    let (reader, _) = stored(fixture, &content).await?;
    for _ in 0..20 {
        let mut stream = reader.stream(..)?;
        ensure!(stream.try_next().await?.is_some(), "a read of {} bytes yields none", content.len());
    }
    exact(&reader, &content, ByteRange::Full).await
}

async fn a_blob_can_be_read_in_small_steps(fixture: &Fixture) -> Outcome {
    let content = Content::new(10, 40_001);
    let (reader, _) = stored(fixture, &content).await?;
    for from in (0..content.len()).step_by(4096) {
        exact(&reader, &content, ByteRange::Span(from, (from + 4096).min(content.len()))).await?;
    }
    Ok(())
}

/// Where a blob is given out as a file, that is all of the blob and nothing else.
async fn a_local_file_is_the_blob(fixture: &Fixture) -> Outcome {
    let content = Content::new(11, 200_003).with_hole(4096..100_000);
    let (reader, _) = stored(fixture, &content).await?;
    let Some(file) = reader.file() else {
        return Err(Failure::NothingToTry("its blobs are no local files".into()));
    };
    let mut checker = content.checker(0..content.len());
    let chunks = store_core::file::read(
        std::sync::Arc::clone(file),
        0..content.len(),
        store_core::buffer::Pool::new(1 << 16, 2),
    );
    let chunks: Vec<_> = chunks.try_collect().await?;
    for bytes in chunks.into_iter().flat_map(store_core::Chunk::into_bytes) {
        checker.feed(&bytes)?;
    }
    checker.end()?;
    let len = file.metadata().map_err(|error| Failure::broken(error.to_string()))?.len();
    ensure!(len == content.len(), "the file has {len} bytes");
    Ok(())
}
