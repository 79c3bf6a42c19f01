"""Parts of `scripts/bench/train.py`."""
