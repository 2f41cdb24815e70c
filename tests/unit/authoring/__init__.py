"""Drafts for people."""
