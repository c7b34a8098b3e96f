import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from internevo_engine.config.schema import ModelConfig
from internevo_engine.models.decoder import Decoder
from internevo_engine.models.families import architecture
from internevo_engine.models.initialize import build

SEQ_LEN = 24
LENGTHS = (24, 24, 7, 1, 16)
"""Pieces of the test pack: a document of two pieces, a short one, the shortest one, another."""


def tiny(family: str, **keys: object) -> ModelConfig:
    shape = {"vocab": 97, "layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 96, "init_std": 0.1}
    return ModelConfig.model_validate({"family": family, **shape, **keys})


def fresh(model: ModelConfig) -> Decoder:
    """A decoder whose biases and norms are not the constants they start as, so that each one shows in the logits."""
    decoder = build(model, SEQ_LEN, torch.float32, torch.device("cpu"), seed=5)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return decoder


def pack(lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.randint(97, (sum(lengths),), generator=torch.Generator().manual_seed(6))
    positions = torch.cat([torch.arange(length) for length in lengths])
    return tokens, positions, torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


HF_NAMES = {
    "embedding": "model.embed_tokens",
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "head": "lm_head",
    "norm": "model.norm",
}


def to_hugging_face(model: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names and fused tensors (weights or gradients) in transformers' names, taken apart."""
    arch, found = architecture(model), {}
    kv_rows = arch.kv_heads * arch.head_dim
    for name, tensor in tensors.items():
        parts = {name: tensor}
        if ".wqkv." in name:
            rows = tensor.split((arch.heads * arch.head_dim, kv_rows, kv_rows))
            parts = {name.replace("wqkv", letter): part for letter, part in zip("qkv", rows, strict=True)}
        elif ".w13." in name:
            parts = {name.replace("w13", w): part for w, part in zip(("w1", "w3"), tensor.chunk(2), strict=True)}
        for part_name, part in parts.items():
            path, _, kind = part_name.rpartition(".")
            *layer, local = path.split(".", 2) if path.startswith("layers.") else [path]
            found[".".join([*(["model", *layer] if layer else []), HF_NAMES[local], kind])] = part
    return found


def hugging_face(model: ModelConfig, decoder: Decoder) -> transformers.PreTrainedModel:
    """The same weights in transformers' code."""
    arch = architecture(model)
    config = (transformers.InternLM3Config if model.family == "internlm3" else transformers.LlamaConfig)(
        vocab_size=arch.vocab,
        hidden_size=arch.hidden,
        intermediate_size=arch.ffn,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads,
        num_key_value_heads=arch.kv_heads,
        head_dim=arch.head_dim,
        rms_norm_eps=arch.norm_eps,
        attention_bias=arch.o_bias,
        rope_parameters={"rope_type": "default", "rope_theta": arch.rope_base},
        attn_implementation="eager",
        pad_token_id=None,  # else the pad token's embedding gets no gradient
    )
    reference = transformers.AutoModelForCausalLM.from_config(config)
    reference.load_state_dict(to_hugging_face(model, decoder.state_dict()))
    return reference.eval()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("family", ["internlm", "internlm2", "internlm3", "llama"])
def test_logits_of_every_piece_equal_hugging_face_on_that_piece_alone(family: str, kv_heads: int) -> None:
    model = tiny(family, kv_heads=kv_heads)
    decoder = fresh(model)
    reference = hugging_face(model, decoder)
    tokens, positions, cu_seqlens = pack()
    with torch.no_grad():
        found = decoder(tokens, positions, cu_seqlens).split(LENGTHS)
        expected = [reference(piece[None]).logits[0] for piece in tokens.split(LENGTHS)]
    assert expected[0].abs().max() > 0.1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_another_document_does_not_change_one_bit() -> None:
    decoder = fresh(tiny("internlm2"))
    tokens, positions, cu_seqlens = pack()
    changed = tokens.clone()
    changed[48:55] = (changed[48:55] + 1) % 97
    with torch.no_grad():
        before = decoder(tokens, positions, cu_seqlens).split(LENGTHS)
        after = decoder(changed, positions, cu_seqlens).split(LENGTHS)
    assert [torch.equal(x, y) for x, y in zip(before, after, strict=True)] == [True, True, False, True, True]


def test_a_later_token_does_not_change_an_earlier_logit() -> None:
    decoder = fresh(tiny("internlm2"))
    tokens, positions, cu_seqlens = pack((24,))
    changed = tokens.clone()
    changed[20] = (changed[20] + 1) % 97
    with torch.no_grad():
        same = (decoder(tokens, positions, cu_seqlens) == decoder(changed, positions, cu_seqlens)).all(-1)
    assert same.tolist() == [True] * 20 + [False] * 4


def gradients(decoder: Decoder) -> dict[str, Tensor]:
    tokens, positions, cu_seqlens = pack()
    F.cross_entropy(decoder(tokens, positions, cu_seqlens), tokens.roll(-1), reduction="sum").backward()
    return {name: parameter.grad for name, parameter in decoder.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("family", ["internlm", "internlm3"])
def test_every_gradient_is_the_sum_of_hugging_face_gradients_over_the_pieces(family: str) -> None:
    model = tiny(family)
    decoder = fresh(model)
    reference = hugging_face(model, decoder)
    tokens = pack()[0]
    for piece, labels in zip(tokens.split(LENGTHS), tokens.roll(-1).split(LENGTHS), strict=True):
        F.cross_entropy(reference(piece[None]).logits[0], labels, reduction="sum").backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    found = gradients(decoder)
    assert all(gradient.abs().max() > 1e-3 for gradient in found.values())
    torch.testing.assert_close(to_hugging_face(model, found), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.125, 0.1])
def test_embed_grad_scale_scales_the_embedding_gradient_and_nothing_else(scale: float) -> None:
    plain, scaled = fresh(tiny("internlm")), fresh(tiny("internlm", embed_grad_scale=scale))
    expected, found = gradients(plain), gradients(scaled)
    assert torch.equal(plain(*pack()), scaled(*pack()))
    embedding, scaled_embedding = expected.pop("embedding.weight"), found.pop("embedding.weight")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    exact = {"atol": 0.0, "rtol": 0.0} if scale == 0.125 else {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(scaled_embedding, embedding * scale, **exact)


def test_norm_head_ignores_the_length_of_head_rows() -> None:
    decoder = fresh(tiny("internlm2", norm_head=True))
    x, weight, unused = torch.randn(3, 64), decoder.get_parameter("head.weight"), torch.empty(97, 64)
    rows = weight / weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(decoder.head(x, unused), x @ rows.T)
    before = decoder.head(x, unused)
    with torch.no_grad():
        weight.mul_(torch.rand(97, 1) + 0.5)
    torch.testing.assert_close(decoder.head(x, unused), before)


def test_a_tied_head_is_the_embedding_and_both_uses_add_up_in_its_gradient() -> None:
    model = tiny("llama", tie_embeddings=True)
    decoder, apart = fresh(model), fresh(tiny("llama"))
    with torch.no_grad():
        for name, parameter in apart.named_parameters():
            parameter.copy_(decoder.get_parameter("embedding.weight" if name == "head.weight" else name))
    assert "head.weight" not in decoder.state_dict()
    assert torch.equal(decoder(*pack()), apart(*pack()))
    expected = gradients(apart)
    expected["embedding.weight"] += expected.pop("head.weight")
    torch.testing.assert_close(gradients(decoder), expected)


def test_rope_beyond_the_trained_length_equals_hugging_face_dynamic_ntk() -> None:
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=8,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    )
    frequencies, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", seq_len=SEQ_LEN)
    rope = fresh(tiny("llama", rope_trained_len=8, rope_factor=2.0)).rope
    angles = torch.outer(torch.arange(SEQ_LEN).float(), frequencies)
    torch.testing.assert_close(rope.cos, torch.cat((angles.cos(), angles.cos()), -1))
    torch.testing.assert_close(rope.sin, torch.cat((-angles.sin(), angles.sin()), -1))


def test_the_decoder_is_one_graph() -> None:
    decoder = fresh(tiny("internlm", embed_grad_scale=0.5, norm_head=True))
    compiled = torch.compile(decoder, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(*pack()), decoder(*pack()))


def test_rope_tables_are_not_part_of_the_state() -> None:
    decoder = fresh(tiny("llama"))
    assert decoder.state_dict().keys() == dict(decoder.named_parameters()).keys()
