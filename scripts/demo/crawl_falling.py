"""Planted pages of the demo crawl that must fall, each for its reason.

Two sources of pages: `web` is ranked by perplexity, so its bad pages are bad at reading, language or address;
`board` skips the ranking, so that what falls there falls to a rule.
"""

from __future__ import annotations

import random
from pathlib import Path

from crawl_pages import Article, Library
from crawl_plants import Plant, clause, dropped, html_plant, kept


def foreign_texts() -> dict[str, str]:
    """Language code -> a paragraph in that language, from the files in `foreign/`."""
    folder = Path(__file__).parent / "foreign"
    return {path.stem: path.read_text(encoding="utf-8").strip() for path in sorted(folder.glob("*.txt"))}


def unwanted(libraries: dict[str, Library]) -> list[Plant]:
    """Pages that reading, language or address drops."""
    plants = [
        Plant(
            "http://img.example/logo.png",
            b"\x89PNG\r\n\x1a\n" + bytes(range(64)),
            dropped("a picture", "read.not_html"),
            "image/png",
        ),
        Plant(
            "http://doc.example/a.pdf",
            b"%PDF-1.4\n1 0 obj <<>> endobj\n",
            dropped("a PDF", "read.not_html"),
            "application/pdf",
        ),
        Plant(
            "http://lost.example/x",
            b"<html><body><h1>Not Found</h1></body></html>",
            dropped("404", "read.status"),
            status=404,
        ),
        Plant("http://sick.example/y", b"<html><body>oops</body></html>", dropped("500", "read.status"), status=500),
        Plant("http://void.example/z", b"", dropped("204", "read.status"), "", 204),
        Plant(
            "http://moved.example/",
            b"",
            dropped("301", "read.redirect"),
            status=301,
            fields=(("Location", "http://here.example/"),),
        ),
        Plant(
            "http://moved.example/b",
            b"<p>Moved</p>",
            dropped("302", "read.redirect"),
            status=302,
            fields=(("Location", "/"),),
        ),
        Plant("http://hollow.example/a", b"", dropped("200 without a body", "read.empty")),
        Plant(
            "http://hollow.example/b",
            b"<html><head><script>go()</script></head><body></body></html>",
            dropped("no text at all", "read.empty"),
        ),
    ]
    for code, text in foreign_texts().items():
        title = text[:30]
        head = f'<!DOCTYPE html><html lang="{code}"><head><meta charset="utf-8"><title>{title}</title></head>'
        body = f"{head}<body><p>{text}</p></body></html>".encode()
        plants.append(Plant(f"http://{code}.example/", body, dropped(f"language {code}", "language.keep")))
    for language, library in libraries.items():
        banned = dropped("a banned domain, subdomains included", "url.domain")
        plants.append(html_plant(f"http://www.banned-casino.example/{language}", library.article(), banned))
        hard = dropped("a hard word in the address", "url.hard_words")
        plants.append(html_plant(f"http://page.example/{language}/online-casino-bonus.html", library.article(), hard))
        soft = dropped("two soft words in the address", "url.soft_words")
        plants.append(html_plant(f"http://page.example/{language}/cheap/coupon.html", library.article(), soft))
    return plants


def board(libraries: dict[str, Library], rng: random.Random) -> list[Plant]:
    """Pages of the source that is not ranked: each bad one falls to a rule."""
    plants: list[Plant] = []

    def bad(language: str, name: str, title: str, blocks: list[str], note: str, *reasons: str) -> None:
        article = Article(name, language, title, tuple(blocks))
        plants.append(
            html_plant(f"http://board.example/{language}/{name}-{len(plants)}", article, dropped(note, *reasons), 0)
        )

    for language, library in libraries.items():
        for number in range(4):
            article = library.article()
            expected = kept("a good page of an unranked source", [clause(article.blocks[0])])
            plants.append(html_plant(f"http://board.example/{language}/good-{number}", article, expected, number))
    zh, en = libraries["zh"], libraries["en"]

    toxic = (
        "网上赌场注册送彩金，真人百家乐平台返水最高",
        "本站专业代办假证，出售假币，黑客接单",
        "投注平台推荐：时时彩平台、北京赛车pk10、六合彩资料",
    )
    for _ in range(2):
        base = list(zh.article().blocks)
        blocks = [text for pair in zip((sentence + "。" for sentence in toxic), base, strict=False) for text in pair]
        bad(
            "zh",
            "toxic",
            "娱乐城开户",
            blocks,
            "gambling and forgery",
            "rules.max_toxic_words",
            "rules.max_toxic_share",
        )
    toxic = (
        "Best online casino with free spins, live casino and real money casino games.",
        "Buy fake passport online, counterfeit money for sale, stolen card shops.",
        "Online betting, sports betting sites and online slots with no deposit bonus.",
    )
    for _ in range(2):
        blocks = [text for pair in zip(toxic, list(en.article().blocks), strict=False) for text in pair]
        bad(
            "en",
            "toxic",
            "Casino Bonus",
            blocks,
            "gambling and forgery",
            "rules.max_toxic_words",
            "rules.max_toxic_share",
        )

    advert = (
        "限时秒杀，全网最低价，点击下方链接购买，先到先得。",
        "厂家直销价格，量大从优，欢迎来电咨询，全国包邮。",
        "加微信领取优惠券，扫码进群，名额有限。",
        "正品保证假一赔十，货到付款，机不可失。",
        "新用户注册送红包，首单立减，马上抢购。",
        "订购热线全国统一热线，立即订购，欲购从速。",
    )
    few = ("rules.max_adverts", "rules.max_removed_share", "rules.min_final_chars")
    bad("zh", "advert", "清仓甩卖", list(advert), "nothing but adverts", *few)
    offers = [
        "Buy now and save, limited time offer, while supplies last. Click here to order, free shipping on all orders.",
        "Lowest price guaranteed, use promo code HAPPY at checkout. Order now and get your gift, don't miss this deal!",
        "Shop now for the best prices. Special offer ends soon, buy one get one free. Call now for a free quote today!",
    ]
    bad("en", "advert", "Big Sale", offers, "nothing but adverts", *few)

    repetition = ("rules.max_duplicate_lines", "rules.max_duplicate_line_chars", "rules.max_duplicate_10gram_chars")
    line = {
        "en": "The reading circle meets on the second Thursday of every month in the old ferry house.",
        "zh": "读书小组每月第二个星期四在旧渡口的小楼里碰头。",
    }
    for language in libraries:
        bad(
            language,
            "repeated",
            "Again and Again" if language == "en" else "一遍又一遍",
            [line[language]] * 24,
            "one line, many times",
            *repetition,
        )
    ngrams = ("rules.max_duplicate_10gram_chars", "rules.max_top_4gram_chars", "rules.min_stop_word_share")
    stuffed = {
        "en": "cheap garden chairs buy garden chairs best garden chairs online ",
        "zh": "二手自行车价格二手自行车市场二手自行车交易网",
    }
    for language in libraries:
        bad(
            language,
            "stuffed",
            "Garden Chairs" if language == "en" else "二手自行车",
            [stuffed[language] * 14],
            "stuffed with key words",
            *ngrams,
        )
    numeric = ("rules.max_digit_share", "rules.min_letter_words")
    marks = "★☆◆◇■□▲△※→←↑↓§№"
    for language in libraries:
        word = {"en": "starlight decorations for every page", "zh": "各种各样的装饰符号大全"}[language]
        rows = ["".join(rng.choices(marks, k=30)) + word for _ in range(12)]
        bad(
            language,
            "symbols",
            word.title(),
            rows,
            "mostly symbols",
            "rules.max_symbol_share",
            "rules.min_alphanumeric_share",
        )
        rows = [" ".join(str(rng.randint(1, 99999)) for _ in range(14)) for _ in range(14)]
        title = {"en": "Readings of the gauge station by day and hour", "zh": "水位站逐日逐时观测记录汇总表格"}[
            language
        ]
        bad(language, "numbers", title, rows, "a table of numbers", *numeric)
    lorem = (
        "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore.",
        "Lorem ipsum ut enim ad minim veniam, quis nostrud exercitation ullamco laboris nisi ut aliquip ex ea commodo.",
        "Lorem ipsum duis aute irure dolor in reprehenderit in voluptate velit esse cillum dolore eu fugiat nulla.",
    )
    texts = [en.article().blocks[0], *lorem, en.article().blocks[0]]
    bad("en", "lorem", "A New Site", texts, "filler text", "rules.max_filler_share")
    texts = [
        zh.article().blocks[0],
        "测试测试测试测试测试测试测试，这里是占位文字，正式内容稍后替换。",
        zh.article().blocks[0],
    ]
    bad("zh", "lorem", "新站点", texts, "filler text", "rules.max_filler_share")
    mojibake = ("rules.max_mojibake_share", "rules.max_replacement_share")
    bad(
        "zh",
        "mojibake",
        "锟斤拷锟斤拷",
        ["锟斤拷锟斤拷锟斤拷烫烫烫屯屯屯锟斤拷锟斤拷锟斤拷。" * 4] * 3 + [zh.article().blocks[0]],
        "decoded wrongly, twice",
        *mojibake,
    )
    broken = "\n\n".join(zh.article().blocks).encode().decode("cp1252", "replace")
    bad(
        "en",
        "mojibake",
        "Ã©tude Ã  la plage",
        broken.split("\n\n"),
        "UTF-8 read as Windows-1252",
        *mojibake,
        "language.keep",
        "language.min_score",
    )
    for language in libraries:
        entries = {
            "en": [
                "Home",
                "Login",
                "Register",
                "Sitemap",
                "Previous post",
                "Next post",
                "All rights reserved",
                "Share this",
                "Privacy policy",
                "Read more",
            ],
            "zh": [
                "首页",
                "登录",
                "注册",
                "网站地图",
                "上一篇",
                "下一篇",
                "版权所有",
                "分享到",
                "关于我们",
                "阅读全文",
            ],
        }[language]
        bad(
            language,
            "menu",
            entries[0],
            entries * 3,
            "navigation and nothing else",
            "rules.max_boilerplate_lines",
            "rules.max_short_lines",
            "rules.max_removed_share",
            "rules.min_chars",
            "language.keep",
            "read.empty",
        )
    return plants
