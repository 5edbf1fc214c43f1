"""`neardup`, the operator's command.

Commands are loaded when they are called, so that help and completion answer at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import click

from cli.exit_codes import ExitCode

COMMANDS = {
    "dedup": ("cli.dedup", "Find the near-duplicates of a folder or table and write clusters and a report."),
    "embed": ("cli.embed", "Write the embeddings of a folder or table, for people who bring their own index."),
    "evaluate": ("cli.evaluate", "Measure recall at a stated precision, beside PDQ and pHash."),
    "explain": ("cli.explain", "Say why two images are, or are not, the same picture."),
    "label-pairs": ("cli.label_pairs", "Label candidate pairs by geometry."),
    "train-classifier": ("cli.train_classifier", "Train the second stage that looks at a pair, on your own photos."),
    "calibrate": ("cli.calibrate", "Turn scores into probabilities and choose the threshold for a precision."),
    "index": ("cli.index", "Build, list, verify, promote, roll back and clean up index generations."),
    "tune": ("cli.tune", "Find the cheapest way to hash a corpus that keeps its near pairs."),
    "train-embedder": ("cli.train_embedder", "Train the network on your own photos."),
    "models": ("cli.models", "Say which models there are, and what each was trained on."),
    "serve": ("cli.serve", "Serve lookups over gRPC: was this image seen before?"),
    "lookup": ("cli.lookup", "Ask a server for the near-duplicates of images."),
    "register": ("cli.register", "Make images findable on a server."),
    "remove": ("cli.remove", "Take images out of a server's answers."),
}

FLOW = """\
Find near-duplicate images: resized, cropped, recompressed, flipped, captioned.

\b
The usual flow:
  neardup dedup photos/                       clusters, a summary and a report
  neardup dedup photos/ --min-score 0.9       stricter; finished steps are reused
  neardup dedup images.parquet --json         a table in, one JSON object out
  neardup embed photos/ --output photos.npz   embeddings only
  neardup dedup photos.npz                    embeddings in, clusters out
  neardup tune photos.npz --output plan.json  how to hash a large corpus
  neardup evaluate photos/ --report evaluation.html    how much is found, and what is missed
  neardup calibrate photos/ --precision 0.99 --output calibrated/    a threshold for your own photos
  neardup explain a.jpg b.jpg --output overlay.png    why two images match, or do not
  neardup train-embedder photos/ --output my-embedder/
  neardup models list                         which models there are, and where they come from
  neardup index build --promote               an index of the newest clusters, for lookups
  neardup serve --insecure                    lookups over gRPC, from this machine only
  neardup lookup upload.jpg                   was it seen before?

\b
Every option of COMMAND can also be set in the environment as
NEARDUP_<COMMAND>_<OPTION>, for example NEARDUP_DEDUP_MIN_SCORE=0.9.
"""


class LazyGroup(click.Group):
    """A group whose commands are imported on their first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        command = import_module(module).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.command is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(
    cls=LazyGroup, help=FLOW, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="neardup", prog_name="neardup")
def neardup() -> None:
    pass


def main() -> None:
    """Run the command line and exit with an `ExitCode`; no error that we know of shows a traceback."""
    try:
        status = neardup.main(standalone_mode=False, auto_envvar_prefix="NEARDUP")
        sys.exit(status if isinstance(status, int) else ExitCode.OK)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted; run the same command again to go on where it stopped")
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(ExitCode.OK)
    except Exception as error:
        code = exit_code_of(error)
        _say(f"error: {error}" if code is not ExitCode.INTERNAL else _internal(error))
        sys.exit(code)


def exit_code_of(error: Exception) -> ExitCode:
    """The exit code of an error of our own packages; INTERNAL for any other."""
    from batch_jobs import errors as batch
    from cli.report.errors import ReportError
    from embed import errors as embed
    from lsh import errors as lsh
    from service import errors as service

    codes: dict[type[Exception], ExitCode] = {
        batch.SourceError: ExitCode.SOURCE,
        batch.WorkspaceError: ExitCode.WORKSPACE,
        batch.RejectedError: ExitCode.REJECTED,
        batch.SessionError: ExitCode.SPARK,
        batch.BatchError: ExitCode.USAGE,
        ReportError: ExitCode.WORKSPACE,
        embed.EmbedderError: ExitCode.EMBEDDER,
        embed.ImageRejected: ExitCode.REJECTED,
        embed.EvaluationError: ExitCode.EVALUATION,
        embed.CalibrationError: ExitCode.EVALUATION,
        embed.ClassifierError: ExitCode.TRAINING,
        embed.TrainingError: ExitCode.TRAINING,
        embed.LineageError: ExitCode.MODEL,
        lsh.ParameterError: ExitCode.USAGE,
        lsh.FormatError: ExitCode.WORKSPACE,
        lsh.GenerationError: ExitCode.WORKSPACE,
        service.GenerationRefused: ExitCode.WORKSPACE,
        service.LogError: ExitCode.WORKSPACE,
        service.CallFailed: ExitCode.SERVICE,
        service.ServiceError: ExitCode.USAGE,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), ExitCode.INTERNAL)


def _say(text: str) -> None:
    click.echo(f"neardup: {text}", err=True)


def _internal(error: Exception) -> str:
    """A bug of ours: the traceback goes to a file that the operator can attach to an issue."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="neardup-crash-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    return f"internal error: {type(error).__name__}: {error}; please report it with {Path(file.name)}"
