//! The suite over real clusters: one that keeps its data in memory, and one that keeps them in a file and is killed.

use std::{
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use conformance_tests::{Damage, Fault, FaultKind, Fixture, Setup, Suites};
use futures::{FutureExt, TryStreamExt, future::BoxFuture};
use store_ceph::{CephBackend, CephConfig, CopyMode, Feature};
use store_core::{Backend, ErrorKind, Location, Size};
use tokio::sync::OwnedMutexGuard;

#[allow(dead_code, reason = "each test uses a part of it")]
mod server;

use server::{Server, signal};

/// One cluster of each kind for all cases, each in a namespace of its own.
static MEMORY: LazyLock<Result<Server, String>> = LazyLock::new(|| Server::start("memory", &[]));
static FILE: LazyLock<Result<Server, String>> = LazyLock::new(|| Server::start("file", &["--bluestore"]));

fn main() {
    Suites::new()
        .with("ceph", async || match (setup(&MEMORY, |_| {}), &*MEMORY) {
            (Setup::Ready(fixture), Ok(server)) => {
                Setup::Ready(fixture.fault(&[FaultKind::Stall], stall(server)))
            }
            (missing, _) => missing,
        })
        .with("ceph-bluestore", async || {
            match setup(&FILE, |config| {
                // No object map: holes are searched for object by object.
                config.features = Some(vec![Feature::Layering]);
                config.object_size = Size(1 << 20);
                config.snapshot = "golden image".to_owned();
                config.concurrency = 3;
                config.copy = CopyMode::Clone;
            }) {
                Setup::Ready(fixture) => Setup::Ready(fixture.crash(crash)),
                missing => missing,
            }
        })
        .run()
}

/// A store in a fresh namespace.
fn setup(server: &'static Result<Server, String>, change: fn(&mut CephConfig)) -> Setup {
    let server = match server {
        Ok(server) => server,
        Err(why) => return Setup::Missing(why.clone()),
    };
    let mut config = server.own_namespace();
    change(&mut config);
    let opened = config.clone();
    let open = move || {
        let config = opened.clone();
        async move { Ok(Arc::new(CephBackend::connect(&config).await?) as Arc<dyn Backend>) }
    };
    let key = std::fs::read_to_string(&server.keyring).unwrap_or_default();
    let key = key.split("key = ").nth(1).unwrap_or_default().trim().to_owned();
    let damaged = config.clone();
    Setup::Ready(
        Fixture::connecting(open)
            .secret(key)
            .limit(Duration::from_secs(300))
            .damage(move |at, damage| std::future::ready(injure(server, &damaged, &at, damage)))
            .teardown(move || remove(config.clone())),
    )
}

/// Changes objects of the image, which its snapshot shares as long as librbd does not write to it.
fn injure(server: &Server, config: &CephConfig, at: &Location, damage: Damage) -> Result<(), String> {
    let name = at.rest().split('/').nth(4).unwrap_or_default();
    let namespace = config.namespace.as_deref().unwrap_or_default();
    let damaged = match damage {
        Damage::Flip(at) => {
            const FLIP: &str = "name, at = sys.argv[1], int(sys.argv[2])\n\
                with rbd.Image(io, name, read_only=True) as image: info = image.stat()\n\
                number, offset = divmod(at, info['obj_size'])\n\
                key = '%s.%016x' % (info['block_name_prefix'], number)\n\
                byte = (io.read(key, 1, offset) or b'\\0')[0]\n\
                io.write(key, bytes([byte ^ 1]), offset)";
            server.python(namespace, FLIP, &[name, &at.to_string()])
        }
        Damage::Truncate(len) => {
            const CUT: &str = "name, size, snap = sys.argv[1], int(sys.argv[2]), sys.argv[3]\n\
                image = rbd.Image(io, name); image.unprotect_snap(snap); image.remove_snap(snap)\n\
                image.resize(size); image.create_snap(snap); image.protect_snap(snap); image.close()";
            server.python(namespace, CUT, &[name, &len.to_string(), &config.snapshot])
        }
        other => Err(format!("how is {other:?} done?")),
    };
    damaged.map(drop)
}

/// Removes what a case left, which takes memory otherwise.
async fn remove(config: CephConfig) -> Result<(), String> {
    let removed = async {
        let backend = CephBackend::connect(&config).await?;
        loop {
            let all: Vec<_> = backend.list().try_collect().await?;
            let mut kept = Ok(());
            let count = all.len();
            let mut removed = 0;
            for entry in all {
                match backend.delete(&entry.location).await {
                    // An original goes after its clones.
                    Err(error) if error.kind() == ErrorKind::InUse => kept = Err(error),
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => removed += 1,
                }
            }
            match removed {
                _ if removed == count => break,
                0 => return kept,
                _ => {}
            }
        }
        backend.sweep(Duration::ZERO).await.map(drop)
    };
    removed.await.map_err(|error| error.to_string())
}

/// Stops the OSD that all cases share: they take turns, each until its fixture is gone, and those that run beside wait
/// for it. Nothing can be cut: the cluster tells clients the addresses of its daemons, past any proxy.
fn stall(server: &'static Server) -> impl Fn(Fault) -> BoxFuture<'static, Result<(), String>> {
    static TURN: LazyLock<Arc<tokio::sync::Mutex<()>>> = LazyLock::new(Arc::default);
    let ours: Arc<Mutex<Option<OwnedMutexGuard<()>>>> = Arc::default();
    move |fault| {
        let ours = Arc::clone(&ours);
        async move {
            let is_ours = || ours.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            match fault {
                Fault::Stall => {
                    if !is_ours() {
                        let turn = Arc::clone(&TURN).lock_owned().await;
                        *ours.lock().unwrap_or_else(PoisonError::into_inner) = Some(turn);
                    }
                    signal(server.osd, "STOP")
                }
                Fault::Heal if is_ours() => signal(server.osd, "CONT"),
                Fault::Heal => Ok(()),
                other => Err(format!("how is {other:?} done?")),
            }
        }
        .boxed()
    }
}

/// Kills the OSD, as a power cut would, and starts it again. Cases that run beside wait for it.
async fn crash() -> Result<(), String> {
    static RUNNING: Mutex<Option<Server>> = Mutex::new(None);
    let restart = || {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let server = match &*running {
            Some(server) => server.clone(),
            None => FILE.clone()?,
        };
        signal(server.osd, "KILL")?;
        *running = Some(server.restart()?);
        Ok(())
    };
    tokio::task::spawn_blocking(restart).await.map_err(|e| e.to_string())?
}
