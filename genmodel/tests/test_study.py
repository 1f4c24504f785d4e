"""The studies' stages, arms and reports, with stand-ins for what takes long."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from genmodel.prompts import Prompt
from genmodel.sampler import SampleResult
from studies import arms, common, reporting


def test_a_stage_runs_once(tmp_path):
    calls = []

    def work():
        calls.append(1)
        return {"value": np.int64(3), "where": tmp_path}

    said = []
    first = common.Stages(tmp_path, said.append).run("one", work)
    again = common.Stages(tmp_path, said.append).run("one", work)
    assert len(calls) == 1
    assert first["value"] == again["value"] == 3
    assert said[-1] == "one: done before"
    record = json.loads((tmp_path / "stages" / "one.json").read_text())
    assert record["wall_seconds"] >= 0
    assert record["cpu_seconds"] >= 0


def test_a_stage_that_fails_is_run_again(tmp_path):
    stages = common.Stages(tmp_path, lambda _: None)

    def fails():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages.run("one", fails)
    assert stages.records() == {}
    assert stages.run("one", lambda: {"ok": True}) == {"ok": True}


def test_wilson_intervals():
    low, high = common.wilson(32, 128)
    assert (round(low, 3), round(high, 3)) == (0.183, 0.332)
    assert common.wilson(0, 10)[0] == 0.0
    assert common.wilson(10, 10)[1] == pytest.approx(1.0)
    assert common.wilson(0, 0) == (0.0, 1.0)
    assert common.percent(32, 128) == "25.0 [18-33]"


class _Tree:
    def radius_for_mass(self, centers, mass):
        return np.full(len(centers), mass)


class _Sampler:
    """Gives images whose embedding is the center that it was told, and notes what it was told."""

    tree = _Tree()

    def __init__(self):
        self.told = []

    def samples(self, prompts, limits, n, *, guidance, seed, retrieve, second_stage, best_of):
        self.told.append((np.stack([p.center for p in prompts]), np.asarray(limits), retrieve, second_stage, best_of))
        rows = np.repeat(np.stack([p.center for p in prompts]), n, axis=0)
        return SampleResult(
            torch.zeros(len(rows), 3, 4, 4, dtype=torch.uint8),
            torch.zeros(len(rows), 1, dtype=torch.long),
            None,
            list(prompts),
            np.zeros(len(prompts)),
            rows,
        )


def _groups():
    rows = np.eye(4, dtype=np.float32)
    prompts = [Prompt(str(i), row, row) for i, row in enumerate(rows[:3])]
    return [arms.Group("text", prompts, 2), arms.Group("image", prompts[:1], 1)]


def _judge(group, result, limits):
    plain = np.stack([prompt.center for prompt in group.prompts])
    return {"in_cap": int(arms.in_caps(result, plain, limits).sum())}


def _run(arm, **more):
    sampler = _Sampler()
    shift = np.array([0.0, 0.0, 0.0, 1.0], np.float32)
    cells = arms.run_arm(
        arm,
        sampler,
        _groups(),
        _judge,
        masses=(0.1, 0.5),
        guidances=(1.0, 3.0),
        seed=0,
        shift=shift,
        second_stage="s",
        **more,
    )
    return sampler, cells


def test_every_arm_has_every_cell():
    for arm in arms.ARMS:
        _, cells = _run(arm)
        keys = [(cell["group"], cell["mass"], cell["guidance"]) for cell in cells]
        assert len(set(keys)) == len(keys) == 2 * 2 * 2
        assert {cell["n"] for cell in cells if cell["group"] == "text"} == {6}


def test_arms_are_told_what_they_should():
    by_name = {arm.name: _run(arm)[0].told for arm in arms.ARMS}
    # An arm of own embeddings has no bound: one draw per group and guidance, judged by every cap.
    assert len(by_name["own embedding"]) == 4
    assert len(by_name["slerp caps"]) == 8
    assert all(told[2] for told in by_name["retrieval prior"])
    assert all(told[3] == "s" for told in by_name["two stages"])
    assert all(told[3] is None for told in by_name["slerp caps"])
    # Texts are shifted back for one arm, images are shifted for the model that was trained on shifted centers.
    texts = by_name["slerp + noise, prompt shifted"][0][0]
    np.testing.assert_allclose(texts[0], [2**-0.5, 0, 0, -(2**-0.5)], atol=1e-6)
    images = by_name["gap shift"][-1][0]
    np.testing.assert_allclose(images[0], [2**-0.5, 0, 0, 2**-0.5], atol=1e-6)
    np.testing.assert_allclose(by_name["gap shift"][0][0], np.eye(4)[:3], atol=1e-6)


def test_reranking_is_asked_of_the_sampler():
    assert {told[4] for told in _run(arms.ARMS[1])[0].told} == {1}
    assert {told[4] for told in _run(arms.ARMS[1], best_of=4)[0].told} == {4}


def test_shifted_prompts_are_judged_by_the_plain_cap():
    _, cells = _run(next(arm for arm in arms.ARMS if arm.shift == "prompt"))
    found = {(cell["mass"], cell["in_cap"]) for cell in cells if cell["group"] == "text"}
    # The samples lie 0.29 from the plain centers.
    assert found == {(0.1, 0), (0.5, 6)}


def test_tables_pool_the_seeds():
    cells = [
        {"arm": "slerp caps", "seed": seed, "group": "text", "mass": 0.1, "guidance": 1.0, "n": 10, "in_cap": seed}
        for seed in (2, 3)
    ]
    table = reporting.rate_table(cells, "in_cap", "text", 1.0, [0.1], {"ceiling": ["90"]})
    assert table.splitlines()[2:] == ["| slerp caps | 25.0 [11-47] (20-30) |", "| *ceiling* | 90 |"]
    one = reporting.rate_table(cells[:1], "in_cap", "text", 1.0, [0.1], {})
    assert one.splitlines()[2:] == ["| slerp caps | 20.0 [6-51] |"]


def test_means_carry_the_interval_of_their_prompts():
    where = {"arm": "slerp caps", "group": "text", "mass": 0.1, "guidance": 1.0, "n": 10, "cosine_sum": 2.0}
    cells = [{**where, "seed": seed, "cosine_error": error} for seed, error in ((0, 0.01), (1, 0.03))]
    rows = {"unconditional": ["0.000"]}
    table = reporting.mean_table(cells, "cosine_sum", "text", 1.0, [0.1], rows, "cosine_error")
    assert table.splitlines()[2:] == ["| slerp caps | 0.200 ±0.039 |", "| *unconditional* | 0.000 |"]
    # Reports that were made before cells had errors have none.
    plain = reporting.mean_table([{**where, "seed": 0}], "cosine_sum", "text", 1.0, [0.1], {}, "cosine_error")
    assert plain.splitlines()[2:] == ["| slerp caps | 0.200 |"]


def test_clip_scores_and_their_errors_are_over_prompts():
    from studies.clipart.study import judge

    group = _groups()[0]
    made = _Sampler().samples(group.prompts, 0.0, 2, guidance=1.0, seed=0, retrieve=False, second_stage=None, best_of=1)
    made.embeddings[:2] = 0.0  # one of three prompts is missed altogether
    found = judge(group, made, np.full(3, 0.5))
    assert (found["in_cap"], found["cosine_sum"]) == (4, 4.0)
    assert found["cosine_error"] == pytest.approx(1 / 3)


class _Encoder:
    """Sees in an image its top left pixel, and knows no word."""

    def text(self, texts):
        return torch.eye(4)[: len(texts)]

    def images(self, images):
        return torch.eye(4)[images[:, 0, 0, 0].long()]


def test_a_second_judge_has_its_own_caps():
    from studies.clipart.study import SecondJudge

    images = torch.zeros(6, 3, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([0, 1, 1, 1, 3, 3])
    found = SecondJudge(_Encoder(), _Tree()).judge(_groups()[0], images, 0.1)
    assert (found["second_in_cap"], found["second_cosine_sum"]) == (3, 3.0)
    assert found["second_cosine_error"] > 0


def test_a_second_judge_is_asked_of_every_cell():
    _, cells = _run(arms.ARMS[1], second=lambda group, result, mass: {"seen": (group.name, len(result), mass)})
    assert {cell["seen"] for cell in cells} == {(g, n, m) for g, n in (("text", 6), ("image", 1)) for m in (0.1, 0.5)}


def _records(seeds):
    """Stages of a study whose arms have these seeds; the first command named one of them."""
    made = {"command": "python -m studies.scenes --seeds 0", "commit": "abc", "changes": False, "threads": 1}
    made |= {"python": "3", "machine": "m", "versions": {}}
    records = {"prompts": {"result": made}}
    for arm, of_arm in seeds.items():
        for seed in of_arm:
            records[f"arm-{arm}-{seed}"] = {"result": {"arm": arm, "seed": seed, "cells": []}}
    return records


def test_a_report_names_the_seeds_that_are_there(tmp_path):
    arms_seeds = {"own embedding": [0, 1, 10], "gap shift": [0, 1, 10]}
    records = _records(arms_seeds)
    reporting.write_figures(tmp_path / "figures.json", records, {"seeds": [1], "images": 5})
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["combined"] == {"seeds": [0, 1, 10], "arms": arms_seeds}
    assert figures["settings"] == {"images": 5}
    command, begun, seeds, *_ = reporting.provenance_points(records, "scenes")
    assert command.startswith('command: `make study-scenes STUDY_FLAGS="--seeds 0 1 10"`')
    assert begun == "begun by `python -m studies.scenes --seeds 0` at commit abc"
    assert seeds == "seeds of the generators' trainings: 0, 1, 10; of all else 0"
    uneven = _records({"own embedding": [0, 1], "gap shift": [1]})
    assert "trainings: 0, 1 (but gap shift: 1); of" in reporting.provenance_points(uneven, "scenes")[2]
    assert "seeds" not in common.provenance(1)


def test_pictures_are_of_the_lowest_seed():
    records = _records({"own embedding": [1, 2]})
    lowest = [reporting.is_lowest_seed(records, "own embedding", seed) for seed in (0, 1, 2, 3)]
    assert lowest == [True, True, False, False]
    assert reporting.is_lowest_seed(records, "gap shift", 7)


@pytest.mark.parametrize("study", ["scenes", "clipart"])
def test_committed_reports_say_what_they_combine(study):
    folder = Path(reporting.__file__).parent / study / "report"
    figures = json.loads((folder / "figures.json").read_text())
    stages = figures["stages"]
    assert figures["combined"] == {"seeds": reporting.all_seeds(stages), "arms": reporting.seeds_of(stages)}
    assert "seeds" not in figures["settings"]
    text = " ".join((folder / "README.md").read_text().split())
    for point in reporting.provenance_points(stages, study):
        assert point in text


def test_a_study_goes_on_arm_by_arm(tmp_path, monkeypatch):
    from studies.clipart import study

    done = []

    def stage(name):
        def work(*arguments):
            done.append(name if len(arguments) < 2 else f"{name}-{arguments[1]}")
            if len(done) == 9:
                raise KeyboardInterrupt
            return {}

        return work

    for name in ("_prompts", "_encoder", "_tokenizer", "_encode", "_reference", "_judge"):
        monkeypatch.setattr(study, name, stage(name))
    monkeypatch.setattr(study, "train_flow_of", lambda *_: stage("flow")(0))
    monkeypatch.setattr(study, "train_line", lambda training, seed, *_: stage("train")(0, f"{training}-{seed}"))
    monkeypatch.setattr(study, "_arm", lambda _, arm, seed: stage("arm")(0, f"{arm.key}-{seed}"))
    monkeypatch.setattr(study, "write_reports", lambda _: None)
    monkeypatch.setattr(common, "say", lambda _: None)
    config = study.ClipartConfig(out=tmp_path, seeds=(0, 1))
    with pytest.raises(KeyboardInterrupt):
        study.run(config)
    stopped_at = done[-1]
    study.run(config)
    assert done.count(stopped_at) == 2
    again = [name for name in done if name != stopped_at]
    assert len(set(again)) == len(again)
    assert sum(name.startswith("arm") for name in set(done)) == 2 * len(arms.ARMS)
