"""`python -m benchmarks codec`: variable-byte decoding beside pyfastpfor's codecs, on the same lists in one run.

Ours decodes to 64-bit integers into a new array and checks every byte; FastPFor's codecs decode to 32-bit integers into
an array given to them and trust their input. Rounds are interleaved and each ratio is taken within its round, so a
busy machine slows all sides alike. `vbyte` is the peer with our bytes; the SIMD codecs show what other layouts buy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import versions, write_json
from cli.tables import show_table
from lsh.variable_byte import decode, encode

AVERAGE_GAPS = (3, 60, 1_000, 100_000)
PEERS = ("vbyte", "maskedvbyte", "streamvbyte")
NUM_VALUES = 1 << 17
NUM_ROUNDS = 101
SEED = 0
_SLACK_WORDS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecFigures:
    """One average gap: our speed and size, and by peer the ratio of its speed to ours and its size."""

    average_gap: int
    values_per_s: float
    bytes_per_value: float
    speed_ratio: dict[str, float]
    peer_bytes_per_value: dict[str, float]


def random_gaps(average_gap: int, count: int, *, seed: int) -> NDArray[np.uint64]:
    """`(count,)` uint64 gaps of docs that share a bucket at random: geometric, at least 1."""
    return np.random.default_rng([seed, average_gap]).geometric(1.0 / average_gap, count).astype(np.uint64)


def measure(average_gap: int, *, num_values: int = NUM_VALUES, num_rounds: int = NUM_ROUNDS) -> CodecFigures:
    """Median figures over `num_rounds` interleaved rounds; every decoder's output is compared with the input first."""
    values = random_gaps(average_gap, num_values, seed=SEED)
    data = encode(values)
    decoders: dict[str, Callable[[], NDArray[np.unsignedinteger]]] = {"ours": lambda: decode(data, num_values)}
    peer_bytes_per_value = {}
    for peer in PEERS:
        decoders[peer], num_words = _peer_decoder(peer, values.astype(np.uint32))
        peer_bytes_per_value[peer] = 4.0 * num_words / num_values
    for name, decoder in decoders.items():
        if not np.array_equal(decoder(), values):
            raise RuntimeError(f"{name} does not decode gaps of {average_gap} on average to what was encoded")
    elapsed_ns = {name: [_elapsed_ns(decoder)] for name, decoder in decoders.items()}
    for _ in range(num_rounds - 1):
        for name, decoder in decoders.items():
            elapsed_ns[name].append(_elapsed_ns(decoder))
    return CodecFigures(
        average_gap=average_gap,
        values_per_s=1e9 * num_values / median(elapsed_ns["ours"]),
        bytes_per_value=data.size / num_values,
        speed_ratio={
            peer: median(ours / theirs for ours, theirs in zip(elapsed_ns["ours"], elapsed_ns[peer], strict=True))
            for peer in PEERS
        },
        peer_bytes_per_value=peer_bytes_per_value,
    )


def run(json_path: Path | None) -> None:
    """Print the table for every average gap, and write the figures to `json_path` if there is one."""
    figures = [measure(average_gap) for average_gap in AVERAGE_GAPS]
    packages = versions("numba", "numpy", "pyfastpfor")
    show_table(
        f"Decoding {NUM_VALUES:,} gaps: speed as a ratio, ours = 1.00 (median of {NUM_ROUNDS} rounds, seed {SEED})",
        ["average gap", "ours", "M values/s", *PEERS, "ours / vbyte", "bytes: ours", *PEERS],
        [
            [
                f"{row.average_gap:,}",
                "1.00",
                f"{row.values_per_s / 1e6:,.0f}",
                *(f"{row.speed_ratio[peer]:.2f}" for peer in PEERS),
                f"{1.0 / row.speed_ratio['vbyte']:.2f}",
                f"{row.bytes_per_value:.2f}",
                *(f"{row.peer_bytes_per_value[peer]:.2f}" for peer in PEERS),
            ]
            for row in figures
        ],
    )
    print("  ".join(f"{name} {version}" for name, version in packages.items()))
    write_json(
        json_path,
        {
            "benchmark": "codec",
            "num_values": NUM_VALUES,
            "num_rounds": NUM_ROUNDS,
            "seed": SEED,
            "versions": packages,
            "gaps": [
                {
                    "average_gap": row.average_gap,
                    "values_per_s": row.values_per_s,
                    "bytes_per_value": row.bytes_per_value,
                    "ours_over_vbyte": 1.0 / row.speed_ratio["vbyte"],
                    "speed_ratio": row.speed_ratio,
                    "peer_bytes_per_value": row.peer_bytes_per_value,
                }
                for row in figures
            ],
        },
    )


def _peer_decoder(peer: str, values: NDArray[np.uint32]) -> tuple[Callable[[], NDArray[np.uint32]], int]:
    """A function that decodes `values` with a codec of pyfastpfor, and the 32-bit words of their code."""
    import pyfastpfor

    codec = pyfastpfor.getCodec(peer)
    words = np.zeros(2 * values.size + _SLACK_WORDS, dtype=np.uint32)
    num_words = codec.encodeArray(values, values.size, words, words.size)
    decoded = np.zeros(values.size + _SLACK_WORDS, dtype=np.uint32)

    def decoder() -> NDArray[np.uint32]:
        num_values = codec.decodeArray(words, num_words, decoded, values.size)
        return decoded[:num_values]

    return decoder, num_words


def _elapsed_ns(decoder: Callable[[], object]) -> int:
    start_ns = perf_counter_ns()
    decoder()
    return perf_counter_ns() - start_ns


if __name__ == "__main__":
    run(None)
