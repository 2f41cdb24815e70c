"""Monitoring systems that are asked for one number.

Every call returns a finite number or raises NotMeasured, which says by a name of its own why there
is none. No answer, no data and nonsense are three different things, and none of them is zero.
"""
