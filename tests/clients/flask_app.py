"""Flask service. No OpenTelemetry setup in here: only the API is used, the agent
(`opentelemetry-instrument`) brings the rest."""
import logging
import os

from flask import Flask, jsonify
from opentelemetry import metrics, trace
from opentelemetry.trace import Status, StatusCode

app = Flask(__name__)
log = logging.getLogger("flask_app.hello")
tracer = trace.get_tracer("flask_app.manual", "1.2.3")
meter = metrics.get_meter("flask_app.manual", "1.2.3")
greeted = meter.create_counter("greetings", unit="{greeting}", description="greetings served")
length = meter.create_histogram(
    "name.length", unit="{char}", explicit_bucket_boundaries_advisory=[1.0, 5.0, 10.0]
)
level = meter.create_gauge("greeter.level", unit="1")
open_ = meter.create_up_down_counter("greeter.open", unit="1")

VALUES = {
    "v.string": "grüße, 世界 \"quoted\"\n",
    "v.empty": "",
    "v.int": 42,
    "v.int.zero": 0,
    "v.int.negative": -7,
    "v.int.beyond53": 9007199254740993,       # 2^53 + 1
    "v.int.max": 9223372036854775807,
    "v.int.min": -9223372036854775808,
    "v.double": 0.1,
    "v.double.whole": 3.0,
    "v.double.tiny": 5e-324,
    "v.double.huge": 1.7976931348623157e308,
    "v.bool.true": True,
    "v.bool.false": False,
    "v.array.string": ["a", "b", ""],
    "v.array.int": [1, -2, 9007199254740993],
    "v.array.double": [0.5, 1.0],
    "v.array.bool": [True, False],
    "v.array.empty": [],
}


@app.get("/hello/<name>")
def hello(name):
    with tracer.start_as_current_span("values", attributes=VALUES) as span:
        span.add_event("greeted", {"event.int": 9007199254740993, "event.text": name})
        span.set_status(Status(StatusCode.OK))
    greeted.add(1, {"name": name, "lucky": True})
    length.record(len(name), {"name": name})
    level.set(0.25)
    open_.add(1)
    log.warning(
        "hello %s", name,
        extra={"x.int": 9007199254740993, "x.float": 2.5, "x.bool": True, "x.str": "täxt"},
    )
    return jsonify(hello=name)


@app.get("/link/<name>")
def link(name):
    parent = trace.get_current_span().get_span_context()
    with tracer.start_as_current_span("linked", links=[trace.Link(parent, {"link.int": 1})]):
        pass
    return jsonify(link=name)


@app.get("/odd")
def odd():
    """Values that have no plain JSON form."""
    with tracer.start_as_current_span("odd") as span:
        span.set_attribute("v.nan", float("nan"))
        span.set_attribute("v.inf", float("inf"))
        span.set_attribute("v.neginf", float("-inf"))
        span.set_attribute("v.bytes", b"\x00\xff\x10")
        span.set_attribute("v.negzero", -0.0)
    return jsonify(odd=True)


@app.get("/toobig")
def toobig():
    """2^63 does not fit int64."""
    with tracer.start_as_current_span("toobig") as span:
        span.set_attribute("v.int.toobig", 9223372036854775808)
    return jsonify(toobig=True)


@app.get("/fail")
def fail():
    raise ValueError("price missing: flask")


if __name__ == "__main__":
    app.run("127.0.0.1", int(os.environ["PORT"]), threaded=True)
