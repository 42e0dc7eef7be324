"""Blobs: messages between actors as bytes.

What clients see is `core.protocol`: it is spliced, not encoded.
"""
