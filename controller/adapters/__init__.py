"""One file per outside system, behind the protocols of `controller/ports.py`."""
