//! The command as its user meets it: the built binary, its output, its exit codes, and what it leaves on the disk.
#![allow(clippy::unwrap_used, reason = "a test panics where its own set-up fails")]

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A user with a home, which is the working directory too, and a configuration of a few stores.
struct User {
    home: tempfile::TempDir,
}

impl User {
    fn new() -> Self {
        let user = Self::without_config();
        let config = format!(
            "default = 'fast'\n\
             [stores.fast]\ntype = 'fs'\npath = '{0}/fast'\nstaging = 'directory'\n\
             [stores.slow]\ntype = 'fs'\npath = '{0}/slow'\n\
             [stores.small]\ntype = 'memory'\ncapacity = '64KiB'\n\
             [stores.locked]\ntype = 'fs'\npath = '{0}/slow'\nread_only = true\n\
             [stores.absent]\ntype = 'fs'\npath = '{0}/absent'\nrequire_marker = true\nretry.attempts = 1\n",
            user.home.path().display()
        );
        fs::create_dir_all(user.path(".config/imagestore")).unwrap();
        fs::create_dir(user.path("slow")).unwrap();
        user.write(".config/imagestore/imagestore.toml", config.as_bytes());
        user
    }

    fn without_config() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.home.path().join(path)
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        self.started(Command::new(PROGRAM), args)
    }

    /// A command line of the shell, in which the program is `$IMAGESTORE`.
    fn shell(&self, line: &str) -> Ran {
        let output = self.started(Command::new("sh"), &["-c", line]).env("IMAGESTORE", PROGRAM).output();
        Ran::of(&[line], output.unwrap())
    }

    fn started(&self, mut command: Command, args: &[&str]) -> Command {
        command.args(args).current_dir(&self.home).env_clear().env("HOME", self.home.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        Ran::of(args, self.command(args).output().unwrap())
    }

    /// Runs a verb that must succeed, and gives its standard output.
    fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.err);
        ran.out
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// A file of 20 MiB with two pieces of data in it.
    fn sparse(&self, name: &str) -> Vec<u8> {
        let file = File::create(self.path(name)).unwrap();
        file.set_len(20 << 20).unwrap();
        file.write_all_at(&noise(300_000), 1_000_003).unwrap();
        file.write_all_at(&noise(5000), (20 << 20) - 5000).unwrap();
        fs::read(self.path(name)).unwrap()
    }

    /// Starts a put from a pipe, sends it some megabytes, and waits until they are on the disk.
    fn stuck_put(&self) -> Child {
        // Tests under nohup(1) or in the background of a shell pass on that these are ignored.
        let heard = ["--default-signal=HUP,INT", PROGRAM, "put", "-", "--id", "stuck"];
        self.stuck(self.started(Command::new("env"), &heard))
    }

    fn stuck(&self, mut put: Command) -> Child {
        let mut child = put.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(&noise(6 << 20)).unwrap();
        let staging = self.path("fast/.imagestore/staging");
        wait_for(|| files(&staging).iter().any(|file| file.metadata().unwrap().len() > 0));
        child
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_imagestore");

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn of(args: &[&str], output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let code = output.status.code().unwrap_or_else(|| panic!("{args:?} was killed: {}", output.status));
        Self { code, out: text(output.stdout), err: text(output.stderr) }
    }
}

/// Bytes without zeros that do not repeat soon.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 7u32;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 | 1
    };
    (0..len).map(step).collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn wait_for(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "nothing happened");
        sleep(Duration::from_millis(10));
    }
}

fn kill(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn allocated(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

#[test]
fn it_works_without_any_configuration() {
    let user = User::without_config();
    let content = user.sparse("disk.img");
    user.ok(&["put", "disk.img", "--id", "mine"]);
    assert!(user.path(".local/share/imagestore/mine").exists());
    user.ok(&["get", "mine", "copy.img"]);
    assert!(fs::read(user.path("copy.img")).unwrap() == content);
    assert_eq!(user.ok(&["ls"]), "mine\n");
    assert_eq!(user.ok(&["config", "path"]), "");
}

#[test]
fn the_first_command_of_the_readme_shows_what_it_says() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../quickstart");
    let output = Command::new(script).env("IMAGESTORE", PROGRAM).output().unwrap();
    let ran = Ran::of(&["quickstart"], output);
    assert_eq!(ran.code, 0, "{}", ran.err);
    for line in [
        "$ imagestore put testdata/sample.qcow2",
        "format     qcow2",
        "the same bytes",
        "$ imagestore rm sample",
    ] {
        assert!(ran.out.contains(line), "{line:?} is not in {}", ran.out);
    }
}

#[test]
fn holes_stay_holes_on_both_ways() {
    let user = User::new();
    let content = user.sparse("disk.img");
    user.ok(&["put", "disk.img", "--id", "a"]);
    user.ok(&["get", "a", "copy.img"]);
    assert!(fs::read(user.path("copy.img")).unwrap() == content);
    let stat = user.json(&["stat", "a", "--json"]);
    assert_eq!(stat["size"], 20 << 20);
    assert!(stat["allocated"].as_u64().unwrap() < 2 << 20, "{stat}");
    assert!(allocated(&user.path("copy.img")) < 2 << 20);
    // Standard input that is a file is one.
    let args = ["put", "-", "--id", "b"];
    let stdin = File::open(user.path("disk.img")).unwrap();
    assert!(user.command(&args).stdin(stdin).output().unwrap().status.success());
    user.ok(&["get", "b", "b.img", "--verify"]);
    assert!(fs::read(user.path("b.img")).unwrap() == content);
}

#[test]
fn pipes_work_both_ways() {
    let user = User::new();
    let content = noise((7 << 20) + 13);
    let mut put = user.command(&["put", "-", "--quiet"]).stdin(Stdio::piped()).spawn().unwrap();
    put.stdin.take().unwrap().write_all(&content).unwrap();
    let put = Ran::of(&["put"], put.wait_with_output().unwrap());
    assert_eq!((put.code, put.err.as_str()), (0, ""));
    let id = put.out.trim();
    assert_eq!(id.len(), 36, "a UUID: {id}");
    let got = user.command(&["get", id]).output().unwrap();
    assert!(got.status.success() && got.stdout == content);
}

#[test]
fn a_reader_that_goes_away_is_no_error_to_talk_about() {
    let user = User::new();
    user.write("disk.img", &noise(4 << 20));
    user.ok(&["put", "disk.img", "--id", "a"]);
    let mut get = user.command(&["get", "a", "--quiet"]).spawn().unwrap();
    get.stdout.take().unwrap().read_exact(&mut [0; 10]).unwrap();
    let ran = Ran::of(&["get"], get.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (141, ""));
}

#[test]
fn ranges_count_like_http() {
    let user = User::new();
    user.write("ten", b"0123456789");
    user.ok(&["put", "ten", "--id", "ten"]);
    for (range, expected) in
        [("0-3", "0123"), ("4-", "456789"), ("-3", "789"), ("9-9", "9"), ("-99", "0123456789")]
    {
        assert_eq!(user.ok(&["get", "ten", "--range", range]), expected, "{range}");
    }
    let beyond = user.run(&["get", "ten", "--range", "5-10"]);
    assert_eq!((beyond.code, beyond.out.as_str()), (6, ""));
    assert!(beyond.err.contains("bytes 5 to 10 are not within the blob's 10 bytes"), "{}", beyond.err);
    for wrong in ["5-4", "x", "-", "1-2-3", "1 - 2"] {
        assert_eq!(user.run(&["get", "ten", "--range", wrong]).code, 2, "{wrong}");
    }
    user.ok(&["get", "ten", "part", "--range", "2-4"]);
    assert_eq!(fs::read(user.path("part")).unwrap(), b"234");
}

#[test]
fn each_kind_of_error_has_its_exit_code() {
    let user = User::new();
    user.write("a", b"an image");
    user.write("big", &noise(1 << 20));
    user.ok(&["put", "a", "--id", "a"]);
    let zeros = format!("md5:{}", "0".repeat(32));
    for (args, code, kind) in [
        (&["stat", "b"][..], 3, "not_found"),
        (&["put", "missing"], 3, "not_found"),
        (&["put", "a", "--id", "a"], 4, "already_exists"),
        (&["get", "a", "big"], 4, "already_exists"),
        (&["stat", "rbd:x/y", "--store", "fast"], 6, "invalid"),
        (&["put", "a", "--format", "qcow2"], 7, "rejected"),
        (&["put", "big", "--max-size", "1MB"], 7, "rejected"),
        (&["put", "a", "--digest", &zeros], 8, "corrupt"),
        (&["put", "a", "--size", "9"], 8, "corrupt"),
        (&["put", "a", "--store", "locked"], 10, "unsupported"),
        (&["put", "big", "--store", "small"], 11, "no_space"),
        (&["ls", "--store", "absent"], 12, "unavailable"),
        (&["put", "a", "--id", ".."], 2, "usage"),
        (&["frobnicate"], 2, "usage"),
    ] {
        let ran = user.run(args);
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{args:?}: {}", ran.err);
        assert!(ran.err.contains("error: "), "{args:?}: {}", ran.err);
        let ran = user.run(&[args, &["--json"]].concat());
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{args:?}: {}", ran.err);
        let error: Value = serde_json::from_str(&ran.err).unwrap();
        let error = error["error"].as_object().unwrap();
        assert_eq!(error["kind"], kind);
        for field in ["message", "store", "operation", "target", "hint"] {
            assert!(error.contains_key(field), "{field} of {args:?}");
        }
    }
    assert_eq!(user.ok(&["ls"]), "a\n", "nothing else was kept");
}

#[test]
fn a_log_that_nobody_can_read_the_wish_for_is_an_error() {
    let user = User::new();
    for (wanted, code) in [("store_core=loud", 6), ("store_core=trace", 0), ("", 0)] {
        let output = user.command(&["ls"]).env("IMAGESTORE_LOG", wanted).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{wanted}: {said}");
        assert_eq!(said.contains("IMAGESTORE_LOG"), code != 0, "{said}");
    }
}

#[test]
fn errors_say_what_to_do_next() {
    let user = User::new();
    user.write("a", b"an image");
    user.write("empty", b"");
    user.ok(&["put", "a", "--id", "a", "--store", "slow"]);
    user.ok(&["put", "empty", "--id", "empty", "--store", "slow"]);
    let long = "n".repeat(300);
    for (args, message, hint) in [
        (&["put", "a", "--id", "a", "--store", "slow"][..], "put a: ", "imagestore rm a --store slow"),
        (&["put", "nosuch"], "cannot read nosuch: ", "check the path; `-` reads standard input"),
        (&["get", "a", "no/such/x", "--store", "slow"], "cannot write no/such/x: ", "no directory no/such:"),
        (&["get", "a", "a/x", "--store", "slow"], "cannot write a/x: ", "a is no directory"),
        (&["get", "a", &long, "--store", "slow"], "cannot write nnn", "choose a shorter name"),
        (&["get", "a", "/sys/x", "--store", "slow"], "cannot write /sys/x: ", "check owner and mode"),
        (
            &["get", "a", "--range", "8-8", "--store", "slow"],
            "not within the blob's 8 bytes",
            "the first byte is 0, the last one 7",
        ),
        (&["get", "empty", "--range", "0-0", "--store", "slow"], "blob's 0 bytes", "the blob is empty"),
        (
            &["--config", "nosuch.toml", "ls"],
            "nosuch.toml: No such file",
            "/etc/imagestore/imagestore.toml is",
        ),
        (
            &["inspect", "nosuch"],
            "nosuch is neither a file nor an image",
            "check the name; to look in another",
        ),
        (&["inspect", "nosuch", "--store", "slow"], "there is no blob nosuch", "add --store with one of"),
        (&["inspect", "./nosuch"], "cannot read ./nosuch: ", "check the path"),
    ] {
        let ran = user.run(args);
        assert_ne!(ran.code, 0, "{args:?}");
        let (error, next) = ran.err.split_once("\nhint: ").unwrap_or((&ran.err, ""));
        assert!(error.contains(message), "{args:?}: {}", ran.err);
        assert!(next.contains(hint), "{args:?}: {}", ran.err);
    }
}

#[test]
fn json_is_all_there_is_on_standard_output() {
    let user = User::new();
    user.write("a", b"an image");
    let put = user.json(&["put", "a", "--id", "a", "--json", "--property", "os=linux", "--digest", "sha256"]);
    assert_eq!((&put["id"], &put["store"], &put["size"]), (&"a".into(), &"fast".into(), &8.into()));
    assert_eq!(put["meta"]["properties"]["os"], "linux");
    for digest in ["crc64nvme", "md5", "sha256", "sha512"] {
        assert!(put["meta"]["digests"][digest].is_string(), "{digest}");
    }
    let stat = user.json(&["stat", "a", "--json"]);
    assert_eq!((&stat["location"], &stat["meta"]), (&put["location"], &put["meta"]));
    // A location does as well as an id.
    let at = put["location"].as_str().unwrap();
    assert_eq!(user.json(&["stat", at, "--json"])["meta"], put["meta"]);
    assert_eq!(user.json(&["ls", "--json"])["id"], "a");
    assert_eq!(user.json(&["verify", "a", "--json"])["compared"], true);
    assert_eq!(user.json(&["capacity", "--json"])["store"], "fast");
    assert_eq!(user.json(&["sweep", "--json"])["uploads"], 0);
    assert_eq!(user.json(&["inspect", "a", "--json"])["report"]["format"], "raw");
    assert_eq!(user.json(&["config", "show", "--json"])["stores"]["slow"]["file_mode"], "0640");
    assert_eq!(user.json(&["cp", "a", "--to", "slow", "--json"])["outcome"], "copied");
    assert_eq!(user.json(&["get", "a", "copy", "--json"])["size"], 8);
    assert_eq!(user.json(&["rm", "a", "--json"])["target"], "a");
    assert_eq!(user.json(&["rm", "a", "--force", "--json"])["missing"], true);
    let objects =
        |out: &str| out.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
    let stores = objects(&user.run(&["stores", "--json"]).out);
    let absent = stores.iter().find(|store| store["store"] == "absent").unwrap();
    assert_eq!((&absent["reachable"], &absent["error"]["kind"]), (&false.into(), &"unavailable".into()));
    let cases = objects(&user.ok(&["conformance", "fast", "--only", "range::", "--json"]));
    assert_eq!(
        (cases.last().unwrap()["summary"]["passed"].as_u64(), cases.len() > 2),
        (Some(cases.len() as u64 - 1), true)
    );
}

#[test]
fn a_file_is_replaced_only_by_force() {
    let user = User::new();
    user.write("a", b"an image");
    user.write("precious", b"do not touch");
    user.ok(&["put", "a", "--id", "a"]);
    let refused = user.run(&["get", "a", "precious"]);
    assert_eq!(refused.code, 4);
    assert!(refused.err.contains("hint: --force"), "{}", refused.err);
    assert_eq!(fs::read(user.path("precious")).unwrap(), b"do not touch");
    user.ok(&["get", "a", "precious", "--force"]);
    assert_eq!(fs::read(user.path("precious")).unwrap(), b"an image");
    fs::create_dir(user.path("dir")).unwrap();
    user.ok(&["get", "a", "dir"]);
    assert_eq!(fs::read(user.path("dir/a")).unwrap(), b"an image");
    assert_eq!(user.run(&["get", "a", "no/such/dir/x"]).code, 3);
}

#[test]
fn a_damaged_image_never_becomes_a_file() {
    let user = User::new();
    user.write("disk.img", &noise(3 << 20));
    user.ok(&["put", "disk.img", "--id", "a"]);
    user.ok(&["put", "disk.img", "--id", "b"]);
    let stored = File::options().write(true).open(user.path("fast/a")).unwrap();
    stored.write_all_at(&[0], 2 << 20).unwrap();
    fs::create_dir(user.path("out")).unwrap();
    for args in [&["get", "a", "out/a"][..], &["get", "a", "out/a", "--verify"]] {
        let ran = user.run(args);
        assert_eq!(ran.code, 8, "{}", ran.err);
        assert!(ran.err.contains("damaged") && ran.err.contains("hint: "), "{}", ran.err);
        assert_eq!(files(&user.path("out")), [] as [PathBuf; 0]);
    }
    let verify = user.run(&["verify", "--all"]);
    assert_eq!(verify.code, 8, "{}", verify.err);
    assert!(verify.out.contains("intact    b"), "{}", verify.out);
    assert!(verify.out.ends_with("1 intact, 1 damaged (3 MiB read)\n"), "{}", verify.out);
}

#[test]
fn an_image_without_digests_is_not_called_intact() {
    let user = User::new();
    user.ok(&["ls"]);
    user.write("fast/foreign", b"put here by hand");
    let verify = user.run(&["verify", "foreign"]);
    assert_eq!(verify.code, 0, "{}", verify.err);
    assert!(verify.out.starts_with("readable  foreign"), "{}", verify.out);
    let get = user.run(&["get", "foreign", "--verify"]);
    assert_eq!(get.out, "put here by hand");
    assert!(get.err.contains("note: no digests are kept"), "{}", get.err);
}

#[test]
fn a_signal_stops_a_put_and_leaves_nothing() {
    for (signal, code) in [(Signal::HUP, 129), (Signal::INT, 130), (Signal::TERM, 143)] {
        let user = User::new();
        let mut put = user.stuck_put();
        // The pipe stays open: only the signal ends the put.
        let pipe = put.stdin.take();
        kill(&put, signal);
        let ran = Ran::of(&["put"], put.wait_with_output().unwrap());
        drop(pipe);
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{}", ran.err);
        assert!(ran.err.contains("nothing unfinished was kept"), "{}", ran.err);
        assert_eq!(files(&user.path("fast/.imagestore/staging")), [] as [PathBuf; 0]);
        assert_eq!(user.ok(&["ls"]), "");
        assert_eq!(user.ok(&["sweep", "--older-than", "0s"]), "nothing to remove in store fast\n");
    }
}

#[test]
fn a_put_under_nohup_outlives_its_terminal() {
    let user = User::new();
    let mut put = user.stuck(user.started(Command::new("nohup"), &[PROGRAM, "put", "-", "--id", "stuck"]));
    kill(&put, Signal::HUP);
    // It ends when its source does.
    drop(put.stdin.take());
    let ran = Ran::of(&["put"], put.wait_with_output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.err);
}

#[test]
fn a_signal_ends_a_verb_whose_output_nobody_reads() {
    let user = User::new();
    user.ok(&["ls"]);
    for number in 0..3000 {
        fs::write(user.path("fast").join(format!("an-image-of-a-long-name-{number}")), "x").unwrap();
    }
    let heard = ["--default-signal=INT", PROGRAM, "ls"];
    let mut ls = user.started(Command::new("env"), &heard).spawn().unwrap();
    // A pipe takes 64 KiB.
    let out = ls.stdout.take().unwrap();
    wait_for(|| rustix::io::ioctl_fionread(&out).unwrap() > 60 << 10);
    kill(&ls, Signal::INT);
    wait_for(|| ls.try_wait().unwrap().is_some());
    assert_eq!(ls.wait().unwrap().code(), Some(130));
}

#[test]
fn a_pipe_without_a_byte_is_no_image() {
    let user = User::new();
    let empty = user.shell("false | \"$IMAGESTORE\" put - --id x");
    assert_eq!(empty.code, 8, "{}", empty.err);
    assert!(
        empty.err.contains("nothing came out of the pipe") && empty.err.contains("--size 0"),
        "{}",
        empty.err
    );
    assert_eq!(user.ok(&["ls"]), "");
    assert_eq!(user.shell("true | \"$IMAGESTORE\" put - --id x --size 0").code, 0);
    user.write("empty.raw", b"");
    user.ok(&["put", "empty.raw"]);
}

#[test]
fn nothing_that_is_kept_writes_to_the_terminal() {
    let user = User::new();
    user.write("disk.img", b"a disk");
    user.ok(&[
        "put",
        "disk.img",
        "--id",
        "a",
        "-p",
        "\u{1b}[31mred=1",
        "-p",
        "new\nid         forged=\u{1b}[0m",
    ]);
    let stat = user.ok(&["stat", "a"]);
    assert!(!stat.contains('\u{1b}') && !stat.contains("\nid         forged"), "{stat}");
}

#[test]
fn what_a_killed_put_leaves_is_swept() {
    let user = User::new();
    let mut put = user.stuck_put();
    kill(&put, Signal::KILL);
    put.wait().unwrap();
    assert_eq!(user.ok(&["sweep"]), "nothing to remove in store fast\n", "it is too young");
    let swept = user.ok(&["sweep", "--older-than", "0s"]);
    assert!(swept.starts_with("removed 1 unfinished upload ("), "{swept}");
    assert_eq!(files(&user.path("fast/.imagestore/staging")), [] as [PathBuf; 0]);
}

/// `script` of bsdutils gives the command a terminal.
#[test]
fn a_terminal_shows_how_far_a_transfer_has_come() {
    let user = User::new();
    user.write("half", &noise(3 << 20));
    let put = "(cat half; sleep 1; cat half) | \"$IMAGESTORE\" put - --id a --size 6MiB";
    user.write("put", put.as_bytes());
    let shown = user.shell("TERM=xterm script --quiet --return --echo never --command 'sh put' /dev/null");
    assert_eq!(shown.code, 0, "{}{}", shown.out, shown.err);
    let bars: Vec<&str> =
        shown.out.split(['\r', '\n']).filter(|part| part.contains("storing standard")).collect();
    let half = bars.iter().find(|bar| bar.contains("3.00 MiB of 6.00 MiB, "));
    assert!(half.is_some_and(|bar| bar.contains("/s, ") && bar.contains(" left")), "{:?}", shown.out);
    assert!(!shown.out.contains("done: "), "{:?}", shown.out);
    // Elsewhere a few plain lines say it.
    user.ok(&["rm", "a"]);
    let plain = user.shell("sh put");
    assert_eq!(plain.code, 0, "{}", plain.err);
    assert!(
        plain.err.starts_with("storing standard input (6 MiB)\ndone: standard input, 6 MiB in "),
        "{:?}",
        plain.err
    );
    assert!(!plain.err.contains(['\r', '\u{1b}']), "{:?}", plain.err);
}

#[test]
fn a_signal_stops_a_get_that_nobody_reads() {
    let user = User::new();
    user.write("disk.img", &noise(4 << 20));
    user.ok(&["put", "disk.img", "--id", "a"]);
    let mut get = user.command(&["get", "a"]).spawn().unwrap();
    let mut out = get.stdout.take().unwrap();
    out.read_exact(&mut [0; 10]).unwrap();
    kill(&get, Signal::INT);
    let ran = Ran::of(&["get"], get.wait_with_output().unwrap());
    assert_eq!(ran.code, 130, "{}", ran.err);
}

#[test]
fn copies_go_on_where_they_stopped() {
    let user = User::new();
    for id in ["a", "b", "c"] {
        user.write(id, format!("image {id}").as_bytes());
        user.ok(&["put", id, "--id", id, "--property", "os=linux"]);
    }
    let slow = |id: &str| fs::read(user.path("slow").join(id)).unwrap();
    user.ok(&["cp", "a", "--to", "slow"]);
    // Another image under the same id is no copy, and does not stop the rest.
    user.ok(&["put", "b", "--id", "c", "--store", "slow"]);
    let all = user.run(&["cp", "--all", "--from", "fast", "--to", "slow"]);
    assert_eq!(all.code, 4, "{}", all.err);
    assert!(all.out.ends_with("1 copied (7 B), 1 there already, 1 failed\n"), "{}", all.out);
    assert!(all.err.contains("note: a is in slow already"), "{}", all.err);
    assert!(all.err.contains("store slow: put c: the id is taken by another image"), "{}", all.err);
    assert_eq!((slow("b"), slow("c")), (b"image b".to_vec(), b"image b".to_vec()));
    assert_eq!(user.json(&["stat", "b", "--store", "slow", "--json"])["meta"]["properties"]["os"], "linux");
    user.ok(&["cp", "c", "--to", "slow", "--id", "c2"]);
    assert_eq!(slow("c2"), b"image c");
    let several = user.run(&["cp", "a", "nope", "b", "--to", "slow"]);
    assert_eq!(several.code, 3, "{}", several.err);
    assert!(several.out.ends_with("0 copied (0 B), 2 there already, 1 failed\n"), "{}", several.out);
}

#[test]
fn several_images_are_copied_and_verified_at_once() {
    let user = User::new();
    let ids: Vec<String> = (0..20).map(|number| format!("image-{number}")).collect();
    for id in &ids {
        user.write(id, format!("this is {id}").as_bytes());
        user.ok(&["put", id, "--id", id]);
    }
    let all = user.ok(&["cp", "--all", "--from", "fast", "--to", "slow", "--jobs", "7"]);
    assert!(all.ends_with("20 copied (310 B), 0 there already, 0 failed\n"), "{all}");
    for id in &ids {
        assert_eq!(
            all.lines().filter(|line| line.starts_with(&format!("copied {id}  "))).count(),
            1,
            "{all}"
        );
        assert_eq!(fs::read_to_string(user.path("slow").join(id)).unwrap(), format!("this is {id}"));
    }
    fs::write(user.path("slow/image-3"), "THIS IS image-3").unwrap();
    fs::remove_file(user.path("slow/image-4")).unwrap();
    let some: Vec<&str> = ids.iter().map(String::as_str).collect();
    let verify = [&["verify", "--store", "slow", "-j", "5"], &some[..]].concat();
    let verified = user.run(&verify);
    assert!(
        verified.out.ends_with("18 intact, 1 damaged, 1 not verified (280 B read)\n"),
        "{}",
        verified.out
    );
    assert!(verified.err.contains("image-3") && verified.err.contains("no blob image-4"), "{}", verified.err);
    assert_eq!(user.run(&["verify", "--all", "--jobs", "0"]).code, 2);
}

/// As images are that Glance has written.
#[test]
fn copies_of_images_without_digests_go_on_too() {
    let user = User::new();
    user.ok(&["ls"]);
    for id in ["a", "b"] {
        fs::write(user.path("fast").join(id), format!("image {id}")).unwrap();
    }
    let copy = ["cp", "--all", "--from", "fast", "--to", "slow"];
    assert!(user.ok(&copy).ends_with("2 copied (14 B), 0 there already, 0 failed\n"));
    assert!(user.ok(&copy).ends_with("0 copied (0 B), 2 there already, 0 failed\n"));
    fs::write(user.path("fast/b"), "IMAGE b").unwrap();
    let again = user.run(&copy);
    assert_eq!(again.code, 4, "{}", again.err);
    assert!(again.err.contains("store slow: put b: the id is taken by another image"), "{}", again.err);
}

#[test]
fn copies_within_a_store_are_made_by_it() {
    let user = User::new();
    user.write("a", b"image a");
    user.ok(&["put", "a", "--id", "a", "--property", "os=linux"]);
    user.ok(&["cp", "a", "--to", "fast", "--id", "b"]);
    assert_eq!(fs::read(user.path("fast").join("b")).unwrap(), b"image a");
    assert_eq!(user.json(&["stat", "b", "--json"])["meta"]["properties"]["os"], "linux");
    user.ok(&["verify", "b"]);
    let taken = user.run(&["cp", "a", "--to", "fast", "--id", "b"]);
    assert!(taken.err.contains("note: b is in fast already"), "{}", taken.err);
}

#[test]
fn a_file_whose_length_nobody_knows_is_read_to_its_end() {
    let user = User::new();
    assert_eq!(user.ok(&["put", "/proc/version", "--id", "x", "--quiet"]), "x\n");
    assert_eq!(user.ok(&["get", "x"]), fs::read_to_string("/proc/version").unwrap());
    user.write("empty", b"");
    user.ok(&["put", "empty", "--id", "empty"]);
    assert_eq!(user.json(&["stat", "empty", "--json"])["size"], 0);
}

/// Nobody makes a directory in sysfs, not even root.
#[test]
fn a_directory_that_refuses_is_denied() {
    let user = User::new();
    user.write("a", b"image a");
    let mut command = user.command(&["put", "a", "--id", "a", "--store", "fast"]);
    let refused =
        Ran::of(&["put"], command.env("IMAGESTORE_STORES__FAST__PATH", "/sys/kernel").output().unwrap());
    assert_eq!(refused.code, 9, "{}", refused.err);
    assert!(refused.err.contains("/sys/kernel"), "{}", refused.err);
}

#[test]
fn a_store_without_urls_says_so() {
    let user = User::new();
    user.write("a", b"image a");
    user.ok(&["put", "a", "--id", "a"]);
    let refused = user.run(&["url", "a", "--for", "5m"]);
    assert_eq!(refused.code, 10, "{}", refused.err);
    assert!(refused.out.is_empty() && refused.err.contains("presign"), "{}", refused.err);
}

#[test]
fn deleting_goes_on_after_an_error() {
    let user = User::new();
    user.write("a", b"an image");
    user.ok(&["put", "a", "--id", "a"]);
    let rm = user.run(&["rm", "nope", "a"]);
    assert_eq!((rm.code, rm.out.as_str()), (3, "deleted a from fast\n"));
    assert!(rm.err.contains("add --store with one of: absent, locked, slow, small"), "{}", rm.err);
    assert_eq!(user.run(&["rm", "--force", "nope"]).code, 0);
}

#[test]
fn a_location_finds_its_store() {
    let user = User::new();
    user.write("a", b"an image");
    user.ok(&["put", "a", "--id", "a", "--store", "slow"]);
    let at = format!("file://{}", user.path("slow/a").display());
    assert_eq!(user.ok(&["get", &at]), "an image");
    // A store that cannot be reached may be the one that has it.
    let foreign = ["stat", "s3://key:hunter2@host/bucket/x"];
    let unknown = user.run(&foreign);
    assert_eq!(unknown.code, 12, "{}", unknown.err);
    assert!(unknown.err.contains("because: store absent: "), "{}", unknown.err);
    let refused = User::without_config().run(&foreign);
    assert_eq!(refused.code, 6, "{}", refused.err);
    assert!(!format!("{} {}", unknown.err, refused.err).contains("hunter2"));
}

/// One whose metadata nobody can read any more is there all the same.
#[test]
fn a_damaged_image_can_be_deleted_by_its_location() {
    let user = User::new();
    user.write("a", b"an image");
    user.ok(&["put", "a", "--id", "a", "--store", "slow"]);
    let stored = user.path("slow/a");
    rustix::fs::setxattr(&stored, "user.imagestore", b"{", rustix::fs::XattrFlags::empty()).unwrap();
    let at = format!("file://{}", stored.display());
    let got = user.run(&["get", &at]);
    assert!(got.code == 8 && got.err.contains("user.imagestore"), "{}", got.err);
    user.ok(&["rm", &at]);
    assert!(!stored.exists());
}

#[test]
fn hostile_images_are_told() {
    let user = User::new();
    let mut header = vec![0; 1024];
    header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    header[15] = 0x70; // The offset of a backing file's name, and its length.
    header[19] = 8;
    user.write("evil", &header);
    let inspect = user.run(&["inspect", "evil"]);
    assert_eq!(inspect.code, 7, "{}", inspect.err);
    assert!(inspect.out.starts_with("format   qcow2\n"), "{}", inspect.out);
    assert!(inspect.out.contains("refused  backing-file: "), "{}", inspect.out);
    let put = user.run(&["put", "evil", "--id", "evil"]);
    assert_eq!(put.code, 0, "{}", put.err);
    assert!(put.err.contains("not safe: backing-file: "), "{}", put.err);
    assert_eq!(user.run(&["inspect", "evil", "--store", "fast"]).code, 7);
    assert_eq!(user.run(&["put", "evil", "--format", "qcow2"]).code, 7);
    user.write("good", b"just bytes");
    assert_eq!(user.run(&["inspect", "good"]).code, 0);
    assert_eq!(user.run(&["inspect", "good", "--format", "qcow2"]).code, 7);
}

#[test]
fn mistakes_in_the_configuration_name_key_and_line() {
    let user = User::new();
    let config = |text: &str| user.write("my.toml", text.as_bytes());
    let good = format!("[stores.good]\ntype = 'fs'\npath = '{}'\n", user.path("good").display());
    config(&format!("{good}[stores.bad]\ntype = 'fs'\npth = '/x'\n"));
    let check = user.run(&["--config", "my.toml", "config", "check"]);
    assert_eq!(check.code, 6);
    assert_eq!(check.out, "valid  good (fs)\n");
    let expected = "error: store bad: configure: my.toml line 6: unknown field `pth`";
    assert!(check.err.contains(expected), "{}", check.err);
    // One bad store does not stop the others.
    assert_eq!(user.run(&["--config", "my.toml", "ls", "--store", "good"]).code, 0);
    let stores = user.run(&["--config", "my.toml", "stores"]);
    assert_eq!(stores.code, 6);
    assert!(stores.out.contains("  good   fs ") && stores.out.contains("not reachable"), "{}", stores.out);

    // What only a look at the values tells is found without opening the store, too.
    config(&format!("{good}[stores.near]\ntype = 'fs'\npath = 'images'\n[stores.none]\ntype = 'fs'\n"));
    let check = user.run(&["--config", "my.toml", "config", "check"]);
    assert_eq!((check.code, &*check.out), (6, "valid  good (fs)\n"), "{}", check.err);
    assert!(check.err.contains("store near: configure: my.toml line 6"), "{}", check.err);
    assert!(check.err.contains("store none: configure: my.toml line 7: `path` is missing"), "{}", check.err);
    let both = "path = '/srv/a'\ndirectories = [{ path = '/srv/b' }]\n";
    let twice = "directories = [{ path = '/srv/b' }, { path = '/srv/b' }]\n";
    for (keys, expected) in [
        (both, "my.toml line 6: `path` and `directories` exclude each other"),
        (twice, "my.toml line 6: `directories` names /srv/b twice"),
        ("path = '/srv/a'\nmax_transfers = 0\n", "my.toml line 7: `max_transfers`: "),
        ("path = '/srv/a'\ntimeout.call = '0s'\n", "my.toml line 7: `timeout.call`: "),
    ] {
        config(&format!("{good}[stores.bad]\ntype = 'fs'\n{keys}"));
        for args in [&["config", "check"][..], &["ls", "--store", "bad"]] {
            let bad = user.run(&[&["--config", "my.toml"], args].concat());
            assert_eq!(bad.code, 6, "{}", bad.err);
            assert!(bad.err.contains(expected), "{expected}: {}", bad.err);
        }
    }

    // Whoever comes from Glance knows other names.
    config(&format!("{good}[stores.theirs]\ntype = 'filesystem'\n"));
    let check = user.run(&["--config", "my.toml", "config", "check"]);
    assert_eq!(check.code, 6);
    assert!(check.err.contains("my.toml line 5: no backend of type \"filesystem\""), "{}", check.err);
    assert!(check.err.contains("the type `fs`"), "{}", check.err);

    config("defualt = 'x'");
    let broken = user.run(&["--config", "my.toml", "ls"]);
    assert_eq!(broken.code, 6);
    assert!(broken.err.contains("my.toml line 1: unknown key `defualt`"), "{}", broken.err);
    // What needs no store does not mind.
    assert_eq!(user.run(&["--config", "my.toml", "inspect", "my.toml"]).code, 0);

    let missing = user.command(&["ls"]).env("IMAGESTORE_CONFIG", "nowhere.toml").output().unwrap();
    let missing = Ran::of(&["ls"], missing);
    assert_eq!(missing.code, 6);
    assert!(
        missing.err.contains("nowhere.toml") && missing.err.contains("IMAGESTORE_CONFIG"),
        "{}",
        missing.err
    );
}

#[test]
fn a_lost_directory_is_named_and_hides_nothing_else() {
    let user = User::new();
    let (kept, lost) = (user.path("kept"), user.path("lost"));
    let config = format!(
        "[stores.two]\ntype = 'fs'\ncreate = false\nretry.attempts = 1\n\
         directories = [{{ path = '{}', priority = 1 }}, {{ path = '{}' }}]\n",
        kept.display(),
        lost.display()
    );
    user.write("two.toml", config.as_bytes());
    user.write("a", b"an image");
    let run = |args: &[&str]| user.run(&[&["--config", "two.toml"], args].concat());
    fs::create_dir(&kept).unwrap();
    fs::create_dir(&lost).unwrap();
    assert_eq!(run(&["put", "a", "--id", "a"]).code, 0);
    fs::remove_dir_all(&lost).unwrap();

    assert_eq!(run(&["get", "a"]).out, "an image");
    for args in [&["put", "a", "--id", "b"][..], &["stat", "b"], &["sweep"], &["stores"]] {
        let refused = run(args);
        assert_eq!(refused.code, 12, "{}", refused.err);
        assert!(refused.err.contains(lost.to_str().unwrap()), "{}", refused.err);
        assert!(refused.err.contains("\nhint: mount it; "), "{}", refused.err);
    }
    let list = run(&["ls"]);
    assert_eq!((list.code, &*list.out), (12, "a\n"), "{}", list.err);
    assert!(list.err.contains("WARN") && list.err.contains(lost.to_str().unwrap()), "{}", list.err);
    let list = run(&["ls", "--json"]);
    let error: Value = serde_json::from_str(&list.err).unwrap();
    assert_eq!(error["error"]["kind"], "unavailable");
}

#[test]
fn an_unknown_store_lists_the_known_ones() {
    let user = User::new();
    let ran = user.run(&["ls", "--store", "fsat"]);
    assert_eq!(ran.code, 6);
    assert!(ran.err.contains("\"fsat\""), "{}", ran.err);
    assert!(ran.err.contains("absent, fast, locked, slow, small"), "{}", ran.err);
}

#[test]
fn variables_override_the_configuration() {
    let user = User::new();
    let run =
        |args: &[&str]| Ran::of(args, user.command(args).env("IMAGESTORE_DEFAULT", "slow").output().unwrap());
    user.write("a", b"an image");
    assert_eq!(run(&["put", "a", "--id", "a"]).code, 0);
    assert!(user.path("slow/a").exists());
    assert!(run(&["config", "show"]).out.contains("default = \"slow\""));
}

#[test]
fn the_manual_the_completions_and_the_help_are_whole() {
    let user = User::without_config();
    let help = user.ok(&["--help"]);
    for expected in
        ["Exit codes:", "not_found", "130", "IMAGESTORE_CONFIG", "/etc/imagestore/imagestore.toml"]
    {
        assert!(help.contains(expected), "{expected}");
    }
    let man = user.ok(&["man"]);
    for expected in [".TH imagestore 1", ".SH \"EXIT CODES\"\n.nf\n", "not_found", ".SH VERSION"] {
        assert!(man.contains(expected), "{expected} in {man}");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(user.ok(&["completions", shell]).contains("conformance"), "{shell}");
    }
    user.ok(&["man", "--dir", "man1"]);
    for page in ["imagestore.1", "imagestore-put.1", "imagestore-config-show.1"] {
        assert!(user.path("man1").join(page).exists(), "{page}");
    }
    assert!(user.ok(&["--version"]).starts_with("imagestore "));
    assert!(user.ok(&["put", "--help"]).contains("Examples:"));
}

#[test]
fn an_operator_can_prove_a_store() {
    let user = User::new();
    user.write("a", b"an image of somebody else");
    user.ok(&["put", "a", "--id", "a"]);
    let proof = user.run(&["conformance", "fast", "--only", "range::"]);
    assert_eq!(proof.code, 0, "{}", proof.out);
    assert!(proof.out.contains("holds    range::") && proof.out.contains(" 0 broken"), "{}", proof.out);
    assert_eq!(user.ok(&["ls"]), "a\n");
    let nothing = user.run(&["conformance", "fast", "--only", "no such case"]);
    assert!(nothing.err.contains("note: no case was run"), "{}", nothing.err);
    assert_eq!(user.run(&["conformance", "fast", "--exclusive"]).code, 6, "the store is not empty");
}

#[test]
fn a_proof_that_is_interrupted_leaves_nothing() {
    let user = User::new();
    let mut proof = user.command(&["conformance", "fast"]).spawn().unwrap();
    let mut seen = [0; 200];
    proof.stdout.as_mut().unwrap().read_exact(&mut seen).unwrap(); // Some cases are over.
    kill(&proof, Signal::INT);
    let ran = Ran::of(&["conformance"], proof.wait_with_output().unwrap());
    assert_eq!(ran.code, 130, "{}", ran.err);
    assert!(ran.err.contains("the images of the run were removed"), "{}", ran.err);
    assert_eq!(user.ok(&["ls"]), "");
    assert_eq!(user.ok(&["sweep", "--older-than", "0s"]), "nothing to remove in store fast\n");
}

#[test]
fn the_first_configuration_counts() {
    let user = User::new();
    for dir in ["xdg/imagestore", "elsewhere"] {
        fs::create_dir_all(user.path(dir)).unwrap();
    }
    let path = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = user.command(&[&["config", "path"], args].concat());
        for (name, path) in variables {
            command.env(name, user.path(path));
        }
        Ran::of(args, command.output().unwrap()).out.trim().to_owned()
    };
    let place = |name: &str| user.path(name).display().to_string();
    let (found, xdg) = (".config/imagestore/imagestore.toml", "xdg/imagestore/imagestore.toml");
    for name in [xdg, "elsewhere/a.toml", "elsewhere/b.toml"] {
        user.write(name, b"");
    }
    assert_eq!(path(&[], &[]), place(found));
    assert_eq!(path(&[], &[("XDG_CONFIG_HOME", "xdg")]), place(xdg));
    let variables = [("XDG_CONFIG_HOME", "xdg"), ("IMAGESTORE_CONFIG", "elsewhere/a.toml")];
    assert_eq!(path(&[], &variables), place("elsewhere/a.toml"));
    assert_eq!(path(&["--config", "elsewhere/b.toml"], &variables), "elsewhere/b.toml");
}

/// A link to itself stands for what only root may look at: such a file may say that images belong elsewhere.
#[test]
fn a_configuration_that_cannot_be_looked_at_is_not_passed_over() {
    let user = User::without_config();
    fs::create_dir(user.path(".config")).unwrap();
    std::os::unix::fs::symlink("imagestore", user.path(".config/imagestore")).unwrap();
    user.write("a", b"an image");
    let put = user.run(&["put", "a"]);
    assert!(put.code != 0 && put.err.contains(".config/imagestore/imagestore.toml"), "{}", put.err);
    // What is no directory holds none; some say so with /dev/null.
    let put = user.command(&["put", "a"]).env("XDG_CONFIG_HOME", "/dev/null").output().unwrap();
    assert!(put.status.success(), "{put:?}");
}

/// On FUSE, where a file needs a name from the start.
#[test]
fn an_image_becomes_a_file_whole_or_not_at_all_where_files_need_names() {
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        }
    }
    let user = User::new();
    let (below, mounted) = (user.path("below"), Mounted(user.path("mounted")));
    fs::create_dir(&below).unwrap();
    fs::create_dir(&mounted.0).unwrap();
    let bindfs = Command::new("bindfs").args([&below, &mounted.0]).status();
    assert!(bindfs.expect("package bindfs is needed").success(), "bindfs (root is needed)");
    let image = noise(64 << 20);
    user.write("image", &image);
    user.ok(&["put", "image", "--id", "image"]);
    user.ok(&["get", "image", "mounted/copy"]);
    assert!(fs::read(below.join("copy")).unwrap() == image);
    user.write("below/copy", b"mine");
    let refused = user.run(&["get", "image", "mounted/copy"]);
    assert!(refused.code == 4 && refused.err.contains("--force"), "{}: {}", refused.code, refused.err);
    assert_eq!(fs::read(below.join("copy")).unwrap(), b"mine");
    user.ok(&["get", "image", "mounted/copy", "--force"]);
    assert!(fs::read(below.join("copy")).unwrap() == image);
    fs::remove_file(below.join("copy")).unwrap();
    // A fast machine may be done before the signal comes.
    let interrupted = (0..20).any(|_| {
        let heard = ["--default-signal=INT", PROGRAM, "get", "image", "mounted/copy", "--force"];
        let mut get = user.started(Command::new("env"), &heard).spawn().unwrap();
        wait_for(|| !files(&below).is_empty());
        kill(&get, Signal::INT);
        let interrupted = get.wait().unwrap().code() == Some(130);
        if !interrupted {
            fs::remove_file(below.join("copy")).unwrap();
        }
        interrupted
    });
    assert!(interrupted, "no signal came in time");
    assert_eq!(files(&below), Vec::<PathBuf>::new());
}

#[test]
fn any_home_will_do() {
    let user = User::without_config();
    let home = user.path("it's \"mine\" \\ today");
    fs::create_dir(&home).unwrap();
    user.write("a", b"an image");
    let put = user.command(&["put", "a", "--id", "a"]).env("HOME", &home).output().unwrap();
    assert!(put.status.success(), "{put:?}");
    assert_eq!(fs::read(home.join(".local/share/imagestore/a")).unwrap(), b"an image");
    let homeless = Ran::of(&["ls"], user.command(&["ls"]).env_remove("HOME").output().unwrap());
    assert_eq!(homeless.code, 6);
    assert!(homeless.err.contains("hint: set HOME"), "{}", homeless.err);
}

#[test]
fn memory_does_not_grow_with_the_image() {
    let user = User::new();
    let mut put = user.command(&["put", "-", "--quiet"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut pipe = put.stdin.take().unwrap();
    let piece = noise(4 << 20);
    for _ in 0..64 {
        pipe.write_all(&piece).unwrap();
    }
    let peak = peak_of(&put);
    drop(pipe);
    let output = put.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(peak < 64 << 10, "{peak} KiB for a put of 256 MiB");

    let id = String::from_utf8(output.stdout).unwrap();
    let mut get = user.command(&["get", id.trim()]).spawn().unwrap();
    let mut pipe = get.stdout.take().unwrap();
    let mut most = vec![0; 255 << 20];
    pipe.read_exact(&mut most).unwrap();
    let peak = peak_of(&get);
    std::io::copy(&mut pipe, &mut std::io::sink()).unwrap();
    assert!(get.wait().unwrap().success());
    assert!(peak < 64 << 10, "{peak} KiB for a get of 256 MiB");
}

/// The most memory that a process has had, in KiB.
fn peak_of(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}
