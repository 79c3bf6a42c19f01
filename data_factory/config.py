"""Settings of the data factory, one class per step in the order of the flow.

Measuring settings shape what is stored; deciding settings are thresholds over what is stored (`ziya-data decide` moves them).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_factory.rules import RuleSettings
from ziya.config import Settings, deciding, load, measuring, required

Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Step = Literal["language", "normalize", "scoring", "rules", "dedup", "evaluation"]


class Source(Settings):
    """One named input."""

    name: str = required(
        "name of the source: letters, digits, - and _; packs are named after it", pattern=r"^[A-Za-z0-9_-]+$"
    )
    paths: list[str] = required("files, folders, globs or fsspec URLs")
    format: Literal["auto", "warc", "jsonl", "parquet", "mediawiki"] = measuring(
        "auto", "input format; auto goes by the file name"
    )
    kind: Literal["web", "reference", "supervised", "code"] = measuring(
        "web", "web pages, curated reference text, supervised pairs, or code"
    )
    steps: list[Step] = measuring(
        ["language", "normalize", "scoring", "rules", "dedup", "evaluation"],
        "steps that apply to this source; the others leave its documents alone",
    )
    language: str | None = measuring(None, "language of every document, when known: language identification is skipped")
    text_field: str = measuring("text", "JSONL, Parquet: field of the text")
    id_field: str | None = measuring(
        None, "JSONL, Parquet: field of a unique id; without one the content and its occurrence number make the id"
    )
    url_field: str = measuring("url", "JSONL, Parquet: field of the URL")
    date_field: str = measuring("date", "JSONL, Parquet: field of the date (ISO 8601)")
    task_field: str | None = measuring(
        None, "supervised: field of the task type; documents of different types never share a packed row"
    )
    prompt_field: str | None = measuring(None, "supervised: field of the prompt; the text field is then the answer")
    prompt_template: str | None = measuring(
        None,
        "supervised: template with two {} for prompt and answer; default by language: 问题:{}回答:{} and Question:{} Answer:{}",
    )
    namespaces: list[int] = measuring([0], "MediaWiki: namespaces to keep")
    ratio: float = deciding(1.0, "share of this source's kept documents that is packed; above 1 repeats them", ge=0)


class Read(Settings):
    """Units, records and extraction."""

    unit_bytes: int = measuring(64 << 20, "largest byte range of a work unit", ge=1 << 12)
    record_limit_bytes: int = measuring(
        256 << 20, "largest record after decompression; a larger one is quarantined (gzip bombs)", ge=1 << 10
    )
    extractor: Literal["resiliparse", "trafilatura"] = measuring("resiliparse", "HTML main-content extractor")
    html_limit_bytes: int = measuring(
        8 << 20,
        "largest HTML page; a larger one is dropped, for its tree takes many times its size in memory",
        ge=1 << 10,
    )
    extract_seconds: float = measuring(
        30.0, "trafilatura: time limit of one page, enforced by killing its worker", gt=0
    )


class Url(Settings):
    """URL rules from the user's lists (one entry per line, # comments)."""

    domain_lists: list[str] = measuring([], "files of banned domains (subdomains included)", is_file=True)
    hard_word_lists: list[str] = measuring([], "files of words that ban a URL by one hit", is_file=True)
    soft_word_lists: list[str] = measuring([], "files of words counted against url.soft_words", is_file=True)
    domain: bool = deciding(True, "drop pages of banned domains")
    hard_words: int = deciding(1, "drop a URL with at least this many hard words; 0 = off", ge=0)
    soft_words: int = deciding(2, "drop a URL with at least this many soft words; 0 = off", ge=0)


class Language(Settings):
    """Language identification: script counts first, then fastText lid.176."""

    keep: list[str] = measuring(["en", "zh"], "languages to keep; their probabilities are added up")
    sample_chars: int = measuring(1000, "characters shown to fastText", ge=100)
    min_score: dict[str, Share] = deciding(
        {"en": 0.65, "zh": 0.4},
        "smallest sum of the probabilities of the languages to keep, by the likeliest of them: a page in two of them stays",
    )


class Normalize(Settings):
    """T0 -> T1."""

    to_simplified: bool = measuring(True, "Traditional -> Simplified Chinese in zh documents (OpenCC t2s)")
    unicode_form: Literal["NFC", "NFKC", "none"] = measuring(
        "NFC", "Unicode normalisation; NFKC also folds full-width letters, and damages typography"
    )
    remove_emoji: bool = measuring(True, "remove emoji and emoticons")
    max_repeated_punctuation: int = measuring(3, "longest run of one punctuation mark; longer runs are shortened", ge=1)


class Scoring(Settings):
    """KenLM perplexity and tiers by rank."""

    enabled: bool = measuring(True, "score and rank; off leaves documents unranked")
    models: dict[str, str] = measuring({}, "language -> KenLM model made by `ziya-data train-lm`", is_file=True)
    ranking_group: Literal["language", "source"] = deciding(
        "language", "rank inside each language over all sources, or inside each (source, language)"
    )
    high: float = deciding(30.0, "per cent of lowest perplexity that form the high tier", ge=0, le=100)
    medium: float = deciding(
        60.0, "per cent of lowest perplexity up to which a document is medium; the rest is dropped", ge=0, le=100
    )
    max_perplexity: dict[str, NonNegative] = deciding({}, "absolute cap per language, on top of ranks")
    min_perplexity: dict[str, NonNegative] = deciding(
        {}, "absolute floor per language (templates and repeated text score very low)"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Scoring:
        if self.high > self.medium:
            raise ValueError(f"high ({self.high}) must not exceed medium ({self.medium})")
        return self


class Decontaminate(Settings):
    """Documents that hold benchmark items."""

    against: list[str] = measuring(
        [],
        "benchmark texts that training data must not hold: files or folders of JSONL, JSON, CSV, Parquet or text; [] = off",
        is_file=True,
    )
    threshold: float = deciding(
        0.8, "drop a document that holds at least this share of the 10-grams of one benchmark item", gt=0, le=1
    )


class Fuzzy(Settings):
    """Near duplicates."""

    method: Literal["simhash", "minhash", "none"] = measuring("simhash", "64-bit simhash or MinHash-LSH; none = off")
    shingle_en: int = measuring(3, "English shingle: words", ge=1)
    shingle_zh: int = measuring(5, "Chinese shingle: characters", ge=1)
    min_shingles: int = measuring(20, "documents with fewer shingles are compared by exact key only", ge=1)
    search_distance: int = measuring(3, "simhash: largest Hamming distance searched", ge=0, le=7)
    distance: int = deciding(3, "simhash: largest Hamming distance of duplicates; at most search_distance", ge=0, le=7)
    permutations: int = measuring(128, "minhash: number of permutations", ge=16)
    similarity: float = deciding(0.8, "minhash: smallest Jaccard similarity of duplicates", gt=0, le=1)

    @model_validator(mode="after")
    def _searched(self) -> Fuzzy:
        if self.distance > self.search_distance:
            raise ValueError(f"distance ({self.distance}) must not exceed search_distance ({self.search_distance})")
        return self


class Lines(Settings):
    """Lines that recur across the corpus (boilerplate)."""

    min_chars: int = measuring(8, "shorter lines are never counted", ge=1)
    floor: int = measuring(3, "lines seen in fewer distinct documents are not stored", ge=2)
    max_documents: int = deciding(200, "cut lines that stand in more distinct documents than this; 0 = off", ge=0)

    @model_validator(mode="after")
    def _stored(self) -> Lines:
        if 0 < self.max_documents < self.floor - 1:
            raise ValueError(
                f"max_documents ({self.max_documents}) must be 0 or at least floor - 1 ({self.floor - 1}): rarer lines are not stored"
            )
        return self


class Dedup(Settings):
    """URL, exact and fuzzy deduplication among survivors."""

    url: bool = deciding(True, "drop documents whose normalised URL a better document has")
    exact: bool = deciding(
        True, "drop documents whose text without punctuation, symbols, whitespace and case a better document has"
    )
    order: list[Literal["tier", "length", "date", "id"]] = deciding(
        ["tier", "length", "date", "id"], "who wins: better tier, longer, later, then smaller id"
    )
    keep_copies: int = deciding(1, "documents kept of one duplicate cluster", ge=1)
    seen_urls: list[str] = deciding(
        [], "Bloom filters of earlier runs' kept URLs (written as urls.bloom)", is_file=True
    )
    seen_error_rate: float = deciding(1e-6, "error rate of the Bloom filter that this run writes", gt=0, lt=0.5)
    fuzzy: Fuzzy = measuring(Fuzzy, "")
    lines: Lines = measuring(Lines, "")


class Evaluation(Settings):
    """The sampled check of kept documents, paper section DE."""

    enabled: bool = deciding(True, "evaluate a sample")
    share: float = deciding(0.01, "share of kept documents in the sample", gt=0, le=1)
    min_documents: int = deciding(3000, "smallest sample (all documents when there are fewer)", ge=1)
    pass_mark: float = deciding(0.001, "largest unqualified rate that passes", ge=0, le=1)
    confidence: float = deciding(0.95, "two-sided confidence of the Clopper-Pearson bounds", gt=0, lt=1)
    toxic_lexicons: list[str] = deciding(
        [], "more toxic phrases (one a line, # comments): one hit fails a document", is_file=True
    )
    advert_lexicons: list[str] = deciding([], "more advert phrases: one hit fails a document", is_file=True)
    max_perplexity: dict[str, NonNegative] = deciding({}, "level 2: absolute cap of perplexity per language")
    max_perplexity_ratio: float = deciding(
        10.0, "level 2: largest perplexity as a multiple of the sample's median in that language", gt=1
    )
    min_information: dict[str, NonNegative] = deciding(
        {"en": 0.25, "zh": 0.2},
        "level 2: smallest informativeness: bits per character under the language model times the share of distinct content",
    )
    max_unreadable: dict[str, Share] = deciding(
        {"en": 0.3, "zh": 0.3}, "level 2: largest share of characters in garbled or unbroken text"
    )
    min_chars: int = deciding(20, "level 3: shortest document, characters", ge=0)
    max_chars: int = deciding(5_000_000, "level 3: longest document, characters", ge=1)
    max_language_mismatch: float = deciding(
        0.05, "level 3, warning: largest share of documents that identification calls another language", ge=0, le=1
    )
    min_language_share: float = deciding(0.01, "level 3, warning: smallest share of a kept language", ge=0, le=1)
    max_topic_share: float = deciding(0.8, "level 3, warning: largest share of one topic", gt=0, le=1)


class Tokenizer(Settings):
    """The tokenizer of the packs."""

    path: str | None = deciding(
        None, "SentencePiece .model or Hugging Face tokenizer.json; none = no packs", is_file=True
    )
    eos: str | None = deciding(None, "end-of-document piece; default: the tokenizer's own (</s>, <|end_of_text|>)")
    pad: str | None = deciding(None, "padding piece; default: the tokenizer's own, else its EOS")


class Packing(Settings):
    """Token packs in Megatron's indexed format."""

    mode: Literal["splice", "whole", "auto"] = deciding(
        "auto", "splice (cut at the length), whole (complete documents), auto = whole for supervised sources"
    )
    sequence_length: int = deciding(4096, "tokens per training sample", ge=8)
    require_pass: bool = deciding(False, "fail instead of packing when the evaluation does not pass")


class DataConfig(Settings):
    """Everything `ziya-data run` needs."""

    seed: int = deciding(20231103, "seed of sampling and shuffling", ge=0)
    sources: list[Source] = required("what to read")
    read: Read = measuring(Read, "")
    url: Url = measuring(Url, "")
    language: Language = measuring(Language, "")
    normalize: Normalize = measuring(Normalize, "")
    scoring: Scoring = measuring(Scoring, "")
    rules: RuleSettings = measuring(RuleSettings, "")
    decontaminate: Decontaminate = measuring(Decontaminate, "")
    dedup: Dedup = measuring(Dedup, "")
    evaluation: Evaluation = measuring(Evaluation, "")
    tokenizer: Tokenizer = measuring(Tokenizer, "")
    packing: Packing = measuring(Packing, "")

    @model_validator(mode="after")
    def _distinct(self) -> DataConfig:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"source names must differ: {', '.join(names)}")
        return self


def load_config(path: Path, overrides: list[str]) -> DataConfig:
    """Read and check a data config."""
    return load(DataConfig, path, overrides)
