"""Small WebP images for the page, about 2 kB each: they are inlined, so their size is the page's size."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cli.report.errors import ReportError

_MEDIA_TYPE_BY_MAGIC = {b"RIFF": "image/webp", b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png"}


def make_thumbnail(pixels: NDArray[np.uint8], side: int = 160, *, quality: int = 40) -> bytes:
    """`(h, w, 3)` uint8 RGB as WebP bytes whose longer side is at most `side` pixels; small images stay as they are."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ReportError(f"cannot make a thumbnail of {pixels.dtype} {pixels.shape}; pass uint8 (h, w, 3) pixels")
    if not 16 <= side <= 1024:
        raise ReportError(f"side={side} is out of range 16..1024")
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=1.0)
    content = io.BytesIO()
    image.save(content, "WEBP", quality=quality, method=2)
    return content.getvalue()


def media_type(thumbnail: bytes) -> str:
    """The media type of WebP, JPEG or PNG bytes, by their first bytes."""
    for magic, name in _MEDIA_TYPE_BY_MAGIC.items():
        if thumbnail.startswith(magic):
            return name
    raise ReportError(f"a thumbnail starts with {thumbnail[:4]!r}; it must be WebP, JPEG or PNG (see make_thumbnail)")
