"""RUN/report.html: a judged run to look at, in one file.

The page carries its pictures and curves with it and needs no script; its content policy forbids any request.
On a real data set, what shows a patient is linked, not carried: the page stays what the model made.
"""
import base64
import html
import math
from pathlib import Path

from evaluation.results import cell, metric_rows, remarks, systems_of
from storage.files import write_text
from storage.pictures import png_text
from training.options import command_of

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
.warn {{ background: #fff3d6; border-left: 4px solid #b3540a; padding: .5rem .8rem }}
.scroll {{ overflow-x: auto }}  .scroll img {{ display: block; width: 100%; min-width: 36rem }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }}
th, td {{ text-align: left; padding: .25rem .7rem .25rem 0; border-top: 1px solid #d8dde1;
         white-space: nowrap }}
.curves {{ display: flex; flex-wrap: wrap; gap: .3rem 1rem }}  svg {{ width: 100%; max-width: 22rem }}
svg text {{ font: 12px system-ui, sans-serif; fill: #56616a }}
dt {{ font-weight: 600; margin-top: .5rem }}  dd {{ margin: 0 }}
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
    line = " ".join(f"{66 + 236 * (s - steps[0]) / ((steps[-1] - steps[0]) or 1):.1f},"
                    f"{122 - 92 * (h - bottom) / span:.1f}" for s, h in zip(steps, height, strict=True))
    return (f'<svg viewBox="0 0 320 144" role="img" aria-label="{e(name)} by step">'
            f'<text x="66" y="18">{e(name)}{" (log)" * log}, at last {values[-1]:.3g}</text>'
            f'<text x="60" y="34" text-anchor="end">{high:.3g}</text>'
            f'<text x="60" y="126" text-anchor="end">{low:.3g}</text>'
            f'<text x="66" y="139">step {steps[0]:,}</text>'
            f'<text x="302" y="139" text-anchor="end">{steps[-1]:,}</text>'
            '<path d="M66 30H302M66 122H302" stroke="#d8dde1"/>'
            f'<polyline points="{line}" fill="none" stroke="#0b5fa8" stroke-width="1.8"/></svg>')


def learned(log: list[dict]) -> str:
    """What log.jsonl says: charts of each stage's loss, rewards and KL"""
    series: dict[str, list] = {}
    for line in log:
        for name, value in line.items():
            if value is not None and (name in ("loss", "kl") or name.startswith("reward_")):
                series.setdefault(f"{line['stage']}: {name}", []).append((line["step"], value))
    charts = "".join(curve(name, points) for name, points in series.items())
    return f'<h2>Learning curves</h2><div class="curves">{charts}</div>' if charts else ""


def table(rows: list[list[str]]) -> str:
    """A head and rows -> a table, which scrolls in its own box; what is in brackets stands below"""
    def cells(row: list[str], kind: str) -> str:
        return "".join(f"<{kind}>{e(text).replace(' [', '<br>[')}</{kind}>" for text in row)

    head, *lines = rows
    body = "".join(f"<tr>{cells(line[:1], 'th')}{cells(line[1:], 'td')}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{cells(head, "th")}</tr>{body}</table></div>'


def judged(result: dict) -> str:
    """What evaluation.json says: gains, metrics, findings"""
    gained, systems = result["cxrl_vs_anchor"]["difference"], systems_of(result)
    head, *rows = metric_rows(result)
    metrics = [[*head, "cxrl - anchor"], *([*row, cell(gained[row[0]], "+")] for row in rows)]
    findings = [[name, *(cell(result[system]["auroc_by_finding"].get(name, {})) for system in systems)]
                for name in result["real"]["auroc_by_finding"]]
    return ("<h2>Judged by networks that gave no reward</h2>"
            f"{''.join(f'<p>{e(text)}</p>' for text in remarks(result))}{table(metrics)}"
            "<p>In brackets: 95 % intervals, bootstrap over the prompts. evaluate.py defines each metric.</p>"
            f"<h2>AUROC by finding</h2>{table([['', *systems], *findings])}")


def picture(path: Path, caption: str, private: bool) -> str:
    """A PNG file inside the page, or a link to it; nothing where it cannot be read"""
    about, caption = png_text(path), e(caption)
    if not about:
        return ""
    if private:
        return (f'<p>{caption} It shows patients and is not part of this page: '
                f'<a href="samples/{path.name}">samples/{path.name}</a></p>')
    data = base64.b64encode(path.read_bytes()).decode()
    texts = "".join(f"<li>{e(report)}</li>" for report in about.get("report", "").splitlines())
    return (f'<figure><figcaption>{caption}</figcaption><div class="scroll"><img alt="{caption}" '
            f'src="data:image/png;base64,{data}"></div><ol>{texts}</ol></figure>')


def made_with(config: dict, result: dict) -> str:
    """How to make it again: the command, what was judged how, every option"""
    judging = ("data", "n", "seed", "sampling", "features", "controls", "run_git", "git", "device")
    facts = {"command": command_of(config), **{f"evaluation, {name}": result[name] for name in judging}}
    items = "".join(f"<dt>{e(name)}</dt><dd>{e(value)}</dd>" for name, value in (facts | config).items())
    return f"<h2>How it was made</h2><dl>{items}</dl>"


def write_report(run: Path, config: dict, result: dict, log: list[dict]) -> None:
    """config.json, evaluation.json, log.jsonl and samples/ -> RUN/report.html, without what is not there"""
    real = result["data"] != "phantom"
    licence = " The reports are the data set's, under its licence: keep this page with the run." * real
    before, *others = [picture(run / "samples" / f"{name}.png", caption, real and has_data)
                       for name, (caption, has_data) in PICTURES.items()]
    body = [f'<p class="warn">Not for clinical use. Every image on this page is synthetic.{licence}</p>',
            before, judged(result), learned(log), *others, made_with(config, result)]
    title = f"CXRL: {e(run.resolve().name)}"
    write_text(run / "report.html", PAGE.format(title=title, body="\n".join(body)))
