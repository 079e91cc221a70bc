//! The readers of weights and texts on damaged files: the first cases of `examples/fuzz_readers`, and its worst.

#[path = "../../../examples/fuzz_readers/engine.rs"]
mod engine;
#[path = "../../../examples/fuzz_readers/memory.rs"]
mod memory;

use engine::{READERS, Seeds, judge};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

#[test]
fn sound_files_are_accepted_by_one_reader_each() {
    for (number, file) in Seeds::new().sound().enumerate() {
        let accepted = judge(&file).unwrap().accepted;
        assert_eq!(accepted.iter().filter(|&&was| was).count(), 1, "seed file {number}: {accepted:?}");
    }
}

#[test]
fn damaged_files_are_refused_or_read_within_memory() {
    let seeds = Seeds::new();
    let mut accepted = [0; READERS.len()];
    for number in 0..100_000 {
        let outcome =
            judge(&seeds.case(0, number)).unwrap_or_else(|problem| panic!("case {number}: {problem}"));
        accepted.iter_mut().zip(outcome.accepted).for_each(|(count, was)| *count += usize::from(was));
    }
    // If hardly any were accepted, hardly anything behind the first check would have been tried. Fewest get past gzip,
    // whose checksum is over everything but its header.
    assert!(accepted.iter().all(|&count| count > 100), "{accepted:?}");
}

/// Files of a megabyte that consist of what makes the most memory of the fewest bytes.
#[test]
fn the_worst_files_stay_within_memory() {
    let tensor = b"ctorch._utils\n_rebuild_tensor_v2\nq\x00((X\x07\x00\x00\x00storagectorch\nFloatStorage\n\
        X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQq\x01K\x00(K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01tq\x02h\x02NNtq\x03R";
    for (start, part, end) in [
        (&b""[..], &b"N"[..], &b"."[..]),
        (b"", b"(", b"."),
        (b"", b")", b"."),
        (b"N", b"\x85", b"."),
        (b"N", b"\x94", b"."),
        (b"", b"N\x94", b"."),
        (b"", b"}", b"."),
        (b"", b"K\x00", b"."),
        (b"", b"\x8c\x00", b"."),
        (b"}", b"NNs", b"."),
        (b"}(", b"NN", b"u."),
        (b"N", b"r\x00\x00\x0f\x00", b"."),
        (tensor, b"h\x00h\x03R", b"."),
        (tensor, b"h\x00h\x03R0", b"."),
    ] {
        let file = [b"\x80\x02", start, &part.repeat((1 << 20) / part.len()), end].concat();
        judge(&file).unwrap_or_else(|problem| panic!("{part:?}: {problem}"));
    }
    let names = |quoted: fn(u32) -> String| (0..40_000).map(quoted).collect::<Vec<_>>().join(",");
    let index = format!(r#"{{"weight_map":{{{}}}}}"#, names(|i| format!(r#""{i:x}":"x""#)));
    assert!(judge(index.as_bytes()).unwrap().accepted[3]);
    let empty = names(|i| format!(r#""{i:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#));
    let shape =
        format!(r#"{{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[0,0]}}}}"#, "1,".repeat(500_000) + "1");
    for (header, sound) in [(format!("{{{empty}}}"), true), (shape, false)] {
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        assert_eq!(judge(&file).unwrap().accepted[0], sound);
    }
    // Many names for one tensor of eight axes.
    let name =
        |i: u32| [b"\x8c\x03", &[0, 7, 14].map(|shift| (i >> shift & 0x7f) as u8)[..], b"h\x04"].concat();
    let named: Vec<u8> = (0..150_000).flat_map(name).collect();
    let file = [b"\x80\x02", &tensor[..], b"q\x04}(", &named, b"u."].concat();
    assert!(judge(&file).unwrap().accepted[2]);
}
