"""Runs rollouts: one worker per flag, which saves before it acts."""
