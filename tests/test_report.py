"""RUN/report.html: what a run has is on one page, which asks for nothing and fits a phone."""
import fcntl
import json
import os
import re
import select
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from evaluation.report import STAGES, write_report
from storage.pictures import picture_grid, save_png
from training.loop import read_log
from training.options import command_of, parse

HOSTILE = '<script>alert("no")</script> & "quotes" \'single\' </title><img src=x onerror=alert(1)>'
BROWSER = next(filter(None, map(shutil.which, (
    "chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell"))), None)


class Page(HTMLParser):
    """What a browser would see of it: tags, links and sources, row headers, headings."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.links, self.words, self.inside = [], [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data):
        if self.inside:
            self.words.setdefault(self.inside[-1], []).append(data)


NUMBER = {"value": 0.5, "ci95": [0.4, 0.6]}
SYSTEM = {"auroc": NUMBER, "fid": {"value": None, "ci95": [None, None]},
          "auroc_by_finding": {"Edema": NUMBER}}
RESULT = {"data": "phantom", "n": 20, "seed": 3, "git": "abc", "run_git": "def", "device": "cpu, 1 threads",
          "seconds": 2.0, "sampling": {"steps": 5}, "controls": [], "features": "judge", "real": SYSTEM,
          "anchor": SYSTEM,
          "judge": {"accuracy_on_real": None, "posture_error": 0.1, "posture_spread": 0.2}}


def made(folder: Path, **changes) -> Page:
    """The page of a hand-made run folder: two systems, one stage, pictures with hostile reports"""
    for name in ("anchor_vs_cxrl", "nearest_pairs", "vae"):
        save_png(picture_grid([("a", torch.rand(2, 1, 8, 8))]), folder / "samples" / f"{name}.png",
                 report=f"{HOSTILE}\nClear.")
    result = {**RESULT, **changes}
    log = [{"stage": "rl", "step": 1, "time": 1.0, "images_per_second": 3.0, "loss": -1.0, "kl": None,
            "reward_diag": 0.5}]
    write_report(folder, {"data": result["data"], "diagnosis": HOSTILE}, result, log)
    return Page((folder / "report.html").read_text())


def test_every_run_ends_with_a_page_that_holds_all(smoke_run):
    """Every stage of log.jsonl has a curve, every metric its row; pictures and command are inside, nothing
    points outside."""
    text = (smoke_run / "report.html").read_text()
    page, result = Page(text), json.loads((smoke_run / "evaluation.json").read_text())
    stages = {line["stage"] for line in read_log(smoke_run / "log.jsonl")}
    assert stages == set(STAGES) == set(page.words["h3"])
    assert text.count("<polyline") >= len(STAGES) + 4            # and the rewards and KL of rl
    for name in ("reward_align", "reward_diag", "reward_consist", "kl"):
        assert f"{name} by step" in text
    metrics = {name for name, number in result["real"].items() if "ci95" in number}
    assert metrics | result["real"]["auroc_by_finding"].keys() == set(page.words["th"]) - {
        "95 % intervals", "real", "anchor", "cxrl", "cxrl - anchor"}
    assert page.tags.count("img") == 3 and all(link.startswith("data:image/png") for link in page.links)
    assert "http" not in re.sub(r"http-equiv|data:[^\"]*", "", text) and "script" not in page.tags
    config = json.loads((smoke_run / "config.json").read_text())
    assert command_of(config) in page.words["dd"] and "Not for clinical use" in text


def test_the_command_makes_the_same_options_again(tmp_path):
    """What differs from the defaults of preset and gradient is in the command, and nothing else."""
    words = ["--gradient", "score", "--out", str(tmp_path / "my run"), "--no-ace", "--kl", "0.5",
             "--rounds", "12"]
    config = {k: str(v) if isinstance(v, Path) else v for part in parse(words) for k, v in vars(part).items()}
    assert command_of(config) == (f"python train.py --out '{tmp_path / 'my run'}' --gradient score "
                                  "--kl 0.5 --no-ace")   # 12 rounds are --gradient score's default
    config = {"preset": "small", "rounds": 50, "removed_since": 1}
    assert command_of(config) == "python train.py --preset small"


def test_texts_are_shown_and_never_obeyed(tmp_path):
    """Reports and options may hold anything: it is text on the page, not a tag."""
    page = made(tmp_path)
    assert "script" not in page.tags and page.tags.count("img") == 3 and page.tags.count("title") == 1 + 4
    assert page.words["li"].count(HOSTILE) == 3 and HOSTILE in page.words["dd"]
    assert "undefined " in page.words["td"]   # a number without a value


def test_patients_are_linked_and_not_carried(tmp_path):
    """On a real data set the pictures with images of patients stay in the run folder."""
    page = made(tmp_path, data="mimic")
    assert page.tags.count("img") == 1
    assert [link for link in page.links if not link.startswith("data:")] == [
        "samples/vae.png", "samples/nearest_pairs.png"]


def test_what_is_missing_is_left_out(tmp_path):
    """No log, no pictures, a broken picture: a page all the same."""
    made(tmp_path)
    for name in ("nearest_pairs", "vae"):
        (tmp_path / "samples" / f"{name}.png").unlink()
    (tmp_path / "samples" / "anchor_vs_cxrl.png").write_bytes(b"\x89PNG not")
    write_report(tmp_path, {}, RESULT, [])
    page = Page((tmp_path / "report.html").read_text())
    assert "img" not in page.tags and "h3" not in page.tags and "auroc" in page.words["th"]


class Chromium:
    """A headless browser, spoken to over two pipes (its DevTools protocol: JSON, each message ends in 0)."""

    def __init__(self, profile: Path):
        (child_in, self.send), (self.receive, child_out) = os.pipe(), os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (child_in, child_out)]   # 3 and 4 may be taken
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
                 "--disable-background-networking", "--disable-component-update", "--disable-sync",
                 f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        shell = ["bash", "-c", f'exec "$@" 3<&{high[0]} 4>&{high[1]}', "bash"]
        self.process = subprocess.Popen([*shell, BROWSER, *flags], pass_fds=high, stderr=subprocess.DEVNULL,
                                        env={**os.environ, "HOME": str(profile)})
        for fd in (child_in, child_out, *high):
            os.close(fd)
        self.events, self.waiting, self.number, self.session = [], b"", 0, {}
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self(f"{domain}.enable")

    def message(self) -> dict:
        while b"\0" not in self.waiting:
            assert select.select([self.receive], [], [], 60)[0], "the browser does not answer"
            part = os.read(self.receive, 2**20)
            assert part, "the browser ended"
            self.waiting += part
        first, _, self.waiting = self.waiting.partition(b"\0")
        return json.loads(first)

    def __call__(self, method: str, **parameters) -> dict:
        self.number += 1
        call = {"id": self.number, "method": method, "params": parameters, **self.session}
        os.write(self.send, json.dumps(call).encode() + b"\0")
        while (answer := self.message()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, page: Path, width: int) -> list[dict]:
        """-> all that happened while the page loaded, in a window so wide"""
        self("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1,
             mobile=width < 600)
        self.events.clear()
        self("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.message())
        return self.events

    def value(self, expression: str):
        return self("Runtime.evaluate", expression=expression)["result"]["value"]

    def close(self) -> None:
        for fd in (self.send, self.receive):
            os.close(fd)
        self.process.kill()
        self.process.wait()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_error_or_request(smoke_run, tmp_path, width):
    """At the width of a desk and of a phone: no error, nothing asked for, nothing to scroll sideways but in a
    table's or a picture's own box."""
    browser = Chromium(tmp_path)
    try:
        events = browser.open(smoke_run / "report.html", width)
        asked = [event["params"]["request"]["url"] for event in events
                 if event.get("method") == "Network.requestWillBeSent"]
        assert [url[:5] for url in asked if not url.startswith("data:")] == ["file:"]   # the page itself
        wrong = ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed")
        assert not [event for event in events if event.get("method") in wrong]
        assert browser.value("innerWidth") == width >= browser.value("document.scrollingElement.scrollWidth")
        assert browser.value("[...document.images].every(image => image.naturalWidth > 0)")
    finally:
        browser.close()
