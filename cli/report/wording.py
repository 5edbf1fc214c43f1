"""How values are worded on the page: sizes, durations, scores, and file names that may be hostile.

File names come from whoever made the files. They reach the page as text only, and the characters that would let
them lie about themselves (line breaks, terminal controls, the bidirectional overrides of Unicode Technical
Report 36, bytes that are no text) are spelled out instead of obeyed.
"""

from __future__ import annotations

import math
import os
import re
from urllib.parse import quote

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_RESERVED_IN_URLS = ":/?#[]@!$&'()*+,;=%~"


def visible(text: str) -> str:
    r"""`text` with every character that has no shape of its own spelled out.

    >>> visible("photo\u202egpj.exe")
    'photo‹U+202E›gpj.exe'
    """
    return _UNPRINTABLE.sub(lambda match: f"‹U+{ord(match[0]):04X}›", text)


def file_name(uri: str) -> str:
    """The last part of a path or URL.

    >>> file_name("s3://photos/2019/beach.jpg")
    'beach.jpg'
    """
    return uri.rstrip("/").rpartition("/")[2]


def link_to(uri: str) -> str | None:
    """An address that a browser may open for `uri`, or None: only files and web pages, never `javascript:`.

    >>> link_to("/photos/a b.jpg")
    'file:///photos/a%20b.jpg'
    """
    try:
        raw = os.fsencode(uri)
    except UnicodeEncodeError:
        return None
    if uri.startswith("/"):
        return "file://" + quote(raw)
    if uri.startswith("file:/"):
        return "file:///" + quote(raw.removeprefix(b"file:").lstrip(b"/"), safe=_RESERVED_IN_URLS)
    if uri.startswith(("http://", "https://")):
        return quote(raw, safe=_RESERVED_IN_URLS)
    return None


def format_bytes(num_bytes: int) -> str:
    """A size in decimal units, two digits or more.

    >>> format_bytes(340), format_bytes(5_234_000), format_bytes(340_000)
    ('340 B', '5.2 MB', '340 kB')
    """
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if round(value) < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}" if unit != "B" and round(value, 1) < 10 else f"{value:,.0f} {unit}"


def format_seconds(seconds: float) -> str:
    """A duration in at most two units.

    >>> format_seconds(0.42), format_seconds(48.2), format_seconds(192), format_seconds(7500)
    ('0.4 s', '48 s', '3 min 12 s', '2 h 5 min')
    """
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_score(score: float) -> str:
    """A score with three decimals, rounded down, so that only equal images read 1.000.

    >>> format_score(0.98765), format_score(0.99999), format_score(1.0)
    ('0.987', '0.999', '1.000')
    """
    single_precision_noise = 1e-3
    return f"{math.floor(score * 1000 + single_precision_noise) / 1000:.3f}"


def format_share(part: int, whole: int) -> str:
    """`part` of `whole` in per cent.

    >>> format_share(1, 3), format_share(1, 1000), format_share(1, 0)
    ('33 %', '0.1 %', '0 %')
    """
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.1f} %" if 0 < percent < 9.95 else f"{percent:.0f} %"
