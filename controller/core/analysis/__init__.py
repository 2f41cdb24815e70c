"""The sequential tests behind the gate.

One file per question, arithmetic only, nothing about plans or people.
"""
