use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use store_core::{Error, ErrorKind, Result, driver::Payload, file::blocking};

use crate::md5::{LANES, md5s};

/// The MD5s of the segments of an upload that are on their way. Several are computed at once: when there are enough, or
/// when one is asked for.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    known: Mutex<Known>,
    /// Held while some are computed.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    /// By number, oldest first.
    waiting: Vec<(usize, Vec<Bytes>)>,
    ready: HashMap<usize, String>,
}

impl Sums {
    /// Adds a segment, and says whether there are now as many as are computed at once.
    pub(crate) fn add(&self, number: usize, pieces: &[Bytes]) -> bool {
        let mut known = self.known();
        known.waiting.push((number, pieces.to_vec()));
        known.waiting.len().is_multiple_of(LANES)
    }

    /// The MD5 of a segment that was added, once.
    pub(crate) async fn of(&self, number: usize) -> Result<String> {
        self.compute(number).await;
        let ready = self.known().ready.remove(&number);
        ready.ok_or_else(|| Error::new(ErrorKind::Internal, "the MD5 of a segment was not computed"))
    }

    /// Computes that of a segment, and of others that wait. If this future is dropped, they go on waiting.
    pub(crate) async fn compute(&self, number: usize) {
        let _turn = self.turn.lock().await;
        let mut batch: Vec<(usize, Vec<Bytes>)> = Vec::new();
        {
            let known = self.known();
            let others = known.waiting.iter().filter(|(other, _)| *other != number).take(LANES - 1);
            match known.waiting.iter().find(|(waiting, _)| *waiting == number) {
                Some(own) => batch.extend(std::iter::once(own).chain(others).cloned()),
                None => return, // Somebody else has done it.
            }
        }
        let numbers: Vec<usize> = batch.iter().map(|(number, _)| *number).collect();
        let computed = blocking(move || {
            let texts: Vec<&[Bytes]> = batch.iter().map(|(_, pieces)| pieces.as_slice()).collect();
            Ok(md5s(&texts))
        });
        let Ok(computed) = computed.await else { return };
        let mut known = self.known();
        known.waiting.retain(|(waiting, _)| !numbers.contains(waiting));
        known.ready.extend(numbers.into_iter().zip(computed));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The MD5 of one text.
pub(crate) async fn md5(payload: Payload) -> Result<String> {
    blocking(move || Ok(md5s(&[payload.pieces()]).concat())).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn text(number: usize) -> Payload {
        Bytes::from(vec![number as u8; 1000 * number]).into()
    }

    #[tokio::test]
    async fn each_segment_gets_its_own() {
        let sums = Arc::new(Sums::default());
        let full: Vec<bool> = (0..9).map(|number| sums.add(number, text(number).pieces())).collect();
        assert_eq!(full.iter().filter(|full| **full).count(), 2);
        let tasks = (0..9).rev().map(|number| {
            let sums = Arc::clone(&sums);
            tokio::spawn(async move { (number, sums.of(number).await.unwrap()) })
        });
        for task in futures::future::join_all(tasks).await {
            let (number, sum) = task.unwrap();
            assert_eq!(sum, md5(text(number)).await.unwrap());
        }
        assert!(sums.known().waiting.is_empty() && sums.known().ready.is_empty());
        assert_eq!(sums.of(3).await.unwrap_err().kind(), ErrorKind::Internal);
    }

    #[tokio::test]
    async fn a_dropped_computation_loses_nothing() {
        let sums = Sums::default();
        for number in 0..3 {
            assert!(!sums.add(number, text(number).pieces()));
        }
        let first = futures::poll!(std::pin::pin!(sums.compute(1)));
        assert!(first.is_pending());
        for number in 0..3 {
            assert_eq!(sums.of(number).await.unwrap(), md5(text(number)).await.unwrap());
        }
    }
}
