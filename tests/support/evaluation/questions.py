"""Questions that lm_eval asks a model, in two tasks that lie in a folder, and what it answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tq3
from support.models.tiny_models import ARCHITECTURES, write_checkpoint

QUESTIONS = [
    {"question": f"{a} and {b} is", "choices": [f" {a + b}", " no", " a dog"], "answer": 0}
    for a in range(3)
    for b in range(3)
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
{kind}
"""
KINDS = {
    "choosing": """
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}]
""",
    # As GSM8K is scored: the answer is looked for in a text that the model generates.
    "generating": """
output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
filter_list:
  - name: first
    filter: [{function: regex, regex_pattern: "([a-z])"}, {function: take_first}]
metric_list: [{metric: exact_match}]
""",
}


def make_folders(folder: Path) -> Path:
    """In `folder`: `out`, a TQ3 checkpoint; `restored`, made of it; and the tasks."""
    write_checkpoint(ARCHITECTURES[0], folder / "source")
    tokens = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=tokens | {"</s>": len(tokens)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    tokenizer.save_pretrained(folder / "source")
    tq3.compress(folder / "source", folder / "out")
    tq3.restore(folder / "out", folder / "restored", dtype="float32")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (folder / "tasks").mkdir()
    for name, kind in KINDS.items():
        text = TASK.format(name=name, data=data, kind=kind)
        (folder / "tasks" / f"{name}.yaml").write_text(text)
    return folder


def ask(
    folders: Path, model: str, command: tuple[str, ...], arguments: str = ""
) -> dict[str, list[Any]]:
    """Task -> what lm_eval, run as `command`, wrote down of each question, in order.

    arguments: lm_eval's model_args beside the folder of the model
    """
    answers = folders / f"answers-{model}"
    if answers.exists():
        shutil.rmtree(answers)
    whole = (
        *command,
        *("--model_args", f"pretrained={folders / model},dtype=float32{arguments}"),
        *("--include_path", folders / "tasks", "--tasks", ",".join(KINDS)),
        *("--output_path", answers, "--log_samples"),
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folders / "hf")}
    run = subprocess.run(
        list(map(str, whole)),
        cwd=folders,
        env=os.environ | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = {}
    for name in KINDS:
        (file,) = answers.rglob(f"samples_{name}_*.jsonl")
        lines = sorted(map(json.loads, file.read_text().splitlines()), key=lambda s: s["doc_id"])
        assert len(lines) == len(QUESTIONS)
        found[name] = lines
    return found


def log_likelihoods(found: dict[str, list[Any]]) -> list[float]:
    return [float(choice[0][0]) for sample in found["choosing"] for choice in sample["resps"]]
