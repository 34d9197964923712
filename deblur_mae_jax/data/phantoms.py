"""Simulated B-mode phantoms for demos and tests, not for scientific results.

The simulator draws random point scatterers whose strength follows a tissue map. It applies a
point-spread function with one pulse length and a beam width that grows away from the focus. Then it
computes the envelope, attenuates with depth, compensates the gain imperfectly, compresses with a
logarithm, and maps to linear or fan geometry. Lesions are benign-like (smooth ovals, parallel to the
skin, often brighter behind) or malignant-like (spiculated, taller than wide, with a shadow and
micro-calcifications). Images are grouped by patient: each patient has one lesion in several views.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy import ndimage

from deblur_mae_jax.data.source import Source

AXES = 2  # of its images
READS: tuple[str, ...] = ()

LABELS = ("benign", "malignant")
DYNAMIC_RANGE_DB = 55.0
UNSEEN, UNSEEN_SEED = "unseen", 1_000_003


@dataclasses.dataclass(frozen=True)
class _Lesion:
    malignant: bool
    centre: tuple[float, float]  # depth, lateral, in units of the image depth
    radii: tuple[float, float]
    angle: float
    contrast_db: float
    spikes: int
    spike_height: float
    phase: float
    shadow_db: float  # negative: darker behind; positive: enhancement
    calcifications: int


def _draw_lesion(rng: np.random.Generator, malignant: bool) -> _Lesion:
    radius = rng.uniform(0.1, 0.17)
    if malignant:
        return _Lesion(
            True,
            (rng.uniform(0.4, 0.6), rng.uniform(-0.15, 0.15)),
            (radius * rng.uniform(1.1, 1.4), radius * rng.uniform(0.7, 0.95)),  # taller than wide
            rng.uniform(-0.4, 0.4),
            rng.uniform(-22, -14),
            int(rng.integers(7, 13)),
            rng.uniform(0.18, 0.35),
            rng.uniform(0, 2 * np.pi),
            rng.uniform(-18, -8),
            int(rng.integers(3, 12)),
        )
    return _Lesion(
        False,
        (rng.uniform(0.35, 0.6), rng.uniform(-0.2, 0.2)),
        (radius * rng.uniform(0.55, 0.8), radius * rng.uniform(1.0, 1.5)),  # wider than tall
        rng.uniform(-0.25, 0.25),
        rng.uniform(-24, -9),
        int(rng.integers(2, 4)),
        rng.uniform(0.0, 0.05),
        rng.uniform(0, 2 * np.pi),
        rng.uniform(0, 8),
        0,
    )


def _inside(lesion: _Lesion, depth: np.ndarray, lateral: np.ndarray) -> np.ndarray:
    """Signed measure: below 1 inside the lesion."""
    z, x = depth - lesion.centre[0], lateral - lesion.centre[1]
    cos, sin = np.cos(lesion.angle), np.sin(lesion.angle)
    u = (z * cos + x * sin) / lesion.radii[0]
    v = (-z * sin + x * cos) / lesion.radii[1]
    theta = np.arctan2(u, v)
    # A pointed wave for spiculations, a plain one for the soft lobes of a benign margin.
    wave = np.cos(lesion.spikes * theta + lesion.phase)
    wave = np.abs(wave) ** 3 if lesion.malignant else wave
    return np.hypot(u, v) / (1 + lesion.spike_height * wave)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.standard_normal(shape), scale, mode="reflect")
    return field / (field.std() + 1e-12)


def _simulate(rng: np.random.Generator, lesion: _Lesion, side: int, fan: bool) -> tuple[np.ndarray, np.ndarray]:
    """One view: 8-bit B-mode `(H, W)` and the lesion's mask, 0 or 255."""
    samples, beams = round(side * 1.5), side
    depth = np.linspace(0.0, 1.0, samples)[:, None]
    if fan:
        half_angle, apex = rng.uniform(0.45, 0.6), 0.35  # radians; probe radius over depth
        angle = np.linspace(-half_angle, half_angle, beams)[None]
        z, x = (apex + depth) * np.cos(angle) - apex, (apex + depth) * np.sin(angle)
        to_screen = functools.partial(_fan_on_screen, half_angle, apex)
    else:
        width = rng.uniform(0.8, 1.2)
        z = np.broadcast_to(depth, (samples, beams))
        x = np.broadcast_to(np.linspace(-width / 2, width / 2, beams)[None], (samples, beams))
        to_screen = functools.partial(_rectangle_on_screen, width)
    inside = _inside(lesion, z, x)
    tissue_db = _with_lesion(_tissue(rng, z, x, side), lesion, inside, side)
    amplitude = 10 ** (tissue_db / 20)
    field = amplitude * (rng.standard_normal((samples, beams)) + 1j * rng.standard_normal((samples, beams)))
    spots = np.argwhere(inside < 0.8)
    for row, col in spots[rng.integers(0, len(spots), lesion.calcifications)] if len(spots) else ():
        field[row, col] += 30 * np.exp(2j * np.pi * rng.uniform())
    image = _received(rng, field, depth)
    where = to_screen(side, samples, beams)
    screen = ndimage.map_coordinates(image, where, order=1, mode="constant", cval=0.0)
    mask = ndimage.map_coordinates((inside < 1).astype(float), where, order=0, mode="constant", cval=0.0)
    return np.rint(255 * screen).astype(np.uint8), (mask > 0.5).astype(np.uint8) * 255


def _tissue(rng: np.random.Generator, z: np.ndarray, x: np.ndarray, side: int) -> np.ndarray:
    """Strength of the scatterers, dB: skin, layers with wavy borders, slow and fine variations, fibres."""
    wavy = z + 0.02 * _smooth_noise(rng, z.shape, side / 8)
    tissue_db = 3 * _smooth_noise(rng, z.shape, side / 16)
    tissue_db += np.where(wavy < 0.05, 10.0, 0.0)
    for border in np.sort(rng.uniform(0.1, 0.95, rng.integers(2, 5))):
        tissue_db += rng.uniform(-6, 6) * (wavy > border)
        tissue_db += rng.uniform(4, 14) * np.exp(-(((wavy - border) / 0.006) ** 2))
    tilt = rng.uniform(-0.5, 0.5)
    fibres = np.sin(2 * np.pi * (wavy + tilt * x) * rng.uniform(12, 22) + rng.uniform(0, 6))
    return tissue_db + (5 * np.clip(fibres, 0.75, 1) * 4 - 15)


def _with_lesion(tissue_db: np.ndarray, lesion: _Lesion, inside: np.ndarray, side: int) -> np.ndarray:
    """The lesion, its capsule, and its shadow or enhancement."""
    core = inside < 1
    tissue_db = np.where(core, tissue_db.mean() + lesion.contrast_db, tissue_db)
    if not lesion.malignant:  # a thin bright capsule
        tissue_db += 9 * np.exp(-(((inside - 1) / 0.05) ** 2))
    behind = np.maximum.accumulate(core, axis=0) & ~core
    column = ndimage.gaussian_filter(behind.astype(float), (side / 60, side / 60))
    return tissue_db + lesion.shadow_db * column


def _received(rng: np.random.Generator, field: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Turn scatterers into the log-compressed image 0..1, indexed by depth and beam.

    The point-spread function is a pulse along the beam times a profile across it, which widens away from the focus.
    """
    from scipy import signal  # takes a third of a second, which runs on other images need not wait

    focus = rng.uniform(0.4, 0.6)
    pulse = np.exp(-0.5 * (np.arange(-6, 7) / 1.4) ** 2)[:, None]
    field = signal.fftconvolve(field, pulse, mode="same", axes=0)
    near, far = _across(field, 1.0), _across(field, 2.4)
    blend = np.clip(np.abs(depth - focus) / 0.5, 0, 1)
    envelope = np.abs((1 - blend) * near + blend * far)
    gain_db = -rng.uniform(4, 10) * depth + rng.uniform(-2, 2)
    level_db = 20 * np.log10(envelope + 1e-9) + gain_db
    level_db -= np.percentile(level_db, 99.3)
    return np.clip(1 + level_db / DYNAMIC_RANGE_DB, 0, 1)


def _fan_on_screen(half_angle: float, apex: float, height: int, samples: int, beams: int) -> list[np.ndarray]:
    """Sample and beam of every pixel of a fan."""
    half_width = (apex + 1) * np.sin(half_angle)
    top = apex * np.cos(half_angle) - apex
    shape = (height, round(height * 2 * half_width / (1 - top)))
    zz = np.linspace(top, 1, shape[0])[:, None]
    xx = np.linspace(-half_width, half_width, shape[1])[None]
    radius, theta = np.hypot(zz + apex, xx), np.arctan2(xx, zz + apex)
    return [(radius - apex) * (samples - 1), (theta / half_angle + 1) / 2 * (beams - 1)]


def _rectangle_on_screen(width: float, height: int, samples: int, beams: int) -> list[np.ndarray]:
    """Sample and beam of every pixel of a linear scan."""
    shape = (height, round(height * width))
    where = list(np.mgrid[: shape[0], : shape[1]].astype(float))
    where[0] *= (samples - 1) / (shape[0] - 1)
    where[1] *= (beams - 1) / (shape[1] - 1)
    return where


def _across(field: np.ndarray, width: float) -> np.ndarray:
    from scipy import signal

    beam = np.exp(-0.5 * (np.arange(-7, 8) / width) ** 2)[None]
    beam /= np.sqrt((beam**2).sum())
    return signal.fftconvolve(field, beam, mode="same", axes=1)


@functools.lru_cache(maxsize=2048)  # a run reads each image twice: to check it and to train on it
def _view(seed: int, patient: int, number: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, patient, 0])
    malignant = rng.random() < 0.5
    lesion = _draw_lesion(rng, malignant)
    fan = rng.random() < 0.5
    rng = np.random.default_rng([seed, patient, 1 + number])
    shift = rng.uniform(-0.05, 0.05, 2)
    lesion = dataclasses.replace(
        lesion,
        centre=(lesion.centre[0] + shift[0], lesion.centre[1] + shift[1]),
        angle=lesion.angle + rng.uniform(-0.2, 0.2),
    )
    return _simulate(rng, lesion, side, fan)


@dataclasses.dataclass(frozen=True)
class Phantoms:
    """`num_images` views of simulated patients. Image i depends on (seed, i) alone."""

    num_images: int
    seed: int = 0
    side: int = 160
    views_per_patient: int = 3
    channels: int = 1

    def patient(self, index: int) -> int:
        """Index of the patient that an image shows."""
        return index // self.views_per_patient

    def label(self, index: int) -> str:
        """Class of an image, drawn at random for each patient: "benign" or "malignant"."""
        rng = np.random.default_rng([self.seed, self.patient(index), 0])
        return LABELS[int(rng.random() < 0.5)]

    def view(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and lesion mask, uint8 `(H, W)`."""
        number = index % self.views_per_patient
        return _view(self.seed, self.patient(index), number, self.side)

    def read(self, index: int) -> np.ndarray:
        """uint8 `(H, W, channels)`."""
        return np.repeat(self.view(index)[0][:, :, None], self.channels, axis=2)

    def mask(self, index: int) -> np.ndarray:
        """uint8 `(H, W)`, 255 inside the lesion."""
        return self.view(index)[1]


def source(data, channels: int) -> Source:
    """`data.num_images` phantoms with a height of `data.side` pixels.

    `data.split="unseen"` gives views of other patients, a fifth as many. Any other split gives all phantoms.
    """
    unseen = data.split == UNSEEN
    count = range(max(1, data.num_images // 5) if unseen else data.num_images)
    seed = data.phantom_seed + (UNSEEN_SEED if unseen else 0)
    phantoms = Phantoms(len(count), seed, data.side, channels=channels)
    return Source(
        names=[f"{UNSEEN if unseen else 'phantom'}_{i:05d}" for i in count],
        read=phantoms.read,
        labels=[phantoms.label(i) for i in count],
        groups=[f"patient_{phantoms.patient(i):05d}" for i in count],
        masks=phantoms.mask,
    )
