"""Drafts for people: plans, targeting, explanations, changelogs.

By a model or a template; applied by nobody but a person.
"""
