//! Drawn pictures of ten classes, for training without any files: five shapes, each in two textures.
//!
//! A picture is a function of (seed, split, index). Place, size and tilt of the shape, the direction and period of its
//! texture, all colours, the background, smaller discs and bars that belong to no class, and the noise are drawn. Colours
//! know nothing of the class, and a shape is as light as it is dark, so that the mean colour tells nothing. Class is index
//! modulo ten, so that every stretch of indices is balanced. With shapes turned all the way round and colours that only
//! differ, a small ViT learns nothing in a few hundred steps; with these it learns the textures first and then the shapes.
//!
//! Everything is made of additions, products, quotients and square roots, whose results are the same on every machine.

use super::{Picture, Split};
use crate::random::{key, uniform};

/// Names of the classes, in the order of their numbers.
pub const CLASSES: [&str; 10] = [
    "striped disc",
    "checked disc",
    "striped square",
    "checked square",
    "striped triangle",
    "checked triangle",
    "striped cross",
    "checked cross",
    "striped ring",
    "checked ring",
];

/// The stream of random numbers that pictures are drawn from.
const DRAWING: u64 = 21;

/// How many pictures there are of each split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shapes {
    /// Seed of the pictures: another seed is another data set.
    pub seed: u64,
    /// Training pictures.
    pub train_images: u64,
    /// Validation pictures.
    pub val_images: u64,
}

impl Shapes {
    /// Pictures of a split.
    pub fn len(&self, split: Split) -> u64 {
        match split {
            Split::Train => self.train_images,
            Split::Val => self.val_images,
        }
    }

    /// Whether a split has none.
    pub fn is_empty(&self, split: Split) -> bool {
        self.len(split) == 0
    }

    /// The picture `index` of a split, (height, width), and its class.
    pub fn picture(&self, split: Split, index: u64, [height, width]: [usize; 2]) -> (Picture, u32) {
        let class = (index % CLASSES.len() as u64) as u32;
        let of_split = match split {
            Split::Train => 0,
            Split::Val => 1,
        };
        let key = key(&[DRAWING, self.seed, of_split, index]);
        let scene = Scene::drawn(&mut Draws { key, next: 0 }, class, height, width);
        let mut noise = Draws { key: crate::random::mix(key ^ DRAWING), next: 0 };
        let side = height.min(width) as f64;
        let mut rgb = Vec::with_capacity(3 * height * width);
        for row in 0..height {
            for column in 0..width {
                // The mean of four points of the pixel.
                let mut sum = [0.0; 3];
                for (dy, dx) in [(0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)] {
                    let colour = scene.colour([(column as f64 + dx) / side, (row as f64 + dy) / side]);
                    for (sum, value) in sum.iter_mut().zip(colour) {
                        *sum += 0.25 * value;
                    }
                }
                rgb.extend(
                    sum.map(|value| (255.0 * (value + NOISE * noise.normal()) + 0.5).clamp(0.0, 255.0) as u8),
                );
            }
        }
        (Picture { height, width, rgb }, class)
    }
}

/// Standard deviation of the noise on every colour of every pixel, of 1.
const NOISE: f64 = 0.05;

/// How far shapes and their textures are turned: the tangent of half the angle, 23 degrees.
const TILT: f64 = 0.2;

/// Random numbers in a row.
struct Draws {
    key: u64,
    next: u64,
}

impl Draws {
    fn one(&mut self) -> f64 {
        self.next += 1;
        uniform(self.key, self.next - 1)
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.one()
    }

    /// Mean 0 and variance 1, nearly normal: the sum of three even draws, twice as wide.
    fn normal(&mut self) -> f64 {
        2.0 * (self.one() + self.one() + self.one() - 1.5)
    }

    /// A direction, by the rational points of the circle: all of them but for half a turn if `most` is 1, less if it is less.
    fn direction(&mut self, most: f64) -> [f64; 2] {
        // Not quite evenly, which nothing here needs.
        let t = self.between(-most, most);
        [(1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t)]
    }

    fn colour(&mut self, low: f64, high: f64) -> [f64; 3] {
        [self.between(low, high), self.between(low, high), self.between(low, high)]
    }
}

/// Two colours in turn along one direction, or two.
struct Pattern {
    along: [f64; 2],
    period: f64,
    phase: [f64; 2],
    colours: [[f64; 3]; 2],
    checked: bool,
}

impl Pattern {
    fn colour(&self, [x, y]: [f64; 2]) -> [f64; 3] {
        let [c, s] = self.along;
        let half = |at: f64, phase: f64| {
            let turn = at / self.period + phase;
            turn - turn.floor() < 0.5
        };
        let first = half(c * x + s * y, self.phase[0]);
        let second = self.checked && half(c * y - s * x, self.phase[1]);
        self.colours[usize::from(first != second)]
    }
}

/// Something small in one colour.
struct Distractor {
    centre: [f64; 2],
    along: [f64; 2],
    /// Half its length and half its thickness; a disc if they are equal.
    half: [f64; 2],
    colour: [f64; 3],
    in_front: bool,
}

impl Distractor {
    fn covers(&self, at: [f64; 2]) -> bool {
        let [u, v] = local(at, self.centre, self.along);
        let [long, thick] = self.half;
        if long == thick { u * u + v * v <= long * long } else { u.abs() <= long && v.abs() <= thick }
    }
}

/// All that is drawn; lengths are shares of the smaller side.
struct Scene {
    shape: u32,
    centre: [f64; 2],
    along: [f64; 2],
    radius: f64,
    fill: Pattern,
    background: [[f64; 3]; 2],
    slope: [f64; 2],
    wave: Pattern,
    distractors: Vec<Distractor>,
}

impl Scene {
    fn drawn(draws: &mut Draws, class: u32, height: usize, width: usize) -> Self {
        let side = height.min(width) as f64;
        let room = [width as f64 / side, height as f64 / side];
        let radius = draws.between(0.26, 0.4);
        let margin = 0.9 * radius;
        let centre = room.map(|room| draws.between(margin, room - margin));
        let along = draws.direction(TILT);
        let fill = Pattern {
            along: draws.direction(TILT),
            period: draws.between(0.18, 0.28),
            phase: [draws.one(), draws.one()],
            // As light and as dark as the ground is in between, so that a large shape does not change the mean.
            colours: [draws.colour(0.55, 1.0), draws.colour(0.0, 0.45)],
            checked: class % 2 == 1,
        };
        let background = [draws.colour(0.2, 0.8), draws.colour(0.2, 0.8)];
        let slope = draws.direction(1.0);
        let strength = draws.between(0.0, 0.2);
        let wave = Pattern {
            along: draws.direction(1.0),
            period: draws.between(0.2, 0.6),
            phase: [draws.one(), draws.one()],
            colours: [[0.0; 3], draws.colour(-0.5, 0.5).map(|value| strength * value)],
            checked: draws.one() < 0.5,
        };
        let count = 1 + (draws.one() * 3.0) as usize;
        let distractors = (0..count).map(|_| {
            let long = draws.between(0.04, 0.09);
            let bar = draws.one() < 0.5;
            Distractor {
                centre: room.map(|room| draws.between(0.0, room)),
                along: draws.direction(1.0),
                half: if bar { [2.0 * long, 0.4 * long] } else { [long, long] },
                colour: draws.colour(0.0, 1.0),
                in_front: draws.one() < 0.3,
            }
        });
        let distractors = distractors.collect();
        Self { shape: class / 2, centre, along, radius, fill, background, slope, wave, distractors }
    }

    fn colour(&self, at: [f64; 2]) -> [f64; 3] {
        let over = |in_front: bool| {
            self.distractors.iter().rev().find(|d| d.in_front == in_front && d.covers(at)).map(|d| d.colour)
        };
        if let Some(colour) = over(true) {
            return colour;
        }
        let [u, v] = local(at, self.centre, self.along).map(|x| x / self.radius);
        if covers(self.shape, u, v) {
            return self.fill.colour(at);
        }
        over(false).unwrap_or_else(|| {
            let [x, y] = at;
            let share = 0.5 + 0.5 * (self.slope[0] * (x - 0.5) + self.slope[1] * (y - 0.5));
            let wave = self.wave.colour(at);
            let [a, b] = self.background;
            [0, 1, 2].map(|i| a[i] + share * (b[i] - a[i]) + wave[i])
        })
    }
}

/// A point as seen from a centre, along a direction.
fn local([x, y]: [f64; 2], [cx, cy]: [f64; 2], [c, s]: [f64; 2]) -> [f64; 2] {
    let (dx, dy) = (x - cx, y - cy);
    [c * dx + s * dy, c * dy - s * dx]
}

/// Whether a shape of about unit size covers a point: disc, square, triangle, cross, ring.
fn covers(shape: u32, u: f64, v: f64) -> bool {
    let square = u * u + v * v;
    match shape {
        0 => square <= 1.0,
        1 => u.abs() <= 0.9 && v.abs() <= 0.9,
        // Three sides at a distance of 0.62 from the middle; 0.866 is the sine of 60 degrees.
        2 => v >= -0.62 && 0.866 * u.abs() + 0.5 * v <= 0.62,
        3 => u.abs().min(v.abs()) <= 0.36 && u.abs().max(v.abs()) <= 1.1,
        _ => (0.3..=1.21).contains(&square),
    }
}
