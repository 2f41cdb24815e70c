"""Unleash as a flag plane: read by `reader.py`, compared, and written by `writer.py`."""
