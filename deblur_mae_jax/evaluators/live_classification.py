"""A classifier judged as it trains, on the validation images, and once at the end on the test images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax import blur_search, metrics, sharding, views, workdir
from deblur_mae_jax.data.order import InOrder
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.evaluators import (
    attention,
    classification,
    classification_page,
    classification_report,
    predictions,
)
from deblur_mae_jax.evaluators.predictions import Predictions
from deblur_mae_jax.experiment import Experiment
from deblur_mae_jax.inputs import stream_keys

# Degradations that are drawn are drawn the same way at every evaluation.
EVALUATION_STEP = 0
MAX_EMBEDDED = 2000
MISTAKES = 8


def make_predict(run: Experiment) -> Any:
    """`predict(params, arrays, batch, first) -> (logits (B, C), level (B,), inputs)`, jitted."""
    network, supervision = run.network, run.supervision
    assert supervision is not None
    setting, degradation = supervision.setting, network.inputs.degradation

    def predict(params, arrays, batch, first):
        examples = run.store.gather(arrays["images"], jax.tree.map(lambda x: x[0], batch))
        B = examples["size"].shape[0]
        keys = stream_keys(0, EVALUATION_STEP, first + jnp.arange(B))
        level = None
        if run.choose_level is not None:
            central = network.inputs.central(examples)
            level = run.choose_level(arrays["search"])(examples, *central)
        elif setting is not None and setting.kind == "oracle":
            level = _oracle(params, examples)
        data = network.inputs.evaluate(examples, keys, level)
        given = data.get("level", jnp.zeros(B, jnp.int32))
        logits, _ = network.model.apply({"params": params}, data["inputs"], data.get("level"))
        return logits, given, data["inputs"]

    def _oracle(params, examples):
        """The level at which the true class is most probable: an upper bound, it uses the label."""
        levels = jnp.asarray(blur_search.candidates(degradation.num_levels, 1))
        central = network.inputs.central(examples)
        inputs, _ = network.inputs.at_levels(examples, *central, levels)
        B, T = inputs.shape[:2]
        logits, _ = network.model.apply(
            {"params": params}, inputs.reshape(B * T, *inputs.shape[2:]), jnp.tile(levels, B)
        )
        scores = jax.nn.log_softmax(logits).reshape(B, T, -1)
        truth = jnp.take_along_axis(scores, examples["label"][:, None, None], axis=2)[..., 0]
        return levels[jnp.argmax(truth, axis=1)]

    everywhere = sharding.replicated(run.mesh)
    return jax.jit(predict, out_shardings=everywhere)


class Live:
    """Evaluates the validation images; keeps the numbers and the page up to date."""

    def __init__(self, run: Experiment, folder: Path, writer: metrics.Writer):
        assert run.supervision is not None
        self.run, self.workdir, self.writer = run, folder, writer
        self.known = run.supervision
        self.folder = folder / "report"
        self.folder.mkdir(exist_ok=True)
        self.latest: dict[str, float] = {}
        self.score: float | None = None
        self.conclusion = ""
        self.metric = run.config.select.metric
        self._predict = make_predict(run)
        B = max(1, run.config.optim.batch_size // run.config.optim.accum_steps)
        self.batch_size = -(-B // run.mesh.size) * run.mesh.size

    def predict(self, params: Any, split: str) -> Predictions:
        """Every image of a split."""
        positions = self.known.positions[split]
        order = InOrder(positions, self.batch_size)
        logits, levels = [], []
        for number, batch in enumerate(self.run.store.in_order(order)):
            first = jnp.int32(number * self.batch_size)
            out, level, _ = self._predict(params, self.run.arrays, batch, first)
            logits.append(np.asarray(out))
            levels.append(np.asarray(level))
        count = len(positions)
        found = predictions.of_index(
            self.run.index,
            self.known,
            split,
            predictions.probabilities_of(np.concatenate(logits)[:count]),
            np.concatenate(levels)[:count],
            blur_search.all_sigmas(self.run.network.inputs.degradation),
        )
        # An image that can no longer be read was replaced by another: that is no prediction of it.
        lost = {item.name for item in self.run.loader.failed}
        return found.where(np.array([name not in lost for name in found.names])) if lost else found

    def evaluate(self, params: Any) -> Predictions:
        """The validation images; `latest` holds their measures and `score` the one that selects."""
        found = self.predict(params, "val")
        values = classification.measure(found.labels, found.probabilities)
        self.latest = {f"val_{name}": value for name, value in values.items()}
        value = values[self.metric]
        self.score = value if classification.HIGHER_IS_BETTER[self.metric] else -value
        if not np.isfinite(self.score):
            raise UserError(
                f"config.select.metric={self.metric} is not defined on the validation images, which "
                "lack classes; choose accuracy or log_loss"
            )
        return found

    def draw(self, step: int, found: Predictions, skipped: int) -> None:
        """Numbers of an evaluation, to files."""
        self.writer.write_scalars(step, self.latest)

    def page(self, step: int, skipped: int) -> None:
        """A short page while nothing final is known."""
        classification_page.write_progress(
            self.folder, self._title(), self.latest, metrics.read(self.workdir)
        )

    def newest_picture(self) -> Path:
        """The figures of the report."""
        found = self.folder / "figures.png"
        return found if found.exists() else self.folder

    def _title(self) -> str:
        return f"{self.workdir.resolve().name}: {' or '.join(self.known.classes)}"

    def final(self, params: Any, best: dict[str, Any], skipped: int, write: bool) -> None:
        """Predict validation and test images with the best weights; write the table and the report.

        This is the only place that reads predictions of the test split. Every process takes part in
        the predictions; `write` is true for the one that writes.
        """
        run, config = self.run, self.run.config
        parts = [
            self.predict(params, name) for name in ("val", "test") if name in self.known.positions
        ]
        judged = parts[-1]
        shown = self.known.positions[str(judged.split[0])]
        features = self._features(params, shown[:MAX_EMBEDDED])
        wrong = np.flatnonzero(judged.probabilities.argmax(1) != judged.labels)
        wrong = wrong[np.argsort(-judged.probabilities[wrong].max(axis=1))][:MISTAKES]
        pictures = self._rollouts(params, shown[wrong]) if len(wrong) else []
        if not write:
            return
        notes = classification_report.Notes(
            title=self._title(),
            config=workdir.flat(config),
            lines=self.known.lines,
            setting=self.known.setting.kind if self.known.setting else None,
            best_step=best["step"],
            curves=metrics.read(self.workdir),
            features=features,
            mistakes=[
                (judged.where(np.array([i])), *p) for i, p in zip(wrong, pictures, strict=True)
            ],
            train_counts=np.bincount(
                self.known.labels[self.known.positions["train"]], minlength=len(self.known.classes)
            ),
            skipped=skipped,
        )
        if self.known.table is not None:
            self.known.table.write(self.workdir / "blur_search.csv")
        table = predictions.concatenate(parts)
        numbers = classification_report.write(
            self.workdir, table, run.index, self.known.positions, notes
        )
        name = numbers["judged_on"]
        self.conclusion = classification_page.verdict(numbers)
        self.latest = {
            f"{name}_{k}": v["value"]
            for k, v in numbers["splits"][name]["per_image"].items()
            if v["value"] is not None
        }

    def _features(self, params: Any, positions: np.ndarray) -> np.ndarray:
        model = self.run.network.model

        def features(params, images, level):
            return model.apply({"params": params}, images, level, method=model.features)

        program = jax.jit(features, out_shardings=sharding.replicated(self.run.mesh))
        return self._over(params, positions, program)

    def _rollouts(self, params: Any, positions: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(view in grey levels, rollout) of some images."""
        model, inputs = self.run.network.model, self.run.network.inputs

        def look(params, images, level):
            mean, std = jnp.asarray(inputs.mean), jnp.asarray(inputs.std)
            pictures = jnp.clip(views.denormalise(images, mean, std), 0, 255)
            return pictures, attention.rollout(model, params, images, level)

        program = jax.jit(look, out_shardings=sharding.replicated(self.run.mesh))
        pictures, maps = self._over(params, positions, program)
        return list(zip(pictures, maps, strict=True))

    def _over(self, params: Any, positions: np.ndarray, program: Any) -> Any:
        """Apply `program(params, network inputs, level)` to images of the index."""
        order = InOrder(positions, self.batch_size)
        conditioned = self.run.network.model.conditioning != "none"
        found = []
        for number, batch in enumerate(self.run.store.in_order(order)):
            first = jnp.int32(number * self.batch_size)
            _, level, images = self._predict(params, self.run.arrays, batch, first)
            found.append(jax.device_get(program(params, images, level if conditioned else None)))
        count = len(positions)
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *found)
