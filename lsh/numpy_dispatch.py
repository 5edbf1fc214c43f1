"""Which vector instructions numpy may use: not AVX-512 on processors where it sorts several times slower than AVX2.

numpy's AVX-512 sort stores compressed vectors to memory, which AMD's Zen 4 does in microcode: it takes five times as
long as AVX2 there (`docs/benchmarks.md`), and sorting is most of what joining costs. numpy chooses while it is loaded,
so this runs before, and numpy is told by the environment alone, which child processes inherit.

Source: https://github.com/numpy/x86-simd-sort/issues/6; https://numpy.org/doc/stable/reference/simd/build-options.html
(runtime dispatch).
"""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping
from importlib import metadata
from pathlib import Path

DISABLED = "NPY_DISABLE_CPU_FEATURES"
_ENABLED = "NPY_ENABLE_CPU_FEATURES"
_CPUINFO = Path("/proc/cpuinfo")
_FIRST_PROCESSOR_CHARACTERS = 8192


def avoid_slow_sorting(environment: MutableMapping[str, str] = os.environ, *, cpuinfo: Path = _CPUINFO) -> None:
    """Keep numpy from AVX-512 where this processor is slow at it, unless the environment already says what to use.

    Without effect where numpy has been loaded, and on systems that do not describe their processor.
    """
    if DISABLED in environment or _ENABLED in environment:
        return
    try:
        with cpuinfo.open(encoding="utf-8") as file:
            description = file.read(_FIRST_PROCESSOR_CHARACTERS)
    except (OSError, UnicodeDecodeError):
        return
    if is_zen4(description) and (feature := disabled_feature(*_installed())) is not None:
        environment[DISABLED] = feature


def is_zen4(cpuinfo: str) -> bool:
    r"""Whether the first processor of `/proc/cpuinfo` is of AMD's family 25 (19h) and has AVX-512; Zen 3 has none.

    >>> is_zen4("vendor_id : AuthenticAMD\ncpu family : 25\nflags : fpu avx2 avx512f")
    True
    """
    fields = dict(re.findall(r"^([^\t:]*?)\s*:\s*(.*?)\s*$", cpuinfo.split("\n\n", maxsplit=1)[0], re.MULTILINE))
    is_family_25 = fields.get("vendor_id") == "AuthenticAMD" and fields.get("cpu family") == "25"
    return is_family_25 and "avx512f" in fields.get("flags", "").split()


def disabled_feature(version: str, wheel: str) -> str | None:
    """What a numpy of this version calls the AVX-512 that it sorts with; None where it may be unable to do without.

    `wheel` is the `WHEEL` file of its installation. A numpy that was compiled for one machine has AVX-512 built in, and
    does not start when told to leave it; published wheels start anywhere.

    >>> disabled_feature("2.4.6", "Tag: cp311-cp311-manylinux_2_28_x86_64")
    'X86_V4'
    """
    if not re.search(r"-(many|musl)linux", wheel):
        return None
    return "X86_V4" if tuple(map(int, version.split(".")[:2])) >= (2, 4) else "AVX512_SKX"


def _installed() -> tuple[str, str]:
    """The version and the `WHEEL` file of the numpy installed, empty where it has none."""
    numpy = metadata.distribution("numpy")
    return numpy.version, numpy.read_text("WHEEL") or ""
