"""tmp"""
from __future__ import annotations
import io
from dataclasses import dataclass
import numpy as np
from PIL import Image
class ImageRejected(Exception):
    pass
@dataclass
class DecodedImage:
    pixels: np.ndarray
def decode_image(content):
    try:
        return DecodedImage(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
    except Exception as e:
        raise ImageRejected(str(e))
