"""The page: Gradio's form around elements of our own, which talk to the server's API as any client does.

Gradio only draws the form: no event of it calls Python, so the page has no state on the server, and another server, or
the same one started anew, goes on where this one ended. Only the files that the browser needs can be
fetched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxl.call.control import MODES
from jaxl.call.hires import WITHOUT_NETWORK, a1111_upscaler
from jaxl.call.image_prompt import BLOCKS
from jaxl.call.options import STRENGTH
from jaxl.call.styles import STYLES
from jaxl.diffusion.names import a1111_name
from jaxl.diffusion.other_noise import OWN as OWN_NOISE
from jaxl.diffusion.other_noise import SOURCES
from jaxl.diffusion.schedulers import SCHEDULERS
from jaxl.server.a1111.extras import RESAMPLED
from jaxl.server.a1111.fields import offered, solver_of
from jaxl.server.pictures import MEDIA_TYPES
from jaxl.server.settings import Settings
from jaxl.server.web.examples import examples
from jaxl.text.prompt import SYNTAXES, Syntax

STATIC = Path(__file__).with_name("static")

# the path of the page's own files, and those that Gradio's page needs
OWN = "/web"
NEEDED = ("/assets/", "/static/", "/theme.css", "/favicon.ico")

# nothing is fetched from elsewhere, whatever a dependency tries; Gradio makes functions out of texts
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

IMAGES = 4
MOST_STEPS = 150
SYNTAX: Syntax = "lenient"
FEATHER = 4
PADDING = 32

HEAD = f'<link rel="stylesheet" href="{OWN[1:]}/style.css"><script type="module" src="{OWN[1:]}/main.js"></script>'
TITLE = (
    '<div class="jaxl-head"><h1>jaxl</h1><span>{}</span>'
    '<button type="button" class="jaxl-button jaxl-theme">Light or dark</button></div>'
)
RESTORE = (
    '<label class="jaxl-restore"><input type="file" accept="{}" class="jaxl-file" '
    'aria-label="Picture to take the settings from">Settings of a picture …</label>'
)
MODELS = '<jaxl-model class="jaxl-networks" hidden></jaxl-model>'
LORAS = '<jaxl-loras class="jaxl-networks" hidden></jaxl-loras>'
NETWORKS = '<jaxl-{0} class="jaxl-networks" data-names="{1}" data-choices="{2}"{3}></jaxl-{0}>'
HIRES = '<jaxl-hires class="jaxl-fold" data-sizes="{}" data-upscalers="{}"{}></jaxl-hires>'
REFINER = '<jaxl-refiner class="jaxl-fold" hidden></jaxl-refiner>'
GRID = '<jaxl-grid class="jaxl-fold"></jaxl-grid>'
ENLARGE = '<jaxl-enlarge class="jaxl-fold" data-upscalers="{}"></jaxl-enlarge>'
SCHEDULER = '<jaxl-scheduler data-samplers="{}" data-value="{}"></jaxl-scheduler>'
# tells Gradio which values the page's elements put into the form
BRIDGE = (
    "document.addEventListener('jaxl:fill', ({detail}) => { props.value = detail; trigger('fill'); });"
    "document.body.classList.add('jaxl-formed'); document.dispatchEvent(new CustomEvent('jaxl:formed'));"
)


class Page:
    """The page as an ASGI app, with its files."""

    def __init__(self, settings: Settings):
        self.files = StaticFiles(directory=STATIC)
        self.gradio = _gradio(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        reading = scope["method"] in ("GET", "HEAD")
        if reading and path.startswith(f"{OWN}/"):
            inner = {**scope, "path": path.removeprefix(OWN), "root_path": ""}
            await self.files(inner, receive, send_guarded)
        elif reading and (path == "/" or path.startswith(NEEDED)):
            await self.gradio(scope, receive, send_guarded)
        else:
            raise HTTPException(404)


def _gradio(settings: Settings) -> ASGIApp:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    import gradio
    from gradio import themes

    theme = themes.Default(
        primary_hue="indigo",
        font=("system-ui", "sans-serif"),  # the machine's fonts: Gradio's own would come from Google
        font_mono=("ui-monospace", "monospace"),
    )
    app = FastAPI()
    gradio.mount_gradio_app(
        app,
        _blocks(gradio, settings),
        path="/",
        theme=theme,
        head=HEAD,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
    )
    return app


def _blocks(gr: Any, settings: Settings) -> Any:
    sizes = [f"{width}x{height}" for width, height in settings.sizes]
    most = settings.max_images
    own = partial(gr.HTML, apply_default_css=False)  # Gradio's styles of buttons and lists are meant for articles
    with gr.Blocks(title="jaxl", analytics_enabled=False) as blocks:
        own(TITLE.format(escape(settings.model)))
        with gr.Tabs():
            with gr.Tab("Draw"), gr.Row(elem_id="jaxl-draw"):
                with gr.Column(scale=2, min_width=300):
                    prompt = gr.Textbox(
                        label="Prompt", lines=3, placeholder="A castle on a hill …", elem_id="jaxl-prompt"
                    )
                    own("<jaxl-tokens></jaxl-tokens>")
                    negative = gr.Textbox(
                        label="Negative prompt", lines=1, placeholder="What is not to be seen", elem_id="jaxl-negative"
                    )
                    with gr.Row(elem_id="jaxl-actions"):
                        generate = gr.Button(
                            "Generate (Ctrl+Enter)", variant="primary", min_width=140, elem_id="jaxl-generate"
                        )
                        cancel = gr.Button("Cancel (Esc)", variant="stop", min_width=100, elem_id="jaxl-cancel")
                        again = gr.Button("Again and again", min_width=100, elem_id="jaxl-again")
                    own(f"<jaxl-waiting{' data-keeps' if settings.urls else ''}></jaxl-waiting>")
                    own(MODELS)
                    with gr.Row():
                        own(f'<jaxl-size data-sizes="{" ".join(sizes)}"></jaxl-size>', min_width=120)
                        images = gr.Slider(
                            1, most, min(IMAGES, most), step=1, label="Images", min_width=120, elem_id="jaxl-images"
                        )
                    with gr.Row():
                        seed = gr.Textbox(
                            label="Seed", placeholder="random", max_length=20, min_width=120, elem_id="jaxl-seed"
                        )
                        with gr.Column(min_width=120):
                            shuffle = gr.Button("Random seed", size="sm")
                            reuse = gr.Button("Last seed", size="sm", elem_id="jaxl-reuse")
                    own(SCHEDULER.format(escape(json.dumps(_samplers(settings))), escape(settings.scheduler)))
                    own(LORAS)
                    own(_networks("controls", settings.controlnets, MODES))
                    own(_networks("image_prompts", settings.ip_adapters, BLOCKS))
                    own(_hires(settings))
                    own(REFINER)
                    own(GRID)
                    with gr.Accordion("Steps, guidance", open=False):
                        steps = gr.Slider(1, MOST_STEPS, settings.steps, step=1, label="Steps", elem_id="jaxl-steps")
                        guidance = gr.Slider(0, 30, settings.guidance_scale, step=0.1, label="Guidance")
                        syntax = gr.Dropdown(list(SYNTAXES), value=SYNTAX, label="Prompt syntax")
                        ways = [("jaxl's own", ""), *((name, name) for name in STYLES)]
                        style = gr.Dropdown(ways, value="", label="Style: draw as this program does")
                        sources = [("the style's", ""), *((name, name) for name in (OWN_NOISE, *SOURCES))]
                        noise = gr.Dropdown(sources, value="", label="Noise: whose random numbers a seed stands for")
                    own("<jaxl-source></jaxl-source>")
                    label = "Strength: how much of the picture changes"
                    strength = gr.Slider(0, 1, STRENGTH, step=0.01, label=label, elem_id="jaxl-strength")
                    with gr.Column(elem_id="jaxl-mask"):
                        label = "Feather: pixels over which the picture goes over into what is painted"
                        feather = gr.Slider(0, 64, FEATHER, step=1, label=label)
                        only = gr.Checkbox(False, label="Only masked: draw what is painted alone, larger")
                        padding = gr.Slider(0, 256, PADDING, step=4, label="Pixels around it, with only masked")
                    own(ENLARGE.format(escape(json.dumps([*RESAMPLED, *dict(settings.upscalers)]))))
                    own(RESTORE.format(", ".join(MEDIA_TYPES.values())))
                    gr.Markdown("Try one of these")
                    given = [gr.Button(text, size="sm") for text in examples(settings.model)]
                with gr.Column(scale=3, min_width=300, elem_id="jaxl-pictures"):
                    own("<jaxl-board></jaxl-board>", elem_id="jaxl-drawn")
                    own("<jaxl-gallery></jaxl-gallery>", elem_id="jaxl-history")
            with gr.Tab("Statistics"):
                own("<jaxl-statistics></jaxl-statistics>")
        bridge = gr.HTML("", js_on_load=BRIDGE, visible="hidden")

        form = {
            "prompt": prompt,
            "negative_prompt": negative,
            "num_images": images,
            "seed": seed,
            "steps": steps,
            "guidance_scale": guidance,
            "prompt_syntax": syntax,
            "style": style,
            "noise": noise,
            "strength": strength,
            "mask_blur": feather,
            "only_masked": only,
            "padding_mask_crop": padding,
        }
        names, fields = json.dumps(list(form)), list(form.values())
        limits = json.dumps({"steps": MOST_STEPS, "num_images": most})
        remember = f"(...values) => {{ jaxl.remember({names}, values); }}"
        # without `fn` an event stays in the browser
        gr.on([field.change for field in fields], fn=None, js=remember, inputs=fields)
        for button, act in ((generate, "generate"), (again, "again")):
            js = f"(...values) => {{ jaxl.remember({names}, values); jaxl.{act}(); }}"
            button.click(fn=None, js=js, inputs=fields)
        cancel.click(fn=None, js="() => { jaxl.cancel(); }")
        shuffle.click(fn=None, js="() => ''", outputs=seed)
        reuse.click(fn=None, js="() => jaxl.seed()", outputs=seed)
        for button in given:
            button.click(fn=None, js=f"() => {json.dumps(button.value)}", outputs=prompt)
        fill = f"(settings, ...values) => jaxl.fill({names}, {limits}, settings, values)"
        bridge.fill(fn=None, js=fill, inputs=[bridge, *fields], outputs=fields)
    return blocks


def _networks(tag: str, names: Collection[str], choices: Iterable[str]) -> str:
    """Return the element for networks of the server, which is hidden where there are none."""
    told = (escape(json.dumps([*each])) for each in (names, choices))
    return NETWORKS.format(tag, *told, "" if names else " hidden")


def _hires(settings: Settings) -> str:
    """Return the element for second passes, which is hidden where there are none."""
    sizes = [f"{width}x{height}" for width, height in settings.larger_sizes]
    labels = {name: a1111_upscaler(name) for name in WITHOUT_NETWORK} | {name: name for name, _ in settings.upscalers}
    told = (escape(json.dumps(each)) for each in (sizes, [*labels.items()]))
    return HIRES.format(*told, "" if sizes else " hidden")


def _samplers(settings: Settings) -> list[dict[str, Any]]:
    """Return the list for `scheduler.js`: each sampler that is offered with its schedules, by A1111's names."""
    samplers: dict[str, dict[str, Any]] = {}
    for name in offered(settings):
        sampler, schedule = a1111_name(name)
        solver = solver_of(name)
        known = SCHEDULERS[name].solver
        label = f"{sampler} ({'EDM' if known.edm else 'of A1111'})" if known.form_of else sampler
        samplers.setdefault(solver, {"label": label, "schedules": []})["schedules"].append((schedule, name))
    return list(samplers.values())
