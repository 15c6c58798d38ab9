use bytes::Bytes;

/// The bytes of a request as the pieces in which they came: a copy of each byte costs.
///
/// With the feature `http-body` it is a body that HTTP clients send, piece by piece, and whose length they know.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    pieces: Vec<Bytes>,
    len: u64,
    /// Pieces that were sent.
    sent: usize,
}

impl Payload {
    /// How many bytes there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes from `bytes` what is missing to a length of `full`, and says whether that is reached.
    pub fn fill(&mut self, bytes: &mut Bytes, full: u64) -> bool {
        let missing = usize::try_from(full.saturating_sub(self.len)).unwrap_or(usize::MAX);
        let piece = bytes.split_to(bytes.len().min(missing));
        if !piece.is_empty() {
            self.len += piece.len() as u64;
            self.pieces.push(piece);
        }
        self.len >= full
    }

    /// The pieces, none of which is empty.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces[self.sent..]
    }
}

impl From<Bytes> for Payload {
    fn from(mut bytes: Bytes) -> Self {
        let mut payload = Self::default();
        payload.fill(&mut bytes, u64::MAX);
        payload
    }
}

#[cfg(feature = "http-body")]
mod body {
    use std::{
        convert::Infallible,
        mem,
        pin::Pin,
        task::{Context, Poll},
    };

    use http_body::{Body, Frame, SizeHint};

    use super::{Bytes, Payload};

    impl Body for Payload {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let at = self.sent;
            // Taken out, so that its memory is free as soon as it was sent.
            let Some(piece) = self.pieces.get_mut(at).map(mem::take) else { return Poll::Ready(None) };
            self.sent += 1;
            self.len -= piece.len() as u64;
            Poll::Ready(Some(Ok(Frame::data(piece))))
        }

        fn is_end_stream(&self) -> bool {
            self.is_empty()
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.len)
        }
    }

    #[cfg(test)]
    mod tests {
        use std::task::Waker;

        use super::*;

        #[test]
        fn a_body_knows_its_length_and_sends_each_piece_once() {
            let mut payload = Payload::from(Bytes::from_static(b"abc"));
            payload.fill(&mut Bytes::from_static(b"de"), 5);
            let kept = payload.clone();
            let mut context = Context::from_waker(Waker::noop());
            for (left, piece) in [(5, &b"abc"[..]), (2, b"de")] {
                assert_eq!((payload.size_hint().exact(), payload.is_end_stream()), (Some(left), false));
                let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut payload).poll_frame(&mut context) else {
                    panic!("there is no piece");
                };
                assert_eq!(frame.into_data().unwrap(), piece);
            }
            assert_eq!((payload.size_hint().exact(), payload.is_end_stream()), (Some(0), true));
            assert!(matches!(Pin::new(&mut payload).poll_frame(&mut context), Poll::Ready(None)));
            assert_eq!((payload.pieces().len(), kept.pieces().len(), kept.len()), (0, 2, 5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fills_to_a_length_and_copies_nothing() {
        let whole = Bytes::from_static(b"0123456789");
        let mut bytes = whole.clone();
        let mut payload = Payload::default();
        assert!(payload.is_empty());
        assert!(!payload.fill(&mut bytes.split_to(3), 5));
        assert!(payload.fill(&mut bytes, 5));
        assert_eq!((payload.len(), bytes.len()), (5, 5));
        assert!(payload.fill(&mut bytes, 5), "it is full");
        assert_eq!(bytes.len(), 5);
        assert!(!payload.fill(&mut Bytes::new(), u64::MAX));
        assert_eq!(payload.pieces(), [&b"012"[..], b"34"]);
        assert_eq!(payload.pieces()[1].as_ptr(), whole[3..].as_ptr());
    }
}
