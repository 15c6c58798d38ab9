//! Wrong about what is there.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use store_core::{BlobId, Entry, Location, Result};

use super::{Inner, Twist, wrong};

wrong! {
    ListsTwice => lists_twice, caught by three_hundred_blobs_are_listed_once_each;
    ListsOnePage => lists_one_page, caught by three_hundred_blobs_are_listed_once_each;
    ListsNoSizes => lists_no_sizes, caught by a_blob_is_listed_with_its_size;
    ListsTheDeleted::default() => lists_the_deleted, caught by a_deleted_blob_is_not_listed;
    ListsTheDeleted::default() => locates_the_deleted, caught by a_blob_that_was_deleted_is_not_found;
    ListsAStranger => lists_a_stranger, caught by an_empty_storage_lists_nothing;
    ListsByNumber => lists_by_number, caught by blobs_that_come_and_go_do_not_disturb_a_list;
    ListsOtherLocations => lists_other_locations, caught by listed_locations_can_be_read;
}

#[derive(Debug)]
struct ListsTwice;

impl Twist for ListsTwice {
    fn list<'a>(&'a self, inner: &'a Inner) -> BoxStream<'a, Result<Entry>> {
        // The last entry of a page is the first of the next one.
        let pages = inner.list().enumerate().flat_map(|(n, entry)| {
            let again = entry.as_ref().ok().filter(|_| n % 100 == 99).cloned();
            stream::iter(std::iter::once(entry).chain(again.map(Ok)))
        });
        pages.boxed()
    }
}

#[derive(Debug)]
struct ListsOnePage;

impl Twist for ListsOnePage {
    fn list<'a>(&'a self, inner: &'a Inner) -> BoxStream<'a, Result<Entry>> {
        inner.list().take(256).boxed()
    }
}

#[derive(Debug)]
struct ListsNoSizes;

impl Twist for ListsNoSizes {
    fn list<'a>(&'a self, inner: &'a Inner) -> BoxStream<'a, Result<Entry>> {
        inner.list().map_ok(|entry| Entry::new(entry.id, entry.location, 0)).boxed()
    }
}

/// An index that is brought up to date only at a commit.
#[derive(Debug, Default)]
struct ListsTheDeleted(Mutex<Vec<Entry>>);

#[async_trait]
impl Twist for ListsTheDeleted {
    async fn delete(&self, inner: &Inner, at: &Location) -> Result<()> {
        let entries: Vec<Entry> = inner.list().try_collect().await?;
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(entries.into_iter().filter(|e| e.location == *at));
        inner.delete(at).await
    }

    async fn locate(&self, inner: &Inner, id: &BlobId) -> Result<Location> {
        let found = inner.locate(id).await;
        let index = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match index.iter().find(|entry| entry.id == *id) {
            Some(entry) => Ok(entry.location.clone()),
            None => found,
        }
    }

    fn list<'a>(&'a self, inner: &'a Inner) -> BoxStream<'a, Result<Entry>> {
        let index = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        inner.list().chain(stream::iter(index.into_iter().map(Ok))).boxed()
    }
}

#[derive(Debug)]
struct ListsAStranger;

impl Twist for ListsAStranger {
    fn list<'a>(&'a self, inner: &'a Inner) -> BoxStream<'a, Result<Entry>> {
        let stranger = || Ok(Entry::new("lost-and-found".parse()?, "memory://lost-and-found".parse()?, 0));
        inner.list().chain(stream::iter([stranger()])).boxed()
    }
}

/// Asks for one entry after the other by its number, so that a deletion makes it miss one.
#[derive(Debug)]
struct ListsByNumber;

impl Twist for ListsByNumber {
    fn list<'a>(&'a self, inner: &'a Inner) -> BoxStream<'a, Result<Entry>> {
        let entries = stream::unfold(0, move |number| async move {
            tokio::task::yield_now().await;
            let entry = inner.list().skip(number).next().await?;
            Some((entry, number + 1))
        });
        entries.boxed()
    }
}

#[derive(Debug)]
struct ListsOtherLocations;

impl Twist for ListsOtherLocations {
    fn list<'a>(&'a self, inner: &'a Inner) -> BoxStream<'a, Result<Entry>> {
        let entries = inner.list().and_then(|entry| async move {
            let at = format!("{}?listed", entry.location).parse()?;
            Ok(Entry::new(entry.id, at, entry.size))
        });
        entries.boxed()
    }
}
