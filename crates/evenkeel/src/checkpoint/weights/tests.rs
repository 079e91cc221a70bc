//! Whole files: what PyTorch wrote is read as it was, and every lie is refused by name.

use super::*;
use crate::error::Hint;
use zip::tests::archive;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/weights").join(name)
}

fn open(name: &str) -> Weights {
    Weights::open_files(&[golden(name)]).unwrap()
}

#[test]
fn every_kind_of_tensor_is_read_from_both_formats() {
    let want = open("state_f32.safetensors");
    for weights in [open("state.bin"), open("state.safetensors")] {
        assert!(weights.names().eq(want.names()));
        assert_eq!(weights.names().count(), 18);
        for name in want.names() {
            assert_eq!(weights.shape(name), want.shape(name), "{name}");
            let (got, wanted) = (weights.read(name).unwrap(), want.read(name).unwrap());
            assert!(got.iter().map(|x| x.to_bits()).eq(wanted.iter().map(|x| x.to_bits())), "{name}");
        }
        assert_eq!(weights.bytes(), open("state.safetensors").bytes());
        assert_eq!(weights.stored("bf16"), Some(Stored::BF16));
        let rows = weights.read_rows("transposed", 1..4).unwrap();
        assert_eq!(rows, want.read("transposed").unwrap()[2..8]);
    }
}

#[test]
fn the_digest_is_of_what_is_held_and_not_of_where() {
    let digest = open("state.safetensors").digest();
    assert_eq!(open("state.bin").digest(), digest);
    assert_ne!(open("state_f32.safetensors").digest(), digest);
    assert_eq!(digest, 0xbf3e_25b5_a6b5_deca, "a digest is compared across versions, so it may not change");
}

#[test]
fn tensors_one_level_down_are_found() {
    let weights = open("nested.bin");
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a.bias", "a.weight"]);
    assert_eq!(weights.read("a.weight").unwrap(), open("state.bin").read("f32").unwrap());
}

#[test]
fn what_is_not_there_is_said() {
    let weights = open("state.bin");
    assert!(weights.read("none").unwrap_err().to_string().contains("no tensor none"));
    let message = weights.read_rows("f32", 2..4).unwrap_err().to_string();
    assert!(message.contains("rows 2 to 4 were asked of tensor f32, which has 3 rows"), "{message}");
    assert!(weights.read_rows("scalar", 0..1).is_err());
    let dir = tempfile::tempdir().unwrap();
    assert!(Weights::open(dir.path()).unwrap_err().to_string().contains("holds no weights"));
    std::fs::write(dir.path().join(SAFETENSORS), b"").unwrap();
    let error = Weights::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("model.safetensors is damaged: 0 bytes are too few"), "{error}");
}

fn text(value: &str) -> Vec<u8> {
    [&b"X"[..], &(value.len() as u32).to_le_bytes(), value.as_bytes()].concat()
}

fn tuple(values: &[u8]) -> Vec<u8> {
    let ints: Vec<u8> = values.iter().flat_map(|&value| [b'K', value]).collect();
    [b"(", &ints[..], b"t"].concat()
}

/// The instructions that make a float32 tensor of the `len` numbers in data/0.
fn tensor(len: u8, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage")[..],
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        &[b'K', len],
        b"tQ",
        &[b'K', offset],
        &tuple(shape),
        &tuple(strides),
        b"\x89ccollections\nOrderedDict\n)RtR",
    ]
    .concat()
}

/// A pickle of a dictionary with these names and values.
fn pickle(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries: Vec<u8> =
        entries.iter().flat_map(|(name, value)| [text(name), value.clone()].concat()).collect();
    [b"\x80\x02}(", &entries[..], b"u."].concat()
}

/// What is said of a file of torch.save with this pickle, over four float32 numbers.
fn refusal(pickle: &[u8]) -> String {
    torch::parse(&bin(pickle)).unwrap_err().to_string()
}

fn bin(pickle: &[u8]) -> Vec<u8> {
    let entries =
        [("m/data.pkl", pickle), ("m/data/0", &[0; 16]), ("m/version", b"3\n"), ("m/byteorder", b"little")];
    archive(&entries, false)
}

#[test]
fn a_pickle_of_our_own_is_read() {
    let tensors = torch::parse(&bin(&pickle(&[("a", tensor(4, 1, &[3], &[1]))]))).unwrap();
    assert_eq!((tensors[0].0.as_str(), tensors[0].1.shape()), ("a", &[3][..]));
}

#[test]
fn a_pickle_that_asks_for_anything_else_is_refused_by_name() {
    let message = refusal(&[b"\x80\x02cos\nsystem\n", &text("true")[..], b"\x85R."].concat());
    assert_eq!(message, "asks for os.system, which a file of tensors never needs");
    let stack = [b"\x80\x04", &text("builtins")[..], &text("eval"), b"\x93."].concat();
    assert!(refusal(&stack).contains("builtins.eval"));
    assert!(refusal(b"\x80\x02cos\x1b[2J\nx\n.").contains("os\\u{1b}[2J.x"));
    assert!(refusal(b"\x80\x02ios\nsystem\n.").contains("instruction 0x69"));
    assert!(refusal(b"\x80\x02)\x81.").contains("instruction 0x81"));
    assert!(Fault::Global("x".into()).hint().contains("can run programs"));
}

#[test]
fn a_pickle_that_breaks_off_or_reaches_too_far_is_refused() {
    let whole = pickle(&[("a", tensor(4, 0, &[4], &[1]))]);
    for len in 0..whole.len() {
        assert!(torch::parse(&bin(&whole[..len])).is_err(), "{len}");
    }
    for (program, words) in [
        (&b"\x80\x02X\xff\xff\xff\xffa."[..], "announces 4294967295 bytes and has 2"),
        (b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.", "announces 18446744073709551615 bytes"),
        (b"\x80\x02\x8a\x09123456789.", "a number of 9 bytes"),
        (b"\x80\x02.", "more from its stack"),
        (b"\x80\x02N(0.", "more from its stack"),
        (b"\x80\x02t.", "has not begun"),
        (b"\x80\x02h\x00.", "recalls what it has not stored"),
        (b"\x80\x02Nr\xff\xff\xff\xff.", "stores a value at place 4294967295"),
        (b"\x80\x02}(Nu.", "a key without a value"),
        (b"\x80\x02]NNs.", "what is no dictionary"),
        (b"\x80\x02NQ.", "a storage it does not describe"),
        (b"\x80\x02ccollections\nOrderedDict\nN\x85R.", "arguments that torch.save does not write"),
        (b"\x80\x02]}b.", "attributes to what can have none"),
        (b"\x80\x01N.", "protocol 1"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "not UTF-8"),
        (b"\x80\x02}.", "no dictionary of tensors"),
        (b"\x80\x02N.", "no dictionary of tensors"),
    ] {
        let message = refusal(program);
        assert!(message.contains(words), "{words}: {message}");
    }
}

#[test]
fn nesting_costs_neither_stack_nor_time() {
    let deep = [b"\x80\x02N", &[0x85; 1_000_000][..], b"."].concat();
    assert!(refusal(&deep).contains("no dictionary of tensors"));
    // Each tuple holds the one before it twice: 2^300 members, if anyone counted.
    let laughs: Vec<u8> = b"q\x000h\x00h\x00\x86".repeat(300);
    assert!(refusal(&[b"\x80\x02)", &laughs[..], b"."].concat()).contains("no dictionary of tensors"));
}

#[test]
fn tensors_beyond_their_storage_are_refused() {
    let refused = |tensor: Vec<u8>| refusal(&pickle(&[("a", tensor)]));
    assert!(refused(tensor(4, 1, &[2, 2], &[2, 1])).contains("tensor a: shape [2, 2]"));
    assert!(refused(tensor(5, 0, &[1], &[1])).contains("16 bytes instead of 5 numbers of F32"));
    assert!(refused(tensor(4, 5, &[0], &[1])).contains("does not fit a storage of 4"));
    assert!(refused(tensor(4, 0, &[255, 255], &[0, 0])).contains("repeats the file's numbers too often"));
    assert!(refused(tensor(4, 0, &[1; 9], &[1; 9])).contains("a shape that is none"));
    assert!(refused(tensor(4, 0, &[2, 2], &[1])).contains("does not go with strides"));
    let twice = tensor(4, 0, &[4], &[1]);
    assert!(refusal(&pickle(&[("a", twice.clone()), ("a", twice)])).contains("tensor a twice"));
    let negative = pickle(&[("a", tensor(4, 0, &[4], &[1]))]).iter().fold(Vec::new(), |mut out, &byte| {
        // The one byte 1 that is a number is the stride.
        match out.last() == Some(&b'K') && byte == 1 {
            true => _ = out.splice(out.len() - 1.., *b"J\xff\xff\xff\xff"),
            false => out.push(byte),
        }
        out
    });
    assert!(refusal(&negative).contains("a shape that is none"));
    let many: Vec<_> = ["a"; 200].iter().enumerate().map(|(i, a)| (format!("{a}{i}"), i)).collect();
    let expanded = [tensor(4, 0, &[250, 200], &[0, 0]), b"q\x09".to_vec()].concat();
    let shared: Vec<u8> =
        many.iter().flat_map(|(name, _)| [text(name), b"h\x09".to_vec()].concat()).collect();
    let program =
        [b"\x80\x02", &expanded[..], b"0}(", &shared, &text("pad"), b"B", &[0, 0, 1, 0], &[0; 65536], b"u."];
    assert!(refusal(&program.concat()).contains("repeat the file's numbers too often"));
}

#[test]
fn archives_that_are_not_of_torch_save_are_refused() {
    let program = pickle(&[("a", tensor(4, 0, &[4], &[1]))]);
    let of = |entries: &[(&str, &[u8])]| torch::parse(&archive(entries, false)).unwrap_err().to_string();
    let (data, version) = (("m/data/0", &[0u8; 16][..]), ("m/version", &b"3\n"[..]));
    let described = ("m/data.pkl", &program[..]);
    assert!(of(&[data, version]).contains("without the data.pkl"));
    assert!(of(&[described, ("n/data.pkl", b""), version]).contains("more than one data.pkl"));
    assert!(of(&[described, version]).contains("lacks its entry m/data/0"));
    assert!(of(&[described, data]).contains("lacks its entry m/version"));
    assert!(of(&[described, data, ("m/version", b"11")]).contains("version 11"));
    assert!(of(&[described, data, ("m/version", b"x")]).contains("its version as \"x\""));
    assert!(of(&[described, data, version, ("m/byteorder", b"big")]).contains("big-endian"));
    assert!(of(&[described, data, version, ("m/byteorder", b"?")]).contains("no known byte order"));
    // The first instruction of what torch.save wrote before 1.6, which is the same in every file.
    let legacy = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";
    assert_eq!(torch::parse(legacy), Err(Fault::Legacy));
    assert!(Fault::Legacy.hint().contains("torch.save it again"));
}

/// A safetensors file that holds one byte for each name.
fn shard(names: &[&str]) -> Vec<u8> {
    let entry =
        |(i, name)| format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, i + 1);
    let header = format!("{{{}}}", names.iter().enumerate().map(entry).collect::<Vec<_>>().join(","));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![1; names.len()]].concat()
}

/// A folder with an index and shards.
fn sharded(index: &[(&str, &str)], shards: &[(&str, &[&str])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let map: Vec<_> = index.iter().map(|(name, file)| format!(r#""{name}":"{file}""#)).collect();
    let text = format!(r#"{{"metadata":{{}},"weight_map":{{{}}}}}"#, map.join(","));
    std::fs::write(dir.path().join("model.safetensors.index.json"), text).unwrap();
    for (file, names) in shards {
        std::fs::write(dir.path().join(file), shard(names)).unwrap();
    }
    dir
}

#[test]
fn shards_are_one_model() {
    let index = [("a", "1.safetensors"), ("b", "2.safetensors"), ("c", "1.safetensors")];
    let dir = sharded(&index, &[("1.safetensors", &["c", "a"]), ("2.safetensors", &["b"])]);
    let weights = Weights::open(dir.path()).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    std::fs::write(dir.path().join("whole.safetensors"), shard(&["a", "b", "c"])).unwrap();
    let whole = Weights::open_files(&[dir.path().join("whole.safetensors")]).unwrap();
    assert_eq!(weights.digest(), whole.digest());
}

#[test]
fn missing_shards_are_all_named() {
    let names = ["1", "2", "3", "4", "5"];
    let index: Vec<_> = names.iter().map(|&name| (name, name)).collect();
    let message = Weights::open(sharded(&index, &[]).path()).unwrap_err().to_string();
    assert!(message.ends_with("names files that are missing: 1; 2; 3; and 2 more"), "{message}");
}

#[test]
fn all_contradictions_are_told_at_once() {
    let index = [("a", "1.safetensors"), ("b", "2.safetensors")];
    let dir = sharded(&index, &[("1.safetensors", &["a", "b"]), ("2.safetensors", &["a", "x"])]);
    let WeightsError::Disagree { problems, .. } = Weights::open(dir.path()).unwrap_err() else { panic!() };
    assert_eq!(
        problems,
        [
            "tensor a is in both 1.safetensors and 2.safetensors",
            "2.safetensors does not hold tensor b",
            "2.safetensors holds tensor x as well",
        ]
    );
    let files = ["1.safetensors", "2.safetensors"].map(|name| dir.path().join(name));
    assert!(Weights::open_files(&files).unwrap_err().to_string().contains("tensor a is in both"));
}
