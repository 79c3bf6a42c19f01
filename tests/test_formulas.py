"""TeX in running text is protected; prices, shell variables and broken TeX are not."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from data_factory import formulas, normalize
from data_factory.batches import Spans, TextBatch
from data_factory.config import Normalize, Read
from data_factory.extract import extract, mark_fences
from data_factory.formulas import END, START, mark_formulas
from data_factory.rules import RULE, RuleSettings, statistics, thresholds


def shown(text: str) -> str:
    return mark_formulas(text).replace(START, "<").replace(END, ">")


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        (r"so \(a\) and \[b^2\] hold", r"so <\(a\)> and <\[b^2\]> hold"),
        ("$$x^2$$ or $$n$$", "<$$x^2$$> or <$$n$$>"),
        ("$$\n\\int_0^1 x dx\n$$", "<$$\n\\int_0^1 x dx\n$$>"),
        (r"\begin{align*}a&=b\\c&=d\end{align*} then", r"<\begin{align*}a&=b\\c&=d\end{align*}> then"),
        ("let $x$ and $n+1$ be, $E=mc^2$.", "let <$x$> and <$n+1$> be, <$E=mc^2$>."),
        ("质量$m$与能量$E=mc^2$成正比，", "质量<$m$>与能量<$E=mc^2$>成正比，"),
        ("$dx/dt$, $AB > CD$, $f(x)$", "<$dx/dt$>, <$AB > CD$>, <$f(x)$>"),
        (r"$\text{all of the set}=1$", r"<$\text{all of the set}=1$>"),
        (r"$a\$b_1$ and \$x_1$", r"<$a\$b_1$> and \$x_1$"),
        (f"a {START}$x_1${END} $y$", "a <$x_1$> <$y$>"),
    ],
)
def test_formulas_are_marked(text: str, marked: str) -> None:
    assert shown(text) == marked


@pytest.mark.parametrize(
    "text",
    [
        "costs $5 and $10, or US$7 (A$8)", "$5/$10, from $5 to $10", "价格$5到$10，或$20。",
        "a $20 bill and 5$ more", "$5$ $100,000$", "$5 or 6$", "$$ 5 and $$ 6",
        "$HOME/bin:$PATH and $a_b=$c; ${HOME}_x", "A$AP Rocky and Ke$ha", "$$ money $$", "$$x^2\n\n$$", r"\[ ", r"\(a \(b", r"\\[4pt] \]",
        r"\begin{align} x", r"\begin{document}x^2\end{document}", "$x_1\n$",
        "$ x_1$ and $x_1 $", "$我们_的$", "$the cost of all_things$", "$", "\\",
    ],
)  # fmt: skip
def test_other_dollars_and_backslashes_are_text(text: str) -> None:
    assert mark_formulas(text) == text


@pytest.mark.parametrize("unit", ["$", "$$", "\\[", "\\(a ", "\\begin{align}", "$a^ ", "$a_1", "$$x_ "])
def test_time_is_linear(unit: str) -> None:
    start = time.process_time()
    mark_formulas(unit * (1_000_000 // len(unit)))
    assert time.process_time() - start < 3


def test_openings_are_found_as_by_the_plain_search() -> None:
    """Looking for literal starts finds what the search of `_OPENING` finds, in the same order."""

    def slow(text: str) -> str:
        pieces, done, at = [], 0, 0
        while (opening := formulas._OPENING.search(text, at)) is not None:
            at, end = opening.end(), formulas._end(text, opening)
            if end >= 0:
                pieces += [text[done : opening.start()], START, text[opening.start() : end], END]
                done = at = end
        return "".join([*pieces, text[done:]])

    rng = random.Random(6)
    parts = [*r"$ $$ \ \[ \] \( \) \begin{ \begin{align} \end{align} a x^2 _ 中 } {".split(), " ", "\n"]
    marked = 0
    for _ in range(20_000):
        text = "".join(rng.choices(parts, k=rng.randrange(1, 25)))
        assert mark_formulas(text) == slow(text)
        marked += START in slow(text)
    assert marked > 2000


PAGE = {
    "zh": "设函数 $f$ 在区间 $[a,b]$ 上连续，在 $(a,b)$ 内可导，则存在一点 $\\xi\\in(a,b)$，使得\n\n"
    "$$f'(\\xi)=\\frac{f(b)-f(a)}{b-a}.$$\n\n"
    "这就是中值定理。证明的时候，先作辅助函数\n\n\\[g(x)=f(x)-\\frac{f(b)-f(a)}{b-a}(x-a),\\]\n\n再对它用罗尔定理，因为 \\(g(a)=g(b)\\)。"
    "由此还可以推出 $\\lim_{x\\to 0}\\frac{\\sin{x}}{x}=1$，以及 $\\sum_{n=1}^{\\infty}\\frac{1}{n^{2}}=\\frac{\\pi^{2}}{6}$。"
    "读者不妨自己把这些式子写一遍。",
    "en": "Let $f$ be continuous on $[a,b]$ and have a derivative inside it. Then there is a point $\\xi$ with\n\n"
    "$$f'(\\xi)=\\frac{f(b)-f(a)}{b-a}.$$\n\nThis is the mean value theorem. To prove it, take the function\n\n"
    "\\[g(x)=f(x)-\\frac{f(b)-f(a)}{b-a}(x-a),\\]\n\nand use what is known of \\(g(a)=g(b)\\). It also gives the limit "
    "$\\lim_{x\\to 0}\\frac{\\sin{x}}{x}=1$ and the sum $\\sum_{n=1}^{\\infty}\\frac{1}{n^{2}}=\\frac{\\pi^{2}}{6}$ of the squares.",
}


@pytest.mark.parametrize("form", ["text", "html"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_page_of_mathematics_is_kept_and_stays_as_it_is(language: str, form: str) -> None:
    text = PAGE[language]
    if form == "html":
        body = "".join(f"<p>{part}</p>" for part in text.replace("<", "&lt;").split("\n\n"))
        t0 = extract(f"<html><body><main>{body}</main></body></html>", Read())
    else:
        t0 = mark_fences(text)
    t1, protected = normalize.clean(TextBatch.from_strings([t0]), Normalize())
    assert t1.string(0) == text
    kept = [t1.data[start:end].tobytes().decode() for start, end in zip(protected.start, protected.end, strict=True)]
    assert (
        len(kept)
        == text.count("$$") // 2 + text.count("\\[") + text.count("\\(") + text.replace("$$", "").count("$") // 2
    )
    active = thresholds(RuleSettings())

    def fallen(spans: Spans) -> list[str]:
        values = statistics.measure(t1, np.array([language == "zh"], np.uint8), spans)
        fired = []
        for rule_id, limits in active.items():
            rule = RULE[rule_id]
            if rule.effect == "drop" and language in limits and rule.feature in values:
                value, limit = values[rule.feature][0], np.float32(limits[language])
                if value < limit if rule.bad == "below" else value > limit:
                    fired.append(rule_id)
        return fired

    assert fallen(protected) == []
    if language == "zh":
        assert "max_curly_share" in fallen(Spans.empty())
