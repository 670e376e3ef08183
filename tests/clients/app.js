// Express service. Only the OpenTelemetry APIs are used here;
// `node --require @opentelemetry/auto-instrumentations-node/register app.js` brings the rest.
'use strict';
const express = require('express');
const { trace, metrics, SpanStatusCode } = require('@opentelemetry/api');
const { logs, SeverityNumber } = require('@opentelemetry/api-logs');

const app = express();
const tracer = trace.getTracer('app.manual', '1.2.3');
const meter = metrics.getMeter('app.manual', '1.2.3');
const logger = logs.getLogger('app.hello', '1.2.3');
const greeted = meter.createCounter('greetings', { unit: '{greeting}', description: 'greetings served' });
const length = meter.createHistogram('name.length', {
  unit: '{char}', advice: { explicitBucketBoundaries: [1, 5, 10] } });
const level = meter.createGauge('greeter.level', { unit: '1' });

const VALUES = {
  'v.string': 'grüße, 世界 "quoted"\n',
  'v.empty': '',
  'v.int': 42,
  'v.int.zero': 0,
  'v.int.negative': -7,
  'v.int.safe': Number.MAX_SAFE_INTEGER,
  'v.int.beyond53': 2 ** 60,
  'v.double': 0.1,
  'v.double.whole': 3.0,
  'v.bool.true': true,
  'v.bool.false': false,
  'v.array.string': ['a', 'b', ''],
  'v.array.int': [1, -2, 2 ** 60],
  'v.array.double': [0.5, 1.25],
  'v.array.mixed': [0.5, 1],
  'v.array.bool': [true, false],
  'v.array.null': ['a', null],
  'v.array.empty': [],
};

app.get('/hello/:name', (req, res) => {
  const name = req.params.name;
  tracer.startActiveSpan('values', { attributes: VALUES }, (span) => {
    span.addEvent('greeted', { 'event.int': 2 ** 60, 'event.text': name });
    span.setStatus({ code: SpanStatusCode.OK });
    span.end();
  });
  greeted.add(1, { name, lucky: true });
  length.record(name.length, { name });
  level.record(0.25);
  logger.emit({
    severityNumber: SeverityNumber.WARN, severityText: 'WARN', body: `hello ${name}`,
    attributes: { 'x.int': 2 ** 60, 'x.float': 2.5, 'x.bool': true, 'x.str': 'täxt',
                  'x.map': { a: 1, b: [true, null, 'c'] }, 'x.bytes': new Uint8Array([0, 255, 16]) },
  });
  res.json({ hello: name });
});

// Calls another service: UPSTREAM_URL + /hello/<name>
app.get('/ask/:name', async (req, res) => {
  const answer = await fetch(`${process.env.UPSTREAM_URL}/hello/${req.params.name}`);
  res.status(answer.status).json(await answer.json());
});

// Values that have no plain JSON form, or do not fit int64.
app.get('/odd', (req, res) => {
  tracer.startActiveSpan('odd', (span) => {
    span.setAttributes({ 'v.nan': NaN, 'v.inf': Infinity, 'v.neginf': -Infinity, 'v.negzero': -0 });
    span.end();
  });
  res.json({ odd: true });
});
app.get('/toobig', (req, res) => {
  tracer.startActiveSpan('toobig', (span) => {
    span.setAttributes({ 'v.two63': 2 ** 63, 'v.1e300': 1e300 });
    span.end();
  });
  res.json({ toobig: true });
});

app.get('/fail', () => { throw new Error('price missing: node'); });

const server = app.listen(Number(process.env.PORT), '127.0.0.1', () =>
  console.log(`listening on ${server.address().port}`));
for (const signal of ['SIGTERM', 'SIGINT']) {
  process.once(signal, () => { server.close(); server.closeIdleConnections(); });
}
