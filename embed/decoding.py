"""Image bytes to RGB pixels, safely: limits come first, and every failure is an `ImageRejected` with its reason.

Sits between the bytes that users bring and `preprocessing`. Imports Pillow and numpy, never Keras. `containers` reads
the size and leaves out all metadata before Pillow sees the file, which then goes straight to the one decoder of its
format: no other plugin is ever tried. Damaged files are told of by exception only, never on stderr.
"""

from __future__ import annotations

import ctypes
import io
import logging
import re
import struct
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, _imaging
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from embed.containers import Container, read_container
from embed.errors import ImageRejected, RejectReason

__all__ = ["ImageHeader", "ImageLimits", "ImageRejected", "RejectReason", "decode_image", "read_header"]

MAX_PIXELS: Final = 178_956_970  # Pillow's own bound, twice `PIL.Image.MAX_IMAGE_PIXELS`
_DECODERS: Final[dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]]] = {
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "TIFF": TiffImageFile,
    "WebP": WebPImageFile,
}
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRUNCATED: Final = re.compile(
    r"truncat|not enough|end of (file|image)|unexpected end|premature|cut off", re.IGNORECASE
)
_UNSUPPORTED: Final = re.compile(r"unsupported|unknown pixel mode|not supported|unknown data organi", re.IGNORECASE)
_PILLOW_WARNINGS: Final = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What is refused before any pixel is decoded; raises ValueError for a limit out of range."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        for name, value, top in (("max_bytes", self.max_bytes, 2**31 - 1), ("max_pixels", self.max_pixels, MAX_PIXELS)):
            if not 1 <= value <= top:
                raise ValueError(f"{name}={value} is out of range 1..{top}")


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Size as displayed, after EXIF orientation, and one of `containers.FORMATS`."""

    width: int
    height: int
    format: str


DEFAULT_LIMITS: Final = ImageLimits()


def read_header(content: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageHeader:
    """Size and format without decoding a pixel; raises ImageRejected."""
    container = _checked_container(content, limits)
    width, height = container.width, container.height
    if container.orientation >= 5:
        width, height = height, width
    return ImageHeader(width, height, container.format)


def decode_image(
    content: bytes, limits: ImageLimits = DEFAULT_LIMITS, *, min_side: int | None = None
) -> NDArray[np.uint8]:
    """`(height, width, 3)` uint8 RGB of the first frame, upright, flattened on white; raises only ImageRejected.

    With `min_side`, a JPEG may come at 1/2, 1/4 or 1/8 of its size as long as neither side falls below `min_side`
    (or its own length); that is several times faster when the pixels are to be made small anyway.
    """
    container = _checked_container(content, limits)
    _silence_pillow()
    try:
        picture = _open(container, limits)
        if min_side is not None and container.format == "JPEG":
            picture.draft(None, (max(1, min_side), max(1, min_side)))
        picture.load()
        rgb = _to_rgb(picture)
        if container.orientation in _TURNS:
            rgb = rgb.transpose(_TURNS[container.orientation])
        return np.asarray(rgb)
    except ImageRejected:
        raise
    except MemoryError as error:
        size = f"{container.width} x {container.height}"
        raise ImageRejected(RejectReason.UNREADABLE, f"not enough memory to decode {size} pixels") from error
    except Image.DecompressionBombError as error:
        raise ImageRejected(RejectReason.TOO_MANY_PIXELS, str(error)) from error
    except Exception as error:
        raise _rejection(container.format, error) from error


def _checked_container(content: bytes, limits: ImageLimits) -> Container:
    if not content:
        raise ImageRejected(RejectReason.EMPTY, "the file has no bytes")
    if len(content) > limits.max_bytes:
        raise ImageRejected(
            RejectReason.TOO_MANY_BYTES, f"{len(content):,} bytes; at most {limits.max_bytes:,} are accepted"
        )
    container = read_container(content)
    _check_size(container.format, container.width, container.height, limits)
    if container.largest_tile > limits.max_pixels:
        raise ImageRejected(RejectReason.TOO_MANY_PIXELS, f"a tile of the TIFF has {container.largest_tile:,} pixels")
    return container


def _check_size(image_format: str, width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise ImageRejected(RejectReason.CORRUPT, f"the {image_format} header gives a size of {width} x {height}")
    if width * height > limits.max_pixels:
        raise ImageRejected(
            RejectReason.TOO_MANY_PIXELS,
            f"{width:,} x {height:,} = {width * height:,} pixels; at most {limits.max_pixels:,} are decoded",
        )


def _silence_pillow() -> None:
    """Keep Pillow's remarks on odd files out of the log; `catch_warnings` is not thread-safe, a first filter is."""
    if warnings.filters[:1] != [_PILLOW_WARNINGS]:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _silence_libtiff() -> None:
    """Take libtiff's error handler away, which prints what Pillow raises anyway; no loss where it cannot be found."""
    logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
    with suppress(OSError, AttributeError):
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


_silence_libtiff()


def _open(container: Container, limits: ImageLimits) -> ImageFile.ImageFile:
    picture = _DECODERS[container.format](io.BytesIO(b"".join(container.essential)))
    _check_size(container.format, *picture.size, limits)
    return picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode of Pillow to RGB, 8 bits, transparent parts white."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        return _deep_gray(picture).convert("RGB")
    if picture.mode == "LAB":
        return _lab_to_rgb(picture)
    if picture.mode in ("RGBa", "La"):
        picture = picture.convert(picture.mode[:-1] + "A")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    return flat


def _deep_gray(picture: Image.Image) -> Image.Image:
    """Gray of more than 8 bits to 8: the full range of the smallest usual depth (1.0, 8, 16 bits) that holds it."""
    values = np.nan_to_num(np.asarray(picture).astype(np.float32), nan=0.0)
    low, high = float(values.min()), float(values.max())
    if picture.mode.startswith("I;16"):
        low, high = 0.0, 65_535.0
    elif low >= 0:
        usual = (1.0, 255.0, 65_535.0) if picture.mode == "F" else (255.0, 65_535.0)
        low, high = 0.0, next((top for top in usual if high <= top), high)
    scaled = (values - low) * (255.0 / max(high - low, 1e-30))
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _lab_to_rgb(picture: Image.Image) -> Image.Image:
    lab, srgb = (ImageCms.ImageCmsProfile(ImageCms.createProfile(space)) for space in ("LAB", "sRGB"))
    return ImageCms.ImageCmsTransform(lab, srgb, "LAB", "RGB").apply(picture)


def _rejection(image_format: str, error: Exception) -> ImageRejected:
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, EOFError | struct.error) or _TRUNCATED.search(message):
        return ImageRejected(RejectReason.TRUNCATED, f"the {image_format} ends too early: {message}")
    if _UNSUPPORTED.search(message):
        return ImageRejected(RejectReason.UNSUPPORTED, f"this kind of {image_format} is not supported: {message}")
    return ImageRejected(RejectReason.CORRUPT, f"the {image_format} cannot be decoded: {message}")
