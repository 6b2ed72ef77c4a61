"""A place that values are pushed to: HTTPS with a certificate of its own CA. Decodes with libraries of others and writes one JSON line for each
value that it got: what it came by, property, value, time in milliseconds. Any request that is not as it should be ends it."""

import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from line_protocol_parser import parse_line
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

port, certificate, key, token, out = sys.argv[1:]
lines = open(out, "a", buffering=1)


def form(body, query, headers):
    fields = {name: values[0] for name, values in parse_qs(body.decode(), strict_parsing=True).items()}
    assert headers["Content-Type"] == "application/x-www-form-urlencoded", headers
    assert fields["device"] == "default/meter", fields
    yield "power", fields["power"], int(fields["timestamp"])


def influx(body, query, headers):
    assert query == {"org": ["plant"], "bucket": ["hall 3"], "precision": ["ms"]}, query
    assert headers["Authorization"] == "Token " + token, "a wrong token"
    for line in body.decode().splitlines():
        point = parse_line(line)
        assert point["measurement"] == "meters" and point["tags"] == {"room": "a b,c"}, point
        yield "power", point["fields"]["watts"], point["time"]


def otlp(body, query, headers):
    assert headers["Content-Type"] == "application/x-protobuf", headers
    for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        names = {a.key: a.value.string_value for a in resource.resource.attributes}
        assert names == {"device.id": "default/meter"}, names
        for metric in (m for scope in resource.scope_metrics for m in scope.metrics):
            for point in metric.gauge.data_points:
                yield metric.name, point.as_double, point.time_unix_nano // 1_000_000


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    places = {"/in": form, "/api/v2/write": influx, "/v1/metrics": otlp}

    def do_POST(self):
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for name, value, at in self.places[url.path](body, parse_qs(url.query), self.headers):
            lines.write(json.dumps([url.path, name, float(value), at]) + "\n")
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
server.daemon_threads = True
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
