"""The AsyncAPI document, judged by the AsyncAPI project's own parser.

From npm, where Node.js is installed.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from schemas import generate
from tests import npm_packages

PARSER = "@asyncapi/parser@3.6.3"
JUDGE = """
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
const { Parser } = createRequire(process.argv[2] + "/")("@asyncapi/parser");
const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[3], "utf8"));
const errors = diagnostics.filter((found) => found.severity === 0);
for (const found of errors) console.log(found.path.join("."), found.message);
console.log(document ? `valid ${document.version()}` : "invalid");
process.exit(document && errors.length === 0 ? 0 : 1);
"""


@pytest.fixture(scope="session")
def parser() -> Path:
    """The directory that has the parser installed, kept between runs.

    Skips, saying why, where it cannot be had.
    """
    return npm_packages.installed_package(PARSER, "AsyncAPI document NOT judged by its parser")


def judged(parser: Path, document: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Return what the parser says of a document; exit code 0 means no error."""
    script = tmp_path / "judge.mjs"
    script.write_text(JUDGE)
    command = ["node", str(script), str(parser), str(document)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_document_passes_the_asyncapi_parser(parser: Path, tmp_path: Path) -> None:
    """The document we ship has no error by the reference parser."""
    verdict = judged(parser, generate.HERE / "asyncapi.yaml", tmp_path)
    assert (verdict.returncode, verdict.stdout.strip()) == (0, "valid 3.0.0"), (
        verdict.stdout + verdict.stderr
    )


def test_the_parser_does_find_mistakes(parser: Path, tmp_path: Path) -> None:
    """A reference that leads nowhere is refused, so that passing means something."""
    broken = tmp_path / "asyncapi.yaml"
    text = (generate.HERE / "asyncapi.yaml").read_text("utf-8")
    broken.write_text(text.replace("'#/channels/state'", "'#/channels/nowhere'"))
    assert judged(parser, broken, tmp_path).returncode == 1
