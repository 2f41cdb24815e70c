"""What an operator reads about an address on which nothing can listen.

Does not belong here: the listeners (`server.py`, `flagd_sync.py`).
"""

from __future__ import annotations


def cannot_listen(where: str, host_setting: str, port_setting: str) -> str:
    """Return that nothing can listen on `where`, and which settings and variables change that."""
    return (
        f"cannot listen on {where}: end what listens there, or choose another port: "
        f"{port_setting} in the settings file, or {_variable(port_setting)}. {host_setting} "
        f"({_variable(host_setting)}) must be an address of this machine"
    )


def _variable(setting: str) -> str:
    """Return the variable that beats a setting, as in ROLLOUTD_HTTP__PORT for http.port."""
    return f"ROLLOUTD_{setting.upper().replace('.', '__')}"
