//! Folders of images in the layout of ImageNet: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg.
//!
//! Classes are numbered in the order of their names, images of a split in the order of class and name, so that the numbers
//! depend on nothing but the names. Files are decoded when they are asked for; the rest of a folder is not read. A file that
//! cannot be decoded is an error that names it: leaving it out would change the data without a word.

use super::augment::Augmentation;
use super::error::ImagesError;
use super::{Picture, Split};
use std::path::{Path, PathBuf};

/// A folder of images.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    root: PathBuf,
    classes: Vec<String>,
    train: Vec<(u32, String)>,
    val: Vec<(u32, String)>,
}

impl ImageFolder {
    /// Lists the files of a folder. There may be no `val`.
    ///
    /// # Errors
    /// If it has no training classes, a class without an image, or a validation class that is no training class.
    pub fn open(root: &Path) -> Result<Self, ImagesError> {
        let folder = |split: Split| root.join(split.name());
        if !folder(Split::Train).is_dir() {
            return Err(ImagesError::Layout { path: root.to_path_buf() });
        }
        let classes = names(&folder(Split::Train), |path| path.is_dir())?;
        if classes.is_empty() {
            return Err(ImagesError::Layout { path: root.to_path_buf() });
        }
        let list = |split: Split| {
            let path = folder(split);
            let mut files = Vec::new();
            for class in names(&path, |path| path.is_dir())? {
                let path = path.join(&class);
                let Ok(label) = classes.binary_search(&class) else {
                    return Err(ImagesError::UnknownClass { path });
                };
                let found = names(&path, is_image)?;
                if found.is_empty() {
                    return Err(ImagesError::EmptyClass { path });
                }
                files.extend(found.into_iter().map(|name| (label as u32, name)));
            }
            Ok(files)
        };
        let train = list(Split::Train)?;
        let val = if folder(Split::Val).is_dir() { list(Split::Val)? } else { Vec::new() };
        Ok(Self { root: root.to_path_buf(), classes, train, val })
    }

    /// Names of the classes, in the order of their numbers.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Images of a split.
    pub fn len(&self, split: Split) -> u64 {
        self.files(split).len() as u64
    }

    /// Whether a split has none.
    pub fn is_empty(&self, split: Split) -> bool {
        self.files(split).is_empty()
    }

    fn files(&self, split: Split) -> &[(u32, String)] {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
        }
    }

    /// The image `index` of a split, cut and resized to `size`, and its class.
    pub(super) fn picture(
        &self,
        split: Split,
        index: u64,
        size: [usize; 2],
        cut: &Augmentation,
    ) -> Result<(Picture, u32), ImagesError> {
        // Indices are drawn below the length.
        let (label, name) = &self.files(split)[index as usize];
        let path = self.root.join(split.name()).join(&self.classes[*label as usize]).join(name);
        Ok((decode(&path, size, cut)?, *label))
    }
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    path.is_file() && extension.is_some_and(|e| ["png", "jpg", "jpeg"].contains(&e.as_str()))
}

/// Names of the entries of a folder that are wanted, in order; hidden ones are not looked at.
fn names(dir: &Path, wanted: impl Fn(&Path) -> bool) -> Result<Vec<String>, ImagesError> {
    let io = |source| ImagesError::Io { path: dir.to_path_buf(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if !name.starts_with('.') && wanted(&path) {
            found.push(name.to_string());
        }
    }
    found.sort();
    Ok(found)
}

/// A file as a picture of `size`. Transparency is left out, as is the orientation that a camera may have noted.
#[cfg(feature = "image")]
fn decode(path: &Path, size: [usize; 2], cut: &Augmentation) -> Result<Picture, ImagesError> {
    use image::imageops::{self, FilterType};
    let io = |source| ImagesError::Io { path: path.to_path_buf(), source };
    let unreadable = |e: image::ImageError| ImagesError::Unreadable {
        path: path.to_path_buf(),
        problem: e.to_string().lines().collect::<Vec<_>>().join(" "),
    };
    // By what the file holds: names lie (one "JPEG" of ImageNet is a PNG). The reader's own limit is 512 MB a picture.
    let reader = image::ImageReader::open(path).map_err(io)?.with_guessed_format().map_err(io)?;
    let whole = reader.decode().map_err(unreadable)?.into_rgb8();
    let window = cut.window([whole.height() as usize, whole.width() as usize], size);
    let at = |v: usize| v as u32;
    let part =
        imageops::crop_imm(&whole, at(window.left), at(window.top), at(window.width), at(window.height))
            .to_image();
    let [height, width] = size;
    // A triangle as wide as a pixel of the result: bilinear where it grows, and no aliasing where it shrinks.
    let rgb = imageops::resize(&part, at(width), at(height), FilterType::Triangle).into_raw();
    Ok(Picture { height, width, rgb })
}

#[cfg(not(feature = "image"))]
fn decode(path: &Path, _: [usize; 2], _: &Augmentation) -> Result<Picture, ImagesError> {
    Err(ImagesError::NoDecoder { path: path.to_path_buf() })
}
