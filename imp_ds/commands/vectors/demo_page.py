"""The page of `imp_ds demo`: what a browser is given. It asks its own server alone, and puts names and texts in as text."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Nearest across modalities</title>
<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="/demo.css"></head>
<body><main><h1>Nearest across modalities</h1>
<form id="ask"><input id="text" aria-label="text" placeholder="a text ..." autofocus><button>Search</button></form>
<label id="drop" tabindex="0">Drop an image, a video, a recording or a .txt here, or choose one
<input id="file" type="file" hidden></label>
<p id="state" role="status"></p><div id="found"></div></main><script src="/demo.js"></script></body></html>
"""

STYLE = """
:root { color-scheme: light dark; font: 16px/1.45 system-ui, sans-serif; }
body { margin: 0; } main { max-width: 70rem; margin: auto; padding: 1.5rem; } h1 { font-size: 1.4rem; }
form { display: flex; gap: .5rem; } #text { flex: 1; } #text, button { font: inherit; padding: .5rem .8rem; }
#drop { display: block; margin: .8rem 0; padding: 1.6rem; border: 2px dashed #8aa; border-radius: .5rem; text-align: center;
  cursor: pointer; }
#drop.over { background: #8aa4; } .error { color: #c22; white-space: pre-wrap; } h2 { font-size: 1.1rem; }
.hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: .8rem; }
.hit { border: 1px solid #8aa6; border-radius: .4rem; padding: .6rem; overflow-wrap: anywhere; font-size: .85rem; }
.hit img, .hit video { width: 100%; height: 9rem; object-fit: contain; image-rendering: auto; } .hit audio { width: 100%; }
.cosine { font-weight: 600; font-variant-numeric: tabular-nums; }
"""

SCRIPT = """
"use strict";
const at = id => document.getElementById(id);
const made = (name, text, kind) => {
  const one = document.createElement(name);
  if (text) one.textContent = text;
  if (kind) one.className = kind;
  return one;
};
function shown(hit) {
  const box = made("div", "", "hit");
  if (hit.playable) {
    const medium = made(hit.kind === "image" ? "img" : hit.kind);
    medium.src = "/item/" + hit.row;
    if (hit.kind !== "image") { medium.controls = true; medium.preload = "metadata"; } else medium.alt = hit.id;
    box.append(medium);
  }
  box.append(made("div", hit.cosine.toFixed(3), "cosine"));
  if (hit.text) box.append(made("div", hit.text));
  box.append(made("small", hit.id));
  return box;
}
let asked = 0;
async function ask(address, body, what) {
  const mine = ++asked;
  at("state").className = "";
  at("state").textContent = "searching ...";
  at("found").replaceChildren();
  let answer;
  try {
    if (body.size > most) throw "too large: more than 64 MiB";
    const response = await fetch(address, { method: "POST", body });
    answer = await response.json();
  } catch (error) { answer = { error: String(error) }; }
  if (mine !== asked) return;
  if (answer.error) {
    at("state").className = "error";
    at("state").textContent = answer.error;
    return;
  }
  at("state").textContent = "nearest to " + what + " (" + answer.kind + "), by the cosine of the pair";
  for (const [kind, hits] of Object.entries(answer.found)) {
    const group = made("div", "", "hits");
    group.append(...hits.map(shown));
    at("found").append(made("h2", kind), group);
  }
}
const askText = text => text.trim() && ask("/search/text", text, "\\u201c" + text + "\\u201d");
const most = 64 * 2 ** 20;
const askFile = file => file && ask("/search/file?name=" + encodeURIComponent(file.name), file, file.name);
at("ask").addEventListener("submit", event => { event.preventDefault(); askText(at("text").value); });
at("file").addEventListener("change", event => askFile(event.target.files[0]));
const drop = at("drop");
drop.addEventListener("keydown", event => { if (event.key === "Enter") at("file").click(); });
for (const name of ["dragover", "dragleave", "drop"])
  document.addEventListener(name, event => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop") askFile(event.dataTransfer.files[0]);
  });
if (location.hash.length > 1) {
  at("text").value = decodeURIComponent(location.hash.slice(1));
  askText(at("text").value);
}
"""
