"""python -m illia_fn, as a user runs it."""

import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from illia_fn import predict
from illia_fn.__main__ import OBJECTIVES, main, train
from illia_fn._demo import data


def run(*args, cwd):
    command = [sys.executable, "-m", "illia_fn", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


def write_csv(path, header, rows):
    path.write_text("\n".join([",".join(header), *[",".join(map(str, row)) for row in rows]]) + "\n")
    return path


def rows(n, target):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2)).round(4)
    return [(*row, target(row)) for row in x]


@pytest.mark.promotes
def test_digits(tmp_path, monkeypatch, capsys):
    """A few of them; .ci/run has all of them, as a user does."""
    monkeypatch.chdir(tmp_path)
    all_of_them = data.digits()
    parts = {name: getattr(all_of_them, name)[:40] for name in ("x_train", "y_train", "x_test", "y_test", "noise")}
    shifted = {kind: images[:40] for kind, images in all_of_them.shifted.items()}
    monkeypatch.setitem(data.SOURCES, "digits", lambda: replace(all_of_them, **parts, shifted=shifted))
    main(["--epochs", "1", "--num-samples", "1", "--members", "1"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for word in ("Bayesian", "last", "deterministic", "accuracy", "NLL", "ECE", "rotated by", "noise"):
        assert word in words
    assert (tmp_path / "illia_fn_digits.png").stat().st_size > 20_000


@pytest.mark.promotes
def test_diabetes(tmp_path, capsys):
    picture = tmp_path / "picture.png"
    main(["--data", "diabetes", "--epochs", "2", "--coupling", "flipout", "--members", "1", "--output", str(picture)])
    words = capsys.readouterr().out
    assert all(word in words for word in ("RMSE", "coverage of 90 % intervals"))
    assert picture.stat().st_size > 20_000


@pytest.mark.promotes
def test_a_seed_repeats_it(tmp_path):
    table = write_csv(tmp_path / "table.csv", ["a", "b", "y"], rows(60, lambda x: x[0] + 0.5 * x[1]))
    dataset = data.table(table, "y", None)
    first, second, other = (train(dataset, "elbo", seed, 2, 1, "shared", members=2)[1] for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: not np.array_equal(a, b), first, other)))
    one, another = first["ensemble of 2"].members
    assert not np.array_equal(one.hidden.kernel[...], another.hidden.kernel[...])
    jax.tree.map(np.testing.assert_array_equal, one, first["deterministic"])
    mixture = first["mixture of 2"]
    jax.tree.map(np.testing.assert_array_equal, mixture.component(0), first["Bayesian"])
    assert not np.array_equal(*mixture.components.hidden.kernel.loc[...])


@pytest.mark.promotes
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns(objective, tmp_path):
    table = write_csv(tmp_path / "table.csv", ["a", "b", "y"], rows(300, lambda x: "up" if x[0] > x[1] else "down"))
    dataset = data.table(table, "y", None)
    apply_fn, networks, certificate = train(dataset, objective, seed=0, epochs=40, num_samples=4, members=1)
    logits = predict(apply_fn, networks["Bayesian"], dataset.x_test, jax.random.key(0), 8)
    assert np.mean(np.argmax(np.mean(logits, axis=0), axis=1) == dataset.y_test) > 0.9
    assert (certificate is not None) == (objective == "pac_bayes")
    if certificate:
        assert certificate.empirical_risk < certificate.bound < 0.5


def test_a_table_of_ones_own(tmp_path):
    """Of classes; what is told of a regression is that of test_diabetes."""
    write_csv(tmp_path / "my table.csv", ["a", "b", "y"], rows(60, lambda x: "up" if x[0] > 0 else "down"))
    result = run("--csv", "my table.csv", "--target", "y", "--epochs", 2, "--members", 2, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    words = " ".join(result.stdout.replace("│", " ").split())
    for word in ("mixture", "Bayesian", "deterministic", "ensemble", "accuracy", "NLL", "ECE"):
        assert word in words
    assert (tmp_path / "illia_fn_my table.png").stat().st_size > 20_000
    assert "100%" in result.stderr  # the progress bar


GOOD = rows(30, lambda x: round(x[0], 2))
BAD_TABLES = {
    "column": (["a", "b", "z"], GOOD, "has no column 'y'. Its columns are: a, b, z"),
    "too few rows": (["a", "b", "y"], GOOD[:5], "has 5 rows of data; at least 20"),
    "text in a feature": (["a", "b", "y"], [("red", 1, 2.5), *GOOD], "line 2: column 'a' holds 'red', which is not a number"),
    "text in a quantity": (["a", "b", "y"], [*GOOD, (1, 1, "?")], "line 32: column 'y' holds '?'"),
    "an empty cell": (["a", "b", "y"], [*GOOD, (1, "", 2.5)], "line 32: column 'b' is empty. Fill in or drop"),
    "semicolons": (["a;b;y"], [("1;2;3",)] * 30, "Are its cells separated by commas?"),
    "nan": (["a", "b", "y"], [*GOOD, (1, "nan", 2.5)], "line 32: column 'b' holds 'nan'. Fill in or drop"),
    "inf in the target": (["a", "b", "y"], [*GOOD, (1, 1, "inf")], "line 32: column 'y' holds 'inf'"),
    "a short row": (["a", "b", "y"], [*GOOD, (1, 2)], "line 32: 2 cells, but the header names 3"),
    "one column": (["y"], [row[2:] for row in GOOD], "has only the column 'y'"),
    "a repeated column": (["a", "a", "y"], GOOD, "more than one column named 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables(name, tmp_path):
    header, content, message = BAD_TABLES[name]
    path = write_csv(tmp_path / "t.csv", header, content)
    with pytest.raises(data.DataError) as error:
        data.table(str(path), "y", "regression")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([*rows(30, lambda x: "a"), (1, 1, "b")], "too few for 2 classes"),
        (rows(30, lambda x: "a"), "every row has y = 'a'"),
        ([*rows(30, lambda x: "a" if x[0] > 0 else "b"), (1, 1, "")], "line 32: the target 'y' is empty"),
    ],
)
def test_bad_classes(content, message, tmp_path):
    path = write_csv(tmp_path / "t.csv", ["a", "b", "y"], content)
    with pytest.raises(data.DataError) as error:
        data.table(str(path), "y", None)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("target", "is_classes"),
    [
        (lambda x: "yes" if x[0] > 0 else "no", True),
        (lambda x: int(x[0] > 0), True),
        (lambda x: round(x[0], 3), False),
        (lambda x: int(100 * x[0]), False),
        (lambda x: f"{1e5 * x[0]:.6e}", False),
    ],
)
def test_the_task_is_guessed(target, is_classes, tmp_path):
    path = write_csv(tmp_path / "t.csv", ["a", "b", "y"], rows(100, target))
    assert (data.table(str(path), "y", None).classes is not None) == is_classes


def test_large_numbers_keep_their_digits(tmp_path):
    """Seconds since 1970 differ by less than float32 can tell apart."""
    content = [(1_700_000_000 + i, 0.5, 1_700_000_000 + i) for i in range(40)]
    dataset = data.table(str(write_csv(tmp_path / "t.csv", ["a", "b", "y"], content)), "y", None)
    assert len(np.unique(dataset.x_train[:, 0])) == len(np.unique(dataset.y_train)) == 32
    assert dataset.x_train.dtype == dataset.y_test.dtype == np.float32


def test_one_bad_cell_does_not_make_classes(tmp_path):
    path = write_csv(tmp_path / "t.csv", ["a", "b", "y"], [*GOOD, (1, 1, "oops")])
    with pytest.raises(data.DataError, match="line 32: column 'y' holds 'oops'"):
        data.table(str(path), "y", None)


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(data.DataError, match="there is no file"):
        data.table(str(tmp_path / "none.csv"), "y", None)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(data.DataError, match="is empty"):
        data.table(str(tmp_path / "empty.csv"), "y", None)
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    with pytest.raises(data.DataError, match="not a CSV file"):
        data.table(str(tmp_path / "binary.csv"), "y", None)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--csv", "none.csv", "--target", "y"], "there is no file none.csv"),
        (["--csv", "none.csv"], "--csv FILE and --target COLUMN go together"),
        (["--epochs", "0"], "must be a whole number of at least 1, got 0"),
        (["--seed", "-1"], "must be a whole number of at least 0, got -1"),
        (["--epochs", "1.5"], "must be a whole number of at least 1, got 1.5"),
        (["--output", "picture.xyz"], "it must be the name of a .png file"),
        (["--data", "mnist"], "invalid choice: 'mnist'"),
        (["--objective", "vi"], "invalid choice: 'vi'"),
        (["--objective", "pac_bayes", "--data", "diabetes"], "--objective pac_bayes needs a loss in [0, 1]"),
        (["--objective", "iwae", "--coupling", "flipout"], "--objective iwae needs one network for the whole batch"),
        (["--objective", "f_divergence", "--num-samples", "1"], "needs --num-samples of at least 2"),
        (["--output", "nowhere/picture.png"], "it must be the name of a .png file in a folder that exists"),
    ],
)
def test_mistakes_on_the_command_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(args)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
