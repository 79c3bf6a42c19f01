"""Tests and the demo compute on CPUs, also where there are GPUs."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest
from train_runs import ROOT


def test_tests_see_no_gpu() -> None:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_the_demos_commands_see_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    spec = importlib.util.spec_from_file_location("demo_run", ROOT / "scripts" / "demo" / "run.py")
    assert spec is not None and spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    code = "import os, sys; sys.exit(3 * (os.environ['CUDA_VISIBLE_DEVICES'] != ''))"
    demo.step("", [sys.executable, "-c", code])  # it ends this process when the command fails
    with pytest.raises(SystemExit):
        demo.step("", [sys.executable, "-c", code.replace("!=", "==")])
