"""The table of results."""

from collections.abc import Iterable, Sequence
from typing import Any

from .jobs import STAGES, Job
from .results import DONE, Log

Result = dict[str, Any]


def lines_of(log: Log, jobs: Sequence[Job]) -> list[str]:
    """All results by stage, followed by the failures."""
    lines: list[str] = []
    for stage, title in STAGES.items():
        results, planned = log.of(stage, jobs), sum(job.stage == stage for job in jobs)
        if not planned:
            continue
        lines += ["", f"{stage}: {title} ({len(results)} of {planned})"]
        lines += _stage(stage, [result for result in results if result["state"] != "absent"])
    return [*lines, "", *_failures(log, jobs)]


def failures(log: Log, jobs: Sequence[Job]) -> list[Result]:
    """Wrong and missing results; failures of peers do not count."""
    return [log.results[job.key] for job in jobs if job.key in log.results and _is_failure(job, log.results[job.key])]


def _is_failure(job: Job, result: Result) -> bool:
    return result["state"] not in DONE and "peer" not in job.given and job.stage != "tuning"


def _failures(log: Log, jobs: Sequence[Job]) -> list[str]:
    failed, done = failures(log, jobs), sum(job.key in log.results for job in jobs)
    told = [f"{result['key']}: {described(result)}" for result in failed]
    if failed:
        return [*told, f"{len(failed)} of {done} failed"]
    return [f"all checks that ran passed: {done} of {len(jobs)}"]


def described(result: Result) -> str:
    """A result as one line."""
    state = result["state"]
    if "why" in result:
        return f"{state}: {' '.join(str(result['why']).split())[:300]}"
    if "outputs" in result:
        return f"{state}, errors {result['outputs']:.1e} (outputs) and {result['gradients']:.1e} (gradients)"
    if "forward" in result:
        return f"{_ms(result, 'forward')} forward, {_ms(result, 'both')} forward + backward"
    if "peak" in result:
        return f"{result['peak'] / 2**20:.1f} MiB at the peak, {result['arrays']:.1f} arrays of (B, T, H)"
    return str(state)


def _ms(result: Result, name: str) -> str:
    return f"{result[name]:.2f} ms"


def _stage(stage: str, results: list[Result]) -> Iterable[str]:
    if stage == "layouts":
        return _by_variant(results)
    if stage == "tuning":
        return _best_layouts(results)
    if any("forward" in result for result in results):
        return _times(results)
    return [f"  {result['name']:<44} {described(result)}" for result in results]


def _times(results: list[Result]) -> Iterable[str]:
    yield f"  {'':<44}{'forward':>12}{'estimate':>12}{'+ backward':>12}{'estimate':>12}   launches"
    for result in results:
        if "forward" not in result:
            yield f"  {result['name']:<44} {described(result)}"
            continue
        numbers = []
        for name in ("forward", "both"):
            estimate = result.get(f"{name}_estimate")
            numbers += [f"{_ms(result, name):>12}", f"{'' if estimate is None else f'{estimate:.2f} ms':>12}"]
        launches = f"   {result['forward_launches']}, {result['both_launches']}" if "both_launches" in result else ""
        yield f"  {result['name']:<44}{''.join(numbers)}{launches}"


def _by_variant(results: list[Result]) -> Iterable[str]:
    variants: dict[str, list[Result]] = {}
    for result in results:
        variants.setdefault(result["name"].split(",")[0], []).append(result)
    for name, found in variants.items():
        works = sum(result["state"] == "works" for result in found)
        yield f"  {name:<44} works in {works} of {len(found)}"
        yield from (f"    {result['name']}: {described(result)}" for result in found if result["state"] != "works")


def _best_layouts(results: list[Result]) -> Iterable[str]:
    rows: dict[str, list[Result]] = {}
    for result in results:
        if "both" in result:
            rows.setdefault(result["row"], []).append(result)
    for found in rows.values():
        for result in sorted(found, key=lambda result: float(result["both"]))[:3]:
            yield f"  {result['name']:<64} {described(result)}"
