"""Write the demo crawl: a small, messy, bilingual crawl with a planted fate for every record.

    python scripts/demo/make_crawl.py OUT_DIR [--seed 7] [--pages 440]

OUT_DIR/web/*        WARC (one record per gzip member, and one plain file) and WET: pages that are ranked by perplexity
OUT_DIR/board/*      WARC: pages that skip the ranking, so that bad ones fall to rules
OUT_DIR/curated/*    JSON lines of a curated source, with three bad lines
OUT_DIR/supervised/* JSON lines of prompts and answers
OUT_DIR/expected.jsonl  one line a record: file, offset, key, url, fate, reason ... (see README.md)

Equal arguments give equal bytes (with equal versions of zlib and OpenCC): dates are fixed and record ids are hashes.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
from pathlib import Path
from typing import Any

from crawl_bytes import InputFile, chunked_gzip, iso, json_line, record, record_id, response
from crawl_falling import board, unwanted
from crawl_pages import FURNITURE, HOUSE_LINE, Library, page
from crawl_plants import Plant, clause, dirty_good, dropped, duplicates, html_plant, kept, risky_good

# Of five ranked pages of a language three are good and two are nonsense: the paper's cut at 60 % falls between them.
GOOD, NONSENSE = 3, 2
STORED = 3  # good ranked pages a language that are no HTTP responses: one resource record, two WET records
HOUSE_PAGES = 12  # pages of a language that carry the recurring line; configs/data/demo.yaml cuts lines above 10
BOMB_BYTES = 8 << 20  # configs/data/demo.yaml limits records to 4 MB
BANK = {"fate": "quarantined", "reason": []}
OTHER = {"fate": "other", "reason": [], "note": "a record type that holds no document"}


class Writer:
    """Turns plants into records with dates and ids of their own."""

    def __init__(self) -> None:
        self._count = 0

    def _next(self, kind: str, url: str) -> tuple[str, str]:
        self._count += 1
        return record_id(kind, url, self._count), iso(self._count)

    def plant(self, plant: Plant) -> tuple[bytes, dict[str, Any]]:
        """A response record."""
        key, date = self._next("response", plant.url)
        body = chunked_gzip(plant.body) if plant.chunked else plant.body
        block = response(body, plant.content_type, plant.status, plant.fields)
        data = record("response", plant.url, key, date, block, "application/http; msgtype=response")
        return data, {"key": key, "url": plant.url, "language": plant.language, **plant.expected}

    def other(self, kind: str, url: str, block: bytes, content_type: str) -> tuple[bytes, dict[str, Any]]:
        """A record that holds no document."""
        key, date = self._next(kind, url)
        return record(kind, url, key, date, block, content_type), {"key": key, "url": url, **OTHER}

    def text(
        self, kind: str, url: str, language: str, body: str, expected: dict[str, Any]
    ) -> tuple[bytes, dict[str, Any]]:
        """A conversion (plain text) or resource (HTML) record."""
        key, date = self._next(kind, url)
        data = record(kind, url, key, date, body.encode(), "text/plain" if kind == "conversion" else "text/html")
        return data, {"key": key, "url": url, "language": language, **expected}


def normal_pages(libraries: dict[str, Library], count: dict[str, int]) -> list[Plant]:
    """`count` ordinary good pages of each language; the first HOUSE_PAGES carry the line that recurs."""
    plants = []
    for language, library in libraries.items():
        for number in range(count[language]):
            article = library.article()
            house = number < HOUSE_PAGES
            note = "a good page with a line that recurs on many pages" if house else "a good page"
            traces = [*FURNITURE[language], *([HOUSE_LINE[language]] if house else [])]
            expected = kept(note, [clause(article.blocks[0])], traces)
            host = "circle.example" if house else f"site{number % 9}.example"
            body = page(article, number % 4, house).encode()
            plants.append(Plant(f"http://{host}/{language}/{article.name}.html", body, expected, language=language))
    return plants


def filler_pages(libraries: dict[str, Library], count: dict[str, int]) -> list[Plant]:
    """`count` pages of nonsense in each language."""
    plants = []
    for language, library in libraries.items():
        for number in range(count[language]):
            expected = dropped("words in random order: improbable", "scoring.medium")
            plants.append(
                html_plant(
                    f"http://spin{number % 5}.example/{language}/{number}", library.salad(number), expected, number % 4
                )
            )
    return plants


def web_files(plants: list[Plant], libraries: dict[str, Library], writer: Writer) -> list[InputFile]:
    """The ranked pages, spread over several files, with other records between them."""
    files = [InputFile(f"web/{name}") for name in ("web-000.warc.gz", "web-001.warc.gz", "web-002.warc")]
    for number, file in enumerate(files):
        file.add(
            *writer.other(
                "warcinfo", "", b"software: make_crawl\r\nformat: WARC File Format 1.0\r\n", "application/warc-fields"
            )
        )
        file.add(
            *writer.other(
                "request",
                f"http://seed{number}.example/robots.txt",
                b"GET /robots.txt HTTP/1.1\r\n\r\n",
                "application/http; msgtype=request",
            )
        )
        file.add(
            *writer.other(
                "metadata", f"http://seed{number}.example/", b"fetchTimeMs: 12\r\n", "application/warc-fields"
            )
        )
    for number, plant in enumerate(plants):
        files[number % len(files)].add(*writer.plant(plant))
    for language, library in libraries.items():  # a page stored without HTTP
        article = library.article()
        expected = kept("a resource record", [clause(article.blocks[0])])
        files[2].add(
            *writer.text("resource", f"http://{language}.resource.example/", language, page(article), expected)
        )
    wet = InputFile("web/web-003.warc.wet.gz")
    wet.add(*writer.other("warcinfo", "", b"software: make_crawl\r\n", "application/warc-fields"))
    for number in range(STORED - 1):
        for language, library in libraries.items():
            article = library.article()
            expected = kept("a WET conversion record", [clause(article.blocks[0])])
            url = f"http://{language}.wet.example/{number}"
            wet.add(*writer.text("conversion", url, language, article.text(), expected))
    return [*files, wet]


def damaged_files(libraries: dict[str, Library], writer: Writer, rng: random.Random) -> list[InputFile]:
    """Broken members between good ones, a gzip bomb, and a file whose last member is cut off."""

    turns = itertools.count(1)

    def good(note: str) -> Plant:
        turn = next(turns)
        language = ("zh", "en")[turn % 2]
        article = libraries[language].article()
        return html_plant(
            f"http://{language}.beside.example/{turn}", article, kept(note, [clause(article.blocks[0])]), turn % 4
        )

    damaged = InputFile("web/web-004-damaged.warc.gz")
    damaged.add(*writer.plant(good("a good page before a damaged member")))

    packed = bytearray(gzip.compress(writer.plant(good(""))[0], 6, mtime=0))
    middle = len(packed) // 2
    packed[middle : middle + 24] = bytes(byte ^ 0xA5 for byte in packed[middle : middle + 24])
    damaged.add_raw(bytes(packed), {**BANK, "note": "bytes flipped inside a gzip member"})
    damaged.add(*writer.plant(good("a good page after a damaged member")))

    damaged.add_raw(bytes(rng.randrange(32, 127) for _ in range(300)), {**BANK, "note": "garbage between members"})
    damaged.add(*writer.plant(good("a good page after garbage")))

    header = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: many\r\n\r\n<html>lost</html>\r\n\r\n"
    damaged.add_raw(
        gzip.compress(header, 6, mtime=0), {**BANK, "note": "a record header without a number in Content-Length"}
    )
    damaged.add(*writer.plant(good("a good page after a broken header")))

    bomb, _ = writer.plant(Plant("http://bomb.example/", bytes(BOMB_BYTES), {}))
    damaged.add_raw(
        gzip.compress(bomb, 9, mtime=0), {**BANK, "note": "a gzip bomb: the record is larger than the limit"}
    )
    damaged.add(*writer.plant(good("a good page after a gzip bomb")))

    inner = gzip.compress(b"<html><body>" + bytes(BOMB_BYTES), 9, mtime=0)
    inner_bomb, _ = writer.plant(Plant("http://bomb.example/inner", inner, {}, fields=(("Content-Encoding", "gzip"),)))
    damaged.add_raw(gzip.compress(inner_bomb, 6, mtime=0), {**BANK, "note": "a gzip bomb inside the HTTP body"})
    damaged.add(*writer.plant(good("a good page after a bomb in a body")))

    truncated = InputFile("web/web-005-truncated.warc.gz")
    truncated.add(*writer.plant(good("a good page before the end is missing")))
    truncated.add(*writer.plant(good("a good page before the end is missing")))
    packed = bytearray(gzip.compress(writer.plant(good(""))[0], 6, mtime=0))
    truncated.add_raw(bytes(packed[: len(packed) // 2]), {**BANK, "note": "the last member is cut off"})
    return [damaged, truncated]


def curated_file(libraries: dict[str, Library]) -> InputFile:
    """JSON lines: good texts, a line twice, a broken line, a line without text."""
    file = InputFile("curated/reference.jsonl")
    for number in range(6):
        for language, library in libraries.items():
            article = library.article()
            url = f"http://reference.example/{language}/{number}"
            row = {"url": url, "text": article.text(), "date": "2023-05-02"}
            if number == 2:
                expected = {
                    "fate": "one_of_group",
                    "group": f"line-{language}",
                    "reason": ["dedup.exact"],
                    "note": "the same line twice",
                }
                again = {**row, "url": url + "/again"}
                file.add_raw(json_line(row), {"url": url, **expected})
                file.add_raw(json_line(again), {"url": again["url"], **expected})
            else:
                file.add_raw(json_line(row), {"url": url, **kept("a curated text", [clause(article.blocks[0])])})
        if number == 1:
            file.add_raw(
                b'{"url": "http://reference.example/broken", "text": "no end\n',
                {**BANK, "note": "a line that is not JSON"},
            )
        if number == 3:
            file.add_raw(
                json_line({"url": "http://reference.example/none", "title": "no text"}),
                {**BANK, "note": "a line without text"},
            )
    return file


def supervised_file() -> InputFile:
    """JSON lines of supervised pairs: prompt, answer and task type."""
    file = InputFile("supervised/tasks.jsonl")
    lines = (Path(__file__).parent / "text" / "tasks.tsv").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        task, prompt, answer = line.split("\t")
        url = f"http://tasks.example/{number}"
        row = {"url": url, "task": task, "prompt": prompt, "text": answer}
        file.add_raw(json_line(row), {"url": url, **kept("a supervised pair", [prompt, answer])})
    return file


def make_crawl(out: Path, seed: int, pages: int) -> dict[str, int]:
    """Write the crawl to `out`; returns how many records meet each fate. ValueError for too few or too many `pages`."""
    rng = random.Random(seed)
    libraries = {language: Library(language, rng) for language in ("en", "zh")}
    writer = Writer()
    planted = risky_good(libraries) + dirty_good(libraries) + duplicates(libraries)
    falling = unwanted(libraries)
    board_plants = board(libraries, rng)
    damaged = damaged_files(libraries, writer, rng)
    curated = curated_file(libraries)
    supervised = supervised_file()

    beside: list[str] = [entry["url"] for file in damaged for entry in file.expected if entry["fate"] == "kept"]
    fixed = {
        language: STORED
        + sum(plant.language == language for plant in planted)
        + sum(url.startswith(f"http://{language}.") for url in beside)
        for language in libraries
    }
    others = len(falling) + len(board_plants) + len(curated.expected) + len(supervised.expected)

    def ordinary(wanted: int) -> dict[str, int]:
        """Ordinary pages a language: `wanted`, rounded up so that the good pages are a multiple of GOOD."""
        return {language: wanted + -(fixed[language] + wanted) % GOOD for language in libraries}

    def total(wanted: int) -> int:
        good = sum(ordinary(wanted).values()) + sum(fixed.values())
        return good + good // GOOD * NONSENSE + others

    wanted = HOUSE_PAGES
    if total(wanted) > pages:
        raise ValueError(f"--pages {pages} is too few: the planted pages need {total(wanted)}")
    while total(wanted + 1) <= pages:
        wanted += 1
    count = ordinary(wanted)
    if any(count[language] + STORED > library.left for language, library in libraries.items()):
        raise ValueError(f"--pages {pages} is too many: the project's text makes fewer articles")
    normal = normal_pages(libraries, count)
    nonsense = {language: (fixed[language] + count[language]) // GOOD * NONSENSE for language in libraries}
    filler = filler_pages(libraries, nonsense)
    web = planted + falling + normal + filler
    rng.shuffle(web)
    rng.shuffle(board_plants)
    board_file = InputFile("board/board-000.warc.gz")
    for plant in board_plants:
        board_file.add(*writer.plant(plant))
    files = [*web_files(web, libraries, writer), *damaged, board_file, curated, supervised]
    fates: dict[str, int] = {}
    lines = []
    for file in files:
        file.write(out)
        for entry in file.expected:
            lines.append(json.dumps(entry, ensure_ascii=False))
            fates[entry["fate"]] = fates.get(entry["fate"], 0) + 1
    (out / "expected.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return fates


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the demo crawl with a planted fate for every record.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--pages", type=int, default=440)
    arguments = parser.parse_args()
    try:
        fates = make_crawl(arguments.out, arguments.seed, arguments.pages)
    except ValueError as error:
        parser.error(str(error))
    size = sum(
        path.stat().st_size for path in arguments.out.rglob("*") if path.is_file() and path.name != "expected.jsonl"
    )
    told = ", ".join(f"{count} {fate.replace('_', ' ')}" for fate, count in sorted(fates.items()))
    print(f"{sum(fates.values())} records, {size / 1e6:.1f} MB in {arguments.out}: {told}")


if __name__ == "__main__":
    main()
