"""The parts and the table of `scripts/bench/data_factory.py`."""
