//! The suite over store-fs, with both ways of staging.

#![allow(clippy::unwrap_used, reason = "a test panics where its own set-up fails")]

use std::{os::unix::fs::FileExt, sync::Arc};

use conformance_tests::{Damage, Fixture, Setup, Suites};
use store_core::{Backend, Error, Location, Result, file::blocking};
use store_fs::{FsBackend, FsConfig, Staging};

fn main() {
    Suites::new()
        .with("fs", async || Setup::Ready(fixture(Staging::Unnamed)))
        .with("fs-directory", async || Setup::Ready(fixture(Staging::Directory)))
        .run()
}

/// A store in a fresh directory. What happens when a share goes away, a disk fails or a process is killed is in
/// `faults.rs`: an open file outlives its name, so these faults are not those of a connection.
fn fixture(staging: Staging) -> Fixture {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let mut config = FsConfig::new(dir.path());
    config.staging = staging;
    let open = move || {
        let (config, dir) = (config.clone(), Arc::clone(&dir));
        async move {
            let backend = blocking(move || FsBackend::open(&config)).await?;
            drop(dir);
            Ok(Arc::new(backend) as Arc<dyn Backend>)
        }
    };
    Fixture::connecting(open).damage(|at, damage| async move {
        blocking(move || injure(&at, damage)).await.map_err(|error| error.to_string())
    })
}

fn injure(at: &Location, damage: Damage) -> Result<()> {
    let injured = || {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(at.to_path().unwrap())?;
        match damage {
            Damage::Flip(offset) => {
                let mut byte = [0];
                file.read_exact_at(&mut byte, offset)?;
                file.write_all_at(&[byte[0] ^ 1], offset)
            }
            Damage::Truncate(len) => file.set_len(len),
            other => panic!("how is {other:?} done?"),
        }
    };
    injured().map_err(|e| Error::from_io("cannot damage the blob", e))
}
