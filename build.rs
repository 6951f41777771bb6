// SPDX-License-Identifier: LGPL-2.1-only
//! Compiles `payload/` into libckpt.so, which the binary embeds.
//!
//! rustc makes a static library of position-independent code and the linker a shared object with
//! our own export list: a cdylib of rustc's would export the payload's memcpy too. `-z defs`
//! refuses undefined symbols, and with them any code that could panic (payload/src/panic.rs).
//! What is embedded is compressed (src/packed.rs).

use ckpt_abi::api::FUNCTIONS;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const TARGET: &str = "x86_64-unknown-linux-musl";

/// What the injector looks for; the functions of ckpt.h are exported besides.
const ENTRIES: [&str; 10] = [
    "ckpt_thunk",
    "ckpt_clone_thunk",
    "ckpt_hole",
    "ckpt_restorer",
    "ckpt_handler",
    "ckpt_visit",
    "ckpt_socket_wait",
    "ckpt_suspended",
    "ckpt_rest",
    "ckpt_run",
];

fn main() {
    for sources in ["payload/src", "payload/sdk", ckpt_abi::SOURCES] {
        println!("cargo::rerun-if-changed={sources}");
    }
    println!("cargo::rerun-if-env-changed=CC");
    let target = std::env::var("TARGET").unwrap_or_default();
    // libFuzzer needs a C++ library, which is there for the machine's own C library only; no binary is made then.
    let is_fuzzed = std::env::var_os("CARGO_CFG_FUZZING").is_some();
    if target != TARGET && !is_fuzzed {
        fail(&format!(
            "ckpt is one static binary for {TARGET}, not {target}: run `cargo build --release` without --target, or with --target {TARGET}"
        ));
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let archive = compile(&out);
    link(&out, &archive);
    pack(&out.join("libckpt.so"), &out);
    for text in ["ckpt.h", "ckpt.py", "ckpt.3"] {
        pack(&Path::new("payload/sdk").join(text), &out);
    }
    leave_out_unwinding(&out);
    fold();
}

/// Links with the linker that comes with Rust's compiler, where it does: it makes functions of the same code one, another
/// percent. Whoever has none of it gets the same binary, only larger. What is relocated stays writable: a static binary does not
/// change that, and a segment of it would end in the middle of a page of the file, where src/image/front.rs needs an end.
fn fold() {
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let host = std::env::var("HOST").unwrap_or_default();
    let said = Command::new(compiler).args(["--print", "sysroot"]).output();
    let Some(said) = said.ok().filter(|said| said.status.success()) else { return };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&said.stdout).trim());
    let linkers = sysroot.join("lib/rustlib").join(host).join("bin/gcc-ld");
    if linkers.join("ld.lld").exists() {
        for word in [
            format!("-B{}", linkers.display()).as_str(),
            "-fuse-ld=lld",
            "-Wl,--icf=all,-z,norelro",
        ] {
            println!("cargo::rustc-link-arg-bins={word}");
        }
    }
}

/// Leaves the tables for unwinding out of the binary, which ends at a panic (panic = "abort"). The script is added
/// to the linker's own; the C runtime's begin and end refer to their own parts.
fn leave_out_unwinding(out: &Path) {
    const SCRIPT: &str = "SECTIONS\n{\n  /DISCARD/ : { *(EXCLUDE_FILE(*crtbegin*.o *crtend*.o) .eh_frame) *(.gcc_except_table*) }\n}\nINSERT AFTER .text;\n";
    let script = out.join("sections.ld");
    if let Err(e) = std::fs::write(&script, SCRIPT) {
        fail(&format!("cannot write {}: {e}", script.display()));
    }
    println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr,-T,{}", script.display());
}

/// Writes NAME.lz4 into `out`: the length, 4 bytes, and an LZ4 block.
fn pack(file: &Path, out: &Path) {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".lz4");
    let packed = std::fs::read(file).map(|bytes| lz4_flex::block::compress_prepend_size(&bytes));
    if let Err(e) = packed.and_then(|packed| std::fs::write(out.join(name), packed)) {
        fail(&format!("cannot pack {}: {e}", file.display()));
    }
}

fn compile(out: &Path) -> PathBuf {
    let abi = out.join("libckpt_abi.rlib");
    let mut rustc = rustc();
    rustc.args(["--crate-type", "rlib", "--crate-name", "ckpt_abi", "-O"]);
    rustc.arg(Path::new(ckpt_abi::SOURCES).join("lib.rs")).arg("-o").arg(&abi);
    run(rustc, "compile the payload's types", "`rustup target add x86_64-unknown-linux-musl`");
    let archive = out.join("libckpt_payload.a");
    let mut rustc = self::rustc();
    rustc.args(["--crate-type", "staticlib", "--crate-name", "ckpt_payload"]);
    rustc.args(["-C", "opt-level=s", "-C", "codegen-units=1", "-C", "lto=fat"]);
    rustc.args(["-C", "relocation-model=pic", "-C", "target-feature=-crt-static"]);
    rustc.arg("--extern").arg(format!("ckpt_abi={}", abi.display()));
    rustc.arg("payload/src/lib.rs").arg("-o").arg(&archive);
    run(rustc, "compile the payload", "`rustup target add x86_64-unknown-linux-musl`");
    archive
}

fn rustc() -> Command {
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition", "2024", "--target", TARGET, "-C", "panic=abort"]);
    rustc
}

fn link(out: &Path, archive: &Path) {
    let exports = out.join("exports.map");
    let names: Vec<&str> = ENTRIES.into_iter().chain(FUNCTIONS).collect();
    let list = names.join("; ");
    if let Err(e) = std::fs::write(&exports, format!("{{ global: {list}; local: *; }};\n")) {
        fail(&format!("cannot write {}: {e}", exports.display()));
    }
    let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    cc.args(["-shared", "-nostdlib", "-nostartfiles", "-Wl,-z,defs,-z,noexecstack"]);
    cc.args(["-Wl,-z,separate-code,-z,max-page-size=4096,--gc-sections,-Bsymbolic"]);
    cc.args(["-Wl,-z,nodelete,--hash-style=gnu,--build-id=none,--strip-all,-soname,libckpt.so"]);
    cc.arg(format!("-Wl,--version-script={}", exports.display()));
    cc.args(names.iter().map(|name| format!("-Wl,-u,{name}")));
    cc.arg(archive).arg("-o").arg(out.join("libckpt.so"));
    run(cc, "link the payload", "`apt-get install gcc libc6-dev` or your system's C compiler");
}

fn run(mut command: Command, what: &str, way_out: &str) {
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(_) => fail(&format!("cannot {what}: see above; if something is missing, run {way_out}")),
        Err(e) => {
            let program = command.get_program().to_string_lossy().into_owned();
            fail(&format!("cannot {what}: {program}: {e}; run {way_out}"));
        }
    }
}

fn fail(sentence: &str) -> ! {
    println!("cargo::error={sentence}");
    exit(1)
}
