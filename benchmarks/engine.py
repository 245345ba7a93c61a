"""What the engine costs: images a second through it, with all places taken, beside `generate` in batches of that size.

    python benchmarks/engine.py [--model tiny] [--slots 4] [--steps 20] [--rounds 5]

Both run the same program. They take turns, so that what else the machine does is the same for both; medians of rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from jaxl.backend import open_backend
from jaxl.engine import Engine, Request

PROMPT = "a red apple on a blue background, flat style"
BATCHES = 3  # of each round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    backend = open_backend(args.model, slots=args.slots, chunks=1)

    def offline() -> None:
        for batch in range(BATCHES):
            backend.pipe.generate(
                backend.params, PROMPT, steps=args.steps, num_images=args.slots, seed=batch * args.slots
            )

    with Engine(backend) as engine:

        def online() -> None:
            arguments = {"prompt": PROMPT, "steps": args.steps, "num_images": args.slots}
            tickets = [engine.submit(Request({**arguments, "seed": i * args.slots})) for i in range(BATCHES)]
            for ticket in tickets:
                ticket.future.result()

        times: dict[Callable[[], None], list[float]] = {offline: [], online: []}
        for run in times:
            run()
        for number in range(args.rounds):
            for run in list(times)[:: 1 if number % 2 else -1]:
                began = time.perf_counter()
                run()
                times[run].append(time.perf_counter() - began)
        stats = engine.stats()
    images = BATCHES * args.slots
    seconds = {run: statistics.median(taken) for run, taken in times.items()}
    for run, taken in times.items():
        print(f"{run.__name__:<8} {images / seconds[run]:.3f} images/s  (least {images / max(taken):.3f})")
    print(f"engine   {seconds[online] / seconds[offline]:.3f} of generate's time")
    print(f"outside of calls: {1 - stats.busy_seconds / sum(times[online]) * args.rounds / (args.rounds + 1):.1%}")


if __name__ == "__main__":
    main()
