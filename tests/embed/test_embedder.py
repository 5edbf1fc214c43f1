"""Embedder directories (without Keras), and the loaded embedder (with TensorFlow)."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embed.embedder import Embedder, load_embedder
from embed.embedder_dir import DEFAULT_EMBEDDER, EmbedderSpec, create_embedder_dir, describe_embedder
from embed.errors import EmbedderError
from embed.whitening import fit_whitening

SIZE = 32
# Keras saves variables through an `__array__` that numpy 2 would like to have one more parameter.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def seeded(path: Path, **options: Any) -> EmbedderSpec:
    return create_embedder_dir(
        path, **{"architecture": "vgg_copy", "weights": "seeded", "size": SIZE, "dim": 24, **options}
    )


def images(n: int, *, size: int = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def rewrite(directory: Path, **changes: object) -> None:
    path = directory / "embedder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# The directory.


def test_a_created_directory_is_described_as_it_was_made(tmp_path: Path) -> None:
    """What `create_embedder_dir` returns is what `describe_embedder` reads."""
    spec = seeded(tmp_path / "tiny", seed=3, min_score=0.7)

    assert spec == describe_embedder(tmp_path / "tiny") == describe_embedder(str(tmp_path / "tiny"))
    assert (spec.name, spec.size, spec.dim, spec.seed, spec.min_score) == ("tiny", SIZE, 24, 3, 0.7)


def test_the_digest_is_stable(tmp_path: Path) -> None:
    """The digest of a fixed spec never changes: indexes on disk carry it."""
    spec = create_embedder_dir(tmp_path / "e", architecture="vgg_copy", weights="seeded")

    assert spec.digest == "2852e2de697fa960d39102037218f56430de8cd924ce276d47dda6fe27801753"


def test_whatever_decides_embeddings_changes_the_digest(tmp_path: Path) -> None:
    """Architecture, size, dim, pooling, weights, whitening and layout each lead to another digest."""
    (tmp_path / "a.weights.h5").write_bytes(b"a")
    (tmp_path / "b.weights.h5").write_bytes(b"b")
    whitening = fit_whitening(np.random.default_rng(0).standard_normal((99, 512)).astype(np.float32), dim=24)
    specs = [
        seeded(tmp_path / "0"),
        seeded(tmp_path / "1", size=48),
        seeded(tmp_path / "2", dim=25),
        seeded(tmp_path / "3", seed=1),
        seeded(tmp_path / "4", weights=tmp_path / "a.weights.h5"),
        seeded(tmp_path / "5", weights=tmp_path / "b.weights.h5"),
        seeded(tmp_path / "6", architecture="vgg16"),
        seeded(tmp_path / "7", architecture="vgg16", whitening=whitening),
        seeded(tmp_path / "9", layout_weight=0.1),
        seeded(tmp_path / "10", layout_weight=0.2),
    ]
    rewrite(seeded(tmp_path / "8").directory, gem_p=4)
    specs.append(describe_embedder(tmp_path / "8"))

    assert len({spec.digest for spec in specs}) == len(specs)


def test_names_and_min_score_leave_the_digest_alone(tmp_path: Path) -> None:
    """A renamed directory or weights file and another threshold give the same embeddings, so the same digest."""
    (tmp_path / "a.weights.h5").write_bytes(b"a")
    first = seeded(tmp_path / "first", weights=tmp_path / "a.weights.h5")
    second = seeded(tmp_path / "second", weights=tmp_path / "a.weights.h5", min_score=0.5)
    (second.directory / second.weights).rename(second.directory / "other.weights.h5")
    rewrite(second.directory, weights="other.weights.h5")

    assert describe_embedder(second.directory).digest == first.digest


def test_an_existing_target_is_refused(tmp_path: Path) -> None:
    """Nothing is ever overwritten."""
    seeded(tmp_path / "e")

    with pytest.raises(EmbedderError, match="already exists"):
        seeded(tmp_path / "e")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "resnet"}, "architecture='resnet' is unknown; choose vgg_copy or vgg16"),
        ({"weights": "no/such/file.h5"}, "is neither 'seeded', 'imagenet' nor an existing .h5 file"),
        ({"weights": "imagenet"}, "only vgg16 has them"),
        ({"size": 8}, "size=8; expected an integer in 16..1024"),
        ({"dim": 0}, "dim=0; expected an integer in 1..4096"),
        ({"min_score": 1.5}, "min_score=1.5; expected a number in 0.0..1.0"),
        ({"architecture": "vgg16", "size": 16}, "vgg16 takes at least 32"),
    ],
)
def test_a_refused_directory_leaves_nothing_behind(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """A spec that could not be loaded is refused when it is made, and no half directory stays."""
    with pytest.raises(EmbedderError) as refused:
        seeded(tmp_path / "e", **options)

    assert message in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version 2; this release reads 1"),
        ({"size": "96"}, "size='96'; expected an integer"),
        ({"size": True}, "size=True; expected an integer"),
        ({"weights": "../secrets.h5"}, "expected the name of a file in the same directory"),
        ({"weights": ""}, "expected the name of a file in the same directory"),
        ({"whitening": 3}, "expected null or the name of a file"),
        ({"whitening": "absent.npz"}, "absent.npz cannot be read"),
        ({"weights": "absent.h5"}, "absent.h5 cannot be read"),
        ({"pooling": "max"}, "pooling='max'; expected gem"),
        ({"gem_p": float("nan")}, "gem_p=nan"),
        ({"preprocessing": []}, "preprocessing=[]"),
        ({"layout_weight": 1.5}, "layout_weight=1.5; expected a number in 0.0..1.0"),
        ({"layout_weight": 0.1, "dim": 25}, "dim=25 with a layout, which takes half; expected an even number"),
        ({"colour": "blue"}, "unknown fields ['colour']"),
    ],
)
def test_a_wrong_field_is_named_with_what_it_may_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """`embedder.json` is checked field by field, by type, range and file."""
    directory = seeded(tmp_path / "e").directory
    rewrite(directory, **changes)

    with pytest.raises(EmbedderError) as refused:
        describe_embedder(directory)

    assert message in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 100_000, "{}", '{"format_version": 1}', "\udcff"])
def test_a_damaged_json_is_refused(tmp_path: Path, text: str) -> None:
    """Text that is no embedder spec raises EmbedderError with its path."""
    path = seeded(tmp_path / "e").directory / "embedder.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))

    with pytest.raises(EmbedderError, match=r"embedder\.json"):
        describe_embedder(tmp_path / "e")


def test_an_unknown_name_lists_what_is_shipped() -> None:
    """A name that is neither shipped nor a directory says so."""
    with pytest.raises(EmbedderError, match=rf"no embedder 'nonsense'.*shipped: {DEFAULT_EMBEDDER}"):
        describe_embedder("nonsense")


def test_a_directory_without_a_spec_is_no_embedder(tmp_path: Path) -> None:
    """Any other folder is refused by what it lacks."""
    with pytest.raises(EmbedderError, match=r"has no embedder\.json"):
        describe_embedder(tmp_path)


# The loaded embedder.


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    spec = seeded(tmp_path_factory.mktemp("embedders") / "tiny")
    return load_embedder(spec.directory, batch_size=8)


@pytest.mark.tensorflow
def test_rows_are_unit_float32_and_differ(embedder: Embedder) -> None:
    """Images give `(n, dim)` float32 rows of length 1; different images give different rows."""
    rows = embedder.embed(images(11))

    assert rows.shape == (11, 24)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    assert len(np.unique(rows, axis=0)) == 11


@pytest.mark.tensorflow
def test_a_row_depends_on_its_own_image_alone(embedder: Embedder) -> None:
    """Alone, in any batch and at any position an image has bit for bit the same embedding."""
    batch = images(19)
    rows = embedder.embed(batch)

    assert np.array_equal(np.concatenate([embedder.embed(batch[i : i + 1]) for i in range(19)]), rows)
    assert np.array_equal(embedder.embed(batch[::-1]), rows[::-1])
    assert np.array_equal(embedder.embed(np.roll(batch, 5, axis=0)), np.roll(rows, 5, axis=0))


@pytest.mark.tensorflow
@pytest.mark.parametrize("num_images", [1, 2, 5, 8, 15])
def test_few_images_have_the_rows_of_many(embedder: Embedder, num_images: int) -> None:
    """However they fall into batches, a row is that of the padded batch but for rounding."""
    some = images(num_images)
    np.testing.assert_allclose(embedder.embed_few(some), embedder.embed(some), atol=1e-6)


@pytest.mark.tensorflow
def test_few_images_are_not_padded(embedder: Embedder) -> None:
    """No batch is larger than what is left."""
    shapes: list[int] = []
    network = embedder._network

    def features(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        shapes.append(len(batch))
        return network.features(batch)

    Embedder(embedder.spec, dataclasses.replace(network, features=features), batch_size=8).embed_few(images(23))

    assert shapes == [8, 8, 4, 2, 1]


@pytest.mark.tensorflow
def test_no_images_give_no_rows(embedder: Embedder) -> None:
    """An empty batch is fine."""
    assert embedder.embed(images(0)).shape == (0, 24)


@pytest.mark.tensorflow
@pytest.mark.parametrize("wrong", [images(2, size=33), images(2)[0], images(2).astype(np.float32), images(2)[..., :1]])
def test_images_of_another_shape_or_type_are_refused(embedder: Embedder, wrong: NDArray[Any]) -> None:
    """The error tells the shape given and the shape taken."""
    with pytest.raises(EmbedderError, match=r"takes uint8 \(n, 32, 32, 3\)"):
        embedder.embed(wrong)


@pytest.mark.tensorflow
def test_the_same_directory_gives_the_same_embeddings_again(embedder: Embedder) -> None:
    """Loading twice, with another batch size, changes no embedding by more than rounding."""
    again = load_embedder(embedder.spec.directory, batch_size=5)

    np.testing.assert_allclose(again.embed(images(9)), embedder.embed(images(9)), atol=1e-6)


@pytest.mark.tensorflow
def test_bfloat16_stays_close(embedder: Embedder) -> None:
    """In bfloat16 an embedding keeps a cosine above 0.999 to its float32 self."""
    half = load_embedder(embedder.spec.directory, dtype="bfloat16", batch_size=8)

    cosines = (half.embed(images(9)) * embedder.embed(images(9))).sum(axis=1)

    assert cosines.min() > 0.999


@pytest.mark.tensorflow
def test_whitening_is_applied_before_unit_length(tmp_path: Path, embedder: Embedder) -> None:
    """The network with a whitening equals the network, then numpy's whitening, then unit length."""
    plain = embedder.embed(images(60))
    whitening = fit_whitening(plain, dim=5)
    spec = seeded(tmp_path / "white", whitening=whitening, dim=5)
    expected = (plain - whitening.mean) @ whitening.projection
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)

    np.testing.assert_allclose(load_embedder(spec.directory).embed(images(60)), expected, atol=1e-3)


@pytest.mark.tensorflow
def test_a_layout_stands_beside_the_network(tmp_path: Path) -> None:
    """Half of the columns are the network's, half the layout's, and a row is of unit length."""
    from embed.layout import layout

    network = load_embedder(seeded(tmp_path / "plain", dim=12).directory).embed(images(3))
    rows = load_embedder(seeded(tmp_path / "both", layout_weight=0.25).directory).embed(images(3))

    expected = np.hstack([network, 0.5 * layout(images(3), dim=12)]) / np.sqrt(1.25)
    np.testing.assert_allclose(rows, expected, atol=1e-5)


@pytest.mark.tensorflow
def test_a_whitening_that_leaves_no_columns_for_the_layout_is_refused(tmp_path: Path) -> None:
    """With a layout the whitening makes half of `dim`."""
    whitening = fit_whitening(np.random.default_rng(0).standard_normal((99, 24)).astype(np.float32), dim=10)
    spec = seeded(tmp_path / "e", whitening=whitening, layout_weight=0.1, dim=10)

    with pytest.raises(EmbedderError, match=r"makes 10 columns.*dim=10, of which 5 are the network's"):
        load_embedder(spec.directory)


@pytest.mark.tensorflow
def test_vgg16_gives_its_512_features(tmp_path: Path) -> None:
    """A seeded VGG16 embeds to 512 dimensions of unit length."""
    rows = load_embedder(seeded(tmp_path / "v", architecture="vgg16", dim=512).directory, batch_size=2).embed(images(3))

    assert rows.shape == (3, 512)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)


@pytest.mark.tensorflow
def test_vgg16_of_another_dim_asks_for_a_whitening(tmp_path: Path) -> None:
    """VGG16 makes 512 features; fewer come only from a whitening."""
    spec = seeded(tmp_path / "v", architecture="vgg16", dim=256)

    with pytest.raises(EmbedderError, match="vgg16 makes 512 features, not 256; give the whitening"):
        load_embedder(spec.directory)


@pytest.mark.tensorflow
def test_a_weights_file_gives_the_trained_network(tmp_path: Path) -> None:
    """Weights saved by Keras load into a directory that embeds like the network itself."""
    from embed.architectures import seed_weights, vgg_copy

    network = vgg_copy(size=SIZE, dim=24)
    seed_weights(network, 5)
    network.save_weights(tmp_path / "w.weights.h5")
    spec = seeded(tmp_path / "e", weights=tmp_path / "w.weights.h5")
    network.compile(jit_compile=False)

    expected = network.predict_on_batch(images(4).astype(np.float32))

    np.testing.assert_allclose(load_embedder(spec.directory).embed(images(4)), expected, atol=1e-5)


def _other_network(path: Path) -> None:
    from embed.architectures import vgg_copy

    vgg_copy(size=SIZE, dim=16).save_weights(path)


def _one_layer_missing(path: Path) -> None:
    import h5py

    from embed.architectures import vgg_copy

    vgg_copy(size=SIZE, dim=24).save_weights(path)
    with h5py.File(path, "r+") as file:
        del file["layers/dense/vars/0"]


def _not_finite(path: Path) -> None:
    from embed.architectures import vgg_copy

    network = vgg_copy(size=SIZE, dim=24)
    network.trainable_variables[0].assign(np.full((3, 3, 3, 24), np.nan))
    network.save_weights(path)


def _cut(path: Path) -> None:
    _other_network(path)
    path.write_bytes(path.read_bytes()[:5_000])


def _text(path: Path) -> None:
    path.write_text("not an HDF5 file")


@pytest.mark.tensorflow
@pytest.mark.parametrize("damage", [_other_network, _one_layer_missing, _not_finite, _cut, _text])
def test_unusable_weights_are_refused_by_name(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Weights of another network, incomplete, not finite, cut or no HDF5 raise EmbedderError with the path."""
    damage(tmp_path / "w.weights.h5")
    spec = seeded(tmp_path / "e", weights=tmp_path / "w.weights.h5")

    with pytest.raises(EmbedderError, match=r"vgg_copy\.weights\.h5"):
        load_embedder(spec.directory)


@pytest.mark.tensorflow
def test_imagenet_weights_that_cannot_be_downloaded_say_how_to_pass_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a network the error names the file to fetch and the call that uses it; stdout stays clean."""
    from embed.keras_backend import keras

    def no_network(*args: object, **options: object) -> str:
        print("Downloading data from ...")  # noqa: T201 - as Keras does
        raise OSError("Name or service not known")

    monkeypatch.setattr(keras.utils, "get_file", no_network)
    spec = seeded(tmp_path / "v", architecture="vgg16", weights="imagenet", dim=512)

    with pytest.raises(EmbedderError, match=r"_notop\.h5.*create_embedder_dir.*--embedder"):
        load_embedder(spec.directory)
    assert capsys.readouterr().out == ""


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype='float8' is unknown"),
        ({"batch_size": 0}, r"batch_size=0 is out of range 1\.\.4096"),
        ({"num_threads": 0}, r"num_threads=0 is out of range 1\.\.1024"),
        ({"num_threads": 77}, "num_threads=77 comes too late"),
    ],
)
def test_bad_load_options_are_refused(embedder: Embedder, options: dict[str, Any], message: str) -> None:
    """Every option is checked, and a thread limit that cannot take effect any more is an error."""
    with pytest.raises(EmbedderError, match=message):
        load_embedder(embedder.spec.directory, **options)


@pytest.mark.tensorflow
def test_loading_and_embedding_print_nothing(embedder: Embedder) -> None:
    """TensorFlow's start-up chatter never reaches an operator's terminal, and the thread limit holds."""
    code = (
        "import sys, numpy, embed.embedder as e\n"
        "loaded = e.load_embedder(sys.argv[1], num_threads=1)\n"
        "loaded.embed(numpy.zeros((3, 32, 32, 3), numpy.uint8))\n"
        "import tensorflow\n"
        "assert tensorflow.config.threading.get_intra_op_parallelism_threads() == 1\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, embedder.spec.directory], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
