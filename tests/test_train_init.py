"""`ziya-train init` on tiny models of each family, as transformers itself writes them."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from small_tokenizers import CHINESE, ENGLISH, sentencepiece_model, tokenizer_json

from training.architecture import RopeScaling, parse_architecture, read_architecture
from training.init import run_init
from ziya.errors import UserError
from ziya.files import TEMPORARY

torch = pytest.importorskip("torch", reason="init computes with torch (extra `train`)")
transformers = pytest.importorskip("transformers", reason="the models are made and checked by transformers")

from safetensors import SafetensorError  # noqa: E402

from training import embeddings, hf_files  # noqa: E402
from training.hf_files import HFWeights, expected  # noqa: E402

# 艾 and 辉 are the same three bytes in another order: a plain mean cannot tell them apart.
NEW = ["艾", "辉", "龘", "é", "𠮷"]
TEXT = CHINESE + "艾和辉，龘。\n" + ENGLISH
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Base:
    folder: Path
    model: Any
    characters: bool  # its tokenizer is a SentencePiece model, which characters can be added to


def save(folder: Path, config: Any, dtype: Any, tokenizer: Callable[[Path], Path], **options: Any) -> Base:
    torch.manual_seed(3)
    folder.mkdir()
    path = tokenizer(folder)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():  # 0.02 is too flat for a difference to show
            weight.mul_(8) if "norm" not in name else weight.add_(torch.randn_like(weight) / 8)
            if name.endswith("bias"):
                weight.add_(torch.randn_like(weight) / 4)
    model.save_pretrained(folder, **options)
    return Base(folder, model.eval(), path.suffix == ".model")


def pieces(folder: Path) -> Path:
    return sentencepiece_model(folder / "tokenizer.model")


def byte_level(folder: Path) -> Path:
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "kept": true}')
    return tokenizer_json(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    """One tiny model a family, with the traits that the families differ in."""
    at = tmp_path_factory.mktemp("bases")
    sp = sentencepiece_model(at / "probe.model")
    size = sentencepiece.SentencePieceProcessor(model_file=str(sp)).get_piece_size()
    t = transformers
    return {
        "llama": save(at / "llama", t.LlamaConfig(vocab_size=size, **SMALL), torch.float32, pieces),
        "llama tied, grouped, BF16, sharded": save(
            at / "tied", t.LlamaConfig(vocab_size=size, num_key_value_heads=2, tie_word_embeddings=True, **SMALL),
            torch.bfloat16, pieces, max_shard_size="20KB",
        ),
        "llama3": save(
            at / "llama3", t.LlamaConfig(vocab_size=700, num_key_value_heads=1, rope_parameters=LLAMA3, **SMALL),
            torch.float32, byte_level,
        ),
        "mistral": save(
            at / "mistral",
            t.MistralConfig(vocab_size=size, num_key_value_heads=2, head_dim=16, sliding_window=None, **SMALL),
            torch.float16, pieces,
        ),
        "qwen2": save(  # as Qwen2 comes: tied, and with more rows than its tokenizer has tokens
            at / "qwen2",
            t.Qwen2Config(vocab_size=768, num_key_value_heads=2, tie_word_embeddings=True, **SMALL | {"bos_token_id": None}),
            torch.float32, byte_level,
        ),
    }  # fmt: skip


NAMES = ["llama", "llama tied, grouped, BF16, sharded", "llama3", "mistral", "qwen2"]


@pytest.fixture
def chars(tmp_path: Path) -> Path:
    path = tmp_path / "chars.txt"
    path.write_text("".join(f"{character}\n" for character in NEW), encoding="utf-8")
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8", newline="")
    return path


def wide(model: Any) -> Any:
    """The same model in FP32: rounding of BF16 would hide a difference."""
    copy = type(model)(model.config).float().eval()
    copy.load_state_dict(model.state_dict())
    return copy


def tensors(folder: Path) -> dict[str, Any]:
    with HFWeights(folder) as weights:
        return {name: weights.read(name) for name in weights.place}


@pytest.mark.parametrize("name", NAMES)
def test_the_shape_of_each_family_is_read(bases: dict[str, Base], name: str) -> None:
    base = bases[name]
    shape = read_architecture(base.folder)
    with HFWeights(base.folder) as weights:
        weights.check(shape)
        assert {n: tuple(p.shape) for n, p in base.model.named_parameters()} == expected(shape)
    assert shape.parameters == sum(p.numel() for p in base.model.parameters())
    assert (shape.family, shape.tied) == (name.split(maxsplit=1)[0].rstrip("3"), base.model.config.tie_word_embeddings)
    assert shape.qkv_bias == (name == "qwen2")
    assert shape.rope_scaling == (RopeScaling(8.0, 1.0, 4.0, 16) if name == "llama3" else None)
    assert (shape.heads, shape.head_dim) == (4, 16 if name == "mistral" else 8)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_what_init_writes(
    bases: dict[str, Base], name: str, tmp_path: Path, chars: Path, text: Path
) -> None:
    base = bases[name]
    report = run_init(base.folder, chars if base.characters else None, tmp_path / "out", text=text, loss_tokens=400)
    record = json.loads((tmp_path / "out" / "init.json").read_text())
    assert record == report.record and not report.again
    shape, before = read_architecture(tmp_path / "out"), read_architecture(base.folder)
    used = record["vocabulary"]["before"]
    new = len(NEW) if base.characters else 0
    assert (shape.vocab_used, shape.vocab_size) == (used + new, math.ceil((used + new) / 128) * 128)
    assert replace(shape, vocab_used=0, vocab_size=0) == replace(before, vocab_used=0, vocab_size=0, tied=False)
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert parse_architecture(raw, Path("config.json")) == shape
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert model.dtype == base.model.dtype and not model.config.tie_word_embeddings
    assert model.config.eos_token_id == 2 and model.config.bos_token_id == base.model.config.bos_token_id
    ids = torch.randint(0, used, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        old, now = wide(base.model)(ids).logits[..., :used], wide(model)(ids).logits[..., :used]
    assert old.std() > 0.1
    torch.testing.assert_close(now, old, rtol=0, atol=2e-6)
    for key, weight in base.model.named_parameters():
        assert torch.equal(model.get_parameter(key)[: used if "embed" in key or "head" in key else None],
                           weight[: used if "embed" in key or "head" in key else None])  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_initial_losses_are_those_of_transformers(
    bases: dict[str, Base], name: str, tmp_path: Path, chars: Path, text: Path
) -> None:
    base = bases[name]
    record = run_init(base.folder, chars if base.characters else None, tmp_path / "out", text=text).record
    loss, used = record["loss"], record["vocabulary"]
    size = (128 - 2) // 4
    spread = [TEXT[start : start + size] for start in range(0, len(TEXT), size)]
    assert (loss["pieces"], loss["characters"], loss["bytes"]) == (len(spread), len(TEXT), len(TEXT.encode()))
    now = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    for key, model, rows in (("base", wide(base.model), used["before"]), ("positional", now, used["after"])):
        if key not in loss["of"]:
            assert not base.characters and set(loss["of"]) == {"base"}
            continue
        folder = base.folder if key == "base" else tmp_path / "out"
        documents = [[1 if name != "qwen2" else 2, *ids(folder, piece)] for piece in spread]
        total = 0.0
        with torch.no_grad():
            for document in documents:
                logits = model(torch.tensor([document])).logits[0, :-1, :rows].float()
                targets = torch.tensor(document[1:])
                total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        tokens = sum(map(len, documents)) - len(documents)
        assert loss["of"][key]["tokens"] == tokens
        assert loss["of"][key]["loss"] == pytest.approx(total / tokens, rel=2e-6)
        assert loss["of"][key]["bits_per_byte"] == pytest.approx(total / math.log(2) / len(TEXT.encode()), rel=2e-6)


def ids(folder: Path, piece: str) -> list[int]:
    import tokenizers

    if (folder / "tokenizer.model").is_file():
        return list(sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode(piece))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return list(tokenizer.encode(piece, add_special_tokens=False).ids)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_auto_tokenizer_gives_the_ids_of_sentencepiece(
    bases: dict[str, Base], name: str, tmp_path: Path, chars: Path
) -> None:
    run_init(bases[name].folder, chars, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out" / "tokenizer.model"))
    assert len(tokenizer) == processor.get_piece_size()
    rng = random.Random(5)
    texts = ["", " ", "\n\n  x", "\x00", "</s> <s>x", "a , b .", "🙂" * 50, "\u0301\u200d", TEXT]
    for _ in range(600):
        kind, size = rng.randrange(3), rng.randrange(1, 40)
        start = rng.randrange(len(TEXT))
        texts.append([
            "".join(chr(rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)))) for _ in range(size)),
            "".join(rng.choices("ther  河水艾辉é，\n\t<s/>", k=size)),
            TEXT[start : start + size],
        ][kind])  # fmt: skip
    for sample in texts:
        encoded = processor.encode(sample)
        assert tokenizer(sample, add_special_tokens=False).input_ids == encoded
        assert tokenizer(sample).input_ids == [1, *encoded]
        assert tokenizer.decode(encoded) == sample
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.decode([1, *processor.encode("艾 x"), 2], skip_special_tokens=True) == "艾 x"


def test_a_tokenizer_json_is_kept(bases: dict[str, Base], tmp_path: Path, text: Path) -> None:
    folder = bases["llama3"].folder
    report = run_init(folder, None, tmp_path / "out", text=text)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert report.record["text"]["fewer"] == 0 and report.record["collisions"] == {}
    assert report.record["vocabulary"]["added"] == 0
    assert "initial loss, base" in report.lines()[-1]


# Rows


def test_new_rows_are_weighted_averages_without_the_prefix(bases: dict[str, Base], tmp_path: Path, chars: Path) -> None:
    base = bases["llama"]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(base.folder / "tokenizer.model"))
    size = processor.get_piece_size()
    old = tensors(base.folder)
    for method in ("positional", "mean"):
        run_init(base.folder, chars, tmp_path / method, method)
        new = tensors(tmp_path / method)
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(new[key][:size], old[key])
            assert not new[key][size + len(NEW) :].any()
            for number, character in enumerate(NEW):
                parts = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()]
                weights = [k + 1.0 if method == "positional" else 1.0 for k in range(len(parts))]
                row = sum(w * old[key][i].double() for w, i in zip(weights, parts, strict=True)) / sum(weights)
                torch.testing.assert_close(new[key][size + number].double(), row, rtol=0, atol=1e-7)
        assert all(torch.equal(new[key], weight) for key, weight in old.items() if "layers" in key or "norm" in key)


def test_a_mean_gives_twins_and_positions_do_not(bases: dict[str, Base], tmp_path: Path, chars: Path) -> None:
    for name in ("llama", "llama tied, grouped, BF16, sharded"):
        record = run_init(bases[name].folder, chars, tmp_path / name).record
        assert record["collisions"] == {"positional": 0, "mean": 2, "random": 0}
    table = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.5], [3.0, 2.0], [3.0, 2.0]])
    assert embeddings.collisions(table) == 4
    assert embeddings.collisions(table, torch.tensor([[0.0], [1.0], [0.0], [0.0], [0.0]])) == 2


def test_random_rows_follow_the_old_ones_and_the_seed() -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn((5000, 4), generator=generator) * torch.tensor([0.1, 1.0, 2.0, 0.0]) + torch.arange(4)
    rows = embeddings.new_rows(old, [[0]] * 5000, "random", 7)
    torch.testing.assert_close(rows.mean(0), old.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(rows.std(0), old.std(0), rtol=0.05, atol=1e-6)
    assert torch.equal(rows, embeddings.new_rows(old, [[0]] * 5000, "random", 7))
    assert not torch.equal(rows, embeddings.new_rows(old, [[0]] * 5000, "random", 8))


def test_random_rows_of_a_tied_head_are_its_own(bases: dict[str, Base], tmp_path: Path, chars: Path) -> None:
    record = run_init(bases["llama tied, grouped, BF16, sharded"].folder, chars, tmp_path / "out", "random").record
    made, size = tensors(tmp_path / "out"), record["vocabulary"]["before"]
    new = slice(size, size + len(NEW))
    assert record["untied"] and made["lm_head.weight"].dtype == torch.bfloat16
    assert torch.equal(made["lm_head.weight"][:size], made["model.embed_tokens.weight"][:size])
    assert not torch.equal(made["lm_head.weight"][new], made["model.embed_tokens.weight"][new])


# The folder


def test_the_same_init_is_left_alone_and_another_refused(bases: dict[str, Base], tmp_path: Path, chars: Path) -> None:
    base, out = bases["llama"].folder, tmp_path / "out"
    first = run_init(base, chars, out, "random")
    stamps = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    again = run_init(base, chars, out, "random")
    assert again.again and again.record == first.record and "left as it is" in again.lines()[0]
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == stamps
    for changes in ({"seed": 5}, {"pad_to": 64}, {"method": "mean"}):
        with pytest.raises(UserError, match="an init of other inputs"):
            run_init(base, chars, out, **{"method": "random", **changes})
    chars.write_text("龘\n", encoding="utf-8")
    with pytest.raises(UserError, match="an init of other inputs"):
        run_init(base, chars, out, "random")
    chars.write_text("".join(f"{c}\n" for c in NEW), encoding="utf-8")
    (out / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json was changed or removed"):
        run_init(base, chars, out, "random")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").touch()
    with pytest.raises(UserError, match="exists and holds no init"):
        run_init(base, chars, tmp_path / "other")


def test_the_same_inputs_give_the_same_bytes(bases: dict[str, Base], tmp_path: Path, chars: Path, text: Path) -> None:
    made = []
    for name in ("a", "b"):
        run_init(bases["mistral"].folder, chars, tmp_path / name, "random", text=text)
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert made[0] == made[1] and len(made[0]) == 8


def test_a_failed_init_leaves_nothing(
    bases: dict[str, Base], tmp_path: Path, chars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "place" / "out"
    dead = out.parent / f"{TEMPORARY}999999999-out.part"
    dead.mkdir(parents=True)

    def full(*_: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(hf_files, "write_weights", full)
        with pytest.raises(UserError, match="no space left on the disk"):
            run_init(bases["llama"].folder, chars, out)
    assert list(out.parent.iterdir()) == []
    out.mkdir()  # an empty folder is a place like any other
    assert run_init(bases["llama"].folder, chars, out).record["vocabulary"]["added"] == len(NEW)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


# Bad input


def damage(name: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    if name == "truncated":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    elif name == "no weights":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif name == "no tokenizer":
        (folder / "tokenizer.model").unlink()
    elif name == "json tokenizer":
        (folder / "tokenizer.model").unlink()
        tokenizer_json(folder / "tokenizer.json", vocab_size=400)
    elif name == "another tokenizer":
        sentencepiece_model(folder / "tokenizer.model", vocab_size=650)
    elif name == "broken tokenizer":
        (folder / "tokenizer.model").write_bytes(b"no model")
    else:
        changes: dict[str, Any] = {
            "another architecture": {"architectures": ["GPT2LMHeadModel"]},
            "window": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 64},
            "rope": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
            "wider": {"intermediate_size": 64},
            "deeper": {"num_hidden_layers": 3},
            "quantised": {"quantization_config": {"bits": 4}},
        }[name]
        (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("truncated", "cannot be read as safetensors"),
        ("no weights", "has only pytorch_model.bin"),
        ("no tokenizer", "has no tokenizer.model and no tokenizer.json"),
        ("json tokenizer", "leave --chars out"),
        ("another tokenizer", "650 pieces, the embedding in config.json has"),
        ("broken tokenizer", "is no SentencePiece model"),
        ("another architecture", "architecture GPT2LMHeadModel"),
        ("window", "sliding_window 64"),
        ("rope", "rope type yarn"),
        ("wider", "mlp.gate_proj.weight is (48, 32), config.json asks for (64, 32)"),
        ("deeper", "model.layers.2.input_layernorm.weight is missing"),
        ("quantised", "is quantised"),
    ],
)
def test_a_bad_base_is_one_clear_line(
    bases: dict[str, Base], tmp_path: Path, chars: Path, name: str, message: str
) -> None:
    shutil.copytree(bases["llama"].folder, tmp_path / "base")
    damage(name, tmp_path / "base")
    with pytest.raises(UserError) as error:
        run_init(tmp_path / "base", chars, tmp_path / "out")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "chars.txt"]


def test_other_bad_inputs(bases: dict[str, Base], tmp_path: Path, chars: Path) -> None:
    sharded = bases["llama tied, grouped, BF16, sharded"].folder
    shutil.copytree(sharded, tmp_path / "base")
    shards = sorted((tmp_path / "base").glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises(UserError, match=f"shard {shards[1].name} is missing"):
        run_init(tmp_path / "base", chars, tmp_path / "out")
    with pytest.raises(UserError, match="is no folder"):
        run_init(tmp_path / "none", chars, tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"--output .*file is a file, so no folder can be made in it"):
        run_init(sharded, chars, tmp_path / "file" / "out")
    with pytest.raises(UserError, match="--pad-to 0"):
        run_init(sharded, chars, tmp_path / "out", pad_to=0)
    with pytest.raises(UserError, match="no such file"):
        run_init(sharded, chars, tmp_path / "out", text=tmp_path / "none.txt")
    tokenizer_json(bases["qwen2"].folder.parent / "large.json", vocab_size=900)
    shutil.copytree(bases["llama3"].folder, tmp_path / "large")
    shutil.copy(bases["qwen2"].folder.parent / "large.json", tmp_path / "large" / "tokenizer.json")
    with pytest.raises(UserError, match=r"tokens, the embedding in .* only 700 rows"):
        run_init(tmp_path / "large", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_extended_model_can_be_extended_again(bases: dict[str, Base], tmp_path: Path, chars: Path) -> None:
    """The marked padding of the first init makes room: it is no part of the vocabulary."""
    run_init(bases["llama"].folder, chars, tmp_path / "first")
    chars.write_text("龘\n麤\n", encoding="utf-8")
    record = run_init(tmp_path / "first", chars, tmp_path / "second", pad_to=16).record
    first, second = tensors(tmp_path / "first"), tensors(tmp_path / "second")
    assert (record["vocabulary"]["added"], record["vocabulary"]["already"]) == (1, 1)
    used, rows = record["vocabulary"]["after"], record["vocabulary"]["rows"]
    assert rows == math.ceil(used / 16) * 16 == len(second["lm_head.weight"])
    assert torch.equal(first["lm_head.weight"][: used - 1], second["lm_head.weight"][: used - 1])
    assert second["lm_head.weight"][used - 1].any() and not second["lm_head.weight"][used:].any()


def test_pieces_of_text_fit_and_spread() -> None:
    from training.initial_loss import spread_pieces

    texts = ["一" * 1000, "", "ab" * 300]
    whole = spread_pieces(texts, 82, 10**6, 1600)
    assert "".join(whole) == "".join(texts) and max(map(len, whole)) == 20
    some = spread_pieces(texts, 82, 160, 1600)
    assert len(some) == 8 and [piece[0] for piece in some] == ["一"] * 5 + ["a"] * 3
    assert all(first is not second for first, second in pairwise(some))
