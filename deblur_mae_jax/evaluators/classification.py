"""Evaluate a classifier: on the validation images during training, and once on the test images at the end."""

from __future__ import annotations

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax import config as fields
from deblur_mae_jax import sharding
from deblur_mae_jax.data.order import InOrder
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.inference import arrays, attention_rollout, blur_search
from deblur_mae_jax.input_pipeline import stores
from deblur_mae_jax.input_pipeline.keys import evaluation_keys
from deblur_mae_jax.metrics import classification
from deblur_mae_jax.reports import classification as report
from deblur_mae_jax.reports import classification_figures, page, predictions
from deblur_mae_jax.reports.predictions import Predictions
from deblur_mae_jax.training import stop
from deblur_mae_jax.training.evaluator import Conclusion, Judgement, conclusion
from deblur_mae_jax.training.experiment import Experiment
from deblur_mae_jax.workdir import metric_writer
from deblur_mae_jax.workdir.run_folder import Workdir

MAX_EMBEDDED = 2000
MISTAKES = 8


def make_predict(run: Experiment, store: Any) -> Any:
    """Return the jitted `predict(params, arrays, batch) -> (logits (B, C), level (B,), inputs)`.

    The same draw for every image: its input does not depend on its place in a batch, and is that of a prediction.

    store: the store that `batch` is from.
    """
    network, supervision = run.network, run.supervision
    assert supervision is not None
    setting, degradation = supervision.setting, network.inputs.degradation

    def predict(params, arrays, batch):
        examples = store.gather(arrays["images"], jax.tree.map(lambda x: x[0], batch))
        B = examples["size"].shape[0]
        keys = evaluation_keys(jnp.zeros(B, jnp.int32))
        level = None
        if run.choose_level is not None:
            central = network.inputs.central(examples)
            level = run.choose_level(arrays["search"])(examples, *central)
        elif setting is not None and setting.kind == "oracle":
            level = _oracle(params, examples)
        data = network.inputs.evaluate(examples, keys, level)
        given = data.get("level", jnp.zeros(B, jnp.int32))
        encoded = data.get("features")
        logits, _ = network.model.apply({"params": params}, data["inputs"], level=data.get("level"), encoded=encoded)
        return logits, given, data["inputs"]

    def _oracle(params, examples):
        """The level at which the true class is most probable. This is an upper bound because it uses the label."""
        levels = jnp.asarray(blur_search.candidates(degradation.num_levels, 1))
        central = network.inputs.central(examples)
        inputs, _ = network.inputs.at_levels(examples, *central, levels)
        B, T = inputs.shape[:2]
        logits, _ = network.model.apply(
            {"params": params}, inputs.reshape(B * T, *inputs.shape[2:]), level=jnp.tile(levels, B)
        )
        scores = jax.nn.log_softmax(logits).reshape(B, T, -1)
        truth = jnp.take_along_axis(scores, examples["label"][:, None, None], axis=2)[..., 0]
        return levels[jnp.argmax(truth, axis=1)]

    everywhere = sharding.replicated(run.mesh)
    return jax.jit(predict, out_shardings=everywhere)


class Evaluator:
    """Evaluates validation images during training; at the end, validation and test images with the best weights."""

    def __init__(self, run: Experiment, workdir: Workdir):
        assert run.supervision is not None
        self.run, self.workdir, self.labels = run, workdir, run.supervision
        self.latest: dict[str, float] = {}
        self.metric = run.config.select.metric
        self._predict = make_predict(run, run.store)
        B = max(1, run.config.optim.batch_size // run.config.optim.accum_steps)
        self.batch_size = -(-B // run.mesh.size) * run.mesh.size

    def predict(self, params: Any, split: str) -> tuple[Predictions, np.ndarray]:
        """Predict every image of a split that can still be read. Returns also their numbers in the index."""
        indices = self.labels.indices[split]
        order = InOrder(indices, self.batch_size)
        logits, levels = [], []
        for batch in self.run.store.in_order(order):
            stop.poll()
            out, level, _ = self._predict(params, self.run.arrays, batch)
            logits.append(np.asarray(out))
            levels.append(np.asarray(level))
        count = len(indices)
        table = predictions.of_index(
            self.run.index,
            self.labels,
            split,
            arrays.probabilities_of(np.concatenate(logits)[:count]),
            np.concatenate(levels)[:count],
            blur_search.all_sigmas(self.run.network.inputs.degradation),
        )
        # Another image replaces one that can no longer be read; its prediction is dropped.
        failed = {item.name for item in self.run.loader.failed}
        kept = ~sharding.on_any_process([name in failed for name in table.names])
        return (table, indices) if kept.all() else (table.where(kept), indices[kept])

    def evaluate(self, params: Any) -> Judgement:
        """Measure the validation images; the score is the measure that selects the weights.

        Where so many became unreadable that it is not defined any more, there is no score.
        """
        table, _ = self.predict(params, "val")
        values = dict.fromkeys(classification.METRICS, float("nan"))
        if len(table.labels):
            values = classification.measure(table.labels, table.probabilities)
        self.latest = {f"val_{name}": value for name, value in values.items()}
        value = values[self.metric]
        score = value if classification.HIGHER_IS_BETTER[self.metric] else -value
        if np.isfinite(score):
            return Judgement(score, self.latest, {})
        expected = len(self.labels.indices["val"])
        if len(table.labels) == expected:
            raise UserError(
                f"config.select.metric={self.metric} is not defined on the validation images, which "
                "lack classes; choose accuracy or log_loss"
            )
        logging.warning(
            "val_%s is not defined: %d of %d validation images could not be read any more (see skipped.csv)",
            self.metric,
            expected - len(table.labels),
            expected,
        )
        return Judgement(None, self.latest, {})

    def write(self, step: int, judgement: Judgement) -> None:
        """Write nothing here; the page of an unfinished run is written when it stops."""

    def _title(self) -> str:
        return f"{self.workdir.name}: {' or '.join(self.labels.classes)}"

    def finish(self, step: int, params: Any, main: bool) -> Conclusion:
        """Predict validation and test images with the best weights, then write the table and the report.

        This is the only place that reads predictions of the test split.
        """
        if params is None:
            if main:
                curves = classification_figures.curves(metric_writer.read(self.workdir))
                page.progress(self.workdir.make_report(), self._title(), self.latest, curves)
            return Conclusion(self.latest, "", self.workdir.report)
        indices = self.labels.indices
        predicted = [self.predict(params, name) for name in ("val", "test") if name in indices]
        tables = [table for table, _ in predicted]
        judged, shown = predicted[-1]
        # Images lie in folders of their classes: the first ones would be of the first class.
        drawn = np.sort(np.random.default_rng(0).permutation(len(shown))[:MAX_EMBEDDED])
        features = self._features(params, shown[drawn])
        wrong = np.flatnonzero(judged.probabilities.argmax(1) != judged.labels)
        wrong = wrong[np.argsort(-judged.probabilities[wrong].max(axis=1))][:MISTAKES]
        views = self._rollouts(params, shown[wrong]) if len(wrong) else []
        figure = self.workdir.report / report.FIGURES
        if not main:
            return Conclusion(self.latest, "", figure)
        mistakes = [(judged.where(np.array([i])), *view) for i, view in zip(wrong, views, strict=True)]
        if self.labels.table is not None:
            self.labels.table.write(self.workdir.blur_search)
        notes = self._notes(step, drawn, features, mistakes)
        table = predictions.concatenate(tables)
        numbers = report.write(self.workdir, table, self.run.index, indices, notes)
        return conclusion(numbers, report.verdict(numbers), figure)

    def _notes(self, step: int, drawn: np.ndarray, features: np.ndarray, mistakes: list[Any]) -> report.Notes:
        labels = self.labels
        train = labels.labels[labels.indices["train"]]
        return report.Notes(
            title=self._title(),
            config=fields.flat(self.run.config),
            lines=self.run.notes,
            setting=labels.setting.kind if labels.setting else None,
            best_step=step,
            curves=metric_writer.read(self.workdir),
            skipped=len(self.run.skipped),
            drawn=drawn,
            features=features,
            mistakes=mistakes,
            train_counts=np.bincount(train, minlength=len(labels.classes)),
        )

    def _features(self, params: Any, indices: np.ndarray) -> np.ndarray:
        if self.run.encoded is not None:
            return self.run.encoded.features[indices]
        model = self.run.network.model

        def features(params, images, level):
            return model.apply({"params": params}, images, level=level, method=model.features)

        program = jax.jit(features, out_shardings=sharding.replicated(self.run.mesh))
        return self._over(params, indices, program)

    def _rollouts(self, params: Any, indices: np.ndarray) -> list[tuple[Any, Any]]:
        """For each of the given images: its view in gray levels, and its attention map or None."""
        network = self.run.network
        model, inputs, attends = network.model, network.inputs, network.rules.attends

        def look(params, images, level):
            views = inputs.gray_levels(images)
            if not attends:
                return views, jnp.zeros(len(views))
            return views, attention_rollout.rollout(model, params, images, level)

        program = jax.jit(look, out_shardings=sharding.replicated(self.run.mesh))
        views, maps = self._over(params, indices, program)
        return [(view, attention if attends else None) for view, attention in zip(views, maps, strict=True)]

    def _over(self, params: Any, indices: np.ndarray, program: Any) -> Any:
        """Apply `program(params, network inputs, level)` to images of the index."""
        order = InOrder(indices, self.batch_size)
        conditioned, store, predict = self.run.network.conditioned, self.run.store, self._predict
        if self.run.encoded is not None:  # the store has features alone
            store = stores.Streaming(self.run.loader, order, self.run.mesh, 1)
            predict = make_predict(self.run, store)
        results = []
        for batch in store.in_order(order):
            _, level, images = predict(params, self.run.arrays, batch)
            results.append(jax.device_get(program(params, images, level if conditioned else None)))
        count = len(indices)
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *results)
