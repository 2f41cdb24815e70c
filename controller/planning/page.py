"""A page about virtual rollouts: one HTML file with plots as SVG, which loads nothing else.

Belongs here: the appearance. Does not belong here: the figures (`figures.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from html import escape

from controller.core.metrics.kind import share_words
from controller.core.plan import Plan
from controller.planning.figures import ShareOfRuns, Spread, TriedTraffic, time_to_find
from controller.planning.simulation import VirtualRollout
from controller.text import plural
from schemas.fields import format_duration

WIDTH = 960
_LEFT, _RIGHT = 64, 24
#: More lines than this cannot be told apart.
_PATHS_DRAWN = 60

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--dim:#667085;--line:#e4e7ec;--paper:#fff;
--panel:#f8f9fb;
--good:#2f855a;--bad:#c53030;--wait:#b7791f;--other:#8a94a6;--one:#2b6cb0}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ef;--dim:#98a2b3;--line:#2f3746;
--paper:#12161d;--panel:#191f29;
--good:#4cb782;--bad:#f07171;--wait:#e0ac4f;--other:#7d8798;--one:#63a4e8}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1040px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px;font-weight:650;letter-spacing:-.01em}
h2{font-size:18px;margin:44px 0 2px;font-weight:620}
p{margin:6px 0;max-width:76ch}.dim{color:var(--dim)}.small{font-size:13px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px;
margin:18px 0 8px}
.tile{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.tile b{display:block;font-size:22px;line-height:1.3;font-weight:640;
font-variant-numeric:tabular-nums}
.tile span{color:var(--dim);font-size:13px}
figure{margin:14px 0 0}svg{display:block;width:100%;height:auto;overflow:visible}
svg text{fill:var(--dim);font-size:12.5px;font-family:inherit}
svg text.ink{fill:var(--ink)}svg text.on{fill:var(--paper);font-weight:600}
.grid{stroke:var(--line);stroke-width:1}.axis{stroke:var(--dim);stroke-width:1}
table{border-collapse:collapse;margin-top:14px;width:100%;font-variant-numeric:tabular-nums;
font-size:14px}
th{font-weight:500;color:var(--dim);text-align:right;padding:6px 10px;
border-bottom:1px solid var(--line)}
td{text-align:right;padding:6px 10px;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left;padding-left:0}
.key{display:flex;flex-wrap:wrap;gap:6px 18px;margin:8px 0 0;font-size:13px;color:var(--dim)}
.key i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px;
vertical-align:-1px}
""".strip()

_ENDS: tuple[tuple[str, str, Callable[[VirtualRollout], bool]], ...] = (
    ("completed", "--good", lambda run: run.ended == "completed"),
    (
        "rolled back",
        "--bad",
        lambda run: (
            run.ended == "rolled_back" or (run.ended == "paused" and run.found_at is not None)
        ),
    ),
    ("undecided at max_bake", "--wait", lambda run: run.ended == "undecided"),
    (
        "otherwise",
        "--other",
        lambda run: run.ended in ("paused", "given_up") and run.found_at is None,
    ),
)


def page(
    plan: Plan,
    scenarios: Sequence[TriedTraffic],
    assumed: Sequence[str],
    seed: int,
    starts_at: datetime,
) -> str:
    """Return the page as HTML."""
    runs = len(scenarios[0].runs)
    control = scenarios[0].traffic.words(plan)
    body = [
        f"<h1>{escape(plan.name)} <span class='dim'>of {escape(plan.flag_key)}</span></h1>",
        (
            f"<p class='dim'>{plural(runs, 'virtual rollout')} each, by the daemon's own state "
            f"machine and tests. Control: {escape(control)}.</p>"
        ),
    ]
    if assumed:
        body.append(
            f"<p class='dim small'>Assumed, because not stated: {escape(', '.join(assumed))}.</p>"
        )
    for scenario in scenarios:
        body += _section(plan, scenario)
    body += _small_print(plan, seed, starts_at)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><meta "
        "name='viewport' content='width=device-width'>"
        f"<title>{escape(plan.name)}: simulated</title><style>{_STYLE}</style></head><body><main>"
        + "\n".join(body)
        + "</main></body></html>\n"
    )


def _section(plan: Plan, scenario: TriedTraffic) -> Iterable[str]:
    effects = ", ".join(str(effect) for effect in scenario.traffic.effects)
    yield f"<h2>{'With ' + escape(effects) if effects else 'Treatment as good as control'}</h2>"
    yield _tiles(scenario)
    yield _figure(_ends(scenario), "How the rollouts end.")
    yield _key(scenario)
    longest = max(run.at - run.started_at for run in scenario.runs)
    drawn = min(len(scenario.runs), _PATHS_DRAWN)
    yield _figure(
        _paths(scenario, longest),
        f"What is served over time; {plural(drawn, 'rollout')}, one line each.",
    )
    if effects and (
        seconds := [value for run in scenario.runs if (value := time_to_find(run)) is not None]
    ):
        harmed = sum(run.harm_began_at is not None for run in scenario.runs)
        caption = (
            "Part of the rollouts in which the harm has been found, by the time since it began."
        )
        yield _figure(_found_within(seconds, harmed), caption)
    yield _stage_table(plan, scenario)


def _tiles(scenario: TriedTraffic) -> str:
    tiles = [_share_tile("completed", scenario.promoted)]
    if scenario.traffic.effects:
        tiles.append(_share_tile("harm found", scenario.found))
        tiles.append(_share_tile("completed in spite of the harm", scenario.missed))
        if (seconds := scenario.seconds_to_find) is not None:
            tiles.append(_duration_tile("until it is found, median", seconds))
        if (contexts := scenario.harmed_contexts) is not None:
            tiles.append(_number_tile("contexts exposed to it, median", contexts))
        if (failures := scenario.extra_failures) is not None and failures.p90 >= 1:
            tiles.append(_number_tile("excess failures, median", failures))
    else:
        tiles.append(_share_tile("false alarms", scenario.false_alarm))
    tiles.append(_share_tile("undecided at max_bake", scenario.undecided))
    if (through := scenario.seconds_to_complete) is not None:
        tiles.append(_duration_tile("until completed, median", through))
    return (
        "<div class='tiles'>"
        + "".join(
            f"<div class='tile'><b>{value}</b>{name}<br><span>{more}</span></div>"
            for name, value, more in tiles
        )
        + "</div>"
    )


def _share_tile(name: str, part: ShareOfRuns) -> tuple[str, str, str]:
    """Return name, value and detail of a tile about a part of the rollouts."""
    return name, share_words(part.share), _between(part)


def _duration_tile(name: str, seconds: Spread) -> tuple[str, str, str]:
    return name, _duration(seconds.median), f"90 % within {_duration(seconds.p90)}"


def _number_tile(name: str, numbers: Spread) -> tuple[str, str, str]:
    return name, f"{numbers.median:,.0f}", f"90 % at most {numbers.p90:,.0f}"


def _key(scenario: TriedTraffic) -> str:
    entries = []
    for name, colour, is_one in _ENDS:
        part = scenario.part(is_one)
        if part.count:
            entries.append(
                f"<span><i style='background:var({colour})'></i>{name} {part.count:,}</span>"
            )
    return f"<div class='key'>{''.join(entries)}</div>"


def _stage_table(plan: Plan, scenario: TriedTraffic) -> str:
    rows = []
    for index, (stage, declared) in enumerate(
        zip(scenario.stages, plan.stages, strict=True), start=1
    ):
        seconds, contexts = stage.seconds, stage.contexts
        cells = (
            f"{index}: {stage.percent:g} %",
            _duration(stage.planned.total_seconds()),
            _duration((declared.settle + declared.max_bake).total_seconds()),
            *_pair(seconds),
            f"{stage.passed:,}",
            f"{stage.undecided:,}",
            "–" if contexts is None else f"{contexts.median:,.0f}",
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = (
        "stage",
        "planned",
        "at most",
        "median",
        "90 % within",
        "passed",
        "undecided",
        "contexts in treatment",
    )
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(rows)}</table>"


def _pair(seconds: Spread | None) -> tuple[str, str]:
    return ("–", "–") if seconds is None else (_duration(seconds.median), _duration(seconds.p90))


_CLOSED = "Durations include the time outside the plan's active windows; what is planned does not. "


def _small_print(plan: Plan, seed: int, starts_at: datetime) -> Iterable[str]:
    closed = _CLOSED if plan.active else ""
    yield "<h2>What this is</h2>"
    yield (
        "<p class='dim small'>Totals are drawn per look; every request is a context of its "
        "own. Looks are far apart "
        "where nothing can change, so what is found is dated about a tenth late. "
        "A model advises to proceed and people approve at once. Intervals in brackets are at 95 "
        "%, for the number of runs alone. "
        f"{closed}Seed {seed}; the rollouts begin on {starts_at:%Y-%m-%d %H:%M} UTC; plan version "
        f"{escape(plan.version)}.</p>"
    )


# --- plots


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption class='dim small'>{escape(caption)}</figcaption></figure>"


def _svg(height: int, parts: Iterable[str], label: str) -> str:
    inner = "".join(parts)
    return (
        f"<svg viewBox='0 0 {WIDTH} {height}' role='img' "
        f"aria-label='{escape(label, quote=True)}'>{inner}</svg>"
    )


def _text(x: float, y: float, words: str, anchor: str = "middle", kind: str = "") -> str:
    style = f" class='{kind}'" if kind else ""
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'{style}>{escape(words)}</text>"


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> str:
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' class='{kind}'/>"


def _ends(scenario: TriedTraffic) -> str:
    """Return one bar, parted by how rollouts ended."""
    parts, x = [], 0.0
    for name, colour, is_one in _ENDS:
        part = scenario.part(is_one)
        width = part.share * WIDTH
        if part.count == 0:
            continue
        parts.append(
            f"<rect x='{x:.1f}' y='0' width='{max(width - 2, 1):.1f}' height='30' rx='4' "
            f"fill='var({colour})'/>"
        )
        if width > 90:
            parts.append(
                _text(
                    x + width / 2,
                    20,
                    f"{name} {share_words(part.share)}" if width > 220 else share_words(part.share),
                    kind="on",
                )
            )
        x += width
    return _svg(34, parts, "how the rollouts end")


def _paths(scenario: TriedTraffic, longest: timedelta) -> str:
    """Return the percentage served over time: on a root scale, so that first stages are seen."""
    height, top, bottom = 270, 12, 34
    whole = max(longest.total_seconds(), 1.0)
    highest = max(percent for run in scenario.runs for _, percent in run.path)

    def at_x(seconds: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * seconds / whole

    def at_y(percent: float) -> float:
        return height - bottom - (height - top - bottom) * math.sqrt(percent / highest)

    parts = []
    for percent in (mark for mark in (0, 1, 5, 10, 25, 50, 75, 100) if mark <= highest):
        parts += [
            _rule(_LEFT, at_y(percent), WIDTH - _RIGHT, at_y(percent)),
            _text(_LEFT - 10, at_y(percent) + 4, f"{percent} %", "end"),
        ]
    for seconds in _time_marks(whole):
        parts += [
            _rule(at_x(seconds), height - bottom, at_x(seconds), height - bottom + 5, "axis"),
            _text(at_x(seconds), height - bottom + 20, _duration(seconds)),
        ]
    step = max(1, len(scenario.runs) // _PATHS_DRAWN)
    shown = scenario.runs[::step][:_PATHS_DRAWN]
    opacity = max(0.12, min(0.9, 6 / len(shown)))
    for run in sorted(shown, key=lambda one: one.ended == "rolled_back"):
        parts.append(_path(run, at_x, at_y, opacity))
    return _svg(height, parts, "percentage served over time")


def _path(
    run: VirtualRollout,
    at_x: Callable[[float], float],
    at_y: Callable[[float], float],
    opacity: float,
) -> str:
    colour = next((colour for _, colour, is_one in _ENDS if is_one(run)), "--other")
    points = [f"M{at_x(0):.1f},{at_y(0):.1f}"]
    for when, percent in run.path:
        points.append(f"H{at_x(when.total_seconds()):.1f}V{at_y(percent):.1f}")
    end = at_x((run.at - run.started_at).total_seconds())
    points.append(f"H{end:.1f}")
    y, solid = at_y(run.path[-1][1]), min(1, 3 * opacity)
    dot = f"<circle cx='{end:.1f}' cy='{y:.1f}' r='3' fill='var({colour})' opacity='{solid:.2f}'/>"
    return (
        f"<path d='{''.join(points)}' fill='none' stroke='var({colour})' stroke-width='1.6' "
        f"opacity='{opacity:.2f}'/>{dot}"
    )


def _found_within(seconds: Sequence[float], of: int) -> str:
    """Return the part that has been found, by time since the harm began, on a log scale."""
    height, top, bottom = 230, 16, 34
    ordered = sorted(max(value, 1.0) for value in seconds)
    low, high = math.log(ordered[0] * 0.7), math.log(ordered[-1] * 1.3)

    def at_x(value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (math.log(value) - low) / (high - low)

    def at_y(share: float) -> float:
        return height - bottom - (height - top - bottom) * share

    parts = []
    for percent in (0, 25, 50, 75, 100):
        y = at_y(percent / 100)
        parts += [
            _rule(_LEFT, y, WIDTH - _RIGHT, y),
            _text(_LEFT - 10, y + 4, f"{percent} %", "end"),
        ]
    for value in _log_marks(math.exp(low), math.exp(high)):
        parts += [
            _rule(at_x(value), height - bottom, at_x(value), height - bottom + 5, "axis"),
            _text(at_x(value), height - bottom + 20, _duration(value)),
        ]
    line = [f"M{_LEFT:.1f},{at_y(0):.1f}"]
    for number, value in enumerate(ordered, start=1):
        line.append(f"H{at_x(value):.1f}V{at_y(number / of):.1f}")
    line.append(f"H{WIDTH - _RIGHT:.1f}")
    curve = "".join(line)
    parts.append(f"<path d='{curve}V{at_y(0):.1f}H{_LEFT}Z' fill='var(--one)' opacity='.12'/>")
    parts.append(f"<path d='{curve}' fill='none' stroke='var(--one)' stroke-width='2'/>")
    if len(ordered) * 2 >= of:
        median = ordered[(of + 1) // 2 - 1]
        x, y = at_x(median), at_y(0.5)
        on_left = x > WIDTH * 0.7
        parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4.5' fill='var(--one)'/>")
        parts.append(
            _text(
                x + (-10 if on_left else 10),
                y + 18,
                f"half by {_duration(median)}",
                "end" if on_left else "start",
                "ink",
            )
        )
    return _svg(height, parts, "part found by time since the harm began")


_STEPS = tuple(
    timedelta(**step).total_seconds()
    for step in (
        {"seconds": 1},
        {"seconds": 5},
        {"seconds": 15},
        {"minutes": 1},
        {"minutes": 5},
        {"minutes": 15},
        {"hours": 1},
        {"hours": 3},
        {"hours": 6},
        {"hours": 12},
        {"days": 1},
        {"days": 2},
        {"days": 5},
        {"days": 10},
        {"days": 30},
        {"days": 90},
        {"days": 365},
    )
)

_LOG_MARKS = (
    *(1.0, 2.0, 5.0, 10.0, 20.0, 40.0),
    *(60.0 * minutes for minutes in (1, 2, 3, 5, 7, 10, 15, 20, 30, 45)),
    *(3600.0 * hours for hours in (1, 2, 3, 4, 6, 9, 12, 18)),
    *(86400.0 * days for days in (1, 2, 3, 5, 7, 14, 28, 90, 365)),
)


def _time_marks(whole: float) -> list[float]:
    """Return round times from zero on, at most nine."""
    step = next((step for step in _STEPS if whole / step <= 8), _STEPS[-1])
    return [step * number for number in range(int(whole / step) + 1)]


def _log_marks(low: float, high: float) -> list[float]:
    inside = [mark for mark in _LOG_MARKS if low <= mark <= high]
    return inside[:: -(-len(inside) // 9) or 1]


# --- words


def _between(part: ShareOfRuns) -> str:
    low, high = part.interval
    return f"{part.count:,} of {part.of:,} ({100 * low:.3g} to {100 * high:.3g} %)"


def _duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    return " ".join(format_duration(timedelta(seconds=round(seconds))).split()[:2])
