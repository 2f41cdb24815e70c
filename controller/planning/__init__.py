"""What a plan would do: the real state machine and tests in virtual time.

Events are drawn (`simulation.py`), recorded (`backtest.py`), or totals of another system.
"""
