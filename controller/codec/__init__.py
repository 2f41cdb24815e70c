"""Values of the core to documents and back: our records, stored totals, other systems' formats.

One file per kind of document. Nothing here reads a clock, a socket or a file.
"""
