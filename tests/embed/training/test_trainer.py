"""The trainer on a handful of tiny photos: it learns numbers, resumes exactly and refuses what does not fit."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from embed.embedder_dir import EmbedderSpec, create_embedder_dir
from embed.errors import TrainingError, TrainingInterrupted

if TYPE_CHECKING:
    from embed.training.trainer import TrainingSettings

pytestmark = [
    pytest.mark.tensorflow,
    # Keras saves variables through an `__array__` that numpy 2 would like to have one more parameter.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]


def tiny(**changes: Any) -> TrainingSettings:
    from embed.training.trainer import TrainingSettings

    settings = TrainingSettings(
        size=20,
        view_size=18,
        dim=8,
        source_size=24,
        epochs=3,
        batch_size=8,
        warmup_steps=2,
        dtype="float32",
    )
    return dataclasses.replace(settings, **changes)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty pictures of noise, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(20):
        pixels = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 30)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("not a photo")
    return folder


@pytest.fixture
def first(tmp_path: Path) -> EmbedderSpec:
    """An embedder of random weights, to start from."""
    from embed.architectures import seed_weights, vgg_copy
    from embed.training.weights_file import save_weights

    network = vgg_copy(size=18, dim=8)
    seed_weights(network, 0)
    save_weights(network, tmp_path / "first.weights.h5")
    return create_embedder_dir(
        tmp_path / "first", architecture="vgg_copy", weights=tmp_path / "first.weights.h5", size=18, dim=8
    )


def weights(directory: Path) -> list[Any]:
    from embed.architectures import vgg_copy

    network = vgg_copy(size=18, dim=8)
    network.load_weights(directory / "vgg_copy.weights.h5")
    return list(network.get_weights())


def stop_after(epochs: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    from embed.training import checkpoints

    save = checkpoints.save

    def save_then_stop(folder: Path, model: Any, epoch: int) -> None:
        save(folder, model, epoch)
        if epoch == epochs:
            raise error

    monkeypatch.setattr(checkpoints, "save", save_then_stop)


def test_a_stopped_training_resumes_to_the_same_weights(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by Ctrl-C after an epoch and run again, training ends with the undisturbed weights, in an embedder."""
    from embed.training.trainer import train_embedder

    whole = train_embedder(photos, tmp_path / "c1", tiny(), output=tmp_path / "whole", verbose=0)
    with monkeypatch.context() as patch:
        stop_after(1, patch, KeyboardInterrupt())
        with pytest.raises(TrainingInterrupted, match=r"after 1 of 3 epochs.*same command again"):
            train_embedder(photos, tmp_path / "c2", tiny(), output=tmp_path / "resumed", verbose=0)
    assert not (tmp_path / "resumed").exists()

    resumed = train_embedder(photos, tmp_path / "c2", tiny(), output=tmp_path / "resumed", verbose=0)

    assert (whole.size, whole.dim, whole.layout_weight) == (20, 8, 0.1)
    for expected, actual in zip(weights(whole.directory), weights(resumed.directory), strict=True):
        assert np.isfinite(actual).all()
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_the_loss_of_a_tiny_run_is_finite(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One epoch in bfloat16 reports a loss that is a number."""
    from embed.training.trainer import train_embedder

    settings = tiny(epochs=1, dtype="bfloat16")
    train_embedder(photos, tmp_path / "c", settings, output=tmp_path / "e", verbose=2)

    loss = float(capsys.readouterr().out.rsplit("loss: ", 1)[1])
    assert math.isfinite(loss)


def test_an_objective_is_the_loss_of_its_parts() -> None:
    """Views that find each other, one threshold for all pairs, or both."""
    from embed.architectures import vgg_copy
    from embed.training.loss import contrastive_loss, threshold_loss
    from embed.training.trainer import CopyDetector, Objective

    rows = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    network = vgg_copy(size=18, dim=8)
    settings = tiny(threshold=0.6, threshold_width=0.1, false_weight=2.0)
    losses = {
        objective: float(
            CopyDetector(network, dataclasses.replace(settings, objective=objective)).compute_loss(y_pred=rows)
        )
        for objective in Objective
    }
    contrastive = float(contrastive_loss(rows[:4], rows[4:], temperature=0.08, entropy_weight=0.5))
    threshold = float(threshold_loss(rows[:4], rows[4:], threshold=0.6, width=0.1, false_weight=2.0))

    assert losses == pytest.approx(
        {"contrastive": contrastive, "both": contrastive + threshold, "threshold": threshold}, rel=1e-5
    )


def test_a_trained_embedder_says_where_it_comes_from(
    tmp_path: Path, photos: Path, first: EmbedderSpec, tracking_uri: str
) -> None:
    """Photos, settings, first weights and final loss stand in the directory and in the tracking store."""
    from embed.lineage import ModelKind, read_lineages
    from embed.tracking import find_models
    from embed.training.photos import load_photos, photos_sha256
    from embed.training.trainer import train_embedder

    trained = train_embedder(
        photos,
        tmp_path / "c1",
        tiny(epochs=1, seed=5),
        output=tmp_path / "second",
        start_from=first.directory,
        tracking_uri=tracking_uri,
        verbose=0,
    )

    lineage = read_lineages(trained.directory)[ModelKind.EMBEDDER]
    assert (lineage.digest, lineage.seed) == (trained.digest, 5)
    assert lineage.parents == {"start_from": first.digest}
    assert lineage.data == {"photos": photos_sha256(load_photos(photos, size=24, batch_size=8))}
    assert lineage.parameters.items() >= {"epochs": 1, "num_photos": 20, "dtype": "float32"}.items()
    assert math.isfinite(lineage.metrics["final_loss"])
    assert [model.lineage for model in find_models(tracking_uri=tracking_uri, digest_prefix=trained.digest)] == [
        lineage
    ]


def test_frozen_statistics_leave_batch_norm_as_it_was(tmp_path: Path, photos: Path, first: EmbedderSpec) -> None:
    """A training that goes on from an embedder changes its kernels, and its means and variances only if not frozen."""
    from embed.training.trainer import train_embedder

    def moved(output: str, *, frozen: bool) -> tuple[bool, bool]:
        settings = tiny(epochs=1, seed=1, frozen_statistics=frozen)
        trained = train_embedder(
            photos, tmp_path / f"c-{output}", settings, output=tmp_path / output, start_from=first.directory, verbose=0
        )
        changed = [
            not np.array_equal(before, after)
            for before, after in zip(weights(first.directory), weights(trained.directory), strict=True)
        ]
        return changed[0], changed[3]

    assert moved("frozen", frozen=True) == (True, False)
    assert moved("free", frozen=False) == (True, True)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, photos: Path) -> None:
    """A checkpoint that cannot be read is an error that names it; training does not silently start over."""
    from embed.training.trainer import train_embedder

    with pytest.MonkeyPatch.context() as patch:
        stop_after(1, patch, KeyboardInterrupt())
        with pytest.raises(TrainingInterrupted):
            train_embedder(photos, tmp_path / "c", tiny(), output=tmp_path / "e", verbose=0)
    (tmp_path / "c" / "epoch-00001.weights.h5").write_bytes(b"damaged")

    with pytest.raises(TrainingError, match=r"epoch-00001\.weights\.h5 is damaged.*delete it"):
        train_embedder(photos, tmp_path / "c", tiny(), output=tmp_path / "e", verbose=0)


def test_a_full_disk_is_a_training_error(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An OSError while saving tells what to do, and the earlier checkpoints stay."""
    from embed.training.trainer import train_embedder

    stop_after(2, monkeypatch, OSError(28, "No space left on device"))

    with pytest.raises(TrainingError, match=r"No space left on device.*same command again"):
        train_embedder(photos, tmp_path / "c", tiny(), output=tmp_path / "e", verbose=0)
    assert [path.name for path in (tmp_path / "c").glob("epoch-*")] == ["epoch-00002.weights.h5"]


def test_an_existing_output_is_refused_before_any_work(tmp_path: Path) -> None:
    """Hours of training never end at a directory that was there all along."""
    from embed.training.trainer import train_embedder

    with pytest.raises(TrainingError, match="already exists"):
        train_embedder(tmp_path / "none", tmp_path / "c", tiny(), output=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, r"epochs=0 is out of range 1\.\.99999"),
        ({"learning_rate": float("nan")}, "learning_rate=nan is out of range"),
        ({"view_size": 20}, "view_size=20 is not a multiple of 6"),
        ({"view_size": 30}, "source_size=24 is below view_size=30"),
        ({"dtype": "float16"}, "dtype='float16' is unknown"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    """Each setting is checked when it is made, with its value and range."""
    with pytest.raises(TrainingError, match=message):
        tiny(**changes)
