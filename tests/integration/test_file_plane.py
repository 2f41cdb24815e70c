"""The file plane on a real disk.

What its readers see, late writers, edits by others. A disk that refuses is in
`test_file_plane_disk.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.adapters.file_plane import FilePlane
from controller.core.audience import Audience, Condition
from controller.core.rollout import RolledBack, Rollout
from controller.errors import FlagPlaneUnavailable
from controller.ports import FlagPlane, Served
from controller.settings.planes import FilePlaneSettings
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard
from schemas.terms import Operator
from tests.builders import T0, make_plan, make_rollout, make_stage
from tests.flag_clients import flagd_file, openfeature_client, users_in

FORMATS = [
    ("flagd", "flags.json"),
    ("go-feature-flag", "flags.json"),
    ("go-feature-flag", "flags.yaml"),
]
SOMEBODY = "somebody who writes to the file"


def make_plane(path: Path, form: str = "flagd") -> FilePlane:
    """Return a plane on a file."""
    return FilePlane("edge", FilePlaneSettings.model_validate({"path": path, "format": form}))


async def serve(plane: FlagPlane, rollout: Rollout) -> Served:
    """Do what actuation does: look, serve if need be, look again."""
    served = await plane.look(rollout)
    if served.difference is None:
        return served
    await plane.serve(rollout)
    return await plane.look(rollout)


def read(path: Path) -> dict[str, Any]:
    """Return the file's flags."""
    document = yaml.safe_load(path.read_text("utf-8"))
    flags: dict[str, Any] = document.get("flags", document)
    return flags


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the flag's definition as a person with an editor does."""
    document = yaml.safe_load(path.read_text("utf-8"))
    change(document.get("flags", document)["new-checkout"])
    path.write_text(
        yaml.safe_dump(document) if path.suffix == ".yaml" else json.dumps(document), "utf-8"
    )


@pytest.mark.parametrize(("form", "name"), FORMATS)
async def test_what_is_decided_stands_in_the_file(tmp_path: Path, form: str, name: str) -> None:
    """From nothing over 33.33 and 100 % back to 0, the file says what was decided.

    And a second look finds nothing to do.
    """
    plane = make_plane(tmp_path / name, form)
    assert plane.name == "file:edge"
    assert await plane.look(make_rollout()) == Served(
        None, "does not know the flag, decided is 10 %"
    )
    for revision, percent in enumerate([33.33, 100.0, 0.0], start=1):
        assert await serve(plane, make_rollout(revision=revision, percent=percent)) == Served(
            percent, None
        )
    inode = (tmp_path / name).stat().st_ino
    await plane.serve(make_rollout(revision=3, percent=0.0))
    assert (tmp_path / name).stat().st_ino == inode, "written again without need"
    assert sorted(os.listdir(tmp_path)) == [f".{name}.lock", name]


async def test_the_two_formats_say_it_in_their_own_words(tmp_path: Path) -> None:
    """To flagd go integer weights of one sum, to GO Feature Flag percentages.

    Ours stands in the metadata of both.
    """
    one, other = (
        make_plane(tmp_path / "one.json"),
        make_plane(tmp_path / "other.yaml", "go-feature-flag"),
    )
    for plane in (one, other):
        await plane.serve(make_rollout(revision=7, percent=33.33))
    flagd, goff = (
        read(tmp_path / "one.json")["new-checkout"],
        read(tmp_path / "other.yaml")["new-checkout"],
    )
    assert flagd["targeting"] == {"fractional": [["on", 3333], ["off", 6667]]}
    assert goff["defaultRule"] == {"percentage": {"on": 33.33, "off": 66.67}}
    assert goff["variations"] == {"on": True, "off": False}
    assert "'on': true" in (tmp_path / "other.yaml").read_text(), (
        "unquoted, YAML 1.1 readers would take on for true"
    )
    for definition in (flagd, goff):
        assert definition["metadata"]["version"] == "7"
        assert definition["metadata"]["rolloutd.written"].startswith("33.33 ")


@pytest.mark.parametrize(("form", "name"), FORMATS)
async def test_a_late_writer_changes_nothing(tmp_path: Path, form: str, name: str) -> None:
    """A replica that stood still since an older revision cannot raise a flag again.

    And learns why.
    """
    zombie, plane = make_plane(tmp_path / name, form), make_plane(tmp_path / name, form)
    await serve(zombie, make_rollout(revision=7, percent=50.0))
    await serve(plane, make_rollout(revision=8, percent=0.0))
    await zombie.serve(make_rollout(revision=7, percent=50.0))
    assert await plane.look(make_rollout(revision=8, percent=0.0)) == Served(0.0, None)
    late = await zombie.look(make_rollout(revision=7, percent=50.0))
    assert late.difference is not None
    assert late.difference.startswith("was written by revision 8, newer than ours, 7")
    await plane.serve(make_rollout(revision=8, percent=50.0))
    assert await plane.look(make_rollout(revision=8, percent=0.0)) == Served(0.0, None), (
        "the lower of one revision stays"
    )


EDITS: list[tuple[str, Callable[[dict[str, Any]], Any], float | None]] = [
    ("flagd", lambda flag: flag.update(state="DISABLED"), 0.0),
    ("flagd", lambda flag: flag["targeting"].update(fractional=[["on", 1], ["off", 19]]), 5.0),
    ("flagd", lambda flag: flag["targeting"].update(fractional=[["on", 80], ["off", 20]]), 80.0),
    ("flagd", lambda flag: flag.update(targeting={}, defaultVariant="on"), 100.0),
    ("flagd", lambda flag: flag.update(targeting={"if": [True, "on", "off"]}), None),
    ("flagd", lambda flag: flag["targeting"].update(fractional=["on", "off"]), None),
    ("go-feature-flag", lambda flag: flag.update(disable=True), 0.0),
    (
        "go-feature-flag",
        lambda flag: flag.update(defaultRule={"percentage": {"on": 5, "off": 95}}),
        5.0,
    ),
    ("go-feature-flag", lambda flag: flag.update(defaultRule={"variation": "on"}), 100.0),
    (
        "go-feature-flag",
        lambda flag: flag.update(targeting=[{"query": "beta eq true", "variation": "on"}]),
        None,
    ),
]


@pytest.mark.parametrize(("form", "change", "percent"), EDITS)
async def test_an_edit_by_others_is_recognised_after_a_restart_too(
    tmp_path: Path, form: str, change: Callable[[dict[str, Any]], None], percent: float | None
) -> None:
    """A definition that does not match its digest is somebody else's.

    Also to a process that never wrote.
    """
    path = tmp_path / "flags.json"
    await make_plane(path, form).serve(make_rollout(revision=1000))
    edit(path, change)
    after_restart = make_plane(path, form)
    served = await after_restart.look(make_rollout(revision=1000))
    assert (served.percent, served.edited_by) == (percent, SOMEBODY)
    await after_restart.serve(make_rollout(revision=1000))
    assert await after_restart.look(make_rollout(revision=1000)) == Served(10.0, None)


@pytest.mark.parametrize(("form", "name"), FORMATS)
async def test_a_flag_deleted_from_the_file_is_switched_off(
    tmp_path: Path, form: str, name: str
) -> None:
    """Who deletes a flag means to switch it off.

    And no replica puts it back before something new is decided.
    """
    path = tmp_path / name
    plane, other = make_plane(path, form), make_rollout(plan=make_plan(flag_key="other"))
    await serve(plane, make_rollout())
    await plane.serve(other)
    document = yaml.safe_load(path.read_text("utf-8"))
    del document.get("flags", document)["new-checkout"]
    path.write_text(
        yaml.safe_dump(document) if path.suffix == ".yaml" else json.dumps(document), "utf-8"
    )
    served = await plane.look(make_rollout())
    assert (served.percent, served.edited_by) == (0.0, SOMEBODY)
    await kept(plane)
    assert set(read(path)) == {"other"}
    plane.update(make_rollout(revision=2, percent=50.0))
    await kept(plane)
    assert await plane.look(make_rollout(revision=2, percent=50.0)) == Served(50.0, None)
    path.unlink()
    assert await plane.look(other) == Served(None, "does not know the flag, decided is 10 %"), (
        "a lost file is nobody's edit"
    )
    await kept(plane)
    assert set(read(path)) == {"other", "new-checkout"}


async def kept(plane: FilePlane) -> None:
    """Let the plane write once what it noted."""
    keeping = asyncio.create_task(plane.run())
    await asyncio.sleep(0.3)
    keeping.cancel()
    with suppress(asyncio.CancelledError):
        await keeping


async def test_what_others_keep_in_the_file_is_left_alone(tmp_path: Path) -> None:
    """Somebody else's flag and the document's own entries outlive our writes.

    A flag that becomes ours is taken over.
    """
    path = tmp_path / "flags.json"
    theirs = {"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": "a"}
    own = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"}
    path.write_text(
        json.dumps({"flags": {"theirs": theirs, "new-checkout": own}, "$evaluators": {"e": {}}})
    )
    plane = make_plane(path)
    assert await plane.look(make_rollout()) == Served(0.0, "serves 0 %, decided is 10 %"), (
        "nobody's edit: it was never ours"
    )
    assert await serve(plane, make_rollout()) == Served(10.0, None)
    document = json.loads(path.read_text())
    assert (document["flags"]["theirs"], document["$evaluators"]) == (theirs, {"e": {}})


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"flags": 7}', "\xff", "[" * 100_000])
async def test_a_broken_file_is_replaced_by_all_we_know(tmp_path: Path, broken: str) -> None:
    """An edit that leaves no readable file counts as somebody's.

    The next write brings back every flag we know of.
    """
    path = tmp_path / "flags.json"
    plane = make_plane(path)
    other = make_rollout(flag_key="other", plan=make_plan(flag_key="other"))
    await plane.serve(other)
    await plane.serve(make_rollout())
    path.write_text(broken, "latin-1")
    served = await plane.look(make_rollout())
    assert (served.percent, served.edited_by) == (None, SOMEBODY)
    await plane.serve(make_rollout())
    assert read(path).keys() == {"new-checkout", "other"}
    assert await plane.look(other) == Served(10.0, None)


async def test_each_replica_keeps_its_own_file_complete(tmp_path: Path) -> None:
    """Flags that another replica runs are written from the state topic.

    The newest revision only.
    """
    plane = make_plane(tmp_path / "flags.json")
    keeping = asyncio.create_task(plane.run())
    try:
        for revision, percent in ((1, 10.0), (3, 0.0), (2, 50.0)):
            plane.update(make_rollout(revision=revision, percent=percent))
        async with asyncio.timeout(60):
            while (await plane.look(make_rollout(revision=3, percent=0.0))).difference is not None:
                await asyncio.sleep(0.01)
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
    assert read(tmp_path / "flags.json")["new-checkout"]["targeting"] == {
        "fractional": [["on", 0], ["off", 10_000]]
    }


async def test_many_writers_lose_no_flag(tmp_path: Path) -> None:
    """Twenty flags written at once by two processes' worth of planes are all there.

    And no half file is ever read.
    """
    path = tmp_path / "flags.json"
    planes = [make_plane(path), make_plane(path)]
    rollouts = [make_rollout(plan=make_plan(flag_key=f"flag-{number}")) for number in range(20)]
    seen: list[int] = []

    async def watch() -> None:
        while True:
            if path.exists():
                seen.append(len(read(path)))
            await asyncio.sleep(0)

    async def serve(plane: FilePlane, rollout: Rollout) -> None:
        while True:
            try:
                return await plane.serve(rollout)
            except FlagPlaneUnavailable:  # the lock, on a busy machine: the reconciler repeats, too
                await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    await asyncio.gather(
        *(serve(planes[index % 2], rollout) for index, rollout in enumerate(rollouts))
    )
    watching.cancel()
    assert len(read(path)) == 20
    assert seen == sorted(seen)


async def test_what_a_crash_left_behind_is_in_nobodys_way(tmp_path: Path) -> None:
    """Killed while it writes, a daemon leaves the old file whole.

    Half of a new one beside it is removed.
    """
    path = tmp_path / "flags.json"
    plane = make_plane(path)
    await plane.serve(make_rollout())
    (tmp_path / ".flags.json.tmp").write_text('{"flags": {"new-che')
    assert await make_plane(path).look(make_rollout()) == Served(10.0, None)
    await make_plane(path).serve(make_rollout(revision=2, percent=50.0))
    assert await plane.look(make_rollout(revision=2, percent=50.0)) == Served(50.0, None)
    assert sorted(os.listdir(tmp_path)) == [".flags.json.lock", "flags.json"]


async def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    """Where the path is a link, what it points to is replaced, with the mode it had.

    But nobody else may write.
    """
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "flags.json", tmp_path / "flags.json"
    real.write_text("{}")
    real.chmod(0o660)
    link.symlink_to(real)
    await make_plane(link).serve(make_rollout())
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert set(read(real)) == {"new-checkout"}


async def test_audiences_stand_in_a_flagd_file_and_nowhere_else(tmp_path: Path) -> None:
    """The file holds the rules that flagd's HTTP document holds.

    GO Feature Flag gets nobody in, and says what is missing.
    """
    staff = Audience("staff", ((Condition("email", Operator.ENDS_WITH, ("@corp.example",)),),))
    stages = (make_stage(percent=50.0, audience="staff"), make_stage(percent=100.0))
    rollout = make_rollout(plan=make_plan(stages=stages, audiences=(staff,)))
    flagd, goff = (
        make_plane(tmp_path / "flags.json"),
        make_plane(tmp_path / "flags.yaml", "go-feature-flag"),
    )
    assert (await serve(flagd, rollout)).difference is None
    board = FlagBoard(generation=Generation.V3)
    board.update(rollout)
    definition = read(tmp_path / "flags.json")["new-checkout"]
    assert (
        definition["targeting"]
        == json.loads(board.flagd_document()[0])["flags"]["new-checkout"]["targeting"]
    )
    assert await serve(goff, rollout) == Served(
        0.0, "cannot serve an audience; everybody else gets the decided 0 %"
    )
    assert read(tmp_path / "flags.yaml")["new-checkout"]["defaultRule"] == {"variation": "off"}
    edit(tmp_path / "flags.json", lambda flag: flag["targeting"]["if"].__setitem__(0, True))
    assert (await flagd.look(rollout)).edited_by == SOMEBODY


async def test_a_flagd_client_in_file_mode_sees_what_ofrep_serves(tmp_path: Path) -> None:
    """OpenFeature's flagd provider evaluates the file as rolloutd does, for 500 users."""
    path = tmp_path / "flags.json"
    plane, board = make_plane(path), FlagBoard(generation=Generation.V3)
    users = [f"user-{number}" for number in range(500)]
    before: set[str] = set()
    for revision, percent in enumerate([1.0, 10.0, 33.33, 100.0], start=1):
        rollout = make_rollout(revision=revision, percent=percent)
        await plane.serve(rollout)
        board.update(rollout)
        now = await flagd_treats(path, users)
        flag = board.get("new-checkout")
        assert flag is not None
        assert now == {user for user in users if json.loads(flag.evaluate(user))["value"]}
        assert before <= now
        before = now
    await plane.serve(make_rollout(revision=5, percent=33.33, phase=RolledBack(T0, "breach")))
    assert await flagd_treats(path, users) == set()


async def flagd_treats(path: Path, users: list[str]) -> set[str]:
    """Return the users whom a flagd client in file mode puts into treatment."""
    async with openfeature_client(flagd_file(path)) as client:
        return await asyncio.to_thread(users_in, client, "new-checkout", users)


async def test_a_planted_link_or_file_is_neither_followed_nor_kept(tmp_path: Path) -> None:
    """Where others may write, no link or file of theirs is followed or becomes the file."""
    theirs = tmp_path / "theirs"
    theirs.write_text("untouched")
    path = tmp_path / "flags.json"
    names = [".flags.json.tmp", ".flags.json.rolloutd-0.tmp", ".flags.json.rolloutd-1.tmp"]
    (tmp_path / names[0]).symlink_to(theirs)
    (tmp_path / names[1]).symlink_to(theirs)
    (tmp_path / names[2]).write_text("planted")
    (tmp_path / names[2]).chmod(0o666)
    planted = (tmp_path / names[2]).stat().st_ino
    plane = make_plane(path, "flagd")
    await plane.serve(make_rollout())
    assert theirs.read_text() == "untouched"
    status = path.lstat()
    assert status.st_ino != planted
    assert stat.S_ISREG(status.st_mode)
    assert status.st_uid == os.geteuid()
    assert (await plane.look(make_rollout())).difference is None


@pytest.mark.parametrize("mask", [0o000, 0o027, 0o077])
async def test_readers_may_read_whatever_our_umask_is(tmp_path: Path, mask: int) -> None:
    """The file is for its readers, who are other users, and for nobody to write but us."""
    path = tmp_path / "flags.json"
    before = os.umask(mask)
    try:
        await make_plane(path, "flagd").serve(make_rollout())
        await make_plane(path, "flagd").serve(make_rollout(revision=2, percent=50.0))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


async def test_what_a_crash_left_behind_is_cleared(tmp_path: Path) -> None:
    """Half a file of a process that was killed does not stay for ever."""
    (tmp_path / ".flags.json.rolloutd-3f9a.tmp").write_text("{")
    await make_plane(tmp_path / "flags.json", "flagd").serve(make_rollout())
    assert sorted(os.listdir(tmp_path)) == [".flags.json.lock", "flags.json"]


async def test_a_directory_that_others_may_write_to_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The operator is told, since who can write there decides what is served."""
    make_plane(tmp_path / "flags.json", "flagd")
    assert "open_door" not in capsys.readouterr().out
    tmp_path.chmod(0o777)
    make_plane(tmp_path / "flags.json", "flagd")
    assert "may be written by everybody" in capsys.readouterr().out


async def test_a_mark_that_is_no_number_is_no_percentage(tmp_path: Path) -> None:
    """Who writes to the file can make a digest fit; the plane still knows what to make of it."""
    path = tmp_path / "flags.json"
    plane = make_plane(path, "flagd")
    await plane.serve(make_rollout())
    document = json.loads(path.read_text())
    definition = document["flags"]["new-checkout"]
    digest = definition["metadata"]["rolloutd.written"].split(" ")[1]
    for number, mark in enumerate(("x", "1e999999", "9" * 6_000)):
        definition["metadata"]["rolloutd.written"] = f"{mark} {digest}"
        path.write_text(json.dumps(document) + " " * number)
        assert (await plane.look(make_rollout())).difference is not None
    definition["metadata"]["version"] = "9" * 6_000
    path.write_text(json.dumps(document))
    assert (await plane.look(make_rollout())).difference is not None
