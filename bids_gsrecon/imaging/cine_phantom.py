"""A beating heart in a body, as complex images: drawn finer than the acquisition sees it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

KINDS = ('soft', 'sharp')
# Width of edges and size of texture in pixels of the image.
EDGE_WIDTH = {'soft': 1.2, 'sharp': 0.3}
TEXTURE_SIZE = {'soft': 1.5, 'sharp': 0.7}


def contraction(phase: np.ndarray) -> np.ndarray:
    """How far the heart has contracted, 0..1, at phases 0..1 of the beat: systole, fast filling, atrial kick."""
    phase = np.mod(phase, 1.0)
    systole = np.sin(0.5 * np.pi * np.clip(phase / 0.36, 0.0, 1.0)) ** 2
    filling = np.cos(0.5 * np.pi * np.clip((phase - 0.38) / 0.27, 0.0, 1.0)) ** 2
    kick = 0.1 * np.exp(-(((phase - 0.88) / 0.05) ** 2))
    return 0.95 * np.where(phase < 0.37, systole, filling) - kick + 0.05


class HeartPhantom:
    """Short-axis view of a heart in a chest.

    Parameters
    ----------
    shape
        (nx, ny) of the images; x spans -1..1, pixels are square.
    kind
        ``soft`` (edges of 1.2 pixels) or ``sharp`` (0.3 pixels and finer texture).
    level
        -1 (apex) .. 1 (base): size of the ventricles.
    oversampling
        Points per pixel along both axes.
    seed
        Of texture and vessels.
    """

    def __init__(
        self, shape, kind: str = 'sharp', *, level: float = 0.0, oversampling: int = 3, seed: int = 0
    ):
        if kind not in KINDS:
            raise ValueError(f'the phantom is one of {KINDS}, not {kind!r}')
        self.shape, self.oversampling = tuple(shape), oversampling
        self.size = 1.0 + 0.25 * level
        nx, ny = (n * oversampling for n in shape)
        unit = 2.0 / nx
        self.x = ((np.arange(nx) - (nx - 1) / 2) * unit)[:, None] * np.ones((1, ny))
        self.y = ((np.arange(ny) - (ny - 1) / 2) * unit)[None, :] * np.ones((nx, 1))
        self.aspect = shape[1] / shape[0]
        self.edge = EDGE_WIDTH[kind] * 2.0 / shape[0] / 2.0
        self.unit = unit
        rng = np.random.default_rng(seed)
        fine = ndimage.gaussian_filter(rng.standard_normal((nx, ny)), TEXTURE_SIZE[kind] * oversampling)
        coarse = ndimage.gaussian_filter(rng.standard_normal((nx, ny)), 4.0 * oversampling)
        self.texture = 0.07 * fine / fine.std() + 0.05 * coarse / coarse.std()
        self.vessels = [
            (rng.uniform(-0.75, 0.75), rng.uniform(-0.8, 0.8) * self.aspect, rng.uniform(0.008, 0.022))
            for _ in range(50)
        ]

    def image(self, phase: float, *, shift=(0.0, 0.0)) -> np.ndarray:
        """(nx fine, ny fine) complex64 at a phase 0..1 of the beat, the body shifted by pixels of the image."""
        a = float(contraction(np.array(phase)))
        x = self.x - shift[0] * self.unit * self.oversampling
        y = self.y - shift[1] * self.unit * self.oversampling
        x, y = self._to_rest(x, y, a)
        chest = self.aspect * 0.9
        value = np.zeros(x.shape)
        value = self._put(value, 0.85, self._ellipse(x, y, 0, 0, 0.9, chest))
        value = self._put(value, 0.30, self._ellipse(x, y, 0, 0, 0.83, chest - 0.07))
        for side, width in ((-0.52, 0.26), (0.55, 0.22)):
            value = self._put(
                value, 0.06, self._ellipse(x, y, side, 0.1 * self.aspect, width, 0.5 * self.aspect)
            )
        value = self._put(
            value, 0.45, self._ellipse(x, y, -0.33, -0.57 * self.aspect, 0.4, 0.2 * self.aspect)
        )
        value = self._put(value, 0.55, self._ellipse(x, y, 0.05, -0.68 * self.aspect, 0.1, 0.1 * self.aspect))
        for vx, vy, radius in self.vessels:
            value = self._put(value, 0.75, 0.7 * self._ellipse(x, y, vx, vy, radius, 1.3 * radius))
        value = self._put(value, 0.95, self._ellipse(x, y, 0.3, -0.44 * self.aspect, 0.07, 0.07))
        s = self.size * min(1.0, 1.3 * self.aspect)
        value = self._put(value, 0.70, self._ellipse(x, y, 0.02, 0.03, 0.40 * s, 0.31 * s))
        value = self._put(value, 0.35, self._ellipse(x, y, -0.14, 0.03, 0.23 * s, 0.21 * s))
        right = self._ellipse(x, y, -0.13, 0.03, 0.20 * s, 0.18 * s)
        value = self._put(value, 1.00 - 0.05 * a, right)
        value = self._put(value, 0.33, self._ellipse(x, y, 0.12, 0.04, 0.25 * s, 0.245 * s))
        left = self._ellipse(x, y, 0.12, 0.04, 0.165 * s, 0.165 * s)
        swirl = np.exp(-((x - 0.12) ** 2 + (y - 0.04) ** 2) / 0.07**2)
        value = self._put(value, 1.0 - 0.09 * a + 0.12 * np.sin(2 * np.pi * phase) * swirl, left)
        for px, py in ((0.20, 0.11), (0.03, 0.12)):
            value = self._put(value, 0.33, self._ellipse(x, y, px, py, 0.032 * s, 0.028 * s))
        index = [(x / self.unit) + (x.shape[0] - 1) / 2, (y / self.unit) + (x.shape[1] - 1) / 2]
        texture = ndimage.map_coordinates(self.texture, index, order=1, mode='reflect')
        value = np.maximum(value * (1.0 + texture), 0.0)
        turn = 0.8 * self.x - 0.6 * self.y + 0.9 * self.x * self.y + 0.5 * self.x**2
        return (value * np.exp(1j * (turn + 0.25 * left + 0.2 * right))).astype(np.complex64)

    def _to_rest(self, x, y, a):
        """Where tissue now at (x, y) lies at rest: contraction towards both ventricles, and twist."""
        cx, cy = 0.12 + 0.015 * a, 0.04 - 0.02 * a
        near = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (0.25 * self.size) ** 2)
        right = np.exp(-((x + 0.21 - 0.04 * a) ** 2 + (y - 0.02) ** 2) / (0.2 * self.size) ** 2)
        x, y = (
            x + (x - cx) * 0.6 * a * near + (x + 0.21 - 0.04 * a) * 0.25 * a * right - 0.015 * a * near,
            y + (y - cy) * 0.6 * a * near + (y - 0.02) * 0.25 * a * right + 0.02 * a * near,
        )
        angle = 0.15 * a * near
        u, v = x - cx, y - cy
        return cx + u * np.cos(angle) - v * np.sin(angle), cy + u * np.sin(angle) + v * np.cos(angle)

    def _ellipse(self, x, y, cx, cy, rx, ry):
        distance = (1.0 - np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)) * min(rx, ry)
        return 1.0 / (1.0 + np.exp(-np.clip(distance / self.edge, -40, 40)))

    @staticmethod
    def _put(value, new, where):
        return value * (1.0 - where) + new * where
