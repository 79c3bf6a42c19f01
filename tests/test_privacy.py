"""Private data: forms, borders in Chinese text, checksums, and what is left alone."""

from __future__ import annotations

import datetime
import random

import numpy as np
import pytest

from data_factory.batches import Spans, TextBatch
from data_factory.rules import RULE_NUMBER, RULES, RuleSettings, cut, privacy
from data_factory.rules.sentence import SENTENCE_RULES
from data_factory.rules.spans import Detectors

DETECTORS = Detectors.load(RuleSettings())
MASKS = {RULE_NUMBER[rule] for rule in privacy.MASK_TEXT}


def masked(*texts: str, protected: Spans | None = None) -> list[str]:
    batch = TextBatch.from_strings(texts)
    guard = protected or Spans.empty()
    spans = DETECTORS.candidates(batch, np.zeros(len(texts), np.uint8), guard)
    found = spans.take(np.isin(spans.rule, sorted(MASKS)))
    return cut.build(batch, guard, Spans.empty(), found, privacy.mask_texts())[0].strings()


def test_every_mask_rule_has_a_text() -> None:
    assert {rule.id for rule in SENTENCE_RULES if rule.effect == "mask"} == set(privacy.MASK_TEXT)
    assert privacy.mask_texts() == {RULE_NUMBER[rule]: text for rule, text in privacy.MASK_TEXT.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("电话13812345678或138-1234-5678，+86 138 1234 5678。", "电话<PHONE>或<PHONE>，<PHONE>。"),
        ("我的手机号是19912345678谢谢", "我的手机号是<PHONE>谢谢"),
        ("座机：0755-26123456转8", "座机：<PHONE>转8"),
        ("电话01062345678。", "电话<PHONE>。"),
        ("编号01062345678。", "编号01062345678。"),
        ("尾号12812345678不是手机", "尾号12812345678不是手机"),
        ("0x13812345678 a13812345678 13812345678b", "0x13812345678 a13812345678 13812345678b"),
        ("1.13812345678 13812345678.5", "1.13812345678 13812345678.5"),
        ("Call 212-555-0134 or +1 (212) 555-0134 or +49 30 901820", "Call <PHONE> or <PHONE> or <PHONE>"),
        ("1914-1918, 2 + 2345678 = x, C++11 2003", "1914-1918, 2 + 2345678 = x, C++11 2003"),
        ("邮箱:张三zhangsan@163.com。", "邮箱:张三<EMAIL>。"),
        ("a.b-c_d%e+f@sub.example.com.", "<EMAIL>."),
        ("<jane@example.org>,joe@example.org", "<<EMAIL>>,<EMAIL>"),
        ("x@y user@localhost @name a @ b.c me@1.2.3.4", "x@y user@localhost @name a @ b.c me@1.2.3.4"),
        ("ssh nginx@.service getty@tty1.service", "ssh nginx@.service getty@tty1.service"),
        ("jane.doe [at] example.org, joe(at)mail dot example dot com!", "<EMAIL>, <EMAIL>!"),
        ("联系 zhang_san（at）163.com 或 li[@]qq.com", "联系 <EMAIL> 或 <EMAIL>"),
        ("zhang＠163.com；JOE {AT} Example {DOT} com", "<EMAIL>；<EMAIL>"),
        ("lisi#sina.com(把#换成@)，wang5#163.com（发邮件时请将#改为@）。", "<EMAIL>，<EMAIL>。"),
        (
            "we met (at) noon. Then f(at)x.y, look [at] this, a (at) b.cc",
            "we met (at) noon. Then f(at)x.y, look [at] this, a (at) b.cc",
        ),
        ("page.html#top.section @ C#8.net(x@y) issue#12.com", "page.html#top.section @ C#8.net(x@y) issue#12.com"),
        ("主机93.184.216.34和8.8.8.8", "主机<IP>和8.8.8.8"),
        ("the dns server 8.8.8.8, 300.1.1.1 and 1.2.3.4.5", "the dns server <IP>, 300.1.1.1 and 1.2.3.4.5"),
        (
            "192.168.0.1 10.0.0.1 172.16.9.9 127.0.0.1 224.0.0.251 203.0.113.77",
            "192.168.0.1 10.0.0.1 172.16.9.9 127.0.0.1 224.0.0.251 203.0.113.77",
        ),
        ("v93.4.216.34 93.4.216.34版", "v93.4.216.34 93.4.216.34版"),
        ("2606:2800:220:1:248:1893:25c8:1946 fe80::1 ::1 a::b 12:34:56", "<IP> fe80::1 ::1 a::b 12:34:56"),
        ("2001:4860:4860::8888端口", "<IP>端口"),
        ("QQ：10001234，加qq群123456", "QQ：<ACCOUNT>，加qq群<ACCOUNT>"),
        ("github.com/qq12345678 [qq12345678]", "github.com/qq12345678 [qq12345678]"),
        ("V信：abc_2020x 微信13812345678", "V信：<ACCOUNT> 微信<PHONE>"),
        ("微信支付 weixin.qq.com wechat: messaging", "微信支付 weixin.qq.com wechat: messaging"),
    ],
)
def test_forms(text: str, expected: str) -> None:
    assert masked(text) == [expected]


def test_nothing_is_read_across_documents() -> None:
    texts = ["tel 138", "12345678 QQ", ":123456789", "jane@", "example.org", "93.184.", "216.34"]
    assert masked(*texts) == texts


def test_protected_text_keeps_addresses_of_machines_only() -> None:
    text = "mail jane@example.org 13812345678 host 93.184.216.34 QQ：10001234"
    whole = Spans.plain(np.zeros(1, np.int32), np.zeros(1, np.int32), np.array([len(text.encode())], np.int32))
    assert masked(text, protected=whole) == ["mail <EMAIL> <PHONE> host 93.184.216.34 QQ：10001234"]


def make_id(rng: random.Random) -> str:
    born = datetime.date(1930, 1, 1) + datetime.timedelta(days=rng.randrange(30000))
    body = f"{rng.choice((11, 31, 44, 51, 65))}{rng.randrange(10000):04d}{born:%Y%m%d}{rng.randrange(1000):03d}"
    weights = [2 ** (17 - place) % 11 for place in range(17)]
    return body + "10X98765432"[sum(int(d) * w for d, w in zip(body, weights, strict=True)) % 11]


def test_identity_cards() -> None:
    rng = random.Random(4)
    for _ in range(200):
        card = make_id(rng)
        assert privacy.id_card_valid(card.encode())
        place = rng.randrange(17)
        wrong = card[:place] + str((int(card[place]) + rng.randrange(1, 10)) % 10) + card[place + 1 :]
        assert not privacy.id_card_valid(wrong.encode())
    card = make_id(rng)
    assert masked(f"身份证{card}号", f"x{card}", f"{card}1", f"身份证{card.lower()}") == [
        "身份证<ID>号", f"x{card}", f"{card}1", "身份证<ID>",
    ]  # fmt: skip


def test_luhn() -> None:
    assert privacy.luhn_valid(b"4111 1111 1111 1111")
    assert not privacy.luhn_valid(b"4111 1111 1111 1112")
    assert not privacy.luhn_valid(b"0000000000000000")


def test_rule_numbers_match_the_catalogue() -> None:
    for rule in privacy.MASK_TEXT:
        assert RULES[RULE_NUMBER[rule] - 1].id == rule
