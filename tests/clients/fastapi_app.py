"""FastAPI service in front of the Flask one (FLASK_URL). HTTP_CLIENT=requests|httpx."""
import logging
import os

import httpx
import requests
from fastapi import FastAPI, Response
from opentelemetry import trace

app = FastAPI()
log = logging.getLogger("fastapi_app.hello")
tracer = trace.get_tracer("fastapi_app.manual")
FLASK = os.environ.get("FLASK_URL", "http://127.0.0.1:18001")


def _get(path):
    if os.environ.get("HTTP_CLIENT") == "requests":
        return requests.get(FLASK + path, timeout=5)
    with httpx.Client(timeout=5) as client:
        return client.get(FLASK + path)


@app.get("/hello/{name}")
def hello(name: str):
    with tracer.start_as_current_span("ask flask", attributes={"name": name, "n": 1, "f": 1.5, "b": True}):
        answer = _get("/hello/" + name)
    log.warning("asked for %s", name, extra={"x.int": 3, "x.float": 0.5, "x.bool": False, "x.str": "s"})
    return answer.json()


@app.get("/upstream-fail")
def upstream_fail(response: Response):
    response.status_code = 502 if _get("/fail").status_code == 500 else 200
    return {}


@app.get("/fail")
def fail():
    raise ValueError("price missing: fastapi")


if __name__ == "__main__":
    import uvicorn
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_config=None)
