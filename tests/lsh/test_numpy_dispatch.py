"""numpy sorts without AVX-512 where that is slower."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lsh import numpy_dispatch
from lsh.numpy_dispatch import DISABLED, avoid_slow_sorting, disabled_feature, is_zen4

ZEN4 = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nflags\t\t: fpu avx2 avx512f\n"
OTHERS = {
    "Intel": ZEN4.replace("AuthenticAMD", "GenuineIntel"),
    "Zen 3, without AVX-512": ZEN4.replace(" avx512f", ""),
    "Zen 5": ZEN4.replace(": 25", ": 26"),
    "ARM": "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd\n",
    "nothing": "",
}


WHEEL = "Wheel-Version: 1.0\nTag: cp311-cp311-{platform}_x86_64\n"


@pytest.fixture(autouse=True)
def _a_published_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_dispatch, "_installed", lambda: ("2.4.6", WHEEL.format(platform="manylinux_2_28")))


def environment_with(tmp_path: Path, cpuinfo: str, **environment: str) -> dict[str, str]:
    """The environment after the choice for a processor that `cpuinfo` describes."""
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo, encoding="utf-8")
    avoid_slow_sorting(environment, cpuinfo=path)
    return environment


def test_zen4_sorts_without_avx512(tmp_path: Path) -> None:
    """The first processor decides, however many there are."""
    assert environment_with(tmp_path, f"{ZEN4}\n" * 100) == {DISABLED: "X86_V4"}


@pytest.mark.parametrize("cpuinfo", OTHERS.values(), ids=OTHERS)
def test_other_processors_keep_all_they_have(tmp_path: Path, cpuinfo: str) -> None:
    """Only Zen 4 is slow at it."""
    assert not is_zen4(cpuinfo)
    assert environment_with(tmp_path, cpuinfo) == {}


@pytest.mark.parametrize(
    ("version", "platform", "expected"),
    [
        ("2.3.5", "manylinux_2_28", "AVX512_SKX"),
        ("2.4.0rc1", "musllinux_1_2", "X86_V4"),
        ("2.10.0", "manylinux_2_28", "X86_V4"),
        ("2.4.6", "linux", None),
    ],
)
def test_only_a_published_numpy_is_told_and_by_its_own_name(version: str, platform: str, expected: str | None) -> None:
    """One that was compiled for this machine would refuse to start without what it was compiled for."""
    assert disabled_feature(version, WHEEL.format(platform=platform)) == expected


@pytest.mark.parametrize("name", [DISABLED, "NPY_ENABLE_CPU_FEATURES"])
def test_what_the_user_says_stays(tmp_path: Path, name: str) -> None:
    """Even nothing; numpy refuses to be told what to use and what not to use at once."""
    assert environment_with(tmp_path, ZEN4, **{name: ""}) == {name: ""}


def test_a_missing_description_changes_nothing(tmp_path: Path) -> None:
    """Not every system has one."""
    environment: dict[str, str] = {}
    avoid_slow_sorting(environment, cpuinfo=tmp_path / "missing")
    assert environment == {}


@pytest.mark.parametrize("package", ["lsh", "batch_jobs.pipeline"])
def test_the_choice_comes_before_numpy(package: str) -> None:
    """A package that loads numpy first would choose in vain."""
    program = f"""
import sys
class Watch:
    def find_spec(self, name, *_):
        if name == "numpy":
            print("lsh.numpy_dispatch" in sys.modules)
sys.meta_path.insert(0, Watch())
import {package}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "True"
