"""Measures what a language model's advice is worth.

Gate cases with known answers, scores, and a report. Decides nothing.
"""
