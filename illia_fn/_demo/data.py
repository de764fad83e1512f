"""Digits and diabetes from scikit-learn, or a table of the user's own."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.ndimage import rotate
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import train_test_split

MIN_ROWS = 20
MAX_CLASSES = 20


class DataError(Exception):
    """What is wrong with the user's data, in a sentence for the terminal."""


@dataclass
class Dataset:
    """A supervised task, inputs scaled and split, and inputs that the model was not trained for."""

    name: str
    target: str
    classes: list[str] | None  # None for a regression
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    noise: np.ndarray | None = None  # images without meaning
    shifted: dict[str, np.ndarray] = field(default_factory=dict)  # the test inputs, disturbed
    unit: tuple[float, float] = (0.0, 1.0)  # mean and scale of a regression's targets before they were standardised


def digits() -> Dataset:
    """1797 handwritten digits, 8 x 8 pixels; a fifth held out, also rotated by 45 degrees."""
    data = load_digits()
    images = (data.images / 16.0).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(
        images, data.target.astype(np.int32), test_size=0.2, stratify=data.target, random_state=0
    )
    rotated = np.stack([rotate(image, 45, reshape=False, order=1) for image in x_test])
    noise = np.random.default_rng(0).uniform(size=x_test.shape).astype(np.float32)
    names = [str(name) for name in data.target_names]
    return Dataset("digits", "digit", names, x_train, y_train, x_test, y_test, noise, {"rotated by 45°": rotated})


def diabetes() -> Dataset:
    """442 patients, ten measurements, disease progression after a year."""
    data = load_diabetes()
    return _split("diabetes", "disease progression", data.data, data.target, None)


def table(path: str, target: str, task: str | None) -> Dataset:
    """A table of numbers from a CSV file with a header; `target` names the column to predict."""
    header, rows = _read_csv(Path(path))
    if target not in header:
        hint = " Are its cells separated by commas?" if len(header) == 1 else ""
        raise DataError(f"{path} has no column {target!r}. Its columns are: {', '.join(header)}.{hint}")
    column = header.index(target)
    if len(rows) < MIN_ROWS:
        raise DataError(f"{path} has {len(rows)} rows of data; at least {MIN_ROWS} are needed to train and to test.")
    if len(header) < 2:
        raise DataError(f"{path} has only the column {target!r}, and nothing to predict it from.")
    features = [[_number(path, i, header[j], row[j]) for j in range(len(row)) if j != column] for i, row in rows]
    raw = [row[column].strip() for _, row in rows]
    name = Path(path).stem
    task = task or _guess_task(raw)
    if task == "regression":
        return _split(name, target, features, [_number(path, i, target, row[column]) for i, row in rows], None)
    if "" in raw:
        raise DataError(f"{path}, line {rows[raw.index('')][0]}: the target {target!r} is empty.")
    classes, labels, counts = np.unique(raw, return_inverse=True, return_counts=True)
    classes = classes.tolist()
    if len(classes) < 2:
        raise DataError(f"{path}: every row has {target} = {classes[0]!r}, so there is nothing to learn.")
    if counts.min() < 2 or len(rows) < 5 * len(classes):
        raise DataError(
            f"{path}: {len(rows)} rows are too few for {len(classes)} classes of {target!r}, of which "
            f"{classes[counts.argmin()]!r} has {counts.min()}. Pass --task regression if the target is a quantity."
        )
    return _split(name, target, features, labels, classes)


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    if not path.is_file():
        raise DataError(f"there is no file {path}.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8: {error}.") from error
    if not header:
        raise DataError(f"{path} is empty. It needs a line of column names and then rows of numbers.")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{path} has more than one column named {repeated[0]!r}.")
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path}, line {line}: {len(row)} cells, but the header names {len(header)} columns.")
    return header, rows


def _number(path: str, line: int, name: str, cell: str) -> float:
    if not cell.strip():
        raise DataError(f"{path}, line {line}: column {name!r} is empty. Fill in or drop missing values.")
    try:
        value = float(cell)
    except ValueError:
        raise DataError(f"{path}, line {line}: column {name!r} holds {cell!r}, which is not a number.") from None
    if not math.isfinite(value):
        raise DataError(f"{path}, line {line}: column {name!r} holds {cell!r}. Fill in or drop missing values.")
    return value


def _guess_task(raw: list[str]) -> str:
    """Text is classes, and so are a few distinct whole numbers that repeat."""
    is_number = [_is_number(cell) for cell in raw]
    if not all(is_number):  # mostly numbers: a quantity with a bad cell, which will be named
        return "classification" if np.mean(is_number) < 0.5 else "regression"
    values, counts = np.unique([float(cell) for cell in raw], return_counts=True)
    few = len(values) <= min(MAX_CLASSES, len(raw) // 5) and counts.min() > 1
    return "classification" if few and np.all(values % 1 == 0) else "regression"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _split(name: str, target: str, x, y, classes: list[str] | None) -> Dataset:
    x = np.asarray(x, np.float64)  # a column of years or of dollars is standardised before it is rounded to float32
    y = np.asarray(y, np.int32 if classes else np.float64)
    stratify = y if classes else None
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, stratify=stratify, random_state=0)
    mean, std = x_train.mean(axis=0), x_train.std(axis=0)
    std[std == 0] = 1.0
    x_train, x_test = (((x - mean) / std).astype(np.float32) for x in (x_train, x_test))
    if classes:
        return Dataset(name, target, classes, x_train, y_train, x_test, y_test)
    unit = float(y_train.mean()), float(y_train.std())
    if unit[1] == 0.0:
        raise DataError(f"{target!r} is the same in every training row of {name}, so there is nothing to learn.")
    y_train, y_test = (((y - unit[0]) / unit[1]).astype(np.float32) for y in (y_train, y_test))
    return Dataset(name, target, None, x_train, y_train, x_test, y_test, unit=unit)


SOURCES = {"digits": digits, "diabetes": diabetes}
