"""Small tokenizers in both formats, trained on text that the tests bring along."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

ENGLISH = (
    "The river rises in the hills above the town and reaches the sea after ninety miles. In spring its water is cold, "
    "because the snow melts late. People walk there on Sundays; some fish, others only look at the boats. "
    "A small museum tells the history of the mill, which was built in 1784 and burnt down twice. It isn't large, but "
    "they'd say it's worth a visit.\n\n    def add(a, b):\n        return a + b\n"
)
CHINESE = (
    "这条河发源于镇北的山里，流过九十英里以后入海。春天的河水很冷，因为山上的雪化得晚。星期天人们在河边散步，有的钓鱼，"
    "有的只是看船。一座小博物馆讲述磨坊的历史：它建于1784年，两次被烧毁。“它不大，”他们说，“但是值得一看。”\n"
)
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def lines(seed: int = 0, count: int = 400) -> list[str]:
    """Sentences of both languages with their words in new orders, so that merges have something to find."""
    generator = random.Random(seed)
    words, characters = ENGLISH.split(" "), CHINESE
    result = []
    for _ in range(count):
        result.append(" ".join(generator.choices(words, k=12)).replace("\n", " "))
        start = generator.randrange(len(characters) - 12)
        result.append(characters[start : start + 12].replace("\n", ""))
    return result


def sentencepiece_model(path: Path, **changes: Any) -> Path:
    """A BPE model like LLaMA's (identity normaliser, byte fallback, spaces kept); `changes` are trainer settings."""
    import sentencepiece

    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 700,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_by_whitespace": True,
        "allow_whitespace_only_pieces": True,
        "character_coverage": 0.98,
        "hard_vocab_limit": False,
        "num_threads": 1,
        "minloglevel": 2,
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines()), model_writer=model, **settings | changes)
    path.write_bytes(model.getvalue())
    return path


def tokenizer_json(path: Path, split: str = LLAMA3_SPLIT, vocab_size: int = 700) -> Path:
    """A byte-level BPE in the shape of LLaMA 3's tokenizer.json."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(split), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    tokenizer.save(str(path))
    return path
