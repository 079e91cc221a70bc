//! Quantisers held to NumPy: every format and every method that finds a range, on awkward tensors. The files
//! tests/golden/quant/{formats,ranges}.safetensors were made by scripts/golden/{formats,ranges}.py, whose heads describe them;
//! each test ends with every tensor of its file used. What the files leave open is in quantiser_edges.rs.

use evenkeel::quant::Spec;
use evenkeel::quant::grid::Cell;
use evenkeel::quant::range::{Observer, of_values};
use evenkeel::quant::rounding::{Layout, Rounding};
use evenkeel::quant::spec::{Float, Format, Granularity, Range};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// A golden file, and which of its tensors were looked at.
struct Golden {
    about: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    used: RefCell<BTreeSet<String>>,
}

impl Golden {
    fn open(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/quant").join(name);
        let bytes = std::fs::read(path).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let about = &metadata.metadata().as_ref().unwrap()["about"];
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensors =
            file.tensors().into_iter().map(|(name, view)| (name, (view.shape().to_vec(), numbers(&view))));
        Self {
            about: serde_json::from_str(about).unwrap(),
            tensors: tensors.collect(),
            used: RefCell::default(),
        }
    }

    /// The numbers of a tensor, which counts as used.
    fn get(&self, name: &str) -> &[f64] {
        self.used.borrow_mut().insert(name.to_string());
        &self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}")).1
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.get(name).iter().map(|&v| v as f32).collect()
    }

    /// Part `index` of the first dimension.
    fn part(&self, name: &str, index: usize) -> &[f64] {
        let all = self.get(name);
        let size = all.len() / self.tensors[name].0[0];
        &all[index * size..][..size]
    }

    fn names(&self, list: &str) -> Vec<String> {
        self.about[list].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_string()).collect()
    }

    /// That every tensor whose name starts so was looked at, and that they are `count`.
    #[track_caller]
    fn all_used(&self, prefix: &str, count: usize) {
        let used = self.used.borrow();
        let named = self.tensors.keys().filter(|name| name.starts_with(prefix));
        let (seen, left): (Vec<_>, Vec<_>) = named.partition(|&name| used.contains(name));
        assert!(left.is_empty(), "not compared: {left:?}");
        assert_eq!(seen.len(), count);
    }
}

fn numbers(view: &safetensors::tensor::TensorView) -> Vec<f64> {
    use safetensors::Dtype;
    let data = view.data();
    match view.dtype() {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        Dtype::F64 => data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        Dtype::I16 => data.as_chunks::<2>().0.iter().map(|b| f64::from(i16::from_le_bytes(*b))).collect(),
        other => panic!("{other:?}"),
    }
}

/// `int4_asym` and the like; `unsigned` is a symmetric format whose tensor decides.
fn format(name: &str) -> Format {
    let (head, kind) = name.split_once('_').unwrap_or((name, "sym"));
    let word = if kind == "asym" { "asymmetric" } else { "symmetric" };
    Spec::WEIGHT.with(&format!("{head} {word}")).unwrap().format
}

/// Equal to `relative`, each with each.
#[track_caller]
fn close(what: &str, got: &[f64], want: &[f64], relative: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= relative * want.abs(), "{what} [{i}]: {got:e}, not {want:e}");
    }
}

/// The values of each grid that takes its range from them alone: a row's, a column's, a group's.
fn parts(x: &[f32], width: usize, granularity: &str) -> Vec<Vec<f32>> {
    match granularity.split_once('.') {
        None if granularity == "tensor" => vec![x.to_vec()],
        None if granularity == "row" => x.chunks(width).map(<[f32]>::to_vec).collect(),
        None if granularity == "column" => {
            (0..width).map(|c| x.iter().skip(c).step_by(width).copied().collect()).collect()
        }
        Some(("group", n)) => {
            let n = n.parse().unwrap();
            x.chunks(width).flat_map(|row| row.chunks(n)).map(<[f32]>::to_vec).collect()
        }
        _ => panic!("{granularity}"),
    }
}

/// A tensor of the formats file.
struct Case<'a> {
    golden: &'a Golden,
    name: &'a str,
    x: Vec<f32>,
    width: usize,
}

impl Case<'_> {
    fn at(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    /// The ranges of the grids, in order.
    fn ranges(&self, granularity: &str, symmetric: bool) -> Vec<(f64, f64)> {
        if granularity == "static" {
            let (range, peak) = (self.at("static.range"), self.at("static.peak"));
            let (range, peak) = (self.golden.get(&range), self.golden.get(&peak)[0]);
            return vec![if symmetric { (-peak, peak) } else { (range[0], range[1]) }];
        }
        let range = |values: Vec<f32>| {
            let mut observer = Observer::new(Range::MinMax);
            observer.update(self.name, &values).unwrap();
            observer.range(format("int8_asym")).unwrap()
        };
        parts(&self.x, self.width, granularity).into_iter().map(range).collect()
    }

    /// All ways in which the library comes to these grids: from ranges, as a weight, as an activation that was calibrated, and
    /// as one that takes its ranges when it comes.
    fn roundings(&self, format: Format, granularity: &str, unsigned: bool) -> Vec<(&'static str, Rounding)> {
        use Granularity::{Channel, Group, Tensor, Token};
        let (layout, of_weight, of_activation) = match granularity.split_once('.') {
            Some((_, n)) => {
                let n = n.parse().unwrap();
                (Layout::Group(n), Some(Group(n)), Group(n))
            }
            None => match granularity {
                "tensor" => (Layout::Tensor, Some(Tensor), Tensor),
                "row" => (Layout::Row, Some(Channel), Token),
                "column" => (Layout::Column, None, Channel),
                "static" => (Layout::Tensor, None, Tensor),
                _ => panic!("{granularity}"),
            },
        };
        let spec = |granularity| Spec { format, granularity, range: Range::MinMax, ..Spec::WEIGHT };
        let ranges = self.ranges(granularity, format.is_symmetric());
        let cells = ranges.iter().map(|&range| Cell::of_range(format, range, unsigned)).collect();
        let mut ways = vec![("ranges", Rounding { layout, cells })];
        // A weight without negative entries is unsigned where its format is symmetric, an activation never.
        let signs = matches!(format, Format::Int { symmetric: true, .. });
        let own = self.x.iter().all(|&v| v >= 0.0);
        if let Some(granularity) = of_weight.filter(|_| !signs || unsigned == own) {
            let rounding = Rounding::of_weight(self.name, spec(granularity), &self.x, self.width);
            ways.push(("weight", rounding.unwrap()));
        }
        let activation = spec(of_activation);
        if !unsigned && matches!(layout, Layout::Tensor | Layout::Column) {
            ways.push(("calibrated", Rounding::of_ranges(activation, &ranges)));
        }
        if !unsigned && granularity != "static" {
            ways.push(("dynamic", Rounding::of_dynamic(activation, None, &self.x, self.width)));
        }
        ways
    }

    /// Levels, scales and values of one rounding against part `f` of the tensors under `key`; the levels are called `levels`.
    fn check(&self, what: &str, rounding: &Rounding, key: &str, levels: &str, f: Option<usize>) {
        let what = format!("{} {key} {f:?} as {what}", self.name);
        let want = |tensor: &str| {
            let name = self.at(&format!("{key}.{tensor}"));
            f.map_or_else(|| self.golden.get(&name), |f| self.golden.part(&name, f)).to_vec()
        };
        let wide = |v: Vec<f32>| v.into_iter().map(f64::from).collect::<Vec<_>>();
        let scale = if levels == "step" { "step" } else { "scale" };
        let scales: Vec<f64> = rounding.cells.iter().map(|c| f64::from(c.scale() as f32)).collect();
        close(&format!("{what}, scale"), &scales, &want(scale), 1e-7);
        let value = if levels == "step" { "value" } else { levels };
        close(&format!("{what}, levels"), &wide(rounding.levels(&self.x, self.width)), &want(value), 0.0);
        let mut rounded = self.x.clone();
        rounding.apply(&mut rounded, self.width);
        close(&format!("{what}, values"), &wide(rounded), &want("dq"), 1e-6);
    }

    fn check_integers(&self, kind: &str, granularity: &str, formats: &[String]) -> usize {
        let key = format!("{kind}.{granularity}");
        let mut ways = 0;
        for (f, name) in formats.iter().enumerate() {
            for (way, rounding) in self.roundings(format(name), granularity, kind == "uint") {
                self.check(way, &rounding, &key, "q", Some(f));
                if kind == "int" {
                    let zeros: Vec<f64> = rounding.cells.iter().map(zero_point).collect();
                    let want = self.golden.part(&self.at(&format!("{key}.zero")), f);
                    close(&format!("{} {key} {name} as {way}, zero", self.name), &zeros, want, 0.0);
                }
                ways += 1;
            }
        }
        ways
    }

    fn check_floats(&self, granularity: &str, formats: &[String]) -> usize {
        let mut ways = 0;
        for (f, name) in formats.iter().enumerate() {
            for (way, rounding) in self.roundings(format(name), granularity, false) {
                self.check(way, &rounding, &format!("fp.{granularity}"), "value", Some(f));
                ways += 1;
            }
        }
        ways
    }

    fn check_mx(&self, formats: &[String]) {
        for (f, name) in formats.iter().enumerate() {
            let (_, element) = name.split_once('_').unwrap();
            let words = format!("{element} mx");
            let weight = Spec::WEIGHT.with(&words).unwrap();
            let weight = Rounding::of_weight(self.name, weight, &self.x, self.width).unwrap();
            let dynamic =
                Rounding::of_dynamic(Spec::ACTIVATION.with(&words).unwrap(), None, &self.x, self.width);
            for (way, rounding) in [("weight", weight), ("dynamic", dynamic)] {
                self.check(way, &rounding, "mx", "value", Some(f));
            }
        }
    }

    fn check_nvfp4(&self, granularity: &str) {
        let (x, width) = (&self.x, self.width);
        let peak = match granularity {
            "static" => self.golden.get(&self.at("static.peak"))[0],
            _ => x.iter().fold(0.0, |m, v| f64::from(v.abs()).max(m)),
        };
        let static_spec = Spec::ACTIVATION.with("e2m1 nv static min_max").unwrap();
        let mut ways = vec![("static", Rounding::of_dynamic(static_spec, Some(peak), x, width))];
        if granularity == "tensor" {
            let spec = Spec::WEIGHT.with("e2m1 nv").unwrap();
            ways.push(("weight", Rounding::of_weight(self.name, spec, x, width).unwrap()));
            let spec = Spec::ACTIVATION.with("e2m1 nv dynamic").unwrap();
            ways.push(("dynamic", Rounding::of_dynamic(spec, None, x, width)));
        }
        let key = format!("nvfp4.{granularity}");
        let tensor = Cell::tensor_scale(Float::E2m1, peak);
        let want = self.golden.get(&self.at(&format!("{key}.tensor")));
        close(&self.at(&key), &[f64::from(tensor)], want, 1e-7);
        // A step is the product of both scales, so with the tensor's it says the group's.
        let groups = self.golden.floats(&self.at(&format!("{key}.group")));
        let steps: Vec<f64> = groups.iter().map(|g| f64::from(g * tensor)).collect();
        close(&self.at(&key), &steps, self.golden.get(&self.at(&format!("{key}.step"))), 1e-7);
        for (way, rounding) in ways {
            self.check(way, &rounding, &key, "step", None);
        }
    }
}

fn zero_point(cell: &Cell) -> f64 {
    match cell {
        Cell::Int(q) => f64::from(q.zero_point),
        Cell::Float { .. } => panic!("{cell:?} has no zero point"),
    }
}

#[test]
fn every_format_rounds_as_in_numpy() {
    let golden = Golden::open("formats.safetensors");
    let cases = golden.about["cases"].as_object().unwrap();
    let [int, uint, fp, mx] = ["int", "uint", "fp", "mx"].map(|list| golden.names(list));
    assert_eq!((int.len(), uint.len(), fp.len(), mx.len()), (8, 4, 3, 3));
    let (mut integers, mut floats) = (0, 0);
    for (name, granularities) in cases {
        let key = format!("{name}.x");
        let case = Case {
            golden: &golden,
            name,
            x: golden.floats(&key),
            width: *golden.tensors[&key].0.last().unwrap(),
        };
        let mut granularities: Vec<&str> =
            granularities.as_array().unwrap().iter().map(|g| g.as_str().unwrap()).collect();
        assert_eq!(granularities.first(), Some(&"tensor"));
        for granularity in &granularities {
            integers += case.check_integers("int", granularity, &int);
            if case.x.iter().all(|&v| v >= 0.0) {
                integers += case.check_integers("uint", granularity, &uint);
            }
            if !granularity.starts_with("group") {
                floats += case.check_floats(granularity, &fp);
            }
        }
        case.check_mx(&mx);
        granularities.retain(|g| ["tensor", "static"].contains(g));
        granularities.into_iter().for_each(|g| case.check_nvfp4(g));
    }
    assert_eq!(cases.len(), 24);
    assert_eq!((integers, floats), (2048, 672));
    golden.all_used("", 814);
}

/// Of `FORMAT/MARGIN`.
fn search(setting: &str) -> (Format, Range) {
    let (name, margin) = setting.split_once('/').unwrap();
    let range = match margin.split_once('.') {
        None => Range::MseFixed,
        Some((_, m)) => Range::Mse(m.parse().unwrap()),
    };
    (format(name), range)
}

/// A range to 1e-9. Neighbouring candidates of a search lie a hundredth of the range apart, so this tells them apart too.
#[track_caller]
fn same_range(what: &str, got: (f64, f64), want: &[f64]) {
    close(what, &[got.0, got.1], &want[..2], 1e-9);
}

#[test]
fn every_range_of_an_activation_is_that_of_numpy() {
    let golden = Golden::open("ranges.safetensors");
    let percentiles = |list: &str| -> Vec<f64> {
        golden.about[list].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect()
    };
    let mut compared = 0;
    for case in golden.names("a") {
        let batches: Vec<Vec<f32>> = (0..3).map(|b| golden.floats(&format!("a.{case}.batch.{b}"))).collect();
        // After each batch.
        let follow = |method: Range, format: Format| -> Vec<(f64, f64)> {
            let mut observer = Observer::new(method);
            let ranges = batches.iter().map(|batch| {
                observer.update(&case, batch).unwrap();
                observer.range(format).unwrap()
            });
            ranges.collect()
        };
        let last = |method, format| follow(method, format)[2];
        let any = format("int8_asym");
        let mut check = |key: &str, got: (f64, f64), at: usize, size: usize| {
            let key = format!("a.{case}.{key}");
            same_range(&format!("{key} {at}"), got, &golden.get(&key)[at * size..][..size]);
            compared += 1;
        };
        check("min_max", last(Range::MinMax, any), 0, 2);
        follow(Range::Running, any).into_iter().enumerate().for_each(|(i, r)| check("running", r, i, 2));
        for (i, p) in percentiles("running_percentiles").into_iter().enumerate() {
            for (batch, range) in follow(Range::RunningPercentile(p), any).into_iter().enumerate() {
                check("running_percentile", range, 3 * i + batch, 2);
            }
        }
        for (i, p) in percentiles("percentiles").into_iter().enumerate() {
            check("percentile", last(Range::PercentileExact(p), any), i, 2);
            check("sketched", last(Range::Percentile(p), any), i, 2);
        }
        for (i, setting) in golden.names("mse").iter().enumerate() {
            let (format, method) = search(setting);
            check("mse", last(method, format), i, 4);
        }
        for (i, name) in golden.names("kl").iter().enumerate() {
            check("kl", last(Range::Kl, format(name)), i, 4);
        }
    }
    // Of 14 cases: extremes, 3 running, 6 running percentiles, 3 percentiles in two ways, 16 and 4 searches.
    assert_eq!(compared, 14 * (1 + 3 + 6 + 6 + 16 + 4));
    golden.all_used("a.", 14 * 10);
}

#[test]
fn every_searched_range_of_a_weight_is_that_of_numpy() {
    let golden = Golden::open("ranges.safetensors");
    let mut compared = 0;
    for case in golden.names("w") {
        let key = format!("w.{case}.x");
        let (x, width) = (golden.floats(&key), golden.tensors[&key].0[1]);
        let unsigned = x.iter().all(|&v| v >= 0.0);
        for granularity in golden.names("granularities") {
            let grids = parts(&x, width, &granularity);
            let mut check = |kind: &str, index: usize, format: Format, range: Range| {
                let key = format!("w.{case}.{granularity}.{kind}");
                let want = golden.part(&key, index);
                assert_eq!(want.len(), 4 * grids.len());
                let granularity = match granularity.as_str() {
                    "tensor" => Granularity::Tensor,
                    "row" => Granularity::Channel,
                    _ => Granularity::Group(16),
                };
                let spec = Spec { format, granularity, range, ..Spec::WEIGHT };
                let rounding = Rounding::of_weight(&case, spec, &x, width).unwrap();
                assert_eq!(rounding.cells.len(), grids.len(), "{key}");
                for ((values, cell), want) in grids.iter().zip(&rounding.cells).zip(want.chunks(4)) {
                    let what = format!("{key} {index}");
                    same_range(&what, of_values(range, format, values, unsigned), want);
                    let wanted = Cell::of_range(format, (want[0], want[1]), unsigned);
                    close(&what, &[cell.scale()], &[wanted.scale()], 1e-7);
                    compared += 1;
                }
            };
            for (i, setting) in golden.names("mse").iter().enumerate() {
                let (format, range) = search(setting);
                check("mse", i, format, range);
            }
            for (i, name) in golden.names("kl").iter().enumerate() {
                check("kl", i, format(name), Range::Kl);
            }
        }
    }
    // 7 grids of tensors, 20 of rows and 37 of groups, 16 and 4 searches of each.
    assert_eq!(compared, (7 + 20 + 37) * (16 + 4));
    golden.all_used("w.", 7 * (1 + 3 * 2));
    assert_eq!(golden.tensors.len(), 14 * 10 + 7 * (1 + 3 * 2));
}
