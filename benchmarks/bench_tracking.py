"""What tracking costs: a prediction and a training step with and without it, and a store with 5 or 500 runs.

    python benchmarks/bench_tracking.py cost MODEL IMAGE
    python benchmarks/bench_tracking.py step
    python benchmarks/bench_tracking.py runs [--browser]

`cost` predicts an image some times in one process. `step` takes training steps of a Mask R-CNN (256 x 256, batch 2),
logs an epoch as `train` does into a new SQLite store, and says what share of the steps' time that is. `runs` fills a
store with trainings and evaluations, and times what reads it; with `--browser`, MLflow's list in Chromium, too.
"""

import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

REPEATS = 7
STEPS_PER_EPOCH = 50


def timed(action, repeats=REPEATS):
    """Return the median seconds of an action, after one call that is not counted."""
    action()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def cost(model, image, folder):
    from clearmargin.predict import predict
    from clearmargin.tracking.sending import send_waiting

    def run(track):
        return lambda: predict(Path(image), folder / "out", model=Path(model), track=track)

    without, with_run = timed(run(False)), timed(run(True))
    print(f"predict: {without:.3f} s without a run, {with_run:.3f} s with one that waits")
    start = time.perf_counter()
    sent = send_waiting()
    print(
        f"sending {len(sent.runs)} runs, MLflow's start and a new store: {time.perf_counter() - start:.1f} s"
    )


def step(folder):
    import torch

    from clearmargin.networks import build_network, network_config
    from clearmargin.networks.network import Targets
    from clearmargin.tracking.run import TrackedRun

    network = build_network(
        network_config({"network": "mask_rcnn"}), classes=1, channels=1, pretrained=False
    ).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    masks = torch.zeros(4, 256, 256, dtype=torch.bool)
    for k in range(4):
        masks[k, 40 * k + 10 : 40 * k + 40, 60:120] = True
    boxes = torch.tensor([[60.0, 40.0 * k + 10, 120.0, 40.0 * k + 40] for k in range(4)])
    targets = Targets(labels=torch.ones(4, dtype=torch.int64), boxes=boxes, masks=masks)

    def take():
        losses = network.losses(torch.rand(2, 1, 256, 256), [targets, targets])
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()

    seconds = timed(take)
    with TrackedRun(name="cost") as run:

        def log():
            now = time.time_ns()
            run.log_metrics({f"train/number {k}": float(now % 1000) for k in range(20)}, step=now % 10_000)

        def draw():
            run.log_image("validation 1", np.zeros((512, 512, 3), np.uint8), step=time.time_ns() % 10_000)

        numbers, picture = timed(log), timed(draw)
    epoch = STEPS_PER_EPOCH * seconds
    print(f"a step: {seconds:.3f} s; 20 numbers: {1000 * numbers:.0f} ms; a picture: {1000 * picture:.0f} ms")
    share = 100 * (numbers + 2 * picture) / epoch
    print(f"20 numbers and 2 pictures for {STEPS_PER_EPOCH} steps: {share:.2f} % of the steps")


def fill(client, experiment, runs):
    """Make trainings and evaluations, half of each, as large as ours."""
    from mlflow.entities import Metric, Param, RunTag

    training = ""
    for k in range(runs):
        verb = "evaluate" if k % 2 else "train"
        tags = {"verb": verb, "software": "clearmargin", "clearmargin.spool": f"{k:032x}"}
        tags |= {"training": training, "mlflow.parentRunId": training} if verb == "evaluate" else {}
        run_id = client.create_run(experiment, run_name=f"{verb}-{k}", tags=tags).info.run_id
        training = training if verb == "evaluate" else run_id
        now = int(time.time() * 1000)
        metrics = [
            Metric(f"headline/{n}", (k % 10) / 10, now, 0)
            for n in ("ap50", "pq", "semantic_dice", "nsd", "miss_rate")
        ]
        if verb == "train":
            metrics += [Metric(f"train/loss{n}", 1 / (s + 1), now, s) for n in range(8) for s in range(20)]
        client.log_batch(
            run_id, metrics=metrics, params=[Param(f"model.option{n}", str(n)) for n in range(70)]
        )
        client.log_batch(run_id, tags=[RunTag("mlflow.note.content", "worst cases " * 50)])
        client.set_terminated(run_id)
    return run_id


def many(folder, browser):
    from clearmargin import runs
    from clearmargin.tracking.review import runs_page, serving
    from clearmargin.tracking.run import TrackedRun
    from clearmargin.tracking.store import experiment_id, open_client

    for number in (5, 500):
        place = folder / str(number)
        (place / "mlflow").mkdir(parents=True)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}/mlflow/mlflow.db"
        client = open_client()
        last = fill(client, experiment_id(client), number)
        name = client.get_run(last).info.run_name

        def begin_and_end():
            with TrackedRun(name="one more"):
                pass

        figures = {
            "load by id": timed(partial(runs.load, last)),
            "load by name": timed(partial(runs.load, name)),
            "load by spool": timed(partial(runs.load, f"{number - 1:032x}")),
            "children of a training": timed(lambda: runs.load("train-2").children("evaluate")),
            "names of 4 runs": timed(
                lambda: runs.names_of(
                    [runs.load(f"{'evaluate' if k % 2 else 'train'}-{k}") for k in range(4)]
                )
            ),
            "begin and end a run": timed(begin_and_end),
        }
        print(
            f"{number} runs: "
            + ", ".join(f"{what} {1000 * seconds:.0f} ms" for what, seconds in figures.items())
        )
        if browser:
            sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
            from browsing import browsing

            with serving(0) as url, browsing(size=(1400, 900), own=(url,)) as watched:
                seconds = []
                for _ in range(4):
                    start = time.perf_counter()
                    watched.open("about:blank").open(runs_page(url)).page.wait_for_selector(
                        "text=one more", timeout=120_000
                    )
                    seconds.append(time.perf_counter() - start)
                later = statistics.median(seconds[1:])
                print(f"{number} runs in MLflow's list: first {seconds[0]:.1f} s, then {later:.1f} s")
                watched.page.wait_for_timeout(2000)
                watched.page.screenshot(path=str(folder.parent / f"list-{number}.png"))


def main():
    folder = Path(tempfile.mkdtemp(prefix="tracking-"))
    os.environ["CLEARMARGIN_HOME"] = str(folder / "home")
    os.chdir(folder)
    if sys.argv[1] == "cost":
        cost(*sys.argv[2:4], folder)
    elif sys.argv[1] == "step":
        step(folder)
    else:
        many(folder, "--browser" in sys.argv)


if __name__ == "__main__":
    main()
