"""One decoder process: image files in on standard input, squares of pixels out on standard output.

Started by `decoding_pool` as `python -m service.decode_worker SIZE MAX_BYTES MAX_PIXELS MEMORY_BYTES`. Whatever an
image does to its decoder ends here: memory is limited, no file can be written, and the parent ends what takes too long.

    request   length u32, the file's bytes
    answer    status u8 (0 pixels, 1 rejected), length u32, then SIZE * SIZE * 3 RGB bytes, or `reason` 0x0a `detail`
"""

from __future__ import annotations

import resource
import struct
import sys
from typing import IO, Final

from embed.decoding import ImageLimits, ImageRejected, decode_image
from embed.preprocessing import to_square

REQUEST: Final = struct.Struct("<I")
ANSWER: Final = struct.Struct("<BI")
PIXELS: Final = 0
REJECTED: Final = 1


def main() -> None:
    size, max_bytes, max_pixels, memory_bytes = map(int, sys.argv[1:])
    for kind, limit in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (limit, limit))
    serve(
        sys.stdin.buffer,
        sys.stdout.buffer,
        size=size,
        limits=ImageLimits(max_bytes=max_bytes, max_pixels=max_pixels),
    )


def serve(requests: IO[bytes], answers: IO[bytes], *, size: int, limits: ImageLimits) -> None:
    """Answer until the requests end."""
    while header := requests.read(REQUEST.size):
        status, payload = _decode(requests.read(*REQUEST.unpack(header)), size=size, limits=limits)
        answers.write(ANSWER.pack(status, len(payload)))
        answers.write(payload)
        answers.flush()


def _decode(content: bytes, *, size: int, limits: ImageLimits) -> tuple[int, bytes]:
    try:
        return PIXELS, to_square(decode_image(content, limits, min_side=size), size).tobytes()
    except ImageRejected as rejected:
        return REJECTED, f"{rejected.reason}\n{rejected.detail}".encode()


if __name__ == "__main__":
    main()
