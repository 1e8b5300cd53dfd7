"""PrefinetunedClassifier: scikit-learn's own checks, the weights and probabilities that others come to, what people give it."""

import io
import pickle
import random

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sklearn.base import clone
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

import microworld
from prefinetune import Classification, InputError, PrefinetunedClassifier, Rows, Task, finetune

WORDS = np.array(microworld.vocabulary())
LEARNS = {"updates": 30, "learning_rate": 0.01}  # as much as it takes to tell apart what `sentences` gives


def sentences(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts, and whether each denies; which a word tells."""
    drawn = microworld.World(0).sentences(random.Random(seed))
    found = [next(drawn) for _ in range(count)]
    return [one.text for one in found], ["denies" if one.never else "asserts" for one in found]


def pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of texts [n, 2], and whether the second denies."""
    (first, _), (second, labels) = sentences(count, seed=1), sentences(count, seed=2)
    return np.array([first, second], dtype=object).T, np.array(labels)


def plain_probabilities(folder, texts, pairs=None) -> np.ndarray:
    """What Transformers' own class and tokenizer make of a folder."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    batch = transformers.AutoTokenizer.from_pretrained(folder)(texts, pairs, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits.softmax(-1).numpy()


# ---- scikit-learn's checks


class OnNumbers(PrefinetunedClassifier):
    """scikit-learn's checks give numbers, which are no texts: here each becomes a word, and a row of more than two a text."""

    def fit(self, X, y):
        return super().fit(spelt(X), y)

    def predict_proba(self, X):
        return super().predict_proba(spelt(X))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = False  # or the checks would take a column out of all that they give
        return tags


def spelt(X):
    """Rows of numbers in words; what is not finite, or no table of numbers at all, as it is, for the estimator to refuse."""
    try:
        numbers = np.asarray(X)
        numbers = numbers if np.iscomplexobj(numbers) else numbers.astype(float)
    except (TypeError, ValueError):
        return X
    if np.iscomplexobj(numbers) or numbers.ndim != 2 or not numbers.size:
        return X
    finite = np.isfinite(numbers)
    words = numbers.astype(object)
    words[finite] = WORDS[np.clip(np.rint(numbers[finite] * 2), -50, 49).astype(int) + 50]
    return words if words.shape[1] <= 2 else np.array([" ".join(map(str, row)) for row in words], dtype=object)


REFUSED = {
    "check_n_features_in_after_fitting": "rows of more than two numbers are spelt as one text",
    "check_estimators_nan_inf": "a number in a text is not seen, and in a column it is refused whether it is finite or not",
    "check_fit2d_predict1d": "texts may stand in one dimension; the numbers that do so here are refused as numbers",
}


@parametrize_with_checks([OnNumbers("a folder")], expected_failed_checks=lambda _: REFUSED, xfail_strict=True)
def test_scikit_learn_finds_nothing_to_complain_about(estimator, check, tiny_model):
    is_judged = check.func.__name__ == "check_classifiers_train"  # it wants more than 83 % right
    check(estimator.set_params(start=str(tiny_model), updates=60 if is_judged else 4, learning_rate=0.005))


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_texts_per_row_are_counted_and_names_of_columns_compared(tiny_model):
    X, y = pairs(16)
    frame = pd.DataFrame(X, columns=["premise", "hypothesis"])
    classifier = PrefinetunedClassifier(tiny_model, updates=1).fit(frame, y)
    assert classifier.n_features_in_ == 2
    assert classifier.feature_names_in_.tolist() == ["premise", "hypothesis"]
    with pytest.raises(ValueError, match="feature names should match"):
        classifier.predict(frame.rename(columns={"premise": "other"}))
    for one in (X[:, :1], X[:, 0], X[:, 0].tolist()):
        with pytest.raises(InputError, match="X has 1 features, but PrefinetunedClassifier is expecting 2 features as input"):
            classifier.predict(one)
    classifier.fit(X[:, 0], y)  # again, on others
    assert classifier.n_features_in_ == 1
    assert not hasattr(classifier, "feature_names_in_")


# ---- what it computes


def test_fit_comes_to_the_model_that_finetune_comes_to(tiny_model, tmp_path):
    X, y = sentences(64)
    rows = [{"text": text, "label": label} for text, label in zip(X, y, strict=True)]
    task = Task("texts", Rows({"train": rows, "validation": rows[:4]}), Classification("text"))
    config = {
        "train": {"updates": 12, "evaluate_every": None, "patience": None},
        "optimizer": {"learning_rate": 3e-3}, "data": {"max_length": 16, "leaks": "off"}, "seed": 7,
    }  # fmt: skip
    tuned = finetune(task, tiny_model, tmp_path / "tuned", config=config)

    classifier = PrefinetunedClassifier(tiny_model, updates=12, learning_rate=3e-3, max_length=16, random_state=7).fit(X, y)
    classifier.save(tmp_path / "saved")
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "saved", tuned.folder / "model"))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    unseen, _ = sentences(40, seed=3)
    assert classifier.classes_.tolist() == ["asserts", "denies"]
    np.testing.assert_allclose(classifier.predict_proba(unseen), plain_probabilities(tuned.folder / "model", unseen), atol=1e-5)


def test_pairs_are_read_as_transformers_reads_pairs(tiny_model, tmp_path):
    X, y = pairs(96)
    classifier = PrefinetunedClassifier(tiny_model, updates=20, learning_rate=0.01).fit(X, y)
    classifier.save(tmp_path / "saved")
    expected = plain_probabilities(tmp_path / "saved", X[:, 0].tolist(), X[:, 1].tolist())
    np.testing.assert_allclose(classifier.predict_proba(X), expected, atol=1e-5)
    assert expected.std(axis=0).min() > 1e-3, "the two texts of a row matter"
    for form in (X.tolist(), X.astype(str), pd.DataFrame(X).to_numpy()):
        np.testing.assert_array_equal(classifier.predict_proba(form), classifier.predict_proba(X))


def test_texts_may_come_in_any_form(tiny_model):
    X, y = sentences(48)
    classifier = PrefinetunedClassifier(tiny_model, **LEARNS).fit(pd.Series(X, index=range(100, 148)), pd.Series(y))
    expected = classifier.predict_proba(X)
    assert expected.shape == (48, 2)
    forms = (np.array(X), np.array(X, dtype=object), tuple(X), pd.Series(X, dtype="category"), np.array(X)[:, None])
    for form in forms:
        np.testing.assert_array_equal(classifier.predict_proba(form), expected)
    with_empty = classifier.predict_proba(["", *X[:3], "  "])  # an empty text has an answer, and changes no other
    np.testing.assert_allclose(with_empty[1:4], expected[:3], atol=1e-6)


@pytest.mark.parametrize(
    ("names", "dtype"), [((True, False), bool), ((-1, 7), int), (("ja", "nein"), object), (("ja", "nein"), "U4")]
)
def test_labels_come_back_as_they_were_given(names, dtype, tiny_model):
    X, y = sentences(48)
    given = np.array([names[label == "denies"] for label in y], dtype=dtype)
    classifier = PrefinetunedClassifier(tiny_model, **LEARNS).fit(X, given)
    predicted = classifier.predict(X)
    assert classifier.classes_.tolist() == sorted(names)
    assert predicted.dtype == given.dtype
    assert np.mean(predicted == given) > 0.9
    assert log_loss(given, classifier.predict_proba(X)) < 0.4  # columns in the order of classes_


def test_the_seed_decides_everything_and_nobody_elses_generator_moves(dropout_model):
    X, y = sentences(48)
    unfitted = PrefinetunedClassifier(dropout_model, updates=4, learning_rate=1e-3, random_state=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = unfitted.fit(X, y).predict_proba(X)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    np.testing.assert_array_equal(clone(unfitted).fit(X, y).predict_proba(X), first)
    other = clone(unfitted).set_params(random_state=2).fit(X, y).predict_proba(X)
    assert np.abs(other - first).max() > 1e-3
    drawn = [clone(unfitted).set_params(random_state=np.random.RandomState(at)).fit(X, y).predict_proba(X) for at in (3, 3, 4)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[2] - drawn[0]).max() > 1e-3


def test_pipelines_cross_validation_and_searches_take_it(tiny_model):
    X, y = sentences(60)
    shouted = [text.upper() for text in X]  # unknown words, all of them, unless the first step works
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipeline = make_pipeline(lower, PrefinetunedClassifier(tiny_model, **LEARNS))
    assert cross_val_score(pipeline, shouted, y, cv=2).mean() > 0.9
    rates = {"prefinetunedclassifier__learning_rate": [1e-6, 0.01]}
    search = GridSearchCV(pipeline, rates, cv=2, scoring="neg_log_loss").fit(shouted, y)
    assert search.best_params_ == {"prefinetunedclassifier__learning_rate": 0.01}
    assert search.predict_proba(shouted).shape == (60, 2)


def test_an_encoder_decoder_can_be_fitted(tiny_bart, tmp_path):
    X, y = sentences(32)
    classifier = PrefinetunedClassifier(tiny_bart, updates=2, learning_rate=1e-3).fit(X, y)
    classifier.save(tmp_path / "saved")
    np.testing.assert_allclose(classifier.predict_proba(X), plain_probabilities(tmp_path / "saved", X), atol=1e-5)


# ---- keeping it


def test_a_pickle_holds_the_same_model_whatever_it_was_fitted_with(dropout_model, tmp_path):
    X, y = sentences(32)
    objective = {"balancing": "uncertainty", "r3f": 1.0, "spectral_norm": True}
    config = {"objective": objective, "model": {"attention_dropout": 0.0}}
    fitted = PrefinetunedClassifier(dropout_model, updates=2, config=config).fit(X, y)
    weights = fitted.__getstate__()["model_"]["weights"]
    assert isinstance(weights, bytes)  # safetensors: nothing of torch's own that only its own device could read
    before = torch.get_rng_state()
    restored = pickle.load(io.BytesIO(pickle.dumps(fitted)))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(restored.predict_proba(X), fitted.predict_proba(X))
    for name, one in (("fitted", fitted), ("restored", restored)):
        one.save(tmp_path / name)
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "fitted" / file).read_bytes() == (tmp_path / "restored" / file).read_bytes()


def test_what_is_saved_is_a_pipeline_of_transformers(tiny_model, tmp_path):
    X, y = sentences(48)
    classifier = PrefinetunedClassifier(tiny_model, **LEARNS).fit(X, y)
    classifier.save(tmp_path / "saved")
    answers = transformers.pipeline("text-classification", str(tmp_path / "saved"), device="cpu")(X[:8])
    assert [answer["label"] for answer in answers] == classifier.predict(X[:8]).tolist()
    np.testing.assert_allclose([answer["score"] for answer in answers], classifier.predict_proba(X[:8]).max(1), atol=1e-5)


# ---- what it refuses


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (["a", 5], [0, 1], "X, row 1: 5 is not accepted; expected a text, not int"),
        (["a", None], [0, 1], "X, row 1: None is not accepted; expected a text, not NoneType"),
        ([["a", "b"], ["a", 2.5]], [0, 1], "X, row 1: 2.5 is not accepted; expected a text, not float"),
        ([["a", "b", "c"], ["d", "e", "f"]], [0, 1], "X has 3 columns; expected texts, or two columns for pairs of texts"),
        (["a", "b"], ["x", "x"], "y has one class, x; a classifier needs at least two"),
    ],
)
def test_rows_that_cannot_be_used_are_named(X, y, message, tiny_model):
    with pytest.raises(InputError) as problem:
        PrefinetunedClassifier(tiny_model).fit(X, y)
    assert str(problem.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config": {"objective": {"r4f": 1}}}, "unknown setting 'objective.r4f'"),
        ({"learning_rate": -1}, "setting 'optimizer.learning_rate': -1 is not accepted"),
        ({"max_length": 8}, "data.max_length: 8 is too short; at least 16"),
        ({"random_state": -1}, "setting 'seed': -1 is not accepted"),
        ({"start": "/no/such/run"}, "no model folder '/no/such/run'"),
        ({"config": {"lora": {"rank": 4}}}, "config: lora.rank=4 is not for PrefinetunedClassifier; use `finetune`"),
        ({"config": {"train": {"track": "wandb"}}}, "config: train.track=('wandb',) is not for PrefinetunedClassifier"),
    ],
)
def test_settings_are_checked_when_it_is_fitted(settings, message, tiny_model):
    with pytest.raises(InputError) as problem:
        PrefinetunedClassifier(tiny_model).set_params(**settings).fit(["a", "b"], [0, 1])
    assert message in str(problem.value)


def test_progress_is_shown_only_where_it_is_asked_for(tiny_model, capfd):
    X, y = sentences(8)
    PrefinetunedClassifier(tiny_model, updates=2).fit(X, y).predict(X)
    assert capfd.readouterr() == ("", "")
    PrefinetunedClassifier(tiny_model, updates=2, verbose=True).fit(X, y)
    assert "update 2" in capfd.readouterr().err
