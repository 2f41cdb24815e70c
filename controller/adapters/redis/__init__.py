"""Redis: totals of event partitions, rollouts of flags, and a flag plane of plain keys.

Every key is under a prefix that belongs to one environment (`identity.py`).
"""
