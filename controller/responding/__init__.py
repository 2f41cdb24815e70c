"""Acts on the signals of monitoring systems: lowers, pauses or holds flags, and says which and why.

Nothing here raises a percentage.
"""
