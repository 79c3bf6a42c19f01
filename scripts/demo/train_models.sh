#!/usr/bin/env bash
# Trains the demo's two small language models on the project's own text (scripts/demo/text) and writes them to scripts/demo/models.
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
ls -l scripts/demo/models
