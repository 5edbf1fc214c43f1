"""`python -m benchmarks codec`: posting lists in variable bytes beside FastPFor's codecs, Roaring and raw arrays.

Two questions. How fast does one long run of gaps decode? Rounds are interleaved and each ratio is taken within its
round, so a busy machine slows all sides alike. And what do real posting lists cost, most of which hold a handful of
docs? The lists are those of `neardup`'s own hash tables over embeddings as dense as real ones; each is coded and
decoded alone, as a lookup would, the call from Python included, which is most of the time of a short list.

Ours decodes to 64-bit integers into a new array and checks every byte; FastPFor's codecs decode to 32-bit integers into
an array given to them and trust their input, Roaring returns a new array, and a raw array is copied. FastPFor's sizes
are whole 32-bit words. All lists are gaps (delta coded), but for Roaring and raw arrays, which hold docs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.batch_embeddings import plant_embeddings
from benchmarks.results import versions, write_json
from cli.tables import show_table
from lsh.terms import TermHasher, TermParams
from lsh.variable_byte import decode, decode_sorted, encode, encode_sorted, gaps

AVERAGE_GAPS = (3, 60, 1_000, 100_000)
FASTPFOR = ("vbyte", "maskedvbyte", "streamvbyte", "simdbinarypacking", "simdfastpfor128")
CODECS = ("ours", *FASTPFOR, "roaring", "raw uint32")
LIST_LENGTHS = ((1, 1), (2, 9), (10, 49), (50, 499), (500, 1 << 40))
NUM_VALUES = 1 << 17
NUM_ROUNDS = 101
NUM_LIST_ROUNDS = 7
NUM_LISTS = 2000
NUM_IMAGES = 1_000_000
NUM_TABLES = 2
SEED = 0
_SLACK_WORDS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """One long run of gaps: our speed, and by codec its size and its speed over ours."""

    average_gap: int
    values_per_s: float
    bytes_per_value: dict[str, float]
    speed_ratio: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFigures:
    """Posting lists of `shortest` to `longest` docs: how many of all postings they hold, and by codec size and time."""

    shortest: int
    longest: int
    share_of_lists: float
    share_of_postings: float
    bytes_per_posting: dict[str, float]
    decode_ns_per_list: dict[str, float]
    speed_ratio: dict[str, float]


@dataclass(frozen=True, slots=True)
class Coded:
    """One array in one codec: the size of its code, and a function that decodes it."""

    size_bytes: int
    decode: Callable[[], NDArray[np.unsignedinteger]]


def random_gaps(average_gap: int, count: int, *, seed: int) -> NDArray[np.uint64]:
    """`(count,)` uint64 gaps of docs that share a bucket at random: geometric, at least 1."""
    return np.random.default_rng([seed, average_gap]).geometric(1.0 / average_gap, count).astype(np.uint64)


def real_lists(num_images: int, *, num_tables: int = NUM_TABLES, seed: int = SEED) -> list[NDArray[np.uint64]]:
    """The posting lists of `num_tables` hash tables of the default polytopes over synthetic embeddings."""
    hasher = TermHasher(TermParams(num_tables=num_tables))
    embeddings = plant_embeddings(num_images, seed=seed).embeddings
    terms = np.concatenate([hasher.terms(embeddings[first : first + 65_536]) for first in range(0, num_images, 65_536)])
    docs = np.arange(num_images, dtype=np.uint64)
    lists = []
    for table in range(num_tables):
        order = np.argsort(terms[:, table], kind="stable")
        starts = np.flatnonzero(np.diff(terms[order, table])) + 1
        lists += np.split(docs[order], starts)
    return lists


def hash_table_bytes(lists: Sequence[NDArray[np.uint64]], num_images: int) -> float:
    """Bytes of a hash table of these lists for each image: their codes and one 8-byte offset for each bucket."""
    return (sum(encode_sorted(docs).size for docs in lists) + 8 * (len(lists) + 1)) / num_images


def measure_run(average_gap: int, *, num_values: int = NUM_VALUES, num_rounds: int = NUM_ROUNDS) -> RunFigures:
    """Median figures over interleaved rounds; every decoder's output is compared with the input first."""
    values = random_gaps(average_gap, num_values, seed=SEED)
    data = encode(values)
    coded = {"ours": Coded(data.size, lambda: decode(data, num_values))}
    coded |= {name: _fastpfor(name, values.astype(np.uint32)) for name in FASTPFOR}
    _check(coded, values)
    elapsed_ns = _rounds(coded, num_rounds)
    return RunFigures(
        average_gap=average_gap,
        values_per_s=1e9 * num_values / median(elapsed_ns["ours"]),
        bytes_per_value={name: one.size_bytes / num_values for name, one in coded.items()},
        speed_ratio=_speed_ratio(elapsed_ns),
    )


def measure_lists(lists: Sequence[NDArray[np.uint64]], *, num_rounds: int = NUM_LIST_ROUNDS) -> list[ListFigures]:
    """Figures for each range of lengths that occurs, on up to `NUM_LISTS` seeded lists of it."""
    lengths = np.array([docs.size for docs in lists])
    figures = []
    for shortest, longest in LIST_LENGTHS:
        inside = np.flatnonzero((lengths >= shortest) & (lengths <= longest))
        if not inside.size:
            continue
        drawn = np.random.default_rng(SEED).permutation(inside)[:NUM_LISTS].tolist()
        coded_lists = [_coded_list(lists[i]) for i in drawn]
        for coded, i in zip(coded_lists, drawn, strict=True):
            _check(coded, lists[i])
        by_codec = {name: [coded[name] for coded in coded_lists] for name in CODECS}
        list_ns = {name: _shortest_ns(coded, num_rounds) for name, coded in by_codec.items()}
        num_postings = int(lengths[drawn].sum())
        figures.append(
            ListFigures(
                shortest=shortest,
                longest=int(lengths[inside].max()),
                share_of_lists=inside.size / lengths.size,
                share_of_postings=float(lengths[inside].sum() / lengths.sum()),
                bytes_per_posting={
                    name: sum(one.size_bytes for one in coded) / num_postings for name, coded in by_codec.items()
                },
                decode_ns_per_list=list_ns,
                speed_ratio={name: list_ns["ours"] / theirs for name, theirs in list_ns.items()},
            )
        )
    return figures


def run(json_path: Path | None, *, num_images: int = NUM_IMAGES) -> None:
    """Print both tables, and write the figures to `json_path` if there is one."""
    runs = [measure_run(average_gap) for average_gap in AVERAGE_GAPS]
    lists = real_lists(num_images)
    table_bytes = hash_table_bytes(lists, num_images) / NUM_TABLES
    of_lists = measure_lists(lists)
    packages = versions("numba", "numpy", "pyfastpfor", "pyroaring")
    show_table(
        f"Decoding {NUM_VALUES:,} gaps: speed over ours (median of {NUM_ROUNDS} rounds, seed {SEED})",
        ["average gap", "ours M/s", *FASTPFOR],
        [
            [
                f"{row.average_gap:,}",
                f"{row.values_per_s / 1e6:,.0f}",
                *(f"{row.speed_ratio[name]:.2f}" for name in FASTPFOR),
            ]
            for row in runs
        ],
    )
    show_table(
        "The same gaps: bytes a gap",
        ["average gap", "ours", *FASTPFOR],
        [
            [f"{row.average_gap:,}", *(f"{row.bytes_per_value[name]:.2f}" for name in ("ours", *FASTPFOR))]
            for row in runs
        ],
    )
    show_table(
        f"Posting lists of {NUM_TABLES} hash tables of {num_images:,} images: bytes a posting",
        ["docs in a list", "of lists", "of postings", *CODECS],
        [[*_described(row), *(f"{row.bytes_per_posting[name]:.2f}" for name in CODECS)] for row in of_lists],
    )
    show_table(
        "The same lists, decoded one by one from Python: speed over ours",
        ["docs in a list", "ours us", *CODECS[1:]],
        [
            [
                _described(row)[0],
                f"{row.decode_ns_per_list['ours'] / 1e3:.1f}",
                *(f"{row.speed_ratio[name]:.2f}" for name in CODECS[1:]),
            ]
            for row in of_lists
        ],
    )
    print(f"A hash table takes {table_bytes:.2f} bytes an image, one 8-byte offset for each bucket in use included.")
    print("  ".join(f"{name} {version}" for name, version in packages.items()))
    write_json(
        json_path,
        {
            "benchmark": "codec",
            "num_values": NUM_VALUES,
            "num_rounds": NUM_ROUNDS,
            "images": num_images,
            "seed": SEED,
            "versions": packages,
            "hash_table_bytes_per_image": table_bytes,
            "gaps": [asdict(row) for row in runs],
            "lists": [asdict(row) for row in of_lists],
        },
    )


def _described(row: ListFigures) -> list[str]:
    lengths = f"{row.shortest:,}" if row.shortest == row.longest else f"{row.shortest:,} to {row.longest:,}"
    return [lengths, f"{row.share_of_lists:.1%}", f"{row.share_of_postings:.1%}"]


def _coded_list(docs: NDArray[np.uint64]) -> dict[str, Coded]:
    """A list of ascending docs in every codec; each decodes to the docs, prefix sums included."""
    import pyfastpfor
    from pyroaring import BitMap

    data = encode_sorted(docs)
    serialized, raw = BitMap(docs.astype(np.uint32)).serialize(), docs.astype(np.uint32).tobytes()
    coded = {"ours": Coded(data.size, lambda: decode_sorted(data, docs.size))}
    for name in FASTPFOR:
        of_gaps = _fastpfor(name, gaps(docs).astype(np.uint32))

        def summed(of_gaps: Coded = of_gaps) -> NDArray[np.unsignedinteger]:
            decoded = of_gaps.decode()
            pyfastpfor.prefixSum1(decoded, decoded.size)
            return decoded

        coded[name] = Coded(of_gaps.size_bytes, summed)
    coded["roaring"] = Coded(
        len(serialized), lambda: np.frombuffer(BitMap.deserialize(serialized).to_array(), np.uint32)
    )
    coded["raw uint32"] = Coded(len(raw), lambda: np.frombuffer(raw, "<u4").copy())
    return coded


def _fastpfor(name: str, values: NDArray[np.uint32]) -> Coded:
    codec = _codec(name)
    words = np.zeros(2 * values.size + _SLACK_WORDS, dtype=np.uint32)
    num_words = codec.encodeArray(values, values.size, words, words.size)
    words = words[:num_words].copy()
    decoded = np.zeros(values.size + _SLACK_WORDS, dtype=np.uint32)

    def decoder() -> NDArray[np.unsignedinteger]:
        num_values = codec.decodeArray(words, num_words, decoded, values.size)
        return decoded[:num_values]

    return Coded(4 * num_words, decoder)


@cache
def _codec(name: str) -> Any:
    """One codec for all arrays: some keep megabytes of buffers."""
    import pyfastpfor

    return pyfastpfor.getCodec(name)


def _check(coded: dict[str, Coded], values: NDArray[np.uint64]) -> None:
    for name, one in coded.items():
        if not np.array_equal(one.decode(), values):
            raise RuntimeError(f"{name} does not decode {values.size} values to what was encoded")


def _rounds(coded: dict[str, Coded], num_rounds: int) -> dict[str, list[int]]:
    """Nanoseconds that each codec took to decode its array, one figure for each of the interleaved rounds."""
    elapsed_ns: dict[str, list[int]] = {name: [] for name in coded}
    for _ in range(num_rounds):
        for name, one in coded.items():
            elapsed_ns[name].append(_elapsed_ns(one))
    return elapsed_ns


def _shortest_ns(coded: Sequence[Coded], num_rounds: int) -> float:
    """Nanoseconds for one array, on average over the arrays: of each the shortest time of all rounds.

    A short list is decoded in less time than a busy machine takes a core away for, which would drown a median.
    """
    return sum(min(_elapsed_ns(one) for _ in range(num_rounds)) for one in coded) / len(coded)


def _elapsed_ns(one: Coded) -> int:
    started_ns = perf_counter_ns()
    one.decode()
    return perf_counter_ns() - started_ns


def _speed_ratio(elapsed_ns: dict[str, list[int]]) -> dict[str, float]:
    """The speed of each codec over ours, the median of the ratios within each round."""
    ours = elapsed_ns["ours"]
    return {
        name: median(mine / theirs for mine, theirs in zip(ours, rounds, strict=True))
        for name, rounds in elapsed_ns.items()
    }


if __name__ == "__main__":
    run(None)
