// SPDX-License-Identifier: LGPL-2.1-only
//! What `cargo package` packs: all that a build reads, also where cargo leaves folders out by itself.

mod sources;

use std::path::Path;
use std::process::Command;

use sources::files;

fn package(words: &[&str]) -> String {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.args(["package", "--offline", "--allow-dirty"]).args(words);
    let output = cargo.output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("utf-8")
}

#[test]
fn the_lists_hold_what_a_build_reads() {
    // Folders with a manifest are packages of their own; the payload's, which nobody but clippy reads, is none.
    let own = ["payload/abi", "src/serve/cipher", "src/loops"];
    let missing = |package_name: &str, top: &str, places: &[&str]| {
        let list = package(&["--list", "--package", package_name]);
        let inside = |path: &Path| path.strip_prefix(top).expect("inside").display().to_string();
        let mut missing: Vec<_> = places.iter().flat_map(|place| files(place)).collect();
        missing
            .retain(|path| !top.is_empty() || !own.iter().any(|folder| path.starts_with(folder)));
        missing.retain(|path| !list.lines().any(|line| line == inside(path)));
        missing
    };
    let needed = [
        "src",
        "payload/src",
        "payload/sdk",
        "build.rs",
        "Cargo.toml",
        ".cargo/config.toml",
        "README.md",
        "COPYING",
    ];
    assert_eq!(missing("ckpt", "", &needed), [""; 0].map(Path::new));
    assert_eq!(missing("ckpt-abi", own[0], &["payload/abi"]), [""; 0].map(Path::new));
    assert_eq!(missing("ckpt-cipher", own[1], &["src/serve/cipher"]), [""; 0].map(Path::new));
    assert_eq!(missing("ckpt-loops", own[2], &["src/loops"]), [""; 0].map(Path::new));
}

#[test]
#[ignore = "builds everything once more: a minute of a processor"]
fn the_packages_build_from_what_they_hold() {
    let directory = std::env::temp_dir().join(format!("ckpt-package-{}", std::process::id()));
    let place = directory.to_str().expect("utf-8");
    let done = std::panic::catch_unwind(|| package(&["--target-dir", place]));
    std::fs::remove_dir_all(&directory).expect("its directory");
    done.unwrap_or_else(|why| std::panic::resume_unwind(why));
}
