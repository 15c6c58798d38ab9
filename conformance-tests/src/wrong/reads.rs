//! Wrong on the way out.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use store_core::{Chunk, ChunkStream, Download, Location, Result, Stat};

use super::{Inner, Twist, wrong};

wrong! {
    RangesAreInclusive => ranges_are_inclusive, caught by every_form_of_range_yields_its_bytes;
    RangesAreShifted => ranges_are_shifted, caught by random_ranges_are_exact;
    RangesAreIgnored => ranges_are_ignored, caught by ranges_across_chunk_boundaries_are_exact;
    EndsEarly => ends_early, caught by a_blob_of_one_byte_comes_back;
    GoesOn => goes_on, caught by a_blob_can_be_read_in_small_steps;
    TextMode => takes_bytes_for_text, caught by every_byte_value_comes_back;
    HolesAreNotZero => holes_are_not_zero, caught by nothing_but_zeros_comes_back;
    HolesAreNotZero => holes_in_ranges_are_not_zero, caught by ranges_in_and_across_holes_are_exact;
    OneCursor::default() => one_cursor_for_all, caught by concurrent_ranges_of_one_reader_are_exact;
    FollowsTheId => follows_the_id, caught by a_reader_of_a_replaced_blob_never_sees_the_other_bytes;
    RemembersTheFirst::default() => remembers_the_first, caught by an_id_is_free_again_after_a_delete;
    RoundsSizesUp => rounds_sizes_up, caught by the_size_is_known_without_reading;
    LosesMetadata => loses_metadata, caught by a_stat_says_what_the_put_said;
    LosesDigests => loses_digests, caught by one_flipped_bit_fails_a_whole_read;
    LosesDigests => verifies_nothing, caught by one_flipped_bit_fails_a_verification;
    TrustsItsMetadata => trusts_its_metadata, caught by a_blob_cut_short_fails_a_verification;
    AsciiProperties => properties_in_ascii, caught by properties_come_back;
    ShortProperties => properties_cut_off, caught by properties_of_the_greatest_size_come_back;
    NamesInLowerCase => properties_in_lower_case, caught by properties_come_back;
    CreatedNow => created_when_asked, caught by the_time_of_creation_is_that_of_the_commit;
}

#[derive(Debug)]
struct RangesAreInclusive;

#[async_trait]
impl Twist for RangesAreInclusive {
    async fn read(&self, download: &Arc<dyn Download>, range: Range<u64>) -> Result<ChunkStream> {
        let end = (range.end + 1).min(download.stat().size);
        download.read(range.start..end).await
    }
}

#[derive(Debug)]
struct RangesAreShifted;

#[async_trait]
impl Twist for RangesAreShifted {
    async fn read(&self, download: &Arc<dyn Download>, range: Range<u64>) -> Result<ChunkStream> {
        let by = u64::from(range.start > 0 && range.end < download.stat().size);
        download.read(range.start + by..range.end + by).await
    }
}

/// As an HTTP server may, which sends 200 instead of 206.
#[derive(Debug)]
struct RangesAreIgnored;

#[async_trait]
impl Twist for RangesAreIgnored {
    async fn read(&self, download: &Arc<dyn Download>, range: Range<u64>) -> Result<ChunkStream> {
        let whole = download.read(0..download.stat().size).await?;
        let mut left = range.end - range.start;
        Ok(whole
            .map_ok(move |mut chunk| {
                let chunk = chunk.split_to(left);
                left -= chunk.len();
                chunk
            })
            .boxed())
    }
}

#[derive(Debug)]
struct EndsEarly;

#[async_trait]
impl Twist for EndsEarly {
    async fn read(&self, download: &Arc<dyn Download>, range: Range<u64>) -> Result<ChunkStream> {
        download.read(range.start..range.end.saturating_sub(1).max(range.start)).await
    }
}

#[derive(Debug)]
struct GoesOn;

#[async_trait]
impl Twist for GoesOn {
    async fn read(&self, download: &Arc<dyn Download>, range: Range<u64>) -> Result<ChunkStream> {
        let chunks = download.read(range).await?;
        Ok(chunks
            .map_ok(|chunk| chunk.into_bytes().chain([Bytes::from_static(b"\n")]).flatten().collect())
            .map_ok(|bytes: Bytes| Chunk::Data(bytes))
            .boxed())
    }
}

#[derive(Debug)]
struct TextMode;

#[async_trait]
impl Twist for TextMode {
    async fn read(&self, download: &Arc<dyn Download>, range: Range<u64>) -> Result<ChunkStream> {
        let chunks = download.read(range).await?;
        Ok(chunks
            .map_ok(|chunk| match chunk {
                Chunk::Data(bytes) => {
                    let text: Vec<u8> =
                        bytes.iter().map(|byte| if *byte == b'\r' { b'\n' } else { *byte }).collect();
                    Chunk::Data(text.into())
                }
                zeros => zeros,
            })
            .boxed())
    }
}

#[derive(Debug)]
struct HolesAreNotZero;

#[async_trait]
impl Twist for HolesAreNotZero {
    async fn read(&self, download: &Arc<dyn Download>, range: Range<u64>) -> Result<ChunkStream> {
        let chunks = download.read(range).await?;
        Ok(chunks
            .map_ok(|chunk| match chunk {
                Chunk::Zeros(len) => Chunk::Data(vec![0xff; len as usize].into()),
                data => data,
            })
            .boxed())
    }
}

/// As a file has one, which two readers share.
#[derive(Debug, Default)]
struct OneCursor(Mutex<u64>);

#[async_trait]
impl Twist for OneCursor {
    async fn read(&self, download: &Arc<dyn Download>, range: Range<u64>) -> Result<ChunkStream> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = range.start;
        tokio::task::yield_now().await;
        let start = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = (start + range.end - range.start).min(download.stat().size);
        download.read(start..end).await
    }
}

#[derive(Debug)]
struct FollowsTheId;

#[derive(Debug)]
struct Following(Inner, Location, Stat);

#[async_trait]
impl Download for Following {
    fn stat(&self) -> &Stat {
        &self.2
    }

    async fn read(&self, range: Range<u64>) -> Result<ChunkStream> {
        self.0.open(&self.1).await?.read(range).await
    }

    fn file(&self) -> Option<&Arc<std::fs::File>> {
        None
    }
}

#[async_trait]
impl Twist for FollowsTheId {
    async fn open(&self, inner: &Inner, at: &Location) -> Result<Arc<dyn Download>> {
        let stat = inner.open(at).await?.stat().clone();
        Ok(Arc::new(Following(Arc::clone(inner), at.clone(), stat)))
    }
}

/// A cache that nobody tells of deletions.
#[derive(Debug, Default)]
struct RemembersTheFirst(Mutex<BTreeMap<Location, Arc<dyn Download>>>);

#[async_trait]
impl Twist for RemembersTheFirst {
    async fn open(&self, inner: &Inner, at: &Location) -> Result<Arc<dyn Download>> {
        let opened = inner.open(at).await?;
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Filled by the writer's own look, so that the first bytes stay.
        Ok(Arc::clone(seen.entry(at.clone()).or_insert(opened)))
    }

    async fn delete(&self, inner: &Inner, at: &Location) -> Result<()> {
        let opened = inner.open(at).await?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(at.clone()).or_insert(opened);
        inner.delete(at).await
    }
}

/// As a block device does.
#[derive(Debug)]
struct RoundsSizesUp;

impl Twist for RoundsSizesUp {
    fn stat(&self, stat: &mut Stat) {
        stat.size = stat.size.next_multiple_of(512);
    }
}

#[derive(Debug)]
struct LosesMetadata;

impl Twist for LosesMetadata {
    fn stat(&self, stat: &mut Stat) {
        stat.meta = None;
    }
}

#[derive(Debug)]
struct LosesDigests;

impl Twist for LosesDigests {
    fn stat(&self, stat: &mut Stat) {
        if let Some(meta) = &mut stat.meta {
            meta.digests = store_core::Digests::default();
        }
    }
}

/// A size and digests that are made up from what is there.
#[derive(Debug)]
struct TrustsItsMetadata;

impl Twist for TrustsItsMetadata {
    fn stat(&self, stat: &mut Stat) {
        if let Some(meta) = &mut stat.meta
            && meta.size != stat.size
        {
            *meta = store_core::Meta::new(stat.size);
        }
    }
}

#[derive(Debug)]
struct AsciiProperties;

impl Twist for AsciiProperties {
    fn stat(&self, stat: &mut Stat) {
        for value in stat.meta.iter_mut().flat_map(|meta| meta.properties.values_mut()) {
            *value = value.replace(|c: char| !c.is_ascii(), "?");
        }
    }
}

#[derive(Debug)]
struct ShortProperties;

impl Twist for ShortProperties {
    fn stat(&self, stat: &mut Stat) {
        for value in stat.meta.iter_mut().flat_map(|meta| meta.properties.values_mut()) {
            value.truncate(255);
        }
    }
}

/// As the headers of HTTP are, whose names come in any case.
#[derive(Debug)]
struct NamesInLowerCase;

impl Twist for NamesInLowerCase {
    fn stat(&self, stat: &mut Stat) {
        if let Some(meta) = &mut stat.meta {
            let properties = std::mem::take(&mut meta.properties);
            meta.properties =
                properties.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect();
        }
    }
}

#[derive(Debug)]
struct CreatedNow;

impl Twist for CreatedNow {
    fn stat(&self, stat: &mut Stat) {
        if let Some(meta) = &mut stat.meta {
            meta.created = jiff::Timestamp::now();
        }
    }
}
