"""Tables of criticality: stages, what is expected of them, published results."""

import pytest

from advfast.studies import read_criticality
from advfast.studies.criticality_tables import (
    expectations,
    residual_parts,
    shared_prefix,
    stage_of,
    stage_rows,
)
from advfast.studies.result import StudyResult

PUBLISHED = """\
top1_acc,top5_acc,loss,batch_acc,layer,pred_cos_sim,pred_l1_err,pred_l2_err,pred_ce_loss,trial,recovered_acc,model_id
76.0,93.0,1.0,,original,1.0,0.0,0.0,-5000.0,0.0,1.0,other_net
0.5,2.0,10.0,,model.conv1,0.25,1.5,0.75,-1000.0,0.0,0.01,other_net
38.0,60.0,3.0,,model.layer1.0.conv1,0.5,1.0,0.5,-1000.0,0.0,0.5,other_net
19.0,30.0,3.0,,model.layer1.0.conv1,0.75,0.5,0.25,-1000.0,1.0,0.25,other_net
"""


def test_names_of_stages():
    names = ["net.conv1", "net.layer1.0.conv1", "net.fc"]
    assert shared_prefix(names) == "net." and shared_prefix(["conv1", "fc"]) == ""
    assert shared_prefix(["0.features.0", "0.features.3"]) == "0.features."
    assert shared_prefix(["net.fc"]) == ""
    assert (stage_of("layer1.0.conv1"), stage_of("layer1.0.conv1", 2)) == ("layer1", "layer1.0")


def rows_of(model, values, eps=None):
    """values: layer -> criticality of each trial."""
    return [
        {"model": model, "eps": eps, "stage": stage_of(layer), "layer": layer, "seed": seed, "criticality": value}
        for layer, trials in values.items() for seed, value in enumerate(trials)
    ]  # fmt: skip


def test_averages_of_stages():
    rows = rows_of("a", {"conv1": [1.0, 0.8], "layer1.0": [0.2, 0.4], "layer1.1": [0.4, 0.4]}, 0.1)
    conv, layer1, whole = stage_rows(rows)
    assert (conv["stage"], layer1["stage"], whole["stage"]) == ("conv1", "layer1", "all")
    assert layer1["criticality_mean"] == pytest.approx(0.35) and layer1["layers"] == 2
    assert layer1["criticality_std"] == pytest.approx(0.1 / 2**0.5)  # of 0.3 and 0.4
    assert whole["criticality_mean"] == pytest.approx((1.8 + 0.6 + 0.8) / 6) and whole["eps"] == 0.1
    assert stage_rows(rows_of("a", {"fc": [0.5]}))[0]["criticality_std"] is None


def residual(entry, middle, first=0.5, last=0.5):
    """A ResNet-18's layers."""
    values = {"conv1": [0.9], "fc": [0.9]}
    for stage in (1, 2, 3, 4):
        rest = {1: first, 4: last}.get(stage, 0.5)
        for block in (0, 1):
            for conv in (1, 2):
                values[f"layer{stage}.{block}.conv{conv}"] = [rest]
        values[f"layer{stage}.1.conv2"] = [middle]
        if stage > 1:
            values[f"layer{stage}.0.conv1"] = [entry]
            values[f"layer{stage}.0.downsample.0"] = [0.9]
    values["layer1.0.conv2"] = [middle]
    return values


def held(rows):
    result = StudyResult("criticality", {}, ("model", "layer", "seed"), ("criticality",), rows)
    return [one.held for one in expectations(result)]


def test_expectations_are_told_by_the_rows():
    layers = list(residual(0.9, 0.4))
    entry, middle = residual_parts(layers)
    assert entry == ["layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1"]
    assert sorted(middle) == [
        "layer1.0.conv2",
        *(f"layer{stage}.1.conv2" for stage in (1, 2, 3, 4)),
    ]
    assert held(rows_of("a", residual(0.95, 0.4))) == [True, True]
    assert held(rows_of("a", residual(0.85, 0.55))) == [False, False]
    assert held(rows_of("a", {"conv1": [0.5], "fc": [0.5]})) == []
    more = rows_of("a", residual(0.95, 0.4), 0.0) + rows_of("b", residual(0.95, 0.4, 0.9, 0.6), 0.1)
    assert held(more)[4:] == [True, True]
    less = rows_of("a", residual(0.95, 0.4, 0.9, 0.6), 0.0) + rows_of("b", residual(0.95, 0.4), 0.1)
    assert held(less)[4:] == [False, False]
    deep = rows_of("a", residual(0.95, 0.4), 0.0) + rows_of("b", residual(0.95, 0.4, 0.6, 0.9), 0.1)
    assert held(deep)[4:] == [True, False]


def test_published_results_are_read(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(PUBLISHED)
    rows = read_criticality(path)
    assert [(row["stage"], row["layer"], row["seed"]) for row in rows] == [
        ("conv1", "conv1", 0), ("layer1", "layer1.0.conv1", 0), ("layer1", "layer1.0.conv1", 1),
    ]  # fmt: skip
    assert [row["criticality"] for row in rows] == [0.75, 0.5, 0.25]
    assert rows[1]["accuracy"] == 0.38 and rows[1]["l1"] == 1.0 and rows[1]["l2"] == 0.5
    assert rows[2]["recovered_accuracy"] == 0.25 and rows[0]["model"] == "other_net"
    path.write_text(PUBLISHED.replace("pred_cos_sim", "cosine"))
    with pytest.raises(ValueError, match="has no column pred_cos_sim; expected model_id"):
        read_criticality(path)
    path.write_text(PUBLISHED.replace("0.75,0.5,0.25,", "x,0.5,0.25,"))
    with pytest.raises(ValueError, match="layer 3 of 3: could not convert string to float: 'x'"):
        read_criticality(path)
    path.write_text(PUBLISHED.splitlines()[0] + "\n")
    with pytest.raises(ValueError, match="has no layers"):
        read_criticality(path)
