"""Drafts for people: plans, targeting, explanations, changelogs.

A model or a template writes them. Only a person applies them.
"""
