"""Small crawls that tests make themselves: WARC files of bilingual pages, and running `ziya-data` as a user does."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"

_EN = (
    "The old bridge over the river was rebuilt last spring by a small group of masons who still cut every stone by hand. "
    "Most gardens in the valley are watered early in the morning, before the sun dries the soil and the wind picks up. "
    "A printed book can be read by candle light, which is more than can be said for the screens that replaced it. "
    "She measured the flour twice and wrote the numbers into a notebook that had belonged to her grandmother. "
    "When the train leaves the tunnel, the passengers see the lake for the first time and usually stop talking. "
    "Nobody knows who planted the walnut tree, but it has shaded the school yard for at least four generations. "
    "The museum keeps its maps in flat drawers because rolled paper cracks after a century in dry rooms. "
    "Every winter the canal froze, and people skated to the market with baskets of eggs on their arms. "
    "Good bread needs time more than it needs yeast, and the best bakers are the ones who can wait. "
    "He repaired bicycles in a shed behind the station and never charged children for a new chain. "
).split(". ")
_ZH = (
    "村口的石桥去年春天重新修过，几位老石匠仍然坚持用手工凿平每一块石头。"
    "山谷里的菜园大多在清晨浇水，因为太阳出来以后土壤很快就会变干。"
    "纸质书可以在烛光下阅读，这是后来取代它的屏幕做不到的事情。"
    "她把面粉称了两遍，又把数字记在祖母留下的笔记本里。"
    "火车驶出隧道的时候，乘客们第一次看见那片湖水，车厢里往往安静下来。"
    "没有人知道那棵核桃树是谁种下的，可它已经为学校的院子遮了四代人的阴凉。"
    "博物馆把地图放在扁平的抽屉里，因为卷起来的纸在干燥的房间里会慢慢开裂。"
    "每年冬天运河结冰以后，人们提着装满鸡蛋的篮子滑冰去赶集。"
    "好的面包需要的是时间而不是酵母，最好的面包师都懂得等待。"
    "他在车站后面的棚子里修理自行车，从来不向孩子们收换链条的钱。"
).split("。")


def prose(seed: int, lang: str, sentences: int = 14) -> str:
    """Paragraphs that differ from seed to seed: sentences of a small stock with numbers and words of their own."""
    rng = random.Random(f"{seed}-{lang}")
    lines = []
    for _ in range(sentences):
        if lang == "zh":
            extra = "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(6))
            lines.append(f"{rng.choice(_ZH[:-1])}，记录者把它称为{extra}的往事。")
        else:
            extra = " ".join("".join(rng.choice("aeioulnrst") for _ in range(rng.randrange(4, 9))) for _ in range(3))
            lines.append(f"{rng.choice(_EN[:-1])}, as {extra} used to say. ")
    half = sentences // 2
    return "".join(lines[:half]).strip() + "\n\n" + "".join(lines[half:]).strip()


def page(text: str, title: str = "") -> bytes:
    """An HTML page with the paragraphs of `text`."""
    body = "".join(f"<p>{paragraph}</p>" for paragraph in text.split("\n\n"))
    head = f"<head><meta charset='utf-8'><title>{title}</title></head>"
    return f"<html>{head}<body><article><h1>{title}</h1>{body}</article></body></html>".encode()


def record(
    url: str,
    body: bytes,
    *,
    status: int = 200,
    mime: str = "text/html; charset=utf-8",
    kind: str = "response",
    key: str = "",
) -> bytes:
    """One WARC record (uncompressed)."""
    block = f"HTTP/1.1 {status} X\r\nContent-Type: {mime}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    name = key or f"<urn:uuid:{hashlib.md5(url.encode() + body).hexdigest()}>"
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: {name}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-05-18T01:58:10Z\r\n"
        f"Content-Type: application/http; msgtype={kind}\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def write_warc(path: Path, records: Iterable[bytes]) -> Path:
    """A .warc.gz with one gzip member a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(gzip.compress(item, 6, mtime=0) for item in records))
    return path


def crawl(folder: Path, pages: int = 40, seed: int = 0) -> Path:
    """Two WARC files: bilingual prose, some duplicates, an image, a 404, a French page and one damaged member."""
    files: list[list[bytes]] = [[], []]
    for number in range(pages):
        lang = "zh" if number % 2 else "en"
        body = page(prose(seed * 1000 + number, lang), f"Page {number}" if lang == "en" else f"第{number}页")
        files[number % 4 // 2].append(record(f"http://example.org/{lang}/{number}", body))
    files[0].append(record("http://example.org/copy", page(prose(seed * 1000 + 2, "en"), "Page 2")))
    files[1].append(record("http://example.org/zh/5?utm_source=x", page(prose(seed * 1000 + 5, "zh"), "第5页")))
    files[0].append(record("http://example.org/i.png", b"\x89PNG....", mime="image/png"))
    files[0].append(record("http://example.org/gone", b"<html><body>gone</body></html>", status=404))
    files[1].append(
        record(
            "http://example.org/fr",
            page("Le vieux pont de pierre fut reconstruit au printemps par quelques maçons. " * 9, "Le pont"),
        )
    )
    write_warc(folder / "a.warc.gz", files[0])
    path = write_warc(folder / "sub" / "b.warc.gz", files[1])
    data = bytearray(path.read_bytes())
    starts = [at for at in range(len(data) - 3) if data[at : at + 4] == b"\x1f\x8b\x08\x00"]
    middle = starts[len(starts) // 2]
    data[middle + 40 : middle + 60] = bytes(20)
    path.write_bytes(bytes(data))
    return folder


def write_config(path: Path, **changes: object) -> Path:
    """A config without language models (scoring off) unless `changes` says otherwise."""
    base: dict[str, object] = {
        "sources": [{"name": "crawl", "paths": []}],
        "scoring": {"enabled": False},
        "read": {"unit_bytes": 16384},
        "rules": {"preset": "none"},
    }
    path.write_text(json.dumps({**base, **changes}), encoding="utf-8")
    return path


def ziya_data(
    *arguments: object, expect: int | None = 0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "data_factory.cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=ROOT)
    if expect is not None:
        assert done.returncode == expect, (
            f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
    return done


def digests(out: Path, skip: Sequence[str] = ("timings.json", "work/lock")) -> dict[str, str]:
    """Path -> digest of every file below OUT but those that may differ."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and str(path.relative_to(out)) not in skip
    }
