#!/usr/bin/env python3
"""Looks at pages that evenkeel wrote as a reader's browser would.

    python3 scripts/check_pages.py PAGE.html... [--shots FOLDER]

Every page is opened in headless Chromium 360, 800 and 1280 pixels wide, light and dark. A page fails if it is wider than
the window, if text of a figure leaves its figure or lies on other text of it, if an element sticks out of the one it is in
without scrolling, if a figure has no table, if a colour scheme is not followed, if it asks for anything from elsewhere, or
if the console has an error. Prints a table and exits 1 on a failure, 3 without a browser. `--shots` keeps a picture of each.

Only the standard library is used. A script in a temporary copy of each page measures it and tells the page around it, which
holds all copies in frames of all widths (a window cannot be as narrow as a telephone) and is printed by `--dump-dom`.
"""

import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

WIDTHS = (360, 800, 1280)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

PROBE = """
<script>
addEventListener('load', () => {
  const found = [];
  const say = (what) => { if (found.length < 20) found.push(what); };
  const root = document.documentElement, name = (e) => (e.textContent || e.tagName).trim().slice(0, 40);
  if (root.scrollWidth > innerWidth + 1) say(`the page is ${root.scrollWidth} wide, the window ${innerWidth}`);
  const shown = (e) => e.getClientRects().length > 0;
  for (const svg of document.querySelectorAll('svg')) {
    if (!shown(svg)) continue;
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')];
    const boxes = texts.map((t) => t.getBoundingClientRect());
    texts.forEach((t, i) => {
      const box = boxes[i];
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        say(`"${name(t)}" leaves its figure`);
    });
    // Text on text: boxes hold room above and below the letters, so only a real overlap counts.
    const order = boxes.map((b, i) => i).sort((a, b) => boxes[a].left - boxes[b].left);
    order.forEach((i, k) => {
      for (let m = k + 1; m < order.length && boxes[order[m]].left < boxes[i].right - 1.5; m++) {
        const a = boxes[i], b = boxes[order[m]];
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (high > 0.45 * Math.min(a.height, b.height)) say(`"${name(texts[i])}" lies on "${name(texts[order[m]])}"`);
      }
    });
  }
  for (const e of document.querySelectorAll('main *')) {
    if (!shown(e) || e.closest('svg') && e.tagName !== 'svg' || e.closest('math')) continue;
    if (e.closest('.scroll') || e.closest('pre') || e.closest('.formula')) continue;
    const box = e.getBoundingClientRect(), around = e.parentElement.getBoundingClientRect();
    if (box.right > around.right + 1 || box.left < around.left - 1) say(`<${e.tagName.toLowerCase()}> "${name(e)}" sticks out`);
  }
  for (const figure of document.querySelectorAll('figure'))
    if (!figure.querySelector('table')) say(`no table under "${name(figure.querySelector('figcaption') || figure)}"`);
  for (const e of document.querySelectorAll('[src], link, a:not([href^="https://"])')) say(`<${e.tagName}> refers to elsewhere`);
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const ground = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
  parent.postMessage({found, dark, dim: ground[0] + ground[1] + ground[2] < 384, width: innerWidth, key: window.name,
    figures: document.querySelectorAll('figure').length, tables: document.querySelectorAll('table').length}, '*');
});
</script>
"""


# Holds the copies, and prints what they say.
AROUND = """<!DOCTYPE html><html><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<style>body{margin:0}iframe{border:0;display:block;height:1000px}</style></head><body>FRAMES<pre id="probe"></pre><script>
const said = [], probe = document.getElementById('probe');
addEventListener('message', (e) => { said.push(e.data); probe.textContent = JSON.stringify(said); });
</script></body></html>
"""


def browser():
    """The path of a Chromium; the environment's CHROMIUM goes first."""
    names = [os.environ["CHROMIUM"]] if os.environ.get("CHROMIUM") else BROWSERS
    return next(filter(None, map(shutil.which, names)), None)


def call(program, folder, dark, arguments, page):
    """stdout and stderr of the browser on a page."""
    command = [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
        "--force-device-scale-factor=1", f"--user-data-dir={os.path.join(folder, 'profile')}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--enable-logging=stderr", "--log-level=0",
        "--virtual-time-budget=4000", *arguments, "file://" + page,
    ]
    ran = subprocess.run(command, capture_output=True, timeout=240)
    return ran.stdout.decode("utf-8", "replace"), ran.stderr.decode("utf-8", "replace")


def frame(key, page, width, height=1000):
    """The element that shows a page `width` pixels wide."""
    return f'<iframe name="{key}" style="width:{width}px;height:{height}px" src="file://{html.escape(page)}"></iframe>'


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def measure(program, folder, copies, dark):
    """What the copies say of themselves by (place, width), and the console."""
    frames = [frame(f"{i}-{width}", copy, width) for i, copy in enumerate(copies) for width in WIDTHS]
    around = write(os.path.join(folder, "around.html"), AROUND.replace("FRAMES", "".join(frames)))
    dom, console = call(program, folder, dark, ["--window-size=1400,1000", "--dump-dom"], around)
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.S)
    said = json.loads(html.unescape(found.group(1))) if found and found.group(1) else []
    return {tuple(map(int, one["key"].split("-"))): one for one in said}, console


def faults_of(said, width, dark):
    """What is wrong with a page, in words."""
    if said is None:
        return ["the page was not loaded"]
    faults = list(said["found"])
    if said["width"] != width:
        faults.append(f"it was {said['width']} wide and not {width}")
    if said["dark"] != dark or said["dim"] != dark:
        faults.append("the colour scheme is not followed")
    return faults


def shoot(program, folder, page, width, dark, shots):
    """Keeps a picture."""
    name = os.path.basename(os.path.dirname(page)) or "page"
    height = 9000 if width < 700 else 6000
    around = AROUND.replace("FRAMES", frame("shot", page, width, height))
    around = write(os.path.join(folder, "around.html"), around)
    shot = os.path.join(shots, f"{name}-{width}-{'dark' if dark else 'light'}.png")
    call(program, folder, dark, [f"--window-size={max(width, 500)},{height}", f"--screenshot={shot}"], around)


def main():
    parser = argparse.ArgumentParser(description="Looks at pages as a reader's browser would.")
    parser.add_argument("pages", nargs="+")
    parser.add_argument("--shots", help="folder to keep pictures in")
    args = parser.parse_args()
    program = browser()
    if not program:
        print("no Chromium on the path", file=sys.stderr)
        return 3
    if args.shots:
        os.makedirs(args.shots, exist_ok=True)
    print(f"{'page':32} {'width':>5} {'scheme':6} {'figures':>7} {'tables':>6} {'kB':>6}  faults")
    failed = False
    pages = [os.path.abspath(page) for page in args.pages]
    with tempfile.TemporaryDirectory(prefix="check-pages") as folder:
        copies = []
        for i, page in enumerate(pages):
            with open(page, encoding="utf-8") as file:
                text = file.read().replace("</body>", PROBE + "</body>")
            copies.append(write(os.path.join(folder, f"{i}.html"), text))
        for dark in (False, True):
            said, console = measure(program, folder, copies, dark)
            for i, page in enumerate(pages):
                lines = [line for line in console.splitlines() if "CONSOLE" in line and f"/{i}.html" in line]
                errors = sorted({"the console says " + line.split("] ", 1)[-1].rsplit(", source:", 1)[0] for line in lines})
                for width in WIDTHS:
                    one = said.get((i, width))
                    faults = faults_of(one, width, dark) + errors
                    failed |= bool(faults)
                    shown = os.sep.join(page.split(os.sep)[-2:])
                    one = one or {"figures": 0, "tables": 0}
                    print(
                        f"{shown:32} {width:5} {'dark' if dark else 'light':6} {one['figures']:7} {one['tables']:6} "
                        f"{os.path.getsize(page) // 1000:6}  {faults[0] if faults else 'none'}",
                        flush=True,
                    )
                    for fault in faults[1:]:
                        print(f"{'':67}{fault}")
                    if args.shots:
                        shoot(program, folder, page, width, dark, args.shots)
            loose = [line for line in console.splitlines() if "CONSOLE" in line and ".html" not in line]
            for line in loose:
                print(line)
            failed |= bool(loose)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
