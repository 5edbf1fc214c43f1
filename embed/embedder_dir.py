"""The directory that defines an embedder: read, made, and extended with what scores its pairs.

It holds `embedder.json`, a weights file and, optionally, a whitening, a pair classifier and a calibration. The digest
covers all that decides an embedding, so not `lineage.json`, and travels with everything the embedder produced. Nothing
here imports Keras.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from embed.calibration.calibration import CALIBRATION_FILE, Calibration, calibration_bytes, read_calibration
from embed.errors import EmbedderError
from embed.lineage import ModelKind, read_lineages, write_lineage
from embed.pair_classifier.classifier import CLASSIFIER_FILE, PairClassifier, classifier_bytes
from embed.preprocessing import SQUEEZE_BICUBIC
from embed.whitening import Whitening, whitening_bytes

FORMAT_VERSION: Final = 1
DTYPES: Final = ("float32", "bfloat16", "int8")
DEFAULT_EMBEDDER: Final = "vgg_copy"
ARCHITECTURES: Final = ("vgg_copy", "vgg16")
SEEDED: Final = "seeded"
IMAGENET: Final = "imagenet"
IMAGENET_FILE: Final = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
IMAGENET_URL: Final = f"https://storage.googleapis.com/tensorflow/keras-applications/vgg16/{IMAGENET_FILE}"
IMAGENET_MD5: Final = "6d6bbae143d832006294945121d1f1fc"
VGG16_FEATURES: Final = 512
MIN_VGG16_SIZE: Final = 32
_WEIGHTS_FOLDER: Final = Path(__file__).parent / "weights"
SPEC_FILE: Final = "embedder.json"
QUANTIZED_FILE: Final = "int8.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderSpec:
    """What `embedder.json` says, validated. `weights` is a file of `directory`, `imagenet` or `seeded`.

    `digest` identifies the embeddings, `raw_scorer_digest` the raw scores of their pairs (the embeddings and the pair
    classifier), `scorer_digest` the scores (and the calibration). File names are in none of them. `min_score` is the
    score from which a pair counts as a match unless the user says otherwise: the calibration's where there is one.
    With a `layout_weight` half of the `dim` columns are those of `embed.layout`.
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
    layout_weight: float
    quantized: str | None
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

    @property
    def network_dim(self) -> int:
        """The columns that the network makes, whitening included; the others are the layout's."""
        return self.dim // 2 if self.layout_weight else self.dim

    @property
    def default_dtype(self) -> str:
        """The precision that embeddings are made in unless the user says otherwise: int8 where it has been prepared."""
        return "int8" if self.quantized else "float32"


def describe_embedder(name_or_dir: str | os.PathLike[str] = DEFAULT_EMBEDDER) -> EmbedderSpec:
    """The spec of an embedder shipped with this package (by name) or of a directory; raises EmbedderError.

    Imports no Keras. It hashes the weights, so a damaged or exchanged file has another digest.
    """
    directory = _directory(name_or_dir)
    fields = _read_fields(directory / SPEC_FILE)
    parts: dict[str, object] = {name: fields[name] for name in _EMBEDDING_FIELDS}
    if fields["layout_weight"]:
        parts["layout_weight"] = fields["layout_weight"]
    parts["weights"] = _weights_identity(directory, fields)
    parts["whitening"] = _file_sha256(directory, fields["whitening"]) if fields["whitening"] else None
    if fields["quantized"]:
        parts["quantized"] = _file_sha256(directory, fields["quantized"])
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


def model_digests(spec: EmbedderSpec) -> dict[ModelKind, str]:
    """The digest of every model in the embedder's directory, from its files; raises EmbedderError."""
    files = {ModelKind.CLASSIFIER: spec.pair_classifier, ModelKind.CALIBRATION: spec.calibration}
    found = {kind: _file_sha256(spec.directory, name) for kind, name in files.items() if name}
    return {ModelKind.EMBEDDER: spec.digest, **found}


def shipped_embedders() -> dict[str, Path]:
    """The directories of the embedders that come with this package, by name."""
    return {path.parent.name: path.parent for path in sorted(_WEIGHTS_FOLDER.glob(f"*/{SPEC_FILE}"))}


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
        f"(shipped: {', '.join(shipped) or 'none'}); pass a directory that holds {SPEC_FILE}"
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
    "layout_weight": _is_number(0.0, 1.0),
    "quantized": _FILE_OR_NULL,
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
    "layout_weight": 0.0,
    "quantized": None,
    "pair_classifier": None,
    "calibration": None,
}


def _read_fields(path: Path) -> dict[str, Any]:
    """The checked fields of `embedder.json`."""
    try:
        given = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise EmbedderError(f"{path.parent} is no embedder directory: it has no {SPEC_FILE}") from error
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
    if fields["layout_weight"] and fields["dim"] % 2:
        raise EmbedderError(f"{path} has dim={fields['dim']} with a layout, which takes half; expected an even number")
    for name in ("gem_p", "layout_weight", "min_score"):
        fields[name] = float(fields[name])
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
            f"{directory / name} cannot be read ({error.strerror}); {SPEC_FILE} names it, so copy the whole directory"
        ) from error


def create_embedder_dir(
    path: str | os.PathLike[str],
    *,
    architecture: str,
    weights: str | os.PathLike[str],
    size: int | None = None,
    dim: int | None = None,
    seed: int = 0,
    whitening: Whitening | None = None,
    layout_weight: float = 0.0,
    min_score: float = 0.8,
) -> EmbedderSpec:
    """Make an embedder directory at `path`, which must not exist yet; raises EmbedderError.

    `weights` is `seeded`, `imagenet` (vgg16 only) or a weights file, which is copied. By default `size` is 96 for
    vgg_copy and 224 for vgg16, and `dim` what the network or the whitening makes, twice that with a layout. The
    directory appears complete or not at all.
    """
    if architecture not in ARCHITECTURES:
        raise EmbedderError(f"architecture={architecture!r} is unknown; choose {' or '.join(ARCHITECTURES)}")
    natural_dim = VGG16_FEATURES if architecture == "vgg16" else 256
    network_dim = natural_dim if whitening is None else whitening.dim
    fields: dict[str, object] = {
        "format_version": FORMAT_VERSION,
        "architecture": architecture,
        "size": size if size is not None else {"vgg16": 224}.get(architecture, 96),
        "dim": dim if dim is not None else network_dim * (2 if layout_weight else 1),
        **_DEFAULTS,
        "weights": os.fspath(weights),
        "seed": seed,
        "whitening": None if whitening is None else "whitening.npz",
        "layout_weight": layout_weight,
        "min_score": min_score,
    }

    def fill(folder: Path) -> None:
        if weights not in (SEEDED, IMAGENET):
            fields["weights"] = _copied_weights(Path(weights), folder, architecture)
        if whitening is not None:
            (folder / "whitening.npz").write_bytes(whitening_bytes(whitening))
        (folder / SPEC_FILE).write_text(json.dumps(fields, indent=2) + "\n", "utf-8")

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
    quantized: bytes | None = None,
    pair_classifier: PairClassifier | None = None,
    calibration: Calibration | None = None,
    min_score: float | None = None,
) -> EmbedderSpec:
    """Make the directory `path`, which must not exist yet, from that of `spec` with something added.

    `quantized` is the file of an int8 network. What scored the embeddings or pairs of before is left behind: with a new
    network classifier and calibration, with a new classifier the calibration; `min_score` is the threshold until there
    is a new one. Raises EmbedderError.
    """
    added: dict[str, bytes] = {}
    changed: dict[str, str | float | None] = {} if min_score is None else {"min_score": min_score}
    if quantized is not None:
        added[QUANTIZED_FILE] = quantized
        changed |= {"quantized": QUANTIZED_FILE, "pair_classifier": None, "calibration": None}
    if pair_classifier is not None:
        added[CLASSIFIER_FILE] = classifier_bytes(pair_classifier)
        changed |= {"pair_classifier": CLASSIFIER_FILE, "calibration": None}
    if calibration is not None:
        added[CALIBRATION_FILE] = calibration_bytes(calibration)
        changed["calibration"] = CALIBRATION_FILE
    fields = json.loads((spec.directory / SPEC_FILE).read_text("utf-8")) | changed
    kept = {name for name in map(fields.get, ("weights", "whitening", "quantized", "pair_classifier")) if name}

    def fill(folder: Path) -> None:
        for name in kept - added.keys() - {SEEDED, IMAGENET}:
            shutil.copyfile(spec.directory / name, folder / name)
        for name, content in added.items():
            (folder / name).write_bytes(content)
        for kind, lineage in read_lineages(spec.directory).items():
            if kind != ModelKind.CALIBRATION or fields.get("calibration"):
                write_lineage(folder, lineage)
        (folder / SPEC_FILE).write_text(json.dumps(fields, indent=2) + "\n", "utf-8")

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
