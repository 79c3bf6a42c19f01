#!/usr/bin/env bash
# Trains the demo's two small language models and its tokenizer on the project's own text (scripts/demo/text) and writes them to scripts/demo/models.
# Needs lmplz (scripts/install_lmplz.sh builds it). The models are in the repository; run this after a change of the text.
#   PYTHON=.venv/bin/python scripts/demo/train_models.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python3}"
mkdir -p scripts/demo/models
for lang in en zh; do
    "$python" -m data_factory.cli train-lm --lang "$lang" --input "scripts/demo/text/$lang" --output "scripts/demo/models/$lang.klm" \
        --order 5 --vocab-size "${VOCAB_SIZE:-4000}" --structure trie
done
"$python" - <<'PYTHON'
"""A LLaMA-like tokenizer: BPE with byte fallback, digits apart, no normalisation, a dummy prefix."""
from pathlib import Path

import sentencepiece

texts = [line for path in sorted(Path("scripts/demo/text").glob("*/*.txt")) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts), model_prefix="scripts/demo/models/tokenizer", vocab_size=4000, model_type="bpe", byte_fallback=True, split_digits=True,
    normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False, character_coverage=0.98, num_threads=1, max_sentence_length=100000,
    pad_id=-1, unk_id=0, bos_id=1, eos_id=2, minloglevel=2,
)
Path("scripts/demo/models/tokenizer.vocab").unlink()
PYTHON
ls -l scripts/demo/models
