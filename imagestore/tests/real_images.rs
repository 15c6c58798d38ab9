//! The main job on real images: Debian's installer as a bootable ISO image, and the same as qcow2.

#![allow(clippy::unwrap_used, reason = "a test panics where its own set-up fails")]

use std::{
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const INSTALLER: &str = "/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64";

struct Deployment {
    dir: tempfile::TempDir,
}

impl Deployment {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("[stores.local]\ntype = \"fs\"\npath = \"{}/images\"\n", dir.path().display());
        std::fs::write(dir.path().join("imagestore.toml"), text).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_imagestore"));
        command.env("IMAGESTORE_CONFIG", self.path("imagestore.toml")).current_dir(self.dir.path());
        command.args(arguments).output().unwrap()
    }

    /// What a successful command prints.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[&["--json"], arguments].concat())).unwrap()
    }

    /// What a command that is to fail says, as the kind of its error.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(&[&["--json"], arguments].concat());
        assert!(!output.status.success(), "{arguments:?} succeeded");
        let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        error["error"]["kind"].as_str().unwrap().to_owned()
    }
}

/// Runs a tool that the test needs, and gives what it prints.
fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{program} is needed: {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A bootable installer: the kernel and initrd of the package debian-installer-12-netboot-amd64 behind GRUB.
fn installer(iso: &Path) {
    let tree = tempfile::tempdir().unwrap();
    let boot = tree.path().join("boot");
    std::fs::create_dir_all(boot.join("grub")).unwrap();
    for part in ["linux", "initrd.gz"] {
        let from = format!("{INSTALLER}/{part}");
        std::fs::copy(&from, boot.join(part)).unwrap_or_else(|e| {
            panic!("{from} is needed (package debian-installer-12-netboot-amd64): {e}");
        });
    }
    let menu = "menuentry Install {\n linux /boot/linux\n initrd /boot/initrd.gz\n}\n";
    std::fs::write(boot.join("grub/grub.cfg"), menu).unwrap();
    tool("grub-mkrescue", &["-o", iso.to_str().unwrap(), tree.path().to_str().unwrap()]);
}

#[test]
fn the_main_job_on_an_installer_and_a_qcow2_image() {
    let deployment = Deployment::new();
    let (iso, qcow2) = (deployment.path("installer.iso"), deployment.path("installer.qcow2"));
    installer(&iso);
    let (iso, qcow2) = (iso.to_str().unwrap(), qcow2.to_str().unwrap());
    tool("qemu-img", &["convert", "-O", "qcow2", iso, qcow2]);
    let disk_size = Path::new(iso).metadata().unwrap().len();

    for (file, format, id) in [(iso, "iso", "installer-iso"), (qcow2, "qcow2", "installer-qcow2")] {
        // put, with the format that it must have
        let blob = deployment.json(&["put", file, "--id", id, "--format", format]);
        let size = Path::new(file).metadata().unwrap().len();
        assert_eq!(blob["size"], size);
        assert_eq!(blob["meta"]["format"], format);

        // stat agrees with what other tools compute
        let stat = deployment.json(&["stat", id]);
        let meta = &stat["meta"];
        for (algorithm, program) in [("md5", "md5sum"), ("sha512", "sha512sum")] {
            let expected = tool(program, &[file]);
            assert_eq!(meta["digests"][algorithm], expected.split(' ').next().unwrap());
        }
        assert_eq!(meta["virtual_size"], disk_size, "the virtual size of {format}");

        // get, to a file and through a pipe, whole and in part
        let copy = deployment.path("copy");
        deployment.ok(&["get", id, copy.to_str().unwrap()]);
        tool("cmp", &[file, copy.to_str().unwrap()]);
        let piped = deployment.run(&["get", id, "-"]).stdout;
        assert!(piped == std::fs::read(file).unwrap(), "the bytes through a pipe differ");
        let part = deployment.run(&["get", id, "-", "--range", "32768-65535"]).stdout;
        assert!(part == piped[32_768..65_536], "a range differs");

        if format == "qcow2" {
            tool("qemu-img", &["check", "-f", "qcow2", copy.to_str().unwrap()]);
            tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", iso, copy.to_str().unwrap()]);
        }
        deployment.ok(&["verify", id]);
        let report = deployment.json(&["inspect", id]);
        assert_eq!(report["report"]["format"], format);
        std::fs::remove_file(copy).unwrap();
    }
    let listed = deployment.ok(&["ls"]);
    assert!(listed.contains("installer-iso") && listed.contains("installer-qcow2"), "{listed}");

    // One wrong byte on the disk is found by verify and by get, which leaves no file.
    let stored =
        std::fs::OpenOptions::new().read(true).write(true).open(deployment.path("images/installer-qcow2"));
    let stored = stored.unwrap();
    let mut byte = [0];
    stored.read_exact_at(&mut byte, 20_000_000).unwrap();
    stored.write_all_at(&[byte[0] ^ 0x10], 20_000_000).unwrap();
    assert_eq!(deployment.refused(&["verify", "installer-qcow2"]), "corrupt");
    let copy = deployment.path("damaged");
    assert_eq!(deployment.refused(&["get", "installer-qcow2", copy.to_str().unwrap()]), "corrupt");
    assert!(!copy.exists(), "a damaged image was left as if it was whole");
    stored.write_all_at(&byte, 20_000_000).unwrap();
    deployment.ok(&["verify", "installer-qcow2"]);

    // A qcow2 that claims to be raw could name any file of the host as its backing file.
    assert_eq!(deployment.refused(&["put", qcow2, "--id", "disguised", "--format", "raw"]), "rejected");
    let hostile = deployment.path("hostile.qcow2");
    tool(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", hostile.to_str().unwrap()],
    );
    assert_eq!(deployment.refused(&["put", hostile.to_str().unwrap(), "--format", "qcow2"]), "rejected");

    for id in ["installer-iso", "installer-qcow2"] {
        deployment.ok(&["rm", id]);
    }
    assert_eq!(deployment.ok(&["--quiet", "ls"]).trim(), "");
    let left: Vec<_> =
        std::fs::read_dir(deployment.path("images")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [deployment.path("images/.imagestore")], "only the store's own directory is left");
}
