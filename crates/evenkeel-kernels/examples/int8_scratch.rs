#![allow(missing_docs, clippy::all)]
use evenkeel_kernels::gemm::*;
use evenkeel_kernels::int8::requantise::*;
use evenkeel_kernels::int8::*;
use evenkeel_kernels::peak::*;
use evenkeel_kernels::quant::Grid;
use evenkeel_kernels::threads::Shared;
use std::time::{Duration, Instant};
fn med(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}
fn time(mut f: impl FnMut()) -> f64 {
    let t = Instant::now();
    let mut c = 0;
    while c == 0 || t.elapsed().as_secs_f64() < 0.02 {
        f();
        c += 1;
    }
    t.elapsed().as_secs_f64() / c as f64
}
fn main() {
    let threads: usize = std::env::args().nth(1).map_or(2, |s| s.parse().unwrap());
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().unwrap();
    let sel = std::env::args().nth(2);
    let rounds: usize = std::env::args().nth(3).map_or(7, |s| s.parse().unwrap());
    for path in Path::ALL.into_iter().filter(|p| p.available()) {
        if let Some(s) = &sel {
            if path.name() != s {
                continue;
            }
        } else if path != Path::active() {
            continue;
        }
        println!("{} on {threads} threads", path.name());
        for (k, n) in [(768, 768), (768, 2304), (768, 3072), (3072, 768), (768, 50257)] {
            let wi: Vec<i8> = (0..n * k).map(|i| (i * 37 % 255) as u8 as i8).collect();
            let w = PackedI8::new(&wi, n, k);
            let wf: Vec<f32> = wi.iter().map(|&v| v as f32).collect();
            let wp = Packed::new(Compute::F32, View::new(&wf, n, k).t());
            drop(wf);
            for m in [1usize, 8, 512, 4096] {
                if m == 4096 && n == 50257 {
                    continue;
                }
                let x: Vec<u8> = (0..m * k).map(|i| (i * 131 % 256) as u8).collect();
                let xf: Vec<f32> = x.iter().map(|&v| v as f32).collect();
                let mut c = vec![0f32; m * n];
                let mut q = vec![0u8; m * n];
                let off = vec![3i32; n];
                let sc: Vec<f32> = vec![1e-6; n];
                let b = vec![0.1f32; n];
                let terms =
                    Terms { offset: &off, scale: Scale::Columns(&sc), bias: Some(&b), activation: None };
                let grid = Grid { scale: 0.05, zero_point: 120., low: 0., high: 255. };
                let (mut ti, mut tf, mut tq, mut tr, mut pk) = (vec![], vec![], vec![], vec![], vec![]);
                for _ in 0..rounds {
                    pk.push(Multiply::bounding(Compute::F32).gflops(
                        Threads::All,
                        1,
                        Duration::from_millis(5),
                    ));
                    ti.push(time(|| {
                        gemm_i8_by(path, &x, m, &w, |_, _, s| {
                            std::hint::black_box(s);
                        })
                    }));
                    {
                        let t = Shared::new(&mut q);
                        tq.push(time(|| {
                            gemm_i8_by(path, &x, m, &w, |r, f, s| {
                                let o = unsafe { std::slice::from_raw_parts_mut(t.at(r * n + f), s.len()) };
                                requantise_into(s, terms.columns(f, s.len()), grid, o);
                            })
                        }));
                        tr.push(time(|| {
                            gemm_i8_by(path, &x, m, &w, |r, f, s| {
                                let o = unsafe { std::slice::from_raw_parts_mut(t.at(r * n + f), s.len()) };
                                requantise_by_reciprocal_into(s, terms.columns(f, s.len()), grid, o);
                            })
                        }));
                    }
                    tf.push(time(|| {
                        gemm_packed(View::new(&xf, m, k), &wp, &mut c, Write::Replace, |_, _, _| {})
                    }));
                }
                let op = 2.0 * (m * n * k) as f64 / 1e9;
                let ratio = med(ti.iter().zip(&tf).map(|(i, f)| f / i).collect());
                let share = med(ti.iter().zip(&pk).map(|(i, p)| op / i / (4.0 * p)).collect());
                println!(
                    "{m:5} x {k:5}->{n:5}: {:8.1} GOP/s ({:6.1} GB/s w) {:.0}% of 4x f32 peak, requant {:8.1} recip {:8.1}, f32 {:7.1}, ratio {ratio:.2}, ms {:.4}",
                    op / med(ti.clone()),
                    (n * k) as f64 / 1e9 / med(ti.clone()),
                    share * 100.0,
                    op / med(tq),
                    op / med(tr),
                    op / med(tf),
                    med(ti) * 1e3
                );
            }
        }
    }
}
