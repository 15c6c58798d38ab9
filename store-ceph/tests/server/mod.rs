//! Real clusters, started by `testservers/ceph`.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use store_ceph::CephConfig;

/// A cluster that runs until this process ends.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) conf: PathBuf,
    pub(crate) fsid: String,
    pub(crate) pool: String,
    pub(crate) keyring: PathBuf,
    pub(crate) admin_keyring: PathBuf,
    pub(crate) mon: u32,
    pub(crate) osd: u32,
}

impl Server {
    /// Starts one; `name` tells those of one process apart.
    pub(crate) fn start(name: &str, options: &[&str]) -> Result<Self, String> {
        let process = std::process::id().to_string();
        let name = format!("{name}-{process}");
        let mut arguments = vec!["start", "--name", &name, "--owner", &process];
        arguments.extend(options);
        Self::from_lines(name.clone(), &script(&arguments)?)
    }

    /// Starts again what has ended of it, such as an OSD that was killed.
    pub(crate) fn restart(&self) -> Result<Self, String> {
        Self::from_lines(self.name.clone(), &script(&["start", "--name", &self.name])?)
    }

    fn from_lines(name: String, lines: &str) -> Result<Self, String> {
        let lines: HashMap<&str, &str> = lines.lines().filter_map(|line| line.split_once('=')).collect();
        let value = |key: &str| {
            let value = lines.get(key).map(|value| value.to_string());
            value.ok_or_else(|| format!("testservers/ceph prints no {key}"))
        };
        let pid = |key: &str| value(key)?.parse().map_err(|_| format!("{key} is no number"));
        Ok(Self {
            name,
            conf: value("CONF")?.into(),
            fsid: value("FSID")?,
            pool: value("POOL")?,
            keyring: value("KEYRING")?.into(),
            admin_keyring: value("ADMIN_KEYRING")?.into(),
            mon: pid("MON_PID")?,
            osd: pid("OSD_PID")?,
        })
    }

    /// Ends it, and removes its data.
    pub(crate) fn stop(&self) -> Result<(), String> {
        script(&["stop", &self.name]).map(drop)
    }

    /// The settings of a store in the pool itself, as the limited user.
    pub(crate) fn config(&self) -> CephConfig {
        let mut config = CephConfig::default();
        config.pool.clone_from(&self.pool);
        config.conf = Some(self.conf.clone());
        config.keyring = Some(self.keyring.clone());
        config
    }

    /// The settings of a store in a namespace of its own, which it creates.
    pub(crate) fn own_namespace(&self) -> CephConfig {
        let mut config = self.config();
        config.namespace = Some(unique("space"));
        config.create_namespace = true;
        config
    }

    /// Runs one of Ceph's tools as `user`, and gives what it prints.
    pub(crate) fn tool(&self, program: &str, user: &str, arguments: &[&str]) -> Result<String, String> {
        let output = self.run(program, user, arguments)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(format!("{program} {arguments:?}: {}: {}", output.status, text(&output.stderr))),
        }
    }

    /// The same, whatever its exit status.
    pub(crate) fn run(&self, program: &str, user: &str, arguments: &[&str]) -> Result<Output, String> {
        let mut command = limited(program);
        command.arg("-c").arg(&self.conf).args(["--id", user]).args(arguments);
        command.stdin(Stdio::null()).env_remove("CEPH_ARGS").output().map_err(|e| format!("{program}: {e}"))
    }

    /// Runs a program for Debian's Python, which has the modules rados and rbd: `cluster` is connected as an
    /// administrator, `io` is the pool, and the arguments are in `sys.argv`.
    pub(crate) fn python(
        &self,
        namespace: &str,
        program: &str,
        arguments: &[&str],
    ) -> Result<String, String> {
        const PROLOGUE: &str = "import sys, rados, rbd\n\
            conf, pool, namespace = sys.argv[1:4]; del sys.argv[1:4]\n\
            cluster = rados.Rados(conffile=conf, rados_id='admin'); cluster.connect(timeout=60)\n\
            io = cluster.open_ioctx(pool); io.set_namespace(namespace)\n";
        // An image that is closed after that waits for ever: programs close theirs.
        const EPILOGUE: &str = "\nio.close(); cluster.shutdown()\n";
        let mut command = limited("/usr/bin/python3");
        command.arg("-c").arg(format!("{PROLOGUE}{program}{EPILOGUE}"));
        command.arg(&self.conf).args([&self.pool, namespace]).args(arguments).stdin(Stdio::null());
        let output = command.output().map_err(|e| format!("python3: {e}"))?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}

/// A program that is ended, with status 124, if it hangs.
pub(crate) fn limited(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "120", program]);
    command
}

fn script(arguments: &[&str]) -> Result<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testservers/ceph");
    let output = Command::new(path)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("testservers/ceph cannot be run: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(said.trim().to_owned()),
    }
}

/// A name that nothing else in this process has.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{what}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Sends a signal, by its name, to a daemon.
pub(crate) fn signal(pid: u32, name: &str) -> Result<(), String> {
    let status = Command::new("/bin/kill").args([&format!("-{name}"), &pid.to_string()]).status();
    if !status.map_err(|e| format!("kill: {e}"))?.success() {
        return Err(format!("kill -{name} {pid} failed"));
    }
    // A thread that runs goes on for a moment.
    while name == "STOP" && !is_stopped(pid) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(())
}

/// Whether all threads of a process are stopped, or it has none.
fn is_stopped(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_none_or(|state| state.starts_with(['T', 't']) || state.is_empty())
    })
}
