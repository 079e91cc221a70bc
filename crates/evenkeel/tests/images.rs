//! Folders of images: what is listed, what the files decode to, and what is refused. The files are those of
//! `scripts/golden/images.py`; run with `--features image` for all of it.

use evenkeel::data::images::{Crop, ImageBlocks};
use evenkeel::data::{ImageData, ImageFolder, ImageSettings, ImageSource, ImagesError, Split};
use evenkeel::error::Hint;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/images")
}

/// Pixels between 0 and 255.
fn settings(size: [usize; 2]) -> ImageSettings {
    ImageSettings { size, mean: [0.0; 3], std: [1.0 / 255.0; 3], crop: Crop::None, flip: false }
}

fn blocks(root: &Path, split: Split, size: [usize; 2]) -> Result<ImageBlocks, ImagesError> {
    let folder = ImageFolder::open(root)?;
    let data = ImageData::new(ImageSource::Folder(folder), settings(size));
    ImageBlocks::new(Arc::new(data), split, 4, None)
}

/// A folder with one class of one file, a copy.
fn set_of(bytes: &[u8], name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let class = dir.path().join("train/class");
    std::fs::create_dir_all(&class).unwrap();
    std::fs::write(class.join(name), bytes).unwrap();
    dir
}

#[test]
fn classes_and_files_are_listed_by_name() {
    let folder = ImageFolder::open(&golden().join("set")).unwrap();
    assert_eq!(folder.classes(), ["ant", "bee", "cat"]);
    assert_eq!((folder.len(Split::Train), folder.len(Split::Val)), (9, 2));
}

#[test]
fn folders_of_another_layout_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = || ImageFolder::open(dir.path()).unwrap_err();
    assert!(matches!(open(), ImagesError::Layout { .. }));
    std::fs::create_dir_all(dir.path().join("train")).unwrap();
    assert!(matches!(open(), ImagesError::Layout { .. }));
    std::fs::create_dir_all(dir.path().join("train/ant")).unwrap();
    std::fs::write(dir.path().join("train/ant/notes.txt"), "x").unwrap();
    assert!(matches!(open(), ImagesError::EmptyClass { .. }));
    std::fs::write(dir.path().join("train/ant/1.png"), "x").unwrap();
    // There may be no validation images; they are missed when they are asked for.
    let none = blocks(dir.path(), Split::Val, [4, 4]);
    assert!(matches!(none, Err(ImagesError::NoImages { split: "val" })));
    std::fs::create_dir_all(dir.path().join("val/bee")).unwrap();
    let error = open();
    assert!(matches!(&error, ImagesError::UnknownClass { path } if path.ends_with("val/bee")));
    assert!(error.hint().contains("DIR/val/CLASS"), "{}", error.hint());
}

#[cfg(feature = "image")]
#[test]
fn pixels_are_those_of_pillow() {
    let text = std::fs::read_to_string(golden().join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    for [height, width] in [[8, 8], [6, 9]] {
        let mut seen = std::collections::BTreeMap::new();
        for split in [Split::Train, Split::Val] {
            let mut files: Vec<&String> = expected.as_object().unwrap().keys().collect();
            files.retain(|file| file.starts_with(split.name()));
            let batches: Vec<_> =
                blocks(&golden().join("set"), split, [height, width]).unwrap().map(Result::unwrap).collect();
            let labels: Vec<u32> = batches.iter().flat_map(|b| b.labels.clone()).collect();
            let pixels: Vec<f32> = batches.into_iter().flat_map(|b| b.pixels).collect();
            assert_eq!(labels.len(), files.len());
            for ((file, label), image) in files.iter().zip(labels).zip(pixels.chunks(3 * height * width)) {
                assert!(file.contains(["ant", "bee", "cat"][label as usize]), "{file} is class {label}");
                let wanted = expected[file.as_str()][format!("{height}x{width}")].as_array().unwrap();
                // Decoders of JPEG may round differently; resizing in 8 bits or in floating point, too.
                let bound = if file.to_lowercase().contains(".jp") { 3.0 } else { 1.5 };
                let mut off = 0.0f64;
                for (i, value) in wanted.iter().enumerate() {
                    let (pixel, colour) = (i / 3, i % 3);
                    let ours = f64::from(image[colour * height * width + pixel]);
                    off = off.max((ours - value.as_f64().unwrap()).abs());
                }
                assert!(off <= bound, "{file} at {height} x {width} is off by {off}");
                seen.insert((*file).clone(), off);
            }
        }
        assert_eq!(seen.len(), 11);
    }
}

#[cfg(feature = "image")]
#[test]
fn files_that_are_no_whole_images_are_refused_by_name() {
    for name in ["cut.png", "text.png", "empty.jpg", "huge.png"] {
        let dir = set_of(&std::fs::read(golden().join("bad").join(name)).unwrap(), name);
        let read = blocks(dir.path(), Split::Train, [8, 8]).unwrap().next().unwrap();
        let error = read.unwrap_err();
        assert!(matches!(error, ImagesError::Unreadable { .. }), "{name}: {error}");
        let said = error.to_string();
        assert!(said.contains(name) && !said.contains('\n'), "{said}");
    }
}

#[cfg(feature = "image")]
#[test]
fn resized_crops_are_counter_based_and_inside() {
    use evenkeel::data::images::ImageSampler;
    let folder = ImageFolder::open(&golden().join("set")).unwrap();
    let crop = ImageSettings { crop: Crop::Resized, flip: true, ..settings([8, 8]) };
    let data = Arc::new(ImageData::new(ImageSource::Folder(folder), crop));
    let batch = |seed, step| ImageSampler::new(data.clone(), 9, seed).unwrap().batch(step).unwrap();
    assert_eq!(batch(1, 3), batch(1, 3));
    assert_ne!(batch(1, 3), batch(1, 4));
    assert_ne!(batch(1, 3), batch(2, 3));
    assert!(batch(1, 3).pixels.iter().all(|v| (0.0..=255.01).contains(v)));
}

#[cfg(not(feature = "image"))]
#[test]
fn a_build_without_decoders_says_so() {
    let dir = set_of(b"", "1.png");
    let error = blocks(dir.path(), Split::Train, [8, 8]).unwrap().next().unwrap().unwrap_err();
    assert!(matches!(error, ImagesError::NoDecoder { .. }));
    assert!(error.hint().contains("--features image"), "{}", error.hint());
}
