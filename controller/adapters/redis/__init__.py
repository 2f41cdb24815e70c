"""Redis: totals of event partitions, rollouts of flags, and a flag plane of plain keys."""
