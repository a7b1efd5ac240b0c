"""`tq3 eval` with source, checkpoint or both on the Hub: the same figures as from folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.evaluation.evaluated import Pair, evaluation_of, make_pair
from support.hub.hubs import Hub
from support.hub.reading import HASTY
from support.models.tiny_models import ARCHITECTURES

SOURCE, OUT = "some-org/tiny", "some-org/tiny-TQ3"


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Folders that are those of two repositories."""
    made = make_pair(ARCHITECTURES[0], tmp_path / "made")
    models = tmp_path / "models"
    (models / SOURCE).parent.mkdir(parents=True)
    return made._replace(
        source=made.source.rename(models / SOURCE), out=made.out.rename(models / OUT)
    )


@pytest.fixture
def hub(start_hub, pair: Pair, tmp_path: Path) -> Hub:
    return start_hub("--seed", tmp_path / "models")


def test_a_source_and_a_checkpoint_of_the_hub_give_the_figures_of_their_folders(hub, pair):
    of_folders, _ = evaluation_of(pair)
    for ids in ({"source": SOURCE}, {"out": OUT}, {"source": SOURCE, "out": OUT}):
        found, _ = evaluation_of(pair._replace(**ids), hub=HASTY, source_hub=HASTY)
        assert (found.measures, found.layers, found.tensors) == (
            of_folders.measures,
            of_folders.layers,
            of_folders.tensors,
        )


def test_weights_are_read_by_ranges_and_nothing_of_them_is_kept(hub, pair, tmp_path):
    evaluation_of(pair._replace(source=SOURCE), source_hub=HASTY)
    read = [line for line in hub.requests() if line["p"].startswith("/cdn/")]
    assert len(read) > 14
    assert all(line["range"] for line in read)
    assert not [*(tmp_path / "cache").rglob("*.safetensors")]
