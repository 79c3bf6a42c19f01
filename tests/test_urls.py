from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, quote_from_bytes

import numpy as np
import pytest

from data_factory.config import Url
from data_factory.urls import UrlLists
from ziya.errors import UserError


@pytest.fixture
def lists(tmp_path: Path) -> UrlLists:
    files = {
        "domains": "\ufeff# banned\nBad.example\n*.worse.example  # subdomains too\n中文.example\n3.4\nxxx\n\n",
        "hard": "Porn\n色情\nlive-cam\nav女优\n色情网站\n",
        "soft": "casino\n博彩\nСтавки\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    settings = Url(
        domain_lists=[str(tmp_path / "domains")],
        hard_word_lists=[str(tmp_path / "hard")],
        soft_word_lists=[str(tmp_path / "soft")],
    )
    return UrlLists.load(settings)


def column(lists: UrlLists, name: str, *urls: str) -> list[float]:
    found = lists.measure(urls)[name]
    assert found.dtype == np.float32
    return [float(value) for value in found]


def test_domains(lists: UrlLists) -> None:
    punycode = "中文.example".encode("idna").decode()
    banned = [
        "http://bad.example/", "https://a.b.BAD.example:8080/x?y=http://fine.example", "http://user:pw@bad.example",
        "<http://bad.example/a>", "bad.example/page", "http://worse.example.", "http://news.worse.example",
        f"http://{punycode}/", "http://www.中文.example", "http://ｂａｄ。example/", "http://%62ad.example/",
        "//bad.example/x", "http://anything.xxx/", "http://3.4/",
    ]  # fmt: skip
    fine = [
        "http://notbad.example/", "http://bad.example.org/", "http://x.org/bad.example", "http://x.org/?u=http://bad.example/",
        "", "http:///", "http://1.2.3.4/", "http://[::1]:80/", "mailto:me@x.org", "http://xn--\u00e9/",
        "http://xn--zzzzzzzz99999999/",
    ]  # fmt: skip
    assert column(lists, "url_domain", *banned) == [1] * len(banned)
    assert column(lists, "url_domain", *fine) == [0] * len(fine)


@pytest.mark.parametrize(
    ("url", "hard", "soft"),
    [
        ("http://x.org/PORN/porn-videos_porn.html", 3, 0),
        ("http://x.org/sporn/pornography/casinos", 0, 0),
        ("http://porn.example/casino?x=casino#casino", 1, 3),
        ("http://x.org/live/cam", 1, 0),
        ("http://x.org/alive-cam/livecam", 0, 0),
        ("http://x.org/" + quote("免费色情小说"), 1, 0),
        ("http://x.org/" + quote(quote("色情")), 1, 0),
        ("http://x.org/?q=" + quote_from_bytes("色情".encode("gbk")), 1, 0),
        ("http://x.org/色情网站", 1, 0),  # the longest word, once
        ("http://x.org/AV女优123", 1, 0),
        ("http://x.org/wav女优", 0, 0),
        ("http://" + "澳门博彩".encode("idna").decode() + ".example/", 0, 1),
        ("http://XN--" + "澳门博彩".encode("punycode").decode() + ".example/", 0, 1),
        ("http://x.org/" + quote("博彩casino博彩"), 0, 3),
        ("http://x.org/" + quote("СТАВКИ-на"), 0, 1),
        ("http://x.org/" + quote("ｃａｓｉｎｏ"), 0, 1),
        ("http://x.org/%ff%fe%zz%", 0, 0),
        ("", 0, 0),
    ],
)
def test_words(lists: UrlLists, url: str, hard: int, soft: int) -> None:
    assert column(lists, "url_hard_words", url) == [hard]
    assert column(lists, "url_soft_words", url) == [soft]


def test_traditional_and_simplified_words_match_each_other(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("賭場\n", encoding="utf-8")
    lists = UrlLists.load(Url(soft_word_lists=[str(tmp_path / "words")]))
    assert column(lists, "url_soft_words", "http://x.org/" + quote("赌场"), "http://x.org/" + quote("賭場")) == [1, 1]
    assert column(lists, "url_hard_words", "http://x.org/") == [0]


def test_no_lists() -> None:
    found = UrlLists.load(Url()).measure(["http://x.org", "http://y.org"])
    assert {name: values.tolist() for name, values in found.items()} == {
        "url_domain": [0, 0], "url_hard_words": [0, 0], "url_soft_words": [0, 0]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "content", "line"),
    [
        ("domain_lists", b"a.example\nhttp://b.example/\n", "line 2"),
        ("domain_lists", b"a.example b.example\n", "line 1"),
        ("domain_lists", b"# c\n\na..example", "line 3"),
        ("domain_lists", b"a.*.example", "line 1"),
        ("hard_word_lists", b"good\n---\n", "line 2"),
        ("soft_word_lists", "好\n色情".encode("gbk"), "line 1"),
    ],
)
def test_bad_lists_name_file_and_line(tmp_path: Path, kind: str, content: bytes, line: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=line) as error:
        UrlLists.load(Url(**{kind: [str(path)]}))
    assert str(path) in str(error.value)


def test_missing_list(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        UrlLists.load(Url(hard_word_lists=[str(tmp_path / "absent.txt")]))
