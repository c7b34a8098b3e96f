"""Cluster descriptions: presets, files, and what is said of a wrong one."""

from pathlib import Path

import pytest
import yaml

from internevo_engine.errors import ConfigError, PlanError
from internevo_engine.plan.cluster import PRESETS, load_cluster


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_written_to_a_file_is_read_as_the_same_cluster(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(PRESETS[name].model_dump()))
    assert load_cluster(str(file)) == load_cluster(name)


def test_ranks_of_a_node_share_its_network_cards() -> None:
    assert PRESETS["a100-80g-4x100g"].far_gb_per_s_of_rank == 4 * 100 / 8 / 8


def test_a_name_that_is_neither_preset_nor_file_gets_the_presets() -> None:
    with pytest.raises(ConfigError, match="--cluster b200: neither a file nor a preset; presets are a100-80g-4x100g"):
        load_cluster("b200")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank_per_node": 4}, "rank_per_node: extra inputs are not permitted"),
        ({"peak_tflops": -1}, "peak_tflops: input should be greater than 0"),
        ({"near": {"gb_per_s": 300.0}}, "near.hop_us: field required"),
    ],
)
def test_a_wrong_key_is_named_with_its_file(change: dict[str, object], message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**PRESETS["h100-80g-8x400g"].model_dump(), **change}))
    with pytest.raises(ConfigError, match=f"mine.yaml: {message}"):
        load_cluster(str(file))


def test_more_ranks_than_there_are_or_half_a_node_is_refused() -> None:
    with pytest.raises(ConfigError, match="8 ranks were asked for, but the cluster has 2 nodes of 2; ask for 4"):
        PRESETS["lab"].topology(8)
    with pytest.raises(PlanError, match="don't fill hosts"):
        PRESETS["a100-80g-4x100g"].topology(12)
