//! The inspector against images that other programs made, and against what QEMU says of them.
//!
//! Needs `qemu-img` (Debian: qemu-utils), `sfdisk` (fdisk) and `xorriso`. Their absence fails the tests:
//! a skipped comparison would look like a passed one.

#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::Path,
    process::{Command, Output, Stdio},
};

use store_core::inspect::{Format, Inspector, Report, Rule};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// An image that `qemu-img create` makes, and what should be found in it.
struct Case {
    name: &'static str,
    args: &'static str,
    /// QEMU's name of the format.
    format: &'static str,
    rules: &'static [Rule],
}

const fn case(name: &'static str, format: &'static str, args: &'static str, rules: &'static [Rule]) -> Case {
    Case { name, args, format, rules }
}

const CASES: &[Case] = &[
    case("raw", "raw", "", &[]),
    case("qcow2 v2", "qcow2", "-o compat=0.10", &[]),
    case("qcow2 v3", "qcow2", "-o compat=1.1", &[]),
    case("qcow2 lazy refcounts", "qcow2", "-o lazy_refcounts=on", &[]),
    case("qcow2 extended L2", "qcow2", "-o extended_l2=on", &[]),
    case("qcow2 zstd", "qcow2", "-o compression_type=zstd", &[]),
    case("qcow2 tiny clusters", "qcow2", "-o cluster_size=512", &[]),
    case("qcow2 huge clusters", "qcow2", "-o cluster_size=2M", &[]),
    case("qcow2 preallocated", "qcow2", "-o preallocation=metadata", &[]),
    case("qcow2 backing file", "qcow2", "-b base.raw -F raw", &[Rule::BackingFile]),
    case("qcow2 data file", "qcow2", "-o data_file=data.raw,data_file_raw=on", &[Rule::ExternalDataFile]),
    case(
        "qcow2 LUKS",
        "qcow2",
        "--object secret,id=s,data=x -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        &[Rule::Encrypted],
    ),
    case("vmdk sparse", "vmdk", "-o subformat=monolithicSparse", &[]),
    case("vmdk stream", "vmdk", "-o subformat=streamOptimized", &[]),
    case("vmdk flat", "vmdk", "-o subformat=monolithicFlat", &[Rule::VmdkSubformat, Rule::ExternalExtent]),
    case(
        "vmdk split",
        "vmdk",
        "-o subformat=twoGbMaxExtentSparse",
        &[Rule::VmdkSubformat, Rule::ExternalExtent],
    ),
    case("vmdk parent", "vmdk", "-b base.vmdk -F vmdk", &[Rule::ParentImage]),
    case("vhd dynamic", "vpc", "-o subformat=dynamic", &[]),
    case("vhd dynamic, exact", "vpc", "-o subformat=dynamic,force_size=on", &[]),
    case("vhd fixed", "vpc", "-o subformat=fixed", &[]),
    case("vhd fixed, exact", "vpc", "-o subformat=fixed,force_size=on", &[]),
    case("vhdx dynamic", "vhdx", "-o subformat=dynamic", &[]),
    case("vhdx fixed", "vhdx", "-o subformat=fixed", &[]),
    case("vdi dynamic", "vdi", "", &[]),
    case("vdi static", "vdi", "-o static=on", &[]),
    case("qed", "qed", "", &[Rule::BannedFormat]),
    case("qed backing file", "qed", "-b base.raw -F raw", &[Rule::BannedFormat, Rule::BackingFile]),
    case("luks", "luks", "--object secret,id=s,data=x -o key-secret=s,iter-time=10", &[]),
];

#[test]
fn images_are_what_qemu_says() {
    let dir = bases();
    for case in CASES {
        let file = format!("{}.img", case.name.replace([' ', ','], "-"));
        let args = case.args.split_whitespace().map(str::to_owned);
        let create: Vec<_> =
            ["create", "-q", "-f", case.format].into_iter().map(str::to_owned).chain(args).collect();
        make_image(dir.path(), &[&strings(&create)[..], &[&file, "64M"]].concat());
        check(case, &dir.path().join(&file));
    }
}

/// Tables and footers are where data is, too.
#[test]
fn converted_images_with_data_are_fine() {
    let dir = bases();
    let args = [
        "qcow2 -c",
        "qcow2 -o compat=0.10",
        "vmdk",
        "vmdk -o subformat=streamOptimized",
        "vpc",
        "vhdx",
        "vdi",
    ];
    for (i, args) in args.into_iter().enumerate() {
        let file = format!("converted-{i}");
        let args: Vec<_> = args.split(' ').collect();
        let convert = [&["convert", "-f", "raw", "-O"][..], &args, &["base.raw", &file]].concat();
        run(dir.path(), "qemu-img", &convert);
        check(&case("converted", args[0], "", &[]), &dir.path().join(&file));
    }
}

#[test]
fn snapshots_and_dirty_images_are_noted() {
    let dir = bases();
    run(
        dir.path(),
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "snap.qcow2", "8M"],
    );
    run(dir.path(), "qemu-img", &["snapshot", "-c", "before", "snap.qcow2"]);
    let mut bytes = fs::read(dir.path().join("snap.qcow2")).unwrap();
    assert_eq!(rules(&inspect(&bytes)), [Rule::Snapshots]);
    bytes[79] |= 1;
    let report = inspect(&bytes);
    assert_eq!(rules(&report), [Rule::DirtyBit, Rule::Snapshots]);
    assert_eq!(report.violations(Some(Format::Qcow2)), []);
}

#[test]
fn every_image_cut_short_is_refused_as_what_it_is_or_is_no_image() {
    let dir = bases();
    for (format, qemu) in
        [(Format::Vhdx, "vhdx"), (Format::Vhd, "vpc"), (Format::Qcow2, "qcow2"), (Format::Vmdk, "vmdk")]
    {
        run(dir.path(), "qemu-img", &["convert", "-f", "raw", "-O", qemu, "base.raw", "whole"]);
        let bytes = fs::read(dir.path().join("whole")).unwrap();
        for len in [0, 3, 100, 513, 3000] {
            let report = inspect(&bytes[..len]);
            assert!(!report.violations(Some(format)).is_empty(), "{qemu} of {len} bytes: {report:?}");
        }
    }
}

/// As a download that broke off leaves it: the headers are whole, and the data are not.
#[test]
fn every_image_that_lacks_data_is_refused() {
    let dir = bases();
    for options in [
        "qcow2",
        "qcow2 -c",
        "qcow2 -o compat=0.10",
        "qcow2 -o cluster_size=512",
        "qcow2 -o cluster_size=2M",
        "qcow2 -o refcount_bits=1",
        "qcow2 -o refcount_bits=64",
        "qcow2 -o extended_l2=on",
        "vmdk",
        "vmdk -o subformat=streamOptimized",
        "vpc",
        "vhdx -o block_size=1M",
        "vdi",
    ] {
        let words: Vec<_> = options.split(' ').collect();
        run(
            dir.path(),
            "qemu-img",
            &[&["convert", "-f", "raw", "-O"][..], &words, &["base.raw", "whole"]].concat(),
        );
        let bytes = fs::read(dir.path().join("whole")).unwrap();
        assert_eq!(rules(&inspect(&bytes)), [], "{options}");
        // What an image may lack of its last piece is a cluster or a block.
        let most = bytes.len() - (2 << 20);
        for len in [bytes.len() / 3, bytes.len() / 2, most] {
            let report = inspect(&bytes[..len]);
            assert!(
                rules(&report).contains(&Rule::Truncated),
                "{options}, {len} of {}: {report:?}",
                bytes.len()
            );
        }
    }
}

/// As QEMU leaves it that writes to it: counts and tables in all places.
#[test]
fn images_that_have_grown_are_fine() {
    let dir = bases();
    for (options, step) in
        [("cluster_size=512", 300 << 10), ("cluster_size=4k", 5 << 20), ("refcount_bits=2", 20 << 20)]
    {
        run(dir.path(), "qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, "grown.qcow2", "200M"]);
        let writes: Vec<String> = (0..100u64)
            .map(|i| format!("write -P 7 {} 64k", (i * 7919 * step % (199 << 20)) & !0xffff))
            .collect();
        let mut args = vec!["-f", "qcow2"];
        args.extend(writes.iter().flat_map(|write| ["-c", write.as_str()]));
        args.push("grown.qcow2");
        run(dir.path(), "qemu-io", &args);
        run(dir.path(), "qemu-img", &["snapshot", "-c", "before", "grown.qcow2"]);
        run(dir.path(), "qemu-io", &args);
        run(dir.path(), "qemu-img", &["snapshot", "-d", "before", "grown.qcow2"]);
        let bytes = fs::read(dir.path().join("grown.qcow2")).unwrap();
        assert_eq!(rules(&inspect(&bytes)), [], "{options}");
        assert!(rules(&inspect(&bytes[..bytes.len() / 2])).contains(&Rule::Truncated), "{options}");
    }
}

#[test]
fn partitioned_disks_are_raw_disks() {
    let dir = bases();
    for (label, format) in [("gpt", Format::Gpt), ("dos", Format::Mbr)] {
        let path = dir.path().join(label);
        File::create(&path).unwrap().set_len(16 * MIB).unwrap();
        partition(&path, &format!("label: {label}\n,4M\n,\n"));
        let report = inspect_file(&path);
        assert_eq!((report.format, report.virtual_size), (format, Some(16 * MIB)));
        assert_eq!((rules(&report), report.violations(Some(Format::Raw))), (vec![], vec![]));
        assert_eq!(qemu_info(&path, None), ("raw".to_owned(), 16 * MIB));
    }
}

#[test]
fn discs_are_iso_also_when_hybrid() {
    let dir = bases();
    let files = dir.path().join("files");
    fs::create_dir(&files).unwrap();
    fs::write(files.join("readme"), "hello").unwrap();
    let make = ["-as", "mkisofs", "-quiet", "-o"];
    run(dir.path(), "xorriso", &[&make[..], &["plain.iso", "files"]].concat());
    run(dir.path(), "xorriso", &[&make[..], &["hybrid.iso", "-partition_offset", "16", "files"]].concat());
    for (name, also) in [("plain.iso", None), ("hybrid.iso", Some(Format::Mbr))] {
        let report = inspect_file(&dir.path().join(name));
        assert_eq!((report.format, report.also.first().copied()), (Format::Iso, also), "{name}");
        assert!(
            report.virtual_size.is_some_and(|size| size > 0 && size <= report.size),
            "{name}: {report:?}"
        );
        assert_eq!(
            (report.violations(Some(Format::Iso)), report.violations(Some(Format::Raw))),
            (vec![], vec![])
        );
    }
}

/// Inspects an image and compares with what was expected and with QEMU.
fn check(case: &Case, path: &Path) {
    let report = inspect_file(path);
    let context = format!("{} {}: {report:?}", case.name, case.args);
    let format: Format = case.format.parse().unwrap();
    assert_eq!(report.format, format, "{context}");
    let mut found = rules(&report);
    found.dedup();
    assert_eq!(found, case.rules, "{context}");
    assert_eq!(report.violations(Some(format)).is_empty(), case.rules.is_empty(), "{context}");
    if format != Format::Raw {
        assert!(
            report.violations(Some(Format::Raw)).iter().any(|f| f.rule == Rule::FormatMismatch),
            "{context}"
        );
    }
    // QEMU does not guess a fixed VHD, and asks about the others only in their own format's terms.
    let told = (format == Format::Vhd).then_some("vpc");
    let (qemu_format, virtual_size) = qemu_info(path, told);
    assert_eq!((qemu_format.parse(), Some(virtual_size)), (Ok(format), report.virtual_size), "{context}");
}

/// A directory with a base of random data and zeros in two formats.
fn bases() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut base = vec![0; 8 * MIB as usize];
    let mut noise = 1u64;
    for byte in &mut base[2 * MIB as usize..5 * MIB as usize] {
        noise = noise.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *byte = (noise >> 56) as u8;
    }
    fs::write(dir.path().join("base.raw"), base).unwrap();
    run(dir.path(), "qemu-img", &["create", "-q", "-f", "vmdk", "base.vmdk", "64M"]);
    dir
}

/// QEMU's idea of an image: its format and virtual size.
fn qemu_info(path: &Path, format: Option<&str>) -> (String, u64) {
    let path = path.to_str().unwrap();
    let mut args = vec!["info", "--output=json"];
    args.extend(format.iter().flat_map(|format| ["-f", *format]));
    let output = run(Path::new("."), "qemu-img", &[&args[..], &[path]].concat());
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    (info["format"].as_str().unwrap().to_owned(), info["virtual-size"].as_u64().unwrap())
}

fn partition(path: &Path, script: &str) {
    let mut child = Command::new("/usr/sbin/sfdisk")
        .args(["--quiet", path.to_str().unwrap()])
        .stdin(Stdio::piped())
        .spawn()
        .expect("sfdisk is missing: install Debian's fdisk");
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "sfdisk failed");
}

fn run(dir: &Path, program: &str, args: &[&str]) -> Output {
    succeeded(program, args, try_run(dir, program, args))
}

fn try_run(dir: &Path, program: &str, args: &[&str]) -> Output {
    let package = if program == "qemu-img" { "qemu-utils" } else { program };
    let output = Command::new(program).args(args).current_dir(dir).output();
    output.unwrap_or_else(|error| panic!("{program} is missing: install {package} ({error})"))
}

fn succeeded(program: &str, args: &[&str], output: Output) -> Output {
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs qemu-img, again where only its clock failed: it measures the CPU time of LUKS's key derivation, and gives up where the
/// kernel's accounting, which goes by ticks, has not moved on meanwhile.
fn make_image(dir: &Path, args: &[&str]) {
    let mut tries = 0..50;
    let output = loop {
        let output = try_run(dir, "qemu-img", args);
        let why = String::from_utf8_lossy(&output.stderr);
        if !why.contains("Unable to get accurate CPU usage") || tries.next().is_none() {
            break output;
        }
    };
    succeeded("qemu-img", args, output);
}

fn strings(owned: &[String]) -> Vec<&str> {
    owned.iter().map(String::as_str).collect()
}

fn inspect_file(path: &Path) -> Report {
    let mut inspector = Inspector::new();
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return inspector.finish(),
            n => inspector.push(&buffer[..n]),
        }
    }
}

fn inspect(bytes: &[u8]) -> Report {
    let mut inspector = Inspector::new();
    inspector.push(bytes);
    inspector.finish()
}

fn rules(report: &Report) -> Vec<Rule> {
    report.findings.iter().map(|finding| finding.rule).collect()
}
