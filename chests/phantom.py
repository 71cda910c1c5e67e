"""The embedded data set: procedural frontal chest X-rays with exact truth, and reports that describe them.

    films = render(range(8), seed=0)           8 1 64 64 uint8
    texts = describe(range(8), seed=0)         their reports, labels, truth and posture

Everything about one phantom is a pure function of (seed, index): its patient, findings, report and posture
depend neither on the size asked for, nor on which others are in the batch. patients.py says what the patients
have and what is written about them; here they are X-rayed, each part of the chest by one short function.

Coordinates: u = (x, y) on the canonical chest, both in [-1, 1], y down as in torch's grid_sample. The patient
faces the reader, so the *left* lung and the heart's apex lie at x > 0. A film sees the chest through its
posture psi = (s_x, s_y, t_x, t_y, theta): v = M u with

    M = [[s_x cos theta, -s_y sin theta, t_x],
         [s_x sin theta,  s_y cos theta, t_y]]

so that grid_sample(film, affine_grid(M)) is the canonical chest, and a chest that looks too large has s > 1.
Films of an archive (faults=True) show the same patients, but BAD_POSTURE of them are badly positioned.
Not anatomy to measure by, nor for clinical use.
"""
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from chests.findings import LABELS
from chests.patients import ANATOMY, GRAIN, POSTURE, Finding, hashed, patients, read_out, truth_of, uniform

JITTER = 0.02       # of each posture parameter of a well-positioned film, either way
BAD_POSTURE = 0.35  # share of an archive's films that are badly positioned
HEADROOM = 0.86     # tissue and bone have greys up to here, so that metal is seen in front of them
NOISE = 0.012       # standard deviation per pixel, of a range of 1


class Phantoms(NamedTuple):
    """What b films show and what is said about them."""
    reports: list[str]
    labels: Tensor     # b 14, what the report says: 1 present, 0 absent, -1 unsure, nan unmentioned
    truth: Tensor      # b 14, what the film shows: 1 or 0
    posture: Tensor    # b 5, psi


def postures(seed: int, index: np.ndarray, share: float) -> np.ndarray:
    """index (n) -> psi (n 5): jitter, or for this share of films a portable film's bad positioning."""
    u = uniform(seed, index, POSTURE, 11)
    psi = np.array([1, 1, 0, 0, 0]) + JITTER * (2 * u[:, :5] - 1)
    bad = np.stack([0.8 + 0.45 * u[:, 5], 0.8 + 0.45 * u[:, 6], 0.3 * u[:, 7] - 0.15, 0.3 * u[:, 8] - 0.15,
                    0.4 * u[:, 9] - 0.2], axis=1)
    return np.where(u[:, 10:] < share, bad, psi)


# ------------------------------------------------------------------------------------------------------------
# What the film shows: float32 maps over the pixels, one image at a time (they stay in the processor's cache).
# Attenuation adds up along the beam, so parts are added to one map of density; tone() makes it a film.

RANGES = {  # anatomy of one patient, uniform between; lengths in u
    "width": (0.66, 0.76), "top": (-0.78, -0.70), "wide_at": (0.16, 0.26), "dome": (0.34, 0.46),  # lungs
    "dome_step": (0.03, 0.08), "dome_curve": (0.8, 1.4), "depth": (0.50, 0.58),
    "rib_space": (0.128, 0.15), "rib_phase": (0.0, 6.28), "rib_drop": (0.5, 0.75), "rib_light": (0.05, 0.085),
    "heart": (0.42, 0.48), "atrium": (0.18, 0.22), "heart_y": (0.26, 0.32), "mediastinum": (0.10, 0.125),
    "knob": (0.03, 0.065), "spine": (0.08, 0.095), "vessels": (0.15, 0.21), "branch": (0.0, 6.28),
    "hilum": (-0.10, -0.03), "habitus": (0.88, 1.04), "fat": (-0.04, 0.08), "shoulder": (-0.90, -0.80),
    "clavicle": (-0.64, -0.57), "clavicle_rise": (0.18, 0.34), "breasts": (-0.15, 0.12),
    "breast_y": (0.24, 0.36), "bubble": (0.05, 0.11), "bubble_x": (0.26, 0.40),
    "level": (-0.05, 0.05), "contrast": (0.9, 1.08), "gamma": (0.9, 1.2),  # exposure
}


def soft(distance: np.ndarray, width: float) -> np.ndarray:
    """0 outside, 1 inside, smooth over `width` either side of 0: 3 s^2 - 2 s^3, s = t + 1/2 (smoothstep)."""
    t = np.clip(distance * np.float32(0.5 / width), -0.5, 0.5)
    return (1.5 - 2 * t * t) * t + 0.5


def bump(distance: np.ndarray, width: float) -> np.ndarray:
    """1 at distance 0, falling as a Gaussian of standard deviation `width`."""
    return np.exp(distance * distance * (-0.5 / width**2))


def grid(size: int, psi: list[float]) -> SimpleNamespace:
    """Pixel centres v of a film -> their places u = M^-1 v on the chest. left: 1 in its left half, else 0."""
    s_x, s_y, t_x, t_y, theta = psi
    line = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    v_x, v_y = line[None, :] - t_x, line[:, None] - t_y
    cos, sin = float(np.cos(theta)), float(np.sin(theta))
    x, y = (v_x * cos + v_y * sin) / s_x, (v_y * cos - v_x * sin) / s_y
    edge = max(0.016, 1.2 / size)  # no edge sharper than the pixels
    return SimpleNamespace(x=x, y=y, a=np.abs(x), left=(x > 0).astype(np.float32), edge=edge)


def lung_walls(g, p, drawn_in=0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height below the apex; then the lateral and the medial wall there, as distances from the midline."""
    top = p.top + 1.4 * drawn_in
    s = np.clip((p.wide_at - g.y) * (1 / (p.wide_at - top)), 0, 1)  # 1 at the apex, 0 where widest
    s2 = s * s
    return g.y - top, 0.25 + (p.width - drawn_in - 0.25) * np.sqrt(1 - s2), 0.09 + 0.13 * s2 * s2


def below_diaphragm(g, p) -> np.ndarray:
    """Mask under the two domes. The right one (left in the picture) is higher; both fall off to the sides."""
    aside = np.minimum(g.a - 0.33, 0.42)
    dome = p.dome_right + (p.dome_left - p.dome_right) * g.left + aside * aside * p.dome_curve
    blur = 1 + 25 * np.maximum(g.a - p.width, 0)  # no edge in the flanks, where no air meets it
    return soft((g.y - dome) / blur, g.edge)


def body(g, p) -> np.ndarray:
    """Torso, neck, shoulders and arms: the thickness of soft tissue, 0 in the air around."""
    a2 = g.a * g.a
    waist = p.habitus - 0.06 * bump(g.y - 0.1, 0.4)
    torso = soft(waist - g.a, 0.06)
    arms = soft(g.a - waist - 0.09 - 0.05 * g.y, 0.04)
    shoulder = p.shoulder - 0.8 * np.exp(a2 * -14) + 0.5 * a2 * a2 * a2
    return np.maximum(torso * (1.0 - 0.34 * a2), 0.6 * arms) * ((1 + p.fat) * soft(g.y - shoulder, 0.09))


def rib_cage(g, p, below, lateral, under) -> np.ndarray:
    """Posterior arcs, which fall to the sides, and fainter anterior ones, which fall to the middle."""
    turn, a2 = 6.2832 / p.rib_space, g.a * g.a
    back = np.cos((g.y - p.rib_drop * a2 + 0.12 * g.a) * turn + p.rib_phase)
    front = np.cos((g.y + 0.5 * g.a - 0.2 * a2) * (turn * 0.92) + 2 * p.rib_phase)
    arcs = np.maximum(back + 0.15, 0) + 0.7 * g.a * np.maximum(front, 0)
    wall = lateral + 0.015 - g.a
    inside = soft(np.minimum(np.minimum(wall + 0.015, g.a - 0.06), below + 0.02), 0.04)
    along = bump(wall, 0.02) * soft(below - 0.3, 0.2)  # at the wall the beam runs along the ribs
    return p.rib_light * (arcs * inside * (1 - 0.6 * under) + 0.7 * along)


def shoulders(g, p) -> np.ndarray:
    """Clavicles, shallow S-curves from the breastbone; edges of the shoulder blades; heads of the arms."""
    out = g.a - 0.07
    height = g.y - p.clavicle + out * (p.clavicle_rise - 0.18 + (0.85 - 1.15 * out) * out)
    clavicle = soft(np.minimum(np.minimum(0.022 - np.abs(height), out), 0.60 - out), g.edge)
    x, y = (g.a - 0.74 - 0.14 * g.y) * (1 / 0.022), (g.y + 0.42) * (1 / 0.13)
    blade = np.exp((x * x + y * y * y * y) * -0.5)
    x, y = g.a - 0.87, g.y - p.shoulder - 0.14
    head = soft(0.0144 - x * x - y * y, 0.01)
    return 0.15 * clavicle + 0.05 * blade + 0.10 * head


def spine(g, p) -> np.ndarray:
    """Vertebrae with their discs, and the windpipe's dark air before them."""
    bone = soft(p.spine - g.a, 0.03) * (0.13 + 0.025 * np.cos(g.y * 52 + p.rib_phase))
    return bone - 0.13 * soft(np.minimum(0.036 - np.abs(g.x + 0.01), -0.24 - g.y), 0.025)


def heart(g, p) -> np.ndarray:
    """Mask of mediastinum and heart. Left border: aortic knob, then the ventricle down to its apex."""
    y = g.y - p.heart_y
    upper = p.mediastinum + p.widening * bump(g.y + 0.36, 0.2)
    slope = np.where(y < 0, 1 / 0.24, 1 / 0.22).astype(np.float32)
    left = upper + p.knob * bump(g.y + 0.27, 0.06) + (p.heart - p.mediastinum) * bump(y * slope, 1)
    right = upper + (p.atrium - p.mediastinum) * bump(y + 0.09, 0.17)
    return soft(np.where(g.left > 0, left, right) - g.a, 1.3 * g.edge)


def vessels(g, p) -> np.ndarray:
    """Hila, and vessels that fan out from them, divide and fade; mirrored, so both sides at once."""
    x, y = g.a - 0.16, g.y - p.hilum + 0.04 * g.left
    r2 = x * x + y * y
    r = np.sqrt(r2)
    q = y / (r + x + 0.02)                         # tangent of half the angle, cheaper than arctan2
    angle = 2 * q / (1 + 0.28 * q * q)
    twist = p.branch + 0.8 * g.left + 0.7 * np.sin(8 * r + p.branch)
    near = np.exp(3.5 * np.cos(6 * angle + twist) - 3.5) * bump(r - 0.17, 0.09)
    far = np.exp(2.5 * np.cos(12 * angle + 2 * twist + 1) - 2.5) * bump(r - 0.36, 0.13)
    return p.vessels * (near + 0.55 * far) + 0.22 * np.exp(x * x * -130 - y * y * 45)


def abdomen(g, p, under) -> np.ndarray:
    """Dense under the diaphragm, but for the stomach's bubble of air under the left dome."""
    x, y = (g.x - p.bubble_x) / (1.6 * p.bubble), (g.y - p.dome_left - 0.11) / (0.8 * p.bubble)
    bubble = soft(1 - x * x - y * y, 0.6)
    return under * (0.16 - 0.28 * bubble)


def breasts(g, p) -> np.ndarray:
    """Soft shadows over the lower lungs, with a crisper lower edge."""
    x, y = (g.a - 0.42) / 0.34, (g.y - p.breast_y) / 0.27
    return p.breasts * soft(1 - x * x - y * y, 0.4) * (0.6 + y)


# What findings do to a film. air: share of lung that still holds air; fan: its vessels; density: the rest.
# p: the patient's measures; f: the finding; side: 1 in the half or halves that have it, else 0.

def effusion(film, g, p, f, side):
    """Fluid in the costophrenic angle, its surface rising along the wall (the meniscus)."""
    level = p.dome + 0.10 - 0.50 * f.size
    rise = (0.20 + 0.08 * f.size) * np.exp((g.a - np.maximum(g.lateral, g.a)) * 9)
    fluid = side * soft(g.y - level + rise, 0.05)
    film.density += 0.14 * fluid * film.air
    film.air *= 1 - 0.97 * fluid


def atelectasis(film, g, p, f, side):
    """Plates of collapsed lung above a raised dome (plan() raises it)."""
    for number in range(1 + (f.size > 0.5)):
        middle = p.dome - 0.12 - 0.10 * number + (0.3 - 0.5 * f.seed) * (g.a - 0.42)
        length = soft(0.17 + 0.05 * f.size - np.abs(g.a - 0.44), 0.04)
        film.air *= 1 - (0.6 + 0.25 * f.size) * side * length * bump(g.y - middle, 0.03 + 0.012 * f.size)


def pneumothorax(film, g, p, f, side):
    """Air without vessels between the wall and the edge of the lung, which stands as a fine line."""
    below, lateral, _ = lung_walls(g, p, 0.12 + 0.24 * f.size)
    edge = np.minimum(lateral - g.a, below)
    lost = side * (1 - soft(edge, g.edge))
    film.fan *= 1 - lost
    film.air *= 1 + 0.22 * lost - 0.25 * side * (1 - lost)
    film.air *= 1 - 0.35 * side * bump(edge, max(0.012, 0.6 * g.edge))


def thickening(film, g, p, f, side):
    """A rind of soft tissue along the upper wall and over the apex."""
    below, lateral, _ = lung_walls(g, p, 0.11 + 0.09 * f.size)
    edge = np.minimum(lateral - g.a, below) + 0.012 * np.sin(16 * g.y + 6 * f.seed)
    film.air *= 1 - 0.85 * side * (1 - soft(edge, 0.03)) * soft(0.22 - g.y, 0.12)


LOBE = {"upper": (0.42, -0.34), "lower": (0.50, 0.10)}  # a, y


def consolidation(film, g, p, f, side):
    """A dense patch that ends straight at the fissure: below in an upper lobe, above in a lower one."""
    a, y = LOBE[f.place]
    fissure = (g.y - y + 0.10 * (g.a - a)) * (-1 if f.place == "upper" else 1) + 0.09 + 0.05 * f.size
    x, y = (g.a - a) / (0.16 + 0.10 * f.size), (g.y - y) / (0.15 + 0.11 * f.size)
    patch = soft(1 - x * x - y * y, 0.9) * soft(fissure, 1.3 * g.edge)
    film.air *= 1 - (0.85 - 0.06 * np.cos(30 * g.a + 9 * f.seed)) * side * patch


def pneumonia(film, g, p, f, side):
    """Four to six blurred patches in one lobe."""
    a, y = LOBE[f.place]
    patches = 0.0
    for number in range(4 + int(2.9 * f.size)):
        turn = 6.28 * f.seed + 2.4 * number
        reach = 0.05 + 0.034 * number
        dx, dy = g.a - float(a + reach * np.cos(turn)), g.y - float(y + reach * np.sin(turn))
        patches = patches + np.exp((dx * dx + dy * dy) * (-1 / (0.0048 + 0.004 * f.size)))
    film.air *= 1 - side * (1 - np.exp(-(0.75 + 0.3 * f.size) * patches))


def lesion(film, g, p, f, side):
    """A round nodule; from a radius of 0.15 on a mass."""
    a, y = LOBE[f.place]
    x, y = g.a - a + 0.16 * (f.seed - 0.5), g.y - y + 0.16 * ((f.seed * 13) % 1 - 0.5)
    radius = 0.08 + 0.10 * f.size
    film.density += 0.36 * side * soft(radius - np.sqrt(x * x + y * y), max(0.02, g.edge))


def edema(film, g, p, f, side):
    """Haze around both hila, in which the vessels blur."""
    x, y = g.a - 0.26, g.y - 0.02
    haze = np.exp(x * x * -13 - y * y * 5)
    film.air *= 1 - (0.45 + 0.35 * f.size) * haze
    film.fan *= 1 - 0.5 * haze


def tube(g, ends, width) -> np.ndarray:
    """A curved line (Bezier, as six straight pieces) between the first and last of three points."""
    t = np.linspace(0, 1, 7)[:, None]
    start, middle, end = np.array(ends)
    bends = ((1 - t)**2 * start + 2 * t * (1 - t) * middle + t * t * end).tolist()
    nearest = np.float32(9)
    for (x0, y0), (x1, y1) in zip(bends[:-1], bends[1:], strict=True):
        dx, dy = x1 - x0, y1 - y0
        x, y = g.x - x0, g.y - y0
        along = np.clip((x * dx + y * dy) * (1 / (dx * dx + dy * dy)), 0, 1)
        x, y = x - along * dx, y - along * dy
        nearest = np.minimum(nearest, x * x + y * y)
    return soft(width - np.sqrt(nearest), g.edge)


def device(film, g, p, f, side):
    """A pacemaker and its leads, a port, a central line, or an endotracheal tube."""
    sign, shift = (1 if f.side == "left" else -1), 0.06 * (f.seed - 0.5)
    x, y = sign * (0.50 + shift), -0.42 + shift
    wire = max(0.018, 1.0 * g.edge)
    if f.place == "tube":
        metal = tube(g, ((-0.01, -1.3), (0, -0.9), (-0.01, -0.36 + shift)), 1.3 * wire)
    elif f.place == "line":
        metal = tube(g, ((sign * 0.24, -1.2), (sign * 0.2 - 0.07, -0.45), (-0.11, -0.06 + shift)), wire)
    elif f.place == "port":
        metal = tube(g, ((x, y), (sign * 0.12 - 0.1, -1.0), (-0.11, -0.04)), wire)
    else:
        metal = np.maximum(tube(g, ((x, y), (sign * 0.2 - 0.1, -0.95), (-0.10, -0.10)), wire),
                           tube(g, ((-0.10, -0.10), (-0.08, 0.28), (0.30, p.heart_y + 0.04)), wire))
    if f.place in ("pacemaker", "port"):
        wide, high = (0.15, 0.12) if f.place == "pacemaker" else (0.09, 0.09)
        u, v = ((g.x - x) / wide)**2, ((g.y - y) / high)**2
        metal = np.maximum(metal, soft(1 - u * u - v * v, 0.6))
    film.metal = np.maximum(film.metal, metal)


DRAW = {"Pleural Effusion": effusion, "Atelectasis": atelectasis, "Pneumothorax": pneumothorax,
        "Pleural Other": thickening, "Consolidation": consolidation, "Pneumonia": pneumonia,
        "Lung Lesion": lesion, "Edema": edema, "Support Devices": device}


def plan(u: list[float], findings: list[Finding]) -> SimpleNamespace:
    """Uniforms and findings -> one patient's measures; those findings that change a measure do so here."""
    p = SimpleNamespace(**{name: low + (high - low) * x
                           for (name, (low, high)), x in zip(RANGES.items(), u, strict=True)})
    p.widening, p.dome_right, p.dome_left = 0.0, p.dome, p.dome + p.dome_step
    for f in findings:
        if f.name == "Cardiomegaly":
            p.heart, p.atrium = p.heart + 0.10 + 0.12 * f.size, p.atrium + 0.04 + 0.07 * f.size
        if f.name == "Enlarged Cardiomediastinum":
            p.widening = 0.08 + 0.10 * f.size
        if f.name == "Atelectasis":
            p.dome_right -= (0.05 + 0.05 * f.size) * (f.side != "left")
            p.dome_left -= (0.05 + 0.05 * f.size) * (f.side != "right")
    return p


def tone(density: np.ndarray, p) -> np.ndarray:
    """Density -> grey in [0, 1]: the film's S-curve, with this exposure's level, contrast and gamma."""
    straight = (density - 0.60 + p.level) * (3.6 * p.contrast)
    return np.exp(np.log(1 + np.exp(-straight)) * -p.gamma)


def draw(size: int, psi: list[float], u: list[float], findings: list[Finding]) -> np.ndarray:
    """One film without noise -> h w, grey in [0, 1]"""
    findings = [f for f in findings if f.shown]
    g, p = grid(size, psi), plan(u, findings)
    below, g.lateral, medial = lung_walls(g, p)
    under, middle = below_diaphragm(g, p), heart(g, p)
    lung = soft(np.minimum(np.minimum(g.lateral - g.a, g.a - medial), below), g.edge)
    film = SimpleNamespace(air=lung * (1 - under) * (1 - 0.93 * middle), fan=vessels(g, p),
                           metal=np.zeros_like(lung))
    film.density = body(g, p) + shoulders(g, p) + spine(g, p) + 0.12 * middle * (1 - under)
    film.density += rib_cage(g, p, below, g.lateral, under) + abdomen(g, p, under)
    if p.breasts > 0:
        film.density += breasts(g, p)
    for f in findings:
        if f.name in DRAW:
            DRAW[f.name](film, g, p, f, {"left": g.left, "right": 1 - g.left}.get(f.side, np.float32(1)))
    depth = p.depth * (0.72 + 0.28 * soft(g.lateral - g.a - 0.1, 0.2))
    grey = tone(film.density + 0.42 * film.metal - film.air * (depth - film.fan), p)
    return HEADROOM * grey + (1 - HEADROOM) * film.metal


# ------------------------------------------------------------------------------------------------------------

def grain(seed: int, index: int, size: int) -> np.ndarray:
    """White noise of standard deviation 1, h w: four random bytes add up almost to a Gaussian."""
    hashes = hashed(seed, np.array([index]), GRAIN, (size * size + 1) // 2)
    one, two, three, four = hashes.view(np.uint8)[0, : 4 * size * size].reshape(4, size, size)
    return (np.add(one, two, dtype=np.float32) + three + four - 510) * (3 / (256**2 - 1))**0.5


def render(index, seed: int = 0, size: int = 64, faults: bool = False) -> Tensor:
    """index: b numbers >= 0 (list, range or LongTensor) -> b 1 h w uint8, over 1,000 a second at 64 px."""
    index = np.asarray(index, dtype=np.int64)
    films = np.empty((len(index), 1, size, size), np.uint8)
    bodies = uniform(seed, index, ANATOMY, len(RANGES)).tolist()
    psi = postures(seed, index, BAD_POSTURE * faults).tolist()
    for film, number, u, pose, found in zip(films, index, bodies, psi, patients(seed, index), strict=True):
        grey = draw(size, pose, u, found)
        film[0] = np.clip((grey + NOISE * grain(seed, number, size)) * 255 + 0.5, 0, 255)
    return torch.from_numpy(films)


def describe(index, seed: int = 0, faults: bool = False) -> Phantoms:
    """index: b numbers >= 0 (list, range or LongTensor) -> what b films show and are said to, 10,000 a s."""
    index = np.asarray(index, dtype=np.int64)
    found = patients(seed, index)
    reports, labels = read_out(seed, index, faults, found)
    truth = torch.tensor([truth_of(findings) for findings in found], dtype=torch.float32)
    posture = torch.from_numpy(postures(seed, index, BAD_POSTURE * faults)).float()
    return Phantoms(reports, labels, truth.view(len(index), len(LABELS)), posture)
