use std::{
    fmt,
    ops::RangeInclusive,
    sync::{Arc, LazyLock},
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};

use crate::{Chunk, Digests, Error, ErrorKind, Hasher, Result};

/// Watches a blob's bytes on their way in, for instance to verify a signature over them.
///
/// It runs beside the digests, off the async threads. An error stops the upload; nothing is committed then.
pub trait Tap: Send + 'static {
    /// Sees the next bytes; zeros of a hole come as bytes too.
    fn update(&mut self, bytes: &[u8]) -> Result<()>;
    /// Has seen all bytes, and may still refuse them.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// The digests and taps of one transfer, each a lane of its own: fed in order, worked off on blocking threads.
///
/// A lane holds no thread while it waits for bytes, so a thousand slow uploads cost no thread at all.
pub(crate) struct Lanes {
    lanes: Vec<Lane>,
}

struct Lane {
    queue: mpsc::Sender<Chunk>,
    done: AbortOnDrop,
}

/// A lane whose transfer is gone has no one to work for.
struct AbortOnDrop(JoinHandle<Result<Worker>>);

enum Worker {
    Hasher(Box<Hasher>),
    Tap(Box<dyn Tap>),
}

/// How many bytes may wait in front of a lane: enough to bridge the pauses of a disk. The lanes share them, since they get
/// the same chunks.
const WAITING: usize = 12 << 20;

/// How many chunks at least, however large they are, and at most.
const DEPTH: RangeInclusive<usize> = 3..=12;

/// After how many bytes a lane makes room for the lanes of other transfers, also within a hole.
const TURN: u64 = 32 << 20;

/// As many lanes compute at once as there are cores: more would only take turns.
static CORES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(2, std::num::NonZero::get)))
});

impl Lanes {
    /// Lanes for chunks of at most `chunk` bytes.
    pub(crate) fn start(
        runtime: &Handle,
        chunk: usize,
        hashers: Vec<Hasher>,
        taps: Vec<Box<dyn Tap>>,
    ) -> Self {
        let depth = (WAITING / chunk.max(1)).clamp(*DEPTH.start(), *DEPTH.end());
        let workers = hashers
            .into_iter()
            .map(|hasher| Worker::Hasher(Box::new(hasher)))
            .chain(taps.into_iter().map(Worker::Tap));
        let lanes = workers.map(|worker| {
            let (queue, chunks) = mpsc::channel(depth);
            Lane { queue, done: AbortOnDrop(runtime.spawn(run(chunks, worker))) }
        });
        Self { lanes: lanes.collect() }
    }

    /// Hands `chunk` to every lane; waits while one of them is too far behind.
    pub(crate) async fn feed(&mut self, chunk: &Chunk) -> Result<()> {
        for lane in &mut self.lanes {
            if lane.queue.send(chunk.clone()).await.is_err() {
                return Err(match (&mut lane.done.0).await {
                    Ok(Err(refused)) => refused,
                    Ok(Ok(_)) => Error::new(ErrorKind::Internal, "a digest lane ended early"),
                    Err(panic) => Error::stopped(panic),
                });
            }
        }
        Ok(())
    }

    /// Waits for the lanes to see the last byte.
    pub(crate) async fn finish(self) -> Result<Digests> {
        let mut digests = Digests::default();
        let mut running = Vec::new();
        for Lane { queue, done } in self.lanes {
            drop(queue);
            running.push(done);
        }
        for mut done in running {
            match (&mut done.0).await.map_err(Error::stopped)?? {
                Worker::Hasher(hasher) => digests.insert(hasher.algorithm(), hasher.finish()),
                Worker::Tap(tap) => {
                    tokio::task::spawn_blocking(move || tap.finish()).await.map_err(Error::stopped)??;
                }
            }
        }
        Ok(digests)
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes").field("lanes", &self.lanes.len()).finish()
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run(mut chunks: mpsc::Receiver<Chunk>, mut worker: Worker) -> Result<Worker> {
    let mut rest = None;
    loop {
        let first = match rest.take() {
            Some(rest) => rest,
            None => match chunks.recv().await {
                Some(chunk) => chunk,
                None => return Ok(worker),
            },
        };
        // The semaphore is never closed.
        let _core = CORES.acquire().await;
        // Goes on for as long as there is more: each return to the async threads costs two changes of thread, and the
        // other lanes' work keeps the cores from making them at once.
        (worker, chunks, rest) = tokio::task::spawn_blocking(move || {
            let (mut next, mut left) = (Some(first), TURN);
            while let Some(chunk) = next {
                let (now, later) = worker.cut(chunk, left);
                left = left.saturating_sub(now.len());
                worker.update(now)?;
                next = match left {
                    0 => return Ok((worker, chunks, later)),
                    _ => chunks.try_recv().ok(),
                };
            }
            Ok((worker, chunks, None))
        })
        .await
        .map_err(Error::stopped)??;
    }
}

impl Worker {
    /// What of a chunk to work off now, and what another time: a hole may have any length.
    fn cut(&self, chunk: Chunk, most: u64) -> (Chunk, Option<Chunk>) {
        match (chunk, self) {
            (chunk, Self::Hasher(hasher)) if hasher.skips_zeros() => (chunk, None),
            (Chunk::Zeros(len), _) if len > most => (Chunk::Zeros(most), Some(Chunk::Zeros(len - most))),
            (chunk, _) => (chunk, None),
        }
    }

    fn update(&mut self, chunk: Chunk) -> Result<()> {
        match self {
            Self::Hasher(hasher) => hasher.update_chunk(&chunk),
            Self::Tap(tap) => {
                for bytes in chunk.into_bytes() {
                    tap.update(&bytes)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, thread::ThreadId};

    use super::*;
    use crate::Algorithm;

    struct Threads(Arc<Mutex<Vec<ThreadId>>>);

    impl Threads {
        fn note(&self) -> Result<()> {
            self.0.lock().unwrap().push(std::thread::current().id());
            Ok(())
        }
    }

    impl Tap for Threads {
        fn update(&mut self, _: &[u8]) -> Result<()> {
            self.note()
        }
        fn finish(self: Box<Self>) -> Result<()> {
            self.note()
        }
    }

    /// What this thread has computed so far, in nanoseconds (proc_pid_schedstat(5)).
    fn computed() -> u64 {
        let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        schedstat.split(' ').next().unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn lanes_in_a_hole_of_any_length_leave_room_for_others_and_end_when_they_are_dropped() {
        let hashers = (0..8).map(|_| Hasher::new(Algorithm::Sha512)).collect();
        let mut long = Lanes::start(&Handle::current(), 1 << 20, hashers, Vec::new());
        long.feed(&Chunk::Zeros(1 << 50)).await.unwrap();

        let mut short =
            Lanes::start(&Handle::current(), 1 << 20, vec![Hasher::new(Algorithm::Md5)], Vec::new());
        short.feed(&Chunk::Zeros(3 * TURN + 1)).await.unwrap();
        let digests = tokio::time::timeout(std::time::Duration::from_secs(100), short.finish()).await;
        let mut whole = Hasher::new(Algorithm::Md5);
        whole.update_chunk(&Chunk::Zeros(3 * TURN + 1));
        assert_eq!(digests.unwrap().unwrap().get(Algorithm::Md5), Some(&*whole.finish()));

        let queues: Vec<_> = long.lanes.iter().map(|lane| lane.queue.clone()).collect();
        drop(long);
        let closed = futures::future::join_all(queues.iter().map(mpsc::Sender::closed));
        tokio::time::timeout(std::time::Duration::from_secs(100), closed).await.unwrap();
    }

    /// On a runtime whose one async thread is this one.
    #[tokio::test]
    async fn digests_and_taps_run_off_the_async_threads() {
        const CHUNKS: usize = 64;
        let chunk = Chunk::Data(vec![7; 1 << 20].into());
        let hashers = || vec![Hasher::new(Algorithm::Md5), Hasher::new(Algorithm::Sha512)];

        let start = computed();
        for mut hasher in hashers() {
            (0..CHUNKS).for_each(|_| hasher.update_chunk(&chunk));
        }
        let by_itself = computed() - start;

        let threads: Arc<Mutex<Vec<_>>> = Arc::default();
        let start = computed();
        let taps: Vec<Box<dyn Tap>> = vec![Box::new(Threads(Arc::clone(&threads)))];
        let mut lanes = Lanes::start(&Handle::current(), 1 << 20, hashers(), taps);
        for _ in 0..CHUNKS {
            lanes.feed(&chunk).await.unwrap();
        }
        let digests = lanes.finish().await.unwrap();
        let with_lanes = computed() - start;

        assert_eq!(digests.iter().count(), 2);
        assert!(with_lanes < by_itself / 4, "{with_lanes} ns, and {by_itself} without lanes");
        let threads = threads.lock().unwrap();
        assert!(threads.len() > CHUNKS && !threads.contains(&std::thread::current().id()), "{threads:?}");
    }
}
