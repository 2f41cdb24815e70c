"""`rolloutctl verdict --stdin`.

One answer a line, bad lines that harm nothing, and streams put away.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from controller.cli.common import EXIT_REJECTED, EXIT_USAGE
from controller.cli.operator import app
from controller.cli.verdict_lines import MAX_LINE_BYTES, Bench

LATENCY = {"gamma": 1.02, "buckets": {"198": 6, "231": 4}}


PAGE = Path(__file__).parents[3] / "ops" / "verdict.md"


def test_the_sample_of_the_page_is_what_the_command_answers() -> None:
    """Its totals, given to the command, yield its lines; `…` stands for what was left out."""
    block = re.search(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    totals, answers = block[1].split("$ rolloutctl verdict --stdin < totals.jsonl\n")
    lines = re.sub(r"\n +", "", totals.partition("\n")[2])
    ran = CliRunner().invoke(app, ["verdict", "--stdin"], input=lines)
    assert ran.exit_code == 0, ran.output
    shown = re.sub(r"\n +", "", answers).splitlines()
    assert len(shown) == len(ran.stdout.splitlines()) == 2
    for written, answered in zip(shown, ran.stdout.splitlines(), strict=True):
        parts = [re.escape(part) for part in written.split("…")]
        assert re.fullmatch(".*".join(parts), answered), (written, answered)


def make_line(look: int = 1, failed: int = 0, **overrides: Any) -> dict[str, Any]:
    """Return a look at a stream of a tenth.

    So many hundred contexts in control, `failed` of treatment's.
    """
    fields: dict[str, Any] = {
        "stream": "s1",
        "stage": 0,
        "share": 0.1,
        "alpha": 0.01,
        "looks_planned": 200,
        "control": {
            "contexts": 900 * look,
            "contexts_with_error": 4 * look,
            "outcomes": 900 * look,
            "errors": 4 * look,
            "latency": {"gamma": 1.02, "buckets": {"198": 500 * look, "231": 400 * look}},
        },
        "treatment": {
            "contexts": 100 * look,
            "contexts_with_error": failed,
            "outcomes": 100 * look,
            "errors": failed,
            "latency": {"gamma": 1.02, "buckets": {"198": 60 * look, "231": 40 * look}},
        },
    }
    return {**fields, **overrides}


def answered(*lines: dict[str, Any] | str, ready_streams: int = 1000) -> list[dict[str, Any]]:
    """Return the answers to these lines."""
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    return [
        json.loads(answer) for answer in Bench(ready_streams).answers(io.BytesIO(text.encode()))
    ]


def test_each_line_gets_its_answer_and_a_roll_back_is_final() -> None:
    """Harmless looks continue; harm rolls back, and stays rolled back whatever comes."""
    answers = answered(
        make_line(1),
        make_line(2, failed=1),
        make_line(3, failed=90),
        make_line(4, failed=90),
        "",
        "{}",
    )
    assert [answer.get("verdict") for answer in answers] == [
        "continue",
        "continue",
        "roll_back",
        "roll_back",
        None,
    ]
    assert answers[3]["reasons"] == [answers[2]["reasons"][-1]]
    assert "look 3" in answers[3]["reasons"][0]


def test_the_first_answer_says_what_is_watched() -> None:
    """A metric that was left out by mistake is seen to be missing, once."""
    alone: dict[str, Any] = {
        "control": {"outcomes": 900, "errors": 4},
        "treatment": {"outcomes": 100, "errors": 0},
    }
    first, second = answered(make_line(1, **alone), make_line(1, **alone))
    assert first["reasons"][0] == "watched: error_rate by outcomes; compared with control"
    assert any("contexts_with_error are not known" in reason for reason in first["reasons"])
    assert not any("not known" in reason for reason in second["reasons"])


def test_a_stream_waits_for_something_to_compare() -> None:
    """A line without metrics is answered, and settles nothing.

    What is watched is settled by the first that has some.
    """
    empty = make_line(control={}, treatment={})
    first, second = answered(empty, make_line())
    assert first == {
        "stream": "s1",
        "verdict": "continue",
        "reasons": ["neither errors nor latency of both arms so far"],
    }
    assert second["reasons"][0] == "watched: error_rate by contexts, latency; compared with control"


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        ("{", "line", "is not JSON"),
        ('"s1"', "line", "expected object"),
        (make_line(share=1.5), "share", "<= 1.0"),
        (make_line(alpha=0), "alpha", "> 0.0"),
        (make_line(alpha=0.05), "alpha", "was 0.01 at the stream's first line"),
        (make_line(looks_planned="many"), "looks_planned", "expected int"),
        (
            {key: value for key, value in make_line().items() if key != "stage"},
            "stage",
            "is missing",
        ),
        (make_line(control={"contexts": -1}), "control.contexts", ">= 0"),
        (
            make_line(control={"latency": {"gamma": 1.0, "buckets": {}}}),
            "control.latency.gamma",
            "> 1.0",
        ),
        (
            make_line(control={"latency": {"gamma": 1.02, "buckets": {"x": 1}}}),
            "control.latency.buckets",
            "expected int",
        ),
        (
            make_line(treatment={"contexts": 5, "contexts_with_error": 6}),
            "treatment.contexts_with_error",
            "more than the 5",
        ),
        (
            make_line(treatment={"contexts": 10, "contexts_with_error": 0}),
            "treatment.contexts",
            "fell from 100 to 10",
        ),
        (
            make_line(treatment={"latency": LATENCY}),
            "treatment.latency.buckets",
            "fell from 60 to 6",
        ),
    ],
)
def test_a_bad_line_is_named_and_harms_nothing(
    line: dict[str, Any] | str, field: str, words: str
) -> None:
    """The answer names line, field and fix; the stream goes on as if the line had not been."""
    before, after = make_line(1), make_line(2, failed=30)
    first, bad, second = answered(before, line, after)
    assert bad["error"].startswith(f"line 2: {field}: ")
    assert words in bad["error"]
    assert bad["fix"]
    assert "verdict" not in bad
    assert [first, second] == answered(before, after)


def test_a_line_that_is_too_long_is_dropped_whole() -> None:
    """The rest of a line without end is not taken for lines."""
    answers = answered(make_line(1), '"' + 3 * MAX_LINE_BYTES * "x" + '"', make_line(2))
    assert [("error" in answer, answer.get("line")) for answer in answers] == [
        (False, None),
        (True, 2),
        (False, None),
    ]


def test_streams_put_away_answer_as_if_they_had_stayed() -> None:
    """Room for one stream changes no answer of three that take turns."""
    lines = [
        make_line(look, failed=3 * look, stream=f"s{number}")
        for look in range(1, 8)
        for number in range(3)
    ]
    assert answered(*lines, ready_streams=1) == answered(*lines)


@pytest.mark.parametrize("gamma", [1.005, 1.05, 1.1])
def test_buckets_of_another_gamma_keep_their_order(gamma: float) -> None:
    """What was slower stays slower: a tail in foreign buckets is found as one in ours."""
    fast, slow = round(200 / gamma), round(400 / gamma)

    def line(look: int) -> dict[str, Any]:
        def histogram(quick: int, late: int) -> dict[str, Any]:
            return {
                "latency": {
                    "gamma": gamma,
                    "buckets": {str(fast): quick * look, str(slow): late * look},
                }
            }

        return make_line(control=histogram(895, 5), treatment=histogram(80, 20))

    verdicts = [answer["verdict"] for answer in answered(*(line(look) for look in range(1, 6)))]
    assert verdicts[0] == "continue"
    assert verdicts[-1] == "roll_back"


def test_the_command_reads_standard_input_and_tells_of_bad_lines_by_its_exit_code() -> None:
    """0 when every line was used, 1 when one was not, 2 without --stdin."""
    good = json.dumps(make_line()) + "\n"
    result = CliRunner().invoke(app, ["verdict", "--stdin"], input=good + good)
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 2)
    assert (
        CliRunner().invoke(app, ["verdict", "--stdin"], input=good + "{}\n").exit_code
        == EXIT_REJECTED
    )
    assert CliRunner().invoke(app, ["verdict"], input=good).exit_code == EXIT_USAGE
