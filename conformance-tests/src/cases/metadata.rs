//! A blob describes itself.

use std::collections::BTreeMap;

use jiff::Timestamp;
use sha2::Digest as _;
use store_core::{Algorithm, ErrorKind, Expect, Meta, Stat, Store, inspect::Format};

use crate::{
    Fixture, Outcome,
    case::{Failure, cases, ensure, refused},
    source::Content,
};

cases! { Metadata:
    digests_are_those_of_the_bytes proves [4, 9] needs [Write];
    digests_count_the_zeros_of_holes proves [4, 7, 9] needs [Write];
    an_extra_digest_is_computed_and_kept proves [9] needs [Write, Metadata];
    configured_digests_are_computed_and_kept proves [9] needs [Write, Metadata, Options];
    a_stat_says_what_the_put_said proves [9] needs [Write, Metadata];
    properties_come_back proves [9] needs [Write, Metadata];
    properties_of_the_greatest_size_come_back proves [9] needs [Write, Metadata];
    properties_beyond_that_are_invalid proves [6, 9] needs [Write];
    the_time_of_creation_is_that_of_the_commit proves [9] needs [Write, Metadata];
    the_format_is_kept proves [9] needs [Write, Metadata];
    metadata_goes_with_a_copy proves [9] needs [Write, Metadata, Transfers(2)];
    metadata_goes_with_its_blob proves [2, 9] needs [Write, Metadata, Delete];
    metadata_that_is_not_kept_is_not_invented proves [9] needs [Blobs, NoMetadata];
    the_size_is_known_without_reading proves [9] needs [Blobs];
    a_whole_blob_is_verified proves [4, 9] needs [Blobs];
}

/// CRC-64/NVME, bit by bit from its definition (reflected polynomial 0x9a6c9329ac4bc9b5), apart from the library
/// that the store uses.
fn crc64nvme(bytes: &[u8]) -> u64 {
    let table: Vec<u64> = (0..256u64)
        .map(|byte| (0..8).fold(byte, |crc, _| (crc >> 1) ^ (0x9a6c_9329_ac4b_c9b5 * (crc & 1))))
        .collect();
    !bytes.iter().fold(!0u64, |crc, byte| (crc >> 8) ^ table[usize::from(crc as u8 ^ byte)])
}

/// The three digests that every store computes by default, as the case computes them itself.
fn by_hand(content: &Content) -> [(Algorithm, Vec<u8>); 3] {
    let bytes = content.bytes(0..content.len());
    [
        (Algorithm::Crc64Nvme, crc64nvme(&bytes).to_be_bytes().to_vec()),
        (Algorithm::Md5, md5::Md5::digest(&bytes).to_vec()),
        (Algorithm::Sha512, sha2::Sha512::digest(&bytes).to_vec()),
    ]
}

fn meta(stat: Stat) -> Result<Meta, Failure> {
    stat.meta.ok_or_else(|| Failure::broken("the blob has no metadata"))
}

async fn has_digests_of(store: &Store, content: &Content, found: &Meta) -> Outcome {
    for (algorithm, wanted) in by_hand(content) {
        let expected = algorithm == Algorithm::Crc64Nvme || store.options().digests.contains(&algorithm);
        match found.digests.get(algorithm) {
            Some(digest) => {
                ensure!(
                    digest == wanted,
                    "the {algorithm} is {}, not {}",
                    hex::encode(digest),
                    hex::encode(&wanted)
                );
            }
            None => ensure!(!expected, "there is no {algorithm}"),
        }
    }
    Ok(())
}

async fn digests_are_those_of_the_bytes(fixture: &Fixture) -> Outcome {
    ensure!(crc64nvme(b"123456789") == 0xae8b_1486_0a79_9888, "the case's own CRC is wrong");
    let store = fixture.store().await?;
    for content in [Content::new(1, 0), Content::literal("abc"), Content::new(1, 300_001)] {
        let blob = fixture.put(&store, &fixture.id("digests"), &content).await?;
        has_digests_of(&store, &content, &blob.meta).await?;
        if store.info().can.metadata {
            let kept = meta(fixture.store().await?.stat(&blob.location).await?)?;
            has_digests_of(&store, &content, &kept).await.map_err(|f| f.at("what is kept"))?;
        }
    }
    Ok(())
}

async fn digests_count_the_zeros_of_holes(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let chunk = store.info().chunk as u64;
    let content = Content::new(2, 2 * chunk + 3).with_holes([4097..chunk + 5, 2 * chunk..2 * chunk + 3]);
    for source in [content.source(), content.source().plain()] {
        let blob = store.put(&fixture.id("holes"), source.stream(), Expect::new()).await?;
        has_digests_of(&store, &content, &blob.meta).await?;
    }
    Ok(())
}

async fn an_extra_digest_is_computed_and_kept(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = Content::new(3, 12_345);
    let expect = Expect::new().also(Algorithm::Sha256).also(Algorithm::Blake3).also(Algorithm::Sha256);
    let blob = store.put(&fixture.id("extra"), content.source().stream(), expect).await?;
    let kept = meta(fixture.store().await?.stat(&blob.location).await?)?;
    let wanted = sha2::Sha256::digest(content.bytes(0..content.len())).to_vec();
    ensure!(kept.digests.get(Algorithm::Sha256) == Some(&wanted), "the sha256 is wrong or missing");
    ensure!(kept.digests.get(Algorithm::Blake3).is_some(), "the blake3 is missing");
    has_digests_of(&store, &content, &kept).await
}

async fn configured_digests_are_computed_and_kept(fixture: &Fixture) -> Outcome {
    for digests in [vec![], vec![Algorithm::Sha256], vec![Algorithm::Blake3, Algorithm::Md5]] {
        let store = fixture.store_with(|options| options.digests = digests.clone()).await?;
        let content = Content::new(4, 5000);
        let blob = fixture.put(&store, &fixture.id("configured"), &content).await?;
        let kept = meta(fixture.store().await?.stat(&blob.location).await?)?;
        let mut wanted = digests.clone();
        wanted.push(Algorithm::Crc64Nvme);
        wanted.sort();
        let found: Vec<Algorithm> = kept.digests.iter().map(|(algorithm, _)| algorithm).collect();
        ensure!(found == wanted, "{found:?} are kept instead of {wanted:?}");
    }
    Ok(())
}

async fn a_stat_says_what_the_put_said(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    for len in [0, 1, 100_000] {
        let expect = Expect::new().size(len).property("os", "none");
        let put = store.put(&fixture.id("stat"), Content::new(5, len).source().stream(), expect).await?;
        let stat = fixture.store().await?.stat(&put.location).await?;
        ensure!(stat.size == len, "a size of {} instead of {len}", stat.size);
        let kept = meta(stat)?;
        ensure!(kept == put.meta, "{kept:?} is kept of {:?}", put.meta);
    }
    Ok(())
}

async fn keeps(fixture: &Fixture, properties: &BTreeMap<String, String>) -> Outcome {
    let store = fixture.store().await?;
    let mut expect = Expect::new();
    for (name, value) in properties {
        expect = expect.property(name, value);
    }
    let blob = store.put(&fixture.id("properties"), store_core::once("x"), expect).await?;
    let kept = meta(fixture.store().await?.stat(&blob.location).await?)?.properties;
    ensure!(kept == *properties, "{kept:?} are kept of {properties:?}");
    Ok(())
}

async fn properties_come_back(fixture: &Fixture) -> Outcome {
    let pairs = [
        ("os_distro", "debian"),
        ("Größe", "groß, 大きい, 🐧"),
        ("empty", ""),
        ("spaces", "  two before, two after  "),
        ("quotes", "\"'\\/{}[]:,%20&=?#"),
        ("lines", "one\ntwo\r\nthree\ttab"),
        ("UPPER", "UPPER"),
        ("upper", "lower"),
        ("", "no name"),
    ];
    keeps(fixture, &pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()).await
}

async fn properties_of_the_greatest_size_come_back(fixture: &Fixture) -> Outcome {
    let one: BTreeMap<_, _> = [("n".to_owned(), "v".repeat(Meta::MAX_PROPERTIES - 1))].into();
    keeps(fixture, &one).await?;
    let many: BTreeMap<_, _> =
        (0..Meta::MAX_PROPERTIES / 16).map(|n| (format!("name-{n:03}"), format!("value{n:03}"))).collect();
    keeps(fixture, &many).await?;
    // Characters that take more room in JSON, or in a header, than they have bytes.
    let wide: BTreeMap<_, _> = [("n".to_owned(), "\u{1}".repeat(Meta::MAX_PROPERTIES - 1))].into();
    keeps(fixture, &wide).await
}

async fn properties_beyond_that_are_invalid(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let id = fixture.id("properties");
    let expect = Expect::new().property("n", "v".repeat(Meta::MAX_PROPERTIES));
    refused(
        "a put of too large properties",
        store.put(&id, store_core::once("x"), expect).await,
        ErrorKind::Invalid,
    )?;
    fixture.holds_only(&store, &[]).await
}

async fn the_time_of_creation_is_that_of_the_commit(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    // Clocks may be set meanwhile, but hardly by a day.
    let day = jiff::SignedDuration::from_hours(24);
    let before = Timestamp::now();
    let blob = fixture.put(&store, &fixture.id("time"), &Content::new(6, 10)).await?;
    let kept = meta(fixture.store().await?.stat(&blob.location).await?)?.created;
    ensure!(kept == blob.meta.created, "{kept} is kept of {}", blob.meta.created);
    ensure!(kept >= before - day && kept <= Timestamp::now() + day, "it was created at {kept}");
    Ok(())
}

async fn the_format_is_kept(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = Content::new(7, 100_000);
    let expect = Expect::new().format(Format::Raw);
    let blob = store.put(&fixture.id("format"), content.source().stream(), expect).await?;
    let kept = meta(fixture.store().await?.stat(&blob.location).await?)?;
    ensure!(kept.format == Some(Format::Raw), "the format kept is {:?}", kept.format);
    ensure!(kept.virtual_size == blob.meta.virtual_size, "the virtual size kept is {:?}", kept.virtual_size);
    Ok(())
}

async fn metadata_goes_with_a_copy(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let content = Content::new(8, 100_000);
    let expect = Expect::new().also(Algorithm::Sha256).property("os", "none");
    let original = store.put(&fixture.id("original"), content.source().stream(), expect).await?;
    let copy =
        store.copy_to(&original.location, &fixture.store().await?, &fixture.id("copy"), |_| {}).await?;
    let kept = meta(fixture.store().await?.stat(&copy.location).await?)?;
    ensure!(kept.digests == original.meta.digests, "the digests of the copy are {:?}", kept.digests);
    ensure!(kept.properties == original.meta.properties, "its properties are {:?}", kept.properties);
    Ok(())
}

/// What was kept of a blob must not turn up with the next one of its id.
async fn metadata_goes_with_its_blob(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let id = fixture.id("again");
    let old = store.put(&id, store_core::once("old"), Expect::new().property("age", "old")).await?;
    store.delete(&old.location).await?;
    let new = store.put(&id, store_core::once("newer"), Expect::new()).await?;
    let kept = meta(fixture.store().await?.stat(&new.location).await?)?;
    ensure!(kept == new.meta, "{kept:?} is kept of {:?}", new.meta);
    Ok(())
}

async fn metadata_that_is_not_kept_is_not_invented(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let at = fixture.blob(&store, "plain", &Content::new(9, 1000)).await?;
    let stat = fixture.store().await?.stat(&at).await?;
    ensure!(stat.meta.is_none(), "metadata is not declared, but there is {:?}", stat.meta);
    ensure!(!store.verify(&at, |_| {}).await?.compared, "there is nothing to compare with, but verify did");
    Ok(())
}

async fn the_size_is_known_without_reading(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    for len in [0, 1, store.info().chunk as u64 + 1] {
        let content = Content::new(10, len);
        let at = fixture.blob(&store, "size", &content).await?;
        let stat = fixture.store().await?.stat(&at).await?;
        ensure!(stat.size == len, "a size of {} instead of {len}", stat.size);
    }
    Ok(())
}

async fn a_whole_blob_is_verified(fixture: &Fixture) -> Outcome {
    let store = fixture.store().await?;
    let chunk = store.info().chunk as u64;
    for content in [Content::new(11, 0), Content::new(11, 2 * chunk + 1).with_hole(5000..chunk)] {
        let at = fixture.blob(&store, "verify", &content).await?;
        let seen = std::sync::atomic::AtomicU64::new(0);
        let progress = |len| {
            seen.fetch_add(len, std::sync::atomic::Ordering::Relaxed);
        };
        let verified = fixture.store().await?.verify(&at, progress).await?;
        ensure!(verified.size == content.len(), "{} bytes were verified", verified.size);
        ensure!(seen.into_inner() == content.len(), "the progress does not add up to the length");
        let compared = store.info().can.metadata && store.info().can.write;
        ensure!(!compared || verified.compared, "digests are kept, but nothing was compared");
        for (algorithm, wanted) in by_hand(&content) {
            let found = verified.digests.get(algorithm);
            ensure!(found.is_none_or(|found| found == wanted), "the {algorithm} found is wrong");
        }
    }
    Ok(())
}
