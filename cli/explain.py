"""`neardup explain`: why two images are, or are not, the same picture."""

from __future__ import annotations

from pathlib import Path

import click

HELP = """\
Say whether LEFT and RIGHT show the same picture, and why, by geometry: keypoints that agree on one transform.

The verdict is same, different, or unsure where an image has too little texture. With --similarity the embedder is asked
as well. --output draws the keypoints that agree.

\b
  neardup explain original.jpg upload.jpg
  neardup explain original.jpg upload.jpg --output overlay.png --similarity
"""


@click.command(name="explain", help=HELP)
@click.argument("left", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("right", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the overlay to this .png file.")
@click.option("--similarity", is_flag=True, help="Also the embedder's similarity and threshold.")
@click.option("--embedder", default="vgg_copy", show_default=True, help="Built-in embedder, or an embedder directory.")
def command(*, left: Path, right: Path, output: Path | None, similarity: bool, embedder: str) -> None:
    from embed.evaluation.planted import open_photo
    from embed.geometry import describe_transform, draw_inliers, find_features, verify_geometry

    if output is not None and (output.suffix != ".png" or not output.parent.is_dir()):
        raise click.UsageError(f"--output {output}: give a name that ends in .png, in a folder that exists")
    images = [open_photo(path) for path in (left, right)]
    features = [find_features(image) for image in images]
    found = verify_geometry(features[0], features[1])
    sizes = [(image.shape[1], image.shape[0]) for image in images]
    click.echo(f"verdict           {found.verdict.value}")
    click.echo(
        f"keypoints         {len(features[0].points):,} and {len(features[1].points):,}; {found.num_inliers:,} agree"
    )
    click.echo(f"overlap           {found.agreement:.0%} of its textured blocks correlate")
    click.echo(f"transform         {describe_transform(found, left_size=sizes[0], right_size=sizes[1])}")
    if similarity:
        from embed.embedder import load_embedder
        from embed.preprocessing import to_square

        loaded = load_embedder(embedder, batch_size=2)
        import numpy as np

        rows = loaded.embed(np.stack([to_square(image, loaded.spec.size) for image in images]))
        relation = "a match" if float(rows[0] @ rows[1]) >= loaded.spec.min_score else "no match"
        click.echo(f"similarity        {float(rows[0] @ rows[1]):.4f}, {relation} from {loaded.spec.min_score:g} on")
    if output is not None:
        from PIL import Image

        from batch_jobs.workspace import published_file

        with published_file(output) as file:
            Image.fromarray(draw_inliers(images[0], images[1], found)).save(file, "PNG")
        click.echo(f"overlay           {output}")
