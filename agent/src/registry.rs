//! Prometheus in both directions: what a service counts in registries of the `prometheus` crate goes out with its other metrics, and on request all of it
//! can be scraped as text.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::summary_data_point::ValueAtQuantile;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ScopeMetrics, Sum, Summary, SummaryDataPoint,
    number_data_point,
};
use prometheus::Registry;
use prometheus::proto::{MetricFamily, MetricType};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// The registries that go out.
#[derive(Clone, Default, Debug)]
pub(crate) struct Registries(Arc<Mutex<Vec<Registry>>>);

impl Registries {
    pub fn add(&self, registry: Registry) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(registry);
    }

    pub fn gather(&self) -> Vec<MetricFamily> {
        let registries = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        registries.iter().flat_map(Registry::gather).collect()
    }

    /// All that they hold, as OTLP has it. Counters count since `started`, as far as anybody knows.
    pub fn metrics(&self, started: SystemTime) -> Option<ScopeMetrics> {
        let families = self.gather();
        let (start, now) = (crate::wire::nanos(started), crate::wire::nanos(SystemTime::now()));
        let metrics: Vec<Metric> = families.iter().filter_map(|family| metric(family, start, now)).collect();
        let scope = InstrumentationScope { name: "prometheus".to_owned(), ..InstrumentationScope::default() };
        (!metrics.is_empty()).then(|| ScopeMetrics { scope: Some(scope), metrics, schema_url: String::new() })
    }
}

fn attributes(metric: &prometheus::proto::Metric) -> Vec<KeyValue> {
    let pair = |label: &prometheus::proto::LabelPair| KeyValue {
        key: label.name().to_owned(),
        value: Some(AnyValue { value: Some(Value::StringValue(label.value().to_owned())) }),
        ..KeyValue::default()
    };
    metric.get_label().iter().map(pair).collect()
}

/// A family as one metric, named as it is, since that is what its owners know it by.
fn metric(family: &MetricFamily, start: u64, now: u64) -> Option<Metric> {
    let cumulative = AggregationTemporality::Cumulative as i32;
    let numbers = |start: u64, value: &dyn Fn(&prometheus::proto::Metric) -> f64| {
        let point = |metric: &prometheus::proto::Metric| NumberDataPoint {
            attributes: attributes(metric),
            start_time_unix_nano: start,
            time_unix_nano: now,
            value: Some(number_data_point::Value::AsDouble(value(metric))),
            ..NumberDataPoint::default()
        };
        family.get_metric().iter().map(point).collect::<Vec<_>>()
    };
    let data = match family.get_field_type() {
        MetricType::COUNTER => Data::Sum(Sum {
            data_points: numbers(start, &|m| m.get_counter().value()),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        MetricType::GAUGE => Data::Gauge(Gauge { data_points: numbers(0, &|m| m.get_gauge().value()) }),
        MetricType::HISTOGRAM => {
            let point = |metric: &prometheus::proto::Metric| {
                let histogram = metric.get_histogram();
                let finite: Vec<_> = histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite()).collect();
                // Theirs count what is at most so much, ours what lies between two bounds.
                let mut counts = Vec::with_capacity(finite.len() + 1);
                let mut below = 0;
                for bucket in &finite {
                    counts.push(bucket.cumulative_count().saturating_sub(below));
                    below = bucket.cumulative_count();
                }
                counts.push(histogram.get_sample_count().saturating_sub(below));
                HistogramDataPoint {
                    attributes: attributes(metric),
                    start_time_unix_nano: start,
                    time_unix_nano: now,
                    count: histogram.get_sample_count(),
                    sum: Some(histogram.get_sample_sum()),
                    bucket_counts: counts,
                    explicit_bounds: finite.iter().map(|bucket| bucket.upper_bound()).collect(),
                    ..HistogramDataPoint::default()
                }
            };
            Data::Histogram(Histogram { data_points: family.get_metric().iter().map(point).collect(), aggregation_temporality: cumulative })
        }
        MetricType::SUMMARY => {
            let point = |metric: &prometheus::proto::Metric| {
                let summary = metric.get_summary();
                let quantile = |q: &prometheus::proto::Quantile| ValueAtQuantile { quantile: q.quantile(), value: q.value() };
                SummaryDataPoint {
                    attributes: attributes(metric),
                    start_time_unix_nano: start,
                    time_unix_nano: now,
                    count: summary.sample_count(),
                    sum: summary.sample_sum(),
                    quantile_values: summary.get_quantile().iter().map(quantile).collect(),
                    ..SummaryDataPoint::default()
                }
            };
            Data::Summary(Summary { data_points: family.get_metric().iter().map(point).collect() })
        }
        MetricType::UNTYPED => return None,
    };
    let (name, description) = (family.name().to_owned(), family.help().to_owned());
    Some(Metric { name, description, data: Some(data), ..Metric::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{HistogramOpts, HistogramVec, IntCounter};

    #[test]
    fn a_registry_goes_out_as_it_is() {
        let registry = Registry::new();
        let count = IntCounter::new("orders_total", "orders").expect("valid");
        let times = HistogramVec::new(HistogramOpts::new("wait_seconds", "waiting").buckets(vec![0.1, 1.0]), &["shop"]).expect("valid");
        registry.register(Box::new(count.clone())).expect("new");
        registry.register(Box::new(times.clone())).expect("new");
        count.inc_by(7);
        [0.05, 0.5, 0.6, 5.0].iter().for_each(|v| times.with_label_values(&["north"]).observe(*v));
        let registries = Registries::default();
        registries.add(registry);
        let scope = registries.metrics(SystemTime::now()).expect("there is something");
        let by_name = |name: &str| scope.metrics.iter().find(|m| m.name == name).and_then(|m| m.data.clone());
        let Some(Data::Sum(sum)) = by_name("orders_total") else { panic!("a sum") };
        assert_eq!(sum.data_points[0].value, Some(number_data_point::Value::AsDouble(7.0)));
        let Some(Data::Histogram(histogram)) = by_name("wait_seconds") else { panic!("a histogram") };
        let point = &histogram.data_points[0];
        assert_eq!((point.count, &point.bucket_counts[..], &point.explicit_bounds[..]), (4, &[1, 2, 1][..], &[0.1, 1.0][..]));
        assert_eq!(point.attributes[0].key, "shop");
    }
}
