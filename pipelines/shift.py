"""Stage shift: before any training, how far a target's images lie from the pool an encoder was pretrained on."""

from ssl_ft import dist, handover
from ssl_ft.artifact import find_model
from ssl_ft.build.parts import choose_device
from ssl_ft.build.shift import Measured, Sides, open_shift_run, open_sides, read_sides
from ssl_ft.config import ShiftSettings
from ssl_ft.evaluate.shift import Difference, Shift, advise, differences, measure, prepare, statistic_names
from ssl_ft.report.shift_tables import write_shift
from ssl_ft.result import LabelsUsed, Metric
from ssl_ft.runlog import RunFolder


def main(settings: ShiftSettings) -> int:
    """Measure the shift and give the exit code: a shift is a finding, no failure."""
    dist.use_threads(settings.threads)
    model = find_model(settings.encoder, kind="encoder")
    sides = open_sides(settings, model)
    run = open_shift_run(settings, sides)
    if run.is_finished:
        return handover.already_done(run)
    with run:
        return _measure(settings, sides, run)


def _measure(settings: ShiftSettings, sides: Sides, run: RunFolder) -> int:
    handover.record_data(run, sides.pool, sides.pool, role="pool")
    handover.record_data(run, sides.target, sides.target, role="target")
    model, device = find_model(settings.encoder, kind="encoder"), choose_device(settings.device)
    both = read_sides(settings, sides, model, run=run, device=device)
    accounts = [
        *both.pool.sentences(both.contract, whose="pool"),
        *both.target.sentences(both.contract, whose="target"),
    ]
    shift = measure(prepare(both.spaces), both.is_target, num_permutations=settings.permutations, seed=settings.seed)
    found = differences(both.pool_statistics, both.target_statistics, statistic_names(both.contract.channels))
    advice = advise(shift)
    for sentence in (*accounts, f"shift: {shift.grade} (effect {shift.effect:.3f}). {advice}"):
        run.note(sentence)
    write_shift(run.path, shift, found, advice=advice, accounts=accounts)
    run.write_manifest(device=str(device))
    run.finish(metrics=_metrics(both, shift, found), labels_used=LabelsUsed(), test_scored=0)
    print(run.path)
    return 0


def _metrics(both: Measured, shift: Shift, found: list[Difference]) -> list[Metric]:
    count = len(both.target.pixels)
    rows = [("is_shifted", float(shift.is_shifted), "all"), ("shift_effect", shift.effect, "all")]
    for test in shift.tests:
        name = "two_sample_accuracy" if test.outcome.name == "classifier" else test.outcome.name
        rows += [(name, test.outcome.value, test.space), (f"{name}_null", test.outcome.null, test.space)]
        rows += [(f"{name}_p_value", test.outcome.p_value, test.space), (f"{name}_p_holm", test.adjusted, test.space)]
    metrics = [Metric(name=name, value=value, n=count, split="target", model=space) for name, value, space in rows]
    return metrics + [
        Metric(
            name=f"{d.name}_difference", value=d.difference, low=d.low, high=d.high, n=count, split="target",
            model="statistics",
        )
        for d in found
    ]  # fmt: skip
