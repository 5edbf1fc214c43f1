"""Chatter is held back, and only chatter."""

from __future__ import annotations

import os

import pytest

from embed.chatter import chatter_held_back


def test_only_chatter_is_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    """The greetings of TensorFlow and LiteRT vanish, any other line on stderr arrives."""
    with chatter_held_back():
        os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n")
        os.write(2, b"I0000 00:00:1795221089.450733 5872 port.cc:153] oneDNN custom operations are on.\n")
        os.write(2, b"2026-01-01 10:00:00.000000: I tensorflow/core/x.cc:1] This TensorFlow binary is optimized\n")
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n")
        os.write(2, b"disk is failing\n")

    assert capfd.readouterr().err == "disk is failing\n"


def test_an_error_inside_keeps_what_was_written(capfd: pytest.CaptureFixture[str]) -> None:
    """If the import fails, its error and its output both get through."""

    def failing_import() -> None:
        with chatter_held_back():
            os.write(2, b"why it failed\n")
            raise ImportError("no backend")

    with pytest.raises(ImportError, match="no backend"):
        failing_import()
    assert capfd.readouterr().err == "why it failed\n"
