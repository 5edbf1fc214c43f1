"""Quantizing an embedder: a few photos decide the ranges, and rows stay what they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cli import quantize
from embed.embedder import load_embedder
from embed.embedder_dir import EmbedderSpec, create_embedder_dir
from embed.errors import EmbedderError, TrainingError
from embed.lineage import ModelKind, read_lineages
from embed.views import NUM_VIEWS, load_view_embedder
from embed.whitening import principal_rotation
from tests.photos import synthetic_squares

pytestmark = [
    pytest.mark.tensorflow,
    # Keras saves variables through an `__array__` that numpy 2 would like to have one more parameter.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]

SIZE = 32


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pale pictures: their bytes are far from being all of 0 to 255."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, pixels in enumerate(synthetic_squares(12, size=40)):
        Image.fromarray(pixels // 3 + 100).save(folder / f"{number}.png")
    return folder


def seeded(path: Path, **options: object) -> EmbedderSpec:
    return create_embedder_dir(path, **{"architecture": "vgg_copy", "weights": "seeded", "size": SIZE, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["vgg_copy", "vgg16"])
def test_rows_stay_close_to_float32(tmp_path: Path, photos: Path, architecture: str) -> None:
    """Also of pictures whose bytes go further than those of the photos, and for networks without a projection."""
    from embed.training.quantization import quantize_embedder

    seeded(tmp_path / "first", architecture=architecture)
    made, similarity = quantize_embedder(photos, embedder=str(tmp_path / "first"), output=tmp_path / "made")

    squares = synthetic_squares(5, size=SIZE)
    exact, rounded = (load_embedder(tmp_path / "made", dtype=dtype).embed(squares) for dtype in ("float32", None))
    assert (exact * rounded).sum(axis=1).min() > 0.98
    assert similarity > 0.98
    assert made.default_dtype == "int8"
    assert read_lineages(made.directory)[ModelKind.EMBEDDER].metrics["int8_cosine"] == similarity


def test_views_are_made_by_the_same_network(tmp_path: Path, photos: Path) -> None:
    """It takes squares of any side, so windows of larger ones need no network of their own."""
    from embed.training.quantization import quantize_embedder

    rows = np.random.default_rng(0).standard_normal((300, 256), dtype=np.float32)
    first = seeded(tmp_path / "first", whitening=principal_rotation(rows).first(128), layout_weight=0.1)
    quantize_embedder(photos, embedder=str(first.directory), output=tmp_path / "made")

    exact, rounded = (load_view_embedder(tmp_path / "made", dtype=dtype) for dtype in ("float32", "int8"))
    squares = [square[None] for square in exact.squares(synthetic_squares(1, size=90)[0])]
    cosines = (exact.embed(squares) * rounded.embed(squares)).sum(axis=-1)
    assert cosines.shape == (1, NUM_VIEWS)
    assert cosines.min() > 0.97


def test_what_scored_the_embedder_before_is_left_behind(tmp_path: Path, photos: Path) -> None:
    """A calibration is one of given embeddings; the lineage knows the embedder that was quantized."""
    from embed.embedder_dir import describe_embedder
    from embed.training.quantization import quantize_embedder

    shipped = describe_embedder()
    made, _ = quantize_embedder(photos, embedder="vgg_copy", output=tmp_path / "made")

    assert shipped.calibration is not None
    assert made.calibration is None
    assert made.digest != shipped.digest
    assert read_lineages(made.directory)[ModelKind.EMBEDDER].parents["quantized_from"] == shipped.digest


def test_of_many_photos_some_are_read(tmp_path: Path) -> None:
    """They are spread evenly over the folder, and all are read where there are no more."""
    from embed.training.photos import load_photos

    for number in range(10):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")

    shades = {most: load_photos(tmp_path, size=8, batch_size=1, most=most)[:, 0, 0, 0].tolist() for most in (3, 10, 99)}

    assert shades == {3: [0, 3, 6], 10: list(range(10)), 99: list(range(10))}


def test_nothing_is_overwritten(tmp_path: Path, photos: Path) -> None:
    """An output that exists is refused before any work, and so is an embedder that is none."""
    from embed.training.quantization import quantize_embedder

    with pytest.raises(TrainingError, match="photos already exists"):
        quantize_embedder(photos, embedder="vgg_copy", output=photos)
    with pytest.raises(EmbedderError, match="there is no embedder 'nonsense'"):
        quantize_embedder(photos, embedder="nonsense", output=tmp_path / "made")


def test_the_command_says_how_close_it_came(tmp_path: Path, photos: Path) -> None:
    """`neardup quantize` prints where the embedder is and its mean cosine to float32."""
    seeded(tmp_path / "first")
    arguments = [str(photos), "--embedder", str(tmp_path / "first"), "--output", str(tmp_path / "made")]
    done = CliRunner().invoke(
        quantize.command, [*arguments, "--tracking-uri", f"sqlite:///{tmp_path / 'ml.db'}"], catch_exceptions=False
    )

    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1].startswith(
        f"embedder written to {tmp_path / 'made'}: mean cosine to float32 0."
    )
