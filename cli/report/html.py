"""What every page of ours shares: the template engine, the content security policy and the version.

A page's policy (https://www.w3.org/TR/CSP3/) allows the hashes of its one style and script and images from `data:`
addresses, nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Final

import jinja2

from batch_jobs import run_records
from cli.report.pages import json_for_html
from cli.report.wording import format_bytes, format_seconds, format_share, visible

FOLDER: Final = Path(__file__).parent
release = run_records.release


def style_sheet() -> str:
    """The style of our pages."""
    return (FOLDER / "page.css").read_text(encoding="utf-8")


def template(name: str) -> jinja2.Template:
    """A template of this folder; values are escaped unless marked safe, and a missing one is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        as_bytes=format_bytes,
        as_seconds=format_seconds,
        json_for_html=json_for_html,
        share_of=format_share,
        visible=visible,
    )
    return environment.get_template(name)


def content_security_policy(style: str, script: str | None = None) -> str:
    """The policy of a page with this style and this script or none."""

    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") + "'"

    allowed_script = "'none'" if script is None else digest(script)
    return (
        f"default-src 'none'; script-src {allowed_script}; style-src {digest(style)};"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
