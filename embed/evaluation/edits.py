"""The planted edits: what people and platforms do to a photo before uploading it again.

Pure functions, RGB image and random generator in, RGB image out. Edits that recompress really encode and decode a
JPEG. `EDITS` are the fourteen that descriptors are compared on, `HARDER_EDITS` what else happens to photos.

Source of the kinds: the edits of Pizzi et al., "A Self-Supervised Descriptor for Image Copy Detection",
arXiv 2202.10261, section 5.1, and of the ThreatExchange PDQ evaluation.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
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


def _homography(corners: NDArray[np.float64], *, width: int, height: int) -> list[float]:
    """Pillow's eight coefficients: points of the output to points of a `width` x `height` image at `corners` `(4, 2)`.

    Corners run clockwise from the upper left. Source: Hartley and Zisserman, "Multiple View Geometry", section 4.1.
    """
    targets = [(0, 0), (width, 0), (width, height), (0, height)]
    equations, values = [], []
    for (x, y), (u, v) in zip(corners.tolist(), targets, strict=True):
        equations += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    coefficients: list[float] = np.linalg.solve(np.array(equations, float), np.array(values, float)).tolist()
    return coefficients


def rephotograph(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A photo of the photo: framed, on a wall, seen at an angle, with glare, a colour cast, blur, noise and JPEG 80."""
    framed = _framed(photo, rng)
    width, height = framed.size
    canvas = (round(width * 1.25), round(height * 1.25))
    margin = np.array([(canvas[0] - width) / 2, (canvas[1] - height) / 2])
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], float) + margin
    corners += rng.uniform(-0.08, 0.08, (4, 2)) * (width, height)
    coefficients = _homography(corners, width=width, height=height)
    wall = Image.new("RGB", canvas, tuple(int(value) for value in rng.integers(60, 240, 3)))
    seen = framed.transform(canvas, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)
    mask = Image.new("L", framed.size, 255).transform(
        canvas, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR
    )
    wall.paste(seen, (0, 0), mask)
    pixels = np.asarray(wall.filter(ImageFilter.GaussianBlur(max(canvas) / 400)), np.float32)
    pixels = pixels * rng.uniform(0.85, 1.12, 3).astype(np.float32)
    x, y = np.meshgrid(np.linspace(0, 1, canvas[0]), np.linspace(0, 1, canvas[1]))
    center, radius = rng.uniform(0.2, 0.8, 2), rng.uniform(0.1, 0.3)
    glare = np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * radius**2)) * rng.uniform(0.2, 0.7)
    pixels = pixels + (255.0 - pixels) * glare[..., None]
    pixels = pixels + rng.normal(0.0, 5.0, pixels.shape)
    return recompress(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), quality=80)


def _framed(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The photo in a picture frame of 3 to 8 % of its longer side."""
    band = max(1, round(max(photo.size) * rng.uniform(0.03, 0.08)))
    frame = Image.new("RGB", (photo.width + 2 * band, photo.height + 2 * band), tuple(rng.integers(0, 160, 3).tolist()))
    frame.paste(photo, (band, band))
    return frame


def screenshot(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The photo as a phone's screen shows it: bars above and below with text and buttons, JPEG 85."""
    dark = bool(rng.integers(2))
    paper, ink = ((18, 18, 18), (235, 235, 235)) if dark else ((250, 250, 250), (25, 25, 25))
    top, bottom = round(photo.height * rng.uniform(0.1, 0.25)), round(photo.height * rng.uniform(0.15, 0.35))
    screen = Image.new("RGB", (photo.width, photo.height + top + bottom), paper)
    screen.paste(photo, (0, top))
    draw = ImageDraw.Draw(screen)
    font = ImageFont.load_default(size=max(1.0, photo.height * 0.05))
    for line in (top * 0.5, top + photo.height + bottom * 0.3, top + photo.height + bottom * 0.7):
        text = _line_of_words(draw, font, max_width=photo.width * 0.7, rng=rng)
        draw.text((photo.width * 0.12, line), text, fill=ink, font=font, anchor="lm")
        radius = photo.width * 0.03
        draw.ellipse((photo.width * 0.05 - radius, line - radius, photo.width * 0.05 + radius, line + radius), fill=ink)
    return recompress(screen, quality=85)


def sticker(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Three round stickers, each a fifth of the shorter side across."""
    edited = photo.copy()
    draw = ImageDraw.Draw(edited)
    radius = min(photo.size) * 0.1
    for _ in range(3):
        x, y = rng.uniform(radius, photo.width - radius), rng.uniform(radius, photo.height - radius)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return edited


def sepia(photo: Image.Image, _rng: np.random.Generator) -> Image.Image:
    """The brown tone of old prints, with a vignette."""
    gray_tone = np.asarray(photo.convert("L"), np.float32)[..., None] * np.array([1.07, 0.87, 0.66], np.float32)
    x, y = np.meshgrid(np.linspace(-1, 1, photo.width), np.linspace(-1, 1, photo.height))
    vignette = 1.0 - 0.35 * np.clip(x**2 + y**2 - 0.4, 0, 1)
    return Image.fromarray(np.clip(gray_tone * vignette[..., None], 0, 255).astype(np.uint8))


def rechained(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shared on and on: four times made smaller or larger and encoded as a JPEG of 50 to 80."""
    edited = photo
    for _ in range(4):
        scale = rng.uniform(0.6, 1.4) * math.sqrt(photo.width * photo.height / (edited.width * edited.height))
        size = (max(1, round(edited.width * scale)), max(1, round(edited.height * scale)))
        edited = recompress(edited.resize(size, Image.Resampling.BILINEAR), quality=int(rng.integers(50, 81)))
    return edited


HARDER_EDITS: dict[str, Edit] = {
    "re-photographed": rephotograph,
    "screenshot": screenshot,
    "stickers": sticker,
    "sepia": sepia,
    "shared four times": rechained,
}
ALL_EDITS: Final = EDITS | HARDER_EDITS
EDIT_SETS: Final = {"default": tuple(EDITS), "harder": tuple(HARDER_EDITS), "all": tuple(ALL_EDITS)}


def planted(photo: Image.Image, edit: str, *, seed: int, photo_number: int) -> Image.Image:
    """The named edit of a photo; its randomness depends on the seed, the edit and the photo's number alone."""
    rng = np.random.default_rng([seed, list(ALL_EDITS).index(edit), photo_number])
    return ALL_EDITS[edit](photo, rng)
