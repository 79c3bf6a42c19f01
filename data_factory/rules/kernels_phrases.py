"""Fixed phrases (boilerplate, filler, mojibake ...) and one automaton that finds them all while a text is read once.

Phrases are matched on UTF-8 bytes, ASCII letters without case. They are few and fixed; user lexicons are the business
of the sentence rules.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_factory.rules.automaton import build

BOILERPLATE = 1  # a line that holds one is a boilerplate line
POLICY = 2  # C4's policy list; these lines are boilerplate too
JAVASCRIPT = 4  # C4 drops such lines
TEASER = 8  # at the end of a line: the text goes on elsewhere
MOJIBAKE = 16  # text decoded with the wrong encoding
FILLER = 32  # placeholder text

# C4 (c4_utils, also in datatrove): lines that hold one of these are not prose.
_POLICY_EN = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_POLICY_ZH = ("隐私政策", "使用条款", "用户协议", "服务条款", "版权声明", "免责声明")
# NeMo drops pages by the share of such paragraphs, with an English list of cookie texts; the Chinese list is ours.
_BOILERPLATE_EN = (
    "all rights reserved",
    "terms of service",
    "terms and conditions apply",
    "enable javascript",
    "javascript is disabled",
    "javascript is not enabled",
    "skip to main content",
    "skip to content",
    "back to top",
    "subscribe to our newsletter",
    "sign up for our newsletter",
    "accept all cookies",
    "manage cookies",
    "cookie settings",
    "cookie preferences",
    "share on facebook",
    "share on twitter",
    "follow us on",
    "add to cart",
    "add to wishlist",
    "leave a comment",
    "powered by wordpress",
    "you must be logged in",
    "log in to reply",
    "forgot your password",
    "forgot password",
    "create an account",
    "previous post",
    "next post",
    "related posts",
)
_BOILERPLATE_ZH = (
    "版权所有", "版权归原作者", "转载请注明", "未经授权", "未经许可", "不得转载", "保留所有权利", "icp备", "icp证",
    "公网安备", "网站备案",
    "上一篇", "下一篇", "上一页", "下一页", "返回顶部", "返回首页", "回到顶部", "设为首页", "加入收藏", "网站地图",
    "友情链接", "联系我们", "关于我们",
    "扫一扫", "扫码关注", "关注公众号", "微信公众号", "登录注册", "登录 注册", "登录/注册", "登录|注册",
    "登录 | 注册", "忘记密码", "分享到", "点击登录",
    "请先登录", "立即注册", "加入购物车", "客服热线", "在线客服", "相关推荐", "猜你喜欢", "热门推荐", "相关阅读",
    "请启用javascript",
)  # fmt: skip
_TEASER = (
    "read more", "readmore", "continue reading", "show more", "see more", "load more", "learn more", "view more",
    "read more »", "read more >", "read more >>", "read more →", "learn more »", "learn more >",
    "展开", "更多", "更多>", "更多>>", "更多»", "更多 >", "更多 >>", "[详细]", "【详细】", "[查看全文]", "查看全文",
    "阅读全文", "展开全文", "显示全部", "点击查看", "查看详情", "查看更多",
    "了解更多", "加载更多",
)  # fmt: skip
_FILLER = (
    "lorem ipsum",
    "测试测试",
    "占位文字",
    "占位文本",
    "占位符文本",
    "此处输入内容",
    "这里是内容区域",
    "点击此处添加",
    "单击此处添加",
)

# UTF-8 read as windows-1252: the second byte is never a lower-case ASCII letter, so no Portuguese or French word
# holds these.
_LATIN = tuple(
    character.encode().decode("cp1252", "ignore")
    for character in "àâäãåæçèéêëìîïñòóôöõøùûüßáíúÉÈÖÄÜÇ°©®«»·£§²³½¿¡´¬±µ¶"
)
_MISREAD_AS_1252 = (
    *sorted({pair for pair in _LATIN if len(pair) == 2}),
    "â€™", "â€˜", "â€œ", "â€“", "â€”", "â€¦", "â€¢", "â€\x9d", "â„¢", "ï»¿", "ï¿½", "ï¼Œ", "ï¼š", "ï¼ˆ", "ã€‚", "ã€Œ",
    "çš„", "æ˜¯", "äº†", "å›½", "åœ¨", "è¿™", "ä¸­", "ä¸€", "ä»¥", "æœ‰", "å’Œ",
)  # fmt: skip
# U+FFFD written as UTF-8 and read as GBK, and uninitialised memory of a debug build.
_MISREAD_AS_GBK_OF_LOSS = ("锟斤拷", "烫烫烫", "屯屯屯")
# UTF-8 Chinese read as GBK: the most frequent pairs that such text has and no clean text has (full-width comma, stop,
# 的, 是, 在, 一, 不, 了).
_COMMON = (
    "，我", "，但", "，在", "，这", "，一", "，不", "，可", "，而", "，是", "，有", "，你", "，它", "的是", "的一",
    "的时", "的，",
    "我们", "可以", "这个", "一个", "中的", "不是", "没有", "使用", "时候", "什么", "如果", "问题", "因为",
    "进行", "他们", "自己",
)  # fmt: skip
_MISREAD = (word.encode().decode("gbk", "ignore") for word in _COMMON)
_MISREAD_AS_GBK = tuple(sorted({text for text in _MISREAD if len(text) == 3}))


class Automaton(NamedTuple):
    """A `Machine` with what the kernels ask of the states where phrases end: `mask` (class bits), and the characters of
    `mojibake` and `filler` phrases that end there; uint8, one entry for each of these states, in order.
    """

    classes: npt.NDArray[np.uint8]
    moves: npt.NDArray[np.uint32]
    columns: int
    first_end: int
    mask: npt.NDArray[np.uint8]
    mojibake: npt.NDArray[np.uint8]
    filler: npt.NDArray[np.uint8]


@cache
def phrases() -> dict[str, int]:
    """Phrase (lower case) -> class bits."""
    table: dict[str, int] = {}
    for bits, group in (
        (POLICY | BOILERPLATE, _POLICY_EN + _POLICY_ZH),
        (BOILERPLATE, _BOILERPLATE_EN + _BOILERPLATE_ZH),
        (JAVASCRIPT, ("javascript",)),
        (TEASER, _TEASER),
        (MOJIBAKE, _MISREAD_AS_1252 + _MISREAD_AS_GBK_OF_LOSS + _MISREAD_AS_GBK),
        (FILLER, _FILLER),
    ):
        for phrase in group:
            table[phrase] = table.get(phrase, 0) | bits
    return table


def _fold(data: bytes) -> bytes:
    return bytes(byte + 32 if 0x41 <= byte <= 0x5A else byte for byte in data)


@cache
def automaton() -> Automaton:
    """The automaton of `phrases()`."""
    entries = sorted((_fold(phrase.encode()), bits, len(phrase)) for phrase, bits in phrases().items())
    machine = build([entry for entry, _, _ in entries])
    masks, mojibake, filler = (np.zeros(len(machine.own), np.uint8) for _ in range(3))
    for row in range(len(machine.own)):
        place = row
        while place >= 0:
            if machine.own[place] >= 0:
                _, bits, length = entries[machine.own[place]]
                masks[row] |= bits
                mojibake[row] += length if bits & MOJIBAKE else 0
                filler[row] += length if bits & FILLER else 0
            place = machine.shorter[place]
    return Automaton(machine.classes, machine.moves, machine.columns, machine.first_end, masks, mojibake, filler)
