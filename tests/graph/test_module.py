import pytest
from torch import nn

from internevo_engine.graph.module import parameter_table
from internevo_engine.models.families import FAMILIES, parameters
from tests.graph.models import Tied, decoder_config, meta_decoder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_our_decoder_is_the_one_that_a_dry_run_plans_with(family: str) -> None:
    config = decoder_config(family)
    assert list(parameter_table(meta_decoder(config))) == list(parameters(config))


def test_what_stands_around_the_layers_is_a_layer_too() -> None:
    table = parameter_table(Tied())
    layers = {param.name: param.layer for param in table}
    assert layers["embedding.weight"] == 0
    assert [layers[f"layers.{number}.linear1.weight"] for number in range(3)] == [1, 2, 3]
    assert layers["unused.weight"] == 4
    assert "head.weight" not in layers, "it is the embedding's"
    assert [param.name for param in table if not param.trained] == ["scale"]


def test_without_repeated_layers_every_module_with_parameters_is_one() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)))
    assert [(param.name, param.layer) for param in parameter_table(model)] == [
        ("0.weight", 0), ("0.bias", 0), ("2.0.weight", 1), ("2.0.bias", 1), ("2.1.weight", 2), ("2.1.bias", 2),
    ]  # fmt: skip
