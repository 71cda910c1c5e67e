"""RUN/report.html: a judged run to look at, in one file.

The page carries its pictures and curves with it and needs no script; its content policy forbids any request.
On a real data set, what shows a patient is linked, not carried: the page stays what the model made.
"""
import base64
import html
import math
import os
import platform
from pathlib import Path

from evaluation.results import BETTER, cell, remarks, systems_of
from storage.files import write_text
from storage.pictures import png_text
from training.loop import PARTS_OF
from training.options import command_of

COLOURS = {"real": "#5b6770", "anchor": "#b3540a", "cxrl": "#0b5fa8"}   # of systems; others: purple
OTHERS = "#7a3b9a"
STAGES = [part for parts in PARTS_OF.values() for part in parts]   # as log.jsonl names them
PICTURES = {   # file -> caption, and whether it shows images of the data set
    "anchor_vs_cxrl": ("Same reports, same noise. Left half: anchor, before reinforcement learning. "
                       "Right half: CXRL, after it.", False),
    "nearest_pairs": ("The generated images that are nearest to a training image, and that image below each: "
                      "is anything learned by heart?", True),
    "vae": ("Held-out images, and what the autoencoder makes of them.", True)}

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0 auto; padding: 1rem; max-width: 76rem; background: #fff; color: #1c2329;
       font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }}
h1 {{ font-size: 1.6rem; margin: 0 }}  h2 {{ font-size: 1.2rem; margin: 2.2rem 0 .4rem }}
h3 {{ font-size: 1rem; margin: 1rem 0 0 }}  p, figure, dl {{ margin: .5rem 0 }}
.warn {{ background: #fff3d6; border-left: 4px solid #b3540a; padding: .5rem .8rem }}
.scroll {{ overflow-x: auto }}  .scroll img {{ display: block; width: 100%; min-width: 36rem }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }}
th, td {{ text-align: left; padding: .25rem .7rem .25rem 0; border-top: 1px solid #d8dde1;
         white-space: nowrap }}
td small, figcaption, .note {{ color: #56616a }}  td small {{ display: block; font-size: .78rem }}
.better {{ color: #0a6b3d }}  .worse {{ color: #b3261e }}
.curves {{ display: flex; flex-wrap: wrap; gap: .3rem 1rem }}  .curves svg {{ width: 100%; max-width: 22rem }}
.stages {{ display: flex; flex-wrap: wrap; gap: 0 1rem }}  section {{ width: 22rem; max-width: 100% }}
section.wide {{ width: 100% }}
svg {{ display: block }}  svg text {{ font: 12px system-ui, sans-serif; fill: #56616a }}
dt {{ font-weight: 600; margin-top: .5rem }}  dd {{ margin: 0 }}  code {{ font-size: .9em }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def e(text: object) -> str:
    return html.escape(str(text))


def curve(name: str, points: list[tuple[int, float]]) -> str:
    """(step, value) of one number -> a chart; the scale is logarithmic where it falls or grows tenfold"""
    steps, values = zip(*points, strict=True)
    low, high = min(values), max(values)
    log = low > 0 and high > 10 * low
    height = [math.log(v) if log else v for v in values]
    bottom, span = min(height), (max(height) - min(height)) or 1
    at = [(66 + 236 * (s - steps[0]) / ((steps[-1] - steps[0]) or 1), 122 - 92 * (h - bottom) / span)
          for s, h in zip(steps, height, strict=True)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    return (f'<svg viewBox="0 0 320 144" role="img" aria-label="{e(name)} by step">'
            '<path d="M66 30H302M66 122H302" stroke="#d8dde1"/>'
            f'<text x="66" y="18" style="fill:#1c2329;font-weight:600">{e(name)}{" (log)" * log}</text>'
            f'<text x="302" y="18" text-anchor="end" style="fill:#0b5fa8">{values[-1]:.3g}</text>'
            f'<text x="60" y="34" text-anchor="end">{high:.3g}</text>'
            f'<text x="60" y="126" text-anchor="end">{low:.3g}</text>'
            f'<text x="66" y="139">step {steps[0]:,}</text>'
            f'<text x="302" y="139" text-anchor="end">{steps[-1]:,}</text>'
            f'<polyline points="{line}" fill="none" stroke="#0b5fa8" stroke-width="1.8"/>'
            f'<circle cx="{at[-1][0]:.1f}" cy="{at[-1][1]:.1f}" r="3" fill="#0b5fa8"/></svg>')


def curves(lines: list[dict]) -> str:
    """A stage's lines -> charts of its loss, rewards and KL"""
    names = dict.fromkeys(name for line in lines for name in line
                          if name in ("loss", "kl") or name.startswith("reward_"))
    charts = []
    for name in names:
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        charts += [curve(name, points)] if points else []
    return "".join(charts)


def bars(numbers: dict[str, dict]) -> str:
    """system: number -> one bar a system, the interval, with a mark at the value, on one scale"""
    ends = {name: [*number["ci95"], number["value"]] for name, number in numbers.items()
            if None not in (number["value"], *number["ci95"])}
    if not ends:
        return ""
    low = min(map(min, ends.values()))
    scale, drawn = 190 / ((max(map(max, ends.values())) - low) or 1), []
    for row, name in enumerate(numbers):
        if name in ends:
            left, right, mark = (5 + scale * (x - low) for x in ends[name])
            drawn.append(f'<g fill="{COLOURS.get(name, OTHERS)}"><title>{e(name)} {cell(numbers[name])}'
                         f'</title><rect x="{left:.1f}" y="{9 * row + 2}" width="{max(right - left, 1):.1f}" '
                         'height="5" opacity=".45"/>'
                         f'<circle cx="{mark:.1f}" cy="{9 * row + 4.5}" r="3.5"/></g>')
    return f'<svg width="200" height="{9 * len(numbers)}" aria-hidden="true">{"".join(drawn)}</svg>'


def number_cell(number: dict | None, sign: str = "", better: str = "") -> str:
    """A number with its interval; a difference that leaves out 0 is called better or worse"""
    if number is None:
        return "<td></td>"
    (value, _, interval), (low, high), kind = cell(number, sign).partition(" "), number["ci95"], ""
    if better in ("lower", "higher") and None not in (low, high) and (low > 0 or high < 0):
        kind = "better" if (low > 0) == (better == "higher") else "worse"
    return f'<td class="{kind}">{value} {kind}<small>{interval}</small></td>'


def metric_table(systems: dict[str, dict], difference: dict[str, dict] | None = None) -> str:
    """system: name: number -> a table with a row for each name, which scrolls in its own box"""
    heads = "".join(f'<th style="color:{COLOURS.get(name, OTHERS)}">{e(name)}</th>' for name in systems)
    last = "<th>cxrl - anchor</th>" if difference else ""
    lines = [f"<tr><th></th><th>95 % intervals</th>{heads}{last}</tr>"]
    for name in dict.fromkeys(name for part in systems.values() for name in part if "ci95" in part[name]):
        better = BETTER.get(name, "")
        numbers = {system: part[name] for system, part in systems.items() if name in part}
        cells = "".join(number_cell(numbers.get(system)) for system in systems)
        last = number_cell(difference.get(name), "+", better) if difference else ""
        lines.append(f'<tr><th scope="row">{e(name)}<small class="note"> {better}</small></th>'
                     f"<td>{bars(numbers)}</td>{cells}{last}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def picture(run: Path, name: str, private: bool) -> str:
    """RUN/samples/NAME.png inside the page, or a link to it; nothing where it cannot be read"""
    path, caption = run / "samples" / f"{name}.png", PICTURES[name][0]
    about = png_text(path) or {}
    if not about:
        return ""
    if private:
        return (f'<p>{e(caption)} It shows patients and is not part of this page: '
                f'<a href="samples/{name}.png">samples/{name}.png</a></p>')
    data = base64.b64encode(path.read_bytes()).decode()
    texts = "".join(f"<li>{e(report)}</li>" for report in about.get("report", "").splitlines())
    return (f'<figure><figcaption>{e(caption)}</figcaption><div class="scroll">'
            f'<img alt="{e(caption)}" src="data:image/png;base64,{data}"></div>'
            f'{f"<ol class=note>{texts}</ol>" if texts else ""}</figure>')


def judged(result: dict) -> str:
    """What evaluation.json says: gains, metrics, findings"""
    systems, (*gains, judge) = {name: result[name] for name in systems_of(result)}, remarks(result)
    difference = result.get("cxrl_vs_anchor", {}).get("difference")
    findings = {name: part["auroc_by_finding"] for name, part in systems.items()}
    return ("<h2>Judged by networks that gave no reward</h2>"
            f"{''.join(f'<p>{e(gain)}</p>' for gain in gains)}{metric_table(systems, difference)}"
            f'<p class="note">{e(judge)}. Bars: 95 % intervals, bootstrap over the prompts; '
            "<code>evaluate.py</code> defines each metric.</p>"
            f"<h2>AUROC by finding</h2>{metric_table(findings)}")


def learned(log: list[dict]) -> str:
    """What log.jsonl says: charts of every stage that has run, and what it took"""
    parts = []
    for stage in STAGES:
        lines = [line for line in log if line["stage"] == stage and "time" in line]
        if lines:
            charts = curves(lines)
            parts.append(f'<section{" class=wide" * (charts.count("<svg") > 1)}><h3>{e(stage)}</h3>'
                         f"<p class=note>{lines[-1]['step']:,} steps, {lines[-1]['time']:,.0f} s, "
                         f"{lines[-1]['images_per_second']:,.0f} images/s</p>"
                         f'<div class="curves">{charts}</div></section>')
    return f'<h2>Learning curves</h2><div class="stages">{"".join(parts)}</div>' if parts else ""


def made_with(config: dict, result: dict) -> str:
    """How to make it again: command, seeds, versions, hardware"""
    facts = {"Command": command_of(config), "Data": result["data"],
             "Seeds": f"training {config.get('seed', 0)}, evaluation {result['seed']}",
             "Evaluation": f"{result['n']} reports, sampling {result['sampling']}, features of "
                           f"{result['features']}, controls {result['controls'] or 'none'}",
             "Versions": f"CXRL {result['run_git']}, judged by {result['git']}; torch "
                         f"{config.get('torch', 'unknown')}, Python {platform.python_version()}",
             "Hardware": f"judged on {result['device']}; {platform.system()} {platform.machine()}, "
                         f"{os.cpu_count()} CPUs"}

    def listed(items: dict) -> str:
        return f"<dl>{''.join(f'<dt>{e(k)}</dt><dd>{e(v)}</dd>' for k, v in items.items())}</dl>"

    return (f"<h2>How it was made</h2>{listed(facts)}"
            f"<details><summary>Every option</summary>{listed(config)}</details>")


def write_report(run: Path, config: dict, result: dict, log: list[dict]) -> None:
    """config.json, evaluation.json, log.jsonl and samples/ -> RUN/report.html, without what is not there"""
    real = result["data"] != "phantom"
    shown = {name: picture(run, name, real and has_data) for name, (_, has_data) in PICTURES.items()}
    licence = " The reports are the data set's, under its licence: keep this page with the run." * real
    body = [f'<p class="warn">Not for clinical use. Every image on this page is synthetic.{licence}</p>',
            "<h2>Before and after</h2>" * bool(shown["anchor_vs_cxrl"]), shown["anchor_vs_cxrl"],
            judged(result), learned(log), shown["vae"],
            "<h2>Nearest training images</h2>" * bool(shown["nearest_pairs"]), shown["nearest_pairs"],
            made_with(config, result)]
    title = f"CXRL: {e(run.resolve().name)}"
    write_text(run / "report.html", PAGE.format(title=title, body="\n".join(body)))
