"""Build the benchmark text (English and Chinese JSON lines) from Debian's documentation packages and local text.

    python scripts/bench/make_corpus.py OUT [--mb 80] [--text FOLDER] [--keep-packages FOLDER]

Writes OUT/zh.jsonl, OUT/en.jsonl (one `{"url", "source", "text"}` a line) and OUT/corpus.json (packages with versions,
counts, sizes, hashes). The text is free documentation (GFDL, GPL, CC BY-SA, BSD and similar; each package's own
`copyright` file tells) and is built on the user's machine, never shipped. All Chinese that the packages hold is taken
first, then English in the order of the list until --mb is reached. Needs Debian's `apt-get` and `dpkg-deb` with a
reachable mirror; nothing is installed. Same package versions, same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from resiliparse.extract.html2text import extract_plain_text

from ziya.errors import UserError, run_main

# (package, languages wanted from it). Packages that a Debian release lacks are skipped and named.
PACKAGES: tuple[tuple[str, str], ...] = (
    ("libreoffice-help-zh-cn", "zh"),
    ("libreoffice-help-zh-tw", "zh"),
    ("debian-reference-zh-cn", "zh"),
    ("debian-reference-zh-tw", "zh"),
    ("debian-faq-zh-cn", "zh"),
    ("debian-edu-doc-zh-cn", "zh"),
    ("maint-guide-zh-cn", "zh"),
    ("maint-guide-zh-tw", "zh"),
    ("lilypond-doc-html-zh", "zh"),
    ("manpages-zh", "zh"),
    ("fortunes-zh", "zh"),
    ("kicad-doc-zh", "zh"),
    ("linuxcnc-doc-zh-cn", "zh"),
    ("gimp-help-zh-cn", "zh"),
    ("installation-guide-amd64", "zh en"),
    ("debian-handbook", "zh en"),
    ("gnome-user-docs", "zh en"),
    ("python3.11-doc", "en"),
    ("python3.13-doc", "en"),
    ("git-doc", "en"),
    ("libreoffice-help-en-us", "en"),
    ("postgresql-doc-15", "en"),
    ("postgresql-doc-17", "en"),
    ("sqlite3-doc", "en"),
    ("apache2-doc", "en"),
    ("perl-doc", "en"),
    ("lilypond-doc-html", "en"),
    ("debian-policy", "en"),
    ("developers-reference", "en"),
    ("debian-reference-en", "en"),
    ("nodejs-doc", "en"),
    ("vim-doc", "en"),
    ("gnumeric-doc", "en"),
    ("octave-doc", "en"),
    ("maxima-doc", "en"),
    ("python-django-doc", "en"),
    ("python-sqlalchemy-doc", "en"),
    ("erlang-doc", "en"),
    ("fp-docs-3.2.2", "en"),
    ("ruby3.1-doc", "en"),
    ("gap-doc", "en"),
    ("python-scipy-doc", "en"),
    ("gnome-devel-docs", "en"),
    ("python-pandas-doc", "en"),
    ("lazarus-doc-2.2", "en"),
    ("openjdk-17-doc", "en"),
)
MAX_FILE = 8 << 20  # larger files are indexes and concatenations of the pages beside them
MIN_CHARS = 200
ENGLISH = frozenset(
    "the of to and a in is for it that be this with are on as or an by not from you can if".split()
)
# Folders of translations into other languages: what is English in them is untranslated, and a copy.
OTHER_LANGUAGES = frozenset(
    "ar as bg bn ca cs da de el eo es et eu fa fi fr gl gu he hi hr hu id it ja ka kn ko lt lv ml mr nb nl nn no "
    "oc or pa pl pt ro ru sk sl sr sv ta te th tr ug uk vi".split()
)
HAN = re.compile(r"[\u3400-\u9fff]")
KANA = re.compile(r"[\u3041-\u3096\u30a1-\u30fa]")
WORD = re.compile(r"[A-Za-z]+")
MAN_PAGE = re.compile(r"/man/.*\.[1-9][a-z]*\.gz$")
SKIPPED_NAMES = re.compile(
    r"(changelog|copyright|NEWS|genindex|search|index-all|objects\.inv|py-modindex|SOURCES)", re.I
)


def language_of(text: str) -> str | None:
    """`zh` by the share of Han without kana, `en` by that of function words (20 % in prose, under 3 % elsewhere)."""
    sample = text[:20_000]
    han, kana = len(HAN.findall(sample)), len(KANA.findall(sample))
    words = WORD.findall(sample)
    if han and kana > 0.05 * han:
        return None
    if han >= 0.15 * (han + sum(map(len, words))):
        return "zh"
    letters = sum(character.isalpha() for character in sample)
    if len(words) < 30 or sum(map(len, words)) < 0.95 * letters:
        return None
    return "en" if sum(word.lower() in ENGLISH for word in words) >= 0.12 * len(words) else None


def foreign_folder(name: str, language: str) -> bool:
    """Whether a file stands in a folder of translations into another language than `language`."""
    for part in name.split("/")[:-1]:
        code = re.fullmatch(r"([a-z]{2,3})(?:[-_@][\w@]{2,8})?", part)
        if code and (code[1] in OTHER_LANGUAGES or (language == "en" and code[1] == "zh")):
            return True
    return False


def man_text(source: str) -> str:
    """Text of a manual page: macros dropped (their arguments kept where they are prose), font escapes removed."""
    lines = []
    for line in source.splitlines():
        if line.startswith(('.\\"', "'\\\"")) or line.startswith(
            (".TH", ".so", ".ds", ".de", ".if", ".ie", ".el", ".nr", ".ad", ".hy", ".ne")
        ):
            continue
        if line.startswith((".", "'")):
            name, _, rest = line[1:].lstrip().partition(" ")
            if name in {"PP", "P", "LP", "sp", "TP", "IP", "Pp"}:
                lines.append("")
            lines.append("\n" + rest.strip('"') if name in {"SH", "SS", "Sh", "Ss"} else rest)
        else:
            lines.append(line)
    text = re.sub(r"\\f(?:\(..|\[[^]]*\]|.)|\\s[-+]?\d", "", "\n".join(lines))
    for escape, value in (
        ("\\-", "-"),
        ("\\&", ""),
        ("\\|", ""),
        ("\\(em", "—"),
        ("\\(lq", '"'),
        ("\\(rq", '"'),
        ("\\(aq", "'"),
        ("\\e", "\\"),
        ("\\ ", " "),
    ):
        text = text.replace(escape, value)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def page_text(source: str) -> str:
    """Text of a Mallard page (GNOME's help format): one line per block element."""
    text = re.sub(r"<(?:info|desc)\b.*?</(?:info|desc)>|<!--.*?-->|<\?.*?\?>", "", source, flags=re.S)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"<(?:title|p|item|section|steps|list|note|table|td|screen|code)\b[^>]*>", "\n", text)
    text = re.sub(r"<[^>]+>", "", text)
    for entity, value in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&apos;", "'"), ("&amp;", "&")):
        text = text.replace(entity, value)
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def decode(data: bytes) -> str | None:
    """UTF-8, else GB18030 for old Chinese files, else nothing (binary or another legacy encoding)."""
    for encoding in ("utf-8", "gb18030"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        return None if "\x00" in text else text
    return None


def texts_of(path: Path, name: str) -> Iterator[str]:
    """Yield the documents of one file of a package; nothing for files that hold no prose."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_FILE or SKIPPED_NAMES.search(path.name):
        return
    man = MAN_PAGE.search(name)
    suffixes = {suffix.lower() for suffix in path.suffixes[-2:]}
    fortune = "games/fortunes/" in name and not path.suffix
    if not (man or fortune or suffixes & {".html", ".htm", ".txt", ".page", ".xhtml"}):
        return
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    source = decode(data)
    if source is None:
        return
    if man:
        yield man_text(source)
    elif fortune:
        yield from (part.strip() for part in re.sub(r"\x1b\[[0-9;]*m", "", source).split("\n%\n"))
    elif ".page" in suffixes:
        yield page_text(source)
    elif ".txt" in suffixes:
        yield source.strip()
    else:
        yield extract_plain_text(
            source, main_content=True, alt_texts=False, links=False, preserve_formatting=True
        ).strip()


def package_documents(package: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (url, text) of an unpacked package, files in sorted order."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        for number, text in enumerate(texts_of(path, name)):
            if len(text) >= (MIN_CHARS if "fortunes" not in name else 60):
                yield f"https://documentation.invalid/{package}/{name}" + (f"#{number}" if number else ""), text


def fetch(package: str, packages: Path, unpacked: Path) -> str | None:
    """Download and unpack a package; returns its version, or None where this Debian release has no such package."""
    shown = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", package], capture_output=True, text=True, check=False
    )
    version = re.search(r"^Version: (\S+)$", shown.stdout, re.M)
    if shown.returncode or version is None:
        return None
    files = sorted(packages.glob(f"{package}_*.deb"))
    if not files:
        done = subprocess.run(
            ["apt-get", "download", "-q", package], cwd=packages, capture_output=True, text=True, check=False
        )
        files = sorted(packages.glob(f"{package}_*.deb"))
        if done.returncode or not files:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(
                f"apt-get download {package} failed ({reason}): a reachable Debian mirror is needed; "
                "check the network and run `apt-get update`"
            )
    subprocess.run(["dpkg-deb", "-x", str(files[0]), str(unpacked)], check=True)
    return files[0].name.split("_")[1]


def local_documents(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (url, text) of every `text` line of the .jsonl and .jsonl.gz files in a folder."""
    for path in sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")]):
        data = path.read_bytes()
        for number, line in enumerate((gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()):
            row = json.loads(line)
            yield str(row.get("url", f"{path.name}#{number}")), str(row["text"]).strip()


class Corpus:
    """Two growing files and the accounts that go into corpus.json."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        self.files = {language: (out / f"{language}.jsonl").open("wb") for language in ("en", "zh")}
        self.hashes = {language: hashlib.sha256() for language in self.files}
        self.text_bytes = dict.fromkeys(self.files, 0)
        self.documents = dict.fromkeys(self.files, 0)
        self.sources: list[dict[str, object]] = []
        self.seen: set[bytes] = set()

    def add(self, source: str, version: str, documents: Iterator[tuple[str, str]], wanted: str, limit: int) -> None:
        """Append the documents in the wanted languages until `limit` bytes of text are reached in all."""
        taken = dict.fromkeys(self.files, 0)
        for url, text in documents:
            language = language_of(text)
            if language is None or language not in wanted.split() or foreign_folder(url, language):
                continue
            encoded = text.encode("utf-8", "replace")
            key = hashlib.blake2b(encoded, digest_size=16).digest()
            if key in self.seen:
                continue
            if sum(self.text_bytes.values()) >= limit:
                break
            self.seen.add(key)
            line = (
                json.dumps({"url": url, "source": source, "text": encoded.decode()}, ensure_ascii=False).encode()
                + b"\n"
            )
            self.files[language].write(line)
            self.hashes[language].update(line)
            self.text_bytes[language] += len(encoded)
            self.documents[language] += 1
            taken[language] += len(encoded)
        self.sources.append({"source": source, "version": version, "text_bytes": taken})
        print(f"{source:28} {version:32} en {taken['en'] / 1e6:6.2f} MB  zh {taken['zh'] / 1e6:6.2f} MB", flush=True)

    def close(self) -> dict[str, object]:
        """Close the files and write corpus.json."""
        for file in self.files.values():
            file.close()
        summary: dict[str, object] = {
            "text_bytes": self.text_bytes,
            "documents": self.documents,
            "sha256": {language: state.hexdigest() for language, state in self.hashes.items()},
            "sources": self.sources,
            "licence": "free documentation licences of the named packages (see their copyright files)",
        }
        (self.out / "corpus.json").write_text(
            json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        return summary


def main() -> int:
    """Build the corpus; UserError where this is no Debian machine or its mirror cannot be reached."""
    parser = argparse.ArgumentParser(description="Build the benchmark text from Debian's documentation packages.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--mb", type=float, default=80, help="megabytes (1e6 bytes) of text in all")
    parser.add_argument("--text", type=Path, help="folder of .jsonl(.gz) files with `text`, taken first")
    parser.add_argument(
        "--keep-packages", type=Path, help="folder that keeps the downloaded packages for the next time"
    )
    arguments = parser.parse_args()
    missing = [tool for tool in ("apt-get", "apt-cache", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise UserError(
            f"{missing[0]} is missing: the text is built from Debian packages, which needs a Debian or Ubuntu machine"
        )
    corpus = Corpus(arguments.out)
    limit = int(arguments.mb * 1e6)
    if arguments.text:
        corpus.add("local-text", "-", local_documents(arguments.text), "en zh", limit)
    absent = []
    with tempfile.TemporaryDirectory() as scratch:
        packages = arguments.keep_packages or Path(scratch)
        packages.mkdir(parents=True, exist_ok=True)
        for wanted in ("zh", "en"):  # Chinese first: it is the scarce one
            for package, languages in PACKAGES:
                if wanted not in languages.split() or sum(corpus.text_bytes.values()) >= limit:
                    continue
                unpacked = Path(scratch) / "unpacked"
                version = fetch(package, packages, unpacked)
                if version is None:
                    absent.append(package)
                    continue
                corpus.add(package, version, package_documents(package, unpacked), wanted, limit)
                shutil.rmtree(unpacked)
    summary = corpus.close()
    if absent:
        print(f"not in this Debian release: {', '.join(absent)}", file=sys.stderr)
    print(json.dumps({key: summary[key] for key in ("text_bytes", "documents", "sha256")}, indent=2))
    if sum(corpus.text_bytes.values()) < limit:
        raise UserError(
            f"only {sum(corpus.text_bytes.values()) / 1e6:.1f} MB of text found, {arguments.mb:g} MB wanted: "
            "add packages to PACKAGES or give --text"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
