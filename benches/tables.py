"""From the samples of all rounds to medians, ratios and printed tables.

Owns the arithmetic over rounds and the columns. Never measures.
"""

import statistics
import sys

NOISY = 0.10                # a round is not quiet when others used more than this of a core


def median_of(samples):
    """Medians over the rounds others did not disturb, or over all when all were disturbed."""
    quiet = [s for s in samples if s.get("foreign", 0) <= NOISY]
    used = quiet or samples
    values = {}
    for sample in used:
        for key, value in sample.items():
            if isinstance(value, (int, float)):
                values.setdefault(key, []).append(value)
    out = {key: statistics.median(values[key]) for key in sorted(values)}
    out["quiet"] = f"{len(quiet)}/{len(samples)}"
    out["errors_total"] = sum(s.get("errors_total", 0) for s in samples)
    costs = values.get("cost")
    if costs and out["cost"]:
        out["spread"] = (max(costs) - min(costs)) / out["cost"]
    return out


def medians(rounds, references, cost):
    """The medians of each proxy, with the ratio of `cost` to that of each reference and the latency the proxy adds."""
    rows = {name: median_of(samples) for name, samples in rounds.items() if samples}
    direct = rows.get("direct", {})
    for name, row in rows.items():
        for reference in references:
            base = rows.get(reference, {}).get(cost)
            if row.get(cost) and base and name != "direct":
                row[f"ratio_{reference}"] = row[cost] / base
        for q in ("usual_p50", "usual_p99", "usual_p999"):
            if q in row and q in direct:
                row[f"added_{q}"] = row[q] - direct[q]
    return rows


RATIO = object()            # stands for one column per reference

# (heading, key, format)
SPREAD = [("spread", "spread", "{:.0%}"), ("proxy core", "busy", "{:.0%}"), ("load core", "load_busy", "{:.0%}"),
          ("quiet", "quiet", "{}"), ("ERRORS", "errors_total", "{:.0f}")]
SATURATED = [("req/s", "rate", "{:,.0f}"), ("CPU us/req", "cost", "{:.2f}"), RATIO,
             ("kernel", "kernel", "{:.0%}"), ("p50 us", "p50", "{:,.0f}"), ("p99 us", "p99", "{:,.0f}"), *SPREAD]
# Quantiles of the median window of a thousand answers, and of the whole run.
PACED = [("p50 us", "usual_p50", "{:,.0f}"), ("p99 us", "usual_p99", "{:,.0f}"), ("p99.9 us", "usual_p999", "{:,.0f}"),
         ("+p50", "added_usual_p50", "{:+,.0f}"), ("+p99", "added_usual_p99", "{:+,.0f}"),
         ("+p99.9", "added_usual_p999", "{:+,.0f}"), ("run p99.9", "p999", "{:,.0f}"),
         ("CPU us/req", "cost", "{:.1f}"), RATIO, *SPREAD]


def transfer(unit):
    return [(f"{unit}/s", "rate", "{:,.2f}" if unit == "GB" else "{:,.0f}"), (f"CPU us/{unit}", "cost", "{:,.0f}"),
            RATIO, ("kernel", "kernel", "{:.0%}"), *SPREAD]


def show(title, rows, columns, references):
    present = [reference for reference in references if reference in rows]
    ratios = [(f"vs {reference}", f"ratio_{reference}", "{:.2f}") for reference in present]
    columns = [each for column in columns for each in (ratios if column is RATIO else [column])]
    print(f"\n{title}")
    lines = [["proxy"] + [heading for heading, _, _ in columns]]
    for name, row in rows.items():
        lines.append([name] + [form.format(row[key]) if row.get(key) is not None else "-" for _, key, form in columns])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        cells = [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))]
        print("  " + "  ".join(cells).rstrip())
    wrong = [name for name, row in rows.items() if row.get("errors_total")]
    if wrong:
        print(f"  !! not valid, answers were wrong or missing: {', '.join(wrong)}")
    sys.stdout.flush()
