"""Outside systems, behind the protocols of `controller/ports/`: a package or a file for each.

Adapters do not know each other. What those that call over HTTP share is in `http/`.
"""
