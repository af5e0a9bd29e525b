"""The explorer: an HTTP server over an atlas, pages for people and JSON for programs.

    from paramdex.web.app import make_app
    app = make_app(paramdex.open("demo.atlas"))

Needs FastAPI, uvicorn and Jinja2: pip install 'paramdex[web]'.
"""
