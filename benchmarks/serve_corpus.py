"""The corpus that `benchmarks serve` asks for: a workspace with an index of synthetic embeddings, and requests."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.batch_embeddings import plant_embeddings
from benchmarks.lookup import BruteForce, K, held_out_queries, write_index
from benchmarks.serve_load import write_requests
from benchmarks.serve_peers import first_rows
from lsh.index.generation import read_manifest
from lsh.index.layout import probes_for
from lsh.index.manifest import MANIFEST_NAME
from lsh.index.publishing import generation_folder, new_generation, promote
from service import neardup_pb2 as pb
from service.client import lookup_request, query_message


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """A workspace in `folder` and what is asked of it: held-out `queries` `(n, DIM)`, and the requests made of them."""

    num_images: int
    seed: int
    generation_id: str
    queries: NDArray[np.float32]
    folder: Path
    requests: str

    @property
    def index(self) -> Path:
        """The workspace's index."""
        return self.folder / "index"

    @property
    def generation_folder(self) -> Path:
        """The generation that is served first."""
        return generation_folder(self.index, self.generation_id)


def best_cosines(corpus: Corpus, num_kept: int) -> NDArray[np.float32]:
    """Each query's largest cosine with the first `num_kept` rows, by brute force."""
    truth = BruteForce(corpus.queries)
    for rows in first_rows(corpus.num_images, len(corpus.queries), num_kept, seed=corpus.seed):
        truth.add(rows)
    return truth.cosines


def write_corpus(folder: Path, num_images: int, num_queries: int, *, seed: int) -> tuple[Corpus, NDArray[np.float32]]:
    """A workspace in `folder` whose current generation has the corpus; with each query's largest cosine."""
    index, queries = folder / "index", held_out_queries(num_images, num_queries, seed=seed)
    with new_generation(index) as generation:
        best = write_index(generation, num_images, queries, seed=seed, num_probes=probes_for(num_images))
        generation_id = read_manifest(generation).generation_id
    promote(index, generation_id)
    requests = [lookup_request(query, k=K).SerializeToString() for query in queries]
    path = write_requests(folder / "lookups.npy", requests)
    return Corpus(num_images, seed, generation_id, queries, folder, path), best


def add_next_generation(corpus: Corpus) -> str:
    """A whole second generation: the first one's files copied, under another threshold; returns its id."""
    with new_generation(corpus.index) as folder:
        shutil.copytree(corpus.generation_folder, folder, dirs_exist_ok=True)
        manifest = read_manifest(folder)
        changed = replace(manifest, min_score=manifest.min_score + 1e-6)
        (folder / MANIFEST_NAME).write_bytes(changed.to_bytes())
        return changed.generation_id


def register_requests(corpus: Corpus, num_registers: int, *, name: str = "uploads") -> str:
    """Requests that register images which the corpus does not know, half of them copies of each other."""
    seed = np.random.SeedSequence([corpus.seed, *name.encode()]).generate_state(1)[0]
    embeddings = plant_embeddings(num_registers, seed=int(seed)).embeddings
    requests = [
        pb.RegisterRequest(image_id=f"{name}/{number:09d}", query=query_message(row)).SerializeToString()
        for number, row in enumerate(embeddings)
    ]
    return write_requests(corpus.folder / f"{name}.npy", requests)
