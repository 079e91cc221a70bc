//! Images: what is drawn, in which order, and what chance does to it.

use super::*;
use crate::random::{FNV_OFFSET, fnv1a};
use std::collections::BTreeSet;

const SHAPES: Shapes = Shapes { seed: 0, train_images: 60, val_images: 25 };

fn settings(crop: Crop, flip: bool) -> ImageSettings {
    ImageSettings { size: [32, 32], mean: [0.5; 3], std: [0.5; 3], crop, flip }
}

fn data(crop: Crop, flip: bool) -> Arc<ImageData> {
    Arc::new(ImageData::new(ImageSource::Shapes(SHAPES), settings(crop, flip)))
}

fn sampler(crop: Crop, flip: bool, batch: usize, seed: u64) -> ImageSampler {
    ImageSampler::new(data(crop, flip), batch, seed).unwrap()
}

#[test]
fn shapes_are_the_same_on_every_machine() {
    let mut hash = FNV_OFFSET;
    for (split, index) in [(Split::Train, 0), (Split::Train, 7), (Split::Val, 0), (Split::Val, 13)] {
        hash = fnv1a(hash, &SHAPES.picture(split, index, [32, 32]).0.rgb);
    }
    hash = fnv1a(hash, &SHAPES.picture(Split::Train, 4, [16, 24]).0.rgb);
    assert_eq!(format!("{hash:016x}"), "99c963a302b3d902");
}

#[test]
fn shapes_differ_by_index_split_and_seed_and_classes_are_even() {
    let of = |shapes: Shapes, split, index| shapes.picture(split, index, [32, 32]);
    let distinct: BTreeSet<Vec<u8>> = (0..60).map(|i| of(SHAPES, Split::Train, i).0.rgb).collect();
    assert_eq!(distinct.len(), 60);
    assert_ne!(of(SHAPES, Split::Train, 3).0, of(SHAPES, Split::Val, 3).0);
    assert_ne!(of(SHAPES, Split::Train, 3).0, of(Shapes { seed: 1, ..SHAPES }, Split::Train, 3).0);
    let mut counts = [0; 10];
    for index in 0..60 {
        counts[of(SHAPES, Split::Train, index).1 as usize] += 1;
    }
    assert_eq!(counts, [6; 10]);
}

/// Least squares of the classes on the mean colours, their squares and their products, learned from 3000 pictures, finds the
/// class of 1000 others hardly better than chance.
#[test]
fn the_class_cannot_be_read_from_the_mean_colour() {
    let features = |split, index| {
        let (picture, class) = SHAPES.picture(split, index, [16, 16]);
        let mut mean = [0.0f64; 3];
        for pixel in picture.rgb.chunks(3) {
            for (mean, &v) in mean.iter_mut().zip(pixel) {
                *mean += f64::from(v) / (255.0 * 256.0);
            }
        }
        let [r, g, b] = mean.map(|v| v - 0.5);
        ([1.0, r, g, b, r * r, g * g, b * b, r * g, g * b, b * r], class as usize)
    };
    let (mut gram, mut right) = ([[0.0f64; 10]; 10], [[0.0f64; 10]; 10]);
    for (x, class) in (0..3000).map(|i| features(Split::Train, i)) {
        for i in 0..10 {
            for j in 0..10 {
                gram[i][j] += x[i] * x[j];
            }
            right[i][class] += x[i];
        }
    }
    for i in 0..10 {
        gram[i][i] += 1e-6;
        // Gauss and Jordan; the matrix is positive definite.
        let pivot = gram[i][i];
        (gram[i], right[i]) = (gram[i].map(|v| v / pivot), right[i].map(|v| v / pivot));
        for k in (0..10).filter(|&k| k != i) {
            let factor = gram[k][i];
            for j in 0..10 {
                gram[k][j] -= factor * gram[i][j];
                right[k][j] -= factor * right[i][j];
            }
        }
    }
    let found = (0..1000).map(|i| features(Split::Val, i)).filter(|(x, class)| {
        let score = |c: usize| x.iter().zip(&right).map(|(x, row)| x * row[c]).sum::<f64>();
        (0..10).max_by(|&a, &b| score(a).total_cmp(&score(b))) == Some(*class)
    });
    let found = found.count();
    assert!((50..160).contains(&found), "{found} of 1000, and chance is 100");
}

#[test]
fn an_epoch_has_every_image_once_and_epochs_differ() {
    let one = sampler(Crop::None, false, 1, 5);
    let epoch = |n: u64| (60 * n..60 * (n + 1)).map(|step| one.place(5, step)).collect::<Vec<_>>();
    let (first, second) = (epoch(0), epoch(1));
    for order in [&first, &second] {
        assert_eq!(order.iter().copied().collect::<BTreeSet<_>>(), (0..60).collect());
    }
    assert_ne!(first, second);
    let other = sampler(Crop::None, false, 1, 6);
    assert_ne!((0..60).map(|step| other.place(6, step)).collect::<Vec<_>>(), first);
}

#[test]
fn a_batch_depends_on_seed_and_step_alone() {
    let four = sampler(Crop::Padded, true, 4, 9);
    let batch = four.batch(20).unwrap();
    assert_eq!(batch, sampler(Crop::Padded, true, 4, 9).batch(20).unwrap());
    assert_ne!(batch, sampler(Crop::Padded, true, 4, 10).batch(20).unwrap());
    // The same samples one by one: chance belongs to the sample, not to its place in a batch.
    let one = sampler(Crop::Padded, true, 1, 9);
    let apart: Vec<f32> = (80..84).flat_map(|step| one.batch(step).unwrap().pixels).collect();
    assert_eq!(batch.pixels, apart);
    // The same picture in another epoch is cut otherwise.
    let again = (0..60).find(|&i| one.place(9, 60 + i) == one.place(9, 0)).unwrap();
    assert_ne!(one.batch(0).unwrap().pixels, one.batch(60 + again).unwrap().pixels);
}

#[test]
fn flips_mirror_about_half_and_crops_shift() {
    let (plain, flipped) = (sampler(Crop::None, false, 60, 1), sampler(Crop::None, true, 60, 1));
    let (a, b) = (plain.batch(0).unwrap(), flipped.batch(0).unwrap());
    let mirrored = |image: &[f32]| -> Vec<f32> {
        image.chunks(32).flat_map(|row| row.iter().rev().copied().collect::<Vec<_>>()).collect()
    };
    let size = 3 * 32 * 32;
    let mut turned = 0;
    for (a, b) in a.pixels.chunks(size).zip(b.pixels.chunks(size)) {
        assert!(a == b || mirrored(a) == b);
        turned += usize::from(a != b);
    }
    assert!((15..45).contains(&turned), "{turned} of 60");
    let shifted = sampler(Crop::Padded, false, 60, 1).batch(0).unwrap();
    let kept = a.pixels.chunks(size).zip(shifted.pixels.chunks(size)).filter(|(a, b)| a == b).count();
    // One of 81 shifts is none.
    assert!(kept < 8, "{kept} of 60");
    assert_eq!(a.labels, shifted.labels);
}

#[test]
fn pixels_are_normalised_colour_by_colour() {
    let odd = ImageSettings { mean: [0.1, 0.2, 0.3], std: [0.5, 1.0, 2.0], ..settings(Crop::None, false) };
    let data = Arc::new(ImageData::new(ImageSource::Shapes(SHAPES), odd));
    let batch = ImageBlocks::new(data, Split::Val, 2, None).unwrap().next().unwrap().unwrap();
    assert_eq!((batch.shape, batch.labels), ([3, 32, 32], vec![0, 1]));
    let (picture, _) = SHAPES.picture(Split::Val, 1, [32, 32]);
    for (colour, (mean, std)) in [(0.1, 0.5), (0.2, 1.0), (0.3, 2.0)].into_iter().enumerate() {
        let value = f64::from(picture.rgb[3 * (5 * 32 + 9) + colour]) / 255.0;
        let seen = f64::from(batch.pixels[(3 + colour) * 1024 + 5 * 32 + 9]);
        assert!((seen - (value - mean) / std).abs() < 1e-6);
    }
}

#[test]
fn validation_goes_through_in_order_and_calibration_is_drawn_otherwise() {
    let data = data(Crop::Padded, true);
    let blocks = |most| ImageBlocks::new(data.clone(), Split::Val, 10, most).unwrap();
    let batches: Vec<ImageBatch> = blocks(None).map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(|b| b.labels.len()).collect::<Vec<_>>(), [10, 10, 5]);
    assert!(batches.iter().flat_map(|b| &b.labels).enumerate().all(|(i, &label)| label as usize == i % 10));
    assert_eq!((blocks(Some(12)).images(), blocks(Some(0)).images()), (12, 1));
    let sampler = sampler(Crop::Padded, true, 4, 5);
    let drawn = |seed| -> Vec<ImageBatch> { sampler.calibration(seed, 2, 4).map(Result::unwrap).collect() };
    assert_eq!(drawn(5), drawn(5));
    assert_ne!(drawn(5), drawn(6));
    assert_ne!(drawn(5)[0], sampler.batch(0).unwrap());
}

#[test]
fn nothing_to_draw_from_is_refused() {
    let none = ImageSource::Shapes(Shapes { val_images: 0, ..SHAPES });
    let data = Arc::new(ImageData::new(none, settings(Crop::None, false)));
    assert!(matches!(
        ImageBlocks::new(data.clone(), Split::Val, 1, None),
        Err(ImagesError::NoImages { split: "val" })
    ));
    assert!(matches!(ImageSampler::new(data, 0, 0), Err(ImagesError::EmptyBatch)));
}
