"""The OpenAI-compatible server: `app` for any ASGI server, `run` with uvicorn. Needs the extra `serve`."""

from __future__ import annotations

from lithe.serve.http._app import App
from lithe.serve.http._server import Server, listen, run
from lithe.serve.http._service import LOOPBACK, Service, Settings, name_of

__all__ = ["LOOPBACK", "App", "Server", "Service", "Settings", "listen", "name_of", "run"]
