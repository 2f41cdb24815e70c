"""Events of one partition become numbers per arm: pure, without bytes and without storage.

This is what documents counting, and what runs on a machine without the native part. Begin with
`events.py`: what each event adds. `arm_counters.py`, `context_sets.py` and `recent_exposures.py`
are what it adds to, `partition_fold.py` puts them together, and `difference.py` is what has changed
since the last save. What is stored of that is in `controller/counting/layout/`.
"""
