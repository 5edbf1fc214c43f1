"""One decoder process: image files in on standard input, squares of pixels out on standard output.

Started by `decoding_pool` as `python -m service.decode_worker SIZE WITH_VIEWS MAX_BYTES MAX_PIXELS MEMORY_BYTES`.
Whatever an image does to its decoder ends here: memory is limited, no file can be written, and the parent ends what
takes too long.

    request   length u32, the file's bytes
    answer    status u8 (0 pixels, 1 rejected), length u32, then the RGB bytes of the squares of `square_sizes`, or
              `reason` 0x0a `detail`
"""

from __future__ import annotations

import resource
import struct
import sys
from typing import IO, Final

from embed.decoding import ImageLimits, ImageRejected, decode_image
from embed.preprocessing import to_square
from embed.views import view_sizes, view_squares

REQUEST: Final = struct.Struct("<I")
ANSWER: Final = struct.Struct("<BI")
PIXELS: Final = 0
REJECTED: Final = 1


def square_sizes(size: int, *, with_views: bool) -> tuple[int, ...]:
    """The sides of the squares that an image becomes: its own, and those of its views."""
    return (size, *view_sizes(size)) if with_views else (size,)


def main() -> None:
    size, with_views, max_bytes, max_pixels, memory_bytes = map(int, sys.argv[1:])
    for kind, limit in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (limit, limit))
    serve(
        sys.stdin.buffer,
        sys.stdout.buffer,
        size=size,
        with_views=bool(with_views),
        limits=ImageLimits(max_bytes=max_bytes, max_pixels=max_pixels),
    )


def serve(requests: IO[bytes], answers: IO[bytes], *, size: int, with_views: bool, limits: ImageLimits) -> None:
    """Answer until the requests end."""
    while header := requests.read(REQUEST.size):
        content = requests.read(*REQUEST.unpack(header))
        status, payload = _decode(content, size=size, with_views=with_views, limits=limits)
        answers.write(ANSWER.pack(status, len(payload)))
        answers.write(payload)
        answers.flush()


def _decode(content: bytes, *, size: int, with_views: bool, limits: ImageLimits) -> tuple[int, bytes]:
    try:
        squares = [to_square(decode_image(content, limits, min_side=size), size)]
        if with_views:
            # Decoded again, for views are larger, and the image itself is to be the same with and without them.
            squares += view_squares(decode_image(content, limits, min_side=max(view_sizes(size))), size)
    except ImageRejected as rejected:
        return REJECTED, f"{rejected.reason}\n{rejected.detail}".encode()
    return PIXELS, b"".join(square.tobytes() for square in squares)


if __name__ == "__main__":
    main()
