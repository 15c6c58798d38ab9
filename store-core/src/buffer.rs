//! Recycled, page-aligned memory for image data.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Start and length of a buffer that `O_DIRECT` takes on every common block device (open(2), "O_DIRECT").
pub const ALIGNMENT: usize = 4096;

/// Recycles page-aligned buffers of one size.
///
/// A fresh buffer of megabytes costs a page fault every 4 KiB; one that comes back costs nothing. Buffers in use
/// are not limited here but by the windows of those who ask.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    size: usize,
    spare: usize,
    free: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// A pool of buffers of `size` bytes, rounded up to [`ALIGNMENT`], that keeps at most `spare` unused ones.
    pub fn new(size: usize, spare: usize) -> Self {
        let size = size.next_multiple_of(ALIGNMENT).max(ALIGNMENT);
        Self { shared: Arc::new(Shared { size, spare, free: Mutex::default() }) }
    }

    /// The size of each buffer, in bytes.
    pub fn size(&self) -> usize {
        self.shared.size
    }

    /// An empty buffer.
    pub fn take(&self) -> Buffer {
        let recycled = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let memory = recycled.unwrap_or_else(|| vec![0; self.shared.size + ALIGNMENT]);
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Buffer { memory, start, len: 0, home: Arc::clone(&self.shared) }
    }
}

/// A page-aligned piece of memory with room for the pool's size of bytes.
#[derive(Debug)]
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
    home: Arc<Shared>,
}

impl Buffer {
    /// How many bytes are filled.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is filled.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes fit yet.
    pub fn room(&self) -> usize {
        self.home.size - self.len
    }

    /// Copies as much of `bytes` as fits, and says how much that was.
    pub fn fill(&mut self, bytes: &[u8]) -> usize {
        let len = bytes.len().min(self.room());
        let end = self.start + self.len;
        self.memory[end..end + len].copy_from_slice(&bytes[..len]);
        self.len += len;
        len
    }

    /// Appends as many of `len` zeros as fit, and says how many that were.
    pub fn fill_zeros(&mut self, len: u64) -> u64 {
        let len = len.min(self.room() as u64) as usize;
        let end = self.start + self.len;
        self.memory[end..end + len].fill(0);
        self.len += len;
        len as u64
    }

    /// Lets `read` fill the first `len` bytes of the room, and keeps as many as it says.
    pub fn read_with(
        &mut self,
        len: usize,
        read: impl FnOnce(&mut [u8]) -> std::io::Result<usize>,
    ) -> std::io::Result<usize> {
        let end = self.start + self.len;
        let len = len.min(self.room());
        let got = read(&mut self.memory[end..end + len])?.min(len);
        self.len += got;
        Ok(got)
    }

    /// The filled bytes; the memory goes back to the pool when the last clone is gone.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.home.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.home.spare {
            free.push(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_bounded_and_recycled() {
        let pool = Pool::new(5000, 1);
        let mut buffer = pool.take();
        assert_eq!(buffer.as_ref().as_ptr().align_offset(ALIGNMENT), 0);
        assert_eq!(buffer.room(), 8192);
        assert_eq!(buffer.fill(&[7; 8000]), 8000);
        assert_eq!(buffer.fill_zeros(u64::MAX), 192);
        assert_eq!(buffer.fill(&[1]), 0);
        let bytes = buffer.freeze();
        let address = bytes.as_ptr();
        let clone = bytes.clone();
        drop(bytes);
        assert_eq!((clone[0], clone[7999], clone[8000]), (7, 7, 0));
        drop(clone);
        let again = pool.take();
        assert_eq!(again.as_ref().as_ptr(), address);
        assert!(again.is_empty());
    }
}
