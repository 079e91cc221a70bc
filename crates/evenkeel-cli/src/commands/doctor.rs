//! `doctor`: what this machine and this build can do.

use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::data::default_cargo_home;
use evenkeel_kernels::isa;
use serde_json::json;

pub(crate) fn run(settings: &Settings) -> Result<Exit, Failure> {
    let registry = default_cargo_home().map(|h| h.join("registry/src")).filter(|p| p.is_dir());
    let requested = isa::requested();
    if let Some(Err(name)) = &requested {
        return Err(Failure::input(
            format!("EVENKEEL_ISA={name} names no instruction set"),
            "use portable, neon, avx2, avx512 or amx, or unset it",
        ));
    }
    let report = json!({
        "schema": 1,
        "version": env!("CARGO_PKG_VERSION"),
        "host": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "device": "cpu",
        "cores": std::thread::available_parallelism().map_or(1, |n| n.get()),
        "threads": settings.threads,
        "isa": {"detected": isa::detected().name(), "active": isa::active().name()},
        "quickstart_corpus": registry.is_some(),
    });
    if settings.json {
        output::json(&report);
        return Ok(Exit::Done);
    }
    output::line(&format!(
        "evenkeel {} on {} {}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    ));
    output::line(&format!("threads       {} of {} cores", settings.threads, report["cores"]));
    output::line(&format!(
        "instructions  {} (this machine has {})",
        isa::active().name(),
        isa::detected().name()
    ));
    output::line("device        cpu, float32");
    output::line(&match registry {
        Some(path) => format!("quickstart    crate sources under {}", path.display()),
        None => "quickstart    no crate sources found: give `quickstart --corpus PATH`".into(),
    });
    Ok(Exit::Done)
}
