"""The sections on the gate, retrieval, the rollout and the time each stage took."""

from collections.abc import Mapping

from accordion.report import plots
from accordion.report.run import RunFigures
from accordion.report.section import Drawing, Section, Table, absent
from accordion.report.summary import Domain, Summary
from accordion.report.words import cosine, duration, interval, listing, mark, number

SIGNIFICANT = 0.05


def gate(run: RunFigures, summary: Summary) -> Section:
    if summary.gate is None:
        return absent("gate", "Gate", "No verdict: the gate was not reached in this run.")
    checks = summary.gate.checks
    failed = [check for check in checks if not check.passed]
    signs = {"at_least": "≥", "at_most": "≤", "above": ">", "below": "<"}
    rows = [
        (
            check.name,
            check.figure,
            "missing" if check.value is None else number(check.value),
            f"{signs.get(check.direction, check.direction)} {number(check.threshold)}",
            "–" if check.count is None else f"{check.count:,}",
            mark(check.passed),
            "" if check.passed else check.message,
        )
        for check in checks
    ]
    finding = (
        f"All {len(checks)} checks passed."
        if summary.gate.passed
        else f"{len(failed)} of {len(checks)} checks failed: {', '.join(check.name for check in failed)}. "
        "Nothing was registered as champion or rolled out."
    )
    header = ("check", "figure", "measured", "demanded", "samples", "verdict", "why")
    shown = len(header) - (not failed)  # "why" is for failures only
    table = Table(
        caption="Every check, with what was measured and what is demanded",
        header=header[:shown],
        rows=[row[:shown] for row in rows],
        words=("check", "figure", "verdict", "why"),
        folded=False,
    )
    return Section(anchor="gate", title="Gate", finding=finding, tables=[table])


def retrieval(run: RunFigures, summary: Summary) -> Section:
    if not summary.retrieval:
        return absent("retrieval", "Retrieval", "No encoder was examined in this run.")
    rows = [
        (
            name,
            plots.SYSTEM_NAMES[system],
            interval(domain.ndcg10[system]),
            interval(domain.recall100[system]),
            interval(domain.mrr10[system]),
            f"{domain.ndcg10[system].count:,}",
        )
        for name, domain in summary.retrieval.items()
        for system in domain.ndcg10
    ]
    notes = [f"{name}: {_tests(domain)}" for name, domain in summary.retrieval.items() if _tests(domain)]
    return Section(
        anchor="retrieval",
        title="Retrieval",
        finding=_standing(summary.retrieval),
        drawings=[
            Drawing(
                name="retrieval",
                figure=plots.retrieval(summary.retrieval),
                caption="nDCG@10 with 95% bootstrap intervals over queries. Only the first domain was trained on, "
                "with other queries; “untrained” is the same encoder before distillation.",
                alt=_standing(summary.retrieval),
            )
        ],
        tables=[
            Table(
                caption="Mean and 95% interval over queries",
                header=("domain", "system", "nDCG@10", "recall@100", "MRR@10", "queries"),
                rows=rows,
                words=("domain", "system"),
                folded=False,
            )
        ],
        notes=notes,
    )


def rollout(run: RunFigures, summary: Summary) -> Section:
    if summary.rollout is None:
        why = "the gate failed" if summary.gate is not None and not summary.gate.passed else "it was not reached"
        return absent("rollout", "Rollout", f"There was no rollout: {why}. Whatever was served before still is.")
    out = summary.rollout
    timeline = run.metrics["rollout"].get("timeline", [])
    latency = f" Latency: p50 {out.p50_ms:.1f} ms, p99 {out.p99_ms:.1f} ms." if out.p50_ms and out.p99_ms else ""
    return Section(
        anchor="rollout",
        title="Rollout",
        finding=f"Version {out.served_version} is served. {out.requests:,} requests were sent during the rollout, "
        f"{out.errors:,} failed; its embeddings equal the evaluated model’s with cosine {cosine(out.golden_cosine)}."
        + latency,
        drawings=[
            Drawing(
                name="rollout",
                figure=plots.rollout(timeline),
                caption="What happened, from top to bottom; a bar is the time until the next event.",
                alt="Timeline of the rollout: " + ", ".join(str(event["event"]) for event in timeline),
            )
        ]
        if timeline
        else [],
    )


def times(run: RunFigures, summary: Summary) -> Section:
    cached = sum(timing.cached for timing in summary.stages.values())
    total = sum(timing.seconds for timing in summary.stages.values())
    return Section(
        anchor="times",
        title="Where the time went",
        finding=f"{len(summary.stages)} stages took {duration(total)} together; {cached} came from the cache.",
        drawings=[
            Drawing(
                name="stages",
                figure=plots.stage_times(summary.stages),
                caption="Seconds of each stage in the order of the DAG. Hollow bars came from the cache.",
                alt="Stage times: " + ", ".join(f"{n} {duration(t.seconds)}" for n, t in summary.stages.items()),
            )
        ]
        if summary.stages
        else [],
    )


def _standing(domains: Mapping[str, Domain]) -> str:
    means = {name: {system: figures.mean for system, figures in d.ndcg10.items()} for name, d in domains.items()}
    text = "nDCG@10 of the encoder: " + listing([f"{systems['encoder']:.3f} on {n}" for n, systems in means.items()])
    for system in ("untrained", "bm25"):
        pairs = [(s["encoder"], s[system]) for s in means.values() if system in s]
        if pairs:
            ahead = sum(encoder > other for encoder, other in pairs)
            others = listing([f"{other:.3f}" for _, other in pairs])
            who = "the same encoder untrained" if system == "untrained" else "BM25"
            text += f". It is ahead of {who} ({others}) in {ahead} of {len(pairs)} domains"
            tests = [
                d.encoder_vs_untrained_p if system == "untrained" else d.encoder_vs_bm25_p for d in domains.values()
            ]
            beyond = sum(
                encoder > other and p is not None and p < SIGNIFICANT
                for (encoder, other), p in zip(pairs, tests, strict=False)
            )
            text += f", in {beyond} of them beyond chance (paired p < {SIGNIFICANT})" if ahead else ""
    return text + "."


def _tests(domain: Domain) -> str:
    found = {"untrained": domain.encoder_vs_untrained_p, "BM25": domain.encoder_vs_bm25_p}
    return "; ".join(f"encoder against {who}, paired test p = {p:.3g}" for who, p in found.items() if p is not None)
