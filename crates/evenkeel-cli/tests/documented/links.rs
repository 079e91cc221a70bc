//! Links within the repository, and paths that the text names: each must lead to a file, and to a heading of it.

use crate::page::Page;
use std::path::Path;

/// Folders whose paths are looked up when code in a page names them.
const FOLDERS: [&str; 7] = ["scripts/", "crates/", "tests/", "experiments/", "bench/", "examples/", "docs/"];

/// The links and paths of a page that lead nowhere.
pub(crate) fn broken(repository: &Path, page: &Page) -> Vec<String> {
    let here = Path::new(&page.name).parent().unwrap_or(Path::new(""));
    let mut wrong = Vec::new();
    for (line, link) in &page.links {
        let (file, heading) = link.split_once('#').map_or((link.as_str(), None), |(f, h)| (f, Some(h)));
        let path = repository.join(here).join(file);
        if !file.is_empty() && !path.exists() {
            wrong.push(format!("{}:{line}: the link {link} leads to no file", page.name));
            continue;
        }
        let Some(heading) = heading else { continue };
        let anchors = match file {
            "" => page.anchors.clone(),
            _ => Page::parse(file, &std::fs::read_to_string(&path).unwrap_or_default()).anchors,
        };
        if !anchors.iter().any(|anchor| anchor == heading) {
            wrong.push(format!("{}:{line}: the link {link} leads to no heading", page.name));
        }
    }
    for (line, code) in &page.code {
        // A name in capitals stands for the reader's, but for those that are files' own.
        let stem = |part: &str| part.split('.').next().unwrap_or_default().to_string();
        let placeholder =
            |part: &str| stem(part).chars().all(|c| c.is_ascii_uppercase()) && stem(part) != "README";
        if code.split('/').any(|part| !part.is_empty() && !part.starts_with('.') && placeholder(part)) {
            continue;
        }
        let path = FOLDERS.iter().any(|folder| code.starts_with(folder))
            && code.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
        if path && !repository.join(code).exists() && !repository.join(here).join(code).exists() {
            wrong.push(format!("{}:{line}: there is no {code}", page.name));
        }
    }
    wrong
}
