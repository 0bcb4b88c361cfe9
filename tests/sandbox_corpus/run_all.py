"""Run the whole corpus with some layers switched off and print what was not held, as JSON.

python -m sandbox_corpus.run_all [LAYER,LAYER…]     (run from tests/)
"""

from __future__ import annotations

import json
import sys

from PIL import Image

from distil.sandbox.sandbox import Sandbox

from .attacks import ATTACKS
from .benign import BENIGN
from .world import World

ATTACK_BOUNDS = {"timeout_seconds": 3.0, "memory_bytes": 256 * 1024**2}
TIME_BOUNDS = {"timeout_seconds": 0.3, "memory_bytes": 256 * 1024**2}


def picture(mode: str = "RGB") -> Image.Image:
    """A small picture with some structure, in a mode."""
    base = Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * turn) for turn in range(3)]).resize(
        (64, 48)
    )
    if mode == "I;16":
        return base.convert("L").convert("I").convert("I;16")
    return base.convert(mode)


def run_all(disable: tuple[str, ...] = ()) -> dict[str, object]:
    """Every attack and every benign program under the given layers."""
    world = World()
    got_through, failed = [], []
    with (
        Sandbox(**ATTACK_BOUNDS, _disable=disable) as usual,  # type: ignore[arg-type]
        Sandbox(**TIME_BOUNDS, _disable=disable) as hurried,  # type: ignore[arg-type]
        Sandbox(_disable=disable) as roomy,
    ):
        for attack in ATTACKS:
            sandbox = hurried if attack.hangs else usual
            if world.reaches_goal(attack, sandbox, picture()):
                got_through.append(f"{attack.category}: {attack.name}")
        for program in BENIGN:
            result = roomy.run(program.code, picture(program.mode))
            if not result.success or program.stdout not in (None, result.stdout):
                failed.append(f"{program.name}: {result.message} {result.stdout!r}")
        levels = usual.layers.as_dict()
    world.close()
    return {
        "levels": levels,
        "attacks": len(ATTACKS),
        "got_through": got_through,
        "benign": len(BENIGN),
        "failed": failed,
    }


if __name__ == "__main__":
    layers = tuple(filter(None, sys.argv[1].split(","))) if len(sys.argv) > 1 else ()
    print(json.dumps(run_all(layers), indent=1))
