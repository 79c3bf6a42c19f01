"""Deduplication of survivors: URL, then exact, then fuzzy; corpus-wide frequent lines; URLs kept by earlier runs. See
README.md.
"""
