"""Small PNG and JPEG files of every common kind, and the pixels that Pillow makes of them.

Writes tests/golden/images/: a folder in the layout of ImageNet, `set/{train,val}/CLASS/FILE`, files that are no whole images
in `bad/`, and `expected.json`, which for each file of the set holds, for two sizes, the 8-bit RGB values of its largest
part in the middle with the proportions of that size, resized with Pillow's bilinear filter (which widens where it shrinks).
The part begins at half of what is cut off, rounded down, and its shorter side is rounded down. Transparency is dropped.
"""

import json
import zlib

import numpy as np
from common import argument_parser
from PIL import Image

SIZES = [(8, 8), (6, 9)]


def picture(height, width, seed):
    """Smooth colours with an edge and some noise: what resizing and JPEG are made for."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    colours = [np.sin(6 * x + 2 * y + seed), np.cos(5 * y - x), (x + y > 0.7) * 1.5 - 0.7]
    values = 127.5 + 90 * np.stack(colours, axis=-1) + rng.normal(0, 4, (height, width, 3))
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def middle(image, height, width):
    """The largest part in the middle with the proportions height : width."""
    w, h = image.size
    if h * width > w * height:
        part = (w, max(1, w * height // width))
    else:
        part = (max(1, h * width // height), h)
    left, top = (w - part[0]) // 2, (h - part[1]) // 2
    return image.crop((left, top, left + part[0], top + part[1]))


def files():
    """Place, image and how it is saved."""
    rgb = [Image.fromarray(picture(h, w, i)) for i, (h, w) in enumerate([(20, 28), (17, 11), (8, 8), (5, 4)])]
    alpha = rgb[0].convert("RGBA")
    alpha.putalpha(Image.fromarray(picture(20, 28, 9)[..., 0]))
    deep = Image.fromarray(picture(12, 12, 5)[..., 0].astype(np.uint16) * 257)
    yield "train/ant/1.png", rgb[0], {}
    yield "train/ant/alpha.png", alpha, {}
    yield "train/ant/palette.png", rgb[1].quantize(16), {}
    yield "train/bee/deep.png", deep, {}
    yield "train/bee/grey.png", rgb[1].convert("L"), {}
    yield "train/bee/small.PNG", rgb[3], {"format": "PNG"}
    yield "train/cat/1.jpg", rgb[0], {"quality": 90}
    yield "train/cat/grey.JPEG", rgb[1].convert("L"), {"quality": 85, "format": "JPEG"}
    yield "train/cat/progressive.jpeg", rgb[1], {"quality": 95, "progressive": True, "subsampling": 0}
    yield "val/ant/1.png", rgb[2], {}
    yield "val/cat/liar.jpg", rgb[2], {"format": "PNG"}


def main():
    out = argument_parser(__doc__).parse_args().out / "images"
    expected = {}
    for place, image, how in files():
        path = out / "set" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **how)
        with Image.open(path) as read:
            # Pillow clips 16 bits; what is meant is their upper half.
            whole = read.convert("RGB") if read.mode != "I;16" else Image.fromarray(
                (np.asarray(read) // 257).astype(np.uint8)
            ).convert("RGB")
        expected[place] = {
            f"{h}x{w}": np.asarray(middle(whole, h, w).resize((w, h), Image.Resampling.BILINEAR)).ravel().tolist()
            for h, w in SIZES
        }
    bad = out / "bad"
    bad.mkdir(parents=True, exist_ok=True)
    whole = (out / "set/train/ant/1.png").read_bytes()
    (bad / "cut.png").write_bytes(whole[: len(whole) // 2])
    (bad / "text.png").write_bytes(b"this is no image\n")
    (bad / "empty.jpg").write_bytes(b"")
    # A header that promises 60000 x 60000 pixels, and nothing after it.
    header = bytearray(whole[:33])
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    (bad / "huge.png").write_bytes(bytes(header) + whole[33:])
    text = json.dumps(expected, sort_keys=True, separators=(",", ":")).replace("},", "},\n")
    (out / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
