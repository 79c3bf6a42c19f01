"""The verdict of the evaluation in words, the same on the terminal and on the page."""

from __future__ import annotations

from typing import Any


def rate(verdict: dict[str, Any]) -> str:
    """Whether the sample passed, its rate beside the pass mark, and the bounds of the rate."""
    if not verdict["evaluated"]:
        return "NOT PASSED: no document was evaluated"
    share, mark = verdict["unqualified_rate"], verdict["pass_mark"]
    return (
        f"{'PASSED' if verdict['passed'] else 'NOT PASSED'}: {verdict['unqualified']:,} of {verdict['evaluated']:,} documents "
        f"unqualified, rate {share:.4%} {'within' if verdict['passed'] else 'above'} the pass mark {_percent(mark)} "
        f"({_percent(verdict['confidence'])} bounds {verdict['low']:.4%} to {verdict['high']:.4%})"
    )


def certainty(verdict: dict[str, Any]) -> str:
    """Whether the sample shows that the rate of all kept documents meets the pass mark; if not, how many it would take."""
    mark, evaluated, failed = _percent(verdict["pass_mark"]), verdict["evaluated"], verdict["unqualified"]
    if verdict["sufficient"]:
        return f"sufficient: {_percent(verdict['confidence'])} sure that at most {mark} of all kept documents are unqualified"
    if verdict["needed"] is None:
        return f"not sufficient: no sample can show a rate of {mark}"
    failures = "even without a failure" if not failed else f"with {failed:,} failure{'s' if failed > 1 else ''}"
    more = "raise evaluation.min_documents" if evaluated < verdict["population"] else "these are all kept documents"
    return (
        f"not sufficient: {mark} cannot be shown with {evaluated:,} documents: {failures} at least {verdict['needed']:,} "
        f"are needed ({more})"
    )


def _percent(share: float) -> str:
    return f"{share * 100:.6g}%"
