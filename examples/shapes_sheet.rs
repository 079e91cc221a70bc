//! Writes a sheet of the pictures that `data.kind = "shapes"` draws, a column for each class, as a PNG file.
//!
//!     cargo run --release --example shapes_sheet -- docs/img/shapes.png
//!
//! The file is written here, byte by byte, since an example should not bring an encoder: a PNG may hold its rows uncompressed.

use evenkeel::data::images::{CLASSES, COLOURS};
use evenkeel::data::{Shapes, Split};

/// Pictures of each class.
const ROWS: usize = 3;
/// Height and width of a picture, and the white between two.
const SIDE: usize = 32;
const GAP: usize = 2;

fn main() -> std::io::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "shapes.png".into());
    let shapes = Shapes { seed: 0, train_images: 20_000, val_images: 2_000 };
    let place = |i: usize| GAP + i * (SIDE + GAP);
    let (height, width) = (place(ROWS), place(CLASSES.len()));
    let mut rgb = vec![255; height * width * COLOURS];
    for row in 0..ROWS {
        for column in 0..CLASSES.len() {
            // Class is index modulo ten.
            let index = (row * CLASSES.len() + column) as u64;
            let (picture, _) = shapes.picture(Split::Train, index, [SIDE, SIDE]);
            for (y, line) in picture.rgb.chunks(SIDE * COLOURS).enumerate() {
                let start = COLOURS * ((place(row) + y) * width + place(column));
                rgb[start..start + line.len()].copy_from_slice(line);
            }
        }
    }
    std::fs::write(path, png(&rgb, height, width))
}

/// A PNG file of 8-bit RGB pixels, not compressed.
fn png(rgb: &[u8], height: usize, width: usize) -> Vec<u8> {
    // Every row begins with the number of its filter, 0 for none.
    let rows: Vec<u8> =
        rgb.chunks(width * COLOURS).flat_map(|row| std::iter::once(0).chain(row.iter().copied())).collect();
    // zlib: its header, stored blocks of at most 65535 bytes with their length and its complement, and Adler-32.
    let mut zlib = vec![0x78, 0x01];
    let blocks = rows.chunks(65_535).count();
    for (i, block) in rows.chunks(65_535).enumerate() {
        let length = block.len() as u16;
        zlib.push(u8::from(i + 1 == blocks));
        zlib.extend(length.to_le_bytes());
        zlib.extend((!length).to_le_bytes());
        zlib.extend(block);
    }
    let (a, b) = rows.iter().fold((1u32, 0u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    zlib.extend((b << 16 | a).to_be_bytes());
    let mut header = Vec::new();
    header.extend((width as u32).to_be_bytes());
    header.extend((height as u32).to_be_bytes());
    // 8 bits, RGB, and the only methods there are.
    header.extend([8, 2, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", header), (b"IDAT", zlib), (b"IEND", Vec::new())] {
        let body = [&kind[..], &data].concat();
        file.extend((data.len() as u32).to_be_bytes());
        file.extend(&body);
        file.extend(crc(&body).to_be_bytes());
    }
    file
}

/// CRC-32 as in the PNG standard, annex D.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { 0xEDB8_8320 ^ (c >> 1) } else { c >> 1 })
    })
}
