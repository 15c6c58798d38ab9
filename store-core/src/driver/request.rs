use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, stream};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn, spawn_blocking},
    time::{Instant, timeout_at},
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::{
    Error, Result,
    buffer::{Buffer, Pool},
};

tokio::task_local! {
    /// What tells [`Store::settle`](crate::Store::settle) of requests whose caller has gone.
    static TRACKER: TaskTracker;
}

/// Lets `tracker` know of every request that `call` starts, also in being dropped.
pub(crate) fn tracked<F: Future>(tracker: &TaskTracker, call: F) -> impl Future<Output = F::Output> {
    TRACKER.scope(tracker.clone(), call)
}

/// A request on a task of its own: it goes on when whoever waits for it stops waiting, and can be waited for again.
#[must_use = "to wait for it, or to undo what it does"]
pub struct Request<T>(JoinHandle<Result<T>>);

impl<T: Send + 'static> Request<T> {
    /// Starts it.
    pub fn spawn(request: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Self(match TRACKER.try_with(TaskTracker::clone) {
            Ok(tracker) => tracker.spawn(TRACKER.scope(tracker.clone(), request)),
            Err(_) => spawn(request),
        })
    }

    /// Starts it on a thread that may block; then [`Request::stop`] only waits.
    pub fn blocking(request: impl FnOnce() -> Result<T> + Send + 'static) -> Self {
        Self(match TRACKER.try_with(TaskTracker::clone) {
            Ok(tracker) => tracker.spawn_blocking(request),
            Err(_) => spawn_blocking(request),
        })
    }

    /// Stops it at its next await point, and waits until it has stopped.
    pub async fn stop(mut self) {
        self.0.abort();
        let _ = (&mut self).await; // Stopped or ended, it does no more.
    }
}

impl<T> Future for Request<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|ended| ended.map_err(Error::stopped).flatten())
    }
}

impl<T> fmt::Debug for Request<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("ended", &self.0.is_finished()).finish()
    }
}

/// Room for one request that must not be lost with the future that waits for it.
#[derive(Debug)]
pub struct Pending<T>(Option<Request<T>>);

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Pending<T> {
    /// Waits for `request`, which stays here if this future is dropped.
    pub async fn run(&mut self, request: Request<T>) -> Result<T> {
        let outcome = self.0.insert(request).await;
        self.0 = None;
        outcome
    }

    /// Waits for what was left here; `None` if nothing was, or if it failed.
    pub async fn left(&mut self) -> Option<T> {
        self.0.take()?.await.ok()
    }
}

/// Requests on their way, oldest first, and the bytes of memory that they hold.
#[derive(Debug)]
pub struct InFlight<R> {
    requests: VecDeque<(R, u64)>,
    held: u64,
}

impl<R> Default for InFlight<R> {
    fn default() -> Self {
        Self { requests: VecDeque::new(), held: 0 }
    }
}

impl<R: Future + Unpin> InFlight<R> {
    /// Adds a request that holds so many bytes.
    pub fn push(&mut self, request: R, held: u64) {
        self.requests.push_back((request, held));
        self.held += held;
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether one more that holds `bytes` stays within a window of so many bytes and `most` requests. One alone always
    /// does.
    pub fn has_room(&self, bytes: u64, window: u64, most: usize) -> bool {
        self.requests.is_empty() || self.len() < most && self.held.saturating_add(bytes) <= window
    }

    /// Waits for the oldest one; `None` if there is none. If this future is dropped, the request stays.
    pub async fn next(&mut self) -> Option<R::Output> {
        let (oldest, _) = self.requests.front_mut()?;
        let outcome = oldest.await;
        if let Some((_, held)) = self.requests.pop_front() {
            self.held -= held;
        }
        Some(outcome)
    }

    /// Waits for whichever ends first, as [`next`](Self::next) does for the oldest one.
    pub async fn first(&mut self) -> Option<R::Output> {
        poll_fn(|context| {
            for index in 0..self.requests.len() {
                if let Poll::Ready(outcome) = Pin::new(&mut self.requests[index].0).poll(context) {
                    self.held -= self.requests.remove(index).map_or(0, |(_, held)| held);
                    return Poll::Ready(Some(outcome));
                }
            }
            if self.requests.is_empty() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }
}

impl<T: Send + 'static> InFlight<Request<T>> {
    /// Gives them up to `patience` to end, then stops them; after this, none does anything any more.
    pub async fn stop(&mut self, patience: Duration) {
        let until = Instant::now() + patience;
        if patience.is_zero() {
            self.requests.iter().for_each(|(request, _)| request.0.abort());
        }
        self.held = 0;
        for (mut request, _) in self.requests.drain(..) {
            if timeout_at(until, &mut request).await.is_err() {
                request.stop().await;
            }
        }
    }
}

/// Makes requests on tasks of their own, up to so many `ahead` of the reader, whose replies come in order. Those under way
/// are stopped when the stream is dropped.
pub fn read_ahead<T, R>(
    requests: impl Iterator<Item = R> + Send + 'static,
    ahead: usize,
) -> impl Stream<Item = Result<T>> + Send + 'static
where
    T: Send + 'static,
    R: Future<Output = Result<T>> + Send + 'static,
{
    let ahead = ahead.max(1);
    let start = |request: R| AbortOnDropHandle::new(spawn(request));
    stream::unfold((requests, VecDeque::new()), move |(mut requests, mut going)| async move {
        going.extend(requests.by_ref().take(ahead - going.len()).map(start));
        let answer = going.pop_front()?.await.map_err(Error::stopped).flatten();
        // Whoever takes it may be busy with it for a while; the next request goes out meanwhile.
        going.extend(requests.by_ref().take(1).map(start));
        Some((answer, (requests, going)))
    })
}

/// Like [`read_ahead`], for requests that send what they read as it comes: the bytes of the oldest go to the reader at once,
/// while the others go on. Each has up to `waiting` pieces of them wait for the reader, and then the server does.
pub fn stream_ahead<S, R>(
    requests: impl Iterator<Item = S> + Send + 'static,
    ahead: usize,
    waiting: usize,
) -> impl Stream<Item = Result<Bytes>> + Send + 'static
where
    S: FnOnce(mpsc::Sender<Bytes>) -> R + Send + 'static,
    R: Future<Output = Result<()>> + Send + 'static,
{
    let ahead = ahead.max(1);
    let start = move |request: S| {
        let (to, bytes) = mpsc::channel(waiting.max(1));
        (bytes, AbortOnDropHandle::new(spawn(request(to))))
    };
    stream::try_unfold((requests, VecDeque::new()), move |(mut requests, mut going)| async move {
        loop {
            going.extend(requests.by_ref().take(ahead - going.len()).map(start));
            let Some((bytes, task)) = going.front_mut() else { return Ok(None) };
            match bytes.recv().await {
                Some(bytes) => return Ok(Some((bytes, (requests, going)))),
                // It sends no more: it has ended.
                None => task.await.map_err(Error::stopped).flatten()?,
            }
            going.pop_front();
        }
    })
}

/// What a request of [`stream_ahead`] reads, on its way: gathered in recycled buffers, which go on when they are full.
pub struct Gathered {
    pool: Pool,
    to: mpsc::Sender<Bytes>,
    filling: Option<Buffer>,
}

impl Gathered {
    /// Gathers in buffers of `pool`.
    pub fn new(pool: &Pool, to: mpsc::Sender<Bytes>) -> Self {
        Self { pool: pool.clone(), to, filling: None }
    }

    /// Takes a copy of `bytes`. Waits for the reader where enough waits for it.
    pub async fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let buffer = self.filling.get_or_insert_with(|| self.pool.take());
            let taken = buffer.fill(bytes);
            bytes = &bytes[taken..];
            if buffer.room() == 0 {
                self.flush().await;
            }
        }
    }

    /// Sends what there is.
    pub async fn flush(&mut self) {
        if let Some(buffer) = self.filling.take() {
            let _ = self.to.send(buffer.freeze()).await; // A reader that is gone wants nothing.
        }
    }
}

impl fmt::Debug for Gathered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gathered").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use futures::StreamExt;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::ErrorKind;

    #[tokio::test]
    async fn a_request_outlives_a_dropped_wait() {
        let done = Arc::new(AtomicU32::new(0));
        let mut pending = Pending::default();
        let counted = Arc::clone(&done);
        let request = Request::spawn(async move {
            sleep(Duration::from_millis(50)).await;
            Ok(counted.fetch_add(1, Ordering::SeqCst))
        });
        assert!(timeout(Duration::from_millis(1), pending.run(request)).await.is_err());
        assert_eq!(pending.left().await, Some(0));
        assert_eq!(done.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_on_without_its_caller_is_waited_for() {
        let done = Arc::new(AtomicU32::new(0));
        let slow = |counted: &Arc<AtomicU32>| {
            let counted = Arc::clone(counted);
            Request::spawn(async move {
                sleep(Duration::from_secs(5)).await;
                counted.fetch_add(1, Ordering::SeqCst);
                Ok(())
            })
        };
        /// What starts a request when it is dropped, as an upload does.
        struct Undone<F: Fn()>(F);
        impl<F: Fn()> Drop for Undone<F> {
            fn drop(&mut self) {
                (self.0)();
            }
        }
        let tracker = TaskTracker::new();
        tracker.close();
        let (one, two) = (Arc::clone(&done), Arc::clone(&done));
        let call = tracked(&tracker, async move {
            let _undone = Undone(|| drop(slow(&two)));
            slow(&one).await
        });
        assert!(timeout(Duration::from_secs(1), call).await.is_err());
        assert_eq!(done.load(Ordering::SeqCst), 0);
        tracker.wait().await;
        assert_eq!(done.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let request = Request::<()>::spawn(async { panic!("a bug") });
        assert_eq!(request.await.unwrap_err().kind(), ErrorKind::Internal);
    }

    #[tokio::test]
    async fn the_window_counts_bytes_and_requests() {
        let mut flight = InFlight::default();
        assert!(flight.has_room(100, 10, 1), "one alone");
        flight.push(Request::spawn(async { Ok(1) }), 6);
        flight.push(Request::spawn(async { Ok(2) }), 3);
        assert!(flight.has_room(1, 10, 3));
        assert!(!flight.has_room(2, 10, 3));
        assert!(!flight.has_room(1, 10, 2));
        assert_eq!(flight.next().await.unwrap().unwrap(), 1);
        assert!(flight.has_room(7, 10, 2));
        assert_eq!(flight.next().await.unwrap().unwrap(), 2);
        assert!(flight.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_request_is_not_in_the_way_of_a_later_one() {
        let mut flight = InFlight::default();
        for (number, seconds) in [(1, 9), (2, 3), (3, 6)] {
            let slow = async move {
                sleep(Duration::from_secs(seconds)).await;
                Ok(number)
            };
            flight.push(Request::spawn(slow), 5);
        }
        assert!(timeout(Duration::from_secs(1), flight.first()).await.is_err(), "none has ended yet");
        let mut ended = Vec::new();
        while let Some(outcome) = flight.first().await {
            ended.push(outcome.unwrap());
            assert!(flight.has_room(5 * ended.len() as u64, 15, 4), "what {ended:?} held is free");
        }
        assert_eq!(ended, [2, 3, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn replies_come_in_order_from_a_bounded_number_ahead() {
        let started = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&started);
        let requests = (0..9u32).map(move |number| {
            let counted = Arc::clone(&counted);
            async move {
                counted.fetch_add(1, Ordering::SeqCst);
                sleep(Duration::from_secs(u64::from(9 - number))).await;
                Ok(number)
            }
        });
        let mut replies = Box::pin(read_ahead(requests, 3));
        assert_eq!(replies.next().await.unwrap().unwrap(), 0);
        // Three more, while the reader is busy with the first.
        tokio::task::yield_now().await;
        assert_eq!(started.load(Ordering::SeqCst), 4);
        let rest: Vec<_> = replies.map(Result::unwrap).collect().await;
        assert_eq!(rest, [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_come_in_order_while_later_requests_go_on() {
        let sent = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&sent);
        let requests = (0..5u8).map(move |number| {
            let counted = Arc::clone(&counted);
            async move |to: mpsc::Sender<Bytes>| {
                let mut gathered = Gathered::new(&Pool::new(4096, 0), to);
                for _ in 0..6 {
                    sleep(Duration::from_secs(1)).await;
                    gathered.push(&[number; 4096]).await;
                    counted.fetch_add(1, Ordering::SeqCst);
                }
                gathered.push(&[number; 10]).await;
                gathered.flush().await;
                if number == 4 { Err(Error::new(ErrorKind::Unavailable, "the line is down")) } else { Ok(()) }
            }
        });
        let mut bytes = Box::pin(stream_ahead(requests, 3, 2));
        assert_eq!(bytes.next().await.unwrap().unwrap(), [0; 4096][..]);
        // Two of each wait, and the reader has one: the servers have to wait with the rest.
        sleep(Duration::from_secs(60)).await;
        assert_eq!(sent.load(Ordering::SeqCst), 7);
        for number in 0..5 {
            let count = if number == 0 { 5 } else { 6 };
            for _ in 0..count {
                assert_eq!(bytes.next().await.unwrap().unwrap(), [number; 4096][..]);
            }
            assert_eq!(bytes.next().await.unwrap().unwrap(), [number; 10][..]);
        }
        assert_eq!(bytes.next().await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn what_is_stopped_does_no_more() {
        let done = Arc::new(AtomicU32::new(0));
        let mut flight = InFlight::default();
        for pause in [1, 60_000] {
            let counted = Arc::clone(&done);
            let request = Request::spawn(async move {
                sleep(Duration::from_millis(pause)).await;
                counted.fetch_add(1, Ordering::SeqCst);
                Ok(())
            });
            flight.push(request, 0);
        }
        flight.stop(Duration::from_millis(300)).await;
        assert_eq!((done.load(Ordering::SeqCst), Arc::strong_count(&done)), (1, 1));
    }
}
