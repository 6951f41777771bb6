//! Leaves the tables for unwinding out of the binary, which ends at a panic (panic = "abort").

fn main() {
    println!("cargo::rerun-if-changed=sections.ld");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/sections.ld");
    println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr,-T,{script}");
}
