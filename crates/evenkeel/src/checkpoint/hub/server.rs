//! A server on this machine that answers as the Hub does, for tests.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

/// The branch of converted files, as it stands in an address.
const CONVERTED: &str = "refs%2Fconvert%2Fparquet";
/// The commit that every branch stands at.
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves these files as the Hub does, as a model and as a dataset named `owner/tiny`, until the test ends; gives the
/// address. Files in the folder `convert` are the dataset's on the branch of converted files.
pub(super) fn server(files: &'static [(&'static str, &'static str)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| answer(stream, files)));
    address
}

fn answer(mut stream: TcpStream, files: &'static [(&'static str, &'static str)]) {
    let lines: Vec<String> = BufReader::new(stream.try_clone().unwrap())
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_string();
    let range = lines.iter().find_map(|line| {
        let (key, value) = line.split_once(": bytes=")?;
        key.eq_ignore_ascii_case("range").then(|| value.split_once('-').unwrap())
    });
    let (path, converted) = match path.replacen(CONVERTED, "main", 1) {
        other if other != path => (other, true),
        _ => (path, false),
    };
    let path = path.replacen("/datasets/", "/models/", 1).replacen("/models/owner", "/owner", 1);
    let here = |file: &'static str| match (file.strip_prefix("convert/"), converted) {
        (Some(file), true) => Some(file),
        (None, false) => Some(file),
        _ => None,
    };
    let files: Vec<(&str, &str)> =
        files.iter().filter_map(|(file, text)| Some((here(file)?, *text))).collect();
    let list: Vec<_> = files.iter().map(|(file, _)| serde_json::json!({"rfilename": file})).collect();
    let list = serde_json::json!({"sha": COMMIT, "siblings": list}).to_string();
    let body = match path.strip_prefix("/owner/tiny/resolve/main/") {
        None if path == "/api/owner/tiny/revision/main" => Some(list.as_str()),
        None => None,
        Some(file) => files.iter().find(|(name, _)| *name == file).map(|(_, text)| *text),
    };
    let Some(body) = body else {
        write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        return;
    };
    let (from, to) = range.map_or((0, body.len()), |(from, to)| {
        (from.parse().unwrap(), to.parse::<usize>().map_or(body.len(), |to| to + 1))
    });
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\n\
         ETag: \"{:x}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n{}",
        to - from,
        to - 1,
        body.len(),
        crate::random::fnv1a(crate::random::FNV_OFFSET, body.as_bytes()),
        &body[from..to],
    )
    .unwrap();
}
