"""The sequential tests behind the gate: arithmetic only, one file per statistical question.

Nothing here knows a plan, a rollout or a person; an import contract checks it.
"""
