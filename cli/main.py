"""`neardup`, the operator's command.

Commands are loaded when they are called, so that help and completion answer at once.
"""

from __future__ import annotations

import gc
import signal
import sys
import threading
from importlib import import_module
from pathlib import Path

import click

from cli.exit_codes import ExitCode

_AFTER_CALLBACK_S = 0.05
COMMANDS = {
    "dedup": ("cli.dedup", "Find the near-duplicates of a folder or table."),
    "embed": ("cli.embed", "Write embeddings, for people who bring their own index."),
    "tune": ("cli.tune", "Find the cheapest hashing that keeps near pairs."),
    "nightly": ("cli.nightly", "Bring a workspace up to date with a source."),
    "index": ("cli.index", "Build, list, verify, promote and roll back indexes."),
    "serve": ("cli.serve", "Serve lookups over gRPC."),
    "lookup": ("cli.lookup", "Ask a server for the near-duplicates of images."),
    "register": ("cli.register", "Make images findable on a server."),
    "remove": ("cli.remove", "Take images out of a server's answers."),
    "stream": ("cli.stream", "Register new images at a server as they come."),
    "evaluate": ("cli.evaluate", "Measure recall, beside PDQ and pHash."),
    "explain": ("cli.explain", "Say why images are together, or not."),
    "label-pairs": ("cli.label_pairs", "Label candidate pairs by geometry."),
    "calibrate": ("cli.calibrate", "Choose the threshold for a precision."),
    "train-embedder": ("cli.train_embedder", "Train the network on your own photos."),
    "train-head": ("cli.train_head", "Train an embedder's last layer alone."),
    "quantize": ("cli.quantize", "Give an embedder an int8 network, for CPUs."),
    "train-classifier": ("cli.train_classifier", "Train the second stage, which looks at pairs."),
    "runs": ("cli.runs", "Look at runs, compare, resume and clean up."),
    "cluster": ("cli.cluster", "Look at a cluster; split or merge by hand."),
    "models": ("cli.models", "Say which models there are, and where from."),
    "completion": ("cli.completion", "Print what makes a shell complete commands."),
}

FLOW = """\
Find near-duplicate images: resized, cropped, recompressed, flipped, captioned.

\b
Find them in what you have:
  neardup dedup photos/                    clusters, a summary and a report
  neardup dedup photos/ --min-score 0.9    stricter; finished steps are reused
  neardup dedup images.parquet --json      a table in, one JSON object out
  neardup embed photos/ --output photos.npz
  neardup dedup photos.npz                 embeddings in, clusters out

\b
Every night:
  neardup nightly photos/ --promote        only what has changed costs anything

\b
Look new uploads up:
  neardup index build --promote            an index of the newest clusters
  neardup serve --insecure                 from this machine only
  neardup lookup upload.jpg                was it seen before?

\b
Look at what runs have done, and correct it by hand:
  neardup runs list                        every run; show, diff, resume, gc
  neardup explain a.jpg                    why it is in its cluster, or in none
  neardup cluster split a.jpg --reason "another cat"

\b
Know how good it is, and make it yours:
  neardup evaluate photos/ --report evaluation.html
  neardup explain a.jpg b.jpg --output overlay.png
  neardup calibrate photos/ --precision 0.99 --output calibrated/
  neardup train-embedder photos/ --output my-embedder/
  neardup models list

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
    sys.unraisablehook = _interrupt_again
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
    finally:
        # Python would look through all that is left for cycles before it gives it back.
        gc.freeze()


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
        lsh.StoreError: ExitCode.STORE,
        service.GenerationRefused: ExitCode.WORKSPACE,
        service.LogError: ExitCode.WORKSPACE,
        service.CallFailed: ExitCode.SERVICE,
        service.ServiceError: ExitCode.USAGE,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), ExitCode.INTERNAL)


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Repeat a Ctrl-C that struck in a callback, where Python would print it and go on, once the callback is over."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(_AFTER_CALLBACK_S, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


def _say(text: str) -> None:
    click.echo(f"neardup: {text}", err=True)


def _internal(error: Exception) -> str:
    """A bug of ours: the traceback goes to a file that the operator can attach to an issue."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="neardup-crash-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    return f"internal error: {type(error).__name__}: {error}; please report it with {Path(file.name)}"
