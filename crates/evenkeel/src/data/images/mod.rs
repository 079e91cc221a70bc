//! Labelled images as batches of pixels, a pure function of (seed, step) like batches of tokens.
//!
//! [`ImageSource`] is where pictures come from: [`Shapes`], which are drawn, or an [`ImageFolder`] in the layout of ImageNet.
//! [`ImageData`] turns them into the pixels that a model sees: cut, flipped and normalised as [`ImageSettings`] say.
//! [`ImageSampler`] draws training batches from it, and [`ImageBlocks`] goes through a split in order.
//!
//! In an epoch a keyed [`Permutation`] gives the order of the training pictures. Image i of step s is the sample number
//! s · `batch_images` + i, counted through all epochs, and what augmentation does to it is a function of (seed, sample). So
//! resuming at a step is to ask for it, and neither the batch size nor the number of threads changes what is drawn.
//!
//! Pixels are row-major (image, colour, row, column): (v / 255 - mean) / std.

// Windows are drawn of files only.
#[cfg_attr(not(feature = "image"), allow(dead_code))]
mod augment;
mod error;
mod folder;
mod shapes;

pub use augment::Crop;
pub use error::ImagesError;
pub use folder::ImageFolder;
pub use shapes::{CLASSES, Shapes};

use super::dataset::Split;
use super::permutation::Permutation;
use crate::random::key;
use augment::Augmentation;
use rayon::prelude::*;
use std::sync::Arc;

/// Tags that keep the random streams apart.
const ORDER: u64 = 11;
const AUGMENT: u64 = 12;
const CALIBRATION: u64 = 13;

/// Red, green and blue.
pub const COLOURS: usize = 3;

/// A picture of 8 bits for each colour of a pixel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Row after row, red, green and blue of each pixel: height · width · 3 values.
    pub rgb: Vec<u8>,
}

/// Where labelled pictures come from.
#[derive(Clone, Debug)]
pub enum ImageSource {
    /// They are drawn.
    Shapes(Shapes),
    /// Files.
    Folder(ImageFolder),
}

impl ImageSource {
    /// Pictures of a split; 0 if there is no such split.
    pub fn len(&self, split: Split) -> u64 {
        match self {
            Self::Shapes(shapes) => shapes.len(split),
            Self::Folder(folder) => folder.len(split),
        }
    }

    /// Whether a split has no pictures.
    pub fn is_empty(&self, split: Split) -> bool {
        self.len(split) == 0
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        match self {
            Self::Shapes(_) => CLASSES.len(),
            Self::Folder(folder) => folder.classes().len(),
        }
    }

    /// The picture `index` of a split, which is below its length, and its class. `cut` says which part of the original is
    /// taken; shapes have none.
    fn picture(
        &self,
        split: Split,
        index: u64,
        size: [usize; 2],
        cut: &Augmentation,
    ) -> Result<(Picture, u32), ImagesError> {
        match self {
            Self::Shapes(shapes) => Ok(shapes.picture(split, index, size)),
            Self::Folder(folder) => folder.picture(split, index, size, cut),
        }
    }
}

/// What is done to pictures before a model sees them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageSettings {
    /// Height and width.
    pub size: [usize; 2],
    /// Taken from each colour, of values between 0 and 1.
    pub mean: [f64; 3],
    /// What is left is divided by it.
    pub std: [f64; 3],
    /// Which part of a training picture is seen.
    pub crop: Crop,
    /// Whether half of the training pictures are mirrored.
    pub flip: bool,
}

/// Images as a model sees them, with their classes.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageBatch {
    /// Image after image (colour, row, column).
    pub pixels: Vec<f32>,
    /// The class of each.
    pub labels: Vec<u32>,
    /// Colours, height and width.
    pub shape: [usize; 3],
}

/// Labelled images in the form that a model sees.
#[derive(Clone, Debug)]
pub struct ImageData {
    source: ImageSource,
    settings: ImageSettings,
}

impl ImageData {
    /// Pictures of `source`, treated as `settings` say.
    pub fn new(source: ImageSource, settings: ImageSettings) -> Self {
        Self { source, settings }
    }

    /// The pictures.
    pub fn source(&self) -> &ImageSource {
        &self.source
    }

    /// What is done to them.
    pub fn settings(&self) -> &ImageSettings {
        &self.settings
    }

    /// The images of `places`, each an index of the split and, in training, the key of its augmentation.
    ///
    /// # Errors
    /// If a picture cannot be read.
    fn batch(&self, split: Split, places: &[(u64, Option<u64>)]) -> Result<ImageBatch, ImagesError> {
        let [height, width] = self.settings.size;
        let size = COLOURS * height * width;
        let mut pixels = vec![0.0; places.len() * size];
        let labels: Vec<Result<u32, ImagesError>> = pixels
            .par_chunks_mut(size)
            .zip(places)
            .map(|(pixels, &(index, key))| self.image(split, index, key, pixels))
            .collect();
        // The first that failed, whichever thread was faster.
        let labels = labels.into_iter().collect::<Result<Vec<u32>, _>>()?;
        Ok(ImageBatch { pixels, labels, shape: [COLOURS, height, width] })
    }

    /// Writes one image into `pixels`; its class.
    fn image(
        &self,
        split: Split,
        index: u64,
        key: Option<u64>,
        pixels: &mut [f32],
    ) -> Result<u32, ImagesError> {
        let ImageSettings { size, mean, std, crop, flip } = self.settings;
        let augmentation = match key {
            Some(key) => Augmentation::drawn(key, crop, flip),
            None => Augmentation::none(),
        };
        let (picture, label) = self.source.picture(split, index, size, &augmentation)?;
        let [height, width] = size;
        let area = height * width;
        for y in 0..height {
            for x in 0..width {
                // What is beyond the edge is the mean colour, which is 0.
                let Some((from_y, from_x)) = augmentation.origin(y, x, size) else { continue };
                let pixel = &picture.rgb[COLOURS * (from_y * width + from_x)..][..COLOURS];
                for (colour, &value) in pixel.iter().enumerate() {
                    let value = (f64::from(value) / 255.0 - mean[colour]) / std[colour];
                    pixels[colour * area + y * width + x] = value as f32;
                }
            }
        }
        Ok(label)
    }
}

/// Draws training batches.
#[derive(Clone, Debug)]
pub struct ImageSampler {
    data: Arc<ImageData>,
    batch_images: usize,
    seed: u64,
}

impl ImageSampler {
    /// A sampler over the training split, `batch_images` in a batch.
    ///
    /// # Errors
    /// If there are no training images, or `batch_images` is 0.
    pub fn new(data: Arc<ImageData>, batch_images: usize, seed: u64) -> Result<Self, ImagesError> {
        some_images(&data, Split::Train, batch_images)?;
        Ok(Self { data, batch_images, seed })
    }

    /// The images that batches are drawn from.
    pub fn data(&self) -> &Arc<ImageData> {
        &self.data
    }

    /// The batch of a step, counted from 0.
    ///
    /// # Errors
    /// If a picture cannot be read.
    pub fn batch(&self, step: u64) -> Result<ImageBatch, ImagesError> {
        let first = step.wrapping_mul(self.batch_images as u64);
        let places = (0..self.batch_images as u64).map(|i| {
            let sample = first.wrapping_add(i);
            (self.place(self.seed, sample), Some(key(&[AUGMENT, self.seed, sample])))
        });
        self.data.batch(Split::Train, &places.collect::<Vec<_>>())
    }

    /// Batches of training images without augmentation for choosing quantisation ranges, drawn by a key of their own.
    pub fn calibration(
        &self,
        seed: u64,
        batches: usize,
        images: usize,
    ) -> impl ExactSizeIterator<Item = Result<ImageBatch, ImagesError>> + '_ {
        let seed = key(&[CALIBRATION, seed]);
        (0..batches).map(move |batch| {
            let places = (0..images).map(|i| (self.place(seed, (batch * images + i) as u64), None));
            self.data.batch(Split::Train, &places.collect::<Vec<_>>())
        })
    }

    /// The index of a sample in the training split.
    fn place(&self, seed: u64, sample: u64) -> u64 {
        let images = self.data.source.len(Split::Train);
        let (epoch, index) = (sample / images, sample % images);
        // The remainder is below the number of images, so that there is always a place.
        Permutation::new(images, key(&[ORDER, seed, epoch])).get(index).unwrap_or(index)
    }
}

/// The images of a split in order, without augmentation: an iterator over batches, of which the last may have fewer images.
#[derive(Clone, Debug)]
pub struct ImageBlocks {
    data: Arc<ImageData>,
    split: Split,
    batch_images: usize,
    images: u64,
    next: u64,
}

impl ImageBlocks {
    /// The images of `split`, `batch_images` in a batch, and no more of them than `most` (but one at least).
    ///
    /// # Errors
    /// If the split has no images, or `batch_images` is 0.
    pub fn new(
        data: Arc<ImageData>,
        split: Split,
        batch_images: usize,
        most: Option<u64>,
    ) -> Result<Self, ImagesError> {
        some_images(&data, split, batch_images)?;
        let all = data.source.len(split);
        let images = most.map_or(all, |most| all.min(most.max(1)));
        Ok(Self { data, split, batch_images, images, next: 0 })
    }

    /// Images in all.
    pub fn images(&self) -> u64 {
        self.images
    }
}

impl Iterator for ImageBlocks {
    type Item = Result<ImageBatch, ImagesError>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = self.images.min(self.next + self.batch_images as u64);
        let places: Vec<_> = (self.next..end).map(|index| (index, None)).collect();
        self.next = end;
        (!places.is_empty()).then(|| self.data.batch(self.split, &places))
    }
}

fn some_images(data: &ImageData, split: Split, batch_images: usize) -> Result<(), ImagesError> {
    if batch_images == 0 {
        return Err(ImagesError::EmptyBatch);
    }
    if data.source.is_empty(split) {
        return Err(ImagesError::NoImages { split: split.name() });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
