//! `bench int8`: a forward pass on random ids in integers, bfloat16 and float32, with logits of the last position alone; and
//! decoding. The modes take turns in one process, so that each of a turn's times saw the same minute of the machine.

use super::{at_least_one, median, milliseconds, model_of};
use crate::args::bench::{Int8, Sizes};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::cache::CacheKind;
use evenkeel::data::Batch;
use evenkeel::decode::Decoder;
use evenkeel::model::Transformer;
use evenkeel::quant::int8::{self, IntegerModel};
use evenkeel::quant::{Scheme, Simulation};
use evenkeel::random;
use evenkeel::report::table::{Align, Table};
use evenkeel::tap::NoTap;
use evenkeel::tape::{Execution, Precision, Recompute, Tape};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::BufRead;
use std::time::Instant;

/// Sequences that the activations are calibrated on, one after the other.
const CALIBRATION: usize = 2;
/// Tokens of each sequence that are decoded, after half a context.
const DECODED: usize = 16;

/// What can be timed.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// A pass in integers.
    Integer,
    /// A pass in float.
    Float(Precision),
    /// Decoding in integers.
    DecodeInteger,
    /// Decoding in float32.
    DecodeFloat,
}

const MODES: [Mode; 5] = [
    Mode::Integer,
    Mode::Float(Precision::Bf16),
    Mode::Float(Precision::F32),
    Mode::DecodeInteger,
    Mode::DecodeFloat,
];

impl Mode {
    /// As `--serve` and the result name it.
    fn name(self, scheme: &str) -> String {
        match self {
            Mode::Integer => scheme.into(),
            Mode::Float(precision) => super::precision_name(precision).into(),
            Mode::DecodeInteger => "decode".into(),
            Mode::DecodeFloat => "decode_f32".into(),
        }
    }
}

struct Bench {
    /// Name of the integer mode.
    scheme: String,
    float: Transformer,
    integer: IntegerModel,
    context: usize,
    ids: Vec<u32>,
    sequences: usize,
}

impl Bench {
    fn new(args: &Int8, seed: u64) -> Result<Self, Failure> {
        let (scheme, float, integer, context) = match &args.model {
            Some(path) => {
                let integer = int8::read(path).map_err(evenkeel::Error::from)?;
                let config = integer.model().config().clone();
                let (scheme, context) =
                    (integer.description().scheme.clone(), args.context.min(config.context));
                (scheme, Transformer::new(config, seed)?, integer, context)
            }
            None => {
                let (float, integer) = made(args, seed)?;
                (args.scheme.clone(), float, integer, args.context)
            }
        };
        let ids = drawn(seed, 0, args.sequences * context, float.config().vocab);
        Ok(Self { scheme, float, integer, context, ids, sequences: args.sequences })
    }

    /// Seconds of one pass, or of one decoded token of each sequence.
    fn time(&self, mode: Mode) -> Result<f64, Failure> {
        let (ids, sequences) = (&self.ids, self.sequences);
        let begun = Instant::now();
        match mode {
            Mode::Integer => {
                self.integer.last_logits(ids, sequences)?;
            }
            Mode::Float(precision) => {
                let tape = Tape::recording_as(Execution { precision, recompute: Recompute::None }).twin_off();
                self.float.last_logits(&tape, &mut NoTap, ids, sequences)?;
            }
            Mode::DecodeInteger => {
                let mut decoder = self.integer.decoder(sequences, None)?;
                decoder.prefill(&self.prompt())?;
                return self.time_decoding(|ids| Ok(decoder.decode(ids).map(|_| ())?));
            }
            Mode::DecodeFloat => {
                let mut decoder = Decoder::new(&self.float, sequences, CacheKind::F32)?;
                decoder.prefill(&self.prompt())?;
                return self.time_decoding(|ids| Ok(decoder.decode(ids).map(|_| ())?));
            }
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    /// The first half of each sequence.
    fn prompt(&self) -> Vec<u32> {
        self.ids.chunks(self.context).flat_map(|ids| &ids[..self.context.div_ceil(2)]).copied().collect()
    }

    fn time_decoding(&self, mut decode: impl FnMut(&[u32]) -> Result<(), Failure>) -> Result<f64, Failure> {
        let begun = Instant::now();
        for _ in 0..DECODED {
            decode(&self.ids[..self.sequences])?;
        }
        Ok(begun.elapsed().as_secs_f64() / DECODED as f64)
    }

    fn float_bytes(&self) -> usize {
        4 * self.float.parameter_count()
    }
}

/// A model with random weights, and it calibrated on random ids.
fn made(args: &Int8, seed: u64) -> Result<(Transformer, IntegerModel), Failure> {
    let &Int8 { width, vocab, context, sequences, .. } = args;
    let config = model_of(&args.preset, args.depth, args.heads, &Sizes { width, vocab, context, sequences })?;
    let batch = |stream| Batch {
        inputs: drawn(seed, stream, context, vocab),
        targets: drawn(seed, stream, context, vocab),
        sequences: 1,
        context,
    };
    let calibration: Vec<Batch> = (1..=CALIBRATION as u64).map(batch).collect();
    let float = Transformer::new(config, seed)?;
    let scheme = Scheme::preset(&args.scheme).map_err(evenkeel::Error::from)?;
    let integer = int8::convert(&Simulation::new(&float, &scheme, &[], &calibration, &mut || {})?)?;
    Ok((float, integer))
}

/// Random ids below `vocab`.
fn drawn(seed: u64, stream: u64, count: usize, vocab: usize) -> Vec<u32> {
    let key = random::key(&[seed, stream]);
    let id = |i: usize| (random::uniform(key, i as u64) * vocab as f64) as u32;
    (0..count).map(|i| id(i).min(vocab as u32 - 1)).collect()
}

pub(super) fn run(args: Int8, settings: &Settings) -> Result<Exit, Failure> {
    at_least_one("repeat", args.repeat, 1_000_000)?;
    let bench = Bench::new(&args, settings.seed.unwrap_or(0))?;
    if args.serve {
        return serve(&bench);
    }
    let mut seconds: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for turn in 0..=args.repeat {
        for mode in MODES {
            let time = bench.time(mode)?;
            // The first turn faults pages in.
            if turn > 0 {
                seconds.entry(mode.name(&bench.scheme)).or_default().push(time);
            }
        }
    }
    let of = |mode: Mode| seconds.get(&mode.name(&bench.scheme)).map_or(&[][..], |s| s);
    let tokens = bench.ids.len();
    let ratio = |mode| {
        let pairs = of(mode).iter().zip(of(Mode::Integer));
        median(&pairs.map(|(other, integer)| other / integer).collect::<Vec<_>>())
    };
    let (small, large) = (bench.integer.bytes(), bench.float_bytes());
    if settings.json {
        let passes = [MODES[0], MODES[1], MODES[2]];
        let named = |modes: &[Mode]| -> serde_json::Map<String, serde_json::Value> {
            modes.iter().map(|&m| (m.name(&bench.scheme), json!(of(m)))).collect()
        };
        output::json(&json!({
            "schema": 1,
            "mode": named(&passes),
            "seconds_per_decoded_token": named(&[Mode::DecodeInteger, Mode::DecodeFloat]),
            "tokens": tokens,
            "bytes": {"int8": small, "float32": large, "ratio": small as f64 / large as f64},
            "ratio": ratio(Mode::Float(Precision::Bf16)),
            "fused": bench.integer.fused().is_some(),
            "threads": settings.threads,
            "isa": evenkeel_kernels::isa::active().name(),
        }));
        return Ok(Exit::Done);
    }
    let columns = [
        ("mode", Align::Left),
        ("ms", Align::Right),
        ("tokens/s", Align::Right),
        ("against it", Align::Right),
    ];
    let mut table = Table::new(&columns);
    for mode in MODES {
        let time = median(of(mode));
        let (count, against) = match mode {
            Mode::Integer => (tokens, String::new()),
            Mode::Float(_) => (tokens, format!("{:.2}", ratio(mode))),
            Mode::DecodeInteger | Mode::DecodeFloat => (bench.sequences, String::new()),
        };
        let rate = format!("{:.0}", count as f64 / time);
        table.push(vec![mode.name(&bench.scheme), milliseconds(time), rate, against]);
    }
    output::result(&table.to_text());
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    output::line(&format!(
        "parameters: {:.0} MiB in integers, {:.3} of {:.0} MiB in float32",
        mib(small),
        small as f64 / large as f64,
        mib(large)
    ));
    Ok(Exit::Done)
}

/// Times one mode for each line of stdin, until it ends.
fn serve(bench: &Bench) -> Result<Exit, Failure> {
    let scheme = &bench.scheme;
    output::line(&json!({"ready": true}).to_string());
    for line in std::io::stdin().lock().lines() {
        let line =
            line.map_err(|e| Failure::input(format!("stdin cannot be read: {e}"), "give lines of UTF-8"))?;
        let asked = line.trim().strip_prefix("run ").unwrap_or_default().trim();
        let mode = MODES.into_iter().find(|mode| mode.name(scheme) == asked).ok_or_else(|| {
            let known = MODES.map(|mode| mode.name(scheme)).join(", ");
            Failure::input(
                format!("\"{line}\" is no request"),
                format!("write `run MODE` with MODE one of {known}"),
            )
        })?;
        output::line(&json!({"mode": asked, "seconds": bench.time(mode)?}).to_string());
    }
    Ok(Exit::Done)
}
