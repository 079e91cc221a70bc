//! Puts the git revision into the binary, if there is one to be had.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../../.git/HEAD");
    let revision = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    if let Ok(output) = revision
        && output.status.success()
    {
        println!("cargo:rustc-env=EVENKEEL_REVISION={}", String::from_utf8_lossy(&output.stdout).trim());
    }
}
