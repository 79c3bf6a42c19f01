"""Planted pages of the demo crawl that must stay: risky ones, ones to cut or mask, and groups of which one stays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from crawl_pages import Article, Library, page, special
from opencc import OpenCC

Expected = dict[str, Any]


@dataclass
class Plant:
    """One planted HTTP response. `expected`: fate and reasons; `fields`, `content_type`, `status`: its HTTP header."""

    url: str
    body: bytes
    expected: Expected
    content_type: str = "text/html; charset=utf-8"
    status: int = 200
    fields: tuple[tuple[str, str], ...] = ()
    language: str = ""
    chunked: bool = field(default=False)


def kept(note: str, contains: list[str] | None = None, lacks: list[str] | None = None) -> Expected:
    """Must be kept; its kept text must contain and lack these strings."""
    return {"fate": "kept", "reason": [], "note": note, "contains": contains or [], "lacks": lacks or []}


def dropped(note: str, *reasons: str) -> Expected:
    """Must be dropped; at least one of the reasons must be among its reasons."""
    return {"fate": "dropped", "reason": list(reasons), "note": note}


def one_of(group: str, note: str, reason: str, contains: list[str] | None = None) -> Expected:
    """Exactly one page of the group must be kept; the others must be dropped for the reason."""
    return {"fate": "one_of_group", "group": group, "reason": [reason], "note": note, "contains": contains or []}


def html_plant(url: str, article: Article, expected: Expected, style: int = 0, **extra: Any) -> Plant:
    """A UTF-8 page."""
    return Plant(url, page(article, style).encode(), expected, language=article.language, **extra)


def clause(text: str) -> str:
    """The longest piece of a text between punctuation marks: what must be found again in the kept text."""
    pieces = "".join(character if character.isalnum() or character == " " else "\n" for character in text).split("\n")
    return max((piece.strip() for piece in pieces), key=len)


@cache
def _converter(name: str) -> OpenCC:
    return OpenCC(name)


def traditional(article: Article) -> Article:
    """The article in Traditional characters (OpenCC s2t)."""
    convert = _converter("s2t").convert
    return replace(article, title=convert(article.title), blocks=tuple(convert(block) for block in article.blocks))


def _stable_clause(article: Article) -> str:
    """A clause that comes back unchanged from Simplified -> Traditional -> Simplified."""
    there, back = _converter("s2t").convert, _converter("t2s").convert
    clauses = [clause(block) for block in article.blocks]
    return max((text for text in clauses if back(there(text)) == text), key=len)


def risky_good(libraries: dict[str, Library]) -> list[Plant]:
    """Pages that careless cleaning loses."""
    plants = []
    checks = {
        "code": {
            "en": ["self.cells[tail] = value", "if self.count < len(self.cells):"],
            "zh": ["self.cells[tail] = value", "r->head"],
        },
        "formulas": {"en": [r"\frac{b^2 - 4ac}{4a^2}"], "zh": [r"\frac{b^2 - 4ac}{4a^2}"]},
        "medical": {"en": ["speculum in the vagina"], "zh": ["有过性生活的人"]},
        "short": {"en": ["because the window was dark"], "zh": ["因为那扇窗户黑着"]},
        "poem": {"en": ["boys are walking where the barges slept"], "zh": ["芦花吹雪满汀洲"]},
        "mixed": {"zh": ["pip install", "git bisect"]},
    }
    for name, by_language in checks.items():
        for language, contains in by_language.items():
            url = f"http://{language}.good.example/{name}.html"
            plants.append(html_plant(url, special(language, name), kept(f"a good page with {name}", contains)))
    zh, en = libraries["zh"], libraries["en"]

    for number in range(2):
        article = zh.article()
        note = "Traditional Chinese, converted to Simplified"
        plants.append(
            html_plant(f"http://trad.example/{number}", traditional(article), kept(note, [_stable_clause(article)]))
        )

    rare = "镇志里还记着一位石匠，姓朱，单名一个“镕”字，他的徒弟叫陶喆。"
    article = replace(base := zh.article(), blocks=(*base.blocks, rare))
    body = page(article, 2, charset="gb2312").encode("gb18030")
    plants.append(
        Plant(
            "http://gb.example/shijiang.htm",
            body,
            kept("GB18030 bytes labelled gb2312", ["单名一个“镕”字"]),
            "text/html; charset=gb2312",
            language="zh",
        )
    )

    while True:  # Big5 lacks some characters that OpenCC writes: take the first article that it can hold
        article = zh.article()
        try:
            body = page(traditional(article), 1, charset="big5").replace("们", "們").encode("big5", "xmlcharrefreplace")
        except UnicodeEncodeError:
            continue
        break
    plants.append(
        Plant(
            "http://big5.example/a.html",
            body,
            kept("Big5", [_stable_clause(article)]),
            "text/html; charset=Big5",
            language="zh",
        )
    )

    article = zh.article()
    body = b"\xff\xfe" + page(article, 0, charset="utf-16").encode("utf-16-le")
    plants.append(
        Plant(
            "http://wide.example/16.html",
            body,
            kept("UTF-16 with a byte order mark", [clause(article.blocks[0])]),
            "text/html",
            language="zh",
        )
    )

    article = zh.article()
    body = page(article, 0, charset="utf-8").encode()
    wrong = "text/html; charset=iso-8859-1"
    plants.append(
        Plant(
            "http://lying.example/zh.html",
            body,
            kept("UTF-8 declared as ISO-8859-1 by the server", [clause(article.blocks[0])]),
            wrong,
            language="zh",
        )
    )
    article = replace(base := en.article(), blocks=(*base.blocks, "The café’s owner said “come in” and we did."))
    body = page(article, 3, charset="iso-8859-1").encode("cp1252")
    note = "Windows-1252 declared as ISO-8859-1"
    plants.append(
        Plant(
            "http://lying.example/en.html",
            body,
            kept(note, ["The café", "come in"]),
            "text/html; charset=iso-8859-1",
            language="en",
        )
    )

    torn_text = {"en": "The last word of the notice was café", "zh": "告示的末尾只剩下半个字：河"}
    for language, library in libraries.items():
        article = library.article()
        wanted = [clause(article.blocks[1])]
        body = page(article).encode()
        cut = body.rindex(b"</article>")
        torn = b"<p>" + torn_text[language].encode()[:-1] + b"</p>"  # a character cut in two, as fixed field lengths do
        body = body[:cut] + torn + body[cut:]
        plants.append(
            Plant(
                f"http://{language}.torn.example/",
                body,
                kept("invalid UTF-8: half a character", wanted),
                language=language,
            )
        )
        article = library.article()
        wanted = [clause(article.blocks[1])]
        coding = (("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked"))
        note = "chunked and gzip-encoded body"
        url = f"http://{language}.coded.example/a"
        plants.append(html_plant(url, article, kept(note, wanted), 1, fields=coding, chunked=True))
    return plants


def dirty_good(libraries: dict[str, Library]) -> list[Plant]:
    """Good pages with something to cut or to mask."""
    plants = []
    adverts = {
        "zh": (
            ("，加微信领取全套资料", "加微信"),
            ("，点击下方链接购买正品", "点击下方链接"),
            ("，扫码进群还有小礼物", "扫码进群"),
            ("，本店图书全国包邮", "全国包邮"),
        ),
        "en": (
            (" Use promo code SPRING for the winter issue!", "promo code"),
            (" Click here to order the printed edition.", "Click here"),
        ),
    }
    for language, entries in adverts.items():
        for number, (advert, trace) in enumerate(entries):
            article = libraries[language].article()
            paragraphs = list(article.blocks)
            place = next(at for at, block in enumerate(paragraphs) if not block.startswith("```"))
            before = paragraphs[place]
            if language == "zh":  # inside the first sentence, as Chinese adverts stand
                end = before.index("。")
                paragraphs[place] = before[:end] + advert + before[end:]
                wanted = [clause(before[:end]), clause(before[end:])]
            else:
                end = before.index(". ") + 1
                paragraphs[place] = before[:end] + advert + before[end:]
                wanted = [clause(before[:end]), clause(before[end:])]
            expected = kept("an advert inside a good page: cut, page kept", wanted, [trace])
            plants.append(
                html_plant(
                    f"http://{language}.notes.example/{number}",
                    replace(article, blocks=tuple(paragraphs)),
                    expected,
                    number % 4,
                )
            )
    private = {
        "zh": (
            (
                "稿件请寄到 lin.shouzhi@bianjibu-youxiang.cn，编辑会在两周之内答复。",
                "lin.shouzhi@bianjibu-youxiang.cn",
                "编辑会在两周之内答复",
            ),
            ("想去参观的人可以先打 13912345678 和守门的老师傅约好时间。", "13912345678", "和守门的老师傅约好时间"),
            (
                "登记簿上写着他的身份证号码：11010519491231002X，字迹已经模糊了。",
                "11010519491231002X",
                "字迹已经模糊了",
            ),
        ),
        "en": (
            (
                "Letters may be sent to margaret.hale@harbour-post.org until the end of the month.",
                "margaret.hale@harbour-post.org",
                "until the end of the month",
            ),
            (
                "The log shows that the request came from 93.184.215.14 shortly after midnight.",
                "93.184.215.14",
                "shortly after midnight",
            ),
            (
                "Visitors may call the keeper at +1 (415) 555-2671 before they set out.",
                "555-2671",
                "before they set out",
            ),
        ),
    }
    for language, sentences in private.items():
        for number, (sentence, secret, rest) in enumerate(sentences):
            article = libraries[language].article()
            marked = replace(article, blocks=(*article.blocks, sentence))
            expected = kept("private data: masked, page kept", [rest], [secret])
            plants.append(html_plant(f"http://{language}.letters.example/{number}", marked, expected, number))
    return plants


def duplicates(libraries: dict[str, Library]) -> list[Plant]:
    """Groups of pages of which one must stay."""
    plants = []
    for language, library in libraries.items():
        for number in range(4):
            article, group = library.article(), f"exact-{language}-{number}"
            for copy in range(2 + number % 2):
                url = f"http://mirror{copy}.example/{language}/{number}"
                plants.append(
                    html_plant(url, article, one_of(group, "the same text at another address", "dedup.exact"), copy)
                )
        for number in range(2):
            article, group = library.article(), f"restyled-{language}-{number}"
            table = str.maketrans("，；“”", ",;「」") if language == "zh" else str.maketrans(",;", ";,")
            changed = tuple(block if block.startswith("```") else block.translate(table) for block in article.blocks)
            if language == "en":
                changed = tuple(
                    block if block.startswith("```") else block.replace("The ", "THE ") for block in changed
                )
            for copy, version in enumerate((article, replace(article, blocks=changed))):
                note = "the same text with other punctuation and case"
                plants.append(
                    html_plant(
                        f"http://style{copy}.example/{language}/{number}", version, one_of(group, note, "dedup.exact")
                    )
                )
        for number in range(3):
            article, group = library.article(), f"url-{language}-{number}"
            extra = library.article().blocks[0]
            longer = replace(article, blocks=(*article.blocks, extra))
            urls = (
                f"http://visit.example/{language}/{number}?id=7",
                f"http://VISIT.example:80/{language}/{number}?utm_source=mail&id=7#top",
            )
            for url, version in zip(urls, (article, longer), strict=True):
                note = "the same address with tracking parameters, the text grown meanwhile"
                plants.append(html_plant(url, version, one_of(group, note, "dedup.url"), number))
        for number in range(3):
            article, group = library.collection(number), f"near-{language}-{number}"
            old, new = (("的", "之"), (" the ", " a "))[language == "en"]
            middle = len(article.blocks) // 2 + 1
            other = tuple(
                block.replace(old, new, 1) if place == middle else block for place, block in enumerate(article.blocks)
            )
            for copy, version in enumerate((article, replace(article, blocks=other))):
                note = "a long page with one word changed"
                plants.append(
                    html_plant(
                        f"http://copy{copy}.example/{language}/reader-{number}",
                        version,
                        one_of(group, note, "dedup.fuzzy"),
                    )
                )
    return plants
