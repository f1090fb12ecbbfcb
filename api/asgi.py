"""The app that gunicorn loads, `api.asgi:app`: the only module-level app."""

from api.app import create_app
from api.settings import load_settings

app = create_app(load_settings())
