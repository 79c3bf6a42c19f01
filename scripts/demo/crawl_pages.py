"""Project text -> articles -> HTML pages: what a page of the demo crawl says and how it is marked up."""

from __future__ import annotations

import html
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

TEXT = Path(__file__).parent / "text"
# Seven triples of seven paragraphs, any two of which share exactly one (the Fano plane): no near duplicates.
TRIPLES = ((0, 1, 2), (0, 3, 4), (0, 5, 6), (1, 3, 5), (1, 4, 6), (2, 3, 6), (2, 4, 5))
ENGLISH_NUMBERS = ("One", "Two", "Three", "Four", "Five", "Six", "Seven")
CHINESE_NUMBERS = "一二三四五六七"


@dataclass(frozen=True)
class Article:
    """A title and its blocks: paragraphs, fenced code, displayed formulas, stanzas."""

    name: str
    language: str
    title: str
    blocks: tuple[str, ...]

    def text(self) -> str:
        """Plain text, one block a paragraph."""
        return "\n\n".join((self.title, *self.blocks))


def blocks(text: str) -> list[str]:
    """Blocks of a text file: separated by blank lines, fenced code kept whole."""
    found: list[str] = []
    fenced = False
    for piece in text.strip().split("\n\n"):
        if fenced:
            found[-1] += "\n\n" + piece
        else:
            found.append(piece.strip("\n"))
        fenced ^= piece.count("```") % 2 == 1
    return found


def special(language: str, name: str) -> Article:
    """A page with a text file of its own (a poem, a page with code ...)."""
    title, *rest = blocks((TEXT / language / "special" / f"{name}.txt").read_text(encoding="utf-8"))
    return Article(f"special/{name}", language, title.removeprefix("# "), tuple(rest))


@dataclass
class Topic:
    """One text file: a title and seven sections (a paragraph, with the code that follows it)."""

    name: str
    title: str
    sections: list[tuple[str, ...]] = field(default_factory=list)


def topics(language: str) -> list[Topic]:
    """All topics of a language, in the order of their names."""
    result = []
    for path in sorted((TEXT / language).glob("*.txt")):
        title, *rest = blocks(path.read_text(encoding="utf-8"))
        topic = Topic(path.stem, title.removeprefix("# "))
        for block in rest:
            if block.startswith("```"):
                topic.sections[-1] += (block,)
            else:
                topic.sections.append((block,))
        result.append(topic)
    return result


class Library:
    """Hands out articles of one language, each triple of paragraphs once, in a seeded order."""

    def __init__(self, language: str, rng: random.Random) -> None:
        self.language, self.topics = language, topics(language)
        self._free = [(topic, number) for topic in self.topics for number in range(len(TRIPLES))]
        rng.shuffle(self._free)
        self._rng = rng

    @property
    def left(self) -> int:
        """How many articles are still unused."""
        return len(self._free)

    def article(self) -> Article:
        """The next unused article: three sections of one topic."""
        topic, number = self._free.pop()
        order = list(TRIPLES[number])
        self._rng.shuffle(order)
        part = f" ({ENGLISH_NUMBERS[number]})" if self.language == "en" else f"（之{CHINESE_NUMBERS[number]}）"
        parts = tuple(block for section in order for block in topic.sections[section])
        return Article(f"{topic.name}-{number + 1}", self.language, topic.title + part, parts)

    def collection(self, number: int) -> Article:
        """A long article: section `number` of every topic but one; any two share nothing."""
        chosen = [topic for place, topic in enumerate(self.topics) if place != number]
        title = (
            f"A Reader, Part {ENGLISH_NUMBERS[number]}"
            if self.language == "en"
            else f"闲读选编 第{CHINESE_NUMBERS[number]}辑"
        )
        return Article(
            f"reader-{number + 1}", self.language, title, tuple(topic.sections[number][0] for topic in chosen)
        )

    def salad(self, number: int) -> Article:
        """Words in random order with sentence marks: fluent at a glance, improbable to a language model."""
        text = "\n".join(
            block
            for topic in self.topics
            for section in topic.sections
            for block in section
            if not block.startswith("```")
        )
        rng = random.Random(f"{self.language} salad {number}")
        paragraphs = []
        if self.language == "en":
            words = re.findall(r"[A-Za-z]+", text.lower())
            for _ in range(4):
                sentences = (" ".join(rng.choices(words, k=rng.randint(7, 17))) for _ in range(rng.randint(4, 6)))
                paragraphs.append(" ".join(sentence[0].upper() + sentence[1:] + "." for sentence in sentences))
            return Article(f"salad-{number}", "en", " ".join(rng.choices(words, k=4)).title(), tuple(paragraphs))
        pieces = [
            run[at : at + 2] for run in re.findall(r"[\u4e00-\u9fff]{2,}", text) for at in range(0, len(run) - 1, 2)
        ]
        for _ in range(4):
            clauses = ["".join(rng.choices(pieces, k=rng.randint(3, 7))) for _ in range(rng.randint(9, 14))]
            paragraphs.append(
                "".join(
                    clause + ("，" if place % 3 < 2 and place + 1 < len(clauses) else "。")
                    for place, clause in enumerate(clauses)
                )
            )
        return Article(f"salad-{number}", "zh", "".join(rng.choices(pieces, k=3)), tuple(paragraphs))


def block_html(block: str, mathml: bool = False) -> str:
    """One block as HTML; `mathml`: displayed formulas as MathML with their TeX, else they stay TeX for MathJax."""
    if mathml and block.startswith("$$"):
        tex = html.escape(block.strip("$"), quote=False)
        annotation = f'<annotation encoding="application/x-tex">{tex}</annotation>'
        return f'<math display="block"><semantics><mrow><mi>x</mi></mrow>{annotation}</semantics></math>'
    if block.startswith("```"):
        language, _, code = block.strip("`").partition("\n")
        return f'<pre><code class="language-{language}">{html.escape(code.rstrip(), quote=False)}</code></pre>'
    return "<p>" + "<br>\n".join(html.escape(line, quote=False) for line in block.split("\n")) + "</p>"


MENU = {
    "en": ("Home", "Articles", "Archive", "About us", "Contact"),
    "zh": ("首页", "文章", "专栏", "关于我们", "联系我们"),
}
FOOTER = {
    "en": "Copyright © 2023 The Reading Circle. All rights reserved.",
    "zh": "版权所有 © 2023 水边读书会 京ICP备00000000号",
}
COOKIES = {
    "en": "We use cookies to improve your experience. By continuing to use this site you accept our cookie policy.",
    "zh": "我们使用cookie来改善您的浏览体验，继续使用本网站即表示您接受我们的隐私政策。",
}
# Traces of menu, footer and cookie banner: no kept text may have them.
FURNITURE = {"en": ["All rights reserved", "By continuing to use"], "zh": ["ICP备", "继续使用本网站", "关于我们"]}
# Stands inside the article on every page of two hosts; no lexicon knows it, only its frequency gives it away.
HOUSE_LINE = {
    "en": "This page belongs to the winter reading list of the circle by the river.",
    "zh": "这一页选自河边小组冬季共读的篇目，按收到的先后排列。",
}


def page(article: Article, style: int = 0, house_line: bool = False, charset: str = "utf-8") -> str:
    """A whole HTML page in one of four layouts, with menu and footer; `house_line` adds the recurring line."""
    language = article.language
    body = "\n".join(block_html(block, language == "zh") for block in article.blocks)
    if house_line:
        body += f"\n<p>{HOUSE_LINE[language]}</p>"
    links = "".join(f'<li><a href="/{number}">{entry}</a></li>' for number, entry in enumerate(MENU[language]))
    title = html.escape(article.title, quote=False)
    code = "en" if language == "en" else "zh-CN"
    head = f'<!DOCTYPE html>\n<html lang="{code}">\n<head><meta charset="{charset}"><title>{title}</title>\n'
    head += "<style>body{max-width:40em;margin:auto}</style><script>var page={ready:true};</script></head>\n<body>\n"
    menu = f"<nav><ul>{links}</ul></nav>\n"
    footer = f"<footer><p>{FOOTER[language]}</p></footer>\n</body></html>\n"
    cookies = f'<div class="cookie-banner" role="dialog"><p>{COOKIES[language]}</p></div>\n'
    if style == 0:
        return f"{head}<header>{menu}</header>\n<main><article><h1>{title}</h1>\n{body}\n</article></main>\n{footer}"
    if style == 1:
        inner = f'<div id="content"><h1>{title}</h1>\n<div class="post-body">{body}</div></div>\n'
        return f'{head}<div class="menu">{menu}</div>\n{cookies}{inner}<div class="sidebar">{menu}</div>\n{footer}'
    if style == 2:
        return f"{head}{menu}<section><h2>{title}</h2>\n{body}</section>\n{cookies}{footer}"
    article_html = f"<article>\n<h1>{title}</h1>\n{body}\n</article>\n"
    return f"{head}<header>{menu}</header>\n{article_html}<aside>{menu}</aside>\n{cookies}{footer}"
