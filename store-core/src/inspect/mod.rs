//! What kind of image a stream of bytes is, and whether it is safe to keep.
