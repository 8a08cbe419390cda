"""The page and its JSON, from files of runs that were made up."""

import itertools
import json
import shutil

import pytest

from flatten_jax.bench.timing import Spread
from flatten_jax.cli.main import main
from flatten_jax.compare import costs, page, pictures, results
from flatten_jax.compare.statistics import Summary

MADE_ON = {"device": "cpu", "cores": 2, "processor": "some", "jax": "0.10", "flax": "0.12", "python": "3.11"}
MADE_ON["date"] = "2026-01-01"
TOP1 = {"softmax": (70.0, 72.0), "linear": (69.0, 69.0), "focused": (90.0, 94.0), "hydra": (60.0,)}
COMPILED = {"topology": "v5e:2x2", "commit": "abc", "images": 20}
COMPILED["rows"] = [
    {"attention": name, "N": 4, "dtype": "bfloat16"} | said
    for name, said in {"cvt": {"said": "no"}, "softmax": {"bytes": 9e6}, "linear": {"bytes": 8e6}}.items()
]
LOOK = {"block": 0, "kind": "x", "keys": 16, "uniform": 2.0}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "digits"
    write(home / "preset.json", {"preset": "digits", "about": "Digits", "changed": ["train.epochs=8.0"], "config": {}})
    tried = [{"rate": 0.1, "status": "finished", "top1": 50.0}, {"rate": 0.2, "status": "not finite", "top1": None}]
    write(home / "rate_softmax.json", {"attention": "softmax", "hybrid": "", "chosen": 0.1, "tried": tried})
    write(home / "rate_linear.json", {"attention": "linear", "hybrid": "", "chosen": 0.2, "tried": tried})
    common = {"preset": "digits", "hybrid": "", "rate": 0.1, "made_on": MADE_ON, "commit": "abc", "said": ""}
    for i, (name, values) in enumerate(TOP1.items()):
        for seed, top1 in enumerate(values):
            look = LOOK | {"rank": 4.0 * (i + 1), "entropy": 1.0, "distance": 3.0, "focus": 2.0 + i}
            size = {"parameters": 1000, "multiply_adds": 2_000_000, "images_per_second": 300.0, "inside": [look]}
            one = common | size | {"attention": name, "seed": seed, "status": "finished", "top1": top1, "loss": 1.0}
            write(home / "runs" / f"{name}-s{seed}" / "result.json", one)
    write(home / "runs" / "own" / "result.json", one | {"attention": "linear", "seed": 0, "rate": 0.2, "top1": 75.0})
    failed = common | {"attention": "hydra", "seed": 1, "status": "not finite", "said": "step 7 is not finite"}
    write(home / "runs" / "hydra-s1" / "result.json", failed)
    (home / "runs" / "taylor-s0").mkdir()
    return tmp_path


def test_means_differences_and_failures(folder):
    (preset,) = results.read(folder)
    assert [row.label for row in preset.rows] == ["focused", "softmax", "linear", "hydra"]
    focused, softmax, linear, hydra = preset.rows
    assert softmax.mean == Summary(71.0, pytest.approx(2**0.5), 2) and softmax.difference is None
    assert focused.difference == Summary(21.0, pytest.approx(2**0.5), 2)  # 20 and 22, seed by seed
    assert linear.top1 == {0: 69.0, 1: 69.0} and linear.own == {0: 75.0} and linear.rate == 0.2
    assert hydra.mean == Summary(60.0, None, 1) and hydra.failed == {1: "not finite: step 7 is not finite"}
    assert preset.under_way == ["taylor-s0"] and sum(preset.made.values()) == 9
    assert linear.looks == {"rank": 0.5, "entropy": 0.5, "distance": 3.0, "focus": 3.0}
    tau = preset.agreement()  # ours: focused, softmax, linear, hydra; published likewise
    assert (tau.tau, tau.count) == (1.0, 4) and tau.p == pytest.approx(2 / 24)
    assert preset.explained("rank").tau == pytest.approx(-2 / 6)
    assert preset.explained("entropy") is None  # all are alike


def test_page_says_what_was_run_and_what_was_not(folder, capsys):
    target = folder / "comparison.md"
    main(["compare", "page", str(folder), "--output", str(target)])
    text = target.read_text()
    assert (
        "| `focused` | 2 | 92.00 ± 2.83 | +21.00 ± 1.41 | - | 74.1 | 1,000 | 0.002 | 300 | 0.75 | 0.5 | 3 | 4 |" in text
    )
    assert "| `linear` | 2 | 69.00 ± 0.00 | -2.00 ± 1.41 | 75.00 at 0.2 |" in text
    assert "Other than the preset: `train.epochs=8.0`." in text
    assert "- `hydra`, seed 1: not finite: step 7 is not finite" in text
    assert "1 run of `digits` not finished" in text and "preset `cifar10-small`" in text and "- costs" in text
    assert "Kendall's tau-b 1.00, p = 0.083 (exact, 4 attentions)" in text
    said = json.loads((folder / "comparison.json").read_text())["learned"][0]
    assert [row["mean"]["mean"] for row in said["rows"]] == [92.0, 71.0, 69.0, 60.0]
    assert (folder / "comparison_digits.png").stat().st_size > 1000
    with pytest.raises(SystemExit, match="exists already: choose another --output, or --overwrite"):
        main(["compare", "page", str(folder), "--output", str(target)])
    with pytest.raises(SystemExit, match=r"holds neither costs.json nor runs"):
        main(["compare", "page", str(folder / "digits"), "--output", str(folder / "other.md")])


def group(n, direction, ms):
    about = {"channels": 384, "heads": 6, "dtype": "float32", "N": n, "direction": direction, "rounds": 3}
    rows = [{"attention": name, "ms": Spread(v, v, v) if v else "left out: about 9 s a call"} for name, v in ms.items()]
    return about | {"rows": rows, "made_on": MADE_ON, "commit": "abc"}


def test_costs_have_a_table_and_a_picture_with_names_at_the_ends(tmp_path):
    grey = {f"other{i}": 3.0 + i for i in range(12)}
    groups = [
        group(n, direction, {"linear": n / 100, "softmax": n**2 / 1e5 if n < 999 else None, "inline": n / 90, **grey})
        for n in (100, 10000)
        for direction in ("forward", "forward + backward")
    ]
    costs._write(tmp_path / costs.FILE, groups)
    assert costs.read(tmp_path) == groups
    page.write([tmp_path], tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "| `softmax` | - | - | 0.10 (0.10-0.10) | left out: about 9 s a call | - | - | - | - |\n" in text
    assert (tmp_path / "page_costs.png").exists()
    for axes in pictures.cost_curves(groups).axes:
        assert [note.get_text() for note in axes.texts] == ["softmax", "linear", "inline"]
        assert len(axes.lines) == 15
        heights = [note.xyann[1] for note in axes.texts]
        assert min(b - a for a, b in itertools.pairwise(heights)) >= pictures.APART - 1e-9
        assert sum(line.get_color() == pictures.GREY for line in axes.lines) == 12


def test_every_machine_has_its_costs(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    costs._write(here / costs.FILE, [group(n, "forward", {"linear": 1.0, "softmax": 2.0, "rala": 3.0}) for n in (4, 9)])
    gpu = group(9, "forward", {"linear": 0.5, "softmax": 0.7})
    costs._write(there / costs.FILE, [gpu | {"made_on": MADE_ON | {"device": "H100"}}])
    page.write([here, there], tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert text.index("on a CPU\n") < text.index("![Time over tokens]") < text.index("on one H100\n")
    assert "without rala\n" in text


def test_json_of_a_page_gives_the_page_again(folder):
    (folder / "digits" / "runs" / "taylor-s0").rmdir()
    costs._write(folder / costs.FILE, [group(n, "forward", {"linear": 1.0, "softmax": 2.0}) for n in (4, 9)])
    write(folder / "compiled_v5e_2x2.json", COMPILED)
    page.write([folder], folder / "page.md")
    text = (folder / "page.md").read_text()
    assert "### By the compiler for v5e:2x2" in text and "N = 4, 20 images at a time, bfloat16" in text
    assert text.index("| `linear` | 0.008 |") < text.index("| `softmax` | 0.009 |") < text.index("| `cvt` | - |")
    first = {name: (folder / name).read_bytes() for name in ("page.md", "page.json", "page_digits.png")}
    page.write([folder / "page.json"], folder / "page.md", overwrite=True)
    assert {name: (folder / name).read_bytes() for name in first} == first


def test_seeds_of_two_machines_are_joined(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    home, there = folder / "digits", other / "digits"
    shutil.copytree(home, there)
    for path in there.glob("runs/*"):
        shutil.rmtree(path)
    gpu = json.loads((home / "runs" / "linear-s0" / "result.json").read_text())
    gpu |= {"made_on": MADE_ON | {"device": "H100"}, "images_per_second": 9000.0, "seed": 2, "top1": 72.0}
    gpu["inside"] = [LOOK | {"rank": 11.0, "entropy": 1.0, "distance": 3.0, "focus": 3.0}]
    write(there / "runs" / "linear-s2" / "result.json", gpu)
    write(there / "runs" / "rala-s2" / "result.json", gpu | {"attention": "rala"})
    (joined,) = results.merged([*results.read(folder), *results.read(other)])
    rows = {row.label: row for row in joined.rows}
    assert rows["linear"].mean == Summary(70.0, pytest.approx(3**0.5), 3)
    assert rows["linear"].difference.count == 2  # softmax has no seed 2
    assert rows["linear"].looks["rank"] == pytest.approx((8 + 8 + 11) / 3 / 16)
    assert rows["linear"].facts["images_per_second"] == 300.0
    assert "images_per_second" not in rows["rala"].facts and rows["rala"].facts["parameters"] == 1000
    assert sum(joined.made.values()) == 11 and joined.machine.startswith("2 cores of some")
    assert [row.label for row in joined.rows][:2] == ["focused", "rala"]
    assert results.merged(results.read(folder))[0].rows == results.read(folder)[0].rows  # one stays as it is

    with pytest.raises(ValueError, match="two sources have focused, seed 0, of digits: leave one of them out, or move"):
        page.write([folder, folder], folder / "page.md")
    write(there / "rate_softmax.json", {"attention": "softmax", "hybrid": "", "chosen": 0.3, "tried": []})
    with pytest.raises(ValueError, match=r"rate 0\.1 and 0\.3 cannot be compared: make a page of each"):
        page.write([folder, other], folder / "page.md")
    assert not (folder / "page.md").exists()


def test_costs_that_two_sources_have_are_refused(tmp_path):
    costs._write(tmp_path / costs.FILE, [group(4, "forward", {"linear": 1.0})])
    with pytest.raises(ValueError, match=r"once more: leave one of the two sources out"):
        page.write([tmp_path, tmp_path], tmp_path / "page.md")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other.json is no JSON of `flatten-jax compare page`, or damaged"):
        page.write([tmp_path / "other.json"], tmp_path / "page.md")
