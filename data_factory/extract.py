"""HTML -> T0."""

from __future__ import annotations


class ExtractTimeout(Exception):
    """A page took longer than its time limit; its worker was killed."""


def decode_html(payload: bytes, charset: str) -> tuple[str, str]:
    """Decode."""
    raise NotImplementedError


def decode_text(payload: bytes, charset: str) -> tuple[str, str]:
    """Decode plain text."""
    raise NotImplementedError


def extract(html: str, extractor: object = None) -> str:
    """Extract."""
    raise NotImplementedError


def mark_fences(text: str) -> str:
    """Mark."""
    raise NotImplementedError
