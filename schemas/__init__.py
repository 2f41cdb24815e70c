"""The contract: what stands on the wire, for any language.

Models, JSON Schemas, AsyncAPI, examples.
"""
