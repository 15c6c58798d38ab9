//! Wrong about names, and about what went wrong.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use futures::TryStreamExt;
use store_core::{BlobId, Download, Entry, Error, ErrorKind, Location, Meta, Result, SizeHint, Upload};

use super::{Going, Inner, Twist, wrong};

wrong! {
    DeletionAlwaysWorks => deletion_always_works, caught by deleting_twice_is_not_found;
    MissingIsABug => missing_is_a_bug, caught by a_missing_blob_is_not_found;
    MalformedIsMissing => malformed_is_missing, caught by a_malformed_location_is_invalid;
    ClimbsOut => climbs_out, caught by a_location_cannot_climb_out;
    CutsIdsOff => cuts_ids_off, caught by the_longest_id_works;
    FoldsCase => folds_case, caught by ids_are_told_apart_by_case;
    DeletesByPrefix => deletes_by_prefix, caught by ids_that_begin_alike_are_different_blobs;
    TellsSecrets => tells_secrets, caught by secrets_never_show;
    RemembersAbsence::default() => remembers_absence, caught by a_finished_upload_is_visible_to_every_handle;
    LocatesElsewhere => locates_elsewhere, caught by a_blob_outlives_the_handle_that_wrote_it;
    LeavesATombstone::default() => leaves_a_tombstone, caught by an_id_is_free_again_after_an_abort;
}

#[derive(Debug)]
struct DeletionAlwaysWorks;

#[async_trait]
impl Twist for DeletionAlwaysWorks {
    async fn delete(&self, inner: &Inner, at: &Location) -> Result<()> {
        match inner.delete(at).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }
}

#[derive(Debug)]
struct MissingIsABug;

#[async_trait]
impl Twist for MissingIsABug {
    async fn open(&self, inner: &Inner, at: &Location) -> Result<Arc<dyn Download>> {
        inner.open(at).await.map_err(|error| Error::new(ErrorKind::Internal, "error 2").with_source(error))
    }
}

#[derive(Debug)]
struct MalformedIsMissing;

#[async_trait]
impl Twist for MalformedIsMissing {
    async fn open(&self, inner: &Inner, at: &Location) -> Result<Arc<dyn Download>> {
        inner.open(at).await.map_err(|_| Error::not_found(at))
    }
}

/// Takes the location's text for a path, and what is above it for its own.
#[derive(Debug)]
struct ClimbsOut;

#[async_trait]
impl Twist for ClimbsOut {
    async fn open(&self, inner: &Inner, at: &Location) -> Result<Arc<dyn Download>> {
        let text = at.to_string();
        let inside = text.split(['/', '%']).nth(2).unwrap_or_default();
        inner.open(&format!("memory://{inside}").parse()?).await
    }
}

/// Keeps blobs under other ids than it is asked for.
async fn begin_as(inner: &Inner, id: &str, size: SizeHint) -> Result<Box<dyn Upload>> {
    inner.begin(&id.parse()?, size).await
}

#[derive(Debug)]
struct CutsIdsOff;

fn cut(id: &BlobId) -> String {
    id.as_str().chars().take(128).collect()
}

#[async_trait]
impl Twist for CutsIdsOff {
    async fn begin(&self, inner: &Inner, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        begin_as(inner, &cut(id), size).await
    }

    async fn locate(&self, inner: &Inner, id: &BlobId) -> Result<Location> {
        inner.locate(&cut(id).parse()?).await
    }
}

#[derive(Debug)]
struct FoldsCase;

#[async_trait]
impl Twist for FoldsCase {
    async fn begin(&self, inner: &Inner, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        begin_as(inner, &id.as_str().to_lowercase(), size).await
    }

    async fn locate(&self, inner: &Inner, id: &BlobId) -> Result<Location> {
        inner.locate(&id.as_str().to_lowercase().parse()?).await
    }
}

#[derive(Debug)]
struct DeletesByPrefix;

#[async_trait]
impl Twist for DeletesByPrefix {
    async fn delete(&self, inner: &Inner, at: &Location) -> Result<()> {
        inner.open(at).await?;
        let entries: Vec<Entry> = inner.list().try_collect().await?;
        for entry in entries.iter().filter(|entry| entry.location.rest().starts_with(at.rest())) {
            inner.delete(&entry.location).await?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct TellsSecrets;

#[async_trait]
impl Twist for TellsSecrets {
    async fn open(&self, inner: &Inner, at: &Location) -> Result<Arc<dyn Download>> {
        let opened = inner.open(at).await;
        opened.map_err(|e| e.with_source(std::io::Error::other(format!("GET {}", at.rest()))))
    }
}

#[derive(Debug, Default)]
struct RemembersAbsence(Mutex<BTreeMap<BlobId, ()>>);

#[async_trait]
impl Twist for RemembersAbsence {
    async fn locate(&self, inner: &Inner, id: &BlobId) -> Result<Location> {
        let found = inner.locate(id).await;
        let mut absent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if found.is_err() {
            absent.insert(id.clone(), ());
        }
        match absent.contains_key(id) {
            true => Err(Error::new(ErrorKind::NotFound, "it was not there the last time")),
            false => found,
        }
    }
}

#[derive(Debug)]
struct LocatesElsewhere;

#[async_trait]
impl Twist for LocatesElsewhere {
    async fn commit(&self, upload: &mut Going, meta: &Meta) -> Result<Location> {
        let at = upload.inner.commit(meta).await?;
        format!("{at}?session=1").parse()
    }
}

/// An upload that was aborted still has its id.
#[derive(Debug, Default)]
struct LeavesATombstone(Mutex<BTreeMap<BlobId, ()>>);

#[async_trait]
impl Twist for LeavesATombstone {
    async fn begin(&self, inner: &Inner, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), ()).is_some();
        match taken {
            true => Err(Error::new(ErrorKind::AlreadyExists, "the id was used before")),
            false => inner.begin(id, size).await,
        }
    }
}
