"""The embedder: images in, `(n, dim)` float32 unit rows out, and the directory that defines it.

An embedder directory is `embedder.json` plus a weights file and, optionally, a whitening. Its digest covers all that
decides an embedding, so not `lineage.json`, and travels with everything the embedder produced. `describe_embedder`
reads a directory without importing Keras; `load_embedder` builds the network from code and only ever reads numbers from
disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.calibration.calibration import CALIBRATION_FILE, Calibration, calibration_bytes, read_calibration
from embed.errors import EmbedderError
from embed.lineage import ModelKind, read_lineages, write_lineage
from embed.pair_classifier.classifier import CLASSIFIER_FILE, PairClassifier, classifier_bytes
from embed.preprocessing import SQUEEZE_BICUBIC
from embed.whitening import Whitening, read_whitening, whitening_bytes

if TYPE_CHECKING:
    import keras

FORMAT_VERSION: Final = 1
DEFAULT_EMBEDDER: Final = "vgg_copy"
ARCHITECTURES: Final = ("vgg_copy", "vgg16")
KERAS_POLICIES: Final = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
SEEDED: Final = "seeded"
IMAGENET: Final = "imagenet"
IMAGENET_FILE: Final = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
IMAGENET_URL: Final = f"https://storage.googleapis.com/tensorflow/keras-applications/vgg16/{IMAGENET_FILE}"
IMAGENET_MD5: Final = "6d6bbae143d832006294945121d1f1fc"
VGG16_FEATURES: Final = 512
MIN_VGG16_SIZE: Final = 32
_WEIGHTS_FOLDER: Final = Path(__file__).parent / "weights"
_SPEC_FILE: Final = "embedder.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderSpec:
    """What `embedder.json` says, validated. `weights` is a file of `directory`, `imagenet` or `seeded`.

    `digest` identifies the embeddings, `raw_scorer_digest` the raw scores of their pairs (the embeddings and the pair
    classifier), `scorer_digest` the scores (and the calibration). File names are in none of them. `min_score` is the
    score from which a pair counts as a match unless the user says otherwise: the calibration's where there is one.
    """

    directory: Path
    architecture: str
    size: int
    dim: int
    pooling: str
    gem_p: float
    preprocessing: str
    weights: str
    seed: int
    whitening: str | None
    pair_classifier: str | None
    calibration: str | None
    min_score: float
    digest: str
    raw_scorer_digest: str
    scorer_digest: str

    @property
    def name(self) -> str:
        """The directory's name, for people; `digest` identifies."""
        return self.directory.name


def describe_embedder(name_or_dir: str | os.PathLike[str] = DEFAULT_EMBEDDER) -> EmbedderSpec:
    """The spec of an embedder shipped with this package (by name) or of a directory; raises EmbedderError.

    Imports no Keras. It hashes the weights, so a damaged or exchanged file has another digest.
    """
    directory = _directory(name_or_dir)
    fields = _read_fields(directory / _SPEC_FILE)
    parts: dict[str, object] = {name: fields[name] for name in _EMBEDDING_FIELDS}
    parts["weights"] = _weights_identity(directory, fields)
    parts["whitening"] = _file_sha256(directory, fields["whitening"]) if fields["whitening"] else None
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    raw_scorer_digest = _extended(digest, directory, fields["pair_classifier"])
    if fields["calibration"]:
        fields["min_score"] = read_calibration(directory / fields["calibration"]).min_score
    return EmbedderSpec(
        directory=directory,
        digest=digest,
        raw_scorer_digest=raw_scorer_digest,
        scorer_digest=_extended(raw_scorer_digest, directory, fields["calibration"]),
        **{name: fields[name] for name in _FIELD_RULES},
    )


def _extended(digest: str, directory: Path, name: str | None) -> str:
    """The digest of something that also depends on a file, where there is one."""
    return hashlib.sha256(f"{digest}{_file_sha256(directory, name)}".encode()).hexdigest() if name else digest


def shipped_embedders() -> dict[str, Path]:
    """The directories of the embedders that come with this package, by name."""
    return {path.parent.name: path.parent for path in sorted(_WEIGHTS_FOLDER.glob(f"*/{_SPEC_FILE}"))}


def _directory(name_or_dir: str | os.PathLike[str]) -> Path:
    given = os.fspath(name_or_dir)
    shipped = shipped_embedders()
    if given in shipped:
        return shipped[given]
    directory = Path(given)
    if directory.is_dir():
        return directory.resolve()
    raise EmbedderError(
        f"there is no embedder {given!r}: it is neither a directory nor shipped with this package "
        f"(shipped: {', '.join(shipped) or 'none'}); pass a directory that holds {_SPEC_FILE}"
    )


def _is_integer(low: int, high: int) -> tuple[Any, str]:
    return (lambda value: type(value) is int and low <= value <= high), f"an integer in {low}..{high}"


def _is_number(low: float, high: float) -> tuple[Any, str]:
    return (lambda value: type(value) in (int, float) and low <= value <= high), f"a number in {low}..{high}"


def _is_one_of(*names: str) -> tuple[Any, str]:
    return (lambda value: value in names), " or ".join(names)


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\\0")


_FILE_OR_NULL: Final = (lambda value: value is None or _is_file_name(value), "null or the name of a file beside it")
_FIELD_RULES: Final[Mapping[str, tuple[Any, str]]] = {
    "architecture": _is_one_of(*ARCHITECTURES),
    "size": _is_integer(16, 1024),
    "dim": _is_integer(1, 4096),
    "pooling": _is_one_of("gem"),
    "gem_p": _is_number(1.0, 100.0),
    "preprocessing": _is_one_of(SQUEEZE_BICUBIC),
    "weights": (_is_file_name, f"the name of a file in the same directory, {IMAGENET} or {SEEDED}"),
    "seed": _is_integer(0, 2**63 - 1),
    "whitening": _FILE_OR_NULL,
    "pair_classifier": _FILE_OR_NULL,
    "calibration": _FILE_OR_NULL,
    "min_score": _is_number(0.0, 1.0),
}
_EMBEDDING_FIELDS: Final = ("architecture", "size", "dim", "pooling", "gem_p", "preprocessing")
_DEFAULTS: Final = {
    "pooling": "gem",
    "gem_p": 3.0,
    "preprocessing": SQUEEZE_BICUBIC,
    "seed": 0,
    "whitening": None,
    "pair_classifier": None,
    "calibration": None,
}


def _read_fields(path: Path) -> dict[str, Any]:
    """The checked fields of `embedder.json`."""
    try:
        given = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise EmbedderError(f"{path.parent} is no embedder directory: it has no {_SPEC_FILE}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise EmbedderError(f"{path} cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise EmbedderError(f"{path} must hold a JSON object, not a {type(given).__name__}")
    version = given.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise EmbedderError(f"{path} has format_version {version!r}; this release reads {FORMAT_VERSION}")
    unknown = sorted(given.keys() - _FIELD_RULES.keys())
    if unknown:
        raise EmbedderError(f"{path} has unknown fields {unknown}; known are {', '.join(_FIELD_RULES)}")
    fields: dict[str, Any] = {**_DEFAULTS, **given}
    for name, (is_valid, expected) in _FIELD_RULES.items():
        if name not in fields:
            raise EmbedderError(f"{path} lacks the field {name!r}: {expected}")
        if not is_valid(fields[name]):
            raise EmbedderError(f"{path} has {name}={fields[name]!r}; expected {expected}")
    if fields["weights"] == IMAGENET and fields["architecture"] != "vgg16":
        raise EmbedderError(f"{path} has weights={IMAGENET!r} for {fields['architecture']}; only vgg16 has them")
    if fields["architecture"] == "vgg16" and fields["size"] < MIN_VGG16_SIZE:
        raise EmbedderError(f"{path} has size={fields['size']}; vgg16 takes at least {MIN_VGG16_SIZE}")
    fields["gem_p"], fields["min_score"] = float(fields["gem_p"]), float(fields["min_score"])
    return fields


def _weights_identity(directory: Path, fields: Mapping[str, Any]) -> str:
    if fields["weights"] == SEEDED:
        return f"{SEEDED}:{fields['seed']}"
    if fields["weights"] == IMAGENET:
        return f"{IMAGENET}:{IMAGENET_MD5}"
    return _file_sha256(directory, fields["weights"])


def _file_sha256(directory: Path, name: str) -> str:
    try:
        with (directory / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EmbedderError(
            f"{directory / name} cannot be read ({error.strerror}); {_SPEC_FILE} names it, so copy the whole directory"
        ) from error


class Embedder:
    """A loaded network. `embed` is for one thread at a time; load one per process and keep it."""

    def __init__(self, spec: EmbedderSpec, network: keras.Model, *, batch_size: int) -> None:
        self.spec = spec
        self.batch_size = batch_size
        self._network = network

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """`(n, size, size, 3)` uint8 RGB -> `(n, dim)` float32 unit rows.

        Every batch has the same compiled shape, the last one padded, so a row depends on its own image alone.
        """
        size = self.spec.size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise EmbedderError(
                f"images are {images.dtype} {images.shape}; {self.spec.name} takes uint8 (n, {size}, {size}, 3), "
                f"which `embed.preprocessing.to_square` makes"
            )
        rows = np.empty((len(images), self.spec.dim), dtype=np.float32)
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            num_images = len(batch)
            if num_images < self.batch_size:
                padding = np.zeros((self.batch_size - num_images, size, size, 3), dtype=np.uint8)
                batch = np.concatenate([batch, padding])
            rows[start : start + num_images] = self._network.predict_on_batch(batch)[:num_images]
        return rows


def load_embedder(
    name_or_dir: str | os.PathLike[str] = DEFAULT_EMBEDDER,
    *,
    dtype: str = "float32",
    batch_size: int = 32,
    num_threads: int | None = None,
) -> Embedder:
    """Build, load and compile an embedder, ready for its first image; raises EmbedderError.

    `dtype` `bfloat16` is up to twice as fast on CPUs and GPUs that have it and moves cosines by about 0.001.
    `num_threads` bounds the CPU threads of the whole process, so it must be set by the first load in it.
    """
    if dtype not in KERAS_POLICIES:
        raise EmbedderError(f"dtype={dtype!r} is unknown; choose {' or '.join(KERAS_POLICIES)}")
    if not 1 <= batch_size <= 4096:
        raise EmbedderError(f"batch_size={batch_size} is out of range 1..4096")
    spec = describe_embedder(name_or_dir)
    from embed.keras_backend import keras  # noqa: PLC0415 - takes seconds, and describing must not pay for it

    if num_threads is not None:
        _limit_threads(keras.backend.backend(), num_threads)
    network = _inference_network(spec, KERAS_POLICIES[dtype])
    network.compile(jit_compile=keras.backend.backend() == "jax")
    embedder = Embedder(spec, network, batch_size=batch_size)
    _check_rows(spec, embedder.embed(np.full((1, spec.size, spec.size, 3), 128, dtype=np.uint8)))
    return embedder


def _limit_threads(backend: str, num_threads: int) -> None:
    if not 1 <= num_threads <= 1024:
        raise EmbedderError(f"num_threads={num_threads} is out of range 1..1024")
    if backend == "torch":
        sys.modules["torch"].set_num_threads(num_threads)
    if backend != "tensorflow":
        return
    threading = sys.modules["tensorflow"].config.threading
    if threading.get_intra_op_parallelism_threads() == num_threads:
        return
    try:
        threading.set_intra_op_parallelism_threads(num_threads)
        threading.set_inter_op_parallelism_threads(1)
    except RuntimeError as error:
        raise EmbedderError(
            f"num_threads={num_threads} comes too late: TensorFlow already runs in this process with "
            f"{threading.get_intra_op_parallelism_threads() or 'as many threads as cores'}; "
            f"give num_threads to the first load_embedder of the process"
        ) from error


def _inference_network(spec: EmbedderSpec, dtype: str) -> keras.Model:
    """`(n, size, size, 3)` uint8 -> `(n, dim)`, whitening included."""
    from embed.architectures import fold_batch_norm, seed_weights, vgg16, vgg16_backbone, vgg_copy  # noqa: PLC0415
    from embed.keras_backend import keras, layers, ops  # noqa: PLC0415

    whitening = read_whitening(spec.directory / spec.whitening) if spec.whitening else None
    if whitening is not None and whitening.dim != spec.dim:
        raise EmbedderError(
            f"{spec.directory / str(spec.whitening)} makes {whitening.dim} columns, {_SPEC_FILE} says dim={spec.dim}"
        )
    features = spec.dim if whitening is None else len(whitening.mean)
    if spec.architecture == "vgg16" and features != VGG16_FEATURES:
        fix = "give the whitening for it" if whitening is None else "fit the whitening on its embeddings"
        raise EmbedderError(f"vgg16 makes {VGG16_FEATURES} features, not {features}; {fix}")

    if spec.architecture == "vgg16":
        trained = vgg16_backbone(size=spec.size, dtype=dtype)
    else:
        trained = vgg_copy(size=spec.size, dim=features, gem_p=spec.gem_p)
    if spec.weights == SEEDED:
        seed_weights(trained, spec.seed)
    else:
        load_weights(trained, spec)
    if spec.architecture == "vgg16":
        network = vgg16(trained, gem_p=spec.gem_p)
    else:
        network = fold_batch_norm(trained, dtype=dtype)

    images = layers.Input((spec.size, spec.size, 3), dtype="uint8", name="images")
    rows = network(ops.cast(images, "float32"))
    if whitening is not None:
        bias = -whitening.mean @ whitening.projection
        dense = layers.Dense(spec.dim, dtype="float32", name="whitening")
        rows = dense(rows)
        dense.set_weights([whitening.projection, bias])
        rows = layers.UnitNormalization(dtype="float32")(rows)
    return keras.Model(images, rows, name=spec.architecture)


def load_weights(network: keras.Model, spec: EmbedderSpec) -> None:
    """Load the trained weights of `spec` into a network of its architecture, all of them, or raise EmbedderError."""
    path = _imagenet_file() if spec.weights == IMAGENET else spec.directory / spec.weights
    # Keras only warns when a file lacks some weights, so they start as NaN and must not stay so.
    for weight in network.weights:
        weight.assign(np.full(tuple(weight.shape), np.nan, dtype=np.float32))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network.load_weights(path)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise EmbedderError(
            f"{path} does not hold weights of {spec.architecture} at size {spec.size} and dim {spec.dim} ({reason}); "
            f"give a file written by `save_weights` of exactly this network"
        ) from error
    for weight in network.weights:
        if not np.isfinite(weight.numpy()).all():
            raise EmbedderError(
                f"{path} lacks {weight.path} or holds values there that are not finite; restore or retrain it"
            )


def _imagenet_file() -> Path:
    """Keras' own cached copy of the ImageNet weights, downloaded on first use."""
    from embed.keras_backend import keras  # noqa: PLC0415

    try:
        with redirect_stdout(sys.stderr):  # Keras prints its progress, and stdout belongs to the caller's results.
            path = keras.utils.get_file(IMAGENET_FILE, IMAGENET_URL, cache_subdir="models", file_hash=IMAGENET_MD5)
        return Path(path)
    except Exception as error:
        raise EmbedderError(
            f"the ImageNet weights of VGG16 cannot be downloaded here ({error}). On a machine with a network fetch "
            f"{IMAGENET_URL}, then make a directory from it with "
            f"`create_embedder_dir('vgg16', architecture='vgg16', weights='{IMAGENET_FILE}')` and pass that: "
            f"`--embedder vgg16`"
        ) from error


def _check_rows(spec: EmbedderSpec, rows: NDArray[np.float32]) -> None:
    length = float(np.linalg.norm(rows[0]))
    if not math.isclose(length, 1.0, abs_tol=1e-3):
        raise EmbedderError(
            f"{spec.directory} gives an embedding of length {length} for a gray image instead of 1; "
            f"its weights are damaged, restore or retrain them"
        )


def create_embedder_dir(
    path: str | os.PathLike[str],
    *,
    architecture: str,
    weights: str | os.PathLike[str],
    size: int | None = None,
    dim: int | None = None,
    seed: int = 0,
    whitening: Whitening | None = None,
    min_score: float = 0.8,
) -> EmbedderSpec:
    """Make an embedder directory at `path`, which must not exist yet; raises EmbedderError.

    `weights` is `seeded`, `imagenet` (vgg16 only) or a weights file, which is copied. By default `size` is 96 for
    vgg_copy and 224 for vgg16, and `dim` what the network or the whitening makes. The directory appears complete or
    not at all.
    """
    if architecture not in ARCHITECTURES:
        raise EmbedderError(f"architecture={architecture!r} is unknown; choose {' or '.join(ARCHITECTURES)}")
    natural_dim = VGG16_FEATURES if architecture == "vgg16" else 256
    fields: dict[str, object] = {
        "format_version": FORMAT_VERSION,
        "architecture": architecture,
        "size": size if size is not None else {"vgg16": 224}.get(architecture, 96),
        "dim": dim if dim is not None else natural_dim if whitening is None else whitening.dim,
        **_DEFAULTS,
        "weights": os.fspath(weights),
        "seed": seed,
        "whitening": None if whitening is None else "whitening.npz",
        "min_score": min_score,
    }

    def fill(folder: Path) -> None:
        if weights not in (SEEDED, IMAGENET):
            fields["weights"] = _copied_weights(Path(weights), folder, architecture)
        if whitening is not None:
            (folder / "whitening.npz").write_bytes(whitening_bytes(whitening))
        (folder / _SPEC_FILE).write_text(json.dumps(fields, indent=2) + "\n", "utf-8")

    return _written_directory(Path(path), fill)


def _copied_weights(source: Path, folder: Path, architecture: str) -> str:
    """Copy `source` under a name that tells Keras its layout: `.weights.h5` is Keras 3's, plain `.h5` the older."""
    if source.suffix != ".h5" or not source.is_file():
        raise EmbedderError(f"weights={str(source)!r} is neither {SEEDED!r}, {IMAGENET!r} nor an existing .h5 file")
    name = f"{architecture}.weights.h5" if source.name.endswith(".weights.h5") else f"{architecture}.h5"
    shutil.copyfile(source, folder / name)
    return name


def extend_embedder_dir(
    spec: EmbedderSpec,
    path: str | os.PathLike[str],
    *,
    pair_classifier: PairClassifier | None = None,
    calibration: Calibration | None = None,
    min_score: float | None = None,
) -> EmbedderSpec:
    """Make the directory `path`, which must not exist yet, from that of `spec` with a classifier or calibration added.

    A new classifier makes other raw scores, so a calibration of the old ones is left behind; `min_score` is the
    threshold until there is a new one. Raises EmbedderError.
    """
    added: dict[str, bytes] = {}
    changed: dict[str, str | float | None] = {} if min_score is None else {"min_score": min_score}
    if pair_classifier is not None:
        added[CLASSIFIER_FILE] = classifier_bytes(pair_classifier)
        changed |= {"pair_classifier": CLASSIFIER_FILE, "calibration": None}
    if calibration is not None:
        added[CALIBRATION_FILE] = calibration_bytes(calibration)
        changed["calibration"] = CALIBRATION_FILE
    fields = json.loads((spec.directory / _SPEC_FILE).read_text("utf-8")) | changed
    kept = {name for name in (fields["weights"], fields.get("whitening"), fields.get("pair_classifier")) if name}

    def fill(folder: Path) -> None:
        for name in kept - added.keys() - {SEEDED, IMAGENET}:
            shutil.copyfile(spec.directory / name, folder / name)
        for name, content in added.items():
            (folder / name).write_bytes(content)
        for kind, lineage in read_lineages(spec.directory).items():
            if kind != ModelKind.CALIBRATION or fields.get("calibration"):
                write_lineage(folder, lineage)
        (folder / _SPEC_FILE).write_text(json.dumps(fields, indent=2) + "\n", "utf-8")

    return _written_directory(Path(path), fill)


def _written_directory(target: Path, fill: Callable[[Path], None]) -> EmbedderSpec:
    """The embedder directory that `fill` makes, at `target` complete or not at all."""
    if target.exists():
        raise EmbedderError(f"{target} already exists; choose another directory or remove it first")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            aside = Path(folder) / target.name
            aside.mkdir()
            fill(aside)
            describe_embedder(aside)
            aside.rename(target)
    except OSError as error:
        raise EmbedderError(f"{target} cannot be written: {error}") from error
    return describe_embedder(target)
