"""`rolloutctl completion`: the script that lets a shell complete commands, options and flags.

Which flags there are is in `known_flags.py`, which is imported while a flag is completed.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

#: Set by the script when the shell asks; Typer answers.
VARIABLE = "_ROLLOUTCTL_COMPLETE"


#: A zsh without a file of its own has not loaded what completes.
_ZSH_PREPARED = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i -D }"
#: The shells that there is a script for.
Shell = Literal["bash", "zsh", "fish"]


def completion(
    shell: Annotated[
        Shell, typer.Argument(metavar="SHELL", help="The shell that reads the script.")
    ],
) -> None:
    """Print the script that makes a shell complete commands, options and flags."""
    from typer._completion_shared import get_completion_script

    script = get_completion_script(prog_name="rolloutctl", complete_var=VARIABLE, shell=shell)
    if shell == "zsh":  # the first line says what the file is, should zsh load it as one
        first, _, rest = script.partition("\n")
        script = f"{first}\n{_ZSH_PREPARED}\n{rest}"
    typer.echo(script)


def prepare() -> None:
    """Make Typer know the shells, so that it answers them."""
    from typer.completion import get_completion_inspect_parameters

    get_completion_inspect_parameters()
