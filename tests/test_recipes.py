"""Recipes: settings that hold together, state where they come from, and give way to what was said."""

import json
import sys

import pytest
import yaml

from prefinetune.cli import main
from prefinetune.config import make_config, setting_names
from prefinetune.errors import InputError
from prefinetune.recipes import RECIPES, recipe


@pytest.mark.parametrize("one", RECIPES, ids=lambda one: one.name)
def test_a_recipe_is_a_valid_configuration_whose_every_setting_names_its_origin(one):
    names = [setting.name for setting in one.settings]
    assert len(set(names)) == len(names)
    assert set(names) <= set(setting_names())
    make_config(one.config)
    assert all("paper" in setting.origin or "fairseq" in setting.origin for setting in one.settings)


def test_updates_mix_64_sub_batches_as_the_papers_workers_do_and_r3f_is_on_for_bart_alone():
    configs = {one.name: make_config(one.config) for one in RECIPES}
    assert set(configs) == {"muppet-roberta-base", "muppet-roberta-large", "muppet-bart-base", "muppet-bart-large"}
    for name, config in configs.items():
        mixture = config.mixture
        assert (mixture.sub_batches, mixture.order, mixture.sampling) == (64, "heterogeneous", "natural")
        assert (config.objective.r3f > 0) == ("bart" in name)


def test_a_recipe_gives_way_to_the_suites_mixture_and_both_to_what_the_command_says(tmp_path, tiny_model, monkeypatch, cache):
    rows = [{"text": f"the duni kuno {word} number {at}", "label": word} for at in range(10) for word in ("gilas", "bano")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"name": "mine", "source": "a.jsonl", "classification": {"text": "text"}}
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"tasks": [entry], "mixture": {"sub_batch_size": 2}}))
    said = ["data.max_length=32", "train.updates=1", "train.epochs=2", "optimizer.clip=0.5"]
    arguments = ["train", suite, "--recipe", "muppet-roberta-base", "--model", tiny_model, "--out", tmp_path / "run", *said]
    monkeypatch.setattr(sys, "argv", ["prefinetune", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["mixture"]["sub_batches"] == 64, "the recipe's"
    assert config["mixture"]["sub_batch_size"] == 2, "the suite's"
    assert config["optimizer"]["clip"] == 0.5, "the command's"
    assert config["optimizer"]["learning_rate"] == 2e-5


def test_an_unknown_recipe_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match=r"no recipe 'muppet-bart-bas' \(did you mean 'muppet-bart-base'\?\); there are muppet-"):
        recipe("muppet-bart-bas")
