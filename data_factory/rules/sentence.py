"""Sentence and clause rules: cuts inside lines, private data to mask, and document rules over the lexicons."""

from __future__ import annotations

from data_factory.rules.catalogue import Rule

_ALL = {"en": 0.0, "zh": 0.0}

# fmt: off
SENTENCE_RULES: tuple[Rule, ...] = (
    Rule("citation_marks", "sentence", "[1], [edit], [citation needed], [编辑] anywhere (1), or after prose (2)", "C4",
          "citation_mark", "above", "cut", {"c4": {"en": 0, "zh": 0}, "ziya2": {"en": 1, "zh": 1}}),
    Rule("remnants", "sentence", "HTML tags, entities and template code inside a line: doubtful (1), sure (2)",
          "Ziya2 (DE)", "remnant", "above", "cut", {"ziya2": {"en": 1, "zh": 1}}, recalibrated=("en", "zh")),
    Rule("inline_urls", "sentence", "bare URLs longer than this inside a line (Markdown links stay)",
          "MAP-NEO, datatrove", "inline_url", "above", "cut", {"ziya2": {"en": 80, "zh": 80}},
          recalibrated=("en", "zh")),
    Rule("advert_sentences", "sentence",
          "sentences with a larger weight of distinct advert phrases; zh: 2 at most unless half of it is advert clauses",
          "Ziya2 (RF); MAP-NEO", "advert_sentence", "above", "cut", {"ziya2": {"en": 2, "zh": 4}},
          recalibrated=("en", "zh")),
    Rule("advert_clauses", "sentence", "clauses (between ， ； and end marks) with a larger weight of advert phrases",
          "ours: Chinese adverts stand inside sentences", "advert_clause", "above", "cut", {"ziya2": {"zh": 2}},
          recalibrated=("zh",)),
    Rule("toxic_sentences", "sentence", "sentences with a larger weight of distinct toxic words",
          "Ziya2 (RF); MAP-NEO", "toxic_sentence", "above", "cut", {"ziya2": {"en": 2, "zh": 2}},
          recalibrated=("en", "zh")),
    Rule("mask_email", "sentence", "e-mail addresses become <EMAIL>", "FineWeb (datatrove PIIFormatter), Ziya2",
          "private_email", "above", "mask", {"ziya2": _ALL, "fineweb": _ALL}),
    Rule("mask_phone", "sentence", "telephone numbers become <PHONE>", "Ziya2 (DE), MNBVC", "private_phone", "above",
          "mask", {"ziya2": _ALL}),
    Rule("mask_id_card", "sentence", "Chinese identity card numbers (date and checksum valid) become <ID>", "MNBVC",
          "private_id_card", "above", "mask", {"ziya2": _ALL}),
    Rule("mask_ip", "sentence", "public IPv4 and IPv6 addresses become <IP>", "FineWeb (datatrove PIIFormatter)",
          "private_ip", "above", "mask", {"ziya2": _ALL, "fineweb": _ALL}),
    Rule("mask_bank_card", "sentence", "labelled bank card numbers (Luhn valid) become <CARD>", "ours",
          "private_bank_card", "above", "mask", {"ziya2": _ALL}),
    Rule("mask_account", "sentence", "labelled QQ and WeChat accounts become <ACCOUNT>", "MNBVC", "private_account",
          "above", "mask", {"ziya2": _ALL}),
    Rule("max_toxic_words", "document", "most distinct hard toxic words, over the root of length in 1,000 characters",
          "ours", "toxic_hits", "above", "drop", {"ziya2": {"en": 2.5, "zh": 2.5}}, recalibrated=("en", "zh")),
    Rule("max_toxic_share", "document", "largest share of bytes in toxic words, where two distinct hard ones occur",
          "BigScience, Data-Juicer (flagged words)", "toxic_share", "above", "drop",
          {"ziya2": {"en": 0.02, "zh": 0.02}}, recalibrated=("en", "zh")),
    Rule("max_adverts", "document", "largest share of bytes in advert sentences (weight above 2)", "Ziya2 (RF)",
          "advert_share", "above", "drop", {"ziya2": {"en": 0.4, "zh": 0.4}}, recalibrated=("en", "zh")),
    Rule("max_private", "document", "most private items per 1,000 characters (address lists)", "ours",
          "private_density", "above", "drop", {"ziya2": {"en": 15, "zh": 15}}, recalibrated=("en", "zh")),
)
# fmt: on
