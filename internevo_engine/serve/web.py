"""serve: chat --web: the page of page.py in a browser, over a server of its own. Ends with Ctrl-C."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

from internevo_engine.errors import ConfigError
from internevo_engine.serve.load import LanguageModel
from internevo_engine.serve.server import LOOPBACK, Server

PAGE = Path(__file__).with_name("page.py")


def open_page(model: LanguageModel, port: int) -> int:
    """Serve the page on loopback, and the model to it on a free port; returns the exit code.

    Raises:
        ConfigError: the model can't be talked to, or Streamlit isn't installed, or failed.
    """
    if model.prompt is None:
        raise ConfigError(
            f"{model.name} has no chat template, so a page can't talk to it; without --web it continues text"
        )
    if find_spec("streamlit") is None:
        raise ConfigError("the page needs Streamlit: pip install 'internevo-engine[chat]'")
    with Server(model) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        print(f"{model.name} ({model.origin}) at http://{LOOPBACK}:{port}; Ctrl-C ends it", flush=True)
        try:
            code = subprocess.run(page_command(server.url, port), check=False).returncode
        except KeyboardInterrupt:
            code = 0
    if code:
        raise ConfigError(f"Streamlit ended with code {code}; if the port is taken, choose another: --port N")
    return 0


def page_command(url: str, port: int) -> list[str]:
    """Streamlit, for this machine only, and without its telemetry."""
    settings = {
        "server.address": LOOPBACK,
        "server.port": port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
    }
    options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    return [sys.executable, "-m", "streamlit", "run", str(PAGE), *options, "--", url]
