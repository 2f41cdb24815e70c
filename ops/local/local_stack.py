"""`make up` and `make down`: the whole stack on this machine, in the background, without Docker.

`up` starts what does not run yet, waits until it works, and prints what runs where. `down` ends all
of it and removes its files, also what a crash or half a start has left. Everything is kept in one
directory: logs, process ids, and the data of Kafka and the store, which live until `down`. It is
for trials: nothing has a password, and all listen on loopback.

Belongs here: what a person types and reads. Does not belong here: which programs there are
(`local_services.py`), and how processes are started and ended (`local_processes.py`).
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import shutil
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from local_addresses import Chosen, choose, keep, read_kept
from local_processes import LOOPBACK, Processes, Program, StackError, holder, is_taken
from local_services import Service, counting_of, services

_READY_SECONDS: Final = 180.0  # a start takes 15 s; a busy machine needs many times that
_STOP_SECONDS: Final = 10.0
#: Everything that has ever been started under a name, and how long each may take to end; the first
#: that is ended in front. With it `down` also ends what has no file.
ENDED: Final[Mapping[str, float]] = {
    "visitors": _STOP_SECONDS,
    "shop": _STOP_SECONDS,
    "prometheus": _STOP_SECONDS,
    "alertmanager": _STOP_SECONDS,
    "rolloutd": _STOP_SECONDS,
    "store": _STOP_SECONDS,
    "kafka": 40.0,
}


def up(directory: Path) -> None:
    """Start what does not run, and print what runs where. Raises StackError."""
    chosen = choose(os.environ, directory)
    directory.mkdir(parents=True, exist_ok=True)
    processes = Processes(directory)
    environ = {**os.environ, **chosen.variables}
    waves = list(services(chosen.at, processes.directory, environ))
    programs = [service.program for wave in waves for service in wave]
    _end_what_was_chosen_otherwise(processes, programs, chosen)
    _end_other_builds(processes, programs)
    running = [program.name for program in programs if processes.find(program.name) is not None]
    missing = [program for program in programs if program.name not in running]
    for program in missing:  # what a crash of ours has left holds no port
        processes.stop(program.name, _STOP_SECONDS)
    _check_ports(missing, chosen)
    keep(chosen, directory)
    if not missing:
        print("runs already:")
    elif running:
        print(f"runs already: {', '.join(running)}; starting {', '.join(_names(missing))} …")
    else:
        print(f"starting {', '.join(_names(missing))} …")
    for wave in waves:
        for service in wave:
            if service.program in missing:
                processes.start(service.program)
        for service in wave:
            _wait(processes, service)
    for line in _table(waves, directory, counting_of(chosen.at)):
        print(line)
    for line in _next(chosen):
        print(line)


def _end_what_was_chosen_otherwise(
    processes: Processes, programs: Sequence[Program], chosen: Chosen
) -> None:
    """End what runs where something else was chosen for it; its data stay. Raises StackError.

    Each program knows addresses of others, so all of them end. Nothing does while a port that is
    new to the stack is taken.
    """
    kept = read_kept(processes.directory)
    running = [name for name in ENDED if processes.find(name) is not None]
    changed = chosen.changes(kept or {})
    if not running or not changed:
        return
    held = {port for name in running for port in processes.ports(name)}
    _check_ports(programs, chosen, held)
    print(f"{', '.join(changed)}: ending what runs; all starts again with its data …")
    for name in running:
        processes.stop(name, ENDED[name])


def _end_other_builds(processes: Processes, programs: Sequence[Program]) -> None:
    """End what runs other code than this checkout has now, so that it starts again with it."""
    for program in programs:
        is_other = program.build and processes.build(program.name) != program.build
        if is_other and processes.find(program.name) is not None:
            print(f"{program.name}: its code has changed since it was started; restarting it …")
            processes.stop(program.name, ENDED[program.name])


def _wait(processes: Processes, service: Service) -> None:
    """Return once a service works, or, of one that others do not need, is known not to."""
    try:
        processes.wait_until_ready(service.program, _READY_SECONDS)
    except StackError as error:
        if not service.is_optional:
            raise
        print(f"WARNING: the rest works without it: {error}", file=sys.stderr)


def _names(programs: Sequence[Program]) -> list[str]:
    return [program.name for program in programs]


def _check_ports(
    programs: Sequence[Program], chosen: Chosen, held: Container[int] = frozenset()
) -> None:
    """Refuse to start where a port is taken, but by what holds it for us. Raises StackError."""
    taken = {
        port: what
        for program in programs
        for port, what in program.ports.items()
        if port not in held and is_taken(port)
    }
    if taken:
        lines = [*_who_holds(taken), f"  choose others: {chosen.elsewhere(taken)} make up"]
        raise StackError("\n".join(lines))


def _who_holds(taken: Mapping[int, str]) -> Iterator[str]:
    """Yield who listens on ports, as far as it can be found, and how to end or find it."""
    stacks: dict[Path, list[str]] = {}
    for port, what in taken.items():
        found = holder(port)
        if found is None:
            yield (
                f"port {port} ({what}) is taken by another program; see which: "
                f"ss -ltnp 'sport = :{port}'"
            )
        else:
            stacks.setdefault(found.directory, []).append(f"{port} ({what})")
    for directory, ports in stacks.items():
        clone = directory.parent.parent  # as the Makefile has it
        if (clone / "Makefile").exists():
            end = f"make -C {shlex.quote(str(clone))} down"
        else:
            end = f"make down STACK={shlex.quote(str(directory))}"
        yield (
            f"another `make up`, with its files in {directory}, listens on "
            f"port{'s' * (len(ports) > 1)} {', '.join(ports)}"
        )
        yield f"  end that one, with its data: {end}"


def _table(waves: Sequence[Sequence[Service]], directory: Path, counting: str) -> Iterator[str]:
    """Yield what runs where; `counting` is what counts in the daemon."""
    rows = [
        (service.program.name, service.where, service.what) for wave in waves for service in wave
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    yield ""
    for name, where, what in rows:
        yield f"  {name:<{widths[0]}}  {where:<{widths[1]}}  {what}"
    if not any(name == "prometheus" for name, _, _ in rows):
        yield "  (no Prometheus here; `make prometheus` fetches it, then `make up` starts it)"
    if counting == "python":
        yield "  (rolloutd counts in Python; natively, with less CPU: `make native`, `make up`)"
    elif counting:
        yield "  (rolloutd counts natively)"
    yield f"  logs: {directory}/*.log"


def _next(chosen: Chosen) -> Iterator[str]:
    yield ""
    yield "next:"
    yield '  export PATH="$PWD/.venv/bin:$PATH"'
    for line in chosen.exports():
        yield f"  {line}"
    yield "  rolloutctl start ops/examples/checkout/plan.yaml   # the shop's new checkout"
    yield "  rolloutctl watch"
    yield f"  rolloutctl open   # the same in a browser: http://{LOOPBACK}:{chosen.at.http}"
    yield "  make down   # ends all of it and removes its files"


def down(directory: Path) -> None:
    """End everything and remove its files. Raises StackError when something cannot be ended."""
    processes = Processes(directory)
    ended, stays = [], []
    for name in dict.fromkeys((*ENDED, *processes.names())):
        try:
            if processes.stop(name, ENDED.get(name, _STOP_SECONDS)):
                ended.append(name)
        except StackError as error:
            stays.append(str(error))
    if stays:
        raise StackError("\n".join(stays))
    had_files = directory.exists()
    if had_files:
        shutil.rmtree(directory)
    print(f"ended: {', '.join(ended)}" if ended else "nothing runs")
    if had_files:
        print(f"removed: {directory}, with all data of the stack")


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let one `up` or `down` of a stack run at a time; a lock that needs no file of its own."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(directory.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another `make up` or `make down` is at work; waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="local_stack", description=__doc__)
    parser.add_argument("verb", choices=("up", "down"))
    parser.add_argument("directory", type=Path, help="where the stack keeps its files")
    options = parser.parse_args(arguments)
    try:
        with _alone(options.directory):
            (up if options.verb == "up" else down)(options.directory)
    except StackError as error:
        print(f"make {options.verb}: {error}", file=sys.stderr)
        if options.verb == "up":
            print("`make up` goes on from here; `make down` takes all away", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "interrupted; `make up` goes on from here, `make down` takes all away", file=sys.stderr
        )
        return 130
    except BrokenPipeError:  # whoever read has read enough, as in `make up | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        with suppress(OSError):  # others use the folder, or it was there before
            options.directory.parent.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
