# SPDX-License-Identifier: Apache-2.0
"""The demo model's world: a flat court with floor, backboard, hoop and net, and one or two balls.

A clip is drawn from a seed alone: the seed chooses colour, action, light, camera offset, ball radius, throw and
wording. The ball is thrown with random speeds, integrated at 480 Hz, and the throw is taken only if what happened
(which surfaces were hit, in which order) is what the action's name says; so a path is never scripted.

Lengths are in court units: 1.5 units are the width of the picture, at every size, so the ball covers the same share
of it. x grows to the right, y upwards, the origin is the lower left corner of a 3:2 picture; a square picture shows
more floor and more sky. A second is a second; 33 frames at 16 per second are two.

numpy only. `sample(seed, width, height)` gives one clip, `HELD_OUT` lists what no network may train on.
"""
import math
from dataclasses import dataclass

import numpy as np

FRAMES = 33  # 4n + 1, what the autoencoder asks for
FPS = 16
SUBSTEPS = 30  # 480 Hz
VIEW_WIDTH = 1.5

# Light enough that a ball that clears the rim on its way to the board and back needs no more than 0.10 units a frame;
# at 2.6 it needs 0.14, six tenths of its diameter, and a small network draws it as a smear.
GRAVITY = 1.7  # units/s^2
FLOOR_RESTITUTION = 0.78
FLOOR_GRIP = 0.50  # share of the sideways speed that survives a bounce
BOARD_RESTITUTION = 0.70
RIM_RESTITUTION = 0.50
ROLLING_DRAG = 0.06  # 1/s
NET_DRAG = 7.0  # 1/s, while the ball is inside the net

RADIUS = 0.118  # of an average ball, with its outline
FLOOR = 0.085
BOARD_FACE, BOARD_BACK = 1.320, 1.390
BOARD_LOW, BOARD_HIGH = 0.58, 0.95
RIM_LEFT, RIM_RIGHT, RIM_Y, RIM_THICK = 0.955, 1.265, 0.59, 0.017
NET_LOW = 0.440
CAMERA = 0.035  # largest offset, each way

COLOURS = {  # what a lamp of white light would show
    "red": (222, 32, 32),
    "orange": (255, 132, 0),
    "yellow": (255, 232, 40),
    "green": (36, 176, 50),
    "blue": (30, 74, 240),
    "purple": (158, 40, 208),
    "white": (255, 255, 255),
}
ACTIONS = ("backboard", "hoop", "bounce", "left", "right", "two")


@dataclass(frozen=True)
class Light:
    sky_high: tuple  # colour at the top of the picture
    sky_low: tuple  # colour above the floor
    floor: tuple
    tint: tuple  # what the light makes of white


LIGHTS = {
    "day": Light((84, 158, 214), (146, 200, 226), (128, 120, 112), (1.0, 1.0, 1.0)),
    "sunset": Light((84, 48, 112), (196, 92, 104), (92, 62, 66), (1.0, 0.94, 0.88)),
    "night": Light((10, 14, 38), (26, 36, 72), (40, 42, 54), (0.84, 0.90, 1.0)),
}
OUTLINE = (16, 14, 20)
BOARD, POLE, RIM, NET = (122, 142, 156), (70, 74, 84), (150, 52, 30), (214, 214, 206)

# Colour, action, light: never in a training clip, neither the autoencoder's nor the transformer's. Each action meets
# each light once here, each colour twice or more, and every pair of the three still occurs in training.
HELD_OUT = (
    ("red", "backboard", "day"), ("orange", "backboard", "sunset"), ("yellow", "backboard", "night"),
    ("green", "hoop", "day"), ("blue", "hoop", "sunset"), ("purple", "hoop", "night"),
    ("white", "bounce", "day"), ("red", "bounce", "sunset"), ("orange", "bounce", "night"),
    ("yellow", "left", "day"), ("green", "left", "sunset"), ("blue", "left", "night"),
    ("purple", "right", "day"), ("white", "right", "sunset"), ("red", "right", "night"),
    ("orange", "two", "day"), ("yellow", "two", "sunset"), ("green", "two", "night"),
)

# {a}: the ball with its article; for two balls {a} is the left one and {b} the right one.
PHRASES = {
    "backboard": ("{a} misses the hoop and rebounds off the backboard", "{a} hits the backboard and bounces back",
                  "{a} is thrown against the backboard and rebounds", "{a} rebounds off the backboard"),
    "hoop": ("{a} drops through the hoop", "{a} falls through the net", "{a} goes through the hoop and lands below it",
             "{a} is thrown into the hoop"),
    "bounce": ("{a} bounces on the floor", "{a} is dropped and bounces up and down", "{a} keeps bouncing on the court",
               "{a} falls to the floor and bounces"),
    "left": ("{a} rolls to the left", "{a} rolls left across the floor", "{a} is rolling to the left",
             "{a} is rolling left on the court"),
    "right": ("{a} rolls to the right", "{a} rolls right across the floor", "{a} is rolling to the right",
              "{a} is rolling right on the court"),
    "two": ("two balls bounce, {a} on the left and {b} on the right", "{a} on the left and {b} on the right bounce",
            "{a} bounces on the left while {b} bounces on the right", "{a} and {b} bounce side by side"),
}
LIGHT_PHRASES = {
    "day": ("by day", "in daylight", "on a bright day", "during the day"),
    "sunset": ("at sunset", "in the evening light", "as the sun sets", "at dusk"),
    "night": ("at night", "in the dark", "under the night sky", "late at night"),
}


def describe(colours, action, light, phrase=0, light_phrase=0, light_first=False):
    """One wording. `colours` has one name, or two (left, right) for the action "two"."""
    balls = [("an " if c[0] in "aeiou" else "a ") + c + " ball" for c in colours]
    said = PHRASES[action][phrase % 4].format(a=balls[0], b=balls[-1])
    when = LIGHT_PHRASES[light][light_phrase % 4]
    return f"{when}, {said}" if light_first else f"{said}, {when}"


# ---------------------------------------------------------------------------------------------------------------------
# motion


class Ball:
    """Position, velocity and what has been hit so far; `radius` in units."""

    def __init__(self, x, y, vx, vy, radius):
        self.x, self.y, self.vx, self.vy, self.radius = x, y, vx, vy, radius
        self.floor = self.board = self.rim = self.through = 0  # hits, and passes down through the hoop
        self.rolling = False

    def step(self, dt):
        if self.rolling:
            self.vx *= 1 - ROLLING_DRAG * dt
            self.x += self.vx * dt
            return
        before = self.y
        self.x += self.vx * dt
        self.y += self.vy * dt - 0.5 * GRAVITY * dt * dt
        self.vy -= GRAVITY * dt
        if self.y < FLOOR + self.radius and self.vy < 0:
            self._meet_floor()
        if (self.x + self.radius > BOARD_FACE and self.vx > 0 and self.x < BOARD_BACK
                and BOARD_LOW - 0.02 < self.y < BOARD_HIGH):
            self.x = BOARD_FACE - self.radius
            self.vx *= -BOARD_RESTITUTION
            self.board += 1
        if before >= RIM_Y > self.y and RIM_LEFT < self.x < RIM_RIGHT:
            self.through += 1
        if self.y > RIM_Y - self.radius:
            self._meet_rim(RIM_LEFT)
            self._meet_rim(RIM_RIGHT)
        elif self.through and self.y > NET_LOW - 0.5 * self.radius:  # the net brakes, and draws the ball to its axis
            self.vx += (20 * (0.5 * (RIM_LEFT + RIM_RIGHT) - self.x) - 14 * self.vx) * dt
            self.vy -= NET_DRAG * self.vy * dt

    def _meet_floor(self):
        self.y = FLOOR + self.radius
        self.floor += 1
        self.vx *= FLOOR_GRIP
        self.vy *= -FLOOR_RESTITUTION
        if self.vy < 0.12:
            self.rolling, self.vy = True, 0.0

    def _meet_rim(self, x):
        dx, dy = self.x - x, self.y - RIM_Y
        distance = math.hypot(dx, dy)
        if distance >= self.radius:
            return
        nx, ny = dx / distance, dy / distance
        speed = self.vx * nx + self.vy * ny
        if speed < 0:
            self.vx -= (1 + RIM_RESTITUTION) * speed * nx
            self.vy -= (1 + RIM_RESTITUTION) * speed * ny
            self.rim += 1


def fly(ball):
    """The path [FRAMES, 2], or None as soon as the ball leaves what every camera sees."""
    if ball.y < FLOOR + ball.radius:
        return None
    path = np.empty((FRAMES, 2))
    dt = 1 / (FPS * SUBSTEPS)
    margin = ball.radius + CAMERA
    for frame in range(FRAMES):
        path[frame] = ball.x, ball.y
        if not (margin <= ball.x <= VIEW_WIDTH - margin and ball.y <= 1 - margin):
            return None
        for _ in range(SUBSTEPS):
            ball.step(dt)
    return path


def aim(x, y, vx, vy, seconds, radius):
    """The ball that, in free flight, is at (x, y) with that velocity after `seconds`."""
    return Ball(x - vx * seconds, y - vy * seconds - 0.5 * GRAVITY * seconds ** 2, vx, vy + GRAVITY * seconds, radius)


def throw(action, rng, radius):
    """A ball as the action might begin. The ranges are narrow: a small network has to learn one kind of throw an
    action, and a wide choice of them ends as two half balls."""
    u = rng.uniform
    low = FLOOR + radius
    if action == "backboard":
        return aim(BOARD_FACE - radius, u(0.78, 0.82), u(1.05, 1.20), u(0.00, 0.20), u(0.45, 0.55), radius)
    if action == "hoop":
        axis = 0.5 * (RIM_LEFT + RIM_RIGHT)
        return aim(axis + u(-0.03, 0.01), RIM_Y, u(0.40, 0.55), u(-0.95, -0.82), u(0.58, 0.68), radius)
    if action == "bounce":
        return Ball(u(0.28, 0.56), u(0.54, 0.64), u(-0.08, 0.08), u(-0.10, 0.10), radius)
    speed = u(0.48, 0.56)
    ball = Ball(u(0.17, 0.25), low, speed, 0.0, radius) if action == "right" else \
        Ball(u(1.18, 1.25), low, -speed, 0.0, radius)
    ball.rolling = True
    return ball


def happened(action, ball, path):
    if action == "backboard":
        return ball.board == 1 and not ball.through and not ball.rim and path[-1, 0] < 0.85 and ball.floor >= 1
    if action == "hoop":
        axis = 0.5 * (RIM_LEFT + RIM_RIGHT)
        return (ball.through == 1 and not ball.board and not ball.rim and ball.floor >= 1
                and abs(path[-1, 0] - axis) < 0.06)
    if action == "bounce":
        return ball.floor >= 2 and not ball.board and not ball.rim and path[:, 0].max() < 0.80
    return abs(path[-1, 0] - path[0, 0]) > 0.75


def move(action, rng, radii):
    """Paths [balls, FRAMES, 2] in which the action happens."""
    while True:
        if action != "two":
            ball = throw(action, rng, radii[0])
            path = fly(ball)
            if path is not None and happened(action, ball, path):
                return path[None]
            continue
        pair = [throw("bounce", rng, radius) for radius in radii]
        pair[0].x, pair[1].x = rng.uniform(0.19, 0.28), rng.uniform(0.64, 0.72)
        paths = [fly(ball) for ball in pair]
        if any(p is None or not happened("bounce", b, p) for b, p in zip(pair, paths)):
            continue
        if np.min(paths[1][:, 0] - paths[0][:, 0]) > sum(radii) + 0.10:
            return np.stack(paths)


# ---------------------------------------------------------------------------------------------------------------------
# picture


class Canvas:
    """A float picture with shapes given in court units; edges are one pixel wide, by the distance to the shape."""

    def __init__(self, width, height, camera):
        self.scale = width / VIEW_WIDTH
        view = height / self.scale
        self.lift = 0.4 * (view - 1) - camera[1]
        columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        self.x = (columns / self.scale + camera[0]).astype(np.float32)
        self.y = ((height - rows) / self.scale - self.lift).astype(np.float32)

    def row_of(self, y):
        return self.y.shape[0] - (y + self.lift) * self.scale

    def column_of(self, x):
        return (x - self.x[0, 0]) * self.scale + 0.5

    def cover(self, distance):
        """Share of each pixel inside a shape, from signed distances in units."""
        return np.clip(0.5 - distance * self.scale, 0, 1)

    def box(self, left, right, low, high):
        across, along = np.maximum(left - self.x, self.x - right), np.maximum(low - self.y, self.y - high)
        return self.cover(np.maximum(across, along))

    def line(self, x0, y0, x1, y1, thick):
        dx, dy = x1 - x0, y1 - y0
        t = np.clip(((self.x - x0) * dx + (self.y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        return self.cover(np.hypot(self.x - x0 - t * dx, self.y - y0 - t * dy) - thick)


def over(picture, colour, alpha):
    """Lays a colour on the picture, in place."""
    picture += (np.asarray(colour, np.float32) - picture) * alpha[..., None]


def rim_arc(canvas, side):
    """Half of the rim seen as a flat ellipse; side 1 is the far half, -1 the near one."""
    middle, half = 0.5 * (RIM_LEFT + RIM_RIGHT), 0.5 * (RIM_RIGHT - RIM_LEFT)
    turns = np.linspace(0, math.pi, 9)
    xs, ys = middle + half * np.cos(turns), RIM_Y + side * 0.022 * np.sin(turns)
    return np.max([canvas.line(xs[i], ys[i], xs[i + 1], ys[i + 1], RIM_THICK) for i in range(8)], axis=0)


def draw_back(canvas, light):
    """Everything behind the ball."""
    tint = np.asarray(light.tint, np.float32)
    top, ground = canvas.y.max(), FLOOR
    share = np.clip((canvas.y - ground) / (top - ground), 0, 1)[..., None]
    picture = np.asarray(light.sky_low, np.float32) * (1 - share) + np.asarray(light.sky_high, np.float32) * share
    over(picture, light.floor, canvas.box(-9, 9, -9, FLOOR))
    over(picture, np.asarray(light.floor) * 1.35, canvas.box(-9, 9, FLOOR - 0.022, FLOOR))
    over(picture, np.asarray(POLE) * tint, canvas.box(1.415, 1.465, FLOOR, 0.78))
    over(picture, np.asarray(POLE) * tint, canvas.box(BOARD_BACK, 1.44, 0.70, 0.75))
    over(picture, OUTLINE, canvas.box(BOARD_FACE, BOARD_BACK, BOARD_LOW, BOARD_HIGH))
    inner = 0.014
    over(picture, np.asarray(BOARD) * tint,
         canvas.box(BOARD_FACE + inner, BOARD_BACK - inner, BOARD_LOW + inner, BOARD_HIGH - inner))
    over(picture, np.asarray(RIM) * tint, canvas.line(RIM_RIGHT, RIM_Y, BOARD_FACE, RIM_Y, RIM_THICK))
    over(picture, np.asarray(RIM) * tint * 0.8, rim_arc(canvas, 1))
    return picture


def front_layers(canvas, light):
    """(colour, alpha) of the net and the near half of the rim, to lay over the ball."""
    tint = np.asarray(light.tint, np.float32)
    half = 0.5 * (RIM_RIGHT - RIM_LEFT)
    middle, thick = 0.5 * (RIM_LEFT + RIM_RIGHT), 0.0085

    def at(share, depth):  # share -1..1 across, depth 0..1 down: the net narrows
        return middle + share * half * (1 - 0.42 * depth), RIM_Y - 0.02 - depth * (RIM_Y - 0.02 - NET_LOW)

    strands = []
    for share in (-0.95, -0.32, 0.32, 0.95):
        strands.append((*at(share, 0), *at(share, 1)))
    for depth in (0.48, 1.0):
        strands.append((*at(-0.95, depth), *at(0.95, depth)))
    net = np.max([canvas.line(*strand, thick) for strand in strands], axis=0)
    return ((np.asarray(NET) * tint, net), (np.asarray(RIM) * tint, rim_arc(canvas, -1)))


def draw_ball(canvas, picture, x, y, radius, colour, tint):
    """The ball and its shadow, in place; only the pixels near it are touched."""
    height = y - radius - FLOOR
    reach = 1.15 * radius
    rows = slice(max(int(canvas.row_of(y + reach)), 0), max(int(canvas.row_of(min(y - reach, FLOOR - 0.08))) + 1, 0))
    columns = slice(max(int(canvas.column_of(x - reach)), 0), int(canvas.column_of(x + reach)) + 2)
    px, py, part = canvas.x[rows, columns], canvas.y[rows, columns], picture[rows, columns]
    wide = radius * (1 - 0.35 * min(height, 1))
    flat = np.hypot((px - x) / wide, (py - FLOOR + 0.040) / 0.030)
    over(part, OUTLINE, np.clip((1 - flat) * 0.030 * canvas.scale + 0.5, 0, 1) * 0.55 * max(1 - height, 0.1))
    distance = np.hypot(px - x, py - y)
    over(part, OUTLINE, canvas.cover(distance - radius))
    base = np.asarray(COLOURS[colour], np.float32) * np.asarray(tint, np.float32)
    over(part, base, canvas.cover(distance - 0.80 * radius))
    shine = np.hypot(px - x + 0.28 * radius, py - y - 0.28 * radius)
    over(part, (255, 255, 255), np.clip(1.2 - shine / (0.26 * radius), 0, 1) * 0.35)
    dim = np.clip((distance - 0.45 * radius) / (0.5 * radius), 0, 1) * (py < y) * canvas.cover(distance - 0.80 * radius)
    over(part, base * 0.72, dim * 0.6)


# ---------------------------------------------------------------------------------------------------------------------
# clips


@dataclass
class Clip:
    frames: np.ndarray  # [FRAMES, height, width, 3] uint8
    moving: np.ndarray  # [FRAMES, height, width] bool: differs from the empty court
    prompt: str
    colours: tuple  # one name, or left and right
    action: str
    light: str
    paths: np.ndarray  # [balls, FRAMES, 2] centres in pixels: column, row


def render(seed, width, height, colours, action, light, prompt=None):
    """The clip of one seed. The same arguments give the same bytes."""
    rng = np.random.default_rng([int(seed), 1])
    radii = RADIUS * rng.uniform(0.96, 1.04, size=len(colours))
    camera = rng.uniform(-CAMERA, CAMERA, size=2)
    wording = rng.integers(0, 4, size=2)
    light_first = bool(rng.random() < 0.3)
    paths = move(action, rng, [float(r) for r in radii])
    canvas = Canvas(width, height, camera)
    back, fronts = draw_back(canvas, LIGHTS[light]), front_layers(canvas, LIGHTS[light])

    def finish(picture):
        for colour, alpha in fronts:
            over(picture, colour, alpha)
        return np.clip(picture + 0.5, 0, 255).astype(np.uint8)

    still = finish(back.copy()).astype(np.int16)
    frames = np.empty((FRAMES, height, width, 3), np.uint8)
    for frame in range(FRAMES):
        picture = back.copy()
        for path, radius, colour in zip(paths, radii, colours):
            draw_ball(canvas, picture, *path[frame], radius, colour, LIGHTS[light].tint)
        frames[frame] = finish(picture)
    moving = (np.abs(frames.astype(np.int16) - still) > 6).any(axis=-1)
    pixels = np.stack([canvas.column_of(paths[..., 0]), canvas.row_of(paths[..., 1])], axis=-1)
    if prompt is None:
        prompt = describe(colours, action, light, wording[0], wording[1], light_first)
    return Clip(frames, moving, prompt, tuple(colours), action, light, pixels)


def combinations(held_out):
    """Every (colour, action, light) that is, or is not, in HELD_OUT, in a fixed order."""
    return [c for c in ((colour, action, light) for colour in COLOURS for action in ACTIONS for light in LIGHTS)
            if (c in HELD_OUT) == held_out]


def choose(seed, held_out=False):
    """(colours, action, light) of a seed. The right one of two balls must not be held out there either."""
    rng = np.random.default_rng([int(seed), 0])
    options = combinations(held_out)
    colour, action, light = options[rng.integers(len(options))]
    if action != "two":
        return (colour,), action, light
    others = [c for c in COLOURS if c != colour and (c, action, light) not in HELD_OUT]
    return (colour, others[rng.integers(len(others))]), action, light


def sample(seed, width, height, held_out=False):
    """A clip whose everything follows from the seed."""
    return render(seed, width, height, *choose(seed, held_out))
