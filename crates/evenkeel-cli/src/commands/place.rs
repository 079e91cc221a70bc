//! Folders that commands write: made beside their place, so that a folder of that name is always whole.

use crate::failure::Failure;
use crate::settings::Settings;
use evenkeel::checkpoint::CheckpointError;
use std::path::Path;

/// Refuses a place that something else holds; with --force, only a folder of nothing but files named in `written` makes way.
pub(super) fn check(out: &Path, model: &Path, written: &[&str], settings: &Settings) -> Result<(), Failure> {
    if !out.exists() {
        return Ok(());
    }
    if let (Ok(a), Ok(b)) = (out.canonicalize(), model.canonicalize())
        && b.starts_with(&a)
    {
        return Err(Failure::input(
            format!("--out {} holds the model that is read", out.display()),
            "name a new folder",
        ));
    }
    let entries = std::fs::read_dir(out).map_err(io(out))?.flatten();
    let names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let foreign = names.iter().find(|name| !written.contains(&name.as_str()));
    match (names.is_empty(), settings.force) {
        (true, _) => Ok(()),
        (false, true) => match foreign {
            None => Ok(()),
            Some(name) => Err(Failure::input(
                format!("{} holds {name}, which this command never writes", out.display()),
                "name a new folder: --force replaces only what an earlier run wrote",
            )),
        },
        (false, false) => Err(Failure::input(
            format!("{} exists and is not empty", out.display()),
            "name a new folder, or add --force to replace what an earlier run left there",
        )),
    }
}

/// A folder in the making.
pub(super) struct Place {
    beside: std::path::PathBuf,
    kept: bool,
}

impl Place {
    /// Beside `out`; elsewhere and not kept in a dry run.
    pub(super) fn new(out: &Path, dry_run: bool) -> Result<Self, Failure> {
        let name = out.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.ok_or_else(|| {
            Failure::input(format!("{} names no folder", out.display()), "give a path that ends in a name")
        })?;
        let hidden = format!(".{name}.partial-{}", std::process::id());
        // What is tried out leaves no trace beside the place either.
        let beside = match dry_run {
            true => std::env::temp_dir().join(hidden),
            false => out.with_file_name(hidden),
        };
        std::fs::create_dir_all(&beside).map_err(io(&beside))?;
        Ok(Self { beside, kept: !dry_run })
    }

    /// Where to write.
    pub(super) fn beside(&self) -> &Path {
        &self.beside
    }

    /// Gives it its name.
    pub(super) fn finish(self, out: &Path) -> Result<(), Failure> {
        if self.kept {
            if out.exists() {
                std::fs::remove_dir_all(out).map_err(io(out))?;
            }
            std::fs::rename(&self.beside, out).map_err(io(out))?;
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Gone already where it was given its name.
        let _ = std::fs::remove_dir_all(&self.beside);
    }
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> CheckpointError + '_ {
    move |source| CheckpointError::Io { path: path.to_path_buf(), source }
}
