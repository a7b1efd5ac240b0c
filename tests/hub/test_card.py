"""The model card: every fact in it is one of the checkpoint's."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from support.factories import (
    contents,
    of_another_writer,
    tiny_checkpoint,
    whole_llama,
    whole_llama_config,
)
from support.hub.pushing import REPO, SOURCE, SOURCE_CARD, packed

import tq3
from tq3.errors import BadInput, StorageError, UsageError
from tq3.format.quality import fingerprint, quality_text
from tq3.hub.metadata import make_metadata, metadata_block, read_metadata
from tq3.hub.sharing import licence_limits
from tq3.publication.template import fill_in, is_untouched
from tq3.storage.local import LocalFiles


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return packed(tmp_path)


def metadata_of(card: str) -> Any:
    """As huggingface_hub reads it."""
    return ModelCard(card).data.to_dict()


def test_metadata_is_the_sources_and_what_the_compression_adds(out):
    assert metadata_of(tq3.make_card(out, REPO)) == {
        "base_model": SOURCE,
        "base_model_relation": "quantized",
        "license": "apache-2.0",
        "language": ["en", "no"],
        "pipeline_tag": "text-generation",
        "library_name": "tq3",
        "tags": ["chat", "tq3", "turboquant", "quantized", "3-bit"],
    }


def test_a_source_without_a_card_leaves_a_card_with_what_is_known(tmp_path):
    found = metadata_of(tq3.make_card(packed(tmp_path, card=None), REPO))
    assert found.keys() == {"base_model", "base_model_relation", "library_name", "tags"}


def test_figures_are_those_that_inspect_shows(out):
    card, found = tq3.make_card(out, REPO), tq3.inspect(out)
    assert "344.83 kB became 83.71 kB (4.12 times smaller)" in card
    assert f"| bits a weight, over all | 16.00 | {found.bits_per_weight:.2f} |" in card
    assert "| bits a weight, where compressed | 16.00 | 3.25 |" in card
    assert "6 tensors are compressed, 5 are kept." in card
    for line in found.classes:
        assert f"| {line.label} | {line.n_compressed} | {line.n_kept} |" in card
    for reason, (number, _) in found.kept_reasons.items():
        assert f"| {reason} | {number} |" in card
    error = found.measured_error
    assert error is not None
    assert f"mean {error.mean:.4f}, worst {error.worst:.4f} in `{error.worst_tensor}`" in card


def test_the_card_is_the_same_each_time_and_names_its_sources_and_papers(out):
    card = tq3.make_card(out, REPO)
    assert card == tq3.make_card(out, REPO)
    assert "`0123abcd`" in card and f"tq3 {tq3.__version__}" in card
    assert "2411.17525" in card and "2504.19874" in card
    assert f"vllm serve {REPO}\n" in card and f'tq3.load("{REPO}")' in card
    assert str(out.parent) not in card


def test_the_card_says_who_can_load_it_and_whether_columns_are_equalized(out, tmp_path):
    card = tq3.make_card(out, REPO)
    assert "Other readers of the published format can load it, too." in card
    assert "Columns are equalized" not in card
    source = tiny_checkpoint(tmp_path / "in", whole_llama(), config=whole_llama_config())
    tq3.compress(source, tmp_path / "best", recipe="best")
    card = tq3.make_card(tmp_path / "best", REPO)
    assert "Readers of other makes can't load it: " in card and "norms are F16" in card
    assert "an adapter that was trained beside the source's own does not fit" in card


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 4, "group_size": 64, "keep": ["*.up_proj.weight", "it's*"]},
        {"bits": 2, "sensitive_bits": 4, "sensitive_patterns": ["o_proj"]},
        {"only": ["lm_head.weight"], "keep_dtype": "source", "nonfinite": "keep"},
        {"verbatim_config": True},
        {"scale": "norm", "norms": "float16"},
    ],
    ids=str,
)
def test_the_command_in_the_card_writes_the_same_bytes(tmp_path, options, monkeypatch):
    if "keep" in options:
        options = options | {"keep": ["*.up_proj.weight"]}
    out = packed(tmp_path, **options)
    card = tq3.make_card(out, REPO)
    (command,) = re.findall(r"^tq3 compress .*$", card, re.MULTILINE)
    words = shlex.split(command)
    (source,) = (tmp_path / "models--some-org--some-model" / "snapshots").iterdir()
    assert words[2:4] == [SOURCE, "OUT"] and words[-2:] in (
        ["--revision", "0123abcd"],
        ["0123abcd", "--verbatim-config"],
    )
    at = words.index("--revision")
    del words[at : at + 2]  # the snapshot is that revision
    run_in_process([*words[1:2], str(source), str(tmp_path / "again"), *words[4:]])
    assert contents(tmp_path / "again") == contents(out)


def run_in_process(arguments: list[str]) -> None:
    """One command."""
    from typer.testing import CliRunner  # noqa: PLC0415  the only test that needs it

    from tq3.cli.app import app  # noqa: PLC0415

    result = CliRunner().invoke(app, [*arguments, "-q"])
    assert result.exit_code == 0, result.output


def test_a_folder_that_hosts_do_not_recognise_is_served_with_a_flag(tmp_path):
    card = tq3.make_card(packed(tmp_path, verbatim_config=True), REPO)
    assert f"vllm serve {REPO} --quantization tq3\n" in card


def test_what_another_writer_did_not_record_is_not_made_up(out):
    config = json.loads((of_another_writer(out) / "tq_config.json").read_text())
    del config["tq3"], config["original_model"]
    (out / "tq_config.json").write_text(json.dumps(config))
    card = tq3.make_card(out, REPO)
    assert "`a model that was not recorded`" in card and "not recorded became" in card
    assert "The error of this checkpoint was not recorded" in card
    assert "tq3 compress" not in card and "base_model" not in metadata_of(card)
    assert metadata_of(tq3.make_card(out, REPO, base_model=SOURCE))["base_model"] == SOURCE


FIGURES: dict[str, Any] = {
    "path": "/home/me/out",
    "text": "a|b.txt",
    "n_tokens": 1024,
    "context": 512,
    "bos": None,
    "dtype": "float32",
    "bits_per_weight": 3.25,
    "measures": {
        "source_perplexity": 9.1234,
        "perplexity": 10.5,
        "perplexity_error": 0.25,
        "kl": 0.0789,
        "kl_error": 0.001,
        "agreement": 0.873,
        "agreement_error": 0.01,
    },
}


def measured(out: Path, **changes: object) -> None:
    """Leave figures in the folder, as `tq3 eval --save` does."""
    with LocalFiles(out) as files:
        checkpoint = fingerprint(files)
    (out / "tq3_eval.json").write_text(quality_text(FIGURES | changes, checkpoint))


def test_figures_of_quality_are_shown_where_an_evaluation_left_them(out):
    assert "## Quality" not in tq3.make_card(out, REPO)
    measured(out)
    card = tq3.make_card(out, REPO)
    assert r"text a\|b.txt: 1024 tokens in sequences of 512." in card
    assert "| perplexity | 9.123 | 10.500 ± 0.250 |" in card
    assert "| KL divergence from the source, nats a token |  | 0.0789 ± 0.0010 |" in card
    assert "| tokens with the source's first choice |  | 87.3% ± 1.0% |" in card
    assert "/home/me" not in (out / "tq3_eval.json").read_text()
    tq3.restore(out, out.parent / "back")
    assert not (out.parent / "back" / "tq3_eval.json").exists()


def test_figures_of_other_weights_are_refused(out):
    measured(out)
    (source,) = (out.parent / "models--some-org--some-model" / "snapshots").iterdir()
    tq3.compress(source, out, bits=4, overwrite=True)
    with pytest.raises(BadInput, match=r"tq3_eval\.json: .* of other weights"):
        tq3.make_card(out, REPO)


@pytest.mark.parametrize(
    "wrong", [None, 3, {"perplexity": 1.0}, FIGURES["measures"] | {"kl": "low"}]
)
def test_figures_that_are_none_are_refused(out, wrong):
    measured(out, measures=wrong)
    with pytest.raises(BadInput, match=r"tq3_eval\.json: .* is no figure"):
        tq3.make_card(out, REPO)


@pytest.mark.parametrize("name", ["model", "a/b/c", "a b/c", "a/b--c", ""])
def test_a_base_model_that_can_not_be_one_is_a_usage_error(out, name):
    with pytest.raises(UsageError, match="--base-model is no name of the Hub"):
        tq3.make_card(out, REPO, base_model=name)


def test_a_card_is_untouched_until_a_letter_changes(out):
    card = tq3.make_card(out, REPO)
    assert is_untouched(card)
    for edited in (card.replace("smaller", "lighter"), card + "More.\n", card.rstrip("\n"), ""):
        assert not is_untouched(edited)
    assert not is_untouched(SOURCE_CARD)


def test_a_template_of_the_users_takes_the_place_of_ours(out, tmp_path):
    template = tmp_path / "mine.md"
    template.write_text("$metadata\n\n# $title costs $$5, $size\n")
    card = tq3.make_card(out, REPO, template=template)
    assert "# tiny-TQ3 costs $5, 83.71 kB\n" in card and is_untouched(card)
    template.write_text("$prize")
    with pytest.raises(UsageError, match=r"unknown \$prize \(expected \$base, \$bits"):
        tq3.make_card(out, REPO, template=template)
    template.write_text("5 $ each")
    with pytest.raises(UsageError, match=r"write \$\$ for a dollar sign"):
        tq3.make_card(out, REPO, template=template)
    template.write_bytes(b"\xff")
    with pytest.raises(BadInput, match="not UTF-8"):
        tq3.make_card(out, REPO, template=template)
    with pytest.raises(StorageError, match="can't be read"):
        tq3.make_card(out, REPO, template=tmp_path / "none.md")


def test_only_a_tq3_checkpoint_has_a_card(tmp_path, out):
    (source,) = (tmp_path / "models--some-org--some-model" / "snapshots").iterdir()
    with pytest.raises(BadInput, match=r"not a TQ3 checkpoint .*tq3 compress"):
        tq3.make_card(source, REPO)


def test_names_of_tensors_and_models_do_not_break_out_of_the_card(out):
    config = json.loads((out / "tq_config.json").read_text())
    config["original_model"] = "a`b\n# injected | x"
    config["tq3"]["measured_error"]["worst_tensor"] = "w`\n# injected"
    (out / "tq_config.json").write_text(json.dumps(config))
    card = tq3.make_card(out, REPO)
    assert "\n# injected" not in card and "a'b" in card


@pytest.mark.parametrize(
    ("card", "told"),
    [
        ("---\na: [1\n---\n", "not YAML"),
        ("---\n- a\n---\n", "not a mapping"),
        ("---\n" + "[" * 5000 + "\n---\n", "not YAML"),
    ],
    ids=["cut", "a list", "deep"],
)
def test_metadata_that_is_none_is_refused_with_the_files_name(card, told):
    with pytest.raises(BadInput, match=rf"README\.source\.md: its metadata is {told}"):
        read_metadata(card, "README.source.md")


@pytest.mark.parametrize("card", ["", "# A title", "---\n\n---\n", "---\nnever closed"])
def test_a_card_without_metadata_has_none(card):
    assert read_metadata(card, "README.md") == {}


def test_a_card_of_empty_lines_is_read_at_once():
    started = time.perf_counter()
    assert read_metadata("---\n" + "\n" * 3000 + "x", "README.md") == {}
    assert time.perf_counter() - started < 1


def test_metadata_that_is_no_text_is_not_inherited():
    source = {"license": {"a": "b"}, "language": ["en", ["no"]], "tags": "chat", "pipeline_tag": ""}
    made = make_metadata(source, None, 2)
    assert made == {"library_name": "tq3", "tags": ["tq3", "turboquant", "quantized", "2-bit"]}
    assert read_metadata(metadata_block(made) + "\n", "x") == made


LICENCES = {
    "apache-2.0": 0,
    "mit": 0,
    "gemma": 0,
    "cc-by-nc-4.0": 1,
    "cc-by-nc-nd-4.0": 2,
    "cc-by-nd-4.0": 1,
    "flux-1-dev-non-commercial-license": 1,
    "Qwen Research": 1,
    "fair-noncommercial-research-license": 2,
    "mrl": 1,
    "bsd-3-clause": 0,
    "ncsa": 0,
}


@pytest.mark.parametrize(("licence", "number"), LICENCES.items())
def test_a_licence_tells_by_its_name_what_it_does_not_allow(licence, number):
    assert len(licence_limits({"license": licence})) == number
    assert len(licence_limits({"license": "other", "license_name": licence})) == number


def test_empty_lines_do_not_pile_up_where_a_section_is_left_out():
    assert "\n\n\n" not in fill_in("a\n\n$nothing\n\nb\n", {"nothing": ""})
