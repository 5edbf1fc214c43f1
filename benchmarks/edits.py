"""The planted edits: what people and platforms do to a photo before uploading it again.

Pure functions, RGB image and random generator in, RGB image out; `descriptors` and `demo_photos` plant them.
Edits that recompress really encode and decode a JPEG.

Source of the kinds: the edits of Pizzi et al., "A Self-Supervised Descriptor for Image Copy Detection",
arXiv 2202.10261, section 5.1, and of the ThreatExchange PDQ evaluation.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

Edit = Callable[[Image.Image, np.random.Generator], Image.Image]

CAPTION_TEXT = (
    "when you finally find the original photo nobody told me about this one weird trick wait for it "
    "best day of summer sale only today meanwhile in the office every single Monday follow for more"
)


def recompress(photo: Image.Image, quality: int) -> Image.Image:
    """The photo after a round trip through a JPEG of this quality."""
    encoded = io.BytesIO()
    photo.save(encoded, "JPEG", quality=quality)
    return Image.open(encoded).convert("RGB")


def half_size(photo: Image.Image, _rng: np.random.Generator) -> Image.Image:
    """Half of the width and height, then JPEG 70."""
    width, height = photo.size
    smaller = photo.resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.BICUBIC)
    return recompress(smaller, quality=70)


def jpeg_30(photo: Image.Image, _rng: np.random.Generator) -> Image.Image:
    """A harsh recompression."""
    return recompress(photo, quality=30)


def blur(photo: Image.Image, _rng: np.random.Generator) -> Image.Image:
    """Gaussian blur with a radius of 1/150 of the longer side."""
    return photo.filter(ImageFilter.GaussianBlur(max(photo.size) / 150))


def color(photo: Image.Image, _rng: np.random.Generator) -> Image.Image:
    """Contrast 1.4, brightness 1.25, saturation 0.6."""
    photo = ImageEnhance.Contrast(photo).enhance(1.4)
    photo = ImageEnhance.Brightness(photo).enhance(1.25)
    return ImageEnhance.Color(photo).enhance(0.6)


def gray(photo: Image.Image, _rng: np.random.Generator) -> Image.Image:
    """No colour at all, still three channels."""
    return photo.convert("L").convert("RGB")


def aspect(photo: Image.Image, _rng: np.random.Generator) -> Image.Image:
    """Stretched to 1.35 of its width."""
    width, height = photo.size
    return photo.resize((round(width * 1.35), height), Image.Resampling.BICUBIC)


def crop(photo: Image.Image, rng: np.random.Generator, *, area: float) -> Image.Image:
    """A window of this share of the area at a random place, in the photo's own aspect ratio."""
    side = math.sqrt(area)
    width, height = max(1, round(photo.width * side)), max(1, round(photo.height * side))
    left = int(rng.integers(0, photo.width - width, endpoint=True))
    top = int(rng.integers(0, photo.height - height, endpoint=True))
    return photo.crop((left, top, left + width, top + height))


def crop_80(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """80 % of the area is left."""
    return crop(photo, rng, area=0.80)


def crop_56(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """56 % of the area is left: three quarters of each side."""
    return crop(photo, rng, area=0.56)


def crop_25(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A quarter of the area is left: half of each side."""
    return crop(photo, rng, area=0.25)


def rotate_10(photo: Image.Image, _rng: np.random.Generator) -> Image.Image:
    """Turned by 10 degrees in the same frame; the corners are black."""
    return photo.rotate(10, Image.Resampling.BICUBIC, fillcolor=(0, 0, 0))


def rotate_90(photo: Image.Image, _rng: np.random.Generator) -> Image.Image:
    """A quarter turn."""
    return photo.transpose(Image.Transpose.ROTATE_90)


def mirror(photo: Image.Image, _rng: np.random.Generator) -> Image.Image:
    """Left and right exchanged."""
    return photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def caption(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A black or white band with two lines of text over the lower 22 % of the photo."""
    edited = photo.copy()
    draw = ImageDraw.Draw(edited)
    band_height = round(photo.height * 0.22)
    top = photo.height - band_height
    paper, ink = (("white", "black"), ("black", "white"))[int(rng.integers(2))]
    draw.rectangle((0, top, photo.width, photo.height), fill=paper)
    font = ImageFont.load_default(size=max(1.0, band_height * 0.36))
    for line in range(2):
        text = _line_of_words(draw, font, max_width=photo.width * 0.94, rng=rng)
        middle = top + band_height * (0.28 + 0.44 * line)
        draw.text((photo.width / 2, middle), text, fill=ink, font=font, anchor="mm")
    return edited


def _line_of_words(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    *,
    max_width: float,
    rng: np.random.Generator,
) -> str:
    """As many random words as fit into `max_width` pixels, at least one."""
    words = CAPTION_TEXT.split()
    text = str(rng.choice(words))
    while draw.textlength(longer := f"{text} {rng.choice(words)}", font=font) <= max_width:
        text = longer
    return text


def border(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A flat border of 20 % of the width on the left and right, of the height above and below.

    White, black or any colour, each as likely.
    """
    wide, high = round(photo.width * 0.2), round(photo.height * 0.2)
    any_color = (int(rng.integers(256)), int(rng.integers(256)), int(rng.integers(256)))
    fill = ((255, 255, 255), (0, 0, 0), any_color)[int(rng.integers(3))]
    framed = Image.new("RGB", (photo.width + 2 * wide, photo.height + 2 * high), fill)
    framed.paste(photo, (wide, high))
    return framed


EDITS: dict[str, Edit] = {
    "half size + JPEG 70": half_size,
    "JPEG 30": jpeg_30,
    "blur": blur,
    "color": color,
    "gray": gray,
    "aspect 1.35": aspect,
    "crop to 80 %": crop_80,
    "crop to 56 %": crop_56,
    "crop to 25 %": crop_25,
    "rotate 10": rotate_10,
    "rotate 90": rotate_90,
    "mirror": mirror,
    "caption": caption,
    "border 20 %": border,
}


def planted(photo: Image.Image, edit: str, *, seed: int, photo_number: int) -> Image.Image:
    """The named edit of a photo; its randomness depends on the seed, the edit and the photo's number alone."""
    rng = np.random.default_rng([seed, list(EDITS).index(edit), photo_number])
    return EDITS[edit](photo, rng)
